//! Machines that leave their size to an instance type and their defaults to a preference.
#![cfg(feature = "cluster")]

mod support;

use serde_json::Value;
use support::{Namespace, Person, machine};

/// An instance type and a preference of the namespace.
const TYPES: &str = "
apiVersion: instancetype.kubevirt.io/v1beta1
kind: VirtualMachineInstancetype
metadata: {name: little}
spec: {cpu: {guest: 2}, memory: {guest: 96Mi}}
---
apiVersion: instancetype.kubevirt.io/v1beta1
kind: VirtualMachinePreference
metadata: {name: plain}
spec:
  cpu: {preferredCPUTopology: cores}
  devices: {preferredDiskBus: virtio, preferredRng: {}}
  preferredTerminationGracePeriodSeconds: 5
";

/// What a person with virtctl makes of them. The image is there for its disk; the guest is the payload, as everywhere.
fn created(me: &Person, name: &str) -> String {
    me.virtctl(&[
        "create",
        "vm",
        &format!("--name={name}"),
        "--run-strategy=Halted",
        "--instancetype=virtualmachineinstancetype/little",
        "--preference=virtualmachinepreference/plain",
        "--volume-containerdisk=src:localhost/linux:1",
    ])
}

/// A machine as `expand-spec` writes it out.
fn expanded(me: &Person, namespace: &str, name: &str) -> Value {
    let path = format!(
        "/apis/subresources.kubevirt.io/v1/namespaces/{namespace}/virtualmachines/{name}/expand-spec"
    );
    serde_json::from_str(&me.kubectl(&["get", "--raw", &path])).unwrap()
}

/// The machine of the other stories, with its own size or without, and with a line more in its spec.
fn naming(line: &str, sized: bool) -> String {
    let manifest =
        machine("b", "runStrategy: Halted").replace("  template:", &format!("  {line}\n  template:"));
    if sized {
        return manifest;
    }
    let own = ["        cpu: {cores: 2}\n", "        memory: {guest: 64Mi}\n"];
    own.iter().fold(manifest, |manifest, own| {
        assert!(manifest.contains(own), "{manifest}");
        manifest.replace(own, "")
    })
}

#[test]
fn a_machine_has_the_size_that_its_instance_type_had() {
    let here = Namespace::new("sizes");
    let me = &here.admin;
    me.apply(TYPES);
    me.apply(&created(me, "made"));
    let vm = me.until("vm", "made", "pinned", |vm| {
        vm["status"]["preferenceRef"]["controllerRevisionRef"]["name"].is_string()
    });
    let revision = &vm["status"]["instancetypeRef"]["controllerRevisionRef"]["name"];
    let revision = me.get("controllerrevision", revision.as_str().unwrap());
    assert_eq!(revision["data"]["spec"]["cpu"]["guest"], 2, "{revision:#}");
    assert_eq!(
        revision["metadata"]["ownerReferences"][0]["uid"],
        vm["metadata"]["uid"]
    );

    // What becomes of the instance type does not change the machine.
    me.kubectl(&[
        "patch",
        "vminstancetype",
        "little",
        "--type=merge",
        "-p",
        r#"{"spec": {"cpu": {"guest": 1}, "memory": {"guest": "128Mi"}}}"#,
    ]);
    let spec = &expanded(me, "sizes", "made")["spec"];
    assert_eq!(spec["template"]["spec"]["domain"]["memory"]["guest"], "96Mi");
    assert_eq!(spec["template"]["spec"]["domain"]["cpu"]["cores"], 2);
    assert!(spec["instancetype"].is_null() && spec["preference"].is_null());
    let kernel = r#"{"spec": {"runStrategy": "Always", "template": {"spec": {"domain": {"firmware": {"kernelBoot": {
        "kernelArgs": "shell", "container": {"image": "localhost/payload:1", "kernelPath": "/payload", "imagePullPolicy": "Never"}
    }}}}}}}"#;
    me.kubectl(&["patch", "vm", "made", "--type=merge", "-p", kernel]);
    me.until_status("made", "Running");
    let vmi = me.get("vmi", "made");
    assert_eq!(
        vmi["status"]["currentCPUTopology"],
        serde_json::json!({"sockets": 1, "cores": 2, "threads": 1})
    );
    assert_eq!(vmi["status"]["memory"]["guestAtBoot"], "96Mi");
    let annotations = &vmi["metadata"]["annotations"];
    assert_eq!(annotations["kubevirt.io/instancetype-name"], "little");
    assert_eq!(annotations["kubevirt.io/preference-name"], "plain");
    let devices = &vmi["spec"]["domain"]["devices"];
    assert_eq!(devices["disks"][0]["disk"]["bus"], "virtio", "{devices:#}");
    let restart = me.get("vm", "made")["status"]["conditions"].to_string();
    assert!(!restart.contains("RestartRequired"), "{restart}");

    // A machine that comes later has what it says now.
    me.apply(&naming(
        "instancetype: {name: little, kind: VirtualMachineInstancetype}",
        false,
    ));
    let spec = &expanded(me, "sizes", "b")["spec"];
    assert_eq!(spec["template"]["spec"]["domain"]["memory"]["guest"], "128Mi");
}

