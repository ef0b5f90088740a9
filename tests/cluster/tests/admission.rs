//! What people are told when they apply something.
#![cfg(feature = "cluster")]

mod support;

use support::{Namespace, machine};

/// A machine with one thing changed.
fn wrong(from: &str, to: &str) -> String {
    let manifest = machine("a", "runStrategy: Halted");
    assert!(manifest.contains(from), "{from}");
    manifest.replace(from, to)
}

#[test]
fn what_is_wrong_in_a_manifest_is_said_in_kubevirts_words() {
    let here = Namespace::new("wrong");
    let me = &here.admin;
    #[rustfmt::skip]
    let table = [
        (wrong("memory: {guest: 64Mi}", "memory: {}"), "no memory requested"),
        (wrong("runStrategy: Halted", "running: true\n  runStrategy: Halted"), "Running and RunStrategy are mutually exclusive"),
        (wrong("runStrategy: Halted", "runStrategy: Sometimes"), "Invalid RunStrategy (Sometimes)"),
        (wrong("  runStrategy: Halted\n", ""), "RunStrategy must be specified"),
        (wrong("{name: init, serial", "{name: nothing, serial"), "spec.template.spec.domain.devices.disks[1].Name 'nothing' not found."),
        (wrong("serial: scratch, disk: {bus: virtio}", "disk: {bus: ide}"), "IDE bus is not supported"),
        (wrong("masquerade: {}", "masquerade: {}, bridge: {}"), "must have exactly one"),
        (wrong("cpu: {cores: 2}", "cpu: {cores: 2}\n        machine: {type: pc-i440fx}"), "is not supported: pc-i440fx (allowed values: [q35* pc-q35*])"),
        (wrong("terminationGracePeriodSeconds: 5", "terminationGracePeriodSeconds: 5\n      startStrategy: Later"), "is set with an unrecognized option: Later"),
        (wrong("terminationGracePeriodSeconds: 5", "evictionStrategy: Never"), "is set with an unrecognized option: Never"),
        (wrong("cloudInitNoCloud: {userData: '#cloud-config'}", "cloudInitNoCloud: {userData: a, userDataBase64: YQ==}"), "only one"),
        (wrong("networks: [{name: default, pod: {}}]", "networks: [{name: other, pod: {}}]"), "not found"),
        (wrong("  template:", "  instancetype: {name: nobodys}\n  template:"), "Failure to find instancetype: virtualmachineclusterinstancetypes.instancetype.kubevirt.io \"nobodys\" not found"),
        (wrong("  template:", "  preference: {inferFromVolume: scratch}\n  template:"), "Failure to infer preference: unable to infer defaults from volume scratch as type is not supported"),
    ];
    for (manifest, message) in table {
        let said = me.refused(&manifest);
        assert!(said.contains("The request is invalid: "), "{said}");
        assert!(said.contains(message), "not {message:?} but: {said}");
    }
}

#[test]
fn a_field_that_is_no_field_is_refused_by_kubectl() {
    let here = Namespace::new("misspelt");
    let said = here.admin.refused(&wrong("cores: 2", "coers: 2"));
    assert!(said.contains("unknown field") && said.contains("coers"), "{said}");
}

#[test]
fn a_disk_without_a_bus_is_taken_with_a_warning() {
    let here = Namespace::new("busless");
    let said = here
        .admin
        .apply(&wrong("serial: scratch, disk: {bus: virtio}", "serial: scratch"));
    assert!(said.contains("has no bus: it is presented as virtio"), "{said}");
}

#[test]
fn a_machine_gets_an_identity_that_it_keeps() {
    let here = Namespace::new("identity");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Halted"));
    let firmware = me.get("vm", "a")["spec"]["template"]["spec"]["domain"]["firmware"].clone();
    assert_eq!(firmware["uuid"].as_str().unwrap().len(), 36);
    me.apply(&machine("a", "runStrategy: Manual"));
    assert_eq!(
        me.get("vm", "a")["spec"]["template"]["spec"]["domain"]["firmware"],
        firmware
    );
}

