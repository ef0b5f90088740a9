//! What a preference fills into a template, where the template says nothing. Pure.
//!
//! Every struct is taken apart field by field, without `..`: a field that is added to the types does not compile until
//! somebody has said here what becomes of it. Whether what comes out can be honoured is for the rules of every machine.

use nacelle_api::devices::{Devices, PanicDevice, Video};
use nacelle_api::disk::Disk;
use nacelle_api::domain::Cpu;
use nacelle_api::features::Features;
use nacelle_api::firmware::{Bios, Bootloader, Efi, Firmware};
use nacelle_api::network::Network;
use nacelle_api::preference::{
    ClockOffset, ClockPreferences, CpuPreferences, DevicePreferences, FeaturePreferences,
    FirmwarePreferences, MachinePreferences,
};
use nacelle_api::{PreferenceSpec, VirtualMachineInstanceSpec};

/// Which devices there are without being named; before those are added.
pub(super) fn attach(preference: &PreferenceSpec, spec: &mut VirtualMachineInstanceSpec) {
    let Some(from) = &preference.devices else {
        return;
    };
    let to = &mut spec.domain.devices;
    fill(
        &mut to.autoattach_graphics_device,
        &from.preferred_autoattach_graphics_device,
    );
    fill(
        &mut to.autoattach_mem_balloon,
        &from.preferred_autoattach_mem_balloon,
    );
    fill(
        &mut to.autoattach_pod_interface,
        &from.preferred_autoattach_pod_interface,
    );
    fill(
        &mut to.autoattach_serial_console,
        &from.preferred_autoattach_serial_console,
    );
    fill(
        &mut to.autoattach_input_device,
        &from.preferred_autoattach_input_device,
    );
}

/// Everything else.
pub(super) fn apply(preference: &PreferenceSpec, spec: &mut VirtualMachineInstanceSpec) {
    let PreferenceSpec {
        clock,
        cpu,
        devices,
        features,
        firmware,
        machine,
        // Of claims that are made for a machine, which is refused before.
        volumes: _,
        preferred_subdomain,
        preferred_termination_grace_period_seconds,
        // Checked when the machine is complete.
        requirements: _,
        // The instance's, not its spec's.
        annotations: _,
        // The topology's.
        prefer_spread_socket_to_core_ratio: _,
        preferred_architecture,
    } = preference;
    let domain = &mut spec.domain;
    if let Some(from) = clock {
        self::clock(from, domain.clock.get_or_insert_default());
    }
    if let Some(from) = cpu {
        self::cpu(from, &mut domain.cpu);
    }
    if let Some(from) = devices {
        self::devices(from, &mut domain.devices, &spec.networks);
    }
    if let Some(from) = features {
        self::features(from, domain.features.get_or_insert_default());
    }
    if let Some(from) = firmware {
        self::firmware(from, domain.firmware.get_or_insert_default());
    }
    if let Some(MachinePreferences {
        preferred_machine_type: Some(preferred),
    }) = machine
    {
        let machine = domain.machine.get_or_insert_default();
        if machine.type_.is_empty() {
            machine.type_.clone_from(preferred);
        }
    }
    fill(&mut spec.subdomain, preferred_subdomain);
    fill(
        &mut spec.termination_grace_period_seconds,
        preferred_termination_grace_period_seconds,
    );
    fill(&mut spec.architecture, preferred_architecture);
}

fn clock(from: &ClockPreferences, to: &mut nacelle_api::features::Clock) {
    let ClockPreferences {
        preferred_clock_offset,
        preferred_timer,
    } = from;
    if let Some(ClockOffset { utc, timezone }) = preferred_clock_offset
        && to.utc.is_none()
        && to.timezone.is_none()
    {
        to.utc.clone_from(utc);
        to.timezone.clone_from(timezone);
    }
    fill(&mut to.timer, preferred_timer);
}

fn cpu(from: &CpuPreferences, to: &mut Option<Cpu>) {
    let CpuPreferences {
        // The instance type's vCPUs are placed by them.
        preferred_cpu_topology: _,
        spread_options: _,
        preferred_cpu_features,
    } = from;
    for feature in preferred_cpu_features {
        let features = &mut to.get_or_insert_default().features;
        if !features.iter().any(|said| said.name == feature.name) {
            features.push(feature.clone());
        }
    }
}

