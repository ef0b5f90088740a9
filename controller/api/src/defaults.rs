//! Defaults, as KubeVirt's mutating webhooks fill them in, as far as they concern one machine.
//!
//! What belongs to a cluster is not here: the CPU request of the pod, the eviction strategy of the KubeVirt
//! resource, hot-plug ceilings. `firmware.uuid` stays absent: who runs the machine picks one and keeps it.
//!
//! One difference is meant: a disk without a bus stays without one. KubeVirt writes `sata`; here the launcher
//! shows such a disk as virtio-blk, and an explicit `sata` is told apart from it.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::Empty;
use crate::devices::{Input, Watchdog, WatchdogAction};
use crate::disk::{CdRomTarget, Disk, DiskTarget};
use crate::domain::{Cpu, DomainSpec, Machine, Memory, ResourceRequirements};
use crate::features::{FeatureApic, FeatureHyperv, FeatureSpinlocks, FeatureState, Features};
use crate::network::{Interface, Network, PodNetwork};
use crate::quantity;
use crate::vmi::{Probe, VirtualMachineInstanceSpec};
use crate::volume::Volume;

/// Seconds between the power button and pulling the plug, where the spec does not say.
const GRACE_PERIOD: i64 = 30;

/// Completes a spec. Doing it again changes nothing.
pub fn apply(spec: &mut VirtualMachineInstanceSpec) {
    spec.termination_grace_period_seconds.get_or_insert(GRACE_PERIOD);
    domain(&mut spec.domain);
    disks(spec);
    networks(spec, || Interface {
        bridge: Some(Empty {}),
        ..Interface::default()
    });
    for volume in &mut spec.volumes {
        if let Some(disk) = &mut volume.container_disk {
            pull_policy(&disk.image, &mut disk.image_pull_policy);
        }
    }
    for probe in [&mut spec.liveness_probe, &mut spec.readiness_probe]
        .into_iter()
        .flatten()
    {
        self::probe(probe);
    }
}

fn domain(domain: &mut DomainSpec) {
    let machine = domain.machine.get_or_insert_with(Machine::default);
    if machine.type_.is_empty() {
        machine.type_ = "q35".to_owned();
    }
    memory(domain);
    cpu(
        domain.cpu.get_or_insert_with(Cpu::default),
        domain.resources.as_ref(),
    );
    features(domain.features.get_or_insert_with(Features::default));
    let kernel = domain
        .firmware
        .as_mut()
        .and_then(|firmware| firmware.kernel_boot.as_mut());
    if let Some(container) = kernel.and_then(|kernel| kernel.container.as_mut()) {
        pull_policy(&container.image, &mut container.image_pull_policy);
    }
    for Input { type_, bus, .. } in &mut domain.devices.inputs {
        if type_.is_empty() {
            *type_ = "tablet".to_owned();
        }
        bus.get_or_insert_with(|| "usb".to_owned());
    }
    if let Some(Watchdog {
        i6300esb, diag288, ..
    }) = &mut domain.devices.watchdog
    {
        if diag288.is_none() {
            i6300esb.get_or_insert_with(WatchdogAction::default);
        }
        for watchdog in [i6300esb, diag288].into_iter().flatten() {
            watchdog.action.get_or_insert_with(|| "reset".to_owned());
        }
    }
}

/// Guest memory: what is requested, else the limit, else one hugepage.
fn memory(domain: &mut DomainSpec) {
    let of = |list: fn(&ResourceRequirements) -> Option<&Quantity>| domain.resources.as_ref().and_then(list);
    let requested = of(|resources| resources.requests.get("memory"))
        .or_else(|| of(|resources| resources.limits.get("memory")))
        .cloned();
    let page = domain
        .memory
        .as_ref()
        .and_then(|memory| memory.hugepages.as_ref()?.page_size.clone());
    if let Some(size) = requested.or(page.map(Quantity)) {
        domain
            .memory
            .get_or_insert_with(Memory::default)
            .guest
            .get_or_insert(size);
    }
}

/// Topology: sockets from the CPUs asked of the node where nothing is said, one of each otherwise.
fn cpu(cpu: &mut Cpu, resources: Option<&ResourceRequirements>) {
    // To the real API, 0 and absent are the same.
    for count in [&mut cpu.cores, &mut cpu.sockets, &mut cpu.threads] {
        count.take_if(|count| *count == 0);
    }
    if cpu.cores.is_none() && cpu.sockets.is_none() && cpu.threads.is_none() {
        let asked = resources.and_then(|r| r.limits.get("cpu").or_else(|| r.requests.get("cpu")));
        cpu.sockets = asked
            .and_then(|asked| quantity::whole(asked).ok())
            .map(|cpus| u32::try_from(cpus).unwrap_or(u32::MAX).max(1));
    }
    for count in [&mut cpu.cores, &mut cpu.sockets, &mut cpu.threads] {
        count.get_or_insert(1);
    }
    cpu.model.get_or_insert_with(|| "host-model".to_owned());
}

