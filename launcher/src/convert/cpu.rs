//! Processors, memory, threads, clock.

use nacelle_api::domain::{Cpu, DomainSpec};
use nacelle_api::quantity;
use nacelle_vmm::config::{CpuConfig, IoThreads, MEMORY_STEP, MemoryConfig, PageSize};

use crate::{Error, Result};

/// Sockets × cores × threads; what is absent counts as 1.
pub fn topology(cpu: Option<&Cpu>) -> Result<CpuConfig> {
    let of = |count: Option<u32>| u16::try_from(count.unwrap_or(1).max(1)).unwrap_or(u16::MAX);
    Ok(CpuConfig {
        sockets: of(cpu.and_then(|cpu| cpu.sockets)),
        cores: of(cpu.and_then(|cpu| cpu.cores)),
        threads: of(cpu.and_then(|cpu| cpu.threads)),
    })
}

/// The named model of processor, where it is not the host's own.
pub fn model(cpu: Option<&Cpu>) -> Option<String> {
    let model = cpu.and_then(|cpu| cpu.model.clone());
    model.filter(|model| !matches!(model.as_str(), "" | "host-model" | "host-passthrough"))
}

/// Guest memory, rounded up to what it comes in: 2 MiB, or the hugepage.
pub fn memory(domain: &DomainSpec) -> Result<MemoryConfig> {
    let refuse = |reason: String| Error::Usage(format!("spec.domain.memory: {reason}"));
    let memory = domain.memory.as_ref();
    let guest = memory
        .and_then(|memory| memory.guest.as_ref())
        .ok_or_else(|| refuse("no memory requested".into()))?;
    let bytes = quantity::whole(guest).map_err(|error| refuse(error.to_string()))?;
    let pages = match memory
        .and_then(|memory| memory.hugepages.as_ref())
        .and_then(|pages| pages.page_size.as_deref())
    {
        None => PageSize::Ordinary,
        Some("2Mi") => PageSize::Huge2M,
        Some("1Gi") => PageSize::Huge1G,
        Some(other) => return Err(refuse(format!("hugepages of {other} are not supported"))),
    };
    let step = pages.bytes().max(MEMORY_STEP);
    Ok(MemoryConfig {
        size: bytes.checked_next_multiple_of(step).unwrap_or(bytes),
        pages,
        ..MemoryConfig::default()
    })
}

/// `shared`: one thread for all disks without `dedicatedIOThread` and one for each with it, which is also what
/// holds where nothing is said. `auto`: as many as there are disks, at most two a vCPU, as in KubeVirt.
pub fn io_threads(domain: &DomainSpec, cpus: CpuConfig) -> IoThreads {
    let disks = &domain.devices.disks;
    let dedicated = disks
        .iter()
        .filter(|disk| disk.dedicated_io_thread == Some(true))
        .count();
    let count = if domain.io_threads_policy.as_deref() == Some("auto") {
        disks.len().min(2 * usize::from(cpus.count().unwrap_or(1)))
    } else {
        dedicated + usize::from(dedicated < disks.len() || !domain.devices.interfaces.is_empty())
    };
    match u16::try_from(count) {
        Ok(0 | 1) => IoThreads::Shared,
        count => IoThreads::Pool(count.unwrap_or(u16::MAX)),
    }
}

/// How far the guest's hardware clock is ahead of UTC, in seconds.
pub fn clock_offset(domain: &DomainSpec) -> i64 {
    domain
        .clock
        .as_ref()
        .and_then(|clock| clock.utc.as_ref())
        .and_then(|utc| utc.offset_seconds)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use nacelle_api::support::CPU_MODELS;
    use nacelle_vmm::vcpu::model;

    #[test]
    fn a_manifest_may_name_every_model_that_the_monitor_knows_and_no_other() {
        let named: Vec<_> = CPU_MODELS.iter().copied().skip(2).collect();
        assert_eq!(named, model::names().collect::<Vec<_>>());
    }
}
