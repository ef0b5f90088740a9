use k8s_openapi::api::core::v1::{
    ContainerStateRunning, ContainerStateTerminated, ContainerStatus, PodCondition, PodStatus,
};
use serde_json::json;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn pod(phase: &str, compute: ContainerState, ready: bool) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.uid = Some("pod-uid".into());
    pod.spec = Some(Default::default());
    pod.spec.as_mut().unwrap().node_name = Some("node1".into());
    pod.status = Some(PodStatus {
        phase: Some(phase.into()),
        conditions: Some(vec![PodCondition {
            type_: "Ready".into(),
            status: if ready { "True" } else { "False" }.into(),
            ..PodCondition::default()
        }]),
        container_statuses: Some(vec![ContainerStatus {
            name: COMPUTE.into(),
            state: Some(compute),
            ..ContainerStatus::default()
        }]),
        ..PodStatus::default()
    });
    pod
}

fn running() -> ContainerState {
    ContainerState {
        running: Some(ContainerStateRunning::default()),
        ..ContainerState::default()
    }
}

fn ended(code: i32, message: &str) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: code,
            message: (!message.is_empty()).then(|| message.to_owned()),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

fn report(state: &str, reason: &str) -> Report {
    serde_json::from_value(json!({"state": state, "reason": reason})).unwrap()
}

fn phases(status: &VirtualMachineInstanceStatus) -> Vec<&str> {
    status
        .phase_transition_timestamps
        .iter()
        .map(|transition| transition.phase.as_str())
        .collect()
}

#[test]
fn an_instance_goes_from_pending_to_running_and_is_ready_then() {
    let mut status = VirtualMachineInstanceStatus::default();
    observe(
        &mut status,
        Some(&pod("Pending", ContainerState::default(), false)),
        at(0),
    );
    observe(&mut status, Some(&pod("Running", running(), true)), at(1));
    assert_eq!(status.node_name.as_deref(), Some("node1"));
    assert!(
        !conditions::is_true(&status.conditions, "Ready"),
        "a pod that is ready is no guest that runs"
    );
    apply(
        &mut status,
        &report("Starting", ""),
        &pod("Running", running(), true),
        at(2),
    );
    assert_eq!(status.phase.as_deref(), Some("Scheduled"));
    apply(
        &mut status,
        &report("Running", ""),
        &pod("Running", running(), true),
        at(3),
    );
    observe(&mut status, Some(&pod("Running", running(), true)), at(4));
    assert_eq!(phases(&status), ["Scheduling", "Scheduled", "Running"]);
    assert!(conditions::is_true(&status.conditions, "Ready"));
}

#[test]
fn looking_twice_changes_nothing() {
    let mut status = VirtualMachineInstanceStatus::default();
    observe(&mut status, Some(&pod("Running", running(), true)), at(0));
    apply(
        &mut status,
        &report("Paused", "PausedByUser"),
        &pod("Running", running(), true),
        at(1),
    );
    observe(&mut status, Some(&pod("Running", running(), true)), at(2));
    let before = status.clone();
    apply(
        &mut status,
        &report("Paused", "PausedByUser"),
        &pod("Running", running(), true),
        at(3),
    );
    observe(&mut status, Some(&pod("Running", running(), true)), at(4));
    assert_eq!(status, before);
    assert!(conditions::is_true(&status.conditions, "Paused"));
    assert!(!conditions::is_true(&status.conditions, "Ready"));
}

#[test]
fn a_guest_that_powers_off_succeeds_and_one_that_crashes_fails() {
    for (state, phase) in [
        (ended(0, ""), "Succeeded"),
        (ended(8, "the guest's kernel panicked"), "Failed"),
    ] {
        let mut status = VirtualMachineInstanceStatus::default();
        observe(&mut status, Some(&pod("Running", running(), true)), at(0));
        observe(&mut status, Some(&pod("Running", state, false)), at(1));
        assert_eq!(status.phase.as_deref(), Some(phase));
        assert!(status.active_pods.is_empty());
    }
}

#[test]
fn nothing_happens_after_the_end() {
    let mut status = VirtualMachineInstanceStatus::default();
    apply(
        &mut status,
        &report("Failed", "GuestPanicked"),
        &pod("Running", running(), true),
        at(0),
    );
    assert_eq!(status.reason.as_deref(), Some("GuestPanicked"));
    let end = status.clone();
    apply(
        &mut status,
        &report("Running", ""),
        &pod("Running", running(), true),
        at(1),
    );
    observe(&mut status, Some(&pod("Running", running(), true)), at(2));
    observe(&mut status, None, at(3));
    lost(&mut status, at(4));
    assert_eq!(status, end);
}

#[test]
fn a_pod_that_vanishes_took_the_machine_with_it() {
    let mut status = VirtualMachineInstanceStatus::default();
    observe(&mut status, None, at(0));
    assert_eq!(status.phase, None, "there was none yet");
    observe(&mut status, Some(&pod("Running", running(), true)), at(1));
    observe(&mut status, None, at(2));
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("PodNotExists"))
    );
}

