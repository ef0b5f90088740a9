//! `VirtualMachineInstanceReplicaSet`: as many equal instances as are asked for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::conditions::Condition;
use crate::object::object;
use crate::vm::VirtualMachineInstanceTemplate;

object!(
    /// As many equal instances as are asked for; one that ends is replaced.
    VirtualMachineInstanceReplicaSet,
    "virtualmachineinstancereplicasets",
    VirtualMachineInstanceReplicaSetSpec,
    ReplicaStatus
);

/// What a user wants of a `VirtualMachineInstanceReplicaSet`.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceReplicaSetSpec {
    /// How many instances; 1 by default.
    #[schemars(range(min = 0))]
    pub replicas: Option<i32>,
    /// Labels by which it knows its instances.
    pub selector: LabelSelector,
    /// What each instance is made of.
    pub template: VirtualMachineInstanceTemplate,
    /// Whether instances are neither made nor deleted for now.
    pub paused: Option<bool>,
}

/// What the controller reports of a set or a pool.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// How many there are.
    pub replicas: Option<i32>,
    /// How many of them are ready.
    pub ready_replicas: Option<i32>,
    /// `ReplicaFailure`, `ReplicaPaused`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// The selector as text, for autoscalers.
    pub label_selector: Option<String>,
}
