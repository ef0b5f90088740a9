//! Where the time of a start goes, as an OpenTelemetry trace: from the instance to its guest's first line. Off unless a collector
//! is named.
//!
//! The launcher says when it began, how long each part took and when the guest spoke; the rest is in the objects. [`spans`] puts
//! it together (pure), [`otlp`] writes it down (pure), [`export`] sends it. A trace's number is the instance's UID, so nobody
//! has to remember it.

pub mod otlp;
pub mod spans;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::time::timeout;

use spans::Span;

/// Annotation of instances and launcher pods, while starts are traced: when we made them, in microseconds. Kubernetes' own
/// times have whole seconds.
pub const MADE: &str = "nacelle.io/made";
/// Time for a collector.
const PATIENCE: Duration = Duration::from_secs(10);

/// The value of [`MADE`].
pub fn made(now: Timestamp) -> (String, String) {
    (MADE.to_owned(), now.as_microsecond().to_string())
}

/// Whether starts can be sent there: HTTP/JSON, which collectors take at port 4318.
///
/// # Errors
/// A sentence on what is wrong with the address.
pub fn collector(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    if uri.scheme_str() != Some("http") || uri.authority().is_none() {
        return Err("must be http://HOST:PORT of an OTLP collector; https is not supported".to_owned());
    }
    Ok(uri)
}

/// Sends the spans of a trace to a collector.
///
/// # Errors
/// It is not there, or does not take them.
pub async fn export(collector: &Uri, trace: &str, spans: &[Span]) -> Result<()> {
    let body = otlp::request(trace, spans).to_string();
    timeout(PATIENCE, post(collector, body))
        .await
        .context("no answer in time")?
}

async fn post(collector: &Uri, body: String) -> Result<()> {
    let host = collector.host().unwrap_or_default();
    let port = collector.port_u16().unwrap_or(4318);
    let host = host.trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let path = format!("{}/v1/traces", collector.path().trim_end_matches('/'));
    let authority = collector.authority().map(ToString::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(HOST, authority)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            bail!("the collector answered with {}", response.status());
        }
        Ok(())
    };
    tokio::select! {
        answer = answer => answer,
        // It ends without an answer only where it breaks.
        broken = connection => broken.map_err(Into::into),
    }
}

#[cfg(test)]
mod tests;
