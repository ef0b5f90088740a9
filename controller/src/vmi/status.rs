//! What is reported of an instance: from its pod, and from what its launcher says. Both pure, both on the same status,
//! and each can be missed: the next one says enough.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerState, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use nacelle_api::migration::MigrationState;
use nacelle_api::vmi::{InterfaceStatus, PhaseTransition, VirtualMachineInstanceStatus};
use nacelle_api::{Freeform, conditions};
use serde::Deserialize;

use super::moving::{Arrival, Departure};
use crate::trace::spans::Start;
use crate::volumes;
use crate::volumes::status::Plugged;

/// Container that runs the machine.
pub const COMPUTE: &str = "compute";
/// How long after its start a launcher has usually reported.
const REPORT: SignedDuration = SignedDuration::from_secs(5);
/// How long the kubelet may take to call a pod ready to which a machine has come.
const ARRIVAL: SignedDuration = SignedDuration::from_secs(10);

/// What a launcher says of its machine: `docs/pod.md`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What the machine is doing.
    pub state: State,
    /// One word on why.
    #[serde(default)]
    pub reason: String,
    /// A sentence on why.
    #[serde(default)]
    pub message: String,
    /// Its interfaces.
    #[serde(default)]
    pub interfaces: Vec<InterfaceStatus>,
    /// What its guest agent says, while that answers.
    #[serde(default)]
    pub agent: Option<Guest>,
    /// Whether the guest's users have their keys and passwords, once that was tried.
    #[serde(default)]
    pub credentials: Option<Credentials>,
    /// Disks that were plugged in.
    #[serde(default)]
    pub plugged: Vec<Plugged>,
    /// Where it waits for a machine that comes from another pod.
    #[serde(default)]
    pub arrival: Option<Arrival>,
    /// The machine leaves for another pod, or was to.
    #[serde(default)]
    pub departure: Option<Departure>,
    /// How long its start took, once, to who wants to know.
    #[serde(default)]
    pub start: Option<Start>,
}

/// Keys and passwords of a guest's users.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Credentials {
    /// The guest has them.
    pub synchronized: bool,
    /// Why not.
    #[serde(default)]
    pub message: String,
}

/// What a guest's agent says.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Guest {
    /// Of its operating system.
    #[serde(rename = "guestOSInfo", default)]
    pub guest_os_info: BTreeMap<String, String>,
    /// `thawed` or `frozen`.
    #[serde(default)]
    pub fs_freeze_status: Option<String>,
}

/// Whether the guest's users have their keys and passwords.
pub const CREDENTIALS: &str = "AccessCredentialsSynchronized";

/// What is said of an operating system.
const OS_INFO: [&str; 8] = [
    "name",
    "kernelRelease",
    "version",
    "prettyName",
    "versionId",
    "kernelVersion",
    "machine",
    "id",
];

/// What a machine is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum State {
    /// It is being built.
    #[default]
    Starting,
    /// It comes from another pod.
    Arriving,
    /// It runs.
    Running,
    /// It is held still.
    Paused,
    /// It was asked to power off.
    Stopping,
    /// It stands still here, and its other pod was told to run it.
    HandedOver,
    /// The guest powered off.
    Succeeded,
    /// It ended otherwise.
    Failed,
}

