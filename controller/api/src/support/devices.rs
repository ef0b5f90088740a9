//! Devices, disks, interfaces and volumes.

use super::{Support, on};
use crate::devices::Devices;
use crate::disk::{CdRomTarget, Disk, DiskTarget};
use crate::network::Interface;
use crate::path::FieldPath;
use crate::volume::Volume;

pub(super) fn check(found: &mut Support, devices: &Devices, path: &FieldPath) {
    let Devices {
        disks,
        interfaces,
        autoattach_pod_interface: _,
        autoattach_graphics_device,
        autoattach_serial_console: _,
        log_serial_console,
        autoattach_mem_balloon: _,
        autoattach_input_device,
        autoattach_vsock: _,
        rng: _,
        block_multi_queue: _,
        network_interface_multiqueue: _,
        use_virtio_transitional,
        // Nothing can be plugged in then.
        disable_hotplug: _,
        inputs,
        // Those of other machines are refused in `validate`.
        watchdog: _,
        sound,
        tpm,
        video,
        panic_devices,
        filesystems,
        gpus,
        host_devices,
        // Refused in `validate`, for good.
        downward_metrics: _,
        client_passthrough: _,
    } = devices;
    let headless = "the machine has no graphics yet";
    found.warn(
        path,
        "autoattachGraphicsDevice",
        on(*autoattach_graphics_device),
        headless,
    );
    found.warn(
        path,
        "autoattachInputDevice",
        on(*autoattach_input_device),
        headless,
    );
    found.warn(path, "inputs", !inputs.is_empty(), headless);
    found.warn(path, "video", video.is_some(), headless);
    found.warn(path, "sound", sound.is_some(), "there is nobody to hear it");
    found.cluster("devices.logSerialConsole", log_serial_console.is_some());
    found.refuse(path, "useVirtioTransitional", on(*use_virtio_transitional));
    found.refuse(
        path,
        "tpm",
        tpm.as_ref().is_some_and(|tpm| tpm.enabled != Some(false)),
    );
    found.refuse(path, "panicDevices", !panic_devices.is_empty());
    found.refuse(path, "filesystems", !filesystems.is_empty());
    found.refuse(path, "gpus", !gpus.is_empty());
    found.refuse(path, "hostDevices", !host_devices.is_empty());
    for (index, disk) in disks.iter().enumerate() {
        self::disk(found, disk, &path.field("disks").index(index));
    }
    for (index, interface) in interfaces.iter().enumerate() {
        self::interface(found, interface, &path.field("interfaces").index(index));
    }
}

pub(super) fn disk(found: &mut Support, disk: &Disk, path: &FieldPath) {
    let Disk {
        name: _,
        disk,
        lun,
        cdrom,
        boot_order: _,
        serial: _,
        dedicated_io_thread: _,
        cache,
        io: _,
        tag,
        // All of it is honoured.
        block_size: _,
        shareable,
        error_policy: _,
        changed_block_tracking,
    } = disk;
    if let Some(DiskTarget {
        bus,
        readonly: _,
        pci_address,
    }) = disk
    {
        found.refuse_value(path, "disk.bus", bus.as_deref(), &["virtio"], "use virtio");
        found.refuse(path, "disk.pciAddress", pci_address.is_some());
    }
    if let Some(CdRomTarget {
        bus,
        readonly: _,
        tray,
    }) = cdrom
    {
        let advice = "leave it out, and the guest sees a read-only virtio disk";
        found.refuse_value(path, "cdrom.bus", bus.as_deref(), &[], advice);
        found.refuse_value(path, "cdrom.tray", tray.as_deref(), &["closed"], "use closed");
    }
    found.refuse(path, "lun", lun.is_some());
    found.refuse(path, "tag", tag.is_some());
    if on(*shareable) {
        let advice = "a shareable disk is written past the page cache: use none";
        found.refuse_value(path, "cache", cache.as_deref(), &["none"], advice);
    }
    found.refuse(path, "changedBlockTracking", on(*changed_block_tracking));
}

fn interface(found: &mut Support, interface: &Interface, path: &FieldPath) {
    let Interface {
        name: _,
        model,
        bridge: _,
        masquerade: _,
        sriov,
        passt_binding,
        // KubeVirt has given them up; `validate` says so.
        slirp: _,
        macvtap: _,
        passt: _,
        binding,
        ports: _,
        port_ranges,
        mac_address: _,
        boot_order,
        pci_address,
        dhcp_options,
        tag,
        acpi_index,
        state,
    } = interface;
    found.refuse_value(path, "model", model.as_deref(), &["virtio"], "use virtio");
    found.refuse(path, "sriov", sriov.is_some());
    found.refuse(path, "passtBinding", passt_binding.is_some());
    found.refuse(path, "binding", binding.is_some());
    found.refuse(path, "portRanges", !port_ranges.is_empty());
    found.refuse(path, "bootOrder", boot_order.is_some());
    found.refuse(path, "pciAddress", pci_address.is_some());
    found.refuse(path, "dhcpOptions", dhcp_options.is_some());
    found.refuse(path, "tag", tag.is_some());
    found.refuse(path, "acpiIndex", acpi_index.is_some());
    found.refuse_value(path, "state", state.as_deref(), &["up"], "use up");
}

pub(super) fn volume(found: &mut Support, volume: &Volume, path: &FieldPath) {
    let Volume {
        name: _,
        container_disk: _,
        persistent_volume_claim: _,
        data_volume: _,
        ephemeral: _,
        empty_disk: _,
        host_disk: _,
        cloud_init_no_cloud: _,
        cloud_init_config_drive: _,
        sysprep,
        config_map: _,
        secret: _,
        downward_api: _,
        service_account: _,
        // Refused in `validate`, for good.
        downward_metrics: _,
        memory_dump,
        container_path,
    } = volume;
    found.refuse(path, "sysprep", sysprep.is_some());
    found.refuse(path, "memoryDump", memory_dump.is_some());
    found.refuse(path, "containerPath", container_path.is_some());
}
