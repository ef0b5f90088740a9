//! The readiness gate of launcher pods: a machine that is paused gets nothing from Services.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use nacelle_api::conditions;
use nacelle_api::vmi::VirtualMachineInstanceStatus;
use serde_json::json;

use crate::context::Context;
use crate::error::{Doing, Result, absent_is_done};

/// The condition of the pod that the gate waits for.
pub const GATE: &str = "kubevirt.io/virtual-machine-unpaused";

/// The condition that the pod shall have, if it has another.
fn wanted(pod: &Pod, status: &VirtualMachineInstanceStatus, now: Timestamp) -> Option<PodCondition> {
    let (is, reason, message) = match conditions::is_true(&status.conditions, "Paused") {
        true => ("False", "Paused", "the virtual machine is paused"),
        false => ("True", "NotPaused", "the virtual machine is not paused"),
    };
    let list = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let has = list.and_then(|list| list.iter().find(|condition| condition.type_ == GATE));
    (has.map(|condition| condition.status.as_str()) != Some(is)).then(|| PodCondition {
        type_: GATE.to_owned(),
        status: is.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    })
}

/// Opens or closes the gate.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn tell(
    pod: &Pod,
    status: &VirtualMachineInstanceStatus,
    context: &Context,
    now: Timestamp,
) -> Result<()> {
    let gated = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_ref());
    // Pods of before the gate have none.
    if gated.is_none_or(Vec::is_empty) || pod.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let Some(condition) = wanted(pod, status, now) else {
        return Ok(());
    };
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
    // Merged by the conditions' types: the kubelet's are left alone.
    let done = pods
        .patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch))
        .await;
    absent_is_done(done).doing("telling the pod whether its machine is paused")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodStatus;

    use super::*;

    #[test]
    fn a_pod_is_told_once_of_each_change() {
        let now = Timestamp::UNIX_EPOCH;
        let mut pod = Pod::default();
        let mut status = VirtualMachineInstanceStatus::default();
        let mut tell = |status: &_| {
            let condition = wanted(&pod, status, now)?;
            let word = condition.status.clone();
            pod.status = Some(PodStatus {
                conditions: Some(vec![condition]),
                ..PodStatus::default()
            });
            Some(word)
        };
        assert_eq!(tell(&status).as_deref(), Some("True"));
        assert_eq!(tell(&status), None);
        conditions::set(&mut status.conditions, "Paused", true, "PausedByUser", "", now);
        assert_eq!(tell(&status).as_deref(), Some("False"));
        assert_eq!(tell(&status), None);
        conditions::clear(&mut status.conditions, "Paused");
        assert_eq!(tell(&status).as_deref(), Some("True"));
    }
}
