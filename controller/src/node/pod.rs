//! The pod that tells of a node's processor: it asks KVM, leaves the answer as its last words, and ends. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Container, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
    PodSpec, ResourceRequirements, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use nacelle_api::cpu::Host;

use super::KVM;
use crate::vmi::build::{Installation, suffix, unprivileged};

/// Label of such pods.
pub const LABEL: &str = "nacelle.io/processor";
/// Annotation: the node.
const NODE: &str = "nacelle.io/node";

/// The pod's name: another one for each thing that the answer depends on.
pub(super) fn name(node: &Node, of: &str) -> String {
    let node = node.name_any();
    let name: String = node.chars().take(253 - "processor--".len() - 5).collect();
    format!(
        "processor-{}-{}",
        name.trim_end_matches(['-', '.']),
        suffix(&format!("{node} {of}"))
    )
}

/// Of which node such a pod tells.
pub fn node_of(pod: &Pod) -> Option<String> {
    pod.annotations().get(NODE).cloned()
}

/// The pod.
pub(super) fn pod(node: &Node, of: &str, installation: &Installation) -> Pod {
    let quantities = |list: &[(&str, &str)]| {
        let list = list
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned())));
        Some(list.collect::<BTreeMap<_, _>>())
    };
    let policy = installation.configuration.image_pull_policy.as_ref();
    let container = Container {
        name: "processor".to_owned(),
        image: Some(installation.image.clone()),
        image_pull_policy: Some(policy.unwrap_or(&installation.image_pull_policy).clone()),
        command: Some(
            ["/usr/bin/nacelle", "cpu", "--report", "/dev/termination-log"]
                .map(str::to_owned)
                .into(),
        ),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        resources: Some(ResourceRequirements {
            requests: quantities(&[("cpu", "5m"), ("memory", "16Mi")]),
            limits: quantities(&[("memory", "64Mi"), (KVM, "1")]),
            ..ResourceRequirements::default()
        }),
        security_context: Some(unprivileged()),
        ..Container::default()
    };
    let here = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.name_any()]),
        }]),
        ..NodeSelectorTerm::default()
    };
    Pod {
        metadata: ObjectMeta {
            name: Some(name(node, of)),
            labels: Some([(LABEL.to_owned(), String::new())].into()),
            annotations: Some([(NODE.to_owned(), node.name_any())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            restart_policy: Some("Never".to_owned()),
            containers: vec![container],
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            affinity: Some(Affinity {
                node_affinity: Some(NodeAffinity {
                    required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                        node_selector_terms: vec![here],
                    }),
                    ..NodeAffinity::default()
                }),
                ..Affinity::default()
            }),
            // Wherever there is an agent.
            tolerations: Some(vec![Toleration {
                operator: Some("Exists".to_owned()),
                ..Toleration::default()
            }]),
            ..PodSpec::default()
        }),
        status: None,
    }
}

/// What it said, once it has ended, or why it did not.
pub(super) fn said(pod: &Pod) -> Option<Result<Host, String>> {
    let status = pod.status.as_ref()?;
    let ended = status.container_statuses.iter().flatten().find_map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        Some(ended.message.clone().unwrap_or_default())
    });
    let said = match (status.phase.as_deref(), ended) {
        (Some("Succeeded"), Some(message)) => {
            let host = serde_json::from_str::<Host>(&message);
            host.map_err(|error| format!("what pod {} said is not understood: {error}", pod.name_any()))
        }
        (Some("Failed" | "Succeeded"), message) => {
            let message = message.or_else(|| status.message.clone()).unwrap_or_default();
            Err(format!("pod {} failed: {}", pod.name_any(), message.trim()))
        }
        _ => return None,
    };
    // They become labels.
    Some(said.and_then(|host| {
        let known: Vec<_> = nacelle_api::cpu::features().collect();
        match host.features.iter().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(format!(
                "pod {} told of a feature {name:?}, which there is not",
                pod.name_any()
            )),
            None => Ok(host),
        }
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::configuration::Configuration;

    #[test]
    fn it_runs_on_its_node_whatever_that_is_tainted_with_and_has_no_right_but_to_kvm() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n.example"}})).unwrap();
        let installation = Installation {
            image: "nacelle:1".to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            report: "{}".into(),
            configuration: std::sync::Arc::new(Configuration::default()),
            log: Default::default(),
        };
        let made = pod(&node, "boot nacelle:1", &installation);
        assert_eq!(node_of(&made).as_deref(), Some("n.example"));
        assert_ne!(
            made.metadata.name,
            pod(&node, "boot nacelle:2", &installation).metadata.name
        );
        let made = serde_json::to_value(made).unwrap();
        let at = |path: &str| made.pointer(path).unwrap_or(&Value::Null);
        let term =
            "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0";
        assert_eq!(at(&format!("{term}/matchFields/0/values/0")), "n.example");
        assert_eq!(at("/spec/tolerations/0/operator"), "Exists");
        let limits = json!({"memory": "64Mi", KVM: "1"});
        assert_eq!(at("/spec/containers/0/resources/limits"), &limits);
        assert_eq!(at("/spec/containers/0/securityContext/runAsNonRoot"), true);
    }

    #[test]
    fn its_last_words_are_believed_as_far_as_they_make_sense() {
        let said = |phase: &str, message: &str| {
            let pod = json!({"metadata": {"name": "p"}, "status": {"phase": phase,
                "containerStatuses": [{"name": "processor", "image": "", "imageID": "", "ready": false,
                    "restartCount": 0, "state": {"terminated": {"exitCode": 0, "message": message}}}]}});
            super::said(&serde_json::from_value(pod).unwrap())
        };
        let host = said(
            "Succeeded",
            r#"{"vendor": "AMD", "features": ["sse2", "sha-ni"]}"#,
        )
        .unwrap()
        .unwrap();
        assert_eq!((host.vendor.as_str(), host.features.len()), ("AMD", 2));
        assert_eq!(said("Running", ""), None);
        let why = |phase, message| said(phase, message).unwrap().unwrap_err();
        assert_eq!(
            why("Failed", "there is no /dev/kvm\n"),
            "pod p failed: there is no /dev/kvm"
        );
        assert!(why("Succeeded", "x").starts_with("what pod p said is not understood"));
        assert_eq!(
            why("Succeeded", r#"{"vendor": "", "features": ["a b"]}"#),
            "pod p told of a feature \"a b\", which there is not"
        );
    }
}
