//! The first consumer of claims that are bound when a pod wants them: a pod that goes where the machine's will go, and ends at
//! once. What fills the claim follows it to that node.

use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use nacelle_api::VirtualMachineInstance;

use super::build::{self, Installation};
use super::dereference::References;
use super::validate;
use crate::context::Context;
use crate::error::{Doing, Result, absent_is_done, is};

/// Annotation by which KubeVirt knows such a pod.
const MARK: &str = "kubevirt.io/ephemeral-provisioning";

/// Makes it, if it is not there.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn make(vmi: &VirtualMachineInstance, found: &References, context: &Context) -> Result<()> {
    let Ok(valid) = validate::validate(vmi, found) else {
        // It is told of when the disks are there.
        return Ok(());
    };
    let Some(pod) = build::pod(&valid, &Installation::of(context))
        .ok()
        .and_then(|pod| reduced(pod, vmi))
    else {
        return Ok(());
    };
    match pods(vmi, context).create(&PostParams::default(), &pod).await {
        Err(error) if !is(&error, 409) => Err(error).doing("making the first consumer of the claims"),
        _ => Ok(()),
    }
}

/// The machine's pod is there: this one is not needed any more.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn remove(vmi: &VirtualMachineInstance, context: &Context) -> Result<()> {
    let done = pods(vmi, context)
        .delete(&name(vmi), &DeleteParams::default())
        .await;
    absent_is_done(done).doing("deleting the first consumer of the claims")
}

fn pods(vmi: &VirtualMachineInstance, context: &Context) -> Api<Pod> {
    Api::namespaced(context.client.clone(), &vmi.namespace().unwrap_or_default())
}

fn name(vmi: &VirtualMachineInstance) -> String {
    format!("first-consumer-{}", vmi.uid().unwrap_or_default())
}

/// Of the machine's pod, what the scheduler looks at. Pure.
fn reduced(mut pod: Pod, vmi: &VirtualMachineInstance) -> Option<Pod> {
    pod.metadata.name = Some(name(vmi));
    pod.metadata.owner_references = Some(vec![vmi.controller_owner_ref(&())?]);
    pod.metadata.labels = Some([("kubevirt.io/created-by".to_owned(), vmi.uid()?)].into());
    pod.metadata.annotations = Some([(MARK.to_owned(), "true".to_owned())].into());
    let spec = pod.spec.as_mut()?;
    spec.init_containers = None;
    spec.readiness_gates = None;
    let is_claim = |volume: &Volume| volume.persistent_volume_claim.is_some();
    spec.volumes.get_or_insert_default().retain(is_claim);
    let compute = spec
        .containers
        .drain(..)
        .find(|container| container.name == "compute")?;
    // Mounted or not, a pod's claims are bound before it runs.
    spec.containers.push(Container {
        name: compute.name,
        image: compute.image,
        image_pull_policy: compute.image_pull_policy,
        command: Some(vec![
            "/usr/bin/nacelle-importer".to_owned(),
            "--version".to_owned(),
        ]),
        resources: compute.resources,
        security_context: compute.security_context,
        ..Container::default()
    });
    Some(pod)
}
