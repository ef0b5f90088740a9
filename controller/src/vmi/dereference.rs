//! What an instance refers to, as it is in the cluster now.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};
use nacelle_api::VirtualMachineInstance;

use super::build::{pod_name, volumes};
use crate::context::Context;
use crate::error::{Doing, Result};

/// What an instance refers to.
#[derive(Default)]
pub struct References {
    /// Its pod, if there is one.
    pub pod: Option<Pod>,
    /// Claims of its volumes, by their names; none where there is none.
    pub claims: BTreeMap<String, Option<PersistentVolumeClaim>>,
    /// Since when the node of its pod has not been heard of.
    pub node_silent_since: Option<Timestamp>,
}

/// Looks everything up.
///
/// # Errors
/// The API server cannot be asked.
pub async fn dereference(vmi: &VirtualMachineInstance, context: &Context) -> Result<References> {
    let namespace = vmi.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let pod = pods.get_opt(&pod_name(vmi)).await.doing("reading the pod")?;
    let mut found = References::default();
    if let Some(node) = pod
        .as_ref()
        .and_then(|pod| pod.spec.as_ref()?.node_name.as_deref())
    {
        let nodes: Api<Node> = Api::all(context.client.clone());
        let node = nodes.get_opt(node).await.doing("reading the node")?;
        found.node_silent_since = node.as_ref().and_then(silent_since);
    }
    // Claims are looked at before there is a pod; then the kubelet does.
    if pod.is_none() {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace);
        for (name, _) in vmi.spec.volumes.iter().filter_map(volumes::claim) {
            let claim = claims.get_opt(&name).await.doing("reading a claim")?;
            found.claims.insert(name, claim);
        }
    }
    found.pod = pod;
    Ok(found)
}

/// Since when the control plane has not heard of the node.
fn silent_since(node: &Node) -> Option<Timestamp> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    (ready.status == "Unknown")
        .then(|| ready.last_transition_time.as_ref().map(|time| time.0))
        .flatten()
}
