//! `VirtualMachineInstanceMigration`: an instance moves to another node.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::Freeform;
use crate::conditions::Condition;
use crate::object::object;

object!(
    /// A wish that an instance move to another node, and what became of it.
    VirtualMachineInstanceMigration,
    "virtualmachineinstancemigrations",
    VirtualMachineInstanceMigrationSpec,
    VirtualMachineInstanceMigrationStatus
);

/// Which instance, and where to.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceMigrationSpec {
    /// The instance.
    pub vmi_name: Option<String>,
    /// Labels that the node must have beside those that the instance asks for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub added_node_selector: BTreeMap<String, String>,
    /// Which of those that wait comes first: `system-critical`, `user-triggered`, `system-maintenance`.
    pub priority: Option<String>,
    /// The other half of it is in another cluster or namespace.
    pub send_to: Option<Freeform>,
    /// The same, at the other end.
    pub receive: Option<Freeform>,
}

/// How far it is.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceMigrationStatus {
    /// `Pending`, `Scheduling`, `Scheduled`, `PreparingTarget`, `TargetReady`, `Running`, `Succeeded` or `Failed`.
    pub phase: Option<String>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// When each phase began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phase_transition_timestamps: Vec<MigrationPhaseTransition>,
    /// What the instance says of it.
    pub migration_state: Option<MigrationState>,
}

/// When a phase began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationPhaseTransition {
    /// The phase.
    pub phase: String,
    /// When.
    pub phase_transition_timestamp: Time,
}

/// The migration that is going on, or the last one, as the instance's status has it.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationState {
    /// When the source began to send.
    pub start_timestamp: Option<Time>,
    /// When it was over.
    pub end_timestamp: Option<Time>,
    /// When the guest ran at the target.
    pub target_node_domain_ready_timestamp: Option<Time>,
    /// The guest was seen there.
    pub target_node_domain_detected: Option<bool>,
    /// Where the target listens.
    pub target_node_address: Option<String>,
    /// The node that it goes to.
    pub target_node: Option<String>,
    /// The pod that it goes to.
    pub target_pod: Option<String>,
    /// The node that it comes from.
    pub source_node: Option<String>,
    /// The pod that it comes from.
    pub source_pod: Option<String>,
    /// It is over.
    pub completed: Option<bool>,
    /// It came to nothing.
    pub failed: Option<bool>,
    /// Why.
    pub failure_reason: Option<String>,
    /// Somebody wants it to end.
    pub abort_requested: Option<bool>,
    /// What became of that: `Aborting`, `Succeeded`, `Failed`.
    pub abort_status: Option<String>,
    /// The migration's UID.
    pub migration_uid: Option<String>,
    /// `PreCopy`, `PostCopy` or `Paused`.
    pub mode: Option<String>,
    /// The MigrationPolicy that counts.
    pub migration_policy_name: Option<String>,
    /// The settings that count.
    pub migration_configuration: Option<Freeform>,
    /// What else KubeVirt's has.
    #[serde(flatten)]
    pub others: Freeform,
}

impl MigrationState {
    /// Whether it is over, one way or the other.
    pub fn is_over(&self) -> bool {
        self.completed == Some(true) || self.failed == Some(true)
    }

    /// Whether the guest runs at the target, or did.
    pub fn has_arrived(&self) -> bool {
        self.target_node_domain_ready_timestamp.is_some()
    }
}

/// How the migrations of some instances go.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationPolicySpec {
    /// Of which.
    pub selectors: Option<Selectors>,
    /// Whether a guest is slowed down that writes faster than can be sent.
    pub allow_auto_converge: Option<bool>,
    /// Most bytes a second.
    pub bandwidth_per_migration: Option<Quantity>,
    /// Seconds that each GiB may take.
    #[serde(rename = "completionTimeoutPerGiB")]
    pub completion_timeout_per_gib: Option<u64>,
    /// Whether its memory may follow it when its time is over.
    pub allow_post_copy: Option<bool>,
    /// Whether it may stand still for as long as it takes when its time is over.
    pub allow_workload_disruption: Option<bool>,
}

/// Labels that all must be there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Selectors {
    /// At the namespace.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub namespace_selector: BTreeMap<String, String>,
    /// At the instance.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub virtual_machine_instance_selector: BTreeMap<String, String>,
}
