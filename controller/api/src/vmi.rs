//! `VirtualMachineInstance`: one run of a machine.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, ExecAction, HTTPGetAction, PodDNSConfig, PodResourceClaim, TCPSocketAction, Toleration,
    TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::conditions::Condition;
use crate::credentials::AccessCredential;
use crate::domain::{DomainSpec, Machine};
use crate::migration::MigrationState;
use crate::network::Network;
use crate::object::object;
use crate::volume::{UtilityVolume, Volume};
use crate::{Empty, Freeform};

object!(
    /// One run of a machine.
    VirtualMachineInstance,
    "virtualmachineinstances",
    VirtualMachineInstanceSpec,
    VirtualMachineInstanceStatus
);

/// What a user wants of an instance.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceSpec {
    /// The machine itself.
    pub domain: DomainSpec,
    /// What its disks hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// What its interfaces are connected to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Network>,
    /// Host name in the guest (by DHCP and cloud-init); the object's name by default.
    pub hostname: Option<String>,
    /// Subdomain: `<hostname>.<subdomain>.<namespace>.svc...`.
    pub subdomain: Option<String>,
    /// Seconds between the power button and pulling the plug; 30 by default.
    pub termination_grace_period_seconds: Option<i64>,
    /// `Paused`: create the machine but do not let it run yet.
    pub start_strategy: Option<String>,
    /// What an eviction does: `None`, `LiveMigrate`, `LiveMigrateIfPossible` or `External`.
    pub eviction_strategy: Option<String>,
    /// CPU architecture: `amd64`, `arm64`, `s390x`.
    pub architecture: Option<String>,
    /// When the guest counts as dead.
    pub liveness_probe: Option<Probe>,
    /// When the guest counts as ready.
    pub readiness_probe: Option<Probe>,
    /// DNS policy of the pod, which the guest gets by DHCP.
    pub dns_policy: Option<String>,
    /// DNS settings of the pod, which the guest gets by DHCP.
    pub dns_config: Option<PodDNSConfig>,
    /// Keys and passwords that are put into the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access_credentials: Vec<AccessCredential>,
    /// Volumes of the launcher that the guest does not see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub utility_volumes: Vec<UtilityVolume>,
    /// Resource claims (DRA) of the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resource_claims: Vec<PodResourceClaim>,
    /// Service account of the pod.
    pub service_account_name: Option<String>,
    /// Priority of the pod.
    pub priority_class_name: Option<String>,
    /// Labels that the node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Which nodes and neighbours are wanted.
    pub affinity: Option<Affinity>,
    /// The scheduler that places the pod.
    pub scheduler_name: Option<String>,
    /// Taints that are put up with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// How to spread over zones and nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
}

/// Asks the guest something, again and again. Exactly one of the first four members.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// A command that the guest agent runs.
    pub exec: Option<ExecAction>,
    /// Whether the guest agent answers.
    pub guest_agent_ping: Option<Empty>,
    /// An HTTP request.
    pub http_get: Option<HTTPGetAction>,
    /// A TCP connection.
    pub tcp_socket: Option<TCPSocketAction>,
    /// Seconds before the first.
    pub initial_delay_seconds: Option<i32>,
    /// Seconds to wait for an answer; 1 by default.
    pub timeout_seconds: Option<i32>,
    /// Seconds from one to the next; 10 by default.
    pub period_seconds: Option<i32>,
    /// How many good answers make good; 1 by default.
    pub success_threshold: Option<i32>,
    /// How many bad answers make bad; 3 by default.
    pub failure_threshold: Option<i32>,
}

/// What the controller and the launcher report of an instance.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceStatus {
    /// `Pending`, `Scheduling`, `Scheduled`, `Running`, `Succeeded`, `Failed`, `WaitingForSync` or `Unknown`.
    pub phase: Option<String>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The node that it runs on.
    pub node_name: Option<String>,
    /// One word on why the phase is what it is.
    pub reason: Option<String>,
    /// When each phase began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phase_transition_timestamps: Vec<PhaseTransition>,
    /// Interfaces as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<InterfaceStatus>,
    /// What the guest agent says of the system.
    #[serde(rename = "guestOSInfo")]
    pub guest_os_info: Option<Freeform>,
    /// The migration that is going on, or the last one.
    pub migration_state: Option<MigrationState>,
    /// `LiveMigration` or `BlockMigration`.
    pub migration_method: Option<String>,
    /// `Unix`.
    pub migration_transport: Option<String>,
    /// Quality of service class of the pod.
    pub qos_class: Option<String>,
    /// The launcher's image.
    pub launcher_container_image_version: Option<String>,
    /// The node that it is to be moved away from.
    pub evacuation_node_name: Option<String>,
    /// UIDs of its pods, and the node of each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub active_pods: BTreeMap<String, String>,
    /// Volumes as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_status: Vec<Freeform>,
    /// Checksums of the kernel that was booted.
    pub kernel_boot_status: Option<Freeform>,
    /// `frozen` while the guest's file systems are.
    pub fs_freeze_status: Option<String>,
    /// What the node must have.
    pub topology_hints: Option<Freeform>,
    /// The ControllerRevision that it was made of.
    pub virtual_machine_revision_name: Option<String>,
    /// User of the process that runs the guest.
    pub runtime_user: Option<u64>,
    /// Context identifier of its vsock device.
    #[serde(rename = "VSOCKCID")]
    pub vsock_cid: Option<u32>,
    /// SELinux label of the pod.
    pub selinux_context: Option<String>,
    /// The machine type in use.
    pub machine: Option<Machine>,
    /// The processors in use.
    #[serde(rename = "currentCPUTopology")]
    pub current_cpu_topology: Option<CpuTopology>,
    /// Memory at boot, now, and asked for.
    pub memory: Option<MemoryStatus>,
    /// Volumes that are migrated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub migrated_volumes: Vec<Freeform>,
    /// Whether changed blocks are tracked.
    pub changed_block_tracking: Option<Freeform>,
}

/// When a phase began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PhaseTransition {
    /// The phase.
    pub phase: String,
    /// When.
    pub phase_transition_timestamp: Time,
}

/// An interface as it is.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// The first of its addresses.
    pub ip_address: Option<String>,
    /// Its addresses, as others reach it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_addresses: Vec<String>,
    /// Its MAC address.
    pub mac: Option<String>,
    /// Its name in the spec.
    pub name: Option<String>,
    /// Its name in the pod.
    pub pod_interface_name: Option<String>,
    /// Its name in the guest.
    pub interface_name: Option<String>,
    /// Who says so: `domain`, `guest-agent`, `multus-status`.
    pub info_source: Option<String>,
    /// Pairs of queues.
    pub queue_count: Option<i32>,
    /// `up` or `down`.
    pub link_state: Option<String>,
}

/// Processors in use.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CpuTopology {
    /// Cores in each socket.
    pub cores: Option<u32>,
    /// Sockets.
    pub sockets: Option<u32>,
    /// Threads in each core.
    pub threads: Option<u32>,
}

/// Memory of the guest.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemoryStatus {
    /// With which it booted.
    pub guest_at_boot: Option<Quantity>,
    /// Which it has.
    pub guest_current: Option<Quantity>,
    /// Which it should have.
    pub guest_requested: Option<Quantity>,
    /// What the pod has beside it.
    pub memory_overhead: Option<Quantity>,
}
