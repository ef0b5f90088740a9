//! An instance that moves has two pods for a while. Which of them counts, and what each of them says of the migration. Pure.
//!
//! ```text
//! claimed ── the source says Moving ── the target says Running: it is in charge ── the source has gone: completed
//!    └──────────────┴── the source says Failed, or was stopped before it began: failed, the source goes on
//! ```
//! The source is in charge until the target says that the guest runs there, and never again after it.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use nacelle_api::VirtualMachineInstance;
use nacelle_api::migration::MigrationState;
use nacelle_api::vmi::VirtualMachineInstanceStatus;
use serde::{Deserialize, Serialize};

use super::build::pod_name;
use super::status::{self, COMPUTE, Report, State};

/// What a launcher says that waits for its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Arrival {
    /// The UID of the migration.
    pub migration: String,
    /// `HOST:PORT`.
    pub address: String,
    /// Its certificate, in PEM.
    pub certificate: String,
}

/// What a launcher says of a machine that leaves.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Departure {
    /// The UID of the migration.
    pub migration: String,
    /// How it stands.
    pub state: Stage,
    /// Why it failed.
    #[serde(default)]
    pub message: String,
}

/// How a departure stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// It is under way.
    Moving,
    /// The machine runs on at the source.
    Failed,
    /// It stands still at the source, and may run at the target.
    Unconfirmed,
}

/// What a pod is to its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// What it says is what the instance does.
    InCharge,
    /// The instance goes there.
    Target,
    /// The instance came from there.
    Left,
}

fn state(vmi: &VirtualMachineInstance) -> Option<&MigrationState> {
    vmi.status.as_ref()?.migration_state.as_ref()
}

/// The name of the pod that counts.
pub fn in_charge(vmi: &VirtualMachineInstance) -> String {
    let named = state(vmi).and_then(|state| match state.has_arrived() {
        true => state.target_pod.clone(),
        false => state.source_pod.clone(),
    });
    named.unwrap_or_else(|| pod_name(vmi))
}

/// The name of the other pod that an instance may have.
pub fn other(vmi: &VirtualMachineInstance) -> Option<String> {
    let state = state(vmi)?;
    match state.has_arrived() {
        true => state.source_pod.clone(),
        false => state.target_pod.clone(),
    }
}

/// What the pod called `name` is to the instance, if something.
pub fn role(vmi: &VirtualMachineInstance, name: &str) -> Option<Role> {
    if in_charge(vmi) == name {
        return Some(Role::InCharge);
    }
    (other(vmi)? == name).then(|| match state(vmi).is_some_and(MigrationState::has_arrived) {
        true => Role::Left,
        false => Role::Target,
    })
}

/// Whether the guest may be on its way: claimed, not over, and not there yet.
pub fn under_way(status: &VirtualMachineInstanceStatus) -> bool {
    status
        .migration_state
        .as_ref()
        .is_some_and(|state| !state.is_over() && !state.has_arrived())
}

/// What follows for a migration from a report of the pod in charge. Whether the report says that the guest has left, so that
/// the end of the machine here is not that of the instance.
pub fn departs(status: &mut VirtualMachineInstanceStatus, report: &Report, now: Timestamp) -> bool {
    let Some(state) = status.migration_state.as_mut() else {
        return false;
    };
    if state.is_over() || state.has_arrived() {
        return false;
    }
    match &report.departure {
        Some(departure) if Some(&departure.migration) == state.migration_uid.as_ref() => {
            if state.start_timestamp.is_none() {
                state.start_timestamp = Some(Time(now));
            }
            if departure.state == Stage::Failed {
                fail(state, &departure.message, now);
            }
        }
        _ => {}
    }
    report.state == State::Succeeded && report.reason == "Moved"
}

/// A migration came to nothing; the guest runs on where it was.
pub fn fail(state: &mut MigrationState, reason: &str, now: Timestamp) {
    state.failed = Some(true);
    state.failure_reason = Some(reason.to_owned());
    state.end_timestamp = Some(Time(now));
    if state.abort_requested == Some(true) {
        state.abort_status = Some("Succeeded".to_owned());
    }
}

/// What follows from a report of the target: where the guest runs there, it is in charge from now on.
pub fn arrives(status: &mut VirtualMachineInstanceStatus, report: &Report, pod: &Pod, now: Timestamp) {
    if status::is_final(status) {
        return;
    }
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let Some(state) = status.migration_state.as_mut() else {
        return;
    };
    if !matches!(report.state, State::Running | State::Paused | State::Stopping) || state.is_over() {
        return;
    }
    state.target_node.clone_from(&node);
    state.target_node_domain_ready_timestamp = Some(Time(now));
    state.target_node_domain_detected = Some(true);
    if state.start_timestamp.is_none() {
        state.start_timestamp = Some(Time(now));
    }
    if state.abort_requested == Some(true) {
        // It came too late.
        state.abort_status = Some("Failed".to_owned());
    }
    if status.evacuation_node_name != node {
        status.evacuation_node_name = None;
    }
}

/// The source has gone after its guest.
pub fn complete(status: &mut VirtualMachineInstanceStatus, source: Option<&Pod>, now: Timestamp) {
    let Some(state) = status.migration_state.as_mut() else {
        return;
    };
    if state.is_over() || !state.has_arrived() || source.is_some_and(|pod| !ended(pod)) {
        return;
    }
    state.completed = Some(true);
    state.end_timestamp = Some(Time(now));
    let target = state.target_node.clone();
    status
        .active_pods
        .retain(|_, node| Some(&*node) == target.as_ref());
}

