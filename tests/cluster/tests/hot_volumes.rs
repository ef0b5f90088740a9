//! Volumes that come to machines which run, and leave them.
#![cfg(feature = "cluster")]

mod support;

use std::time::Instant;

use serde_json::Value;
use support::{Console, Namespace, Person, claim, is, linux, machine, output, script};

/// How a volume of an instance fares.
fn phase(vmi: &Value, volume: &str) -> String {
    let list = vmi["status"]["volumeStatus"].as_array();
    let one = list.and_then(|list| list.iter().find(|one| one["name"] == volume));
    one.map_or(String::new(), |one| {
        one["phase"].as_str().unwrap_or_default().to_owned()
    })
}

fn until_phase(me: &Person, vmi: &str, volume: &str, wanted: &str) -> Value {
    me.until("vmi", vmi, &format!("{volume} {wanted:?}"), |vmi| {
        phase(vmi, volume) == wanted
    })
}

/// Waits until no attachment pod is left.
fn until_no_attachment(me: &Person) {
    me.until("pods", "--selector=kubevirt.io=hotplug-disk", "gone", |pods| {
        pods["items"].as_array().is_some_and(Vec::is_empty)
    });
}

/// Waits until the guest has a second disk; its serial number.
fn comes(console: &mut Console) -> String {
    console.runs("until [ -b /dev/vdb ]; do sleep 0.1; done; cat /sys/block/vdb/serial; echo")
}

fn leaves(console: &mut Console) {
    console.runs("while [ -e /dev/vdb ]; do sleep 0.1; done");
}

/// The hash of what is at the start of the second disk, by the guest.
fn hash(console: &mut Console) -> String {
    let said = console.runs("dd if=/dev/vdb bs=4k count=16 2>/dev/null | sha256sum");
    let hash = said.split_whitespace().next().unwrap_or_default().to_owned();
    assert_eq!(hash.len(), 64, "{said}");
    hash
}

const FILL: &str = "dd if=/dev/urandom of=/dev/vdb bs=4k count=16 conv=fsync 2>/dev/null";

#[test]
fn a_volume_comes_to_a_linux_that_runs_and_its_data_outlive_its_leaving() {
    let here = Namespace::new("hotplug");
    let me = &here.admin;
    claim(me, "plug-data", "truncate -s 64M disk.img; chmod 666 disk.img");
    me.apply(&linux("guest", "runStrategy: Always", "", &[]));
    me.until_status("guest", "Running");
    let mut console = me.console("guest");
    console.shell();

    // As people type it. No bus is said, which virtctl makes scsi of.
    let begun = Instant::now();
    me.virtctl(&["addvolume", "guest", "--volume-name=plug-data"]);
    let called = begun.elapsed();
    assert_eq!(comes(&mut console), "plug-data");
    eprintln!(
        "the guest sees the disk after {:?}, of which virtctl {called:?}",
        begun.elapsed()
    );
    let vmi = until_phase(me, "guest", "plug-data", "Ready");
    let status = &vmi["status"]["volumeStatus"][0];
    let attachment = status["hotplugVolume"]["attachPodName"].as_str().unwrap();
    let pod = me.get("pod", attachment);
    assert_eq!(pod["metadata"]["uid"], status["hotplugVolume"]["attachPodUID"]);
    assert_eq!(pod["spec"]["nodeName"], vmi["status"]["nodeName"]);
    let security = &pod["spec"]["containers"][0]["securityContext"];
    assert_eq!(
        (&security["privileged"], &security["runAsUser"]),
        (&false.into(), &107.into())
    );
    console.runs(FILL);
    let written = hash(&mut console);

    for (refused, said) in [
        (
            vec!["addvolume", "guest", "--volume-name=plug-data"],
            "Unable to add volume [plug-data] because volume with that name already exists",
        ),
        (
            vec!["removevolume", "guest", "--volume-name=root"],
            "Unable to remove volume [root] because it is not hotpluggable",
        ),
        (
            vec!["removevolume", "guest", "--volume-name=gone"],
            "Unable to remove volume [gone] because it does not exist",
        ),
    ] {
        let answer = me.virtctl_fails(&refused);
        assert!(answer.contains(said), "{answer}");
    }

    me.virtctl(&["removevolume", "guest", "--volume-name=plug-data"]);
    leaves(&mut console);
    until_no_attachment(me);
    until_phase(me, "guest", "plug-data", "");

    me.virtctl(&["addvolume", "guest", "--volume-name=plug-data", "--persist"]);
    assert_eq!(comes(&mut console), "plug-data");
    assert_eq!(hash(&mut console), written);
    until_phase(me, "guest", "plug-data", "Ready");
    let vm = me.get("vm", "guest");
    assert_eq!(
        vm["spec"]["template"]["spec"]["volumes"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert!(!is(&vm, "RestartRequired"), "the instance has it");

    // Out of the template, by an editor.
    let without = r#"[{"op": "remove", "path": "/spec/template/spec/volumes/1"},
        {"op": "remove", "path": "/spec/template/spec/domain/devices/disks/1"}]"#;
    me.kubectl(&["patch", "vm", "guest", "--type=json", "-p", without]);
    leaves(&mut console);
    until_no_attachment(me);
    assert!(!is(&me.get("vm", "guest"), "RestartRequired"));
    me.virtctl(&["stop", "guest", "--grace-period=0", "--force"]);
}

#[test]
fn a_block_device_comes_too() {
    let here = Namespace::new("hotplug-block");
    let me = &here.admin;
    let made = "truncate -s 64M /mnt/plug-block.img; losetup -j /mnt/plug-block.img | cut -d: -f1 | grep . \
        || losetup -f --show /mnt/plug-block.img";
    let device = output(script("in-node").args(["1", "sh", "-c", made]), "");
    let device = String::from_utf8(device.stdout).unwrap().trim().to_owned();
    assert!(device.starts_with("/dev/loop"), "{device}");
    me.kubectl(&["delete", "pv", "plug-block", "--ignore-not-found"]);
    me.apply(&format!(
        "
{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: plug-block}}, spec: {{capacity: {{storage: 64Mi}}, \
 accessModes: [ReadWriteOnce], volumeMode: Block, storageClassName: by-hand, local: {{path: {device}}}, \
 nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: \
 [{{key: kubernetes.io/hostname, operator: In, values: [node1]}}]}}]}}}}}}}}
