//! A machine's life, as people live it with kubectl and virtctl.
#![cfg(feature = "cluster")]

mod support;

use support::{Namespace, is, machine, uid};

#[test]
fn the_manifest_that_people_have_becomes_a_machine_in_a_pod() {
    let here = Namespace::new("classic");
    let me = &here.admin;
    let said = me.apply(&machine("ledger", "running: true"));
    assert!(
        said.contains("spec.running is deprecated, please use spec.runStrategy instead."),
        "{said}"
    );
    me.kubectl(&["wait", "--for=condition=Ready", "vm/ledger", "--timeout=180s"]);

    let table = me.kubectl(&["get", "vm"]);
    assert!(
        table.contains("ledger") && table.contains("Running") && table.contains("True"),
        "{table}"
    );
    let vmi = me.get("vmi", "ledger");
    assert_eq!(vmi["status"]["phase"], "Running");
    assert_eq!(
        vmi["status"]["nodeName"],
        vmi["metadata"]["labels"]["kubevirt.io/nodeName"]
    );
    let pod = me.pod("ledger");
    let name = pod["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("virt-launcher-ledger-"), "{name}");
    assert_eq!(
        vmi["status"]["interfaces"][0]["ipAddress"],
        pod["status"]["podIP"]
    );
    assert_eq!(
        pod["metadata"]["labels"]["app"], "ledger",
        "Services find machines by their labels"
    );

    let events = me.events();
    for said in [
        "Started the virtual machine by creating the new virtual machine instance ledger",
        "Created virtual machine pod virt-launcher-ledger-",
        "VirtualMachineInstance defined.",
        "VirtualMachineInstance started.",
    ] {
        assert!(events.contains(said), "{said}: {events}");
    }
}

#[test]
fn its_console_is_a_terminal_away() {
    let here = Namespace::new("console");
    let me = &here.admin;
    me.apply(&machine("talker", "runStrategy: RerunOnFailure"));
    // virtctl waits for an instance to run, not for there to be one.
    me.until("vmi", "talker", "there", |vmi| !vmi.is_null());
    let mut console = me.console("talker");
    console.types("say hello from inside");
    console.says("hello from inside");
    console.types("poweroff");
    me.until_status("talker", "Stopped");
    let refused = me.virtctl_fails(&["port-forward", "vmi/talker", "8080:80", "--stdio=true"]);
    assert!(
        refused.contains("VMI is not running") || refused.contains("Can't access"),
        "{refused}"
    );
}

#[test]
fn it_is_stopped_started_and_restarted() {
    let here = Namespace::new("verbs");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Halted"));
    me.until_status("a", "Stopped");
    assert!(me.virtctl_fails(&["stop", "a"]).contains("VM is not running"));
    assert!(
        me.virtctl(&["start", "a"])
            .contains("VM a was scheduled to start")
    );
    me.until_status("a", "Running");
    assert_eq!(me.get("vm", "a")["spec"]["runStrategy"], "Always");
    assert!(
        me.virtctl_fails(&["start", "a"])
            .contains("VM is already running")
    );

    let first = me.get("vmi", "a");
    me.virtctl(&["restart", "a"]);
    me.until_another_run("a", &first);

    me.virtctl(&["stop", "a"]);
    me.until_status("a", "Stopped");
    assert!(me.get("vmi", "a").is_null());
    assert_eq!(me.get("vm", "a")["spec"]["runStrategy"], "Halted");
}

#[test]
fn it_is_paused_and_goes_on() {
    let here = Namespace::new("pause");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Manual"));
    me.until_status("a", "Stopped");
    me.virtctl(&["start", "a", "--paused"]);
    me.until_status("a", "Paused");
    me.virtctl(&["unpause", "vm", "a"]);
    me.until_status("a", "Running");
    me.virtctl(&["pause", "vm", "a"]);
    me.until_status("a", "Paused");
    assert!(
        me.virtctl_fails(&["pause", "vmi", "a"])
            .contains("VMI is already paused")
    );
    me.virtctl(&["unpause", "vmi", "a"]);
    me.until_status("a", "Running");
    assert!(
        me.virtctl_fails(&["unpause", "vmi", "a"])
            .contains("VMI is not paused")
    );
}

#[test]
fn a_machine_that_is_paused_gets_nothing_from_services() {
    let here = Namespace::new("gate");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    me.virtctl(&["expose", "vm", "a", "--name=a", "--port=80"]);
    let serves = |serves: bool| {
        move |slices: &serde_json::Value| {
            let endpoints = slices["items"][0]["endpoints"].as_array();
            let ready = |list: &Vec<serde_json::Value>| list.iter().any(|e| e["conditions"]["ready"] == true);
            endpoints.is_some_and(|list| !list.is_empty() && ready(list) == serves)
        }
    };
    let slices = "--selector=kubernetes.io/service-name=a";
    me.until("endpointslices", slices, "serving", serves(true));
    me.virtctl(&["pause", "vm", "a"]);
    me.until("endpointslices", slices, "not serving", serves(false));
    me.virtctl(&["unpause", "vm", "a"]);
    me.until("endpointslices", slices, "serving again", serves(true));
}

#[test]
fn a_guest_that_does_not_answer_its_liveness_probe_begins_anew() {
    let here = Namespace::new("liveness");
    let me = &here.admin;
    // It has no TCP at all.
    let probe = "livenessProbe: {tcpSocket: {port: 22}, initialDelaySeconds: 5, failureThreshold: 1}";
    let probed = machine("a", "runStrategy: Always")
        .replace("      domain:", &format!("      {probe}\n      domain:"));
    me.apply(&probed);
    me.until_status("a", "Running");
    let first = me.get("vmi", "a");
    assert!(
        me.virtctl_fails(&["pause", "vm", "a"])
            .contains("LivenessProbe is currently not supported")
    );
    me.until_another_run("a", &first);
}

#[test]
fn a_reset_is_the_same_instance_from_its_first_instruction() {
    let here = Namespace::new("reset");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    let first = me.get("vmi", "a");
    let mut console = me.console("a");
    console.types("say before");
    console.says("before");
    me.virtctl(&["reset", "a"]);
    console.says("guest ready");
    me.virtctl(&["soft-reboot", "a"]);
    console.says("guest ready");
    let vmi = me.get("vmi", "a");
    assert_eq!(
        (uid(&vmi), &vmi["status"]["phase"]),
        (uid(&first), &"Running".into())
    );
    let conditions = vmi["status"]["conditions"].as_array().unwrap();
    assert!(
        conditions
            .iter()
            .any(|c| c["type"] == "LiveMigratable" && c["status"] == "True")
    );
}

#[test]
fn each_run_strategy_does_what_its_name_says_of_a_crash_and_of_a_shutdown() {
    let here = Namespace::new("strategies");
    let me = &here.admin;
    for strategy in ["Always", "RerunOnFailure", "Once", "Manual"] {
        me.apply(&machine(
            &strategy.to_lowercase(),
            &format!("runStrategy: {strategy}"),
        ));
    }
    me.virtctl(&["start", "manual"]);
    let all = ["always", "rerunonfailure", "once", "manual"];
    let first = all.map(|name| {
        me.until_status(name, "Running");
        uid(&me.get("vmi", name)).to_owned()
    });
    for name in all {
        me.crash(name);
    }
    for (name, first) in all.iter().zip(&first) {
        if matches!(*name, "always" | "rerunonfailure") {
            me.until("vmi", name, "run again", |vmi| {
                !vmi.is_null() && uid(vmi) != first && vmi["status"]["phase"] == "Running"
            });
        } else {
            me.until_status(name, "Stopped");
            assert_eq!(me.get("vmi", name)["status"]["phase"], "Failed");
        }
    }
    let mut console = me.console("rerunonfailure");
    console.types("poweroff");
    me.until_status("rerunonfailure", "Stopped");
    assert_eq!(me.get("vmi", "rerunonfailure")["status"]["phase"], "Succeeded");
    assert!(
        me.virtctl_fails(&["start", "always"])
            .contains("VM is already running")
    );
}

#[test]
fn who_deletes_a_machine_gets_rid_of_all_of_it_in_its_grace_period() {
    let here = Namespace::new("delete");
    let me = &here.admin;
    let hour = machine("a", "runStrategy: Always").replace("PeriodSeconds: 5", "PeriodSeconds: 3600");
    me.apply(&hour);
    me.until_status("a", "Running");
    let mut console = me.console("a");
    console.types("deaf");
    console.says("deaf to the power button");
    // The guest does not hear it: it would have an hour, and is killed at once.
    me.virtctl(&["stop", "a", "--force", "--grace-period=0"]);
    me.until("vmi", "a", "gone", |vmi| vmi.is_null());
    me.virtctl(&["start", "a"]);
    me.until_status("a", "Running");
    // This one hears it: nobody waits for the hour.
    me.kubectl(&["delete", "vm", "a", "--timeout=120s"]);
    assert!(me.get("vm", "a").is_null() && me.get("vmi", "a").is_null());
}

#[test]
fn an_instance_may_be_left_behind() {
    let here = Namespace::new("orphan");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    let before = me.get("vmi", "a");
    me.kubectl(&["delete", "vm", "a", "--cascade=orphan", "--timeout=120s"]);
    let after = me.get("vmi", "a");
    assert_eq!(uid(&after), uid(&before));
    assert!(after["metadata"]["ownerReferences"].is_null(), "{after:#}");
    assert_eq!(after["status"]["phase"], "Running");
    me.kubectl(&["delete", "vmi", "a", "--timeout=120s"]);
}

#[test]
fn a_template_that_changed_asks_for_a_restart() {
    let here = Namespace::new("changed");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    let required = |vm: &serde_json::Value| is(vm, "RestartRequired");
    me.kubectl(&[
        "patch",
        "vm",
        "a",
        "--type=merge",
        "-p",
        r#"{"spec":{"template":{"spec":{"domain":{"memory":{"guest":"96Mi"}}}}}}"#,
    ]);
    me.until("vm", "a", "asking for a restart", required);
    me.virtctl(&["restart", "a"]);
    me.until("vm", "a", "content", |vm| {
        !required(vm) && vm["status"]["printableStatus"] == "Running"
    });
    assert_eq!(me.get("vmi", "a")["spec"]["domain"]["memory"]["guest"], "96Mi");
}
