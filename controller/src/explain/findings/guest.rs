//! What there is to say of an instance: what its controller and its launcher report.

use nacelle_api::VirtualMachineInstance;
use nacelle_api::vmi::VirtualMachineInstanceStatus;
use serde::Deserialize;

use super::super::{Finding, Link, Weight, World};
use super::{conditions, false_, said, true_};
use crate::migration::plan::phase_of;
use crate::vmi::moving;
use crate::vmi::status::CREDENTIALS;
use crate::volumes::status::{READY, VolumeStatus};

/// The second of the chain.
pub(super) fn instance(vmi: &VirtualMachineInstance, world: &World) -> Link {
    let name = vmi.metadata.name.clone().unwrap_or_default();
    let status = vmi.status.clone().unwrap_or_default();
    let phase = status.phase.clone().unwrap_or_default();
    let list = &status.conditions;
    let mut findings = Vec::new();
    if let Some(since) = &vmi.metadata.deletion_timestamp {
        let grace = vmi.spec.termination_grace_period_seconds.unwrap_or(30);
        let message = format!("it is being stopped: its guest has {grace} s to power off");
        let next = format!("virtctl stop {name} --force --grace-period=0 pulls the plug");
        findings.push(
            Finding::new(Weight::Waits, "Stopping", message)
                .since(Some(since))
                .next(next),
        );
    }
    if let Some(unfilled) = false_(list, "DataVolumesReady") {
        findings.push(said(Weight::Waits, unfilled));
    }
    // A pod that cannot be scheduled tells it itself.
    if let Some(failure) = false_(list, "Synchronized") {
        findings.push(failed(&name, said(Weight::Stuck, failure)));
    } else if phase == "Failed" {
        let reason = status.reason.clone().unwrap_or_else(|| "Failed".to_owned());
        let message = match reason.as_str() {
            "PodNotExists" => "its pod is gone: deleted, or evicted with its node",
            _ => "it has failed",
        };
        findings.push(Finding::new(Weight::Stuck, reason, message));
    }
    if let Some(paused) = true_(list, "Paused") {
        let next = match paused.reason.as_deref() {
            Some("PausedIOError") => {
                format!("make room where its disks are, or mend them, and then: virtctl unpause vmi {name}")
            }
            _ => format!("virtctl unpause vmi {name}"),
        };
        let weight = if paused.reason.as_deref() == Some("PausedIOError") {
            Weight::Stuck
        } else {
            Weight::Note
        };
        findings.push(said(weight, paused).next(next));
    }
    findings.extend(moves(&status).or_else(|| to_move(world)));
    findings.extend(plugged(&status));
    if let Some(credentials) = false_(list, CREDENTIALS) {
        let next = "the guest's agent sets keys and passwords: is it there, and does the user exist?";
        findings.push(said(Weight::Stuck, credentials).next(next));
    }
    if phase == "Running" && true_(list, "AgentConnected").is_none() {
        let message =
            "no guest agent answers: no OS info, no addresses of its own, no freeze, no exec probes";
        let next = "install qemu-guest-agent in the guest, or do without";
        findings.push(Finding::new(Weight::Note, "AgentAbsent", message).next(next));
    }
    if phase == "Running"
        && let Some(stays) = false_(list, "LiveMigratable")
    {
        findings.push(said(Weight::Note, stays));
    }
    let entered = status
        .phase_transition_timestamps
        .iter()
        .rev()
        .find(|entered| entered.phase == phase);
    Link {
        kind: "VirtualMachineInstance",
        name,
        since: entered.map(|entered| entered.phase_transition_timestamp.0),
        state: if phase.is_empty() {
            "not looked at yet".to_owned()
        } else {
            phase
        },
        findings,
    }
}

/// What to do about an instance that is not as it should be.
fn failed(name: &str, finding: Finding) -> Finding {
    let next = match finding.reason.as_str() {
        // The claim and the container say it themselves.
        "FailedPvcNotFound" | "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName"
        | "CreateContainerConfigError" => return finding,
        "FailedCreate" => "change what it says; it is tried again every 10 seconds".to_owned(),
        "NodeUnresponsive" => "is the node down? fence it before its disks are used elsewhere; with runStrategy Always it is started again".to_owned(),
        "GuestCrashed" | "MachineFailed" | "StartFailed" | "Killed" | "WatchdogExpired" => {
            format!("kubectl logs -l vm.kubevirt.io/name={name} -c compute --tail=20 has its last words, -c guest-console-log the guest's")
        }
        _ => format!("kubectl describe vmi {name}"),
    };
    finding.next(next)
}

/// A migration that is under way, or came to nothing.
fn moves(status: &VirtualMachineInstanceStatus) -> Option<Finding> {
    let state = status.migration_state.as_ref()?;
    let target = state.target_node.as_deref().unwrap_or("another node");
    if moving::under_way(status) {
        let mode = state
            .mode
            .as_deref()
            .map(|mode| format!(" ({mode})"))
            .unwrap_or_default();
        let message = format!("it moves to {target}{mode}");
        return Some(Finding::new(Weight::Waits, "Migrating", message).since(state.start_timestamp.as_ref()));
    }
    (state.failed == Some(true)).then(|| {
        let why = state.failure_reason.as_deref().unwrap_or("nobody said why");
        let message = format!("it was to move to {target} and stayed: {why}");
        Finding::new(Weight::Note, "MigrationFailed", message).since(state.end_timestamp.as_ref())
    })
}

/// A migration that has not begun.
fn to_move(world: &World) -> Option<Finding> {
    let migration = world.migrations.first()?;
    let name = migration.metadata.name.as_deref().unwrap_or_default();
    let phase = match phase_of(migration) {
        "" => "Pending",
        phase => phase,
    };
    let message = format!("migration {name} is {phase}: it waits for its turn, or for a pod to go to");
    let next = format!("kubectl describe vmim {name}; virtctl migrate-cancel calls it off");
    let finding = Finding::new(Weight::Waits, "ToMigrate", message).next(next);
    Some(finding.since(migration.metadata.creation_timestamp.as_ref()))
}

/// Volumes that are plugged in and are not with the guest.
fn plugged(status: &VirtualMachineInstanceStatus) -> Vec<Finding> {
    let volumes = status.volume_status.iter().filter_map(|volume| {
        let volume = serde_json::to_value(volume).ok()?;
        VolumeStatus::deserialize(volume).ok()
    });
    let waiting = volumes.filter(|volume| volume.hotplug_volume.is_some() && !volume.is(READY));
    waiting
        .map(|volume| {
            let phase = volume.phase.unwrap_or_default();
            let why = volume.message.or(volume.reason).unwrap_or_else(|| phase.clone());
            let message = format!("volume {} is not with the guest: {why}", volume.name);
            Finding::new(Weight::Waits, phase, message)
        })
        .collect()
}

/// What a status says of its guest.
pub(super) fn monitor(status: &VirtualMachineInstanceStatus) -> Option<&'static str> {
    let paused = conditions::is_true(&status.conditions, "Paused");
    match status.phase.as_deref()? {
        "Running" if paused => Some("its guest is paused"),
        "Running" => Some("its guest runs"),
        _ => None,
    }
}
