//! Machines move from node to node, and nobody in them notices. Alone on the cluster, one after the other: a drain concerns a
//! whole node, and who is killed at the right moment should have the machine to itself.
#![cfg(feature = "cluster")]

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Namespace, PATIENCE, Person, linux, machine, output, script, uid};

/// A machine that an eviction moves.
fn movable(name: &str) -> String {
    let spec = "terminationGracePeriodSeconds: 5";
    machine(name, "runStrategy: Always")
        .replace(spec, &format!("{spec}\n      evictionStrategy: LiveMigrate"))
}

fn node(vmi: &Value) -> String {
    vmi["status"]["nodeName"].as_str().unwrap_or_default().to_owned()
}

/// The migrations of an instance, the oldest first.
fn migrations(me: &Person, name: &str) -> Vec<Value> {
    let label = format!("kubevirt.io/vmi-name={name}");
    let sort = "--sort-by=.metadata.creationTimestamp";
    let list = me.kubectl(&["get", "vmim", "-l", &label, sort, "-o", "json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    list["items"].as_array().unwrap().clone()
}

/// Waits until the last migration of an instance is in one of these phases.
fn until_phase(me: &Person, name: &str, phases: &[&str]) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let last = migrations(me, name).pop().unwrap_or_default();
        if phases.contains(&last["status"]["phase"].as_str().unwrap_or_default()) {
            return last;
        }
        let vmi = || me.get("vmi", name)["status"].clone();
        assert!(
            Instant::now() < end,
            "not {phases:?}: {last:#}\n{:#}\n{}",
            vmi(),
            me.events()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Moves an instance; it must succeed, and run on the other node as the same run.
fn moves(me: &Person, name: &str) {
    let before = me.get("vmi", name);
    me.virtctl(&["migrate", name]);
    let done = until_phase(me, name, &["Succeeded", "Failed"]);
    assert_eq!(done["status"]["phase"], "Succeeded", "{done:#}\n{}", me.events());
    let after = me.get("vmi", name);
    assert_eq!(uid(&after), uid(&before));
    assert_ne!(node(&after), node(&before));
    let state = &after["status"]["migrationState"];
    assert_eq!(state["completed"], true, "{state:#}");
    assert_eq!(state["sourceNode"], node(&before).as_str());
    assert_eq!(state["targetNode"], node(&after).as_str());
    // The kubelet says so a little later.
    me.until("pod", state["sourcePod"].as_str().unwrap(), "ended well", |pod| {
        pod["status"]["phase"] == "Succeeded"
    });
    let target = me.get("pod", state["targetPod"].as_str().unwrap());
    let ready = "kubevirt.io/migration-target-ready-timestamp";
    assert!(target["metadata"]["annotations"][ready].is_string());
    let address = &target["status"]["podIP"];
    assert_eq!(&after["status"]["interfaces"][0]["ipAddress"], address);
}

/// A machine that takes a while to move: with a disk that is copied, of 8 MiB.
fn laden(name: &str) -> String {
    let machine = machine(name, "runStrategy: Always");
    let machine = machine.replace("disks: [", "disks: [{name: load, disk: {bus: virtio}}, ");
    let load =
        "volumes: [{name: load, containerDisk: {image: 'localhost/linux:1', imagePullPolicy: Never}}, ";
    machine.replace("volumes: [", load)
}

/// A link between the nodes that is slow until this is dropped, so that a machine is on its way for a while.
struct SlowLink;

impl SlowLink {
    fn new() -> SlowLink {
        for node in ["1", "2"] {
            let rate = ["tbf", "rate", "2mbit", "burst", "32kb", "latency", "400ms"];
            let made = [
                &[node, "tc", "qdisc", "replace", "dev", "eth0", "root"],
                &rate[..],
            ]
            .concat();
            let done = output(script("in-node").args(made), "");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        SlowLink
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        for node in ["1", "2"] {
            output(
                script("in-node").args([node, "tc", "qdisc", "del", "dev", "eth0", "root"]),
                "",
            );
        }
    }
}

/// Kills what a container of a pod runs, as a node that is out of memory would.
fn kill(pod: &Value) {
    let node = pod["spec"]["nodeName"].as_str().unwrap();
    let statuses = pod["status"]["containerStatuses"].as_array().unwrap();
    let compute = statuses
        .iter()
        .find(|status| status["name"] == "compute")
        .unwrap();
    let id = compute["containerID"].as_str().unwrap();
    let node = node.trim_start_matches("node");
    let args = [node, "ctr", "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL"];
    let done = output(
        script("in-node")
            .args(args)
            .arg(id.trim_start_matches("containerd://")),
        "",
    );
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Containers called `compute` that run on either node, in this namespace.
fn running(me: &Person, name: &str) -> Vec<String> {
    let selector = format!("vm.kubevirt.io/name={name}");
    let pods = me.kubectl(&["get", "pods", "-l", &selector, "-o", "json"]);
    let pods: Value = serde_json::from_str(&pods).unwrap();
    let runs = |pod: &&Value| {
        let statuses = pod["status"]["containerStatuses"].as_array();
        statuses.is_some_and(|all| {
            all.iter()
                .any(|status| status["name"] == "compute" && status["state"]["running"].is_object())
        })
    };
    let all = pods["items"].as_array().unwrap().iter().filter(runs);
    all.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

/// Waits until one pod alone runs the machine, which is the one that the instance says.
fn runs_once(me: &Person, name: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let vmi = me.get("vmi", name);
        let pods = running(me, name);
        let says = &vmi["status"]["nodeName"];
        if vmi["status"]["phase"] == "Running" && pods.len() == 1 {
            assert_eq!(&me.get("pod", &pods[0])["spec"]["nodeName"], says);
            return;
        }
        assert!(
            Instant::now() < end,
            "{pods:?}: {:#}\n{}",
            vmi["status"],
            me.events()
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn a_linux_machine_moves_there_and_back_and_its_guest_goes_on() {
    let here = Namespace::new("moves");
    let me = &here.admin;
    me.apply(&linux(
        "a",
        "running: true",
        "",
        &[("scratch", "emptyDisk: {capacity: 16Mi}")],
    ));
    me.until("vmi", "a", "running", |vmi| vmi["status"]["phase"] == "Running");
    let vmi = me.get("vmi", "a");
    assert!(support::is(&vmi, "LiveMigratable"), "{vmi:#}");
    let mut console = me.console("a");
    console.shell();
    console.runs("dd if=/dev/urandom of=/root/blob bs=4k count=64 2>/dev/null; dd if=/root/blob of=/dev/vdb bs=4k count=64 2>/dev/null; sync");
    let hash = console.runs("sha256sum </root/blob");
    // Each line is the next number, whatever happens to the machine.
    console.runs("(i=0; while :; do i=$((i+1)); echo $i >>/root/count; sleep 0.1; done) & sleep 1");
    let mut counted = 0;
    for _ in 0..2 {
        drop(console);
        moves(me, "a");
        console = me.console("a");
        console.types("");
        let hashes = console.runs("echo 3 >/proc/sys/vm/drop_caches; sha256sum </root/blob; dd if=/dev/vdb bs=4k count=64 2>/dev/null | sha256sum");
        assert_eq!(hashes, format!("{hash}\n{hash}"));
        let jumps = console.runs("awk '$1 != NR {print \"jumps at \" NR}' /root/count; tail -n1 /root/count");
        let now: u64 = jumps.parse().unwrap_or_else(|_| panic!("{jumps}"));
        assert!(now > counted, "{now} {counted}");
        counted = now;
    }
    drop(console);
    runs_once(me, "a");
}

const FEATURE: &str = "cpu-feature.node.kubevirt.io/";

/// A node that has one feature less until this is dropped, as its administrator says.
struct Narrowed<'a> {
    me: &'a Person,
    node: String,
}

impl<'a> Narrowed<'a> {
    const LEFT_ALONE: &'static str = "node-labeller.kubevirt.io/skip-node";

    fn new(me: &'a Person, node: &str, feature: &str) -> Narrowed<'a> {
        me.kubectl(&["annotate", "node", node, &format!("{}=true", Self::LEFT_ALONE)]);
        let narrowed = Narrowed {
            me,
            node: node.to_owned(),
        };
        me.kubectl(&["label", "node", node, &format!("{FEATURE}{feature}-")]);
        narrowed
    }
}

impl Drop for Narrowed<'_> {
    fn drop(&mut self) {
        let annotation = format!("{}-", Self::LEFT_ALONE);
        self.me
            .command("kubectl", &["annotate", "node", &self.node, &annotation])
            .status()
            .ok();
    }
}

/// `cpuBaseline`, until this is dropped.
struct Baseline<'a>(&'a Person);

impl<'a> Baseline<'a> {
    fn set(me: &Person, to: &str) -> std::process::Command {
        let patch = format!(r#"{{"spec":{{"configuration":{{"cpuBaseline":{to}}}}}}}"#);
        me.command(
            "kubectl",
            &[
                "-n",
                "nacelle",
                "patch",
                "kubevirt",
                "kubevirt",
                "--type=merge",
                "-p",
                &patch,
            ],
        )
    }

    fn new(me: &'a Person) -> Baseline<'a> {
        assert!(Self::set(me, "\"Cluster\"").status().unwrap().success());
        let object = ["-n", "nacelle", "get", "kubevirt", "kubevirt", "-o"];
        let written = me.kubectl(&[&object[..], &["jsonpath={.metadata.generation}"]].concat());
        let seen = format!("--for=jsonpath={{.status.observedGeneration}}={written}");
        me.kubectl(&["-n", "nacelle", "wait", "kubevirt/kubevirt", &seen]);
        Baseline(me)
    }
}

impl Drop for Baseline<'_> {
    fn drop(&mut self) {
        Self::set(self.0, "null").status().ok();
    }
}

#[test]
fn a_machine_moves_to_where_its_processor_is_and_with_a_baseline_everywhere() {
    let here = Namespace::new("processors");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    let before = me.get("vmi", "a");
    let other = if node(&before) == "node1" {
        "node2"
    } else {
        "node1"
    };
    let beyond = "host-model-required-features.node.kubevirt.io/";
    let known = me.until("node", other, "labelled", |node| {
        let labels = node["metadata"]["labels"].as_object().unwrap();
        labels.keys().any(|label| label.starts_with(beyond))
    });
    let labels = known["metadata"]["labels"].as_object().unwrap();
    let feature = labels
        .keys()
        .find_map(|label| label.strip_prefix(beyond))
        .unwrap();
    let asks =
        |pod: &Value, feature: &str| pod["spec"]["nodeSelector"][format!("{FEATURE}{feature}")] == "true";

    // The other node loses what the guest was shown, and gets it back.
    let narrowed = Narrowed::new(me, other, feature);
    me.virtctl(&["migrate", "a"]);
    let moving = me.until("vmi", "a", "claimed", |vmi| {
        vmi["status"]["migrationState"]["targetPod"].is_string()
    });
    let target = moving["status"]["migrationState"]["targetPod"].as_str().unwrap();
    let target = me.until("pod", target, "unschedulable", |pod| {
        let list = pod["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        list.iter()
            .any(|condition| condition["reason"] == "Unschedulable")
    });
    assert!(asks(&target, feature), "{target:#}");
    drop(narrowed);
    until_phase(me, "a", &["Succeeded"]);
    runs_once(me, "a");

    // With a baseline it starts with what both have, and moves although one has less.
    let _narrowed = Narrowed::new(me, other, feature);
    let baseline = Baseline::new(me);
    let run = me.get("vmi", "a");
    me.virtctl(&["restart", "a"]);
    me.until_another_run("a", &run);
    me.until_status("a", "Running");
    assert!(!asks(&me.pod("a"), feature), "{:#}", me.pod("a"));
    moves(me, "a");
    drop(baseline);
}

#[test]
fn a_migration_that_is_cancelled_leaves_the_machine_where_it_is() {
    let here = Namespace::new("cancelled");
    let me = &here.admin;
    me.apply(&laden("slow"));
    me.until_status("slow", "Running");
    let link = SlowLink::new();
    let before = me.get("vmi", "slow");
    me.virtctl(&["migrate", "slow"]);
    let running = until_phase(me, "slow", &["Running", "Succeeded", "Failed"]);
    assert_eq!(running["status"]["phase"], "Running", "{running:#}");
    // One at a time.
    let refused = me.virtctl_fails(&["migrate", "slow"]);
    assert!(refused.contains("in-flight migration detected"), "{refused}");
    me.virtctl(&["migrate-cancel", "slow"]);
    let vmi = me.until("vmi", "slow", "left where it is", |vmi| {
        vmi["status"]["migrationState"]["abortStatus"] == "Succeeded"
    });
    assert_eq!((node(&vmi), uid(&vmi)), (node(&before), uid(&before)));
    runs_once(me, "slow");
    let mut console = me.console("slow");
    console.types("say still here");
    console.says("still here");
    drop(console);
    drop(link);
}

#[test]
fn a_quota_that_has_no_room_for_the_target_is_told_and_waited_for() {
    let here = Namespace::new("crowded");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    me.kubectl(&["create", "quota", "small", "--hard=pods=1"]);
    me.until("quota", "small", "counted", |quota| {
        quota["status"]["used"]["pods"] == "1"
    });
    me.virtctl(&["migrate", "a"]);
    let end = Instant::now() + PATIENCE;
    while !me.kubectl(&["get", "vmim"]).contains("exceeded quota: small") {
        assert!(
            Instant::now() < end,
            "{}",
            me.kubectl(&["get", "vmim", "-o", "yaml"])
        );
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(support::is(
        &migrations(me, "a")[0],
        "migrationRejectedByResourceQuota"
    ));
    me.kubectl(&["delete", "quota", "small"]);
    until_phase(me, "a", &["Succeeded"]);
    runs_once(me, "a");
}

#[test]
fn a_node_that_is_drained_is_left_by_its_machines() {
    let here = Namespace::new("drained");
    let me = &here.admin;
    for name in ["a", "b"] {
        me.apply(&movable(name));
    }
    for name in ["a", "b"] {
        me.until_status(name, "Running");
    }
    let before = me.get("vmi", "a");
    let pods = "--pod-selector=kubevirt.io=virt-launcher";
    let drained = me.kubectl(&[
        "drain",
        &node(&before),
        pods,
        "--delete-emptydir-data",
        "--timeout=180s",
    ]);
    assert!(
        drained.contains("Eviction triggered evacuation of VMI \"drained/a\""),
        "{drained}"
    );
    for name in ["a", "b"] {
        let vmi = me.get("vmi", name);
        assert_ne!(node(&vmi), node(&before));
        assert!(vmi["status"]["evacuationNodeName"].is_null(), "{vmi:#}");
        runs_once(me, name);
    }
    assert_eq!(uid(&me.get("vmi", "a")), uid(&before));
    me.kubectl(&["uncordon", &node(&before)]);
}

#[test]
fn whoever_is_killed_while_a_machine_moves_it_runs_once() {
    let here = Namespace::new("shot");
    let me = &here.admin;
    me.apply(&laden("shot"));
    me.until_status("shot", "Running");
    let link = SlowLink::new();
    let before = me.get("vmi", "shot");
    let sets_off = || {
        me.virtctl(&["migrate", "shot"]);
        let running = until_phase(me, "shot", &["Running", "Succeeded", "Failed"]);
        assert_eq!(running["status"]["phase"], "Running", "{running:#}");
        me.get("vmi", "shot")["status"]["migrationState"].clone()
    };

    // The target: the machine goes on where it is.
    let state = sets_off();
    kill(&me.get("pod", state["targetPod"].as_str().unwrap()));
    until_phase(me, "shot", &["Failed"]);
    let vmi = me.get("vmi", "shot");
    assert_eq!((node(&vmi), uid(&vmi)), (node(&before), uid(&before)));
    runs_once(me, "shot");

    // The controller: it is taken up where it was.
    sets_off();
    let selector = "--selector=app=nacelle-controller";
    me.kubectl(&[
        "-n",
        "nacelle",
        "delete",
        "pods",
        selector,
        "--grace-period=0",
        "--force",
        "--wait=false",
    ]);
    drop(link);
    let done = until_phase(me, "shot", &["Succeeded", "Failed"]);
    assert_eq!(done["status"]["phase"], "Succeeded", "{done:#}");
    let vmi = me.get("vmi", "shot");
    assert_eq!(uid(&vmi), uid(&before));
    assert_ne!(node(&vmi), node(&before));
    runs_once(me, "shot");

    // The source: the machine is lost with it, and begins anew, once.
    let link = SlowLink::new();
    let state = sets_off();
    kill(&me.get("pod", state["sourcePod"].as_str().unwrap()));
    until_phase(me, "shot", &["Failed"]);
    me.until_another_run("shot", &vmi);
    drop(link);
    runs_once(me, "shot");
}
