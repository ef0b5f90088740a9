//! Instances: each gets a launcher pod, and its status says how that fares.
//!
//! dereference (the cluster) → validate (pure) → build (pure) → apply (the cluster) → status (pure, then written).

pub mod build;
mod dereference;
pub mod status;
mod unpaused;
mod validate;
pub mod written;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::controller::Action as Requeue;
use kube::{Api, Resource, ResourceExt};
use nacelle_api::vmi::VirtualMachineInstanceStatus;
use nacelle_api::{VirtualMachineInstance, conditions};
use serde_json::{Value, json};

use crate::context::{Context, key};
use crate::error::{Doing, Error, Result, absent_is_done, is};
use crate::{NODE_NAME, VMI_FINALIZER};
use build::{Installation, REPORT};
use dereference::References;

/// Brings one instance a step nearer to what is wanted.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn reconcile(vmi: Arc<VirtualMachineInstance>, context: Arc<Context>) -> Result<Requeue> {
    if context.written.is_old(&vmi) {
        return Ok(Requeue::await_change());
    }
    let now = Timestamp::now();
    let found = dereference::dereference(&vmi, &context).await?;
    if let Some(pod) = &found.pod {
        tell_how_to_report(pod, &context).await?;
    }
    let old = vmi.status.clone().unwrap_or_default();
    let mut status = old.clone();
    let mut requeue = Requeue::await_change();

    if let Some(silent) = found.node_silent_since {
        let after = silent + context.settings.node_lost_after;
        if now < after {
            requeue = Requeue::requeue(Duration::try_from(after.duration_since(now)).unwrap_or_default());
        } else if let Some(message) = status::lost(&mut status, now) {
            context
                .event(&vmi.object_ref(&()), true, "NodeUnresponsive", &message)
                .await;
        }
    }
    if vmi.metadata.deletion_timestamp.is_some() {
        return leave(&vmi, &found, status, &context).await;
    }
    let begun = !matches!(status.phase.as_deref(), None | Some("" | "Pending"));
    if found.pod.is_none() && !begun {
        match make(&vmi, &found, &context).await {
            Ok(()) => {
                conditions::clear(&mut status.conditions, "Synchronized");
                status::enter(&mut status, "Scheduling", now);
            }
            Err(Failure::Api(error)) => return Err(error),
            Err(Failure::Invalid(reason, message)) => {
                if !says(&old, &message) {
                    context.event(&vmi.object_ref(&()), true, reason, &message).await;
                }
                conditions::set(
                    &mut status.conditions,
                    "Synchronized",
                    false,
                    reason,
                    &message,
                    now,
                );
                requeue = Requeue::requeue(Duration::from_secs(10));
            }
        }
    } else {
        status::observe(&mut status, found.pod.as_ref(), now);
        if let Some(pod) = &found.pod {
            if let Some(left) = status::report_due(&status, pod, now) {
                requeue = Requeue::requeue(left.unsigned_abs());
            }
            unpaused::tell(pod, &status, &context, now).await?;
        }
    }
    write(&vmi, &old, &status, &context).await?;
    Ok(requeue)
}

/// Seconds for what is left in a pod when its machine has ended. The kubelet sometimes waits for all of a pod's grace
/// period when it is deleted as its main container ends.
const ENDED: u32 = 3;