#[test]
fn an_instance_is_nobodys_to_change() {
    let here = Namespace::new("immutable");
    let me = &here.admin;
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    let patch = r#"{"spec":{"domain":{"memory":{"guest":"1Gi"}}}}"#;
    let said = me.kubectl_fails(&["patch", "vmi", "a", "--type=merge", "-p", patch]);
    assert!(said.contains("update of VMI object is restricted"), "{said}");
    me.kubectl(&[
        "patch",
        "vmi",
        "a",
        "--type=merge",
        "-p",
        r#"{"status":{"phase":"Failed"}}"#,
    ]);
    assert_eq!(me.get("vmi", "a")["status"]["phase"], "Running");
    me.kubectl(&["label", "vmi", "a", "team=blue"]);
    let said = me.kubectl_fails(&[
        "label",
        "vmi",
        "a",
        "--overwrite",
        "kubevirt.io/nodeName=elsewhere",
    ]);
    assert!(said.contains("reserved kubevirt.io/ labels"), "{said}");
}

#[test]
fn what_virtctl_writes_is_taken_as_it_is() {
    let here = Namespace::new("created");
    let me = &here.admin;
    let manifest = me.virtctl(&[
        "create",
        "vm",
        "--name=made",
        "--run-strategy=Halted",
        "--memory=128Mi",
    ]);
    me.apply(&manifest);
    me.until_status("made", "Stopped");
}

#[test]
fn kinds_that_nothing_works_on_yet_say_so() {
    let here = Namespace::new("later");
    let me = &here.admin;
    let snapshot = "{apiVersion: snapshot.kubevirt.io/v1beta1, kind: VirtualMachineSnapshot, metadata: {name: s}, \
        spec: {source: {apiGroup: kubevirt.io, kind: VirtualMachine, name: a}, unheard: {of: 1}}}";
    let said = me.apply(snapshot);
    assert!(
        said.contains("stores a VirtualMachineSnapshot and does nothing with it yet"),
        "{said}"
    );
    let object = me.until("vmsnapshot", "s", "told", |object| {
        object["status"]["conditions"][0]["reason"] == "NotSupported"
    });
    assert_eq!(object["spec"]["unheard"]["of"], 1, "nothing is lost meanwhile");
}

#[test]
fn kubectl_knows_the_kinds_and_explains_their_fields() {
    let here = Namespace::new("known");
    let me = &here.admin;
    let explained = me.kubectl(&["explain", "vm.spec.template.spec.domain"]);
    assert!(
        explained.contains("cpu") && explained.contains("Processors."),
        "{explained}"
    );
    let kinds = me.kubectl(&["api-resources"]);
    for kind in [
        "vm,vms",
        "vmi,vmis",
        "vmim,vmims",
        "vmpool,vmpools",
        "vmsnapshot,vmsnapshots",
        "vmf,vmfs",
        "vmcp,vmcps",
        "kv,kvs",
    ] {
        assert!(kinds.contains(kind), "{kind}: {kinds}");
    }
    let warned = me.kubectl(&["get", "virtualmachines.v1alpha3.kubevirt.io"]);
    assert!(
        warned.contains("kubevirt.io/v1alpha3 is now deprecated"),
        "{warned}"
    );
}

#[test]
fn tools_see_that_it_is_installed() {
    let here = Namespace::new("installed");
    let me = &here.admin;
    let list = me.kubectl(&["get", "kubevirt", "-A", "-o", "jsonpath={.items[*].status.phase}"]);
    assert_eq!(list.trim(), "Deployed");
    let version = me.virtctl(&["version"]);
    assert!(
        version.contains("Server Version:") && version.contains("GitVersion:\"v1.8.4\""),
        "{version}"
    );
}
