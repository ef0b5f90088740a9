//! The pod that an instance moves to: as its first one, but on another node, and told who comes. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Pod, PodAffinityTerm, PodAntiAffinity};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use nacelle_api::cpu::{MODEL_LABEL, Processor};
use serde_json::json;

use super::{CREATED_BY, Installation, MIGRATION, Valid, name_of, pod};
use crate::processor;

/// Label of such a pod: the migration's UID.
const JOB_UID: &str = "kubevirt.io/migrationJobUID";
/// Annotation of such a pod: the migration's name.
pub const JOB_NAME: &str = "kubevirt.io/migrationJobName";

/// What such a pod is for.
pub struct Target<'a> {
    /// The migration's name.
    pub migration: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// The certificate of the source, in PEM.
    pub certificate: &'a str,
    /// What the guest is shown of the processor, where the source says.
    pub processor: Option<&'a Processor>,
    /// Labels that the node must have, too.
    pub added_node_selector: &'a BTreeMap<String, String>,
}

/// Makes it.
///
/// # Errors
/// A sentence on why there can be none.
pub fn target(valid: &Valid<'_>, installation: &Installation, target: &Target<'_>) -> Result<Pod, String> {
    let vmi = valid.vmi;
    let mut pod = pod(valid, installation)?;
    pod.metadata.name = Some(name_of(&vmi.name_any(), target.uid));
    let comes = json!({"migration": target.uid, "certificate": target.certificate});
    pod.labels_mut().insert(JOB_UID.to_owned(), target.uid.to_owned());
    pod.annotations_mut()
        .insert(JOB_NAME.to_owned(), target.migration.to_owned());
    pod.annotations_mut()
        .insert(MIGRATION.to_owned(), comes.to_string());
    let spec = pod.spec.get_or_insert_default();
    let selector = spec.node_selector.get_or_insert_default();
    selector.retain(|label, _| !label.starts_with(MODEL_LABEL));
    selector.extend(processor::move_selector(
        vmi.spec.domain.cpu.as_ref(),
        target.processor,
    ));
    for (label, value) in target.added_node_selector {
        // What the instance asks for holds at every node; where both ask for other things there is no such node.
        match selector.get(label) {
            Some(asked) if asked != value => {
                return Err(format!(
                    "addedNodeSelector asks for {label}={value}, and the instance for {label}={asked}: no node has both"
                ));
            }
            _ => selector.insert(label.clone(), value.clone()),
        };
    }
    let away = PodAffinityTerm {
        label_selector: Some(LabelSelector {
            match_labels: Some(BTreeMap::from([(
                CREATED_BY.to_owned(),
                vmi.uid().unwrap_or_default(),
            )])),
            ..LabelSelector::default()
        }),
        topology_key: "kubernetes.io/hostname".to_owned(),
        ..PodAffinityTerm::default()
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let anti: &mut PodAntiAffinity = affinity.pod_anti_affinity.get_or_insert_default();
    anti.required_during_scheduling_ignored_during_execution
        .get_or_insert_default()
        .push(away);
    Ok(pod)
}
