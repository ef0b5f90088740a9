//! Nodes: where the agent serves the devices, machines may be scheduled. Agents have no rights of their own; what they
//! do is seen in what the kubelet says that the node has.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action as Requeue;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::context::Context;
use crate::error::{Doing, Result, absent_is_done};

/// Label of nodes that may run machines.
const SCHEDULABLE: &str = "kubevirt.io/schedulable";
/// Annotation: when that was last looked at.
const HEARTBEAT: &str = "kubevirt.io/heartbeat";
/// The device that every machine needs.
const KVM: &str = "devices.kubevirt.io/kvm";
/// Others take an agent for dead when its heartbeat is five minutes old.
const EVERY: Duration = Duration::from_secs(60);

/// Labels a node by what it has.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn reconcile(node: Arc<Node>, context: Arc<Context>) -> Result<Requeue> {
    let schedulable = schedulable(&node).to_string();
    let now = Timestamp::now();
    let beat = node
        .annotations()
        .get(HEARTBEAT)
        .and_then(|beat| beat.parse::<Timestamp>().ok());
    let fresh = beat.is_some_and(|beat| now.duration_since(beat) < EVERY.try_into().unwrap_or_default());
    if fresh && node.labels().get(SCHEDULABLE) == Some(&schedulable) {
        return Ok(Requeue::requeue(EVERY));
    }
    if schedulable == "false" && !node.labels().contains_key(SCHEDULABLE) {
        return Ok(Requeue::await_change());
    }
    let beat = (schedulable == "true").then(|| now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let annotations = beat.map_or_else(|| json!({}), |beat| json!({HEARTBEAT: beat}));
    let patch = json!({"metadata": {"labels": {SCHEDULABLE: schedulable}, "annotations": annotations}});
    let api: Api<Node> = Api::all(context.client.clone());
    let done = api
        .patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await;
    absent_is_done(done).doing("labelling a node")?;
    Ok(Requeue::requeue(EVERY))
}

fn schedulable(node: &Node) -> bool {
    let status = node.status.as_ref();
    let ready = status
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|list| {
            list.iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        });
    let devices = status.and_then(|status| status.allocatable.as_ref()?.get(KVM));
    ready && devices.is_some_and(|count| count.0 != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_runs_machines_when_it_is_ready_and_has_kvm() {
        let node = |ready: &str, kvm: Option<&str>| -> Node {
            let mut status = json!({"conditions": [{"type": "Ready", "status": ready}], "allocatable": {}});
            if let Some(kvm) = kvm {
                status["allocatable"][KVM] = json!(kvm);
            }
            serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap()
        };
        assert!(schedulable(&node("True", Some("1000"))));
        assert!(!schedulable(&node("True", Some("0"))));
        assert!(!schedulable(&node("True", None)));
        assert!(!schedulable(&node("Unknown", Some("1000"))));
    }
}
