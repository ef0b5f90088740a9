//! What to do next about a machine: create its instance, delete it, or wait. Pure.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use nacelle_api::vm::{StartFailure, StateChangeRequest, VirtualMachineSpec, VirtualMachineStatus};
use nacelle_api::{VirtualMachine, VirtualMachineInstance};
use sha2::{Digest, Sha256};

/// Seconds before a machine that failed for the n-th time is started again: this times n², and up to half more.
const BACK_OFF: i64 = 10;
/// Seconds that it never takes longer than.
const BACK_OFF_MAX: i64 = 300;

/// When a machine should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Always: it is started again whenever it ended.
    Always,
    /// Until it powers off by itself.
    RerunOnFailure,
    /// As people say.
    Manual,
    /// Never.
    Halted,
    /// Once.
    Once,
}

impl Strategy {
    /// What the spec says; a value that admission refuses counts as `Halted`.
    pub fn of(spec: &VirtualMachineSpec) -> Self {
        match (spec.running, spec.run_strategy.as_deref()) {
            (Some(true), _) | (None, Some("Always")) => Strategy::Always,
            (None, Some("RerunOnFailure")) => Strategy::RerunOnFailure,
            (None, Some("Manual")) => Strategy::Manual,
            (None, Some("Once")) => Strategy::Once,
            _ => Strategy::Halted,
        }
    }

    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Strategy::Always => "Always",
            Strategy::RerunOnFailure => "RerunOnFailure",
            Strategy::Manual => "Manual",
            Strategy::Halted => "Halted",
            Strategy::Once => "Once",
        }
    }
}

/// What becomes of a machine's instance, as far as plans go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// There is none.
    Absent,
    /// It is being deleted.
    Leaving,
    /// It ended, well or not.
    Ended {
        /// Whether it failed.
        failed: bool,
    },
    /// It runs, or is about to.
    Alive,
}

impl Run {
    /// Of the instance that there is.
    pub fn of(vmi: Option<&VirtualMachineInstance>) -> Self {
        let Some(vmi) = vmi else {
            return Run::Absent;
        };
        if vmi.metadata.deletion_timestamp.is_some() {
            return Run::Leaving;
        }
        match vmi.status.as_ref().and_then(|status| status.phase.as_deref()) {
            Some("Succeeded") => Run::Ended { failed: false },
            Some("Failed") => Run::Ended { failed: true },
            _ => Run::Alive,
        }
    }
}

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing, until something changes.
    Nothing,
    /// Nothing, for so long.
    Wait(Duration),
    /// Make an instance; it may have to wait for `unpause` before it runs.
    Create {
        /// Whether it is made paused.
        paused: bool,
    },
    /// Delete the instance.
    Delete,
}

/// What to do, and what of the status follows from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The next thing to do.
    pub action: Action,
    /// Requests that are still to be done.
    pub requests: Vec<StateChangeRequest>,
    /// The failures so far.
    pub start_failure: Option<StartFailure>,
}

