//! Instance types (`instancetype.kubevirt.io/v1beta1`): the CPUs and the memory of machines that name them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::devices::{Gpu, HostDevice};
use crate::domain::{Hugepages, IoThreads, LaunchSecurity, Numa, Realtime};

/// API group of instance types and preferences.
pub const GROUP: &str = "instancetype.kubevirt.io";

/// An object that is data for others: metadata and a spec, without a status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Data<S> {
    /// What it says.
    pub spec: S,
}

/// What a VirtualMachineInstancetype or VirtualMachineClusterInstancetype says.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstancetypeSpec {
    /// Processors.
    pub cpu: CpuInstancetype,
    /// Memory.
    pub memory: MemoryInstancetype,
    /// Labels that the node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// The scheduler that places the pod.
    pub scheduler_name: Option<String>,
    /// GPUs that are passed through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
    /// Other host devices that are passed through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_devices: Vec<HostDevice>,
    /// How disks share I/O threads: `shared`, `auto` or `supplementalPool`.
    pub io_threads_policy: Option<String>,
    /// Size of the supplemental pool.
    pub io_threads: Option<IoThreads>,
    /// Confidential computing.
    pub launch_security: Option<LaunchSecurity>,
    /// Annotations that the instance gets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Processors of an instance type.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CpuInstancetype {
    /// How many vCPUs; the preference says whether as sockets, cores or threads.
    pub guest: u32,
    /// `host-model`, `host-passthrough` or a named model.
    pub model: Option<String>,
    /// Whether each vCPU has a host CPU for itself.
    #[serde(rename = "dedicatedCPUPlacement")]
    pub dedicated_cpu_placement: Option<bool>,
    /// NUMA in the guest.
    pub numa: Option<Numa>,
    /// Whether the monitor's own threads have one more for themselves.
    pub isolate_emulator_thread: Option<bool>,
    /// Real-time scheduling of vCPUs.
    pub realtime: Option<Realtime>,
    /// Up to how many sockets may be hot-plugged.
    pub max_sockets: Option<u32>,
}

/// Memory of an instance type.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemoryInstancetype {
    /// What the guest sees.
    pub guest: Quantity,
    /// Back it with hugepages.
    pub hugepages: Option<Hugepages>,
    /// By how much less than the guest sees the pod requests, in percent.
    pub overcommit_percent: Option<i64>,
    /// Up to how much may be hot-plugged.
    pub max_guest: Option<Quantity>,
}
