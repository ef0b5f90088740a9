//! What breaks, and what is left standing; what is counted. Alone on the cluster, one after the other.
#![cfg(feature = "cluster")]

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Namespace, PATIENCE, Person, is, machine, output, script, uid};

fn run(name: &str, args: &[&str]) {
    let done = output(script(name).args(args), "");
    assert!(
        done.status.success(),
        "{name} {args:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// Alone: a machine for which there is no room for a moment, or whose image does not come, says so in one write more.
#[test]
fn a_start_costs_three_writes_of_the_instance() {
    let here = Namespace::new("writes");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.kubectl(&["wait", "--for=condition=Ready", "vm/a", "--timeout=180s"]);
    // The write that comes next: what was before is of the start, all of it.
    me.virtctl(&["pause", "vm", "a"]);
    me.until_status("a", "Paused");
    let noted = output(script("writes").arg("writes"), "");
    let noted = String::from_utf8(noted.stdout).unwrap();
    let events = noted
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_instance = |event: &Value| event["objectRef"]["resource"] == "virtualmachineinstances";
    let writes: Vec<_> = events.filter(of_instance).collect();
    let word = |event: &Value| {
        let status = &event["requestObject"]["status"];
        match (
            is(&event["requestObject"], "Paused"),
            is(&event["requestObject"], "Ready"),
        ) {
            (true, _) => "Paused".to_owned(),
            (_, true) => "Ready".to_owned(),
            _ => format!(
                "{} {}",
                event["verb"].as_str().unwrap(),
                status["phase"].as_str().unwrap_or_default()
            ),
        }
    };
    let words: Vec<_> = writes.iter().map(word).collect();
    let paused = words.iter().position(|word| word == "Paused").unwrap();
    // Made, and written at most three times: that it has a pod, that it runs, that it is ready.
    assert_eq!(words[0], "create ", "{words:?}");
    assert!(
        words[..paused].ends_with(&["Ready".to_owned()]) && paused <= 4,
        "{words:?}"
    );
}

#[test]
fn what_machines_do_not_say_the_administrator_may() {
    let here = Namespace::new("settings");
    let me = &here.admin;
    let set = |configuration: &str| {
        let patch = format!(r#"{{"spec":{{"configuration":{configuration}}}}}"#);
        let object = ["-n", "nacelle", "patch", "kubevirt", "kubevirt", "--type=merge"];
        me.kubectl(&[&object[..], &["-p", &patch]].concat());
    };
    set(
        r#"{"evictionStrategy": "External", "network": {"defaultNetworkInterface": "masquerade"},
            "developerConfiguration": {"cpuAllocationRatio": 4}, "smbios": {"family": "Servers"}}"#,
    );
    me.kubectl(&[
        "-n",
        "nacelle",
        "wait",
        "kubevirt/kubevirt",
        "--for=condition=ConfigurationIgnored",
    ]);
    let told = me.kubectl(&["-n", "nacelle", "get", "kubevirt", "kubevirt", "-o", "yaml"]);
    assert!(told.contains("these values: spec.configuration.smbios"), "{told}");

    // A replica hears of it when it does.
    let silent = "{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, metadata: {name: silent}, \
        spec: {domain: {memory: {guest: 64Mi}, devices: {}}}}";
    let dry = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
    let end = Instant::now() + PATIENCE;
    loop {
        let made = output(&mut me.command("kubectl", &dry), silent);
        let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        if made["spec"]["evictionStrategy"] == "External" {
            let interface = &made["spec"]["domain"]["devices"]["interfaces"][0];
            assert_eq!(interface["masquerade"], serde_json::json!({}));
            break;
        }
        assert!(Instant::now() < end, "{made:#}");
    }
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    let compute = &me.pod("a")["spec"]["containers"][0];
    assert_eq!(
        compute["resources"]["requests"]["cpu"], "500m",
        "two vCPUs, four for each CPU"
    );
    set("null");
}

#[test]
fn a_controller_that_is_killed_touches_no_machine() {
    let here = Namespace::new("killed");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    let before = me.get("vmi", "a");
    // Both replicas at once, while another machine is being made.
    let kill = || {
        let selector = "--selector=app=nacelle-controller";
        let now = ["--grace-period=0", "--force", "--wait=false"];
        me.kubectl(&[&["-n", "nacelle", "delete", "pods", selector], &now[..]].concat());
    };
    kill();
    me.apply_when_served(&machine("b", "runStrategy: Always"));
    kill();
    me.until_status("b", "Running");
    let after = me.get("vmi", "a");
    assert_eq!(
        (uid(&after), &after["status"]["phase"]),
        (uid(&before), &before["status"]["phase"])
    );
    for name in ["a", "b"] {
        let vmi = me.get("vmi", name);
        let pods = me.kubectl(&[
            "get",
            "pods",
            "-l",
            &format!("vm.kubevirt.io/name={name}"),
            "-o",
            "name",
        ]);
        assert_eq!(pods.lines().count(), 1, "{}: {pods}", uid(&vmi));
    }
}

#[test]
fn a_replica_that_leads_no_more_goes_on_serving() {
    let here = Namespace::new("relieved");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    let mut console = me.console("a");
    let leader = || {
        me.kubectl(&[
            "-n",
            "nacelle",
            "get",
            "lease",
            "nacelle-controller",
            "-o",
            "jsonpath={.spec.holderIdentity}",
        ])
    };
    let restarts = || {
        let path = "jsonpath={.items[*].status.containerStatuses[0].restartCount} {.items[*].metadata.name}";
        me.kubectl(&[
            "-n",
            "nacelle",
            "get",
            "pods",
            "-l",
            "app=nacelle-controller",
            "-o",
            path,
        ])
    };
    let before = restarts();
    let stolen = r#"{"spec":{"holderIdentity":"somebody","leaseDurationSeconds":20}}"#;
    me.kubectl(&[
        "-n",
        "nacelle",
        "patch",
        "lease",
        "nacelle-controller",
        "--type=merge",
        "-p",
        stolen,
    ]);
    // Until it looks at its lease again, some seconds, the old leader does not know.
    let end = Instant::now() + PATIENCE;
    while leader() == "somebody" {
        assert!(Instant::now() < end, "nobody leads after the thief is gone");
        std::thread::sleep(Duration::from_secs(1));
    }
    me.apply(&machine("b", "runStrategy: Always"));
    me.until_status("b", "Running");
    console.types("say still here");
    console.says("still here");
    assert_eq!(restarts(), before);
}

#[test]
fn an_api_server_that_is_restarted_is_come_back_to() {
    let here = Namespace::new("apiserver");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    let before = me.get("vmi", "a");
    run("apiserver-down", &[]);
    run("apiserver-up", &[]);
    me.kubectl(&[
        "-n",
        "nacelle",
        "rollout",
        "status",
        "deployment/nacelle-controller",
        "--timeout=180s",
    ]);
    let served = "v1.subresources.kubevirt.io";
    me.until("apiservice", served, "available", |service| {
        is(service, "Available")
    });
    assert_eq!(uid(&me.get("vmi", "a")), uid(&before));
    me.virtctl(&["restart", "a"]);
    me.until_another_run("a", &before);
}

#[test]
fn a_quota_that_is_used_up_is_told_and_waited_for() {
    let here = Namespace::new("quota");
    let me = &here.admin;
    me.kubectl(&["create", "quota", "small", "--hard=requests.memory=16Mi"]);
    me.apply(&machine("a", "runStrategy: Always"));
    let vmi = me.until("vmi", "a", "told", |vmi| {
        let conditions = vmi["status"]["conditions"].as_array();
        conditions.is_some_and(|list| list.iter().any(|c| c["reason"] == "FailedCreate"))
    });
    assert!(vmi.to_string().contains("exceeded quota: small"), "{vmi:#}");
    assert!(me.events().contains("exceeded quota: small"));
    me.kubectl(&["delete", "quota", "small"]);
    me.until_status("a", "Running");
}

#[test]
fn a_drained_node_asks_the_machine_whether_it_may_go() {
    let here = Namespace::new("drain");
    let me = &here.admin;
    let strategy = |name: &str, strategy: &str| {
        let to = format!("evictionStrategy: {strategy}\n      terminationGracePeriodSeconds: 5");
        machine(name, "runStrategy: Always").replace("terminationGracePeriodSeconds: 5", &to)
    };
    // One that has the pod's address cannot have another's. Those that can move do: migration.rs.
    let stays = strategy("stays", "LiveMigrate");
    me.apply(&stays.replace("masquerade: {}", "bridge: {}"));
    me.apply(&strategy("announced", "External"));
    me.apply(&strategy("goes", "None"));
    let evict = |name: &str| {
        me.until_status(name, "Running");
        let pod = me.kubectl(&[
            "get",
            "pods",
            "-l",
            &format!("vm.kubevirt.io/name={name}"),
            "-o",
            "jsonpath={.items[0].metadata.name}",
        ]);
        let pod = pod.trim();
        let body = format!(
            r#"{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{pod}","namespace":"drain"}}}}"#
        );
        let file = std::env::temp_dir().join(format!("nacelle-eviction-{name}.json"));
        std::fs::write(&file, body).unwrap();
        let path = format!("/api/v1/namespaces/drain/pods/{pod}/eviction");
        let done = output(
            script("kubectl").args(["create", "--raw", &path, "-f", file.to_str().unwrap()]),
            "",
        );
        String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned()
    };
    let said = evict("stays");
    assert!(
        said.contains("VMI stays is configured with an eviction strategy but is not live-migratable"),
        "{said}"
    );
    let said = evict("announced");
    assert!(
        said.contains("Eviction triggered evacuation of VMI \\\"drain/announced\\\"")
            || said.contains("Eviction triggered evacuation of VMI \"drain/announced\""),
        "{said}"
    );
    me.until("vmi", "announced", "announced", |vmi| {
        vmi["status"]["evacuationNodeName"] == vmi["status"]["nodeName"]
    });
    let before = me.get("vmi", "goes");
    let said = evict("goes");
    assert!(said.contains("Success"), "{said}");
    me.until_another_run("goes", &before);
}

#[test]
fn a_machine_of_a_node_that_was_cut_off_runs_elsewhere() {
    let here = Namespace::new("cutoff");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    let before = me.get("vmi", "a");
    let node = before["status"]["nodeName"].as_str().unwrap().to_owned();
    let number = node.trim_start_matches("node").to_owned();
    run("node-down", &[&number]);
    let after = me.until_another_run("a", &before);
    assert_ne!(after["status"]["nodeName"], node.as_str());
    assert!(
        me.events()
            .contains(&format!("node {node} is not responsive, marking VMI as failed"))
    );
    run("node-up", &[&number]);
    me.until("node", &node, "back", |node| is(node, "Ready"));
}

/// The authorities that the API server trusts admission by.
fn authorities(me: &Person) -> String {
    let path = "jsonpath={.webhooks[0].clientConfig.caBundle}";
    me.kubectl(&[
        "get",
        "validatingwebhookconfiguration",
        "nacelle-controller",
        "-o",
        path,
    ])
}

#[test]
fn certificates_are_renewed_and_everybody_is_answered_meanwhile() {
    let here = Namespace::new("renewal");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    let certificate = || {
        let path = "jsonpath={.data.tls\\.crt}";
        me.kubectl(&[
            "-n",
            "nacelle",
            "get",
            "secret",
            "nacelle-controller-certs",
            "-o",
            path,
        ])
    };
    let before = authorities(me);
    run("age-certificates", &[]);
    let aged = certificate();
    let end = Instant::now() + PATIENCE;
    // Until a new authority is known, has signed, and what it signed has been in use for a while.
    let mut renewed = None;
    while renewed.is_none_or(|at: Instant| at.elapsed() < Duration::from_secs(20)) {
        assert!(Instant::now() < end, "nothing is renewed");
        // Admission, which refuses, the aggregated API, and a launcher's report of what it was told by it.
        assert!(
            me.refused(&machine("b", "runStrategy: Sometimes"))
                .contains("Invalid RunStrategy")
        );
        me.virtctl(&["pause", "vmi", "a"]);
        me.until_status("a", "Paused");
        me.virtctl(&["unpause", "vmi", "a"]);
        me.until_status("a", "Running");
        if renewed.is_none() && certificate() != aged && authorities(me) != before {
            renewed = Some(Instant::now());
        }
    }
}

#[test]
fn an_upgrade_touches_no_machine_that_runs() {
    let here = Namespace::new("upgrade");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.kubectl(&["wait", "--for=condition=Ready", "vm/a", "--timeout=180s"]);
    let before = me.pod("a");
    let mut console = me.console("a");
    let (old, new) = ("nacelle.local/nacelle:0.1.0", "nacelle.local/nacelle:next");
    for node in ["1", "2"] {
        run(
            "in-node",
            &[node, "ctr", "-n", "k8s.io", "images", "tag", "--force", old, new],
        );
    }
    let upgrade = |image: &str| {
        let containers = format!("controller={image}");
        let variable = format!("NACELLE_IMAGE={image}");
        let deployment = "deployment/nacelle-controller";
        me.kubectl(&["-n", "nacelle", "set", "image", deployment, &containers]);
        me.kubectl(&["-n", "nacelle", "set", "env", deployment, &variable]);
        me.kubectl(&[
            "-n",
            "nacelle",
            "set",
            "image",
            "daemonset/nacelle-node",
            &format!("node={image}"),
        ]);
        for what in [deployment, "daemonset/nacelle-node"] {
            me.kubectl(&["-n", "nacelle", "rollout", "status", what, "--timeout=180s"]);
        }
    };
    upgrade(new);
    // virtctl was connected through a replica that is gone.
    drop(console);
    console = me.console("a");
    console.types("say still here");
    console.says("still here");
    let after = me.pod("a");
    assert_eq!(uid(&after), uid(&before));
    assert_eq!(after["spec"], before["spec"]);
    let container = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(container(&after), container(&before));
    // The next start has the new launcher.
    me.virtctl(&["restart", "a"]);
    me.until("vmi", "a", "of the new image", |vmi| {
        vmi["status"]["phase"] == "Running" && vmi["status"]["launcherContainerImageVersion"] == new
    });
    upgrade(old);
}
