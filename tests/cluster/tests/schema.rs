//! Every field that KubeVirt's schema knows is known here, or docs/compatibility.md says otherwise.
#![cfg(feature = "cluster")]

mod support;

use std::collections::BTreeSet;

use serde_json::Value;
use support::{Namespace, output, script};

/// The schemas of KubeVirt's Go module: a map of texts in a file of Go.
fn upstream(kind: &str) -> Value {
    let path = String::from_utf8(output(&mut script("upstream"), "").stdout).unwrap();
    let source = std::fs::read_to_string(path.trim()).unwrap();
    let (_, text) = source.split_once(&format!("\t\"{kind}\": `")).unwrap();
    let (text, _) = text.split_once('`').unwrap();
    let options = serde_saphyr::options! { budget: None };
    let schema: Value = serde_saphyr::from_str_with_options(text, options).unwrap();
    schema["openAPIV3Schema"].clone()
}

fn open(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == true
}

fn compare(theirs: &Value, ours: &Value, path: &str, found: &mut BTreeSet<String>) {
    if open(ours) {
        return;
    }
    if open(theirs) && theirs["properties"].is_null() {
        found.insert(format!("{path}: KubeVirt takes anything"));
        return;
    }
    let kind = |schema: &Value| {
        if schema["x-kubernetes-int-or-string"] == true {
            "quantity".into()
        } else {
            schema["type"].clone()
        }
    };
    if kind(theirs) != kind(ours) {
        found.insert(format!("{path}: {} instead of {}", kind(ours), kind(theirs)));
    }
    let fields = |schema: &Value| schema["properties"].as_object().cloned().unwrap_or_default();
    let (their_fields, our_fields) = (fields(theirs), fields(ours));
    for (name, field) in &their_fields {
        match our_fields.get(name) {
            Some(ours) => compare(field, ours, &format!("{path}.{name}"), found),
            None => drop(found.insert(format!("{path}.{name}: unknown here"))),
        }
    }
    for name in our_fields.keys().filter(|name| !their_fields.contains_key(*name)) {
        found.insert(format!("{path}.{name}: known here alone"));
    }
    for part in ["items", "additionalProperties"] {
        if theirs[part].is_object() && ours[part].is_object() {
            compare(&theirs[part], &ours[part], &format!("{path}[]"), found);
        }
    }
    let required = |schema: &Value| -> BTreeSet<String> {
        schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    };
    for name in required(ours).difference(&required(theirs)) {
        found.insert(format!("{path}.{name}: required here"));
    }
}

#[test]
fn every_field_of_kubevirt_is_known_and_every_difference_is_written_down() {
    let here = Namespace::new("schema");
    let mut found = BTreeSet::new();
    for (kind, group) in [
        ("virtualmachine", "kubevirt.io"),
        ("virtualmachineinstance", "kubevirt.io"),
        ("virtualmachineinstancereplicaset", "kubevirt.io"),
        ("virtualmachinepool", "pool.kubevirt.io"),
        ("virtualmachineinstancetype", "instancetype.kubevirt.io"),
        ("virtualmachinepreference", "instancetype.kubevirt.io"),
    ] {
        let theirs = upstream(kind);
        let crd = here.admin.get("crd", &format!("{kind}s.{group}"));
        let ours = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for part in ["spec", "status"] {
            let mut differences = BTreeSet::new();
            compare(
                &theirs["properties"][part],
                &ours["properties"][part],
                part,
                &mut differences,
            );
            found.extend(differences.into_iter().map(|line| format!("{kind} {line}")));
        }
    }
    let docs = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/compatibility.md"
    ))
    .unwrap();
    let (_, block) = docs.split_once("```differences\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let written: BTreeSet<String> = block.lines().map(str::to_owned).collect();
    assert_eq!(
        found, written,
        "docs/compatibility.md lists other differences than there are"
    );
}
