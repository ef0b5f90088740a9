//! `KubeVirt`: the installation itself, which tools look at before they look at anything else.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::Freeform;
use crate::conditions::Condition;
use crate::object::object;

object!(
    /// The installation of Nacelle in a cluster.
    KubeVirt,
    "kubevirts",
    KubeVirtSpec,
    KubeVirtStatus
);

/// What an administrator wants of the installation.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubeVirtSpec {
    /// Settings. Those that are set and have no effect are named in a condition.
    pub configuration: Option<Freeform>,
    /// What else KubeVirt's operator takes.
    #[serde(flatten)]
    pub others: Freeform,
}

/// What the controller reports of the installation.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubeVirtStatus {
    /// `Deploying`, `Deployed` or `Deleting`.
    pub phase: Option<String>,
    /// `Created`, `Available`, `Progressing`, `Degraded`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Generation of the spec that was looked at.
    pub observed_generation: Option<i64>,
    /// Version that is installed.
    pub observed_kube_virt_version: Option<String>,
    /// Version that is wanted.
    pub target_kube_virt_version: Option<String>,
    /// Version of the controller.
    pub operator_version: Option<String>,
    /// Architecture of machines that do not say.
    pub default_architecture: Option<String>,
}
