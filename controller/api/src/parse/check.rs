//! A tree held against the JSON schema of the types: everything that does not fit, in one go.
//!
//! On the way, YAML 1.1's words for true and false become what they mean, where a truth value is wanted.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value as Json};

use super::Problem;
use super::tree::{Node, Value};
use crate::path::FieldPath;
use crate::quantity::{self, QuantityError};

/// More problems than this are of no use to anybody.
const MAX_PROBLEMS: usize = 100;
/// Longer names are not compared with fields: it would cost time and help nobody.
const MAX_NAME: usize = 64;
/// The schema's name of a Kubernetes quantity.
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";

type Object = Map<String, Json>;

/// Holds a document against a schema.
pub(super) struct Checker<'s> {
    root: &'s Json,
    problems: Vec<Problem>,
    /// The objects around the place that is looked at, outermost first.
    around: Vec<(FieldPath, &'s Object)>,
}

impl<'s> Checker<'s> {
    pub(super) fn new(root: &'s Json) -> Self {
        Checker {
            root,
            problems: Vec::new(),
            around: Vec::new(),
        }
    }

    /// Checks a whole document.
    pub(super) fn check(&mut self, document: &mut Node) {
        self.value(document, self.root, &FieldPath::default());
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    fn problem(&mut self, path: &FieldPath, line: u64, message: String) {
        if self.problems.len() < MAX_PROBLEMS {
            let line = (line > 0).then_some(line);
            self.problems.push(Problem {
                path: path.clone(),
                line,
                message,
            });
        }
    }

    fn value(&mut self, node: &mut Node, schema: &'s Json, path: &FieldPath) {
        let (name, schema) = self.resolve(schema);
        let property = |key: &str| schema.get(key);
        if let Some(fields) = property("properties").and_then(Json::as_object) {
            let required = property("required")
                .and_then(Json::as_array)
                .map_or(&[][..], Vec::as_slice);
            self.object(node, fields, required, path);
        } else if property("x-kubernetes-int-or-string").is_some() {
            match &node.value {
                Value::Number(_) | Value::Null => {}
                Value::Text(text) => {
                    if name == Some(QUANTITY)
                        && let Err(error @ (QuantityError::Malformed(_) | QuantityError::TooLarge(_))) =
                            quantity::whole(&Quantity(text.clone()))
                    {
                        self.problem(path, node.line, error.to_string());
                    }
                }
                _ => self.wrong(node, "a number or text", path),
            }
        } else {
            match schema_type(schema) {
                Some("object") => self.map(node, property("additionalProperties"), path),
                Some("array") => self.list(node, property("items"), path),
                Some("string") => self.text(node, property("format").and_then(Json::as_str), path),
                Some("boolean") => self.boolean(node, path),
                Some("integer") => self.integer(node, property("format").and_then(Json::as_str), path),
                Some("number") if !matches!(node.value, Value::Number(_) | Value::Null) => {
                    self.wrong(node, "a number", path);
                }
                _ => {}
            }
        }
    }

    /// An object with fields that the schema names.
    fn object(&mut self, node: &mut Node, known: &'s Object, required: &'s [Json], path: &FieldPath) {
        let Value::Map(fields) = &mut node.value else {
            return self.wrong(node, "an object", path);
        };
        self.around.push((path.clone(), known));
        for (key, value) in fields.iter_mut() {
            if self.problems.len() == MAX_PROBLEMS {
                return;
            }
            let place = path.field(&excerpt(key));
            match known.get(key) {
                Some(schema) => self.value(value, schema, &place),
                None => {
                    let message = self.unknown(key, known);
                    self.problem(&place, value.line, message);
                }
            }
        }
        self.around.pop();
        let absent = |name: &str| {
            !fields
                .iter()
                .any(|(key, value)| key == name && value.value != Value::Null)
        };
        for name in required
            .iter()
            .filter_map(Json::as_str)
            .filter(|name| absent(name))
        {
            self.problem(&path.field(name), node.line, "this field is required".to_owned());
        }
    }

    /// An object whose keys are the user's, such as labels.
    fn map(&mut self, node: &mut Node, values: Option<&'s Json>, path: &FieldPath) {
        match &mut node.value {
            Value::Map(fields) => {
                for (key, value) in fields.iter_mut() {
                    if let Some(schema) = values {
                        self.value(value, schema, &path.field(&excerpt(key)));
                    }
                }
            }
            Value::Null => {}
            _ => self.wrong(node, "an object", path),
        }
    }

    fn list(&mut self, node: &mut Node, items: Option<&'s Json>, path: &FieldPath) {
        let Value::List(nodes) = &mut node.value else {
            return self.wrong(node, "a list", path);
        };
        for (index, item) in nodes.iter_mut().enumerate() {
            let place = path.index(index);
            match (&item.value, items) {
                (Value::Null, _) => self.problem(&place, item.line, "this element is empty".to_owned()),
                (_, Some(schema)) => self.value(item, schema, &place),
                (_, None) => {}
            }
        }
    }

    fn text(&mut self, node: &Node, format: Option<&str>, path: &FieldPath) {
        match &node.value {
            Value::Null => {}
            Value::Text(text) => {
                if format == Some("date-time") && text.parse::<Timestamp>().is_err() {
                    let message = format!("{:?} is not a time such as 2026-01-31T12:00:00Z", excerpt(text));
                    self.problem(path, node.line, message);
                }
            }
            _ => self.wrong(node, "text", path),
        }
    }

    fn boolean(&mut self, node: &mut Node, path: &FieldPath) {
        match &node.value {
            Value::Bool(_) | Value::Null => {}
            Value::Text(word) => match word.to_ascii_lowercase().as_str() {
                "yes" | "on" => node.value = Value::Bool(true),
                "no" | "off" => node.value = Value::Bool(false),
                _ => self.wrong(node, "true or false", path),
            },
            _ => self.wrong(node, "true or false", path),
        }
    }

    fn integer(&mut self, node: &Node, format: Option<&str>, path: &FieldPath) {
        let number = match &node.value {
            Value::Null => return,
            Value::Number(number) => number.as_i64(),
            _ => None,
        };
        let Some(number) = number else {
            return self.wrong(node, "a whole number", path);
        };
        let (low, high) = match format {
            Some("uint32") => (0, i64::from(u32::MAX)),
            Some("int32") => (i64::from(i32::MIN), i64::from(i32::MAX)),
            _ => (i64::MIN, i64::MAX),
        };
        if !(low..=high).contains(&number) {
            self.problem(
                path,
                node.line,
                format!("{number} is out of range; from {low} to {high} is possible"),
            );
        }
    }

    fn wrong(&mut self, node: &Node, wanted: &str, path: &FieldPath) {
        let hint = match (&node.value, wanted) {
            (Value::Null, "an object") => "; write `{}` or leave the field out",
            (Value::Null, "a list") => "; write `[]` or leave the field out",
            (Value::Text(text), "a whole number") if text.parse::<i64>().is_ok() => "; leave out the quotes",
            (Value::Text(text), "true or false") if text == "true" || text == "false" => {
                "; leave out the quotes"
            }
            (Value::Bool(_) | Value::Number(_), "text") => "; put it in quotes",
            (Value::Map(_), "a list") => "; start each element with `- `",
            _ => "",
        };
        self.problem(
            path,
            node.line,
            format!("wanted {wanted}, found {}{hint}", node.value),
        );
    }

    /// What to say of a field that does not exist here.
    fn unknown(&self, name: &str, known: &'s Object) -> String {
        let near = |limit: fn(usize) -> usize| {
            known
                .keys()
                .map(|key| {
                    (
                        strsim::osa_distance(&name.to_lowercase(), &key.to_lowercase()),
                        key,
                    )
                })
                .filter(|(distance, _)| *distance <= limit(name.len()))
                .min()
                .map(|(_, key)| format!("unknown field; did you mean `{key}`?"))
        };
        let inside = || {
            let (key, _) = known.iter().find(|(_, schema)| {
                let (_, schema) = self.resolve(schema);
                schema
                    .get("properties")
                    .is_some_and(|fields| fields.get(name).is_some())
            })?;
            Some(format!("unknown field; did you mean `{key}.{name}`?"))
        };
        let outside = || {
            let (path, _) = self
                .around
                .iter()
                .rev()
                .skip(1)
                .find(|(_, fields)| fields.contains_key(name))?;
            Some(format!("unknown field here; `{name}` belongs in `{path}`"))
        };
        if name.len() > MAX_NAME {
            return "unknown field".to_owned();
        }
        near(|length| length.div_ceil(6))
            .or_else(inside)
            .or_else(outside)
            .or_else(|| near(|length| length / 3))
            .unwrap_or_else(|| "unknown field".to_owned())
    }

    /// Follows references and drops the "or null" of optional fields; says the last reference's name.
    fn resolve(&self, mut schema: &'s Json) -> (Option<&'s str>, &'s Json) {
        let mut name = None;
        // A reference to a choice of references, at most; the bound only keeps a bad schema from looping.
        for _ in 0..8 {
            if let Some(reference) = schema.get("$ref").and_then(Json::as_str) {
                let key = reference.trim_start_matches("#/$defs/");
                name = Some(key);
                match self
                    .root
                    .get("$defs")
                    .and_then(|definitions| definitions.get(key))
                {
                    Some(definition) => schema = definition,
                    None => break,
                }
            } else if let Some(choices) = schema.get("anyOf").and_then(Json::as_array) {
                match choices.iter().find(|choice| schema_type(choice) != Some("null")) {
                    Some(choice) => schema = choice,
                    None => break,
                }
            } else {
                break;
            }
        }
        (name, schema)
    }
}

/// The type that a schema asks for, "or null" left out.
fn schema_type(schema: &Json) -> Option<&str> {
    match schema.get("type")? {
        Json::String(name) => Some(name),
        Json::Array(names) => names.iter().filter_map(Json::as_str).find(|name| *name != "null"),
        _ => None,
    }
}

/// The start of a text that may be long or hold control characters, fit for a message.
pub(super) fn excerpt(text: &str) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut start: String = chars.by_ref().take(MAX_NAME).collect();
    if chars.next().is_some() {
        start.push('…');
    }
    start
}
