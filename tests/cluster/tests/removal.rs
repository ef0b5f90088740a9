//! The last story: it is removed as docs/install.md says, and nothing is left.
#![cfg(feature = "cluster")]

mod support;

use serde_json::Value;
use support::{Namespace, Person, machine};

/// In every namespace, not in the test's own, which comes before it.
const EVERYWHERE: &str = "--namespace=";

/// Kinds that run nothing, of which somebody may have stored objects.
const STORED: &str = "virtualmachineinstancepresets,virtualmachineinstancetypes,virtualmachineclusterinstancetypes,\
    virtualmachinepreferences,virtualmachineclusterpreferences";

#[test]
fn who_removes_it_finds_nothing_left() {
    let here = Namespace::new("removal");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    let all = ["--all", "--all-namespaces", EVERYWHERE, "--timeout=120s"];
    me.kubectl(&[&["delete", "vm,vmi"], &all[..]].concat());
    removed(me, || {
        let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
        me.kubectl(&["delete", "-k", deploy, EVERYWHERE, "--timeout=600s"]);
    });

    // Helm installs the same, and takes it away.
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/helm");
    me.helm(&[
        "install",
        "nacelle",
        chart,
        "--create-namespace",
        "--wait",
        "--timeout=180s",
    ]);
    // The controller makes it, a moment after it runs.
    me.kubectl(&[
        "wait",
        "kubevirt/kubevirt",
        "--namespace=nacelle",
        "--for=create",
        "--timeout=60s",
    ]);
    let deployed = "--for=jsonpath={.status.phase}=Deployed";
    me.kubectl(&[
        "wait",
        "kubevirt/kubevirt",
        "--namespace=nacelle",
        deployed,
        "--timeout=60s",
    ]);
    let available = "--for=condition=Available";
    me.kubectl(&[
        "wait",
        "kubevirt/kubevirt",
        "--namespace=nacelle",
        available,
        "--timeout=60s",
    ]);
    let helms = Namespace::new("by-helm");
    helms
        .admin
        .apply_when_served(&machine("a", "runStrategy: Always"));
    helms.admin.until_status("a", "Running");
    drop(helms);
    removed(me, || {
        me.helm(&["uninstall", "nacelle", "--wait", "--timeout=180s"]);
        me.kubectl(&["delete", "namespace", "nacelle", "--timeout=180s"]);
    });
}

/// What docs/install.md says, besides the removal itself.
fn removed(me: &Person, remove: impl FnOnce()) {
    me.kubectl(&["get", STORED, "--all-namespaces", EVERYWHERE]);
    remove();
    me.kubectl(&["label", "nodes", "--all", "kubevirt.io/schedulable-"]);
    me.kubectl(&[
        "annotate",
        "nodes",
        "--all",
        "kubevirt.io/heartbeat-",
        "nacelle.io/cpu-",
    ]);
    let nodes: Value = serde_json::from_str(&me.kubectl(&["get", "nodes", "-o", "json"])).unwrap();
    for node in nodes["items"].as_array().unwrap() {
        let labels = node["metadata"]["labels"].as_object().unwrap().keys();
        let processor: Vec<_> = labels
            .filter(|label| label.contains(".node.kubevirt.io/"))
            .map(|label| format!("{label}-"))
            .collect();
        assert!(!processor.is_empty(), "{node:#}");
        let name = node["metadata"]["name"].as_str().unwrap();
        let words = ["label", "node", name]
            .into_iter()
            .chain(processor.iter().map(String::as_str));
        me.kubectl(&words.collect::<Vec<_>>());
    }
    nothing_is_left(me);
}

fn nothing_is_left(me: &Person) {
    for kinds in [
        "crd,clusterroles,clusterrolebindings,apiservices",
        "mutatingwebhookconfigurations,validatingwebhookconfigurations,namespaces,priorityclasses",
        "pods,secrets,configmaps,leases,controllerrevisions,services,rolebindings",
    ] {
        let left = me.kubectl(&["get", kinds, "--all-namespaces", "-o", "name"]);
        let ours = |line: &&str| {
            line.contains("nacelle") || line.contains("kubevirt") || line.contains("virt-launcher")
        };
        let ours: Vec<_> = left.lines().filter(ours).collect();
        assert!(ours.is_empty(), "{ours:?}");
    }
    let nodes = me.kubectl(&[
        "get",
        "nodes",
        "-o",
        "jsonpath={.items[*].metadata.labels}{.items[*].metadata.annotations}",
    ]);
    assert!(!nodes.contains("kubevirt.io/"), "{nodes}");
}
