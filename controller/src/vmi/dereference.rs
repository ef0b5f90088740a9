//! What an instance refers to, as it is in the cluster now.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};
use nacelle_api::VirtualMachineInstance;
use nacelle_api::datavolume::DataVolume;

use super::build::volumes;
use super::{migratable, moving};
use crate::context::Context;
use crate::error::{Doing, Result};
use crate::volumes::is_hot;

/// Taint of nodes that their machines are to leave.
const DRAIN: &str = "kubevirt.io/drain";

/// What an instance refers to.
#[derive(Default)]
pub struct References {
    /// The pod that counts, if there is one.
    pub pod: Option<Pod>,
    /// The pod that it moves to or came from, if there is one.
    pub other: Option<Pod>,
    /// Claims of its volumes, by their names; none where there is none.
    pub claims: BTreeMap<String, Option<PersistentVolumeClaim>>,
    /// DataVolumes of its volumes that are not filled yet.
    pub unfilled: Vec<Unfilled>,
    /// Since when the node of its pod has not been heard of.
    pub node_silent_since: Option<Timestamp>,
    /// Whether that node is to be left by its machines.
    pub node_drains: bool,
    /// The same silence of its other pod's.
    pub other_silent_since: Option<Timestamp>,
}

/// A DataVolume that is not filled yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Unfilled {
    /// Its name.
    pub name: String,
    /// Whether its claim is bound when a pod wants it.
    pub first_consumer: bool,
}

/// Looks everything up.
///
/// # Errors
/// The API server cannot be asked.
pub async fn dereference(vmi: &VirtualMachineInstance, context: &Context) -> Result<References> {
    let namespace = vmi.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let pod = pods
        .get_opt(&moving::in_charge(vmi))
        .await
        .doing("reading the pod")?;
    let mut found = References::default();
    if let Some(other) = moving::other(vmi) {
        found.other = pods.get_opt(&other).await.doing("reading the other pod")?;
    }
    let node = node_of(pod.as_ref(), context).await?;
    found.node_silent_since = node.as_ref().and_then(silent_since);
    found.node_drains = node.as_ref().is_some_and(drains);
    found.other_silent_since = silence(found.other.as_ref(), context).await?;
    // Claims are looked at before there is a pod; then the kubelet does.
    if pod.is_none() || !migratable::is_told(vmi) {
        found.claims = claims(vmi, context).await?;
    }
    if pod.is_none() {
        found.unfilled = unfilled(vmi, &found.claims, context).await?;
    }
    found.pod = pod;
    Ok(found)
}

/// The claims of an instance's volumes.
///
/// # Errors
/// The API server cannot be asked.
pub async fn claims(
    vmi: &VirtualMachineInstance,
    context: &Context,
) -> Result<BTreeMap<String, Option<PersistentVolumeClaim>>> {
    let api: Api<PersistentVolumeClaim> =
        Api::namespaced(context.client.clone(), &vmi.namespace().unwrap_or_default());
    let mut claims = BTreeMap::new();
    for (name, _) in vmi.spec.volumes.iter().filter_map(volumes::claim) {
        let claim = api.get_opt(&name).await.doing("reading a claim")?;
        claims.insert(name, claim);
    }
    Ok(claims)
}

/// Since when the node of a pod has not been heard of.
///
/// # Errors
/// The API server cannot be asked.
pub async fn silence(pod: Option<&Pod>, context: &Context) -> Result<Option<Timestamp>> {
    let node = node_of(pod, context).await?;
    Ok(node.as_ref().and_then(silent_since))
}

async fn node_of(pod: Option<&Pod>, context: &Context) -> Result<Option<Node>> {
    let Some(node) = pod.and_then(|pod| pod.spec.as_ref()?.node_name.as_deref()) else {
        return Ok(None);
    };
    let nodes: Api<Node> = Api::all(context.client.clone());
    nodes.get_opt(node).await.doing("reading the node")
}

/// Whether a node has the taint by which its machines leave it.
fn drains(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == DRAIN))
}

/// The DataVolumes of what the machine begins with that are not filled yet.
async fn unfilled(
    vmi: &VirtualMachineInstance,
    claims: &BTreeMap<String, Option<PersistentVolumeClaim>>,
    context: &Context,
) -> Result<Vec<Unfilled>> {
    let api: Api<DataVolume> = Api::namespaced(context.client.clone(), &vmi.namespace().unwrap_or_default());
    let mut found = Vec::new();
    for source in vmi.spec.volumes.iter().filter(|source| !is_hot(source)) {
        let Some((name, _)) = volumes::claim(source) else {
            continue;
        };
        let may_be = match claims.get(&name).and_then(Option::as_ref) {
            Some(claim) => fills(claim),
            None => source.data_volume.is_some(),
        };
        if !may_be {
            continue;
        }
        let volume = api.get_opt(&name).await.doing("reading a DataVolume")?;
        let phase = volume.map(|volume| volume.status.and_then(|status| status.phase).unwrap_or_default());
        found.extend(phase.filter(|phase| phase != "Succeeded").map(|phase| Unfilled {
            name,
            first_consumer: ["WaitForFirstConsumer", "PendingPopulation"].contains(&phase.as_str()),
        }));
    }
    Ok(found)
}

/// Whether a DataVolume fills the claim.
fn fills(claim: &PersistentVolumeClaim) -> bool {
    let owner = |owner: &OwnerReference| {
        owner.kind == "DataVolume"
            && owner.api_version.starts_with("cdi.kubevirt.io/")
            && owner.controller == Some(true)
    };
    claim.owner_references().iter().any(owner)
}

/// Since when the control plane has not heard of the node.
fn silent_since(node: &Node) -> Option<Timestamp> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    (ready.status == "Unknown")
        .then(|| ready.last_transition_time.as_ref().map(|time| time.0))
        .flatten()
}
