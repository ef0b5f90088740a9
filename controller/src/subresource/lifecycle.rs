//! What a verb comes to, for a machine as it is. Pure.

use nacelle_api::vm::StateChangeRequest;
use nacelle_api::{VirtualMachine, VirtualMachineInstance, conditions};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Refusal;
use super::route::Operation;
use crate::vm::{Run, Strategy};

/// A verb that takes nothing of its own.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Options {
    pub dry_run: Vec<String>,
}

/// Of `start`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct StartOptions {
    pub paused: bool,
    pub dry_run: Vec<String>,
}

/// Of `stop`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct StopOptions {
    pub grace_period: Option<i64>,
    pub dry_run: Vec<String>,
}

/// Of `restart`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RestartOptions {
    pub grace_period_seconds: Option<i64>,
    pub dry_run: Vec<String>,
}

/// What is written.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    /// The machine's pending requests.
    Requests(Vec<StateChangeRequest>),
    /// A part of the machine's spec.
    Spec(Value),
    /// The instance's grace period.
    Grace(i64),
}

pub(super) fn start(
    vm: &VirtualMachine,
    vmi: Option<&VirtualMachineInstance>,
    options: &StartOptions,
) -> Result<Vec<Change>, Refusal> {
    if matches!(Run::of(vmi), Run::Alive) {
        return Err(Refusal::conflict("VM is already running"));
    }
    let mut request = request("Start", None);
    if options.paused {
        request.data.insert("paused".to_owned(), "true".to_owned());
    }
    match Strategy::of(&vm.spec) {
        // The request first: whoever sees the machine wanted sees that it is wanted paused.
        Strategy::Halted if options.paused => Ok(vec![asked(vm, vec![request])?, wanted(vm, true)]),
        Strategy::Halted => Ok(vec![wanted(vm, true)]),
        Strategy::Manual | Strategy::RerunOnFailure => Ok(vec![asked(vm, vec![request])?]),
        strategy @ (Strategy::Always | Strategy::Once) => Err(Refusal::conflict(format!(
            "{} does not support manual start requests",
            strategy.as_str()
        ))),
    }
}

pub(super) fn stop(
    vm: &VirtualMachine,
    vmi: Option<&VirtualMachineInstance>,
    options: &StopOptions,
) -> Result<Vec<Change>, Refusal> {
    let strategy = Strategy::of(&vm.spec);
    let run = Run::of(vmi);
    let period = vmi
        .and_then(|vmi| vmi.spec.termination_grace_period_seconds)
        .unwrap_or(30);
    let shorter = options
        .grace_period
        .filter(|seconds| (0..period).contains(seconds));
    let grace = || options.grace_period.map(Change::Grace);
    if strategy == Strategy::Halted {
        return match (run, shorter) {
            (Run::Alive | Run::Leaving, Some(seconds)) => Ok(vec![Change::Grace(seconds)]),
            (Run::Alive | Run::Leaving, None) => Err(Refusal::conflict(
                "Halted only supports manual stop requests with a shorter graceperiod",
            )),
            _ => Err(Refusal::conflict("VM is not running")),
        };
    }
    let uid = match (run, vmi) {
        (Run::Alive, Some(vmi)) => vmi.metadata.uid.clone(),
        // A machine that keeps failing is not running, and is to be stopped all the same.
        _ if strategy == Strategy::Always => None,
        _ => return Err(Refusal::conflict("VM is not running")),
    };
    let change = match strategy {
        Strategy::Manual | Strategy::RerunOnFailure => asked(vm, vec![request("Stop", uid)])?,
        _ => wanted(vm, false),
    };
    Ok(grace().into_iter().chain([change]).collect())
}

pub(super) fn restart(
    vm: &VirtualMachine,
    vmi: Option<&VirtualMachineInstance>,
    options: &RestartOptions,
) -> Result<Vec<Change>, Refusal> {
    if options.grace_period_seconds.is_some_and(|seconds| seconds != 0) {
        return Err(Refusal::bad_request(
            "For force restart, only gracePeriod=0 is supported for now",
        ));
    }
    let strategy = Strategy::of(&vm.spec);
    if matches!(strategy, Strategy::Halted | Strategy::Once) {
        let message = format!(
            "RunStrategy {} does not support manual restart requests",
            strategy.as_str()
        );
        return Err(Refusal::conflict(message));
    }
    let Some(vmi) = vmi.filter(|vmi| Run::of(Some(vmi)) == Run::Alive) else {
        return Err(Refusal::conflict("VM is not running"));
    };
    let requests = asked(
        vm,
        vec![request("Stop", vmi.metadata.uid.clone()), request("Start", None)],
    )?;
    let grace = options.grace_period_seconds.map(Change::Grace);
    Ok(grace.into_iter().chain([requests]).collect())
}

