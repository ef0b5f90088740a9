use serde_json::{Value, json};

use super::super::Claim;
use super::*;

const T: &str = "1970-01-01T00:16:40Z";

fn vm(run: &str, status: Value) -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "a", "namespace": "n"},
        "spec": {"runStrategy": run, "template": {"spec": {"domain": {"devices": {}}}}}, "status": status})
}

fn vmi(phase: &str, conditions: Value) -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "a", "namespace": "n"},
        "spec": {"domain": {"devices": {}}},
        "status": {"phase": phase, "conditions": conditions,
            "phaseTransitionTimestamps": [{"phase": phase, "phaseTransitionTimestamp": T}]}})
}

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": T})
}

/// A pod with these conditions, and a container `compute` in this state.
fn pod(phase: &str, conditions: Value, compute: Value) -> Value {
    json!({"metadata": {"name": "virt-launcher-a-x", "uid": "p"},
        "status": {"phase": phase, "conditions": conditions, "containerStatuses": [
            {"name": "compute", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": compute}]}})
}

fn event(reason: &str, message: &str, second: u32) -> Event {
    serde_json::from_value(
        json!({"metadata": {}, "involvedObject": {}, "reason": reason, "message": message,
        "lastTimestamp": format!("1970-01-01T00:00:{second:02}Z")}),
    )
    .unwrap()
}

/// A world of these objects; null is none.
fn world(vm: Value, vmi: Value, pod: Value) -> World {
    World {
        vm: serde_json::from_value(vm).unwrap(),
        vmi: serde_json::from_value(vmi).unwrap(),
        pod: serde_json::from_value(pod).unwrap(),
        ..World::default()
    }
}

fn claim(phase: &str, events: Vec<Event>) -> Claim {
    let claim = json!({"metadata": {"name": "disk"}, "spec": {"storageClassName": "slow"}, "status": {"phase": phase}});
    Claim {
        claim: serde_json::from_value(claim).unwrap(),
        events,
    }
}

fn volume(phase: &str, progress: &str, conditions: Value) -> World {
    let mut world = world(vm("Always", json!({})), Value::Null, Value::Null);
    let volume = json!({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "metadata": {"name": "disk"}, "spec": {},
        "status": {"phase": phase, "progress": progress, "conditions": conditions}});
    world
        .volumes
        .insert("disk".into(), serde_json::from_value(volume).unwrap());
    world
}

fn claimed(claim: Claim) -> World {
    let mut world = world(vm("Always", json!({})), vmi("Scheduling", json!([])), Value::Null);
    world.claims.insert("disk".into(), claim);
    world
}

fn with_events(mut world: World, events: Vec<Event>) -> World {
    world.events = events;
    world
}

/// All that is found, as `Kind weight Reason: message -> next`.
fn told(world: &World) -> Vec<String> {
    let explanation = explain(world, "n", "a");
    let each = explanation.chain.iter().flat_map(|link| {
        link.findings.iter().map(move |finding| {
            let next = finding
                .next
                .as_deref()
                .map(|next| format!(" -> {next}"))
                .unwrap_or_default();
            format!(
                "{} {:?} {}: {}{next}",
                link.kind, finding.weight, finding.reason, finding.message
            )
        })
    });
    each.collect()
}

#[test]
fn each_thing_that_a_machine_can_wait_for_is_told_with_what_to_do() {
    let halted = || world(vm("Halted", json!({})), Value::Null, Value::Null);
    let of_vm = |run: &str, status: Value| world(vm(run, status), Value::Null, Value::Null);
    let of_vmi = |phase: &str, conditions: Value| world(Value::Null, vmi(phase, conditions), Value::Null);
    let of_pod = |conditions: Value, compute: Value| {
        world(
            Value::Null,
            vmi("Scheduling", json!([])),
            pod("Pending", conditions, compute),
        )
    };
    let failure = |message: &str| {
        of_vm(
            "Always",
            json!({"conditions": [condition("Failure", "True", "FailedCreate", message)]}),
        )
    };
    let unscheduled = |message: &str| {
        of_pod(
            json!([condition("PodScheduled", "False", "Unschedulable", message)]),
            json!({}),
        )
    };
    let waiting = |reason: &str, message: &str| {
        of_pod(
            json!([]),
            json!({"waiting": {"reason": reason, "message": message}}),
        )
    };
    let mut moving = of_vmi("Running", json!([condition("AgentConnected", "True", "", "")]));
    moving
        .vmi
        .as_mut()
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .migration_state =
        serde_json::from_value(json!({"targetNode": "node2", "mode": "PreCopy", "startTimestamp": T}))
            .unwrap();
    let mut stayed = of_vmi("Running", json!([condition("AgentConnected", "True", "", "")]));
    stayed.vmi.as_mut().unwrap().status.as_mut().unwrap().migration_state = serde_json::from_value(
        json!({"targetNode": "node2", "completed": true, "failed": true, "failureReason": "no way", "endTimestamp": T}),
    )
    .unwrap();
    let mut queued = of_vmi("Running", json!([condition("AgentConnected", "True", "", "")]));
    queued.migrations = vec![
        serde_json::from_value(
            json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
        "metadata": {"name": "m"}, "spec": {"vmiName": "a"}}),
        )
        .unwrap(),
    ];
    let mut leaving = of_vmi("Running", json!([condition("AgentConnected", "True", "", "")]));
    leaving.vmi.as_mut().unwrap().metadata.deletion_timestamp = serde_json::from_value(json!(T)).unwrap();
    let mut plugged = of_vmi("Running", json!([condition("AgentConnected", "True", "", "")]));
    plugged.vmi.as_mut().unwrap().status.as_mut().unwrap().volume_status = serde_json::from_value(
        json!([{"name": "more", "target": "", "phase": "Bound", "message": "no node has it", "hotplugVolume": {"attachPodName": "hp"}},
            {"name": "root", "target": ""}]),
    )
    .unwrap();
    let mut lost = claimed(claim("Lost", Vec::new()));
    lost.vmi = None;
    let ended = pod(
        "Failed",
        json!([]),
        json!({"terminated": {"exitCode": 1, "message": "no /dev/kvm\n", "reason": "Error"}}),
    );
    let evicted = json!({"metadata": {"name": "p"}, "status": {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}});

    #[rustfmt::skip]
    let table: Vec<(World, &str)> = vec![
        (halted(), "VirtualMachine Note Halted: it is not to run -> virtctl start a"),
        (of_vm("Manual", json!({})), "VirtualMachine Note NotStarted: it runs when somebody starts it -> virtctl start a"),
        (world(vm("RerunOnFailure", json!({})), vmi("Succeeded", json!([])), Value::Null), "VirtualMachine Note PoweredOff: "),
        (world(vm("Once", json!({})), vmi("Succeeded", json!([])), Value::Null), "VirtualMachine Note RanOnce: "),
        (of_vm("Manual", json!({"stateChangeRequests": [{"action": "Start"}]})), "VirtualMachine Waits StartRequested: a start was asked for"),
        (failure("pods \"x\" is forbidden: exceeded quota: q"), "VirtualMachine Stuck FailedCreate: pods \"x\" is forbidden: exceeded quota: q -> raise the namespace's ResourceQuota"),
        (failure("Failure to find instancetype: x"), "-> make what is named"),
        (failure("another instance has this machine's name: x"), "-> delete the instance of this name"),
        (failure("VM field(s) f conflicts with selected instance type"), "-> take the field out"),
        (failure("anything"), "-> change what it says; it is tried again"),
        (of_vm("Always", json!({"startFailure": {"consecutiveFailCount": 3, "retryAfterTimestamp": T}})),
            "VirtualMachine Stuck CrashLoopBackOff: it failed 3 times in a row before its guest ran; the next attempt is not before 1970-01-01T00:16:40Z -> kubectl describe vmi a"),
        (of_vm("Always", json!({"conditions": [condition("RestartRequired", "True", "RestartRequired", "changed")]})),
            "VirtualMachine Note RestartRequired: changed -> virtctl restart a"),
        (volume("ImportInProgress", "37.50%", json!([])), "VirtualMachine Waits ImportInProgress: DataVolume disk is filled: 37.50% of it is there"),
        (volume("Pending", "N/A", json!([])), "VirtualMachine Waits Pending: DataVolume disk is to be filled (Pending) -> kubectl describe dv disk"),
        (volume("WaitForFirstConsumer", "N/A", json!([])), "VirtualMachine Waits WaitForFirstConsumer: "),
        (volume("ImportInProgress", "N/A", json!([condition("Running", "False", "Error", "404 Not Found")])), "VirtualMachine Stuck DataVolumeError: DataVolume disk: 404 Not Found -> kubectl describe dv disk"),
        (volume("Failed", "N/A", json!([])), "VirtualMachine Stuck DataVolumeError: DataVolume disk cannot be filled"),
        (claimed(Claim::default()), "Pod Stuck FailedPvcNotFound: PersistentVolumeClaim disk does not exist -> make it"),
        (claimed(claim("Pending", vec![event("Other", "x", 9), event("ProvisioningFailed", "old", 1), event("ProvisioningFailed", "no space", 5)])),
            "Pod Stuck ProvisioningFailed: PersistentVolumeClaim disk is not bound to a volume, storage class slow: no space -> kubectl describe pvc disk; does kubectl get storageclass slow"),
        (claimed(claim("Pending", vec![event("WaitForFirstConsumer", "waiting for first consumer", 1)])), "Pod Waits WaitForFirstConsumer: "),
        (claimed(claim("Pending", Vec::new())), "Pod Stuck Unbound: PersistentVolumeClaim disk is not bound to a volume, storage class slow -> "),
        (lost, "VirtualMachine Stuck ClaimLost: "),
        (of_vmi("Pending", json!([condition("DataVolumesReady", "False", "NotAllDVsReady", "not filled yet: DataVolume d")])), "VirtualMachineInstance Waits NotAllDVsReady: not filled yet: DataVolume d"),
        (of_vmi("Pending", json!([condition("Synchronized", "False", "FailedCreate", "no memory requested")])), "VirtualMachineInstance Stuck FailedCreate: no memory requested -> change what it says"),
        (of_vmi("Failed", json!([condition("Synchronized", "False", "NodeUnresponsive", "node n1 is not responsive")])), "VirtualMachineInstance Stuck NodeUnresponsive: node n1 is not responsive -> is the node down?"),
        (of_vmi("Failed", json!([])), "VirtualMachineInstance Stuck Failed: it has failed"),
        (of_vmi("Running", json!([condition("Paused", "True", "PausedByUser", "VMI was paused by user")])), "VirtualMachineInstance Note PausedByUser: VMI was paused by user -> virtctl unpause vmi a"),
        (of_vmi("Running", json!([condition("Paused", "True", "PausedIOError", "io")])), "VirtualMachineInstance Stuck PausedIOError: io -> make room where its disks are"),
        (of_vmi("Running", json!([])), "VirtualMachineInstance Note AgentAbsent: no guest agent answers"),
        (of_vmi("Running", json!([condition("LiveMigratable", "False", "DisksNotLiveMigratable", "not shared")])), "VirtualMachineInstance Note DisksNotLiveMigratable: not shared"),
        (of_vmi("Running", json!([condition("AccessCredentialsSynchronized", "False", "", "no agent")])), "VirtualMachineInstance Stuck AccessCredentialsSynchronized: no agent -> "),
        (moving, "VirtualMachineInstance Waits Migrating: it moves to node2 (PreCopy)"),
        (stayed, "VirtualMachineInstance Note MigrationFailed: it was to move to node2 and stayed: no way"),
        (queued, "VirtualMachineInstance Waits ToMigrate: migration m is Pending"),
        (leaving, "VirtualMachineInstance Waits Stopping: it is being stopped: its guest has 30 s to power off"),
        (plugged, "VirtualMachineInstance Waits Bound: volume more is not with the guest: no node has it"),
        (unscheduled("0/2 nodes are available: 2 Insufficient memory."), "Pod Stuck Unschedulable: 0/2 nodes are available: 2 Insufficient memory. -> give the machine less memory"),
        (unscheduled("1 Insufficient devices.kubevirt.io/kvm, 1 node(s) had untolerated taint {a: b}"), "-> no node has /dev/kvm to give: do pods of daemonset nacelle-node run, and has the node virtualization (kubectl -n nacelle logs daemonset/nacelle-node); let the machine tolerate the taint"),
        (unscheduled("pod has unbound immediate PersistentVolumeClaims"), "-> a claim is not bound: see below"),
        (unscheduled("a plugin said no"), "-> kubectl get nodes; kubectl describe nodes"),
        (waiting("ImagePullBackOff", "Back-off pulling image \"i\""), "Pod Stuck ImagePullBackOff: container compute (i): Back-off pulling image \"i\" -> is the image's name right"),
        (waiting("InvalidImageName", "no"), "Pod Stuck InvalidImageName: "),
        (waiting("CreateContainerConfigError", "secret \"s\" not found"), "Pod Stuck CreateContainerConfigError: container compute (i): secret \"s\" not found -> make the Secret"),
        (with_events(waiting("ContainerCreating", ""), vec![event("FailedMount", "MountVolume.SetUp failed", 3)]), "Pod Stuck FailedMount: MountVolume.SetUp failed -> "),
        (world(Value::Null, vmi("Failed", json!([])), evicted), "Pod Stuck Evicted: low on memory -> its node ran out"),
        (world(Value::Null, vmi("Failed", json!([])), ended), "monitor Stuck Error: no /dev/kvm -> kubectl logs virt-launcher-a-x -c compute"),
        (of_pod(json!([]), json!({"running": {"startedAt": T}})), "monitor Waits NotReported: "),
        (world(Value::Null, vmi("Running", json!([])), pod("Running", json!([condition("ContainersReady", "False", "ContainersNotReady", "x")]), json!({"running": {}}))), "Pod Waits NotReady: "),
    ];
    for (world, expected) in &table {
        let told = told(world);
        let found = told.iter().filter(|line| line.contains(expected)).count();
        assert_eq!(found, 1, "not once {expected:?} in {told:#?}");
    }
}

#[test]
fn the_chain_goes_from_what_was_asked_for_to_what_runs() {
    let agent = json!([
        condition("AgentConnected", "True", "", ""),
        condition("Ready", "True", "", "")
    ]);
    let running = pod("Running", json!([]), json!({"running": {"startedAt": T}}));
    let world = world(
        vm("Always", json!({"printableStatus": "Running"})),
        vmi("Running", agent),
        running,
    );
    let explanation = explain(&world, "n", "a");
    assert_eq!(
        (explanation.machine.as_str(), explanation.status.as_str()),
        ("n/a", "Running")
    );
    let states: Vec<_> = explanation
        .chain
        .iter()
        .map(|link| (link.kind, link.state.as_str()))
        .collect();
    assert_eq!(
        states,
        [
            ("VirtualMachine", "runStrategy Always"),
            ("VirtualMachineInstance", "Running"),
            ("Pod", "Running"),
            ("monitor", "its guest runs")
        ]
    );
    assert_eq!(
        explanation.chain[1].since,
        Some(Timestamp::from_second(1000).unwrap())
    );
    assert!(told(&world).is_empty(), "{:?}", told(&world));
}

#[test]
fn a_guest_that_was_reported_runs_though_the_kubelet_has_not_said_so() {
    let starting = |phase: &str| {
        let pod = pod(
            "Pending",
            json!([]),
            json!({"waiting": {"reason": "PodInitializing"}}),
        );
        let world = world(Value::Null, vmi(phase, json!([])), pod);
        explain(&world, "n", "a").chain.pop().unwrap().state
    };
    assert_eq!(starting("Scheduled"), "not started yet");
    assert_eq!(starting("Running"), "its guest runs");
}

#[test]
fn what_waits_for_a_claim_is_the_last_that_is_not_there_yet() {
    let mut waits = world(vm("Always", json!({})), Value::Null, Value::Null);
    waits.claims.insert("disk".into(), Claim::default());
    assert!(
        told(&waits)[0].starts_with("VirtualMachine Stuck FailedPvcNotFound"),
        "{:?}",
        told(&waits)
    );
    let mut bound = claimed(claim("Bound", Vec::new()));
    assert!(told(&bound).is_empty());
    bound.vm = None;
    assert_eq!(explain(&bound, "n", "a").status, "Scheduling");
}
