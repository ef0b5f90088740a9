//! From a schema as schemars makes it to one that the API server takes: without references, "structural".
//!
//! kube-derive's own conversion loses the names of referenced types, and with them what is a quantity, which may
//! be written as a number, and what is embedded metadata, which the API server must neither prune nor check.

use serde_json::{Map, Value, json};

use super::kinds::Served;

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Longer descriptions end with a sentence before this many characters: kubectl keeps what it applies in an
/// annotation of at most 256 KiB.
const DESCRIPTION: usize = 200;

/// The schema of a whole object.
pub(super) fn of(served: &Served) -> Value {
    let open = || json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let mut properties = Map::from_iter([
        ("apiVersion".to_owned(), json!({"type": "string"})),
        ("kind".to_owned(), json!({"type": "string"})),
        ("metadata".to_owned(), json!({"type": "object"})),
    ]);
    let mut object = Map::from_iter([("type".to_owned(), json!("object"))]);
    match served {
        Served::Typed(schema) => {
            let root = schema().to_value();
            let definitions = root.get("$defs").cloned().unwrap_or_default();
            for part in ["spec", "status"] {
                if let Some(schema) = root.pointer(&format!("/properties/{part}")) {
                    properties.insert(part.to_owned(), structural(Some(schema), &definitions));
                }
            }
            object.extend(
                root.get("description")
                    .map(|text| ("description".to_owned(), text.clone())),
            );
            object.insert("required".to_owned(), json!(["spec"]));
        }
        Served::Stored => {
            properties.extend([("spec".to_owned(), open()), ("status".to_owned(), open())]);
        }
        Served::Data => {
            properties.insert("spec".to_owned(), open());
        }
    }
    object.insert("properties".to_owned(), Value::Object(properties));
    Value::Object(object)
}

fn with(mut schema: Value, key: &str, value: Value) -> Value {
    if let Some(fields) = schema.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
    schema
}

fn structural(schema: Option<&Value>, definitions: &Value) -> Value {
    let Some(Value::Object(schema)) = schema else {
        // `true`: anything.
        return json!({"x-kubernetes-preserve-unknown-fields": true});
    };
    let out = match schema.get("$ref").and_then(Value::as_str) {
        Some(reference) => referred(reference.trim_start_matches("#/$defs/"), definitions),
        None => match alternatives(schema) {
            Some(only) => with(structural(Some(only), definitions), "nullable", json!(true)),
            None => plain(schema, definitions),
        },
    };
    // A field's own words come before those of its type.
    match schema.get("description").and_then(Value::as_str) {
        Some(text) => with(out, "description", json!(shortened(text))),
        None => out,
    }
}

fn referred(name: &str, definitions: &Value) -> Value {
    match name {
        QUANTITY => json!({
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": true,
        }),
        OBJECT_META => json!({
            "type": "object", "nullable": true, "x-kubernetes-preserve-unknown-fields": true,
        }),
        _ => structural(definitions.get(name), definitions),
    }
}

/// The one alternative beside `null`, where there is `null`.
fn alternatives(schema: &Map<String, Value>) -> Option<&Value> {
    let list = schema.get("anyOf")?.as_array()?;
    let (null, others): (Vec<_>, Vec<_>) = list
        .iter()
        .partition(|option| option.get("type").is_some_and(|t| t == "null"));
    match (null.as_slice(), others.as_slice()) {
        ([_], [only]) => Some(only),
        _ => None,
    }
}

fn plain(schema: &Map<String, Value>, definitions: &Value) -> Value {
    let mut out = Map::new();
    for (key, value) in schema {
        match key.as_str() {
            "type" => {
                let names: Vec<_> = value
                    .as_array()
                    .map_or_else(|| vec![value], |list| list.iter().collect());
                if names.iter().any(|name| *name == "null") {
                    out.insert("nullable".into(), json!(true));
                }
                if let Some(name) = names.iter().find(|name| **name != "null") {
                    out.insert("type".into(), (*name).clone());
                }
            }
            "properties" => {
                let fields = value.as_object().into_iter().flatten();
                let fields = fields.map(|(name, field)| (name.clone(), structural(Some(field), definitions)));
                out.insert(key.clone(), Value::Object(fields.collect()));
            }
            "items" => {
                out.insert(key.clone(), structural(Some(value), definitions));
            }
            "additionalProperties" if *value == json!(true) => {
                out.insert("x-kubernetes-preserve-unknown-fields".into(), json!(true));
            }
            "additionalProperties" if value.is_object() => {
                out.insert(key.clone(), structural(Some(value), definitions));
            }
            // Words, each with a description of its own, which the API server has no place for.
            "oneOf" => {
                let words = value.as_array().into_iter().flatten();
                let words: Option<Vec<_>> = words.map(|word| word.get("const").cloned()).collect();
                if let Some(words) = words {
                    out.insert("type".into(), json!("string"));
                    out.insert("enum".into(), json!(words));
                }
            }
            // Rust's unsigned numbers; the API server knows of these two alone.
            "format" => {
                let known = ["int32", "int64", "date-time", "byte"];
                if value.as_str().is_some_and(|format| known.contains(&format)) {
                    out.insert(key.clone(), value.clone());
                }
            }
            "required" | "minimum" | "maximum" | "enum" => {
                out.insert(key.clone(), value.clone());
            }
            _ if key.starts_with("x-kubernetes-") => {
                out.insert(key.clone(), value.clone());
            }
            // Titles and meta-schemas say nothing; defaults are admission's, never the schema's.
            _ => {}
        }
    }
    Value::Object(out)
}

/// As many whole sentences as there is room for.
fn shortened(text: &str) -> String {
    let text = text.replace('\n', " ");
    if text.chars().count() <= DESCRIPTION {
        return text;
    }
    let room: String = text.chars().take(DESCRIPTION).collect();
    match room.rfind(". ") {
        Some(end) => room
            .chars()
            .take(room.get(..=end).map_or(0, |s| s.chars().count()))
            .collect(),
        None => format!("{room}..."),
    }
}