/// Decides. `now` only matters for waiting after failures.
pub fn plan(vm: &VirtualMachine, vmi: Option<&VirtualMachineInstance>, now: Timestamp) -> Plan {
    let none = VirtualMachineStatus::default();
    let status = vm.status.as_ref().unwrap_or(&none);
    let strategy = Strategy::of(&vm.spec);
    let run = Run::of(vmi);
    let mut requests = pending(&status.state_change_requests, vmi, run);
    let start_failure = failures(status.start_failure.as_ref(), vmi, now);
    // What is new to this strategy: the machine was not run under it yet.
    let new = status.run_strategy.as_deref() != Some(strategy.as_str());
    let first = requests.first().map(|request| request.action.as_str());

    let action = match (strategy, run, first) {
        (_, Run::Leaving, _) | (Strategy::Halted, Run::Absent, _) => Action::Nothing,
        (Strategy::Halted, _, _) | (_, Run::Alive | Run::Ended { .. }, Some("Stop")) => Action::Delete,
        (_, Run::Alive, _) => Action::Nothing,
        (Strategy::Always, Run::Absent, _) => Action::Create { paused: false },
        (Strategy::Always, Run::Ended { .. }, _) => Action::Delete,
        (Strategy::RerunOnFailure, Run::Ended { failed: true }, _) => {
            if first != Some("Start") {
                requests.insert(0, start());
            }
            Action::Delete
        }
        (Strategy::RerunOnFailure | Strategy::Manual, Run::Absent, Some("Start")) => {
            Action::Create { paused: false }
        }
        (Strategy::RerunOnFailure | Strategy::Manual, Run::Ended { .. }, Some("Start")) => Action::Delete,
        (Strategy::RerunOnFailure | Strategy::Once, Run::Absent, _) if new => {
            Action::Create { paused: false }
        }
        _ => Action::Nothing,
    };
    let action = match action {
        Action::Create { .. } => match wait(start_failure.as_ref(), now) {
            Some(wait) => Action::Wait(wait),
            None => {
                let request = requests
                    .first()
                    .filter(|request| request.action == "Start")
                    .cloned();
                if request.is_some() {
                    requests.remove(0);
                }
                let paused =
                    request.is_some_and(|request| request.data.get("paused").is_some_and(|v| v == "true"));
                Action::Create { paused }
            }
        },
        other => other,
    };
    Plan {
        action,
        requests,
        start_failure,
    }
}

fn start() -> StateChangeRequest {
    StateChangeRequest {
        action: "Start".to_owned(),
        ..StateChangeRequest::default()
    }
}

/// Requests that are not done yet: a stop is when its instance is gone, a start when there is an instance.
fn pending(
    requests: &[StateChangeRequest],
    vmi: Option<&VirtualMachineInstance>,
    run: Run,
) -> Vec<StateChangeRequest> {
    let uid = vmi.and_then(|vmi| vmi.metadata.uid.as_deref());
    let done = |request: &&StateChangeRequest| match request.action.as_str() {
        "Stop" => uid.is_none() || (request.uid.is_some() && request.uid.as_deref() != uid),
        _ => run == Run::Alive,
    };
    requests.iter().skip_while(done).cloned().collect()
}

/// Failures in a row before the machine ran: one more for an instance that failed and was not counted yet.
fn failures(
    so_far: Option<&StartFailure>,
    vmi: Option<&VirtualMachineInstance>,
    now: Timestamp,
) -> Option<StartFailure> {
    let Some(vmi) = vmi else {
        return so_far.cloned();
    };
    let status = vmi.status.as_ref();
    let ran = status.is_some_and(|status| {
        status.phase.as_deref() == Some("Running")
            || status
                .phase_transition_timestamps
                .iter()
                .any(|transition| transition.phase == "Running")
    });
    if ran {
        return None;
    }
    let failed = status.and_then(|status| status.phase.as_deref()) == Some("Failed");
    let uid = vmi.metadata.uid.clone();
    let counted = so_far.is_some_and(|failure| failure.last_failed_vmi_uid == uid);
    if !failed || counted {
        return so_far.cloned();
    }
    let count = so_far
        .and_then(|failure| failure.consecutive_fail_count)
        .unwrap_or(0)
        .saturating_add(1);
    let base = i64::from(count)
        .saturating_mul(i64::from(count))
        .saturating_mul(BACK_OFF)
        .min(BACK_OFF_MAX);
    // Spread by the instance's UID, so that a rack that lost power does not come back in step.
    let spread = Sha256::digest(uid.as_deref().unwrap_or_default())
        .first()
        .copied()
        .unwrap_or(0);
    let seconds = (base + base * i64::from(spread) / 512).min(BACK_OFF_MAX);
    Some(StartFailure {
        consecutive_fail_count: Some(count),
        last_failed_vmi_uid: uid,
        retry_after_timestamp: Some(Time(now + SignedDuration::from_secs(seconds))),
    })
}

fn wait(failure: Option<&StartFailure>, now: Timestamp) -> Option<Duration> {
    let after = failure?.retry_after_timestamp.as_ref()?.0;
    Duration::try_from(after.duration_since(now))
        .ok()
        .filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests;