---
{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: plug-block}}, spec: {{accessModes: [ReadWriteOnce], \
 volumeMode: Block, storageClassName: by-hand, volumeName: plug-block, resources: {{requests: {{storage: 64Mi}}}}}}}}
"
    ));
    me.apply(&linux(
        "guest",
        "runStrategy: Always",
        "nodeSelector: {kubernetes.io/hostname: node1}",
        &[],
    ));
    me.until_status("guest", "Running");
    let mut console = me.console("guest");
    console.shell();
    me.virtctl(&["addvolume", "guest", "--volume-name=plug-block", "--serial=B1"]);
    assert_eq!(comes(&mut console), "B1");
    console.runs(FILL);
    let written = hash(&mut console);
    me.virtctl(&["removevolume", "guest", "--volume-name=plug-block"]);
    leaves(&mut console);
    until_no_attachment(me);
    let there = format!("dd if={device} bs=4k count=16 2>/dev/null | sha256sum");
    let there = output(script("in-node").args(["1", "sh", "-c", &there]), "");
    assert!(String::from_utf8(there.stdout).unwrap().starts_with(&written));
    me.virtctl(&["stop", "guest", "--grace-period=0", "--force"]);
    me.until("vmi", "guest", "gone", Value::is_null);
    drop(here);
    let end = format!("losetup -d {device}; rm /mnt/plug-block.img");
    output(script("in-node").args(["1", "sh", "-c", &end]), "");
}

#[test]
fn a_guest_that_does_not_let_go_keeps_its_volume_until_it_begins_anew() {
    let here = Namespace::new("hotplug-deaf");
    let me = &here.admin;
    claim(me, "plug-deaf", "truncate -s 1M disk.img; chmod 666 disk.img");
    me.apply(&machine("a", "runStrategy: Always"));
    me.until_status("a", "Running");
    // It knows nothing of disks that come: whatever the event device says is the power button to it.
    let mut console = me.console("a");
    console.types("deaf");
    console.says("deaf to the power button");
    let missing = me.virtctl_fails(&["addvolume", "a", "--volume-name=nowhere"]);
    assert!(missing.contains("nowhere"), "{missing}");
    me.virtctl(&["addvolume", "a", "--volume-name=plug-deaf"]);
    until_phase(me, "a", "plug-deaf", "Ready");
    me.virtctl(&["removevolume", "a", "--volume-name=plug-deaf"]);
    until_phase(me, "a", "plug-deaf", "Detaching");
    let pods = me.get("pods", "--selector=kubevirt.io=hotplug-disk");
    assert_eq!(pods["items"].as_array().unwrap().len(), 1);
    me.virtctl(&["reset", "a"]);
    until_no_attachment(me);
    until_phase(me, "a", "plug-deaf", "");
    console.types("deaf");
    console.says("deaf to the power button");

    // With the machine's end all goes.
    me.virtctl(&["addvolume", "a", "--volume-name=plug-deaf"]);
    until_phase(me, "a", "plug-deaf", "Ready");
    me.virtctl(&["stop", "a"]);
    until_no_attachment(me);
}
