//! `VirtualMachine`: the object that outlives each run of its machine.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::Freeform;
use crate::conditions::Condition;
use crate::datavolume::DataVolumeTemplate;
use crate::object::object;
use crate::vmi::VirtualMachineInstanceSpec;

object!(
    /// A machine that may be started and stopped; each run is a `VirtualMachineInstance` made of the template.
    VirtualMachine,
    "virtualmachines",
    VirtualMachineSpec,
    VirtualMachineStatus
);

/// What a user wants of a `VirtualMachine`.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineSpec {
    /// Whether the machine should run. Deprecated in favour of `runStrategy`; the two exclude each other.
    pub running: Option<bool>,
    /// `Always`, `RerunOnFailure`, `Manual`, `Halted`, `Once` or `WaitAsReceiver`.
    pub run_strategy: Option<String>,
    /// The instance type that supplies CPU and memory.
    pub instancetype: Option<InstancetypeMatcher>,
    /// The preference that supplies defaults for everything else.
    pub preference: Option<InstancetypeMatcher>,
    /// The instance that each run is made of.
    pub template: VirtualMachineInstanceTemplate,
    /// DataVolumes that are created, owned and deleted with the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data_volume_templates: Vec<DataVolumeTemplate>,
    /// What exchanging a volume of a running machine does: `Replacement` or `Migration`.
    pub update_volumes_strategy: Option<String>,
}

/// Names an instance type or a preference.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstancetypeMatcher {
    /// Its name.
    pub name: Option<String>,
    /// Its kind; the cluster-wide one by default.
    pub kind: Option<String>,
    /// The ControllerRevision that pins it.
    pub revision_name: Option<String>,
    /// The volume whose labels name it.
    pub infer_from_volume: Option<String>,
    /// What to do when the volume names none: `Reject` or `Ignore`.
    pub infer_from_volume_failure_policy: Option<String>,
}

/// Metadata and spec of the instances that a machine makes.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceTemplate {
    /// Labels and annotations that the instance and its pod get.
    pub metadata: Option<ObjectMeta>,
    /// The instance.
    pub spec: VirtualMachineInstanceSpec,
}

/// What the controller reports of a `VirtualMachine`.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineStatus {
    /// Whether an instance exists.
    pub created: Option<bool>,
    /// Whether the instance runs and is ready.
    pub ready: Option<bool>,
    /// One word for people: `Stopped`, `Starting`, `Running`, `Paused`, ...
    pub printable_status: Option<String>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Starts and stops that were asked for and are not done yet, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub state_change_requests: Vec<StateChangeRequest>,
    /// How often in a row the machine failed before it ran.
    pub start_failure: Option<StartFailure>,
    /// Generation of the spec that the instance was made of.
    pub observed_generation: Option<i64>,
    /// Generation of the spec.
    pub desired_generation: Option<i64>,
    /// The run strategy that was last acted upon.
    pub run_strategy: Option<String>,
    /// The snapshot that is being made.
    pub snapshot_in_progress: Option<String>,
    /// The restore that is going on.
    pub restore_in_progress: Option<String>,
    /// Volumes that are to be plugged or unplugged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_requests: Vec<Freeform>,
    /// Whether each volume can take part in a snapshot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_snapshot_statuses: Vec<Freeform>,
    /// The memory dump that was asked for.
    pub memory_dump_request: Option<Freeform>,
    /// Volumes that are being exchanged.
    pub volume_update_state: Option<Freeform>,
    /// Whether changed blocks are tracked.
    pub changed_block_tracking: Option<Freeform>,
    /// The instance type in use.
    pub instancetype_ref: Option<InstancetypeStatusRef>,
    /// The preference in use.
    pub preference_ref: Option<InstancetypeStatusRef>,
}

/// The instance type or preference in use.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstancetypeStatusRef {
    /// Its name.
    pub name: Option<String>,
    /// Its kind.
    pub kind: Option<String>,
    /// The ControllerRevision that holds it as it was at first use.
    pub controller_revision_ref: Option<ControllerRevisionRef>,
    /// The volume whose labels named it.
    pub infer_from_volume: Option<String>,
    /// What was to be done where the volume named none.
    pub infer_from_volume_failure_policy: Option<String>,
}

/// Names a ControllerRevision.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ControllerRevisionRef {
    /// Its name.
    pub name: Option<String>,
}

/// A start or a stop that was asked for by the subresource API.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StateChangeRequest {
    /// `Start` or `Stop`.
    pub action: String,
    /// More about it: `paused: "true"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// The instance that a stop means.
    #[serde(rename = "uid")]
    pub uid: Option<String>,
}

/// Failures before the machine ever ran, since it last did.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StartFailure {
    /// How many in a row.
    pub consecutive_fail_count: Option<i32>,
    /// The last instance that failed.
    #[serde(rename = "lastFailedVMIUID")]
    pub last_failed_vmi_uid: Option<String>,
    /// No new instance before this time.
    pub retry_after_timestamp: Option<Time>,
}
