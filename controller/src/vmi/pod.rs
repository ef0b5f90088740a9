//! The pod of an instance: made, told how to report, deleted.

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use nacelle_api::VirtualMachineInstance;
use serde_json::json;

use super::build::{self, Installation, REPORT};
use super::dereference::References;
use super::validate;
use crate::context::Context;
use crate::error::{Doing, Error, Result, absent_is_done, is};
use crate::{processor, trace};

/// Seconds for what is left in a pod when its machine has ended. The kubelet sometimes waits for all of a pod's grace
/// period when it is deleted as its main container ends.
const ENDED: u32 = 3;

/// Why there is no pod.
pub(super) enum Failure {
    Api(Error),
    Invalid(&'static str, String),
}

/// Makes the pod. One that is there already is the same one: its name is the instance's UID's.
pub(super) async fn make(
    vmi: &VirtualMachineInstance,
    found: &References,
    context: &Context,
) -> Result<(), Failure> {
    let mut settled = vmi.clone();
    let vmi = &mut settled;
    agree(vmi, context).await?;
    let valid = validate::validate(vmi, found)
        .map_err(|invalid| Failure::Invalid(invalid.reason, invalid.message))?;
    let mut pod = build::pod(&valid, &Installation::of(context))
        .map_err(|message| Failure::Invalid("FailedCreate", message))?;
    if context.settings.otlp_endpoint.is_some() {
        pod.annotations_mut().extend([trace::made(Timestamp::now())]);
    }
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &vmi.namespace().unwrap_or_default());
    match pods.create(&PostParams::default(), &pod).await {
        Ok(pod) => {
            let message = format!("Created virtual machine pod {}", pod.name_any());
            context
                .event(&vmi.object_ref(&()), false, "SuccessfulCreate", &message)
                .await;
            Ok(())
        }
        Err(error) if is(&error, 409) => Ok(()),
        // What a person can change: a quota, a policy, a spec that only the API server finds fault with.
        Err(kube::Error::Api(said)) if (400..500).contains(&said.code) && said.code != 429 => {
            Err(Failure::Invalid(
                "FailedCreate",
                format!("failed to create virtual machine pod: {}", said.message),
            ))
        }
        Err(error) => Err(Failure::Api(Error::Api {
            doing: "creating the pod",
            source: Box::new(error),
        })),
    }
}

/// Where machines are to start with what every node has, `host-model` is that: no node has less.
async fn agree(vmi: &mut VirtualMachineInstance, context: &Context) -> Result<(), Failure> {
    let configuration = context.configuration();
    let Some(cpu) = vmi.spec.domain.cpu.clone().filter(|_| configuration.cpu_baseline) else {
        return Ok(());
    };
    if !matches!(cpu.model.as_deref(), None | Some("" | "host-model")) {
        return Ok(());
    }
    let nodes: Api<Node> = Api::all(context.client.clone());
    let list = nodes.list(&ListParams::default()).await.doing("listing nodes");
    let list = list.map_err(Failure::Api)?.items;
    let selector = build::node_selector(vmi, &configuration);
    let processor = processor::baseline(&list, &selector, &configuration.obsolete_cpu_models);
    let processor = processor.map_err(|why| Failure::Invalid("NoCPUBaseline", why))?;
    processor::settle(vmi.spec.domain.cpu.get_or_insert_default(), &processor);
    Ok(())
}

/// Whether something of the pod may still run.
pub(super) fn running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// How the pod is to be deleted: not at all where that is under way, at once where the machine has `ended`, within the
/// instance's grace period where that was shortened after the pod was made, else as the pod says.
pub(super) fn grace(vmi: &VirtualMachineInstance, pod: &Pod, ended: bool) -> Option<Option<u32>> {
    let made_with = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.termination_grace_period_seconds);
    let wanted = vmi.spec.termination_grace_period_seconds.unwrap_or(30).max(1);
    let shortened = wanted + build::GRACE_BEYOND < made_with.unwrap_or(0);
    let shorter = match (ended, shortened) {
        (true, _) => Some(ENDED),
        (false, true) => u32::try_from(wanted).ok(),
        (false, false) => None,
    };
    match (pod.metadata.deletion_grace_period_seconds, shorter) {
        (None, _) => Some(shorter),
        (Some(under_way), Some(seconds)) if i64::from(seconds) < under_way => Some(shorter),
        _ => None,
    }
}

/// Deletes this very pod, not one of its name that came after it. One that is gone is no error.
///
/// # Errors
/// The API server does not do it.
pub async fn remove(pod: &Pod, grace: Option<u32>, context: &Context) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
    let params = DeleteParams {
        grace_period_seconds: grace,
        preconditions: Some(Preconditions {
            uid: pod.uid(),
            ..Preconditions::default()
        }),
        ..DeleteParams::default()
    };
    absent_is_done(pods.delete(&pod.name_any(), &params).await).doing("deleting the pod")
}

pub(super) async fn delete(
    pod: &Pod,
    grace: Option<u32>,
    vmi: &VirtualMachineInstance,
    context: &Context,
) -> Result<()> {
    remove(pod, grace, context).await?;
    if pod.metadata.deletion_timestamp.is_none() {
        let message = format!("Deleted virtual machine pod {}", pod.name_any());
        context
            .event(&vmi.object_ref(&()), false, "SuccessfulDelete", &message)
            .await;
    }
    Ok(())
}

/// A pod outlives certificates: it is told when they change.
pub(super) async fn tell_how_to_report(pod: &Pod, context: &Context) -> Result<()> {
    let report = context.report.borrow().clone();
    if !running(pod) || pod.annotations().get(REPORT).map(String::as_str) == Some(&report) {
        return Ok(());
    }
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
    let patch = json!({"metadata": {"annotations": {REPORT: &*report}}});
    let done = pods
        .patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await;
    absent_is_done(done).doing("telling the launcher how to report")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_the_grace_that_its_machine_still_needs() {
        let vmi = |seconds| {
            let mut vmi = VirtualMachineInstance::new("a", Default::default());
            vmi.spec.termination_grace_period_seconds = Some(seconds);
            vmi
        };
        let pod = |under_way: Option<i64>| {
            let mut pod = Pod::default();
            pod.spec.get_or_insert_default().termination_grace_period_seconds = Some(210);
            pod.metadata.deletion_grace_period_seconds = under_way;
            pod
        };
        assert_eq!(grace(&vmi(180), &pod(None), false), Some(None), "as the pod says");
        assert_eq!(grace(&vmi(180), &pod(Some(210)), false), None, "under way");
        assert_eq!(
            grace(&vmi(0), &pod(None), false),
            Some(Some(1)),
            "stop --grace-period=0"
        );
        assert_eq!(
            grace(&vmi(0), &pod(Some(210)), false),
            Some(Some(1)),
            "and while it is stopping"
        );
        assert_eq!(grace(&vmi(0), &pod(Some(1)), false), None);
        assert_eq!(grace(&vmi(180), &pod(None), true), Some(Some(ENDED)));
        assert_eq!(grace(&vmi(180), &pod(Some(210)), true), Some(Some(ENDED)));
        assert_eq!(grace(&vmi(180), &pod(Some(3)), true), None);
    }
}
