//! What is reported of a machine. Pure.

use k8s_openapi::jiff::Timestamp;
use nacelle_api::conditions::{self, Condition};
use nacelle_api::vm::VirtualMachineStatus;
use nacelle_api::{VirtualMachine, VirtualMachineInstance};

use super::data_volumes::Volumes;
use super::plan::{Plan, Run, Strategy};
use crate::VM_GENERATION;
use crate::instancetype::Pins;

/// Conditions of an instance that its machine shows too.
const MIRRORED: [&str; 4] = ["AgentConnected", "LiveMigratable", "Paused", "Synchronized"];

/// What the reconciler found out.
pub struct Found<'a> {
    /// The instance, if there is one.
    pub vmi: Option<&'a VirtualMachineInstance>,
    /// What was decided.
    pub plan: &'a Plan,
    /// What the machine is made of beside its template, where that is known.
    pub pins: Option<&'a Pins>,
    /// Why the decision could not be carried out.
    pub failure: Option<(&'static str, String)>,
    /// Whether the template is another than the instance was made of.
    pub changed: bool,
    /// How its DataVolumes are.
    pub volumes: &'a Volumes,
}

/// The status that follows.
pub fn status(vm: &VirtualMachine, found: &Found<'_>, now: Timestamp) -> VirtualMachineStatus {
    let mut status = vm.status.clone().unwrap_or_default();
    let vmi = found.vmi;
    status.created = Some(vmi.is_some());
    status.ready = Some(vmi.is_some_and(|vmi| conditions::is_true(of(vmi), "Ready")));
    status.state_change_requests.clone_from(&found.plan.requests);
    status.start_failure.clone_from(&found.plan.start_failure);
    status.run_strategy = Some(Strategy::of(&vm.spec).as_str().to_owned());
    status.desired_generation = vm.metadata.generation;
    status.observed_generation = vmi
        .and_then(|vmi| {
            vmi.metadata
                .annotations
                .as_ref()?
                .get(VM_GENERATION)?
                .parse()
                .ok()
        })
        .or(vm.metadata.generation);
    if let Some(pins) = found.pins {
        status.instancetype_ref.clone_from(&pins.instancetype);
        status.preference_ref.clone_from(&pins.preference);
    }
    let list = &mut status.conditions;
    match vmi.and_then(|vmi| conditions::find(of(vmi), "Ready")) {
        Some(ready) => mirror(list, ready, now),
        None if vmi.is_none() => {
            conditions::set(list, "Ready", false, "VMINotExists", "VMI does not exist", now);
        }
        None => conditions::set(
            list,
            "Ready",
            false,
            "GuestNotRunning",
            "Guest VM is not reported as running",
            now,
        ),
    }
    for type_ in MIRRORED {
        match vmi.and_then(|vmi| conditions::find(of(vmi), type_)) {
            Some(condition) => mirror(list, condition, now),
            None => conditions::clear(list, type_),
        }
    }
    match &found.failure {
        Some((reason, message)) => conditions::set(list, "Failure", true, reason, message, now),
        None => conditions::clear(list, "Failure"),
    }
    match found.volumes.hindrance() {
        Some(message) => conditions::set(list, "DataVolumesReady", false, "NotAllDVsReady", &message, now),
        None => conditions::clear(list, "DataVolumesReady"),
    }
    if found.changed {
        let message = "a non-live-updatable field was changed in the template spec";
        conditions::set(list, "RestartRequired", true, "RestartRequired", message, now);
    } else {
        conditions::clear(list, "RestartRequired");
    }
    status.printable_status = Some(printable(vm, vmi, found.plan, found.volumes).to_owned());
    status
}

/// What people are told of a change, as events: whether it is a warning, a word, a sentence.
pub fn said(
    old: &VirtualMachineStatus,
    new: &VirtualMachineStatus,
) -> impl Iterator<Item = (bool, &'static str, String)> {
    let held = |status: &VirtualMachineStatus| {
        let condition = conditions::find(&status.conditions, "DataVolumesReady");
        condition.and_then(|condition| condition.message.clone())
    };
    let fails = |status: &VirtualMachineStatus| status.printable_status.as_deref() == Some("DataVolumeError");
    let volumes = held(new).filter(|why| held(old).as_ref() != Some(why));
    let volumes = volumes.map(|why| match fails(new) {
        true => (true, "FailedDataVolumeImport", why),
        false => (false, "NotAllDVsReady", why),
    });
    let count = |status: &VirtualMachineStatus| {
        let failure = status.start_failure.as_ref();
        failure
            .and_then(|failure| failure.consecutive_fail_count)
            .unwrap_or(0)
    };
    let again = new.start_failure.as_ref().filter(|_| count(new) > count(old)).map(|failure| {
        let after = failure.retry_after_timestamp.as_ref();
        let after = after.map(|time| format!(" before {}", time.0)).unwrap_or_default();
        let message = format!(
            "it failed {} time(s) in a row before its guest ran, and is not started again{after}: events and conditions of \
             its last instance say why",
            count(new)
        );
        (true, "CrashLoopBackOff", message)
    });
    volumes.into_iter().chain(again)
}

