use nacelle_api::vmi::{PhaseTransition, VirtualMachineInstanceStatus};

use super::*;

const CREATE: Action = Action::Create { paused: false };

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn vm(strategy: &str) -> VirtualMachine {
    let mut vm = VirtualMachine::new("a", VirtualMachineSpec::default());
    vm.spec.run_strategy = Some(strategy.to_owned());
    vm.status = Some(VirtualMachineStatus::default());
    vm
}

/// The same machine after this strategy was acted upon.
fn seen(strategy: &str) -> VirtualMachine {
    let mut vm = vm(strategy);
    vm.status.as_mut().unwrap().run_strategy = Some(strategy.to_owned());
    vm
}

fn asked(mut vm: VirtualMachine, requests: &[(&str, Option<&str>)]) -> VirtualMachine {
    vm.status.as_mut().unwrap().state_change_requests = requests
        .iter()
        .map(|(action, uid)| StateChangeRequest {
            action: (*action).to_owned(),
            uid: uid.map(str::to_owned),
            ..StateChangeRequest::default()
        })
        .collect();
    vm
}

fn vmi(uid: &str, phases: &[&str]) -> VirtualMachineInstance {
    let mut vmi = VirtualMachineInstance::new("a", Default::default());
    vmi.metadata.uid = Some(uid.to_owned());
    vmi.status = Some(VirtualMachineInstanceStatus {
        phase: phases.last().map(|phase| (*phase).to_owned()),
        phase_transition_timestamps: phases
            .iter()
            .map(|phase| PhaseTransition {
                phase: (*phase).to_owned(),
                phase_transition_timestamp: Time(now()),
            })
            .collect(),
        ..VirtualMachineInstanceStatus::default()
    });
    vmi
}

fn action(vm: &VirtualMachine, vmi: Option<&VirtualMachineInstance>) -> Action {
    plan(vm, vmi, now()).action
}

#[test]
fn each_strategy_does_what_its_name_says() {
    let running = vmi("1", &["Pending", "Running"]);
    let off = vmi("1", &["Pending", "Running", "Succeeded"]);
    let crashed = vmi("1", &["Pending", "Running", "Failed"]);
    #[rustfmt::skip]
    let table = [
        // strategy       first time  seen before      running          powered off      crashed
        ("Always",         CREATE, CREATE,          Action::Nothing, Action::Delete,  Action::Delete),
        ("RerunOnFailure", CREATE, Action::Nothing, Action::Nothing, Action::Nothing, Action::Delete),
        ("Manual",         Action::Nothing, Action::Nothing, Action::Nothing, Action::Nothing, Action::Nothing),
        ("Halted",         Action::Nothing, Action::Nothing, Action::Delete, Action::Delete, Action::Delete),
        ("Once",           CREATE, Action::Nothing, Action::Nothing, Action::Nothing, Action::Nothing),
    ];
    for (strategy, first, again, alive, ended, failed) in table {
        assert_eq!(action(&vm(strategy), None), first, "{strategy}, first time");
        assert_eq!(action(&seen(strategy), None), again, "{strategy}, again");
        assert_eq!(
            action(&seen(strategy), Some(&running)),
            alive,
            "{strategy}, running"
        );
        assert_eq!(
            action(&seen(strategy), Some(&off)),
            ended,
            "{strategy}, powered off"
        );
        assert_eq!(
            action(&seen(strategy), Some(&crashed)),
            failed,
            "{strategy}, crashed"
        );
    }
}

#[test]
fn running_is_the_old_way_to_say_it() {
    let mut vm = vm("");
    vm.spec.run_strategy = None;
    vm.spec.running = Some(true);
    assert_eq!(Strategy::of(&vm.spec), Strategy::Always);
    vm.spec.running = Some(false);
    assert_eq!(Strategy::of(&vm.spec), Strategy::Halted);
}

#[test]
fn a_crash_is_run_again_though_the_controller_forgets_all_but_the_status() {
    let crashed = vmi("1", &["Pending", "Running", "Failed"]);
    let mut vm = seen("RerunOnFailure");
    let first = plan(&vm, Some(&crashed), now());
    assert_eq!((first.action, first.requests.len()), (Action::Delete, 1));
    vm.status.as_mut().unwrap().state_change_requests = first.requests;
    assert_eq!(plan(&vm, Some(&crashed), now()).requests.len(), 1, "asked once");
    let then = plan(&vm, None, now());
    assert_eq!((then.action, then.requests.len()), (CREATE, 0));
}

#[test]
fn a_restart_is_a_stop_of_this_instance_and_then_a_start() {
    let old = vmi("1", &["Running"]);
    let mut leaving = old.clone();
    leaving.metadata.deletion_timestamp = Some(Time(now()));
    for strategy in ["Always", "Manual", "RerunOnFailure"] {
        let vm = asked(seen(strategy), &[("Stop", Some("1")), ("Start", None)]);
        assert_eq!(action(&vm, Some(&old)), Action::Delete);
        let waiting = plan(&vm, Some(&leaving), now());
        assert_eq!((waiting.action, waiting.requests.len()), (Action::Nothing, 2));
        let gone = plan(&vm, None, now());
        assert_eq!((gone.action, gone.requests.len()), (CREATE, 0), "{strategy}");
        // The next instance is not the one that was meant.
        let next = plan(&vm, Some(&vmi("2", &["Running"])), now());
        assert_eq!((next.action, next.requests.len()), (Action::Nothing, 0));
    }
}

#[test]
fn a_start_may_ask_for_a_pause() {
    let mut vm = asked(seen("Manual"), &[("Start", None)]);
    vm.status.as_mut().unwrap().state_change_requests[0]
        .data
        .insert("paused".into(), "true".into());
    assert_eq!(action(&vm, None), Action::Create { paused: true });
}

#[test]
fn a_machine_that_never_comes_up_is_tried_less_and_less_often() {
    let mut vm = seen("Always");
    let mut waits = Vec::new();
    for n in 1..=7 {
        let failed = vmi(&n.to_string(), &["Pending", "Scheduling", "Failed"]);
        let counted = plan(&vm, Some(&failed), now());
        vm.status.as_mut().unwrap().start_failure = counted.start_failure.clone();
        let again = plan(&vm, Some(&failed), now());
        assert_eq!(
            again.start_failure, counted.start_failure,
            "an instance counts once"
        );
        let Action::Wait(wait) = plan(&vm, None, now()).action else {
            panic!("no wait after {n} failures");
        };
        waits.push(wait.as_secs());
    }
    for (wait, base) in waits.iter().zip([10, 40, 90, 160, 250, 300, 300]) {
        assert!((base..=(base + base / 2).min(300)).contains(wait), "{waits:?}");
    }
    let later = now() + SignedDuration::from_secs(301);
    assert_eq!(plan(&vm, None, later).action, CREATE);
    let up = plan(&vm, Some(&vmi("8", &["Pending", "Running"])), now());
    assert_eq!(up.start_failure, None, "who runs has no failures");
}