/// What the launcher is told.
pub(super) fn command(vmi: &VirtualMachineInstance, operation: Operation) -> Result<&'static str, Refusal> {
    running(vmi).map_err(|_| Refusal::conflict("VMI is not running"))?;
    let paused = is_paused(vmi);
    match operation {
        Operation::Pause if paused => Err(Refusal::conflict("VMI is already paused")),
        Operation::Pause if vmi.spec.liveness_probe.is_some() => Err(Refusal::conflict(
            "Pausing VMIs with LivenessProbe is currently not supported",
        )),
        Operation::Pause => Ok("pause"),
        Operation::Unpause if !paused => Err(Refusal::conflict("VMI is not paused")),
        Operation::Unpause => Ok("resume"),
        _ if paused => Err(Refusal::conflict("VMI is paused")),
        // By the agent; by ACPI, which every machine has, where there is none.
        Operation::SoftReboot if super::agent::connected(vmi).is_ok() => Ok("softreboot"),
        Operation::SoftReboot => Ok("reboot"),
        _ => Ok("reset"),
    }
}

/// Whether there is a console to connect to. virtctl tries again while this is a 400.
pub(super) fn console(vmi: &VirtualMachineInstance) -> Result<(), Refusal> {
    if vmi.spec.domain.devices.autoattach_serial_console == Some(false) {
        return Err(Refusal::bad_request("No serial consoles are present."));
    }
    running(vmi)
}

/// Whether the guest's ports can be reached.
pub(super) fn reachable(vmi: &VirtualMachineInstance) -> Result<(), Refusal> {
    running(vmi)?;
    if is_paused(vmi) {
        return Err(Refusal::conflict("VMI is paused"));
    }
    Ok(())
}

fn is_paused(vmi: &VirtualMachineInstance) -> bool {
    vmi.status
        .as_ref()
        .is_some_and(|status| conditions::is_true(&status.conditions, "Paused"))
}

pub(super) fn running(vmi: &VirtualMachineInstance) -> Result<(), Refusal> {
    match vmi.status.as_ref().and_then(|status| status.phase.as_deref()) {
        Some("Running") => Ok(()),
        _ => Err(Refusal::bad_request("VMI is not running")),
    }
}

fn request(action: &str, uid: Option<String>) -> StateChangeRequest {
    StateChangeRequest {
        action: action.to_owned(),
        uid,
        ..StateChangeRequest::default()
    }
}

/// Requests are made one after the other.
fn asked(vm: &VirtualMachine, requests: Vec<StateChangeRequest>) -> Result<Change, Refusal> {
    let pending = vm
        .status
        .as_ref()
        .is_some_and(|status| !status.state_change_requests.is_empty());
    if pending {
        return Err(Refusal::conflict(
            "unable to complete request: stop/start already underway",
        ));
    }
    Ok(Change::Requests(requests))
}

/// The spec says whether it runs in one of two ways, and keeps its way.
fn wanted(vm: &VirtualMachine, run: bool) -> Change {
    Change::Spec(match vm.spec.running {
        Some(_) => json!({"running": run}),
        None => json!({"runStrategy": if run { "Always" } else { "Halted" }}),
    })
}

#[cfg(test)]
mod tests {
    use nacelle_api::vm::VirtualMachineStatus;
    use nacelle_api::vmi::VirtualMachineInstanceStatus;

    use super::*;

    fn vm(strategy: &str) -> VirtualMachine {
        let mut vm = VirtualMachine::new("a", Default::default());
        vm.spec.run_strategy = Some(strategy.to_owned());
        vm
    }

    fn vmi(phase: &str) -> VirtualMachineInstance {
        let mut vmi = VirtualMachineInstance::new("a", Default::default());
        vmi.metadata.uid = Some("1".into());
        vmi.status = Some(VirtualMachineInstanceStatus {
            phase: Some(phase.to_owned()),
            ..VirtualMachineInstanceStatus::default()
        });
        vmi
    }

    fn message<T: std::fmt::Debug>(result: Result<T, Refusal>) -> (u16, String) {
        let refusal = result.unwrap_err();
        (refusal.code.as_u16(), refusal.message)
    }

