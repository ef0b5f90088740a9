//! Strict reading of a manifest: all of it is understood, or it is refused with everything that is wrong in it.
//!
//! The text becomes a tree whose nodes know their line (`tree`); the tree is held against the JSON schema of
//! the types (`check`), which finds every unknown field, wrong type and missing field at once and knows
//! enough for a suggestion; only then serde makes the object, and has nothing left to complain about.

mod check;
mod tree;

use std::fmt;

use schemars::schema_for;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::API_VERSION;
use crate::path::FieldPath;
use crate::vm::VirtualMachine;
use crate::vmi::VirtualMachineInstance;
use check::Checker;
use tree::{Node, Value};

/// What a manifest may be long. The API server stores no object larger than 1.5 MiB.
const MAX_BYTES: usize = 1 << 20;

/// A manifest that was understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Manifest {
    /// A `VirtualMachine`.
    VirtualMachine(Box<VirtualMachine>),
    /// A `VirtualMachineInstance`.
    VirtualMachineInstance(Box<VirtualMachineInstance>),
}

/// Why a text is no manifest that we take.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ParseError {
    /// It is longer than any object may be.
    #[error("the manifest is {0} bytes long; the limit is {MAX_BYTES}")]
    TooLarge(usize),
    /// It is neither YAML nor JSON, or goes beyond our limits on nesting and aliases.
    #[error("not valid YAML: {0}")]
    Syntax(String),
    /// There is nothing in it.
    #[error("the manifest is empty")]
    Empty,
    /// It holds several objects.
    #[error(
        "the file holds {0} documents, separated by `---`; give one VirtualMachine or VirtualMachineInstance"
    )]
    SeveralDocuments(usize),
    /// It is a list of objects.
    #[error("this is a {0}, which holds several objects; give one VirtualMachine or VirtualMachineInstance")]
    List(String),
    /// It is an object, but not of a kind that is a machine.
    #[error("{0}")]
    WrongKind(String),
    /// Fields are unknown, missing or of the wrong type.
    #[error("{}", Lines(.0))]
    Fields(Vec<Problem>),
}

/// One thing that is wrong in a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub path: FieldPath,
    /// In which line of the text, from 1, where it is known.
    pub line: Option<u64>,
    /// What.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        write!(f, "{}: {}", self.path, self.message)
    }
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        Ok(())
    }
}

/// Reads one `VirtualMachine` or `VirtualMachineInstance` from YAML or JSON.
///
/// `status` is not looked at and dropped, as the API server does with what a user sends, so that the output of
/// `kubectl get -o yaml` can be used.
///
/// ```
/// let error = nacelle_api::parse("{apiVersion: kubevirt.io/v1, kind: VirtualMachine, spec: {runing: true}}").unwrap_err();
/// assert!(error.to_string().contains("spec.runing: unknown field; did you mean `running`?"));
/// ```
pub fn parse(text: &str) -> Result<Manifest, ParseError> {
    if text.len() > MAX_BYTES {
        return Err(ParseError::TooLarge(text.len()));
    }
    let mut documents = tree::read(text)?;
    documents.retain(|node| node.value != Value::Null);
    let count = documents.len();
    let root = match documents.pop() {
        None => return Err(ParseError::Empty),
        Some(root) if count == 1 => root,
        Some(_) => return Err(ParseError::SeveralDocuments(count)),
    };
    // A schema takes a megabyte, and who reads a manifest to run it reads one: it is not kept.
    match kind(&root)? {
        Kind::Vm => {
            let schema = schema_for!(VirtualMachine).to_value();
            object(root, &schema).map(|vm| Manifest::VirtualMachine(Box::new(vm)))
        }
        Kind::Vmi => {
            let schema = schema_for!(VirtualMachineInstance).to_value();
            object(root, &schema).map(|vmi| Manifest::VirtualMachineInstance(Box::new(vmi)))
        }
    }
}

enum Kind {
    Vm,
    Vmi,
}

/// Which of our kinds the document says that it is.
fn kind(root: &Node) -> Result<Kind, ParseError> {
    let wrong = |message: String| Err(ParseError::WrongKind(message));
    if let Value::List(_) = root.value {
        return Err(ParseError::List("list".to_owned()));
    }
    let Value::Map(fields) = &root.value else {
        return wrong(format!(
            "the manifest is {}, not an object with `kind` and `spec`",
            root.value
        ));
    };
    let text = |name| match fields
        .iter()
        .find(|(key, _)| key == name)
        .map(|(_, node)| &node.value)
    {
        Some(Value::Text(text)) => Ok(text.as_str()),
        Some(Value::Null) | None => Err(ParseError::WrongKind(format!(
            "the manifest has no `{name}`; it should start with `apiVersion: {API_VERSION}` and `kind: VirtualMachine`"
        ))),
        Some(other) => Err(ParseError::WrongKind(format!(
            "`{name}` should be text, found {other}"
        ))),
    };
    let (kind, version) = (text("kind")?, text("apiVersion")?);
    if kind.ends_with("List") {
        return Err(ParseError::List(check::excerpt(kind)));
    }
    // v1alpha3 has the same schema; KubeVirt still serves it, with a warning.
    let ours = version == API_VERSION || version == "kubevirt.io/v1alpha3";
    match kind {
        "VirtualMachine" if ours => Ok(Kind::Vm),
        "VirtualMachineInstance" if ours => Ok(Kind::Vmi),
        "VirtualMachine" | "VirtualMachineInstance" => wrong(format!(
            "`apiVersion` of a {kind} should be `{API_VERSION}`, found `{}`",
            check::excerpt(version)
        )),
        other => wrong(format!(
            "`kind: {}` is not a machine; give a VirtualMachine or a VirtualMachineInstance",
            check::excerpt(other)
        )),
    }
}

/// Checks the document against the schema and makes the object.
fn object<T: DeserializeOwned>(mut root: Node, schema: &Json) -> Result<T, ParseError> {
    if let Value::Map(fields) = &mut root.value {
        fields.retain(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind" | "status"));
        // To the API server an object always has metadata; who runs one here may give its name elsewhere.
        if !fields.iter().any(|(key, _)| key == "metadata") {
            let none = Node {
                value: Value::Map(Vec::new()),
                line: root.line,
            };
            fields.push(("metadata".to_owned(), none));
        }
    }
    let mut checker = Checker::new(schema);
    checker.check(&mut root);
    let problems = checker.into_problems();
    if !problems.is_empty() {
        return Err(ParseError::Fields(problems));
    }
    // What the schema cannot say; nothing is known that gets here.
    serde_json::from_value(root.into_json()).map_err(|error| {
        ParseError::Fields(vec![Problem {
            path: FieldPath::new("manifest"),
            line: None,
            message: error.to_string(),
        }])
    })
}

#[cfg(test)]
mod tests;
