//! Many equal machines: sets of instances, pools of machines, and what virtctl makes for a cluster.
#![cfg(feature = "cluster")]

mod support;

use std::cell::Cell;

use serde_json::{Value, json};
use support::{Namespace, Person, is, machine, uid};

/// The machine of the other stories as a template: its metadata, and its spec, indented for a place in a manifest.
fn template(name: &str, run: &str, indent: usize) -> String {
    let manifest = machine(name, run);
    let (_, spec) = manifest.split_once("\nspec:\n").unwrap();
    let lines = spec.lines().map(|line| format!("{}{line}\n", " ".repeat(indent)));
    lines.collect()
}

fn pool(replicas: usize, more: &str) -> String {
    format!(
        "
apiVersion: pool.kubevirt.io/v1beta1
kind: VirtualMachinePool
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{pool: web}}}}
  {more}
  virtualMachineTemplate:
    metadata: {{labels: {{pool: web}}}}
    spec:
{}",
        template("web", "runStrategy: Always", 4)
    )
}

fn set(replicas: usize) -> String {
    let template = template("web", "", 0);
    let (_, template) = template.split_once("  template:\n").unwrap();
    format!(
        "
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstanceReplicaSet
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
{template}"
    )
}

fn counts(object: &Value) -> (i64, i64) {
    let count = |field: &str| object["status"][field].as_i64().unwrap_or(-1);
    (count("replicas"), count("readyReplicas"))
}

