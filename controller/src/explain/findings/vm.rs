//! What there is to say of a machine itself.

use nacelle_api::VirtualMachine;
use nacelle_api::vm::VirtualMachineStatus;

use super::super::{Finding, Link, Weight, World};
use super::{said, true_};
use crate::vm::{Run, Strategy};

/// The first of the chain.
pub(super) fn machine(vm: &VirtualMachine, world: &World) -> Link {
    let strategy = Strategy::of(&vm.spec);
    let status = vm.status.clone().unwrap_or_default();
    let mut findings = Vec::new();
    if let Some(since) = &vm.metadata.deletion_timestamp {
        let message = "it is being deleted: its instance goes first, then its finalizers";
        findings.push(Finding::new(Weight::Waits, "Terminating", message).since(Some(since)));
    }
    findings.extend(not_started(strategy, &status, world));
    if let Some(failure) = true_(&status.conditions, "Failure") {
        findings.push(said(Weight::Stuck, failure).next(of_failure(failure.message.as_deref())));
    }
    findings.extend(back_off(&status, world));
    if let Some(restart) = true_(&status.conditions, "RestartRequired") {
        let next = format!("virtctl restart {}, when it suits", name(vm));
        findings.push(said(Weight::Note, restart).next(next));
    }
    Link {
        kind: "VirtualMachine",
        name: name(vm).to_owned(),
        state: format!("runStrategy {}", strategy.as_str()),
        since: vm.metadata.creation_timestamp.as_ref().map(|time| time.0),
        findings,
    }
}

fn name(vm: &VirtualMachine) -> &str {
    vm.metadata.name.as_deref().unwrap_or_default()
}

/// Why there is no instance that lives, where nothing went wrong.
fn not_started(strategy: Strategy, status: &VirtualMachineStatus, world: &World) -> Option<Finding> {
    let vm = world.vm.as_ref().map(name).unwrap_or_default();
    let run = Run::of(world.vmi.as_ref());
    if let Some(request) = status.state_change_requests.first() {
        let message = format!(
            "a {} was asked for and is not done yet",
            request.action.to_lowercase()
        );
        return Some(Finding::new(
            Weight::Waits,
            format!("{}Requested", request.action),
            message,
        ));
    }
    let idle = matches!(run, Run::Absent | Run::Ended { .. });
    if !idle {
        return None;
    }
    let start = format!("virtctl start {vm}");
    let ended = run != Run::Absent;
    let (reason, message) = match strategy {
        Strategy::Halted => ("Halted", "it is not to run"),
        Strategy::Manual => ("NotStarted", "it runs when somebody starts it"),
        Strategy::RerunOnFailure if ended => (
            "PoweredOff",
            "its guest powered off, and it is started again only after a failure",
        ),
        Strategy::Once if ended => {
            let message = "it ran once, and is not started again";
            let next = "to run it once more, make another machine, or change spec.runStrategy";
            return Some(Finding::new(Weight::Note, "RanOnce", message).next(next));
        }
        _ => return None,
    };
    Some(Finding::new(Weight::Note, reason, message).next(start))
}

/// What helps against a refusal: the API server's words say which it is.
fn of_failure(message: Option<&str>) -> &'static str {
    let message = message.unwrap_or_default();
    // The first that fits.
    let table = [
        (
            "exceeded quota",
            "raise the namespace's ResourceQuota, or stop what it is spent on (kubectl describe quota)",
        ),
        (
            "another instance has this machine's name",
            "delete the instance of this name, or give the machine another name",
        ),
        (
            "Failure to find",
            "make what is named, or name another instance type or preference (kubectl get vmclusterinstancetype,vmclusterpreference)",
        ),
        (
            "conflicts with selected",
            "take the field out of the machine, or name no instance type",
        ),
        (
            "preference requires",
            "name a larger instance type, or another preference",
        ),
        (
            "DataVolume",
            "kubectl describe dv; the machine's dataVolumeTemplates say what it is made of",
        ),
    ];
    let found = table.iter().find(|(words, _)| message.contains(words));
    found.map_or(
        "change what it says; it is tried again every 10 seconds",
        |(_, next)| next,
    )
}

/// It failed before it ran, and is to fail a little later next time.
fn back_off(status: &VirtualMachineStatus, world: &World) -> Option<Finding> {
    let failure = status.start_failure.as_ref()?;
    let count = failure.consecutive_fail_count.unwrap_or(1);
    let again = failure.retry_after_timestamp.as_ref();
    let again = again.map(|time| format!("; the next attempt is not before {}", time.0));
    let times = if count == 1 {
        "once".to_owned()
    } else {
        format!("{count} times in a row")
    };
    let message = format!(
        "it failed {times} before its guest ran{}",
        again.unwrap_or_default()
    );
    let vm = world.vm.as_ref().map(name).unwrap_or_default();
    let next = format!(
        "kubectl describe vmi {vm}, or kubectl get events --field-selector involvedObject.name={vm}, say why"
    );
    Some(Finding::new(Weight::Stuck, "CrashLoopBackOff", message).next(next))
}