enum Failure {
    Api(Error),
    Invalid(&'static str, String),
}

fn says(status: &VirtualMachineInstanceStatus, message: &str) -> bool {
    let condition = conditions::find(&status.conditions, "Synchronized");
    condition.and_then(|condition| condition.message.as_deref()) == Some(message)
}

/// Makes the pod. One that is there already is the same one: its name is the instance's UID's.
async fn make(vmi: &VirtualMachineInstance, found: &References, context: &Context) -> Result<(), Failure> {
    let valid = validate::validate(vmi, found)
        .map_err(|invalid| Failure::Invalid(invalid.reason, invalid.message))?;
    let report = context.report.borrow().clone();
    let configuration = context.configuration();
    let installation = Installation {
        image: &context.settings.image,
        image_pull_policy: &context.settings.image_pull_policy,
        report: &report,
        configuration: &configuration,
    };
    let pod =
        build::pod(&valid, &installation).map_err(|message| Failure::Invalid("FailedCreate", message))?;
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

/// An instance that is deleted goes when its pod has gone; until then its guest may power off.
async fn leave(
    vmi: &VirtualMachineInstance,
    found: &References,
    mut status: VirtualMachineInstanceStatus,
    context: &Context,
) -> Result<Requeue> {
    let now = Timestamp::now();
    let old = vmi.status.clone().unwrap_or_default();
    let lost = status.reason.as_deref() == Some("NodeUnresponsive");
    match &found.pod {
        Some(pod) if running(pod) && !lost => {
            if let Some(grace) = grace(vmi, pod, status::is_final(&status)) {
                delete(pod, grace, vmi, context).await?;
            }
            status::observe(&mut status, Some(pod), now);
            write(vmi, &old, &status, context).await?;
            // A pod that is gone is a change; one whose node is gone is not.
            return Ok(Requeue::requeue(Duration::from_secs(15)));
        }
        // Its node is not heard of: it is left to the kubelet, which ends it when it comes back, and is told now.
        Some(pod) if pod.metadata.deletion_timestamp.is_none() => delete(pod, None, vmi, context).await?,
        _ => {}
    }
    if !vmi
        .finalizers()
        .iter()
        .any(|finalizer| finalizer == VMI_FINALIZER)
    {
        return Ok(Requeue::await_change());
    }
    let left: Vec<_> = vmi
        .finalizers()
        .iter()
        .filter(|finalizer| *finalizer != VMI_FINALIZER)
        .collect();
    let patch = json!({"metadata": {"finalizers": left, "resourceVersion": vmi.resource_version()}});
    let api = context.vmis(&vmi.namespace().unwrap_or_default());
    let done = api
        .patch(&vmi.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await;
    absent_is_done(done).doing("letting go of the instance")?;
    context.written.forget(vmi);
    context
        .event(
            &vmi.object_ref(&()),
            false,
            "Deleted",
            "The VirtualMachineInstance is deleted.",
        )
        .await;
    Ok(Requeue::await_change())
}

/// Whether something of the pod may still run.
fn running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// How the pod is to be deleted: not at all where that is under way, at once where the machine has `ended`, within the
/// instance's grace period where that was shortened after the pod was made, else as the pod says.
fn grace(vmi: &VirtualMachineInstance, pod: &Pod, ended: bool) -> Option<Option<u32>> {
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

async fn delete(
    pod: &Pod,
    grace: Option<u32>,
    vmi: &VirtualMachineInstance,
    context: &Context,
) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
    let params = DeleteParams {
        grace_period_seconds: grace,
        preconditions: Some(Preconditions {
            uid: pod.uid(),
            ..Preconditions::default()
        }),
        ..DeleteParams::default()
    };
    absent_is_done(pods.delete(&pod.name_any(), &params).await).doing("deleting the pod")?;
    if pod.metadata.deletion_timestamp.is_none() {
        let message = format!("Deleted virtual machine pod {}", pod.name_any());
        context
            .event(&vmi.object_ref(&()), false, "SuccessfulDelete", &message)
            .await;
    }
    Ok(())
}

/// A pod outlives certificates: it is told when they change.
async fn tell_how_to_report(pod: &Pod, context: &Context) -> Result<()> {
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

/// Writes what changed of a status, if something did, unless somebody else was faster.
///
/// # Errors
/// As the API server says; a conflict where the instance is another by now.
pub async fn write(
    vmi: &VirtualMachineInstance,
    old: &VirtualMachineInstanceStatus,
    new: &VirtualMachineInstanceStatus,
    context: &Context,
) -> Result<()> {
    if old == new {
        return Ok(());
    }
    let value = |status: &VirtualMachineInstanceStatus| {
        serde_json::to_value(status).map_err(|error| Error::Json("the status", error))
    };
    let mut patch = value(new)?;
    name_absent(&mut patch, &value(old)?);
    let labels = new
        .node_name
        .as_ref()
        .map_or_else(|| json!({}), |node| json!({NODE_NAME: node}));
    let patch = json!({
        "metadata": {"resourceVersion": vmi.resource_version(), "labels": labels},
        "status": patch,
    });
    let api = context.vmis(&vmi.namespace().unwrap_or_default());
    let done = api
        .patch(&vmi.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await;
    if let Ok(written) = &done {
        context.written.note(vmi, written);
    }
    absent_is_done(done).doing("reporting the instance's status")?;
    let word = |phase: &Option<String>| phase.clone().unwrap_or_default();
    log::info!("{}: {} -> {}", key(vmi), word(&old.phase), word(&new.phase));
    for (warning, reason, message) in said(old, new) {
        context
            .event(&vmi.object_ref(&()), warning, reason, message)
            .await;
    }
    Ok(())
}

/// Names what `old` has and `new` has not: a merge leaves as it is what it does not name.
fn name_absent(new: &mut Value, old: &Value) {
    if let (Some(new), Some(old)) = (new.as_object_mut(), old.as_object()) {
        for (field, old) in old {
            name_absent(new.entry(field).or_insert(Value::Null), old);
        }
    }
}

/// What people are told of a change: whether it is a warning, a word, a sentence.
fn said(
    old: &VirtualMachineInstanceStatus,
    new: &VirtualMachineInstanceStatus,
) -> Vec<(bool, &'static str, &'static str)> {
    let entered = |phase: &str| {
        let before = |status: &VirtualMachineInstanceStatus| {
            status
                .phase_transition_timestamps
                .iter()
                .any(|transition| transition.phase == phase)
        };
        before(new) && !before(old)
    };
    let paused = |status: &VirtualMachineInstanceStatus| conditions::is_true(&status.conditions, "Paused");
    [
        (
            entered("Scheduled"),
            false,
            "Created",
            "VirtualMachineInstance defined.",
        ),
        (
            entered("Running"),
            false,
            "Started",
            "VirtualMachineInstance started.",
        ),
        (
            paused(new) && !paused(old),
            false,
            "Paused",
            "VirtualMachineInstance paused.",
        ),
        (
            paused(old) && !paused(new),
            false,
            "Unpaused",
            "VirtualMachineInstance is not paused any more.",
        ),
        (
            entered("Succeeded"),
            false,
            "Stopped",
            "The VirtualMachineInstance was shut down.",
        ),
        (
            entered("Failed"),
            true,
            "Stopped",
            "The VirtualMachineInstance crashed.",
        ),
    ]
    .into_iter()
    .filter(|(so, ..)| *so)
    .map(|(_, warning, reason, message)| (warning, reason, message))
    .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

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

    #[test]
    fn what_is_not_there_any_more_is_named() {
        let mut new = json!({"a": {"b": 1}, "l": [1], "e": {"x": 1}});
        name_absent(
            &mut new,
            &json!({"a": {"c": 2, "b": 3}, "l": [1, 2], "d": {"f": 1}, "e": 5}),
        );
        assert_eq!(
            new,
            json!({"a": {"b": 1, "c": null}, "l": [1], "d": null, "e": {"x": 1}})
        );
    }

    #[test]
    fn people_are_told_of_each_change_once() {
        let now = Timestamp::UNIX_EPOCH;
        let words = |old: &_, new: &_| {
            said(old, new)
                .into_iter()
                .map(|(_, word, _)| word)
                .collect::<Vec<_>>()
        };
        let old = VirtualMachineInstanceStatus::default();
        let mut new = old.clone();
        status::enter(&mut new, "Scheduled", now);
        status::enter(&mut new, "Running", now);
        assert_eq!(
            words(&old, &new),
            ["Created", "Started"],
            "a report may be before the kubelet"
        );
        assert!(words(&new, &new).is_empty());
        let mut paused = new.clone();
        conditions::set(&mut paused.conditions, "Paused", true, "PausedByUser", "", now);
        assert_eq!(words(&new, &paused), ["Paused"]);
        assert_eq!(words(&paused, &new), ["Unpaused"]);
        let mut failed = paused.clone();
        status::enter(&mut failed, "Failed", now);
        assert_eq!(
            said(&new, &failed),
            [(true, "Stopped", "The VirtualMachineInstance crashed.")]
        );
    }
}
