//! CDI's settings, as far as they have an effect here.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::object::object;

object!(
    /// How DataVolumes are served in this cluster; the one that counts is `config`.
    CDIConfig,
    "cdiconfigs",
    CdiConfigSpec,
    CdiConfigStatus,
    "cdi.kubevirt.io",
    "v1beta1",
    ClusterResourceScope
);

/// What the administrator says.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CdiConfigSpec {
    /// Where people reach the proxy of uploads: a host, or an address that begins with https://.
    #[serde(rename = "uploadProxyURLOverride")]
    pub upload_proxy_url_override: Option<String>,
}

/// What tools look for.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CdiConfigStatus {
    /// Where people reach the proxy of uploads, if anybody has said it.
    #[serde(rename = "uploadProxyURL")]
    pub upload_proxy_url: Option<String>,
    /// What of a claim its file system is thought to need.
    pub filesystem_overhead: Option<FilesystemOverhead>,
}

/// What of a claim its file system is thought to need.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemOverhead {
    /// In every storage class: a fraction, `0.06`.
    pub global: Option<String>,
}
