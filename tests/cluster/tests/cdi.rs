//! Another controller serves DataVolumes: ours stands aside, and machines use what it made. This concerns the whole cluster, so
//! it is told alone.
#![cfg(feature = "cluster")]

mod support;

use support::{Namespace, Person, machine};

const DEFINITION: &str = "crd/datavolumes.cdi.kubevirt.io";

/// What CDI's controller would report.
fn reports(me: &Person, name: &str, phase: &str) {
    let patch = format!("{{\"status\": {{\"phase\": \"{phase}\"}}}}");
    me.kubectl(&[
        "patch",
        "datavolume",
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ]);
}

#[test]
fn where_cdi_serves_them_ours_stands_aside_and_machines_wait_for_its_disks() {
    let here = Namespace::new("cdi");
    let me = &here.admin;
    // As its operator does with all that it takes over.
    me.kubectl(&["label", DEFINITION, "operator.cdi.kubevirt.io=", "--overwrite"]);
    let template = "dataVolumeTemplates: [{metadata: {name: theirs}, spec: {source: {blank: {}}, \
        pvc: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Mi}}}}}]";
    let guest = machine("guest", "runStrategy: Always")
        .replace("\nspec:\n", &format!("\nspec:\n  {template}\n"))
        .replace(
            "volumes: [",
            "volumes: [{name: disk, dataVolume: {name: theirs}}, ",
        )
        .replace("disks: [", "disks: [{name: disk, disk: {bus: virtio}}, ");
    me.apply(&guest);
    me.until("datavolume", "theirs", "made by the machine", |volume| {
        !volume.is_null()
    });
    reports(me, "theirs", "ImportInProgress");
    me.until_status("guest", "Provisioning");
    reports(me, "theirs", "Failed");
    me.until_status("guest", "DataVolumeError");
    // Neither claim nor pod was made here, as often as it was looked at; nor is what CDI reported changed.
    assert!(me.get("pvc", "theirs").is_null());
    let pods = me.kubectl(&["get", "pods", "-o", "name"]);
    assert!(!pods.contains("pod/"), "{pods}");
    assert_eq!(
        me.get("datavolume", "theirs")["status"],
        serde_json::json!({"phase": "Failed"})
    );

    // CDI is removed, and ours installed again: what was left undone is done.
    me.kubectl(&["label", DEFINITION, "operator.cdi.kubevirt.io-"]);
    reports(me, "theirs", "Pending");
    me.until("pvc", "theirs", "made", |claim| !claim.is_null());
    me.kubectl(&["delete", "vm", "guest", "--timeout=120s"]);
}