/// Whether nothing more will happen.
pub fn is_final(status: &VirtualMachineInstanceStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// Gives the status a phase; never out of a final one.
pub fn enter(status: &mut VirtualMachineInstanceStatus, phase: &str, now: Timestamp) {
    if status.phase.as_deref() == Some(phase) || is_final(status) {
        return;
    }
    status.phase = Some(phase.to_owned());
    status.phase_transition_timestamps.push(PhaseTransition {
        phase: phase.to_owned(),
        phase_transition_timestamp: Time(now),
    });
    if is_final(status) {
        conditions::set(
            &mut status.conditions,
            "Ready",
            false,
            "PodTerminating",
            "the machine has ended",
            now,
        );
        conditions::clear(&mut status.conditions, "Paused");
        conditions::clear(&mut status.conditions, "AgentConnected");
        status.fs_freeze_status = None;
        status.active_pods.clear();
    }
}

/// What follows from the pod.
pub fn observe(status: &mut VirtualMachineInstanceStatus, pod: Option<&Pod>, now: Timestamp) {
    if is_final(status) {
        return;
    }
    let Some(pod) = pod else {
        // A pod that was there and is gone took the machine with it.
        if matches!(
            status.phase.as_deref(),
            Some("Scheduling" | "Scheduled" | "Running")
        ) {
            status.reason = Some("PodNotExists".to_owned());
            enter(status, "Failed", now);
        }
        return;
    };
    let compute = container(pod);
    scheduled(status, pod, now);
    pulled(status, pod, now);
    match (
        pod.status.as_ref().and_then(|status| status.phase.as_deref()),
        compute,
    ) {
        (
            _,
            Some(ContainerState {
                terminated: Some(end),
                ..
            }),
        ) => {
            if end.exit_code == 0 {
                enter(status, "Succeeded", now);
            } else {
                status.reason = Some("GuestCrashed".to_owned());
                let message = end
                    .message
                    .clone()
                    .unwrap_or_else(|| format!("compute ended with status {}", end.exit_code));
                conditions::set(
                    &mut status.conditions,
                    "Synchronized",
                    false,
                    "GuestCrashed",
                    message.trim(),
                    now,
                );
                enter(status, "Failed", now);
            }
        }
        (Some("Failed"), _) => {
            let pod_status = pod.status.as_ref();
            let reason = pod_status
                .and_then(|status| status.reason.clone())
                .unwrap_or_else(|| "PodFailed".to_owned());
            let message = pod_status
                .and_then(|status| status.message.clone())
                .or_else(|| failure(pod));
            conditions::set(
                &mut status.conditions,
                "Synchronized",
                false,
                &reason,
                message.as_deref().unwrap_or("the launcher pod failed"),
                now,
            );
            status.reason = Some(reason);
            enter(status, "Failed", now);
        }
        (Some("Succeeded"), _) => enter(status, "Succeeded", now),
        (_, Some(ContainerState { running: Some(_), .. })) if report_due(status, pod, now).is_none() => {
            placed(status, pod);
            if matches!(
                status.phase.as_deref(),
                None | Some("" | "Pending" | "Scheduling")
            ) {
                enter(status, "Scheduled", now);
            }
        }
        _ => {
            if matches!(status.phase.as_deref(), None | Some("" | "Pending")) {
                enter(status, "Scheduling", now);
            }
        }
    }
    ready(status, pod, now);
}

/// How long the launcher of a machine that is being started may still take to report, after which what the pod says is
/// written without it. A report says all of it and more in one write.
pub fn report_due(
    status: &VirtualMachineInstanceStatus,
    pod: &Pod,
    now: Timestamp,
) -> Option<SignedDuration> {
    let awaited = matches!(
        status.phase.as_deref(),
        None | Some("" | "Pending" | "Scheduling")
    );
    let begun = container(pod)?.running.as_ref()?.started_at.as_ref()?.0;
    let left = REPORT - now.duration_since(begun);
    (awaited && left > SignedDuration::ZERO).then_some(left)
}

/// What follows from a report. It may be here before the kubelet says that the pod runs.
pub fn apply(status: &mut VirtualMachineInstanceStatus, report: &Report, pod: &Pod, now: Timestamp) {
    if is_final(status) {
        return;
    }
    if matches!(report.state, State::Running | State::Paused) {
        placed(status, pod);
        if matches!(
            status.phase.as_deref(),
            None | Some("" | "Pending" | "Scheduling")
        ) {
            enter(status, "Scheduled", now);
        }
    }
    if !report.interfaces.is_empty() {
        status.interfaces.clone_from(&report.interfaces);
        for interface in &mut status.interfaces {
            interface.ip_address = interface.ip_addresses.first().cloned();
        }
    }
    told(status, report.agent.as_ref(), now);
    if let Some(Credentials {
        synchronized,
        message,
    }) = &report.credentials
    {
        conditions::set(
            &mut status.conditions,
            CREDENTIALS,
            *synchronized,
            "",
            message,
            now,
        );
    }
    volumes::status::told(status, &report.plugged);
    match report.state {
        // The pod says so too, by its deletion.
        State::Starting | State::Stopping => {}
        // The target tells what follows.
        State::Arriving | State::HandedOver => {}
        State::Running => {
            conditions::clear(&mut status.conditions, "Paused");
            enter(status, "Running", now);
        }
        State::Paused => {
            let message = match report.reason.as_str() {
                "PausedIOError" => "VMI was paused, low-level IO error detected",
                _ => "VMI was paused by user",
            };
            conditions::set(
                &mut status.conditions,
                "Paused",
                true,
                &report.reason,
                message,
                now,
            );
            enter(status, "Running", now);
        }
        State::Succeeded => enter(status, "Succeeded", now),
        State::Failed => {
            status.reason = Some(report.reason.clone());
            conditions::set(
                &mut status.conditions,
                "Synchronized",
                false,
                &report.reason,
                &report.message,
                now,
            );
            enter(status, "Failed", now);
        }
    }
    ready(status, pod, now);
}

/// What the guest's agent says. What it said of the system is true after it has gone, too.
fn told(status: &mut VirtualMachineInstanceStatus, agent: Option<&Guest>, now: Timestamp) {
    let frozen = |agent: &Guest| agent.fs_freeze_status.clone().filter(|said| said == "frozen");
    status.fs_freeze_status = agent.and_then(frozen);
    let Some(agent) = agent else {
        conditions::clear(&mut status.conditions, "AgentConnected");
        return;
    };
    conditions::set(&mut status.conditions, "AgentConnected", true, "", "", now);
    let known = OS_INFO.into_iter().filter_map(|field| {
        let said = agent.guest_os_info.get(field)?;
        Some((field.to_owned(), said.as_str().into()))
    });
    let known: Freeform = known.collect();
    // A guest that is frozen is not asked.
    if !known.is_empty() {
        status.guest_os_info = Some(known);
    }
}

/// The node was not heard of for too long.
pub fn lost(status: &mut VirtualMachineInstanceStatus, now: Timestamp) {
    if is_final(status) {
        return;
    }
    let node = status.node_name.clone().unwrap_or_default();
    let message = format!("node {node} is not responsive, marking VMI as failed");
    status.reason = Some("NodeUnresponsive".to_owned());
    conditions::set(
        &mut status.conditions,
        "Synchronized",
        false,
        "NodeUnresponsive",
        &message,
        now,
    );
    enter(status, "Failed", now);
}

/// Where the pod is, and what it is made of.
fn placed(status: &mut VirtualMachineInstanceStatus, pod: &Pod) {
    let spec = pod.spec.as_ref();
    status.node_name = spec.and_then(|spec| spec.node_name.clone());
    if let (Some(uid), Some(node)) = (pod.uid(), &status.node_name) {
        status.active_pods.insert(uid, node.clone());
    }
    status.qos_class = pod.status.as_ref().and_then(|status| status.qos_class.clone());
    status.launcher_container_image_version = spec.and_then(|spec| spec.containers.first()?.image.clone());
}

/// The state of the container that runs the machine.
fn container(pod: &Pod) -> Option<&ContainerState> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses
        .iter()
        .find(|container| container.name == COMPUTE)?
        .state
        .as_ref()
}

