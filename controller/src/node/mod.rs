//! Nodes: where the agent serves the devices, machines may be scheduled; and labels say which processors machines can have
//! there. Agents have no rights of their own; what they do is seen in what the kubelet says that the node has. What KVM says of
//! the processor a pod tells that ends at once ([`pod`]): once for each boot of the node, and each version of ours.

pub mod labels;
mod pod;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::controller::Action as Requeue;
use kube::{Api, Resource, ResourceExt};
use nacelle_api::cpu::Host;
use serde_json::json;

use self::labels::{CPU, Known};
use crate::context::Context;
use crate::error::{Doing, Error, Result, absent_is_done, is};
use crate::vmi;

pub use self::pod::{LABEL, node_of};

/// Label of nodes that may run machines.
pub const SCHEDULABLE: &str = "kubevirt.io/schedulable";
/// Annotation: when that was last looked at.
const HEARTBEAT: &str = "kubevirt.io/heartbeat";
/// The device that every machine needs.
const KVM: &str = "devices.kubevirt.io/kvm";
/// Others take an agent for dead when its heartbeat is five minutes old.
const EVERY: Duration = Duration::from_secs(60);
/// How long a pod that failed to tell of the processor is left to look at, before the next one is made.
const FAILED: SignedDuration = SignedDuration::from_mins(1);

/// Labels a node by what it has.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn reconcile(node: Arc<Node>, context: Arc<Context>) -> Result<Requeue> {
    let schedulable = schedulable(&node);
    if !schedulable && !node.labels().contains_key(SCHEDULABLE) {
        return Ok(Requeue::await_change());
    }
    let now = Timestamp::now();
    let mut labels = BTreeMap::from([(SCHEDULABLE.to_owned(), Some(schedulable.to_string()))]);
    let mut annotations = BTreeMap::new();
    let beat = node
        .annotations()
        .get(HEARTBEAT)
        .and_then(|beat| beat.parse::<Timestamp>().ok());
    let fresh = beat.is_some_and(|beat| now.duration_since(beat) < EVERY.try_into().unwrap_or_default());
    if schedulable && !fresh {
        annotations.insert(HEARTBEAT, now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    }
    let mut told = None;
    if schedulable && !labels::is_left_alone(&node) {
        let of = labels::of(&node, &context.settings.image);
        let mut known = labels::known(&node);
        if known.as_ref().is_none_or(|known| known.of != of)
            && let Some((host, pod)) = examine(&node, &of, &context).await?
        {
            let new = Known { of, host };
            let text =
                serde_json::to_string(&new).map_err(|error| Error::Json("a node's processor", error))?;
            annotations.insert(CPU, text);
            (known, told) = (Some(new), Some(pod));
        }
        if let Some(known) = known {
            let wanted = labels::wanted(&known.host, &context.configuration().obsolete_cpu_models);
            labels.extend(labels::changes(node.labels(), &wanted));
        }
    }
    labels.retain(|label, value| node.labels().get(label) != value.as_ref());
    if !labels.is_empty() || !annotations.is_empty() {
        let patch = json!({"metadata": {"labels": labels, "annotations": annotations}});
        let api: Api<Node> = Api::all(context.client.clone());
        let done = api
            .patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await;
        absent_is_done(done).doing("labelling a node")?;
    }
    if let Some(pod) = told {
        vmi::remove(&pod, None, &context).await?;
    }
    Ok(Requeue::requeue(EVERY))
}

/// What KVM says there of the processor, and the pod that told it, once that has. Its end is a change of it.
async fn examine(node: &Node, of: &str, context: &Context) -> Result<Option<(Host, Pod)>> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let name = pod::name(node, of);
    let there = pods.get_opt(&name).await;
    let Some(found) = there.doing("looking for the pod that tells of a node's processor")? else {
        let made = pod::pod(node, of, &vmi::build::Installation::of(context));
        return match pods.create(&PostParams::default(), &made).await {
            Err(error) if !is(&error, 409) => {
                Err(error).doing("making the pod that tells of a node's processor")
            }
            _ => Ok(None),
        };
    };
    match pod::said(&found) {
        None => Ok(None),
        Some(Ok(host)) => Ok(Some((host, found))),
        Some(Err(why)) => {
            let since = found.metadata.creation_timestamp.as_ref();
            let old = since.is_none_or(|since| Timestamp::now().duration_since(since.0) > FAILED);
            if old && found.metadata.deletion_timestamp.is_none() {
                let message =
                    format!("the node's processor is not known, and it is not labelled with it: {why}");
                context
                    .event(&node.object_ref(&()), true, "ProcessorUnknown", &message)
                    .await;
                vmi::remove(&found, None, context).await?;
            }
            Ok(None)
        }
    }
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
