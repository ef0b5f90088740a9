//! OTLP's JSON of a trace, as collectors take it at `/v1/traces`. Pure.

use std::fmt::Write;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::spans::Span;

/// A span within one service.
const INTERNAL: u32 = 1;

/// The request with these spans; `trace` is a UID.
pub fn request(trace: &str, spans: &[Span]) -> Value {
    let number = trace_id(trace);
    let each: Vec<Value> = spans
        .iter()
        .enumerate()
        .map(|(index, span)| {
            let attributes: Vec<_> = span
                .attributes
                .iter()
                .map(|(key, value)| attribute(key, value))
                .collect();
            let mut one = json!({
                "traceId": number,
                "spanId": span_id(trace, index),
                "name": span.name,
                "kind": INTERNAL,
                // Nanoseconds do not fit into a number of JSON.
                "startTimeUnixNano": (u128::from(span.from) * 1000).to_string(),
                "endTimeUnixNano": (u128::from(span.to) * 1000).to_string(),
                "attributes": attributes,
            });
            if let (Some(parent), Some(fields)) = (span.parent, one.as_object_mut()) {
                fields.insert("parentSpanId".to_owned(), span_id(trace, parent).into());
            }
            one
        })
        .collect();
    json!({"resourceSpans": [{
        "resource": {"attributes": [attribute("service.name", "nacelle")]},
        "scopeSpans": [{
            "scope": {"name": "nacelle-controller", "version": env!("CARGO_PKG_VERSION")},
            "spans": each,
        }],
    }]})
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// The UID's 16 bytes, or as many of what hashes it.
fn trace_id(uid: &str) -> String {
    let digits: String = uid.chars().filter(char::is_ascii_hexdigit).collect();
    match digits.len() {
        32 => digits.to_ascii_lowercase(),
        _ => hex(&Sha256::digest(uid), 16),
    }
}

fn span_id(trace: &str, index: usize) -> String {
    hex(&Sha256::digest(format!("{trace}/{index}")), 8)
}

fn hex(bytes: &[u8], count: usize) -> String {
    bytes.iter().take(count).fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