fn devices(from: &DevicePreferences, to: &mut Devices, networks: &[Network]) {
    let DevicePreferences {
        preferred_autoattach_graphics_device: _,
        preferred_autoattach_mem_balloon: _,
        preferred_autoattach_pod_interface: _,
        preferred_autoattach_serial_console: _,
        preferred_autoattach_input_device: _,
        preferred_disable_hotplug,
        preferred_virtual_gpu_options,
        preferred_sound_model,
        preferred_use_virtio_transitional,
        preferred_input_bus,
        preferred_input_type,
        preferred_disk_bus,
        preferred_lun_bus,
        preferred_cdrom_bus,
        preferred_disk_dedicated_io_thread,
        preferred_disk_cache,
        preferred_disk_io,
        preferred_disk_block_size,
        preferred_interface_model,
        preferred_rng,
        preferred_block_multi_queue,
        preferred_network_interface_multi_queue,
        preferred_tpm,
        preferred_interface_masquerade,
        preferred_panic_device_model,
        preferred_video_type,
    } = from;
    fill(&mut to.disable_hotplug, preferred_disable_hotplug);
    for gpu in &mut to.gpus {
        fill(&mut gpu.virtual_gpu_options, preferred_virtual_gpu_options);
    }
    if let Some(sound) = &mut to.sound {
        fill(&mut sound.model, preferred_sound_model);
    }
    fill(&mut to.use_virtio_transitional, preferred_use_virtio_transitional);
    for input in &mut to.inputs {
        fill(&mut input.bus, preferred_input_bus);
        if let Some(preferred) = preferred_input_type
            && input.type_.is_empty()
        {
            input.type_.clone_from(preferred);
        }
    }
    for disk in &mut to.disks {
        if let Some(target) = &mut disk.disk {
            fill(&mut target.bus, preferred_disk_bus);
            let virtio = target.bus.as_deref() == Some("virtio");
            fill(&mut disk.block_size, preferred_disk_block_size);
            fill(&mut disk.cache, preferred_disk_cache);
            fill(&mut disk.io, preferred_disk_io);
            if virtio {
                fill(&mut disk.dedicated_io_thread, preferred_disk_dedicated_io_thread);
            }
        }
        let Disk { lun, cdrom, .. } = disk;
        if let Some(lun) = lun {
            fill(&mut lun.bus, preferred_lun_bus);
        }
        if let Some(cdrom) = cdrom {
            fill(&mut cdrom.bus, preferred_cdrom_bus);
        }
    }
    for interface in &mut to.interfaces {
        fill(&mut interface.model, preferred_interface_model);
        let pod = |network: &Network| network.name == interface.name && network.pod.is_some();
        if interface.bindings() == 0 && networks.iter().any(pod) {
            interface.masquerade = *preferred_interface_masquerade;
        }
    }
    fill(&mut to.rng, preferred_rng);
    fill(&mut to.block_multi_queue, preferred_block_multi_queue);
    fill(
        &mut to.network_interface_multiqueue,
        preferred_network_interface_multi_queue,
    );
    fill(&mut to.tpm, preferred_tpm);
    if preferred_panic_device_model.is_some() {
        if to.panic_devices.is_empty() {
            to.panic_devices.push(PanicDevice::default());
        }
        for device in &mut to.panic_devices {
            fill(&mut device.model, preferred_panic_device_model);
        }
    }
    if preferred_video_type.is_some() {
        let video = to.video.get_or_insert_with(Video::default);
        fill(&mut video.type_, preferred_video_type);
    }
}

fn features(from: &FeaturePreferences, to: &mut Features) {
    let FeaturePreferences {
        preferred_acpi,
        preferred_apic,
        preferred_hyperv,
        preferred_kvm,
        preferred_pvspinlock,
        preferred_smm,
    } = from;
    fill(&mut to.acpi, preferred_acpi);
    fill(&mut to.apic, preferred_apic);
    fill(&mut to.hyperv, preferred_hyperv);
    fill(&mut to.kvm, preferred_kvm);
    fill(&mut to.pvspinlock, preferred_pvspinlock);
    fill(&mut to.smm, preferred_smm);
}

fn firmware(from: &FirmwarePreferences, to: &mut Firmware) {
    let FirmwarePreferences {
        preferred_use_bios,
        preferred_use_bios_serial,
        preferred_use_efi,
        preferred_use_secure_boot,
        preferred_efi,
    } = from;
    let said = to.bootloader.clone().unwrap_or_default();
    let mut loader = said.clone();
    if loader.bios.is_none() && loader.efi.is_none() {
        if *preferred_use_bios == Some(true) {
            loader.bios = Some(Bios::default());
        } else if preferred_efi.is_some() {
            loader.efi.clone_from(preferred_efi);
        } else if *preferred_use_efi == Some(true) {
            loader.efi = Some(Efi::default());
        }
    }
    let Bootloader { bios, efi } = &mut loader;
    if let Some(bios) = bios {
        fill(&mut bios.use_serial, preferred_use_bios_serial);
    }
    if let Some(efi) = efi
        && preferred_efi.is_none()
    {
        fill(&mut efi.secure_boot, preferred_use_secure_boot);
    }
    if loader != said {
        to.bootloader = Some(loader);
    }
}

/// What is said stays; what is not is as preferred.
fn fill<T: Clone>(to: &mut Option<T>, preferred: &Option<T>) {
    if to.is_none() {
        to.clone_from(preferred);
    }
}