    #[test]
    fn starting_depends_on_the_strategy() {
        let options = StartOptions::default();
        assert_eq!(
            start(&vm("Halted"), None, &options),
            Ok(vec![Change::Spec(json!({"runStrategy": "Always"}))])
        );
        let mut old = vm("");
        old.spec.run_strategy = None;
        old.spec.running = Some(false);
        assert_eq!(
            start(&old, None, &options),
            Ok(vec![Change::Spec(json!({"running": true}))])
        );
        assert_eq!(
            start(&vm("Manual"), None, &options),
            Ok(vec![Change::Requests(vec![request("Start", None)])])
        );
        let always = message(start(&vm("Always"), None, &options));
        assert_eq!(
            always,
            (409, "Always does not support manual start requests".into())
        );
        let running = message(start(&vm("Manual"), Some(&vmi("Running")), &options));
        assert_eq!(running, (409, "VM is already running".into()));
        let paused = StartOptions {
            paused: true,
            ..StartOptions::default()
        };
        assert_eq!(start(&vm("Halted"), None, &paused).unwrap().len(), 2);
    }

    #[test]
    fn stopping_depends_on_the_strategy() {
        let options = StopOptions::default();
        let running = vmi("Running");
        let stopped = stop(&vm("Always"), Some(&running), &options);
        assert_eq!(stopped, Ok(vec![Change::Spec(json!({"runStrategy": "Halted"}))]));
        let asked = stop(&vm("Manual"), Some(&running), &options);
        assert_eq!(
            asked,
            Ok(vec![Change::Requests(vec![request("Stop", Some("1".into()))])])
        );
        assert_eq!(
            message(stop(&vm("Manual"), None, &options)),
            (409, "VM is not running".into())
        );
        let halted = message(stop(&vm("Halted"), Some(&running), &options));
        assert_eq!(
            halted.1,
            "Halted only supports manual stop requests with a shorter graceperiod"
        );
        let now = StopOptions {
            grace_period: Some(0),
            ..StopOptions::default()
        };
        assert_eq!(
            stop(&vm("Halted"), Some(&running), &now),
            Ok(vec![Change::Grace(0)])
        );
        assert_eq!(
            stop(&vm("Always"), Some(&running), &now).unwrap().first(),
            Some(&Change::Grace(0))
        );
    }

    #[test]
    fn restarting_is_a_stop_of_this_instance_and_a_start() {
        let running = vmi("Running");
        let options = RestartOptions::default();
        let expected = vec![request("Stop", Some("1".into())), request("Start", None)];
        assert_eq!(
            restart(&vm("Always"), Some(&running), &options),
            Ok(vec![Change::Requests(expected)])
        );
        let forced = RestartOptions {
            grace_period_seconds: Some(5),
            ..RestartOptions::default()
        };
        let refused = message(restart(&vm("Always"), Some(&running), &forced));
        assert_eq!(
            refused,
            (
                400,
                "For force restart, only gracePeriod=0 is supported for now".into()
            )
        );
        let halted = message(restart(&vm("Halted"), Some(&running), &options));
        assert_eq!(
            halted,
            (
                409,
                "RunStrategy Halted does not support manual restart requests".into()
            )
        );
        let mut busy = vm("Always");
        busy.status = Some(VirtualMachineStatus {
            state_change_requests: vec![request("Start", None)],
            ..VirtualMachineStatus::default()
        });
        let underway = message(restart(&busy, Some(&running), &options));
        assert_eq!(
            underway.1,
            "unable to complete request: stop/start already underway"
        );
    }

    #[test]
    fn pausing_twice_is_a_conflict() {
        let mut running = vmi("Running");
        assert_eq!(command(&running, Operation::Pause), Ok("pause"));
        assert_eq!(command(&running, Operation::SoftReboot), Ok("reboot"));
        assert_eq!(
            message(command(&running, Operation::Unpause)),
            (409, "VMI is not paused".into())
        );
        let list = &mut running.status.as_mut().unwrap().conditions;
        conditions::set(list, "AgentConnected", true, "", "", Default::default());
        assert_eq!(command(&running, Operation::SoftReboot), Ok("softreboot"));
        let list = &mut running.status.as_mut().unwrap().conditions;
        conditions::set(list, "Paused", true, "PausedByUser", "", Default::default());
        assert_eq!(
            message(command(&running, Operation::Pause)),
            (409, "VMI is already paused".into())
        );
        assert_eq!(command(&running, Operation::Unpause), Ok("resume"));
        for operation in [Operation::Reset, Operation::SoftReboot] {
            assert_eq!(
                message(command(&running, operation)),
                (409, "VMI is paused".into())
            );
        }
        assert_eq!(
            message(console(&vmi("Scheduled"))),
            (400, "VMI is not running".into())
        );
    }
}