/// Why a pod failed whose machine did not: another container did.
fn failure(pod: &Pod) -> Option<String> {
    let of_pod = pod.status.as_ref()?;
    let lists = [&of_pod.init_container_statuses, &of_pod.container_statuses];
    lists.into_iter().flatten().flatten().find_map(|container| {
        let end = container.state.as_ref()?.terminated.as_ref();
        let end = end.filter(|end| end.exit_code != 0)?;
        let message = end.message.as_deref().unwrap_or_default().trim();
        Some(format!(
            "{} ended with status {}: {message}",
            container.name, end.exit_code
        ))
    })
}

fn scheduled(status: &mut VirtualMachineInstanceStatus, pod: &Pod, now: Timestamp) {
    let of_pod = pod.status.as_ref().and_then(|status| {
        status
            .conditions
            .as_ref()?
            .iter()
            .find(|condition| condition.type_ == "PodScheduled")
    });
    match of_pod {
        Some(condition) if condition.status == "False" => {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let (reason, message) = (text(&condition.reason), text(&condition.message));
            conditions::set(
                &mut status.conditions,
                "PodScheduled",
                false,
                &reason,
                &message,
                now,
            );
        }
        _ => conditions::clear(&mut status.conditions, "PodScheduled"),
    }
}

/// Why an image does not come, if one does not.
fn pulled(status: &mut VirtualMachineInstanceStatus, pod: &Pod, now: Timestamp) {
    let Some(of_pod) = &pod.status else {
        return;
    };
    let lists = [&of_pod.init_container_statuses, &of_pod.container_statuses];
    let waiting = lists.into_iter().flatten().flatten().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        let stuck = [
            "ErrImagePull",
            "ImagePullBackOff",
            "InvalidImageName",
            "CreateContainerConfigError",
            "ErrImageNeverPull",
        ];
        stuck
            .contains(&reason)
            .then(|| (reason.to_owned(), waiting.message.clone().unwrap_or_default()))
    });
    match waiting {
        Some((reason, message)) => {
            conditions::set(
                &mut status.conditions,
                "Synchronized",
                false,
                &reason,
                &message,
                now,
            );
        }
        None => conditions::clear(&mut status.conditions, "Synchronized"),
    }
}

