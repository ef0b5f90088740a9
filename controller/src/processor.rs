//! Which processor an instance's guest is shown, and which nodes can show it. Pure.
//!
//! `host-model` comes to a model and features when it must be the same on two nodes: those that all nodes have, where the
//! administrator wants that (`cpuBaseline`), and for a move those that the guest was shown.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Affinity, Node, NodeSelectorRequirement, NodeSelectorTerm};
use kube::ResourceExt;
use nacelle_api::cpu::{
    FEATURE_LABEL, HOST_MODELS, MODEL_LABEL, MOVE_LABEL, Processor, VENDOR_LABEL, model, models,
};
use nacelle_api::domain::{Cpu, CpuFeature};

/// The labels of nodes that can show what `cpu` asks for.
pub fn selector(cpu: Option<&Cpu>) -> BTreeMap<String, String> {
    let Some(cpu) = cpu else {
        return BTreeMap::new();
    };
    let named = cpu.model.as_deref();
    let named = named.filter(|model| !model.is_empty() && !HOST_MODELS.contains(model));
    let required = cpu
        .features
        .iter()
        .filter(|feature| feature.policy() == "require");
    let labels = named.map(|model| format!("{MODEL_LABEL}{model}")).into_iter();
    labels
        .chain(required.map(|feature| format!("{FEATURE_LABEL}{}", feature.name)))
        .map(|label| (label, "true".to_owned()))
        .collect()
}

/// Keeps a pod from nodes with a feature that `cpu` forbids.
pub fn avoid(affinity: Option<Affinity>, cpu: Option<&Cpu>) -> Option<Affinity> {
    let features = cpu.map(|cpu| cpu.features.as_slice()).unwrap_or_default();
    let forbidden = features.iter().filter(|feature| feature.policy() == "forbid");
    let absent: Vec<_> = forbidden
        .map(|feature| NodeSelectorRequirement {
            key: format!("{FEATURE_LABEL}{}", feature.name),
            operator: "DoesNotExist".to_owned(),
            values: None,
        })
        .collect();
    if absent.is_empty() {
        return affinity;
    }
    let mut affinity = affinity.unwrap_or_default();
    let nodes = affinity.node_affinity.get_or_insert_default();
    let required = nodes
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_default();
    let terms = &mut required.node_selector_terms;
    if terms.is_empty() {
        terms.push(NodeSelectorTerm::default());
    }
    // One of them is enough: each must say it.
    for term in terms {
        term.match_expressions
            .get_or_insert_default()
            .extend(absent.iter().cloned());
    }
    Some(affinity)
}

/// What every one of these nodes has that a machine with this selector may be on.
///
/// # Errors
/// A sentence on why that is not known.
pub fn baseline(
    nodes: &[Node],
    selector: &BTreeMap<String, String>,
    obsolete: &BTreeSet<String>,
) -> Result<Processor, String> {
    let fits = |node: &&Node| {
        selector
            .iter()
            .all(|(label, value)| node.labels().get(label) == Some(value))
    };
    let labels = |node: &Node, prefix: &str| -> BTreeSet<String> {
        let labels = node.labels().iter().filter(|(_, value)| *value == "true");
        labels
            .filter_map(|(label, _)| label.strip_prefix(prefix).map(str::to_owned))
            .collect()
    };
    let each: Vec<_> = nodes.iter().filter(fits).collect();
    if each.is_empty() {
        return Err(
            "no node that the machine may run on is there, so what all of them have is not known".to_owned(),
        );
    }
    if let Some(node) = each.iter().find(|node| labels(node, FEATURE_LABEL).is_empty()) {
        return Err(format!(
            "node {} does not say which processor it has yet, so what all nodes have is not known",
            node.name_any()
        ));
    }
    let common = |prefix: &str| {
        let mut all = each.iter().map(|node| labels(node, prefix));
        let first = all.next().unwrap_or_default();
        all.fold(first, |common, other| {
            common.intersection(&other).cloned().collect()
        })
    };
    let (features, models) = (common(FEATURE_LABEL), common(MODEL_LABEL));
    let vendor = common(VENDOR_LABEL).into_iter().next().unwrap_or_default();
    let may = |name: &str| models.contains(name) && !obsolete.contains(name);
    Processor::of(&vendor, &features, may).ok_or_else(|| {
        format!(
            "the nodes have no model in common: there are {}",
            self::models().collect::<Vec<_>>().join(", ")
        )
    })
}

/// Says in `cpu`, where that is `host-model`, what it comes to.
pub fn settle(cpu: &mut Cpu, processor: &Processor) {
    if !matches!(cpu.model.as_deref(), None | Some("" | "host-model")) {
        return;
    }
    let processor = without_forced(cpu, processor);
    cpu.model = Some(processor.model);
    // What is optional is there, or is not; the rest holds.
    cpu.features.retain(|feature| feature.policy() != "optional");
    let said: BTreeSet<_> = cpu.features.iter().map(|feature| feature.name.clone()).collect();
    let more = processor.features.difference(&said).map(|name| CpuFeature {
        name: name.clone(),
        policy: Some("require".to_owned()),
    });
    cpu.features.extend(more.collect::<Vec<_>>());
}

/// The labels of nodes to which a guest can move that was shown `processor` by what `cpu` says, [`settle`]d.
pub fn move_selector(cpu: Option<&Cpu>, processor: Option<&Processor>) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<_, _> = selector(cpu)
        .into_iter()
        .map(|(label, value)| match label.strip_prefix(MODEL_LABEL) {
            // A model that has become obsolete is left, not lost.
            Some(model) => (format!("{MOVE_LABEL}{model}"), value),
            None => (label, value),
        })
        .collect();
    let Some(processor) = processor else {
        return labels;
    };
    if !processor.vendor.is_empty() {
        labels.insert(format!("{VENDOR_LABEL}{}", processor.vendor), "true".to_owned());
    }
    if let Some(cpu) = cpu.filter(|cpu| cpu.model.as_deref() == Some("host-passthrough")) {
        let processor = without_forced(cpu, processor);
        let features = processor
            .features
            .iter()
            .map(|name| format!("{FEATURE_LABEL}{name}"));
        let model = format!("{MOVE_LABEL}{}", processor.model);
        labels.extend(features.chain([model]).map(|label| (label, "true".to_owned())));
    }
    labels
}

/// What of it the node has itself: what is forced, no node needs.
fn without_forced(cpu: &Cpu, processor: &Processor) -> Processor {
    let forced = |name: &str| {
        let mut said = cpu.features.iter();
        said.any(|feature| feature.name == name && feature.policy() == "force")
    };
    let of_model = model(&processor.model)
        .unwrap_or_default()
        .into_iter()
        .map(str::to_owned);
    let all = of_model.chain(processor.features.iter().cloned());
    let all = all.filter(|name| !forced(name)).collect();
    Processor::of(&processor.vendor, &all, |_| true).unwrap_or_else(|| processor.clone())
}

#[cfg(test)]
mod tests;
