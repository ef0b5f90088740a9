//! Volumes (rules 15, 27-30).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{CauseKind, Causes, count};
use crate::path::FieldPath;
use crate::quantity;
use crate::volume::{CloudInit, HostDisk, Volume};

/// What cloud-init data may be long when it is written in the object.
const MAX_INLINE: usize = 2048;

pub(super) fn check(causes: &mut Causes, volumes: &[Volume], path: &FieldPath) {
    let mut names = BTreeMap::new();
    for (index, volume) in volumes.iter().enumerate() {
        let field = path.index(index);
        if let Some(first) = names.insert(volume.name.as_str(), index) {
            let message = format!(
                "{} and {} must not have the same Name.",
                path.index(first).field("name"),
                field.field("name")
            );
            causes.add(CauseKind::FieldValueDuplicate, field.field("name"), message);
        }
        self::volume(causes, volume, &field);
    }
    for (what, number) in [
        (
            "serviceAccount",
            volumes
                .iter()
                .filter(|volume| volume.service_account.is_some())
                .count(),
        ),
        (
            "downwardMetrics",
            volumes
                .iter()
                .filter(|volume| volume.downward_metrics.is_some())
                .count(),
        ),
        (
            "memoryDump",
            volumes
                .iter()
                .filter(|volume| volume.memory_dump.is_some())
                .count(),
        ),
    ] {
        if number > 1 {
            causes.invalid(
                path.clone(),
                format!("{path} must have max one {what} volume set"),
            );
        }
    }
}

pub(super) fn volume(causes: &mut Causes, volume: &Volume, path: &FieldPath) {
    let Volume {
        name: _,
        container_disk,
        persistent_volume_claim,
        data_volume,
        ephemeral,
        empty_disk,
        host_disk,
        cloud_init_no_cloud,
        cloud_init_config_drive,
        sysprep,
        config_map,
        secret,
        downward_api,
        service_account,
        downward_metrics,
        memory_dump,
        container_path,
    } = volume;
    let sources = count([
        container_disk.is_some(),
        persistent_volume_claim.is_some(),
        data_volume.is_some(),
        ephemeral.is_some(),
        empty_disk.is_some(),
        host_disk.is_some(),
        cloud_init_no_cloud.is_some(),
        cloud_init_config_drive.is_some(),
        sysprep.is_some(),
        config_map.is_some(),
        secret.is_some(),
        downward_api.is_some(),
        service_account.is_some(),
        downward_metrics.is_some(),
        memory_dump.is_some(),
        container_path.is_some(),
    ]);
    if sources != 1 {
        causes.invalid(
            path.clone(),
            format!("{path} must have exactly one source type set"),
        );
    }
    if let Some(data) = cloud_init_no_cloud {
        cloud_init(causes, data, &path.field("cloudInitNoCloud"));
    }
    if let Some(data) = cloud_init_config_drive {
        cloud_init(causes, data, &path.field("cloudInitConfigDrive"));
    }
    if let Some(disk) = host_disk {
        self::host_disk(causes, disk, &path.field("hostDisk"));
    }
    if let Some(disk) = empty_disk
        && let Err(error) = quantity::whole(&disk.capacity)
    {
        let field = path.field("emptyDisk.capacity");
        causes.invalid(field.clone(), format!("{field}: {error}"));
    }
    if let Some(sysprep) = sysprep
        && count([sysprep.secret.is_some(), sysprep.config_map.is_some()]) != 1
    {
        let field = path.field("sysprep");
        causes.invalid(
            field.clone(),
            format!("{field} must have exactly one of secret and configMap set"),
        );
    }
    if downward_metrics.is_some() {
        causes.gated(path.field("downwardMetrics"), "DownwardMetrics");
    }
}

/// User data and network data: each from at most one place, at least one of them from somewhere.
fn cloud_init(causes: &mut Causes, data: &CloudInit, path: &FieldPath) {
    let CloudInit {
        user_data,
        user_data_base64,
        secret_ref,
        network_data,
        network_data_base64,
        network_data_secret_ref,
    } = data;
    let users = count([
        user_data.is_some(),
        user_data_base64.is_some(),
        secret_ref.is_some(),
    ]);
    let networks = count([
        network_data.is_some(),
        network_data_base64.is_some(),
        network_data_secret_ref.is_some(),
    ]);
    if users > 1 {
        causes.invalid(
            path.clone(),
            format!("{path} must have only one userdatasource set."),
        );
    }
    if networks > 1 {
        causes.invalid(
            path.clone(),
            format!("{path} must have only one networkdata source set."),
        );
    }
    if users + networks == 0 {
        let message = format!("{path} must have at least one userdatasource or one networkdatasource set.");
        causes.invalid(path.clone(), message);
    }
    for (text, encoded, name, what, reference) in [
        (
            user_data,
            user_data_base64,
            "userData",
            "userdata",
            "UserDataSecretRef",
        ),
        (
            network_data,
            network_data_base64,
            "networkData",
            "networkdata",
            "NetworkDataSecretRef",
        ),
    ] {
        let too_long =
            format!("{what} exceeds {MAX_INLINE} byte limit. Should use {reference} for larger data.");
        if text.as_ref().is_some_and(|text| text.len() > MAX_INLINE) {
            causes.invalid(path.field(name), format!("{path} {too_long}"));
        }
        if let Some(encoded) = encoded {
            let field = path.field(&format!("{name}Base64"));
            match STANDARD.decode(encoded) {
                Ok(bytes) if bytes.len() > MAX_INLINE => causes.invalid(field, format!("{path} {too_long}")),
                Ok(_) => {}
                Err(_) => causes.invalid(field.clone(), format!("{field} is not a valid base64 value.")),
            }
        }
    }
}

fn host_disk(causes: &mut Causes, disk: &HostDisk, path: &FieldPath) {
    if disk.path.is_empty() {
        causes.required(
            path.field("path"),
            format!("{} is required for hostDisk volume", path.field("path")),
        );
    }
    let field = path.field("type");
    match disk.type_.as_str() {
        "Disk" | "DiskOrCreate" => {}
        "" => causes.required(field.clone(), format!("{field} is required for hostDisk volume")),
        other => {
            let message =
                format!("{field} has invalid value '{other}', allowed are 'Disk' and 'DiskOrCreate'");
            causes.invalid(field, message);
        }
    }
    let field = path.field("capacity");
    match &disk.capacity {
        Some(capacity) => {
            if let Err(error) = quantity::whole(capacity) {
                causes.invalid(field.clone(), format!("{field}: {error}"));
            }
        }
        None if disk.type_ == "DiskOrCreate" => {
            let message = format!("{field} is required for hostDisk volume of type 'DiskOrCreate'");
            causes.required(field, message);
        }
        None => {}
    }
}