/// ACPI is on; a feature that is named is on unless it says otherwise.
fn features(features: &mut Features) {
    features.acpi.get_or_insert_with(FeatureState::default);
    let Features {
        acpi,
        apic,
        hyperv,
        hyperv_passthrough,
        smm,
        kvm: _,
        pvspinlock,
    } = features;
    enable([acpi, hyperv_passthrough, smm, pvspinlock]);
    if let Some(FeatureApic { enabled, .. }) = apic {
        enabled.get_or_insert(true);
    }
    if let Some(FeatureHyperv {
        relaxed,
        vapic,
        spinlocks,
        vpindex,
        runtime,
        synic,
        synictimer,
        reset,
        vendorid,
        frequencies,
        reenlightenment,
        tlbflush,
        ipi,
        evmcs,
    }) = hyperv
    {
        enable([
            relaxed,
            vapic,
            vpindex,
            runtime,
            synic,
            reset,
            frequencies,
            reenlightenment,
            ipi,
            evmcs,
        ]);
        if let Some(FeatureSpinlocks { enabled, retries }) = spinlocks {
            enabled.get_or_insert(true);
            retries.get_or_insert(4096);
        }
        if let Some(timer) = synictimer {
            timer.enabled.get_or_insert(true);
        }
        if let Some(vendor) = vendorid {
            vendor.enabled.get_or_insert(true);
        }
        if let Some(flush) = tlbflush {
            flush.enabled.get_or_insert(true);
        }
    }
}

fn enable<const N: usize>(states: [&mut Option<FeatureState>; N]) {
    for state in states.into_iter().flatten() {
        state.enabled.get_or_insert(true);
    }
}

/// Every disk is something, and every volume that a guest can see as a disk has one.
pub fn disks(spec: &mut VirtualMachineInstanceSpec) {
    let devices = &mut spec.domain.devices;
    let shown: BTreeSet<_> = (devices.disks.iter().map(|disk| disk.name.as_str()))
        .chain(
            devices
                .filesystems
                .iter()
                .map(|filesystem| filesystem.name.as_str()),
        )
        .collect();
    let is_disk = |volume: &Volume| volume.memory_dump.is_none() && volume.container_path.is_none();
    let missing: Vec<_> = (spec.volumes.iter())
        .filter(|volume| is_disk(volume) && !shown.contains(volume.name.as_str()))
        .map(|volume| Disk {
            name: volume.name.clone(),
            ..Disk::default()
        })
        .collect();
    devices.disks.extend(missing);
    for disk in &mut devices.disks {
        if disk.disk.is_none() && disk.lun.is_none() && disk.cdrom.is_none() {
            disk.disk = Some(DiskTarget::default());
        }
        if let Some(CdRomTarget { readonly, tray, .. }) = &mut disk.cdrom {
            readonly.get_or_insert(true);
            tray.get_or_insert_with(|| "closed".to_owned());
        }
    }
}

/// A machine of which nothing is said gets this interface on the pod network.
pub fn networks(spec: &mut VirtualMachineInstanceSpec, interface: impl FnOnce() -> Interface) {
    let devices = &mut spec.domain.devices;
    let wanted = devices.autoattach_pod_interface != Some(false);
    if wanted && devices.interfaces.is_empty() && spec.networks.is_empty() {
        let name = || "default".to_owned();
        devices.interfaces.push(Interface {
            name: name(),
            ..interface()
        });
        spec.networks.push(Network {
            name: name(),
            pod: Some(PodNetwork::default()),
            ..Network::default()
        });
    }
}

fn probe(probe: &mut Probe) {
    for (field, default) in [
        (&mut probe.timeout_seconds, 1),
        (&mut probe.period_seconds, 10),
        (&mut probe.success_threshold, 1),
        (&mut probe.failure_threshold, 3),
    ] {
        field.get_or_insert(default);
    }
}

/// An image without a tag, or tagged `latest`, may change behind its name.
fn pull_policy(image: &str, policy: &mut Option<String>) {
    let name = image.rsplit('/').next().unwrap_or(image);
    let pinned = name.contains('@') || name.split_once(':').is_some_and(|(_, tag)| tag != "latest");
    policy.get_or_insert_with(|| if pinned { "IfNotPresent" } else { "Always" }.to_owned());
}

#[cfg(test)]
mod tests;
