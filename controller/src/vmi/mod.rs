//! Instances: each gets a launcher pod, and its status says how that fares.
//!
//! dereference (the cluster) → validate (pure) → build (pure) → apply (the cluster) → status (pure, then written).

pub mod build;
mod consumer;
pub mod dereference;
pub mod migratable;
pub mod moving;
mod pod;
mod said;
pub mod status;
mod unpaused;
pub mod validate;
mod write;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action as Requeue;
use kube::{Resource, ResourceExt};
use nacelle_api::vmi::VirtualMachineInstanceStatus;
use nacelle_api::{VirtualMachineInstance, conditions};
use serde_json::json;

use crate::context::Context;
use crate::error::{Doing, Result, absent_is_done};
use crate::migration::evacuation;
use crate::{VMI_FINALIZER, volumes};
use dereference::References;
use pod::{Failure, delete, grace, make, running, tell_how_to_report};

pub use self::pod::remove;
pub use self::write::write;

/// Brings one instance a step nearer to what is wanted.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn reconcile(vmi: Arc<VirtualMachineInstance>, context: Arc<Context>) -> Result<Requeue> {
    if context.written.is_old(&*vmi) {
        return Ok(Requeue::await_change());
    }
    let now = Timestamp::now();
    let found = dereference::dereference(&vmi, &context).await?;
    for pod in found.pod.iter().chain(&found.other) {
        tell_how_to_report(pod, &context).await?;
    }
    let old = vmi.status.clone().unwrap_or_default();
    let mut status = old.clone();
    let mut requeue = Requeue::await_change();

    if let Some(silent) = found.node_silent_since {
        let after = silent + context.settings.node_lost_after;
        if now < after {
            requeue = Requeue::requeue(Duration::try_from(after.duration_since(now)).unwrap_or_default());
        } else {
            status::lost(&mut status, now);
        }
    }
    if vmi.metadata.deletion_timestamp.is_some() {
        return leave(&vmi, &found, status, &context).await;
    }
    let begun = !matches!(status.phase.as_deref(), None | Some("" | "Pending"));
    if !begun && !found.unfilled.is_empty() {
        // Nobody tells us when they are: whose DataVolumes they are we do not ask.
        requeue = Requeue::requeue(FILLING);
        if found.unfilled.iter().all(|volume| volume.first_consumer) {
            consumer::make(&vmi, &found, &context).await?;
        }
        let names: Vec<_> = found.unfilled.iter().map(|volume| volume.name.as_str()).collect();
        let message = format!("not filled yet: DataVolume {}", names.join(", "));
        conditions::set(
            &mut status.conditions,
            "DataVolumesReady",
            false,
            "NotAllDVsReady",
            &message,
            now,
        );
    } else if found.pod.is_none() && !begun {
        conditions::clear(&mut status.conditions, "DataVolumesReady");
        match make(&vmi, &found, &context).await {
            Ok(()) => {
                if conditions::find(&old.conditions, "DataVolumesReady").is_some() {
                    consumer::remove(&vmi, &context).await?;
                }
                conditions::clear(&mut status.conditions, "Synchronized");
                migratable::tell(&mut status, &vmi.spec, &found.claims, now);
                status::enter(&mut status, "Scheduling", now);
            }
            Err(Failure::Api(error)) => return Err(error),
            Err(Failure::Invalid(reason, message)) => {
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
    } else if let Some(wait) = may_run_elsewhere(&vmi, &found, &mut status, &context, now).await? {
        requeue = Requeue::requeue(wait);
    } else {
        if !migratable::is_told(&vmi) {
            migratable::tell(&mut status, &vmi.spec, &found.claims, now);
        }
        moving::complete(&mut status, found.other.as_ref(), now);
        status::observe(&mut status, found.pod.as_ref(), now);
        if let Some(pod) = &found.pod {
            if let Some(left) = status::report_due(&status, pod, now) {
                requeue = Requeue::requeue(left.unsigned_abs());
            }
            if let Some(left) = status::just_arrived(status.migration_state.as_ref(), now) {
                requeue = Requeue::requeue(left.unsigned_abs());
            }
            unpaused::tell(pod, &status, &context, now).await?;
            if status::is_final(&status) {
                volumes::forget(&vmi, &mut status, &context).await?;
            } else if let Some(again) = volumes::reconcile(&vmi, pod, &mut status, &context).await? {
                requeue = Requeue::requeue(again);
            }
        }
    }
    if found.node_drains && status.evacuation_node_name.is_none() && evacuation::leaves(&vmi) {
        status.evacuation_node_name.clone_from(&status.node_name);
    }
    write(&vmi, &old, &status, &context).await?;
    match evacuation::step(&vmi, &context, now).await? {
        Some(wait) => Ok(Requeue::requeue(wait)),
        None => Ok(requeue),
    }
}

/// How long after its source has ended a target that says nothing is waited for: longer than either side waits for the other.
const WORD: SignedDuration = SignedDuration::from_secs(60);

/// Whether the guest's fate is another pod's to tell: it was on its way there when the pod ended that had it. How soon that is
/// looked at again.
async fn may_run_elsewhere(
    vmi: &VirtualMachineInstance,
    found: &References,
    status: &mut VirtualMachineInstanceStatus,
    context: &Context,
    now: Timestamp,
) -> Result<Option<Duration>> {
    if !moving::under_way(status) || found.pod.as_ref().is_some_and(|pod| !moving::ended(pod)) {
        return Ok(None);
    }
    let Some(target) = found.other.as_ref().filter(|pod| !moving::ended(pod)) else {
        if let Some(state) = &mut status.migration_state {
            moving::fail(state, "source and target have ended", now);
        }
        if found.pod.as_ref().is_some_and(moving::moved) {
            // What is left of the source would say that the guest powered off.
            status.reason = Some("TargetLost".to_owned());
            status::enter(status, "Failed", now);
        }
        return Ok(None);
    };
    let since = found.pod.as_ref().and_then(moving::ended_at);
    if since.is_none_or(|since| now > since + WORD) && target.metadata.deletion_timestamp.is_none() {
        delete(target, None, vmi, context).await?;
    }
    Ok(Some(Duration::from_secs(5)))
}

/// Until DataVolumes that are being filled are looked at again.
const FILLING: Duration = Duration::from_secs(3);

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
    // The pod that it was to move to goes, too; a node that is not heard of ends it when it comes back.
    let silent = found.other_silent_since.is_some();
    if let Some(other) = found.other.as_ref().filter(|pod| running(pod)) {
        if other.metadata.deletion_timestamp.is_none() {
            delete(other, None, vmi, context).await?;
        }
        let gone = found.pod.as_ref().is_none_or(|pod| !running(pod));
        if gone && !silent {
            return Ok(Requeue::requeue(Duration::from_secs(5)));
        }
    }
    match &found.pod {
        Some(pod) if running(pod) && !lost => {
            if let Some(grace) = grace(vmi, pod, status::is_final(&status)) {
                if pod.metadata.deletion_timestamp.is_none() && !status::is_final(&status) {
                    context
                        .event(
                            &vmi.object_ref(&()),
                            false,
                            "ShuttingDown",
                            "Signaled Graceful Shutdown",
                        )
                        .await;
                }
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
