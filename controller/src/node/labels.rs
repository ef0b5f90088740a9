//! The labels by which a node says which processors machines can have there, KubeVirt's. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use nacelle_api::cpu::{
    FEATURE_LABEL, HOST_FEATURE_LABEL, HOST_LABEL, Host, MODEL_LABEL, MOVE_LABEL, Processor, VENDOR_LABEL,
    models_in,
};
use serde::{Deserialize, Serialize};

/// Annotation of a node: what its processor has.
pub const CPU: &str = "nacelle.io/cpu";
/// Annotation of a node whose labels are somebody else's to write, as in KubeVirt.
const LEFT_ALONE: &str = "node-labeller.kubevirt.io/skip-node";
/// The labels that are ours.
const OURS: [&str; 6] = [
    MODEL_LABEL,
    MOVE_LABEL,
    FEATURE_LABEL,
    VENDOR_LABEL,
    HOST_LABEL,
    HOST_FEATURE_LABEL,
];

/// What is known of a node's processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Since when: [`of`].
    pub of: String,
    /// What it has.
    #[serde(flatten)]
    pub host: Host,
}

/// What it depends on: the node's boot, in which kernel and microcode stay, and the program that looks.
pub fn of(node: &Node, image: &str) -> String {
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    format!("{} {image}", info.map_or("", |info| &info.boot_id))
}

/// What is known.
pub fn known(node: &Node) -> Option<Known> {
    serde_json::from_str(node.annotations().get(CPU)?).ok()
}

/// Whether somebody else writes its labels.
pub fn is_left_alone(node: &Node) -> bool {
    node.annotations()
        .get(LEFT_ALONE)
        .is_some_and(|value| value == "true")
}

/// The labels of a node with this processor. Machines start with no model that is obsolete; those that have it may move.
pub fn wanted(host: &Host, obsolete: &BTreeSet<String>) -> BTreeMap<String, String> {
    let current = |name: &str| !obsolete.contains(name);
    let models: Vec<_> = models_in(&host.features).collect();
    let shown = Processor::of(&host.vendor, &host.features, current);
    let beyond = shown.iter().flat_map(|shown| &shown.features);
    let started = models.iter().filter(|name| current(name));
    let vendor = Some(&host.vendor).filter(|vendor| !vendor.is_empty());
    let names = started
        .map(|name| format!("{MODEL_LABEL}{name}"))
        .chain(models.iter().map(|name| format!("{MOVE_LABEL}{name}")))
        .chain(host.features.iter().map(|name| format!("{FEATURE_LABEL}{name}")))
        .chain(vendor.map(|vendor| format!("{VENDOR_LABEL}{vendor}")))
        .chain(shown.iter().map(|shown| format!("{HOST_LABEL}{}", shown.model)))
        .chain(beyond.map(|name| format!("{HOST_FEATURE_LABEL}{name}")));
    names.map(|name| (name, "true".to_owned())).collect()
}

/// What has to change of a node's labels, `None` to remove one.
pub fn changes(
    labels: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
) -> BTreeMap<String, Option<String>> {
    let ours = |label: &&String| OURS.iter().any(|prefix| label.starts_with(prefix));
    let gone = labels
        .keys()
        .filter(ours)
        .filter(|label| !wanted.contains_key(*label));
    let new = wanted
        .iter()
        .filter(|(label, value)| labels.get(*label) != Some(value));
    gone.map(|label| (label.clone(), None))
        .chain(new.map(|(label, value)| (label.clone(), Some(value.clone()))))
        .collect()
}

#[cfg(test)]
mod tests {
    use nacelle_api::cpu::model;
    use serde_json::json;

    use super::*;

    fn host(name: &str, more: &[&str]) -> Host {
        let features = model(name).unwrap().into_iter().chain(more.iter().copied());
        Host {
            vendor: "Intel".to_owned(),
            features: features.map(str::to_owned).collect(),
        }
    }

    #[test]
    fn a_node_says_what_machines_can_have_there() {
        let labels = wanted(
            &host("Westmere", &["avx"]),
            &BTreeSet::from(["Nehalem".to_owned()]),
        );
        let there = [
            "cpu-model.node.kubevirt.io/Westmere",
            "cpu-model.node.kubevirt.io/x86-64-v2",
            "cpu-model-migration.node.kubevirt.io/Westmere",
            "cpu-model-migration.node.kubevirt.io/Nehalem",
            "cpu-feature.node.kubevirt.io/sse4.2",
            "cpu-feature.node.kubevirt.io/avx",
            "cpu-vendor.node.kubevirt.io/Intel",
            "host-model-cpu.node.kubevirt.io/Westmere",
            "host-model-required-features.node.kubevirt.io/avx",
        ];
        for label in there {
            assert_eq!(labels.get(label).map(String::as_str), Some("true"), "{label}");
        }
        let absent = [
            "cpu-model.node.kubevirt.io/Nehalem",
            "cpu-model.node.kubevirt.io/SandyBridge",
            "host-model-required-features.node.kubevirt.io/sse4.2",
        ];
        for label in absent {
            assert!(!labels.contains_key(label), "{label}");
        }
    }

    #[test]
    fn only_what_differs_is_written_and_only_what_is_ours_removed() {
        let wanted = wanted(&host("x86-64-v1", &[]), &BTreeSet::new());
        let mut labels = wanted.clone();
        assert!(changes(&labels, &wanted).is_empty());
        labels.insert("cpu-feature.node.kubevirt.io/avx".to_owned(), "true".to_owned());
        labels.insert("disk".to_owned(), "fast".to_owned());
        labels.remove("cpu-model.node.kubevirt.io/x86-64-v1");
        let expected = [
            ("cpu-feature.node.kubevirt.io/avx".to_owned(), None),
            (
                "cpu-model.node.kubevirt.io/x86-64-v1".to_owned(),
                Some("true".to_owned()),
            ),
        ];
        assert_eq!(changes(&labels, &wanted), BTreeMap::from(expected));
    }

    #[test]
    fn what_is_known_holds_until_the_node_or_the_program_is_another() {
        let known = Known {
            of: "boot image".to_owned(),
            host: host("x86-64-v1", &[]),
        };
        let mut node: Node = serde_json::from_value(json!({"metadata": {}})).unwrap();
        assert_eq!((super::known(&node), is_left_alone(&node)), (None, false));
        node.annotations_mut()
            .insert(CPU.to_owned(), serde_json::to_string(&known).unwrap());
        node.annotations_mut()
            .insert(LEFT_ALONE.to_owned(), "true".to_owned());
        assert_eq!((super::known(&node), is_left_alone(&node)), (Some(known), true));
        assert_eq!(of(&node, "i"), " i");
    }
}
