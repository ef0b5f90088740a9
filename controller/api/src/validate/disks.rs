//! Disks (rules 14, 16-26) and boot order across disks and interfaces (rule 21).

use std::collections::{BTreeMap, BTreeSet};

use super::{CauseKind, Causes, count, names};
use crate::disk::{BlockSize, Disk};
use crate::path::FieldPath;
use crate::vmi::VirtualMachineInstanceSpec;
use crate::volume::Volume;

/// Smallest and largest block that a guest may see.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=2 * 1024 * 1024;
/// A longer serial number is a mistake.
const MAX_SERIAL: usize = 256;

pub(super) fn check(causes: &mut Causes, spec: &VirtualMachineInstanceSpec, prefix: &FieldPath) {
    let devices = prefix.field("domain.devices");
    let path = devices.field("disks");
    let volumes: BTreeMap<_, _> = spec
        .volumes
        .iter()
        .map(|volume| (volume.name.as_str(), volume))
        .collect();
    let mut names = BTreeMap::new();
    for (index, disk) in spec.domain.devices.disks.iter().enumerate() {
        let field = path.index(index);
        if let Some(first) = names.insert(disk.name.as_str(), index) {
            let message = format!("{} and {field} must not have the same Name.", path.index(first));
            causes.add(CauseKind::FieldValueDuplicate, field.field("name"), message);
        }
        self::disk(causes, disk, volumes.get(disk.name.as_str()).copied(), &field);
    }
    boot_order(causes, spec, &devices);
}

/// The bus of a disk, LUN or CD-ROM, and the name of the field that it is in.
fn target(disk: &Disk) -> (&'static str, Option<&str>) {
    if let Some(cdrom) = &disk.cdrom {
        ("cdrom", cdrom.bus.as_deref())
    } else if let Some(lun) = &disk.lun {
        ("lun", lun.bus.as_deref())
    } else {
        ("disk", disk.disk.as_ref().and_then(|disk| disk.bus.as_deref()))
    }
}

pub(super) fn disk(causes: &mut Causes, disk: &Disk, volume: Option<&Volume>, path: &FieldPath) {
    if volume.is_none() {
        causes.invalid(
            path.field("name"),
            format!("{} '{}' not found.", path.field("Name"), disk.name),
        );
    }
    if count([disk.disk.is_some(), disk.lun.is_some(), disk.cdrom.is_some()]) > 1 {
        causes.invalid(
            path.clone(),
            format!("{path} can only have a single target type defined"),
        );
    }
    let (kind, bus) = target(disk);
    self::bus(causes, kind, bus, path.field(kind).field("bus"));
    if let Some(target) = &disk.disk {
        // KubeVirt refuses it without a bus too, which is SATA there. Here it is virtio, which can do it.
        if target.readonly == Some(true) && bus == Some("sata") {
            causes.invalid(
                path.clone(),
                format!("{path} hard-disks do not support read-only."),
            );
        }
        if let Some(address) = &target.pci_address {
            let field = path.field("disk.pciAddress");
            if bus.is_some_and(|bus| bus != "virtio") {
                let message = format!(
                    "disk {} - setting a PCI address is only possible with bus type virtio.",
                    disk.name
                );
                causes.invalid(field.clone(), message);
            }
            if !names::is_pci_address(address) {
                causes.invalid(
                    field,
                    format!("disk {} has malformed PCI address ({address}).", disk.name),
                );
            }
        }
    }
    if disk.lun.is_some() {
        lun(causes, disk, volume, path);
    }
    if let Some(serial) = &disk.serial {
        let field = path.field("serial");
        if serial.len() > MAX_SERIAL {
            let message =
                format!("{field} must be less than or equal to {MAX_SERIAL} in length, if specified");
            causes.invalid(field.clone(), message);
        }
        if !serial
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"_.+-".contains(&c))
        {
            let message =
                format!("{field} must be made up of the following characters [A-Za-z0-9_.+-], if specified");
            causes.invalid(field, message);
        }
    }
    one_of(
        causes,
        disk.cache.as_deref(),
        &["none", "writethrough", "writeback"],
        path.field("cache"),
    );
    one_of(
        causes,
        disk.error_policy.as_deref(),
        &["stop", "ignore", "report", "enospace"],
        path.field("errorPolicy"),
    );
    if disk
        .io
        .as_deref()
        .is_some_and(|io| !["", "native", "threads", "default"].contains(&io))
    {
        let field = path.field("io");
        let message =
            format!("Disk IO mode for {field} is not supported. Supported modes are: native, threads.");
        causes.not_supported(field, message);
    }
    if disk.dedicated_io_thread == Some(true) && bus == Some("sata") {
        let field = path.field("dedicatedIOThread");
        causes.not_supported(field, "IOThreads are not supported for disks on a sata bus");
    }
    if let Some(size) = &disk.block_size {
        block_size(causes, size, bus, &path.field("blockSize"));
    }
}