#[test]
fn what_does_not_go_together_is_refused_in_kubevirts_words() {
    let here = Namespace::new("mismatched");
    let me = &here.admin;
    me.apply(TYPES);
    me.apply(
        "{apiVersion: instancetype.kubevirt.io/v1beta1, kind: VirtualMachinePreference, metadata: {name: big}, \
          spec: {requirements: {cpu: {guest: 4}}}}",
    );
    let little = "instancetype: {name: little, kind: virtualmachineinstancetypes}";
    let big = format!("{little}\n  preference: {{name: big, kind: VirtualMachinePreference}}");
    #[rustfmt::skip]
    let table = [
        (naming(little, true), "VM field(s) spec.template.spec.domain.memory.guest conflicts with selected instance type"),
        (naming(little, true), "VM field(s) spec.template.spec.domain.cpu.cores conflicts with selected instance type"),
        (naming("instancetype: {name: little}", false), "Failure to find instancetype: virtualmachineclusterinstancetypes.instancetype.kubevirt.io \"little\" not found"),
        (naming("preference: {name: none, kind: VirtualMachinePreference}", true), "Failure to find preference: virtualmachinepreferences.instancetype.kubevirt.io \"none\" not found"),
        (naming("instancetype: {name: little, kind: Deployment}", false), "got unexpected kind in InstancetypeMatcher: Deployment"),
        (naming(&big, false), "insufficient CPU resources of 2 vCPU provided by instance type, preference requires 4 vCPU"),
        (TYPES.replace("preferredCPUTopology: cores", "preferredCPUTopology: rings"), "unknown preferredCPUTopology rings"),
        (TYPES.replace("memory: {guest: 96Mi}", "memory: {guest: 96Mi, gest: 1}"), "unknown field"),
    ];
    for (manifest, message) in table {
        let said = me.refused(&manifest);
        assert!(said.contains(message), "not {message:?} but: {said}");
    }
}

#[test]
fn a_volume_names_what_its_machine_is_made_of() {
    let here = Namespace::new("inferred");
    let me = &here.admin;
    me.apply(TYPES);
    let claim = |name: &str, labels: &str| {
        me.apply(&format!(
            "{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}, labels: {{{labels}}}}}, \
             spec: {{accessModes: [ReadWriteOnce], storageClassName: by-hand, resources: {{requests: {{storage: 1Mi}}}}}}}}"
        ));
    };
    let group = "instancetype.kubevirt.io";
    let little = format!(
        "{group}/default-instancetype: little, {group}/default-instancetype-kind: VirtualMachineInstancetype"
    );
    claim("golden", &little);
    claim("silent", "a: b");
    me.apply(&format!(
        "{{apiVersion: cdi.kubevirt.io/v1beta1, kind: DataSource, \
         metadata: {{name: debian, labels: {{{group}/default-preference: plain, {group}/default-preference-kind: VirtualMachinePreference}}}}, \
         spec: {{source: {{pvc: {{name: golden}}}}}}}}"
    ));
    let infers = "instancetype: {inferFromVolume: scratch}\n  \
        preference: {inferFromVolume: scratch, inferFromVolumeFailurePolicy: Ignore}";
    let on = |volume: &str, more: &str| {
        naming(&format!("{infers}{more}"), false).replace("emptyDisk: {capacity: 16Mi}", volume)
    };
    let of_claim = on("persistentVolumeClaim: {claimName: golden}", "");
    me.apply(&of_claim);
    let vm = me.get("vm", "b");
    let named = serde_json::json!({"name": "little", "kind": "VirtualMachineInstancetype"});
    assert_eq!(vm["spec"]["instancetype"], named, "{vm:#}");
    assert!(vm["spec"]["preference"].is_null(), "it names none: {vm:#}");
    // Who applies the same once more changes nothing.
    me.apply(&of_claim);
    let again = me.get("vm", "b");
    assert_eq!(again["spec"], vm["spec"]);
    assert_eq!(again["metadata"]["generation"], vm["metadata"]["generation"]);

    let template = "\n  dataVolumeTemplates: [{metadata: {name: copy}, spec: {sourceRef: {kind: DataSource, name: debian}, \
        storage: {storageClassName: by-hand, resources: {requests: {storage: 1Mi}}}}}]";
    let of_source =
        on("dataVolume: {name: copy}", template).replace("metadata: {name: b}", "metadata: {name: c}");
    me.apply(&of_source);
    let vm = me.get("vm", "c");
    assert_eq!(
        vm["spec"]["preference"]["name"], "plain",
        "its own labels: {vm:#}"
    );
    assert_eq!(vm["spec"]["instancetype"], named, "its claim's: {vm:#}");

    let said = me.refused(
        &on("persistentVolumeClaim: {claimName: silent}", "")
            .replace("metadata: {name: b}", "metadata: {name: d}"),
    );
    let label = "unable to find required instancetype.kubevirt.io/default-instancetype label on the volume";
    assert!(said.contains(label), "{said}");
}

#[test]
fn who_may_edit_in_a_namespace_makes_instance_types_there_and_nowhere_else() {
    let here = Namespace::new("makers");
    let me = &here.admin;
    me.kubectl(&["create", "rolebinding", "bob", "--clusterrole=edit", "--user=bob"]);
    let bob = here.person("bob");
    bob.apply(TYPES);
    let wide = TYPES.replace("kind: VirtualMachine", "kind: VirtualMachineCluster");
    let refused = bob.refused(&wide);
    assert!(refused.contains("forbidden"), "{refused}");
}
