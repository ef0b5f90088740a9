//! `spec.domain`: the machine itself; its devices are in [`crate::devices`].

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::devices::Devices;
use crate::features::{Clock, Features};
use crate::firmware::Firmware;
use crate::{Empty, Freeform};

/// The machine.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainSpec {
    /// What the pod asks of the node; guest memory follows from it where `memory.guest` is absent.
    pub resources: Option<ResourceRequirements>,
    /// Processors.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Machine type.
    pub machine: Option<Machine>,
    /// Identity of the machine and how it boots.
    pub firmware: Option<Firmware>,
    /// Clock and timers.
    pub clock: Option<Clock>,
    /// ACPI, APIC, Hyper-V, ...
    pub features: Option<Features>,
    /// Disks, interfaces and the rest.
    pub devices: Devices,
    /// How disks share I/O threads: `shared`, `auto` or `supplementalPool`.
    pub io_threads_policy: Option<String>,
    /// Size of the supplemental pool.
    pub io_threads: Option<IoThreads>,
    /// SMBIOS chassis.
    pub chassis: Option<Chassis>,
    /// Confidential computing.
    pub launch_security: Option<LaunchSecurity>,
    /// What a reboot by the guest does: `Reboot` or `Terminate`.
    pub reboot_policy: Option<String>,
}

/// What the pod asks of the node.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceRequirements {
    /// What it must get: `memory`, `cpu`, ...
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, Quantity>,
    /// What it may take at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Quantity>,
    /// Whether the monitor's own memory stays out of the request.
    pub overcommit_guest_overhead: Option<bool>,
}

/// Processors: the guest sees sockets × cores × threads.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// Cores in each socket.
    pub cores: Option<u32>,
    /// Sockets.
    pub sockets: Option<u32>,
    /// Up to how many sockets may be hot-plugged.
    pub max_sockets: Option<u32>,
    /// Threads in each core.
    pub threads: Option<u32>,
    /// `host-model` (the default), `host-passthrough` or a named model.
    pub model: Option<String>,
    /// CPU features that are wanted or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<CpuFeature>,
    /// Whether each vCPU has a host CPU for itself.
    pub dedicated_cpu_placement: Option<bool>,
    /// Whether the monitor's own threads have one more for themselves.
    pub isolate_emulator_thread: Option<bool>,
    /// NUMA in the guest.
    pub numa: Option<Numa>,
    /// Real-time scheduling of vCPUs.
    pub realtime: Option<Realtime>,
}

impl Cpu {
    /// How many vCPUs the guest has: the product, where what is absent counts as 1.
    pub fn vcpus(&self) -> u32 {
        [self.sockets, self.cores, self.threads]
            .into_iter()
            .map(|count| count.unwrap_or(1).max(1))
            .fold(1, u32::saturating_mul)
    }
}

/// A CPU feature.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CpuFeature {
    /// Its name.
    pub name: String,
    /// `force`, `require` (the default), `optional`, `disable` or `forbid`.
    pub policy: Option<String>,
}

/// NUMA in the guest.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Numa {
    /// The guest's nodes are those of the host CPUs that it is pinned to.
    pub guest_mapping_passthrough: Option<Empty>,
}

/// Real-time scheduling of vCPUs.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Realtime {
    /// Which vCPUs: `0-3,^1`.
    pub mask: Option<String>,
}

/// Memory.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// What the guest sees.
    pub guest: Option<Quantity>,
    /// Up to how much may be hot-plugged.
    pub max_guest: Option<Quantity>,
    /// Back it with hugepages.
    pub hugepages: Option<Hugepages>,
    /// More memory for the monitor itself.
    pub reserved_overhead: Option<ReservedOverhead>,
}

/// Hugepages.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hugepages {
    /// `2Mi` or `1Gi`.
    pub page_size: Option<String>,
}

/// More memory for the monitor itself.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReservedOverhead {
    /// How much.
    pub added_overhead: Option<Quantity>,
    /// Whether the monitor may lock its memory: `Required` or `NotRequired`.
    pub mem_lock: Option<String>,
}

/// Machine type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// `q35` or `pc-q35-...`: one and the same machine here.
    #[serde(rename = "type", default)]
    pub type_: String,
}

/// Size of the supplemental pool of I/O threads.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IoThreads {
    /// How many threads.
    pub supplemental_pool_thread_count: Option<u32>,
}

/// SMBIOS chassis.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Chassis {
    /// Manufacturer.
    pub manufacturer: Option<String>,
    /// Version.
    pub version: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Asset tag.
    pub asset: Option<String>,
    /// Stock number.
    pub sku: Option<String>,
}

/// Confidential computing: exactly one of its members.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LaunchSecurity {
    /// AMD SEV.
    pub sev: Option<Sev>,
    /// AMD SEV-SNP.
    pub snp: Option<Freeform>,
    /// Intel TDX.
    pub tdx: Option<Freeform>,
}

/// AMD SEV.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sev {
    /// Guest policy.
    pub policy: Option<SevPolicy>,
    /// Whether to wait for attestation.
    pub attestation: Option<Empty>,
    /// Session blob.
    pub session: Option<String>,
    /// The owner's Diffie-Hellman key.
    pub dh_cert: Option<String>,
}

/// Guest policy of SEV.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SevPolicy {
    /// SEV-ES.
    pub encrypted_state: Option<bool>,
}