/// Whether nothing of the machine runs in the pod any more, for certain: the kubelet says so.
pub fn ended(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let mut containers = status
        .and_then(|status| status.container_statuses.as_ref())
        .into_iter()
        .flatten();
    matches!(phase, Some("Succeeded" | "Failed"))
        || containers.any(|container| {
            container.name == COMPUTE
                && container
                    .state
                    .as_ref()
                    .is_some_and(|state| state.terminated.is_some())
        })
}

/// When it ended.
pub fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let compute = containers.iter().find(|container| container.name == COMPUTE)?;
    let end = compute.state.as_ref()?.terminated.as_ref()?;
    end.finished_at.as_ref().map(|time| time.0)
}

/// Whether the machine in this pod, which has ended, goes on elsewhere: the launcher's last words are those of `End::Moved`.
pub fn moved(pod: &Pod) -> bool {
    let containers = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    containers.into_iter().flatten().any(|container| {
        let end = container
            .state
            .as_ref()
            .and_then(|state| state.terminated.as_ref());
        container.name == COMPUTE
            && end.is_some_and(|end| end.exit_code == 0 && end.message.as_deref() == Some("it was moved"))
    })
}

/// The name of the pod that an instance moves to.
pub fn target_name(vmi: &VirtualMachineInstance, migration: &str) -> String {
    super::build::name_of(&vmi.name_any(), migration)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moving() -> VirtualMachineInstance {
        let mut vmi = VirtualMachineInstance::new("a", Default::default());
        vmi.metadata.uid = Some("1".into());
        vmi.status = Some(VirtualMachineInstanceStatus {
            phase: Some("Running".into()),
            node_name: Some("here".into()),
            evacuation_node_name: Some("here".into()),
            migration_state: Some(MigrationState {
                migration_uid: Some("m".into()),
                source_pod: Some("from".into()),
                target_pod: Some("to".into()),
                ..MigrationState::default()
            }),
            ..VirtualMachineInstanceStatus::default()
        });
        vmi
    }

    fn report(text: &str) -> Report {
        serde_json::from_str(text).unwrap()
    }

    fn pod(text: &str) -> Pod {
        serde_json::from_str(text).unwrap()
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn the_source_counts_until_the_guest_runs_at_the_target_and_never_after() {
        let mut vmi = moving();
        let there = pod(r#"{"metadata": {"name": "to"}, "spec": {"nodeName": "there", "containers": []}}"#);
        assert_eq!(role(&vmi, "from"), Some(Role::InCharge));
        assert_eq!(role(&vmi, "to"), Some(Role::Target));
        assert_eq!(role(&vmi, "else"), None);
        let status = vmi.status.as_mut().unwrap();
        arrives(status, &report(r#"{"state": "Arriving"}"#), &there, NOW);
        assert!(under_way(status));
        arrives(status, &report(r#"{"state": "Running"}"#), &there, NOW);
        assert!(!under_way(status) && status.evacuation_node_name.is_none());
        // The source's word comes too late to change that.
        let late = r#"{"state": "Running", "departure": {"migration": "m", "state": "Failed"}}"#;
        assert!(!departs(status, &report(late), NOW));
        assert_eq!(status.migration_state.as_ref().unwrap().failed, None);
        assert_eq!(role(&vmi, "to"), Some(Role::InCharge));
        assert_eq!(role(&vmi, "from"), Some(Role::Left));

        let status = vmi.status.as_mut().unwrap();
        let runs = pod(r#"{"metadata": {}, "status": {"phase": "Running"}}"#);
        complete(status, Some(&runs), NOW);
        assert!(!status.migration_state.as_ref().unwrap().is_over());
        complete(status, None, NOW);
        assert!(status.migration_state.as_ref().unwrap().is_over());
        assert_eq!(in_charge(&vmi), "to", "and it stays so");
    }

    #[test]
    fn a_departure_that_failed_leaves_the_source_in_charge_for_good() {
        let mut vmi = moving();
        let status = vmi.status.as_mut().unwrap();
        let of = |migration: &str, state: &str| {
            report(&format!(
                r#"{{"state": "Running", "departure": {{"migration": "{migration}", "state": "{state}", "message": "why"}}}}"#
            ))
        };
        departs(status, &of("before", "Failed"), NOW);
        assert!(
            under_way(status),
            "another migration's end says nothing of this one"
        );
        departs(status, &of("m", "Moving"), NOW);
        assert!(status.migration_state.as_ref().unwrap().start_timestamp.is_some());
        departs(status, &of("m", "Unconfirmed"), NOW);
        assert!(under_way(status), "it may run there");
        departs(status, &of("m", "Failed"), NOW);
        let there = pod(r#"{"metadata": {"name": "to"}}"#);
        arrives(status, &report(r#"{"state": "Running"}"#), &there, NOW);
        assert_eq!(
            status.migration_state.as_ref().unwrap().failure_reason.as_deref(),
            Some("why")
        );
        assert_eq!(role(&vmi, "from"), Some(Role::InCharge));
    }

    #[test]
    fn a_machine_that_was_moved_has_not_ended() {
        let mut vmi = moving();
        let status = vmi.status.as_mut().unwrap();
        assert!(departs(
            status,
            &report(r#"{"state": "Succeeded", "reason": "Moved"}"#),
            NOW
        ));
        assert!(!departs(
            status,
            &report(r#"{"state": "Succeeded", "reason": "GuestShutdown"}"#),
            NOW
        ));
    }
}
