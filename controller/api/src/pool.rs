//! `VirtualMachinePool` (`pool.kubevirt.io`): as many equal machines as are asked for, each with a name of its own.

use k8s_openapi::api::core::v1::NodeSelectorRequirement;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::Empty;
use crate::object::object;
use crate::replicaset::ReplicaStatus;
use crate::vm::VirtualMachineSpec;

object!(
    /// As many equal machines as are asked for, `NAME-0`, `NAME-1`...; a changed template is rolled out.
    VirtualMachinePool,
    "virtualmachinepools",
    VirtualMachinePoolSpec,
    ReplicaStatus,
    "pool.kubevirt.io",
    "v1beta1"
);

/// What a user wants of a `VirtualMachinePool`.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachinePoolSpec {
    /// How many machines; 1 by default.
    #[schemars(range(min = 0))]
    pub replicas: Option<i32>,
    /// Labels by which it knows its machines.
    pub selector: LabelSelector,
    /// What each machine is made of.
    pub virtual_machine_template: VirtualMachineTemplate,
    /// Whether machines are neither made, changed nor deleted for now.
    pub paused: Option<bool>,
    /// What else of a machine has its number in its name.
    pub name_generation: Option<NameGeneration>,
    /// How many machines, or what part of them, may be not ready for an update; 100% by default.
    pub max_unavailable: Option<IntOrString>,
    /// Which machines go when there are too many.
    pub scale_in_strategy: Option<ScaleInStrategy>,
    /// What becomes of machines when the template changes.
    pub update_strategy: Option<UpdateStrategy>,
    /// When a machine that does not start is replaced; never where this is absent.
    pub autohealing: Option<Autohealing>,
}

/// Metadata and spec of the machines of a pool.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineTemplate {
    /// Labels and annotations that the machine gets.
    pub metadata: Option<ObjectMeta>,
    /// The machine.
    #[serde(default)]
    pub spec: VirtualMachineSpec,
}

/// What of a machine has its number in its name, beside the machine and its DataVolumes.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NameGeneration {
    /// Names of ConfigMaps in volumes.
    pub append_index_to_config_map_refs: Option<bool>,
    /// Names of Secrets in volumes.
    pub append_index_to_secret_refs: Option<bool>,
}

/// Which machines go when there are too many; at most one of the three.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScaleInStrategy {
    /// None: people delete them.
    pub unmanaged: Option<Empty>,
    /// None: those that are deleted anyway are not replaced.
    pub opportunistic: Option<OpportunisticScaleIn>,
    /// Some are deleted. The default.
    pub proactive: Option<ProactiveScaleIn>,
}

/// What is kept of machines that are deleted by others.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OpportunisticScaleIn {
    /// What of them is kept for their successors.
    pub state_preservation: Option<StatePreservation>,
}

/// Which machines are deleted, and what is kept of them.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProactiveScaleIn {
    /// Which first; any by default.
    pub selection_policy: Option<SelectionPolicy>,
    /// What of them is kept for their successors.
    pub state_preservation: Option<StatePreservation>,
}

/// What of a machine is kept for its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StatePreservation {
    /// Nothing. The default.
    Disabled,
    /// Its volumes.
    Offline,
    /// Its volumes and its memory.
    Online,
}

/// Which machines come first.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SelectionPolicy {
    /// Their order.
    pub sort_policy: Option<SortPolicy>,
    /// Which there are to choose from; all by default.
    pub selectors: Option<Selectors>,
}

/// An order of machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SortPolicy {
    /// By number.
    AscendingOrder,
    /// By number, the highest first.
    DescendingOrder,
    /// By age, the youngest first.
    Newest,
    /// By age, the oldest first.
    Oldest,
    /// None that means anything. The default.
    #[default]
    Random,
}

/// Which machines there are to choose from; where both are given, those that both match.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Selectors {
    /// Those whose template has these labels.
    pub label_selector: Option<LabelSelector>,
    /// Those whose node selector is like this.
    pub node_selector_requirement_matcher: Option<Vec<NodeSelectorRequirement>>,
}

/// What becomes of machines when the template changes; at most one of the three.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateStrategy {
    /// Nothing.
    pub unmanaged: Option<Empty>,
    /// They are changed, and run with it when they are next started.
    pub opportunistic: Option<Empty>,
    /// They are changed and restarted. The default.
    pub proactive: Option<ProactiveUpdate>,
}

/// Which machines are updated first.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProactiveUpdate {
    /// Which first; any by default.
    pub selection_policy: Option<SelectionPolicy>,
}

/// When a machine that does not start is replaced.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Autohealing {
    /// After so many failures in a row; 3 by default.
    #[schemars(range(min = 1))]
    pub start_up_failure_threshold: Option<i32>,
    /// When it has not been ready for so long: `5m`, which is the default.
    pub min_failing_to_start_duration: Option<String>,
}
