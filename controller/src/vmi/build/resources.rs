//! What the pod asks of the node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use nacelle_api::VirtualMachineInstanceSpec;
use nacelle_api::quantity;

use crate::configuration::Configuration;

const MIB: u64 = 1 << 20;
/// Bytes that the launcher itself takes, whatever the machine: code, threads of its own, buffers.
const FIXED: u64 = 16 * MIB;
/// Bytes for each vCPU: its stack, its state, its share of queues.
const VCPU: u64 = MIB;
/// One byte of page tables for so many of guest memory.
const PAGE_TABLES: u64 = 512;
/// Thousandths of a CPU.
const MILLIS: u64 = 1000;

/// Bytes beside the guest's memory: what the monitor takes, and what the spec adds.
pub fn overhead(spec: &VirtualMachineInstanceSpec, configuration: &Configuration) -> u64 {
    let added = spec
        .domain
        .memory
        .as_ref()
        .and_then(|memory| memory.reserved_overhead.as_ref()?.added_overhead.as_ref())
        .and_then(|added| quantity::whole(added).ok())
        .unwrap_or(0);
    let vcpus = spec.domain.cpu.as_ref().map_or(1, |cpu| u64::from(cpu.vcpus()));
    let ours = FIXED
        .saturating_add(guest(spec) / PAGE_TABLES)
        .saturating_add(vcpus.saturating_mul(VCPU));
    // From a float, `as` saturates.
    ((ours as f64 * configuration.overhead_ratio) as u64).saturating_add(added)
}

/// Bytes of guest memory.
fn guest(spec: &VirtualMachineInstanceSpec) -> u64 {
    let memory = spec
        .domain
        .memory
        .as_ref()
        .and_then(|memory| memory.guest.as_ref());
    memory.and_then(|guest| quantity::whole(guest).ok()).unwrap_or(0)
}

/// Requests and limits of the container that runs the machine.
pub(super) fn compute(
    spec: &VirtualMachineInstanceSpec,
    overhead: u64,
    configuration: &Configuration,
) -> ResourceRequirements {
    let domain = &spec.domain;
    let (mut requests, mut limits, spared) = match &domain.resources {
        Some(resources) => (
            resources.requests.clone(),
            resources.limits.clone(),
            resources.overcommit_guest_overhead == Some(true),
        ),
        None => (BTreeMap::new(), BTreeMap::new(), false),
    };
    let bytes =
        |list: &BTreeMap<String, Quantity>| list.get("memory").and_then(|size| quantity::whole(size).ok());
    let overhead = if spared { 0 } else { overhead };

    let pages = domain
        .memory
        .as_ref()
        .and_then(|memory| memory.hugepages.as_ref()?.page_size.clone());
    let memory = match pages {
        // The guest's memory is in hugepages; ordinary memory only carries the monitor.
        Some(size) => {
            for list in [&mut requests, &mut limits] {
                list.insert(format!("hugepages-{size}"), Quantity(guest(spec).to_string()));
            }
            overhead
        }
        // More or less than the guest sees is the user's decision.
        None => bytes(&requests)
            .unwrap_or_else(|| guest(spec).saturating_mul(100) / configuration.memory_overcommit.max(1))
            .saturating_add(overhead),
    };
    requests.insert("memory".to_owned(), Quantity(memory.to_string()));
    if let Some(limit) = bytes(&limits) {
        limits.insert(
            "memory".to_owned(),
            Quantity(limit.saturating_add(overhead).to_string()),
        );
    }
    if !requests.contains_key("cpu") {
        let vcpus = domain.cpu.as_ref().map_or(1, |cpu| u64::from(cpu.vcpus()));
        let cpu = limits.get("cpu").cloned().unwrap_or_else(|| {
            let millis = vcpus.saturating_mul(MILLIS) / configuration.cpu_allocation_ratio.max(1);
            Quantity(format!("{millis}m"))
        });
        requests.insert("cpu".to_owned(), cpu);
    }
    requests.insert("ephemeral-storage".to_owned(), Quantity("50M".to_owned()));

    let mut device =
        |name: &str| limits.insert(format!("devices.kubevirt.io/{name}"), Quantity("1".to_owned()));
    device("kvm");
    if !domain.devices.interfaces.is_empty() {
        device("tun");
    }
    ResourceRequirements {
        requests: Some(requests),
        limits: Some(limits),
        claims: None,
    }
}

/// The same of what makes taps. The kubelet gives `compute` the device that it had.
pub(super) fn network() -> ResourceRequirements {
    let mut resources = helper();
    let tun = ("devices.kubevirt.io/tun".to_owned(), Quantity("1".to_owned()));
    resources.limits.get_or_insert_default().extend([tun]);
    resources
}

/// Requests and limits of a helper that waits for most of its life.
pub(super) fn helper() -> ResourceRequirements {
    let list = |cpu: &str, memory: &str| {
        Some(BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_owned())),
            ("memory".to_owned(), Quantity(memory.to_owned())),
        ]))
    };
    ResourceRequirements {
        requests: list("1m", "4M"),
        limits: list("100m", "40M"),
        claims: None,
    }
}
