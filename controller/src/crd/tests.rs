use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

fn crd(name: &str) -> Value {
    let all = all().unwrap();
    let found = all.iter().find(|crd| crd.spec.names.kind == name).unwrap();
    serde_json::to_value(found).unwrap()
}

/// Follows a dotted path through properties and items.
fn field<'a>(crd: &'a Value, path: &str) -> &'a Value {
    let mut at = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    for name in path.split('.') {
        at = if name == "[]" {
            &at["items"]
        } else {
            &at["properties"][name]
        };
    }
    assert!(!at.is_null(), "{path}");
    at
}

#[test]
fn names_are_unique_and_one_version_is_stored() {
    let crds = all().unwrap();
    let names: BTreeSet<_> = crds.iter().map(|crd| &crd.metadata.name).collect();
    assert_eq!(names.len(), crds.len());
    for crd in &crds {
        let stored = crd.spec.versions.iter().filter(|version| version.storage).count();
        assert_eq!(stored, 1, "{:?}", crd.metadata.name);
    }
    let mut short: Vec<_> = KINDS.iter().flat_map(|kind| kind.short).collect();
    let all = short.len();
    short.sort_unstable();
    short.dedup();
    assert_eq!(short.len(), all);
}

#[test]
fn schemas_hold_no_reference_and_no_default() {
    fn walk(value: &Value, path: &str) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let in_properties = path.ends_with("properties");
                    let forbidden = ["$ref", "$defs", "default", "title", "const", "oneOf"];
                    assert!(
                        in_properties || !forbidden.contains(&name.as_str()),
                        "{path}.{name}"
                    );
                    walk(value, &format!("{path}.{name}"));
                }
            }
            Value::Array(list) => list.iter().for_each(|value| walk(value, path)),
            _ => {}
        }
    }
    for crd in all().unwrap() {
        for version in crd.spec.versions {
            walk(
                &serde_json::to_value(version.schema).unwrap(),
                crd.metadata.name.as_deref().unwrap(),
            );
        }
    }
}

#[test]
fn a_quantity_may_be_a_number_and_embedded_metadata_is_kept_whole() {
    let vm = crd("VirtualMachine");
    let memory = field(&vm, "spec.template.spec.domain.memory.guest");
    assert_eq!(memory["x-kubernetes-int-or-string"], true);
    let requests = field(&vm, "spec.template.spec.domain.resources.requests");
    assert_eq!(
        requests["additionalProperties"]["x-kubernetes-int-or-string"],
        true
    );
    let metadata = field(&vm, "spec.template.metadata");
    assert_eq!(metadata["x-kubernetes-preserve-unknown-fields"], true);
    assert_eq!(metadata["nullable"], true);
}

#[test]
fn fields_are_described_for_kubectl_explain() {
    let vm = crd("VirtualMachine");
    let cpu = field(&vm, "spec.template.spec.domain.cpu");
    assert_eq!(cpu["description"], "Processors.");
    assert_eq!(cpu["properties"]["cores"]["description"], "Cores in each socket.");
}

#[test]
fn a_choice_of_words_is_one_for_the_api_server() {
    let pool = crd("VirtualMachinePool");
    let order = field(&pool, "spec.scaleInStrategy.proactive.selectionPolicy.sortPolicy");
    assert_eq!(order["type"], "string");
    assert_eq!(order["enum"].as_array().unwrap().len(), 5);
}

#[test]
fn kubectl_can_apply_each_of_them() {
    for crd in all().unwrap() {
        let bytes = serde_json::to_vec(&crd).unwrap().len();
        assert!(bytes < 250_000, "{:?} has {bytes} bytes", crd.metadata.name);
    }
}

#[test]
fn a_status_is_written_apart_where_the_table_says_so() {
    for (kind, crd) in KINDS.iter().zip(all().unwrap()) {
        let crd = serde_json::to_value(crd).unwrap();
        let status = &crd["spec"]["versions"][0]["subresources"]["status"];
        assert_eq!(status.is_object(), kind.status, "{}", kind.name);
    }
}
