//! What an instance type writes into a template with which it has no conflict. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use nacelle_api::domain::{Cpu, Memory, ResourceRequirements};
use nacelle_api::instancetype::{CpuInstancetype, MemoryInstancetype};
use nacelle_api::{InstancetypeSpec, PreferenceSpec, VirtualMachineInstanceSpec, quantity};

use super::topology::{self, Topology};

/// Every field is dealt with: one that is added to the types does not compile until it is named here.
pub(super) fn apply(
    instancetype: &InstancetypeSpec,
    preference: Option<&PreferenceSpec>,
    spec: &mut VirtualMachineInstanceSpec,
) {
    let InstancetypeSpec {
        cpu,
        memory,
        node_selector,
        scheduler_name,
        gpus,
        host_devices,
        io_threads_policy,
        io_threads,
        launch_security,
        // The instance's, not its spec's.
        annotations: _,
    } = instancetype;
    self::cpu(cpu, preference, spec.domain.cpu.get_or_insert_default());
    self::memory(
        memory,
        spec.domain.memory.get_or_insert_default(),
        &mut spec.domain.resources,
    );
    map(&mut spec.node_selector, node_selector);
    set(&mut spec.scheduler_name, scheduler_name);
    spec.domain.devices.gpus.extend(gpus.iter().cloned());
    let devices = &mut spec.domain.devices.host_devices;
    devices.extend(host_devices.iter().cloned());
    set(&mut spec.domain.io_threads_policy, io_threads_policy);
    set(&mut spec.domain.io_threads, io_threads);
    set(&mut spec.domain.launch_security, launch_security);
}

fn cpu(from: &CpuInstancetype, preference: Option<&PreferenceSpec>, to: &mut Cpu) {
    let CpuInstancetype {
        guest,
        model,
        dedicated_cpu_placement,
        numa,
        isolate_emulator_thread,
        realtime,
        max_sockets,
    } = from;
    set(&mut to.model, model);
    set(&mut to.dedicated_cpu_placement, dedicated_cpu_placement);
    set(&mut to.numa, numa);
    set(&mut to.isolate_emulator_thread, isolate_emulator_thread);
    set(&mut to.realtime, realtime);
    set(&mut to.max_sockets, max_sockets);
    let Topology {
        sockets,
        cores,
        threads,
    } = topology::of(*guest, preference);
    to.sockets = Some(sockets);
    to.cores = Some(cores);
    to.threads = Some(threads);
}

fn memory(from: &MemoryInstancetype, to: &mut Memory, resources: &mut Option<ResourceRequirements>) {
    let MemoryInstancetype {
        guest,
        hugepages,
        overcommit_percent,
        max_guest,
    } = from;
    to.guest = Some(guest.clone());
    set(&mut to.hugepages, hugepages);
    set(&mut to.max_guest, max_guest);
    let percent = overcommit_percent.unwrap_or(0).clamp(0, 100).unsigned_abs();
    // A size that is none is validation's to refuse.
    if percent > 0
        && let Ok(bytes) = quantity::whole(guest)
    {
        let requested = u128::from(bytes) * u128::from(100 - percent) / 100;
        let requests = &mut resources.get_or_insert_default().requests;
        requests.insert("memory".to_owned(), Quantity(requested.to_string()));
    }
}

fn set<T: Clone>(to: &mut Option<T>, from: &Option<T>) {
    if from.is_some() {
        to.clone_from(from);
    }
}

fn map(to: &mut BTreeMap<String, String>, from: &BTreeMap<String, String>) {
    if !from.is_empty() {
        to.clone_from(from);
    }
}