fn of(vmi: &VirtualMachineInstance) -> &[Condition] {
    vmi.status.as_ref().map_or(&[], |status| &status.conditions)
}

fn mirror(list: &mut Vec<Condition>, condition: &Condition, now: Timestamp) {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (reason, message) = (text(&condition.reason), text(&condition.message));
    conditions::set(
        list,
        &condition.type_,
        condition.status == "True",
        &reason,
        &message,
        now,
    );
}

/// One word for people; the first that fits.
fn printable(
    vm: &VirtualMachine,
    vmi: Option<&VirtualMachineInstance>,
    plan: &Plan,
    volumes: &Volumes,
) -> &'static str {
    let run = Run::of(vmi);
    let conditions = vmi.map_or(&[][..], of);
    let phase = vmi
        .and_then(|vmi| vmi.status.as_ref()?.phase.as_deref())
        .unwrap_or_default();
    let reason = |type_: &str| {
        conditions::find(conditions, type_)
            .filter(|condition| condition.status == "False")
            .and_then(|condition| condition.reason.as_deref())
            .unwrap_or_default()
    };
    let alive = run == Run::Alive;
    let migrating = vmi
        .and_then(|vmi| vmi.status.as_ref()?.migration_state.as_ref())
        .is_some_and(|state| state.start_timestamp.is_some() && !state.is_over());
    let wanted = matches!(
        Strategy::of(&vm.spec),
        Strategy::Always | Strategy::RerunOnFailure | Strategy::Once
    );
    // For its disks, before it runs.
    let waits = run == Run::Absent || (alive && ["", "Pending"].contains(&phase));
    let table = [
        (vm.metadata.deletion_timestamp.is_some(), "Terminating"),
        (run == Run::Leaving, "Stopping"),
        (alive && migrating, "Migrating"),
        (alive && conditions::is_true(conditions, "Paused"), "Paused"),
        (alive && phase == "Running", "Running"),
        (
            alive && reason("Synchronized") == "FailedPvcNotFound",
            "ErrorPvcNotFound",
        ),
        (waits && volumes.failed.is_some(), "DataVolumeError"),
        (
            alive && reason("PodScheduled") == "Unschedulable",
            "ErrorUnschedulable",
        ),
        (waits && volumes.filling, "Provisioning"),
        (waits && volumes.unbound, "WaitingForVolumeBinding"),
        (alive && reason("Synchronized") == "ErrImagePull", "ErrImagePull"),
        (
            alive && reason("Synchronized") == "ImagePullBackOff",
            "ImagePullBackOff",
        ),
        (
            alive && ["", "Pending", "Scheduling", "Scheduled"].contains(&phase),
            "Starting",
        ),
        (wanted && plan.start_failure.is_some(), "CrashLoopBackOff"),
        (matches!(run, Run::Absent | Run::Ended { .. }), "Stopped"),
    ];
    table
        .into_iter()
        .find(|(fits, _)| *fits)
        .map_or("Unknown", |(_, word)| word)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use nacelle_api::vm::{StartFailure, VirtualMachineSpec};
    use nacelle_api::vmi::VirtualMachineInstanceStatus;

    use super::super::plan::Action;
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    fn vm() -> VirtualMachine {
        let mut vm = VirtualMachine::new("a", VirtualMachineSpec::default());
        vm.spec.run_strategy = Some("Always".into());
        vm.metadata.generation = Some(3);
        vm
    }

    fn vmi(phase: &str, conditions: &[(&str, bool, &str)]) -> VirtualMachineInstance {
        let mut vmi = VirtualMachineInstance::new("a", Default::default());
        let mut list = Vec::new();
        for (type_, status, reason) in conditions {
            conditions::set(&mut list, type_, *status, reason, "", now());
        }
        vmi.status = Some(VirtualMachineInstanceStatus {
            phase: Some(phase.to_owned()),
            conditions: list,
            ..VirtualMachineInstanceStatus::default()
        });
        vmi
    }

    fn idle() -> Plan {
        Plan {
            action: Action::Nothing,
            requests: Vec::new(),
            start_failure: None,
        }
    }

    #[test]
    fn one_word_says_how_it_is() {
        #[rustfmt::skip]
        let table = [
            (vmi("Pending", &[]), "Starting"),
            (vmi("Scheduling", &[("PodScheduled", false, "Unschedulable")]), "ErrorUnschedulable"),
            (vmi("Pending", &[("Synchronized", false, "FailedPvcNotFound")]), "ErrorPvcNotFound"),
            (vmi("Scheduling", &[("Synchronized", false, "ImagePullBackOff")]), "ImagePullBackOff"),
            (vmi("Running", &[("Ready", true, "")]), "Running"),
            (vmi("Running", &[("Paused", true, "PausedByUser")]), "Paused"),
            (vmi("Succeeded", &[]), "Stopped"),
            (vmi("Unheard", &[]), "Unknown"),
        ];
        for (vmi, word) in table {
            assert_eq!(printable(&vm(), Some(&vmi), &idle(), &Volumes::default()), word);
        }
        assert_eq!(printable(&vm(), None, &idle(), &Volumes::default()), "Stopped");
        let mut leaving = vmi("Running", &[]);
        leaving.metadata.deletion_timestamp = Some(Time(now()));
        assert_eq!(
            printable(&vm(), Some(&leaving), &idle(), &Volumes::default()),
            "Stopping"
        );
        let mut failing = idle();
        failing.start_failure = Some(StartFailure::default());
        assert_eq!(
            printable(&vm(), None, &failing, &Volumes::default()),
            "CrashLoopBackOff"
        );
    }

    #[test]
    fn a_machine_that_waits_for_its_disks_says_for_what() {
        let failed = Volumes {
            failed: Some("why".into()),
            filling: true,
            unbound: true,
            unfilled: vec!["d".into()],
        };
        let filling = Volumes {
            failed: None,
            ..failed.clone()
        };
        let unbound = Volumes {
            filling: false,
            ..filling.clone()
        };
        for (volumes, word) in [
            (failed, "DataVolumeError"),
            (filling, "Provisioning"),
            (unbound, "WaitingForVolumeBinding"),
        ] {
            assert_eq!(printable(&vm(), None, &idle(), &volumes), word);
            assert_eq!(
                printable(&vm(), Some(&vmi("Pending", &[])), &idle(), &volumes),
                word
            );
            assert_eq!(
                printable(&vm(), Some(&vmi("Running", &[])), &idle(), &volumes),
                "Running"
            );
        }
    }

    #[test]
    fn a_stopped_machine_says_that_it_has_no_instance() {
        let plan = idle();
        let found = Found {
            vmi: None,
            plan: &plan,
            pins: None,
            failure: None,
            changed: false,
            volumes: &Volumes::default(),
        };
        let status = status(&vm(), &found, now());
        assert_eq!((status.created, status.ready), (Some(false), Some(false)));
        let ready = conditions::find(&status.conditions, "Ready").unwrap();
        assert_eq!(ready.reason.as_deref(), Some("VMINotExists"));
        assert_eq!(status.desired_generation, Some(3));
    }

    #[test]
    fn people_are_told_once_of_disks_that_it_waits_for_and_of_each_failed_start() {
        let words = |old: &_, new: &_| said(old, new).map(|(_, word, _)| word).collect::<Vec<_>>();
        let none = VirtualMachineStatus::default();
        let with = |word: &str, why: &str, failures: Option<i32>| {
            let mut status = VirtualMachineStatus {
                printable_status: Some(word.into()),
                start_failure: failures.map(|count| StartFailure {
                    consecutive_fail_count: Some(count),
                    ..StartFailure::default()
                }),
                ..VirtualMachineStatus::default()
            };
            if !why.is_empty() {
                conditions::set(
                    &mut status.conditions,
                    "DataVolumesReady",
                    false,
                    "NotAllDVsReady",
                    why,
                    now(),
                );
            }
            status
        };
        let filling = with("Provisioning", "not filled yet", None);
        assert_eq!(words(&none, &filling), ["NotAllDVsReady"]);
        assert!(words(&filling, &filling).is_empty());
        assert_eq!(
            words(&filling, &with("DataVolumeError", "404", None)),
            ["FailedDataVolumeImport"]
        );
        let once = with("CrashLoopBackOff", "", Some(1));
        assert_eq!(words(&none, &once), ["CrashLoopBackOff"]);
        assert!(words(&once, &once).is_empty());
        assert_eq!(
            words(&once, &with("CrashLoopBackOff", "", Some(2))),
            ["CrashLoopBackOff"]
        );
        assert!(words(&once, &none).is_empty());
    }

    #[test]
    fn a_status_that_is_computed_again_is_the_same() {
        let plan = idle();
        let running = vmi(
            "Running",
            &[("Ready", true, ""), ("Paused", true, "PausedByUser")],
        );
        let found = Found {
            vmi: Some(&running),
            plan: &plan,
            pins: None,
            failure: Some(("FailedCreate", "why".into())),
            changed: true,
            volumes: &Volumes::default(),
        };
        let mut vm = vm();
        vm.status = Some(status(&vm, &found, now()));
        let later = now() + k8s_openapi::jiff::SignedDuration::from_secs(60);
        assert_eq!(Some(status(&vm, &found, later)), vm.status);
    }
}
