//! Processors, memory, threads, clock.

use nacelle_api::cpu as api;
use nacelle_api::domain::{Cpu, CpuFeature, DomainSpec};
use nacelle_api::quantity;
use nacelle_vmm::config::{
    Base, CpuConfig, CpuFeatures, IoThreads, MEMORY_STEP, MemoryConfig, PageSize, Policy,
};

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

/// Features whose names are others in manifests, where they are libvirt's, than in the monitor, where they are Linux's.
const NAMES: [(&str, &str); 38] = [
    ("amd-no-ssb", "amd_ssb_no"),
    ("amd-psfd", "psfd"),
    ("amd-ssbd", "ssbd"),
    ("amd-stibp", "stibp"),
    ("amx-bf16", "amx_bf16"),
    ("amx-int8", "amx_int8"),
    ("amx-tile", "amx_tile"),
    ("arch-capabilities", "arch_capabilities"),
    ("arch-lbr", "arch_lbr"),
    ("avx-vnni", "avx_vnni"),
    ("avx512-4fmaps", "avx512_4fmaps"),
    ("avx512-4vnniw", "avx512_4vnniw"),
    ("avx512-bf16", "avx512_bf16"),
    ("avx512-fp16", "avx512_fp16"),
    ("avx512-vp2intersect", "avx512_vp2intersect"),
    ("avx512-vpopcntdq", "avx512_vpopcntdq"),
    ("avx512bitalg", "avx512_bitalg"),
    ("avx512vbmi2", "avx512_vbmi2"),
    ("avx512vnni", "avx512_vnni"),
    ("bus-lock-detect", "bus_lock_detect"),
    ("core-capability", "core_capabilities"),
    ("cr8legacy", "cr8_legacy"),
    ("ds", "dts"),
    ("flush-l1d", "flush_l1d"),
    ("intel-pt", "intel_pt"),
    ("md-clear", "md_clear"),
    ("pclmuldq", "pclmulqdq"),
    ("sgxlc", "sgx_lc"),
    ("sha-ni", "sha_ni"),
    ("spec-ctrl", "spec_ctrl"),
    ("srbds-ctrl", "srbds_ctrl"),
    ("ssbd", "spec_ctrl_ssbd"),
    ("sse4.1", "sse4_1"),
    ("sse4.2", "sse4_2"),
    ("stibp", "intel_stibp"),
    ("stibp-always-on", "stibp_always_on"),
    ("tsx-ldtrk", "tsxldtrk"),
    ("virt-ssbd", "virt_ssbd"),
];

/// The monitor's name of a feature.
fn in_monitor(name: &str) -> &str {
    let other = NAMES.iter().find(|(manifest, _)| *manifest == name);
    other.map_or(name, |(_, monitor)| monitor)
}

/// The name by which manifests and nodes have a feature of the monitor; none where it has no name at all.
pub fn in_manifest(name: &str) -> Option<&str> {
    let other = NAMES.iter().find(|(_, monitor)| *monitor == name);
    let name = other.map_or(name, |(manifest, _)| manifest);
    api::features().any(|known| known == name).then_some(name)
}

/// Which features the guest is shown. What nobody chose is the host's whole processor.
pub fn features(cpu: Option<&Cpu>) -> Result<CpuFeatures> {
    let Some(cpu) = cpu else {
        return Ok(CpuFeatures::default());
    };
    let base = match cpu.model.as_deref() {
        Some("host-passthrough") => Base::Host,
        None | Some("" | "host-model") => Base::Named,
        Some(name) => {
            let model = api::model(name);
            let model =
                model.ok_or_else(|| Error::Usage(format!("spec.domain.cpu.model: there is no {name}")))?;
            Base::Only(model.into_iter().map(in_monitor).collect())
        }
    };
    let policy = |feature: &CpuFeature| {
        Ok(match feature.policy() {
            "force" => Policy::Force,
            "require" => Policy::Require,
            "optional" => Policy::Optional,
            "disable" => Policy::Disable,
            "forbid" => Policy::Forbid,
            other => {
                let name = &feature.name;
                return Err(Error::Usage(format!(
                    "spec.domain.cpu.features: {name} has policy {other}, which there is not"
                )));
            }
        })
    };
    let policies = cpu.features.iter();
    Ok(CpuFeatures {
        base,
        policies: policies
            .map(|feature| Ok((in_monitor(&feature.name).to_owned(), policy(feature)?)))
            .collect::<Result<_>>()?,
    })
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
    use std::collections::BTreeSet;

    use nacelle_vmm::vcpu::profile::Profile;
    use serde_json::json;

    use super::*;

    #[test]
    fn manifest_and_monitor_know_the_same_features() {
        let manifest: BTreeSet<_> = api::features().map(in_monitor).collect();
        let monitor: BTreeSet<_> = Profile::known().collect();
        assert_eq!(manifest, monitor);
        for name in api::features() {
            assert_eq!(in_manifest(in_monitor(name)), Some(name));
        }
        assert_eq!(in_manifest("7.1.eax.26"), None);
    }

    #[test]
    fn a_manifest_says_what_the_guest_is_shown() {
        let of = |text: serde_json::Value| features(Some(&serde_json::from_value(text).unwrap()));
        assert_eq!(
            of(json!({"model": "host-passthrough"})).unwrap(),
            CpuFeatures::default()
        );
        let host_model =
            of(json!({"features": [{"name": "sse4.1"}, {"name": "vmx", "policy": "disable"}]})).unwrap();
        assert_eq!(host_model.base, Base::Named);
        let policies: Vec<_> = host_model
            .policies
            .iter()
            .map(|(name, policy)| (name.as_str(), *policy))
            .collect();
        assert_eq!(policies, [("sse4_1", Policy::Require), ("vmx", Policy::Disable)]);
        let Base::Only(westmere) = of(json!({"model": "Westmere"})).unwrap().base else {
            panic!()
        };
        assert!(westmere.has("pclmulqdq") && westmere.has("cx16") && !westmere.has("avx"));
        assert!(of(json!({"model": "Pentium"})).is_err());
        assert!(of(json!({"features": [{"name": "aes", "policy": "perhaps"}]})).is_err());
    }
}
