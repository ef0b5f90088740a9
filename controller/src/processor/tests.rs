use nacelle_api::cpu::Host;
use serde_json::{Value, json};

use super::*;
use crate::node::labels::wanted;

fn cpu(text: &str) -> Cpu {
    serde_saphyr::from_str(text).unwrap()
}

fn short(labels: &BTreeMap<String, String>) -> Vec<String> {
    let names = labels.keys().map(|label| label.replace(".node.kubevirt.io", ""));
    names.collect()
}

#[test]
fn a_machine_runs_where_its_processor_can_be_shown() {
    let table: [(&str, &[&str]); 5] = [
        ("{model: host-model}", &[]),
        ("{model: host-passthrough}", &[]),
        ("{model: Haswell-noTSX}", &["cpu-model/Haswell-noTSX"]),
        (
            "{model: host-model, features: [{name: aes}, {name: avx2, policy: require}]}",
            &["cpu-feature/aes", "cpu-feature/avx2"],
        ),
        (
            "{model: EPYC, features: [{name: aes, policy: force}, {name: avx, policy: optional}, {name: pku, policy: disable}, \
             {name: gfni, policy: forbid}]}",
            &["cpu-model/EPYC"],
        ),
    ];
    for (text, labels) in table {
        assert_eq!(short(&selector(Some(&cpu(text)))), labels, "{text}");
    }
    assert!(selector(None).is_empty());
}

#[test]
fn nodes_with_a_feature_that_is_forbidden_are_avoided_in_each_term() {
    let forbids = cpu("{features: [{name: gfni, policy: forbid}]}");
    let key = |affinity: Option<Affinity>, term: usize| -> Value {
        let path = "/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
        let affinity = serde_json::to_value(affinity).unwrap();
        let said = affinity
            .pointer(&format!("{path}/{term}/matchExpressions"))
            .cloned();
        said.and_then(|list| list.as_array()?.last().cloned())
            .unwrap_or_default()
    };
    let gfni = json!({"key": "cpu-feature.node.kubevirt.io/gfni", "operator": "DoesNotExist"});
    assert_eq!(key(avoid(None, Some(&forbids)), 0), gfni);
    let own: Affinity = serde_saphyr::from_str(
        "{nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [
            {matchExpressions: [{key: a, operator: Exists}]}, {matchFields: [{key: metadata.name, operator: In, values: [n]}]}]}}}",
    )
    .unwrap();
    for term in 0..2 {
        assert_eq!(key(avoid(Some(own.clone()), Some(&forbids)), term), gfni);
    }
    assert_eq!(avoid(Some(own.clone()), Some(&cpu("{model: EPYC}"))), Some(own));
}

fn node(name: &str, vendor: &str, model: &str, more: &str) -> Node {
    let features = super::model(model)
        .unwrap()
        .into_iter()
        .chain(more.split_whitespace());
    let host = Host {
        vendor: vendor.to_owned(),
        features: features.map(str::to_owned).collect(),
    };
    let mut node: Node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    *node.labels_mut() = wanted(&host, &BTreeSet::new());
    node.labels_mut().insert("zone".to_owned(), name.to_owned());
    node
}