fn bus(causes: &mut Causes, kind: &str, bus: Option<&str>, field: FieldPath) {
    match bus {
        None | Some("" | "sata" | "scsi") => {}
        Some("virtio") if kind != "cdrom" => {}
        Some("usb") if kind != "lun" => {}
        Some("ide") => causes.invalid(field, "IDE bus is not supported"),
        Some("virtio") => causes.invalid(field, "Bus type virtio is invalid for CD-ROM device"),
        Some(other) => {
            let known = match kind {
                "disk" => "virtio scsi sata usb",
                "lun" => "virtio scsi sata",
                _ => "scsi sata usb",
            };
            let message =
                format!("{field} is set with an unrecognized bus {other}, must be one of: [{known}]");
            causes.invalid(field, message);
        }
    }
}

fn one_of(causes: &mut Causes, value: Option<&str>, known: &[&str], field: FieldPath) {
    if let Some(value) = value
        && !value.is_empty()
        && !known.contains(&value)
    {
        let message = format!("{field} has invalid value {value}");
        causes.invalid(field, message);
    }
}

fn lun(causes: &mut Causes, disk: &Disk, volume: Option<&Volume>, path: &FieldPath) {
    let field = path.field("lun");
    if let Some(volume) = volume
        && volume.persistent_volume_claim.is_none()
        && volume.data_volume.is_none()
    {
        let message = format!("{field} can only be mapped to a DataVolume or PersistentVolumeClaim volume.");
        causes.invalid(field.clone(), message);
    }
    if disk.lun.as_ref().is_some_and(|lun| lun.reservation == Some(true)) {
        let field = field.field("reservation");
        if target(disk).1 != Some("scsi") {
            causes.invalid(
                field.clone(),
                "Disk bus needs to be scsi when reservation is enabled",
            );
        }
        causes.gated(field, "PersistentReservation");
    }
}

fn block_size(causes: &mut Causes, size: &BlockSize, bus: Option<&str>, path: &FieldPath) {
    let BlockSize { custom, match_volume } = size;
    let matched = match_volume
        .as_ref()
        .is_some_and(|state| state.enabled != Some(false));
    if count([custom.is_some(), matched]) > 1 {
        causes.invalid(
            path.clone(),
            format!("{path} can have only one of custom and matchVolume set"),
        );
    }
    let Some(custom) = custom else { return };
    let path = path.field("custom");
    let sizes = [
        ("logical", Some(custom.logical)),
        ("physical", Some(custom.physical)),
    ];
    for (name, bytes) in sizes
        .into_iter()
        .chain([("discardGranularity", custom.discard_granularity)])
    {
        let Some(bytes) = bytes else { continue };
        let field = path.field(name);
        if bytes < *BLOCK_SIZES.start() {
            let message = format!(
                "Provided size of {bytes} is less than the minimum size of {}",
                BLOCK_SIZES.start()
            );
            causes.invalid(field, message);
        } else if bytes > *BLOCK_SIZES.end() && name != "discardGranularity" {
            let message = format!(
                "Provided size of {bytes} is greater than the maximum size of {}",
                BLOCK_SIZES.end()
            );
            causes.invalid(field, message);
        } else if !bytes.is_power_of_two() {
            causes.invalid(field, format!("Provided size of {bytes} is not a power of 2"));
        }
    }
    if custom.logical > custom.physical {
        let message = format!(
            "Logical size {} must be the same or less than the physical size of {}",
            custom.logical, custom.physical
        );
        causes.invalid(path.clone(), message);
    }
    if bus == Some("sata") && custom.logical != 512 {
        let message = format!("Logical size {} must be 512 for SATA devices", custom.logical);
        causes.invalid(path.field("logical"), message);
    }
}

/// Each place in the boot order is given once, whether to a disk or to an interface.
fn boot_order(causes: &mut Causes, spec: &VirtualMachineInstanceSpec, path: &FieldPath) {
    let devices = &spec.domain.devices;
    let disks = devices.disks.iter().map(|disk| disk.boot_order);
    let interfaces = devices.interfaces.iter().map(|interface| interface.boot_order);
    let orders = (disks.enumerate().map(|(index, order)| ("disks", index, order))).chain(
        interfaces
            .enumerate()
            .map(|(index, order)| ("interfaces", index, order)),
    );
    let mut taken = BTreeSet::new();
    for (list, index, order) in orders {
        let Some(order) = order else { continue };
        let field = path.field(list).index(index).field("bootOrder");
        if order == 0 {
            let message = format!("{field} must have a boot order > 0, if supplied");
            causes.invalid(field, message);
        } else if !taken.insert(order) {
            let message = format!("Boot order for {field} already set for a different device.");
            causes.invalid(field, message);
        }
    }
}