fn names(me: &Person, kind: &str) -> Vec<String> {
    let list = me.kubectl(&["get", kind, "-o", "jsonpath={.items[*].metadata.name}"]);
    let mut names: Vec<_> = list.split_whitespace().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn a_set_has_as_many_instances_as_are_asked_for() {
    let here = Namespace::new("sets");
    let me = &here.admin;
    me.apply(&set(2));
    let full = me.until("vmirs", "web", "full", |set| counts(set) == (2, 2));
    assert_eq!(full["status"]["labelSelector"], "app=web");
    let first = names(me, "vmi");
    assert_eq!(first.len(), 2, "{first:?}");
    assert!(
        first
            .iter()
            .all(|name| name.starts_with("web") && name.len() == 8),
        "{first:?}"
    );
    let owner = &me.get("vmi", &first[0])["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], owner["uid"].as_str()),
        (&json!("VirtualMachineInstanceReplicaSet"), Some(uid(&full)))
    );

    // One that ends is replaced by another.
    me.kubectl(&["delete", "vmi", &first[0], "--wait=false"]);
    me.until("vmirs", "web", "full again", |set| {
        counts(set) == (2, 2) && !names(me, "vmi").contains(&first[0])
    });
    assert!(names(me, "vmi").contains(&first[1]), "the other was left alone");

    me.kubectl(&["scale", "vmirs", "web", "--replicas=1"]);
    me.until("vmirs", "web", "scaled in", |set| counts(set) == (1, 1));

    // Who is not selected any more is let go, and others are taken on.
    let last = me.until("vmirs", "web", "settled", |_| names(me, "vmi").len() == 1);
    assert_eq!(counts(&last).0, 1);
    let released = names(me, "vmi").remove(0);
    me.kubectl(&["label", "vmi", &released, "app=other", "--overwrite"]);
    me.until("vmi", &released, "nobody's", |vmi| {
        vmi["metadata"]["ownerReferences"].is_null()
    });
    me.until("vmirs", "web", "whole without it", |set| counts(set) == (1, 1));
    me.kubectl(&["label", "vmi", &released, "app=web", "--overwrite"]);
    // One too many now: one of the two goes.
    me.until("vmirs", "web", "of one again", |set| {
        counts(set) == (1, 1) && names(me, "vmi").len() == 1
    });

    me.kubectl(&[
        "patch",
        "vmirs",
        "web",
        "--type=merge",
        "-p",
        r#"{"spec": {"paused": true, "replicas": 3}}"#,
    ]);
    me.until("vmirs", "web", "paused", |set| is(set, "ReplicaPaused"));
    assert_eq!(names(me, "vmi").len(), 1);
    me.kubectl(&["delete", "vmirs", "web"]);
    me.until("vmirs", "web", "gone with all of it", |_| {
        names(me, "vmi").is_empty()
    });
}

#[test]
fn a_pool_numbers_its_machines_and_fills_gaps() {
    let here = Namespace::new("pools");
    let me = &here.admin;
    me.apply(&pool(
        2,
        "scaleInStrategy: {proactive: {selectionPolicy: {sortPolicy: DescendingOrder}}}",
    ));
    let full = me.until("vmpool", "web", "full", |pool| counts(pool) == (2, 2));
    assert_eq!(names(me, "vm"), ["web-0", "web-1"]);
    let vm = me.get("vm", "web-1");
    assert_eq!(
        vm["metadata"]["ownerReferences"][0]["uid"].as_str(),
        Some(uid(&full))
    );
    assert_eq!(
        vm["metadata"]["labels"]["kubevirt.io/vm-pool-revision-name"],
        "web-1"
    );

    // What an autoscaler reads and writes.
    let path = "/apis/pool.kubevirt.io/v1beta1/namespaces/pools/virtualmachinepools/web/scale";
    let scale: Value = serde_json::from_str(&me.kubectl(&["get", "--raw", path])).unwrap();
    assert_eq!(
        (&scale["status"]["replicas"], &scale["status"]["selector"]),
        (&json!(2), &json!("pool=web"))
    );
    me.kubectl(&["scale", "vmpool", "web", "--replicas=3"]);
    me.until("vmpool", "web", "of three", |pool| counts(pool) == (3, 3));
    let before = me.get("vmi", "web-0");

    // A machine that somebody deletes is made again, under its name.
    let old = me.get("vm", "web-1");
    me.kubectl(&["delete", "vm", "web-1", "--wait=false"]);
    me.until("vm", "web-1", "another", |vm| {
        !vm.is_null() && uid(vm) != uid(&old)
    });
    me.until("vmpool", "web", "of three again", |pool| counts(pool) == (3, 3));

    me.kubectl(&["scale", "vmpool", "web", "--replicas=1"]);
    me.until("vmpool", "web", "of one", |pool| counts(pool) == (1, 1));
    assert_eq!(names(me, "vm"), ["web-0"], "the highest numbers went");
    // Its number changed and its template did not: nothing was restarted.
    assert_eq!(uid(&me.get("vmi", "web-0")), uid(&before));

    // Who keeps the machines when the pool goes has them.
    me.kubectl(&["delete", "vmpool", "web", "--cascade=orphan"]);
    me.until("vm", "web-0", "nobody's", |vm| {
        vm["metadata"]["ownerReferences"].is_null()
    });
    assert_eq!(uid(&me.get("vmi", "web-0")), uid(&before));
}

#[test]
fn a_changed_template_is_rolled_out_while_enough_machines_serve() {
    let here = Namespace::new("rollouts");
    let me = &here.admin;
    let slowly = "maxUnavailable: 1";
    me.apply(&pool(2, slowly));
    me.until("vmpool", "web", "full", |pool| counts(pool) == (2, 2));
    let before = [me.get("vmi", "web-0"), me.get("vmi", "web-1")];
    let changed = pool(2, slowly).replace("guest: 64Mi", "guest: 80Mi");
    me.apply(&changed);
    let least = Cell::new(2);
    me.until("vmpool", "web", "renewed", |pool| {
        let now = [me.get("vmi", "web-0"), me.get("vmi", "web-1")];
        let serving = now
            .iter()
            .filter(|vmi| !vmi.is_null() && is(vmi, "Ready"))
            .count();
        least.set(least.get().min(serving));
        counts(pool) == (2, 2)
            && now.iter().zip(&before).all(|(now, before)| {
                !now.is_null()
                    && uid(now) != uid(before)
                    && now["spec"]["domain"]["memory"]["guest"] == "80Mi"
                    && is(now, "Ready")
            })
    });
    assert!(least.get() >= 1, "no machine served while they were renewed");
    let identity = |vmi: &Value| vmi["spec"]["domain"]["firmware"]["uuid"].clone();
    assert_eq!(
        identity(&me.get("vmi", "web-0")),
        identity(&before[0]),
        "it stays who it is for its guest"
    );

    // Machines that are changed, and left running.
    let after = me.get("vmi", "web-0");
    me.apply(
        &changed
            .replace("80Mi", "96Mi")
            .replace(slowly, "updateStrategy: {opportunistic: {}}"),
    );
    me.until("vm", "web-0", "changed", |vm| {
        vm["spec"]["template"]["spec"]["domain"]["memory"]["guest"] == "96Mi" && is(vm, "RestartRequired")
    });
    assert_eq!(uid(&me.get("vmi", "web-0")), uid(&after));
}

#[test]
fn what_a_pool_cannot_mean_is_refused_and_what_it_cannot_do_it_says() {
    let here = Namespace::new("nopools");
    let me = &here.admin;
    #[rustfmt::skip]
    let table = [
        (pool(1, "").replace("matchLabels: {pool: web}", "matchLabels: {pool: other}"), "selector does not match labels."),
        (pool(1, "maxUnavailable: some"), "invalid maxUnavailable percentage"),
        (pool(1, "").replace("masquerade: {}", "slirp: {}"), "Slirp network binding has been discontinued"),
        (pool(1, "sellector: {}"), "unknown field"),
        (set(1).replace("matchLabels: {app: web}", "matchLabels: {app: other}"), "selector does not match labels."),
    ];
    for (manifest, words) in table {
        let said = me.refused(&manifest);
        assert!(said.contains(words), "not {words:?} but {said}");
    }
    me.apply(
        "{apiVersion: v1, kind: ResourceQuota, metadata: {name: none}, spec: {hard: {count/virtualmachines.kubevirt.io: 0}}}",
    );
    me.until("resourcequota", "none", "counted", |quota| {
        quota["status"]["hard"].is_object()
    });
    me.apply(&pool(1, ""));
    let pool = me.until("vmpool", "web", "failing", |pool| is(pool, "ReplicaFailure"));
    let said = pool["status"]["conditions"].to_string();
    assert!(
        said.contains("FailedScaleOut") && said.contains("exceeded quota"),
        "{said}"
    );
}

#[test]
fn what_virtctl_makes_is_taken_and_serves() {
    let here = Namespace::new("virtctl-makes");
    let me = &here.admin;
    let kinds = [
        me.virtctl(&[
            "create",
            "instancetype",
            "--name=small",
            "--cpu=1",
            "--memory=96Mi",
            "--namespaced",
        ]),
        me.virtctl(&[
            "create",
            "preference",
            "--name=plain",
            "--cpu-topology=cores",
            "--namespaced",
        ]),
        me.virtctl(&[
            "create",
            "vm",
            "--name=made",
            "--run-strategy=Halted",
            "--instancetype=virtualmachineinstancetype/small",
            "--preference=virtualmachinepreference/plain",
            "--volume-containerdisk=src:localhost/linux:1",
        ]),
    ];
    for manifest in kinds {
        me.apply(&manifest);
    }
    me.until_status("made", "Stopped");

    me.apply(&machine("web", "runStrategy: Always"));
    me.until_status("web", "Running");
    me.virtctl(&["expose", "vm", "web", "--name=ssh", "--port=22"]);
    me.until("endpoints", "ssh", "led to the machine", |endpoints| {
        endpoints["subsets"][0]["addresses"][0]["ip"] == me.pod("web")["status"]["podIP"]
    });
    me.virtctl(&[
        "expose",
        "vmi",
        "web",
        "--name=http",
        "--port=80",
        "--type=NodePort",
    ]);
    assert!(me.get("service", "http")["spec"]["ports"][0]["nodePort"].is_number());
    me.apply(&set(1).replace("metadata: {name: web}", "metadata: {name: many}"));
    me.virtctl(&["expose", "vmirs", "many", "--name=all", "--port=80"]);
    assert_eq!(me.get("service", "all")["spec"]["selector"]["app"], "web");
}