#[test]
fn the_baseline_is_what_every_node_has_that_the_machine_may_be_on() {
    let nodes = [
        node("new", "Intel", "Icelake-Server-noTSX", ""),
        node("old", "Intel", "Broadwell-noTSX", "gfni"),
        node("amd", "AMD", "EPYC-Rome", ""),
    ];
    let any = BTreeMap::new();
    let none = BTreeSet::new();
    let of = |nodes: &[Node], obsolete: &BTreeSet<String>| {
        let processor = baseline(nodes, &any, obsolete).unwrap();
        (processor.vendor, processor.model, processor.features)
    };
    let intel = of(&nodes[..2], &none);
    assert_eq!((intel.0.as_str(), intel.1.as_str()), ("Intel", "Broadwell-noTSX"));
    assert_eq!(
        intel.2,
        BTreeSet::from(["gfni".to_owned()]),
        "both have it beyond the model"
    );
    let obsolete = BTreeSet::from(["Broadwell-noTSX".to_owned()]);
    let older = of(&nodes[..2], &obsolete);
    assert_eq!(older.1, "Haswell-noTSX");
    assert!(older.2.contains("adx"), "what the node has stays, by its name");
    let mixed = of(&nodes, &none);
    assert_eq!((mixed.0.as_str(), mixed.1.as_str()), ("", "x86-64-v3"));
    assert!(mixed.2.contains("aes") && !mixed.2.contains("gfni") && !mixed.2.contains("sse4a"));
    let there = BTreeMap::from([("zone".to_owned(), "amd".to_owned())]);
    assert_eq!(baseline(&nodes, &there, &none).unwrap().model, "EPYC-Rome");

    let mut narrowed = nodes.clone();
    narrowed[1]
        .labels_mut()
        .remove("cpu-model.node.kubevirt.io/Broadwell-noTSX");
    narrowed[1]
        .labels_mut()
        .remove("cpu-feature.node.kubevirt.io/adx");
    let narrow = of(&narrowed[..2], &none);
    assert!(narrow.1 == "Haswell-noTSX" && !narrow.2.contains("adx"));

    let nowhere = BTreeMap::from([("zone".to_owned(), "moon".to_owned())]);
    assert!(
        baseline(&nodes, &nowhere, &none)
            .unwrap_err()
            .starts_with("no node")
    );
    narrowed[1].labels_mut().clear();
    assert!(
        baseline(&narrowed, &any, &none)
            .unwrap_err()
            .starts_with("node old does not say")
    );
}

#[test]
fn host_model_comes_to_what_was_found_and_policies_hold() {
    let processor = Processor {
        vendor: "Intel".to_owned(),
        model: "Westmere".to_owned(),
        features: BTreeSet::from(["avx".to_owned(), "gfni".to_owned()]),
    };
    let table = [
        ("{model: host-model}", "Westmere", "avx=require gfni=require"),
        ("{model: host-passthrough}", "host-passthrough", ""),
        ("{model: EPYC, features: [{name: pku}]}", "EPYC", "pku=require"),
        (
            "{features: [{name: avx, policy: disable}, {name: smep, policy: optional}, {name: pku}]}",
            "Westmere",
            "avx=disable pku=require gfni=require",
        ),
        // It is not the node's.
        (
            "{features: [{name: gfni, policy: force}]}",
            "Westmere",
            "gfni=force avx=require",
        ),
        (
            "{features: [{name: aes, policy: force}]}",
            "Nehalem",
            "aes=force avx=require gfni=require pclmuldq=require",
        ),
    ];
    for (text, model, features) in table {
        let mut cpu = cpu(text);
        settle(&mut cpu, &processor);
        let said = cpu
            .features
            .iter()
            .map(|feature| format!("{}={}", feature.name, feature.policy()));
        assert_eq!(
            (cpu.model.as_deref(), said.collect::<Vec<_>>().join(" ")),
            (Some(model), features.to_owned()),
            "{text}"
        );
    }
}

#[test]
fn a_guest_moves_to_where_all_is_that_it_was_shown() {
    let processor = Processor {
        vendor: "AMD".to_owned(),
        model: "EPYC".to_owned(),
        features: BTreeSet::from(["vaes".to_owned()]),
    };
    let moves = |text: &str| {
        let mut cpu = cpu(text);
        settle(&mut cpu, &processor);
        short(&move_selector(Some(&cpu), Some(&processor)))
    };
    let all = ["cpu-feature/vaes", "cpu-model-migration/EPYC", "cpu-vendor/AMD"];
    assert_eq!(moves("{model: host-model}"), all);
    assert_eq!(moves("{model: host-passthrough}"), all);
    assert_eq!(
        moves("{model: x86-64-v3, features: [{name: aes}]}"),
        [
            "cpu-feature/aes",
            "cpu-model-migration/x86-64-v3",
            "cpu-vendor/AMD"
        ]
    );
    // A launcher of before, which does not say.
    let named = cpu("{model: EPYC}");
    assert_eq!(
        short(&move_selector(Some(&named), None)),
        ["cpu-model-migration/EPYC"]
    );
}