#[test]
fn a_node_that_is_silent_fails_its_machines() {
    let mut status = VirtualMachineInstanceStatus::default();
    observe(&mut status, Some(&pod("Running", running(), true)), at(0));
    lost(&mut status, at(1));
    let told = conditions::find(&status.conditions, "Synchronized").unwrap();
    let message = told.message.as_deref();
    assert_eq!(
        message,
        Some("node node1 is not responsive, marking VMI as failed")
    );
    assert_eq!(status.phase.as_deref(), Some("Failed"));
}

#[test]
fn an_image_that_does_not_come_is_told() {
    let waiting: ContainerState = serde_json::from_value(
        json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}),
    )
    .unwrap();
    let mut status = VirtualMachineInstanceStatus::default();
    observe(&mut status, Some(&pod("Pending", waiting, false)), at(0));
    let condition = conditions::find(&status.conditions, "Synchronized").unwrap();
    assert_eq!(condition.reason.as_deref(), Some("ImagePullBackOff"));
    observe(&mut status, Some(&pod("Running", running(), true)), at(1));
    assert!(conditions::find(&status.conditions, "Synchronized").is_none());
}

#[test]
fn a_report_may_be_here_before_the_kubelets() {
    let mut status = VirtualMachineInstanceStatus::default();
    let early = pod("Pending", ContainerState::default(), false);
    observe(&mut status, Some(&early), at(0));
    apply(&mut status, &report("Running", ""), &early, at(1));
    assert_eq!(phases(&status), ["Scheduling", "Scheduled", "Running"]);
    assert_eq!(status.node_name.as_deref(), Some("node1"));
    assert!(!conditions::is_true(&status.conditions, "Ready"));
}

#[test]
fn what_the_pod_says_of_a_start_is_not_written_before_the_launcher_may_report_the_same() {
    let mut running = running();
    running.running.as_mut().unwrap().started_at = Some(Time(at(0)));
    let pod = pod("Running", running, false);
    let mut status = VirtualMachineInstanceStatus::default();
    enter(&mut status, "Scheduling", at(0));
    observe(&mut status, Some(&pod), at(0));
    let before = status.clone();
    observe(&mut status, Some(&pod), at(4));
    assert_eq!(status, before);
    assert_eq!(
        report_due(&status, &pod, at(4)),
        Some(SignedDuration::from_secs(1))
    );
    observe(&mut status, Some(&pod), at(5));
    assert_eq!(phases(&status), ["Scheduling", "Scheduled"]);
    assert_eq!(report_due(&status, &pod, at(6)), None);
    let mut told = before;
    apply(&mut told, &report("Running", ""), &pod, at(1));
    assert_eq!(phases(&told), ["Scheduling", "Scheduled", "Running"]);
}

#[test]
fn what_the_agent_says_is_there_while_it_answers() {
    let mut status = VirtualMachineInstanceStatus::default();
    let pod = pod("Running", running(), true);
    let tell = |status: &mut VirtualMachineInstanceStatus, agent, second| {
        let report = json!({"state": "Running", "agent": agent});
        apply(status, &serde_json::from_value(report).unwrap(), &pod, at(second));
    };
    let os = json!({"name": "Debian", "versionId": "12", "hostile": "field"});
    tell(
        &mut status,
        json!({"guestOSInfo": os, "fsFreezeStatus": "thawed"}),
        1,
    );
    assert!(conditions::is_true(&status.conditions, "AgentConnected"));
    assert_eq!(status.fs_freeze_status, None);
    let known = json!({"name": "Debian", "versionId": "12"});
    assert_eq!(json!(status.guest_os_info), known);
    let before = status.clone();
    tell(
        &mut status,
        json!({"guestOSInfo": os, "fsFreezeStatus": "thawed"}),
        2,
    );
    assert_eq!(status, before);
    tell(
        &mut status,
        json!({"guestOSInfo": {}, "fsFreezeStatus": "frozen"}),
        3,
    );
    assert_eq!(status.fs_freeze_status.as_deref(), Some("frozen"));
    // As a launcher says it that knows of no agents.
    tell(&mut status, serde_json::Value::Null, 4);
    assert!(conditions::find(&status.conditions, "AgentConnected").is_none());
    assert_eq!(
        (status.fs_freeze_status.clone(), json!(status.guest_os_info)),
        (None, known)
    );
    tell(&mut status, json!({}), 5);
    apply(&mut status, &report("Succeeded", ""), &pod, at(6));
    assert!(conditions::find(&status.conditions, "AgentConnected").is_none());
}

#[test]
fn a_machine_that_has_moved_stays_ready_until_the_kubelet_has_looked() {
    let mut status = VirtualMachineInstanceStatus::default();
    let here = pod("Running", running(), true);
    apply(&mut status, &report("Running", ""), &here, at(0));
    assert!(conditions::is_true(&status.conditions, "Ready"));
    status.migration_state = Some(MigrationState {
        target_node_domain_ready_timestamp: Some(Time(at(10))),
        ..MigrationState::default()
    });
    let there = pod("Running", running(), false);
    apply(&mut status, &report("Running", ""), &there, at(10));
    observe(&mut status, Some(&there), at(15));
    assert!(conditions::is_true(&status.conditions, "Ready"));
    observe(&mut status, Some(&there), at(21));
    assert!(
        !conditions::is_true(&status.conditions, "Ready"),
        "it never became so"
    );
}
