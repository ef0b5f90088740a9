//! Whether an instance can move to another node, and how. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::jiff::Timestamp;
use nacelle_api::vmi::VirtualMachineInstanceStatus;
use nacelle_api::{VirtualMachineInstance, VirtualMachineInstanceSpec, conditions};

use super::build::volumes::claim;
use crate::volumes::hot;

/// The reason of one to which volumes came while it ran.
const PLUGGED: &str = "HotplugNotLiveMigratable";

/// Why not: reason and message of the condition `LiveMigratable`, KubeVirt's.
fn hindrance(
    spec: &VirtualMachineInstanceSpec,
    claims: &BTreeMap<String, Option<PersistentVolumeClaim>>,
) -> Option<(&'static str, String)> {
    if let Some(volume) = hot(spec).next() {
        let message = format!(
            "cannot migrate VMI: volume {} is plugged in: what goes on with the machine elsewhere would not know of it",
            volume.name
        );
        return Some((PLUGGED, message));
    }
    let alone = spec.volumes.iter().filter_map(claim).find(|(name, read_only)| {
        let claim = claims.get(name).and_then(Option::as_ref);
        let modes = claim.and_then(|claim| claim.spec.as_ref()?.access_modes.as_ref());
        let shared = |mode: &String| mode == "ReadWriteMany" || (*read_only && mode == "ReadOnlyMany");
        !modes.is_some_and(|modes| modes.iter().any(shared))
    });
    if let Some((name, _)) = alone {
        let message = format!(
            "cannot migrate VMI: PVC {name} is not shared, live migration requires that all PVCs must be shared \
             (using ReadWriteMany access mode)"
        );
        return Some(("DisksNotLiveMigratable", message));
    }
    let bridged = spec
        .domain
        .devices
        .interfaces
        .iter()
        .any(|interface| interface.bridge.is_some());
    bridged.then(|| {
        let message = "cannot migrate VMI which does not use masquerade to connect to the pod network: another pod has \
            another address";
        ("InterfaceNotLiveMigratable", message.to_owned())
    })
}

/// Whether disks end with the pod, so that they must be copied.
fn copies(spec: &VirtualMachineInstanceSpec) -> bool {
    spec.volumes
        .iter()
        .any(|volume| volume.persistent_volume_claim.is_none() && volume.data_volume.is_none())
}

/// Whether that was said of the instance: while it runs, only volumes that are plugged in change it.
pub fn is_told(vmi: &VirtualMachineInstance) -> bool {
    let status = vmi.status.as_ref();
    let told = status.and_then(|status| conditions::find(&status.conditions, "LiveMigratable"));
    let plugged = hot(&vmi.spec).next().is_some();
    told.is_some_and(|told| (told.reason.as_deref() == Some(PLUGGED)) == plugged)
}

/// Says so in the status.
pub fn tell(
    status: &mut VirtualMachineInstanceStatus,
    spec: &VirtualMachineInstanceSpec,
    claims: &BTreeMap<String, Option<PersistentVolumeClaim>>,
    now: Timestamp,
) {
    let list = &mut status.conditions;
    match hindrance(spec, claims) {
        Some((reason, message)) => {
            conditions::set(list, "LiveMigratable", false, reason, &message, now);
            status.migration_method = None;
        }
        None => {
            conditions::set(list, "LiveMigratable", true, "", "", now);
            let method = if copies(spec) {
                "BlockMigration"
            } else {
                "LiveMigration"
            };
            status.migration_method = Some(method.to_owned());
        }
    }
    status.migration_transport = Some("Unix".to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_node_cannot_have_keeps_a_machine_where_it_is() {
        let claims = |mode: &str| {
            let claim = format!(r#"{{"spec": {{"accessModes": ["{mode}"]}}, "metadata": {{}}}}"#);
            BTreeMap::from([("c".to_owned(), Some(serde_json::from_str(&claim).unwrap()))])
        };
        let table = [
            (
                "interfaces: [{name: a, masquerade: {}}]",
                "persistentVolumeClaim: {claimName: c}",
                "ReadWriteMany",
                "LiveMigration",
            ),
            (
                "interfaces: []",
                "persistentVolumeClaim: {claimName: c, hotpluggable: true}",
                "ReadWriteMany",
                "HotplugNotLiveMigratable",
            ),
            (
                "interfaces: []",
                "persistentVolumeClaim: {claimName: c}",
                "ReadWriteOnce",
                "DisksNotLiveMigratable",
            ),
            (
                "interfaces: []",
                "dataVolume: {name: c}",
                "ReadOnlyMany",
                "DisksNotLiveMigratable",
            ),
            (
                "interfaces: []",
                "dataVolume: {name: unknown}",
                "ReadWriteMany",
                "DisksNotLiveMigratable",
            ),
            (
                "interfaces: []",
                "ephemeral: {persistentVolumeClaim: {claimName: c}}",
                "ReadOnlyMany",
                "BlockMigration",
            ),
            (
                "interfaces: []",
                "containerDisk: {image: i}",
                "ReadWriteOnce",
                "BlockMigration",
            ),
            (
                "interfaces: [{name: a, bridge: {}}]",
                "containerDisk: {image: i}",
                "ReadWriteOnce",
                "InterfaceNotLiveMigratable",
            ),
        ];
        for (devices, source, mode, says) in table {
            let spec = format!("{{domain: {{devices: {{{devices}}}}}, volumes: [{{name: v, {source}}}]}}");
            let spec = serde_saphyr::from_str(&spec).unwrap();
            let mut status = VirtualMachineInstanceStatus::default();
            tell(&mut status, &spec, &claims(mode), Timestamp::UNIX_EPOCH);
            let condition = conditions::find(&status.conditions, "LiveMigratable").unwrap();
            let said = condition.reason.clone().or(status.migration_method);
            assert_eq!(said.as_deref(), Some(says), "{devices} {source} {mode}");
        }
    }
}