/// How long the pod of a machine that has just come may still take to be called ready.
pub fn just_arrived(state: Option<&MigrationState>, now: Timestamp) -> Option<SignedDuration> {
    let since = state?.target_node_domain_ready_timestamp.as_ref()?.0;
    let left = ARRIVAL - now.duration_since(since);
    (left > SignedDuration::ZERO).then_some(left)
}

/// Ready is who runs in a pod that is ready.
fn ready(status: &mut VirtualMachineInstanceStatus, pod: &Pod, now: Timestamp) {
    if is_final(status) {
        return;
    }
    let of_pod = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let pod_ready = of_pod.and_then(|list| list.iter().find(|condition| condition.type_ == "Ready"));
    let list = &mut status.conditions;
    if pod.metadata.deletion_timestamp.is_some() {
        conditions::set(
            list,
            "Ready",
            false,
            "PodTerminating",
            "virt-launcher pod is terminating",
            now,
        );
    } else if status.phase.as_deref() != Some("Running") {
        conditions::set(
            list,
            "Ready",
            false,
            "GuestNotRunning",
            "Guest VM is not reported as running",
            now,
        );
    } else if conditions::is_true(list, "Paused") {
        conditions::set(list, "Ready", false, "GuestNotRunning", "Guest VM is paused", now);
    } else {
        match pod_ready {
            Some(condition) if condition.status == "True" => {
                conditions::set(list, "Ready", true, "", "", now)
            }
            // The kubelet has yet to see that the machine has come: it was ready where it was, and runs.
            _ if just_arrived(status.migration_state.as_ref(), now).is_some()
                && conditions::is_true(list, "Ready") => {}
            Some(condition) => {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                let (reason, message) = (text(&condition.reason), text(&condition.message));
                conditions::set(list, "Ready", false, &reason, &message, now);
            }
            None => {
                let message = "virt-launcher pod has no ready condition yet";
                conditions::set(list, "Ready", false, "PodConditionMissing", message, now);
            }
        }
    }
}

#[cfg(test)]
mod tests;
