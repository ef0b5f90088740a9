//! `spec.volumes[]`: what disks hold.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, LocalObjectReference};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::Empty;

/// A volume: a name and exactly one source.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// A disk in a container image; what the guest writes is lost with the instance.
    pub container_disk: Option<ContainerDisk>,
    /// A claim.
    pub persistent_volume_claim: Option<PersistentVolumeClaimVolume>,
    /// A DataVolume.
    pub data_volume: Option<DataVolumeVolume>,
    /// A claim that is only read; what the guest writes is lost with the instance.
    pub ephemeral: Option<EphemeralVolume>,
    /// An empty disk that lives as long as the instance.
    pub empty_disk: Option<EmptyDisk>,
    /// A file of the host.
    pub host_disk: Option<HostDisk>,
    /// cloud-init's NoCloud.
    pub cloud_init_no_cloud: Option<CloudInit>,
    /// cloud-init's config drive.
    pub cloud_init_config_drive: Option<CloudInit>,
    /// Windows' answer file.
    pub sysprep: Option<Sysprep>,
    /// A ConfigMap.
    pub config_map: Option<ConfigMapVolume>,
    /// A Secret.
    pub secret: Option<SecretVolume>,
    /// Fields of the pod.
    #[serde(rename = "downwardAPI")]
    pub downward_api: Option<DownwardApiVolume>,
    /// A service account's token.
    pub service_account: Option<ServiceAccountVolume>,
    /// Metrics of the host.
    pub downward_metrics: Option<Empty>,
    /// Where a memory dump goes.
    pub memory_dump: Option<PersistentVolumeClaimVolume>,
    /// A directory of the launcher's container.
    pub container_path: Option<ContainerPath>,
}

/// A disk in a container image.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerDisk {
    /// The image.
    pub image: String,
    /// Secret with the registry's credentials.
    pub image_pull_secret: Option<String>,
    /// `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: Option<String>,
    /// Path of the disk in the image; the only file under `/disk` by default.
    pub path: Option<String>,
}

/// A claim in the same namespace.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PersistentVolumeClaimVolume {
    /// Its name.
    pub claim_name: String,
    /// Whether it is only read.
    pub read_only: Option<bool>,
    /// Whether it came by hot-plug.
    pub hotpluggable: Option<bool>,
}

/// A DataVolume in the same namespace.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataVolumeVolume {
    /// Its name, and its claim's.
    pub name: String,
    /// Whether it came by hot-plug.
    pub hotpluggable: Option<bool>,
}

/// A claim that is only read.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EphemeralVolume {
    /// The claim.
    pub persistent_volume_claim: Option<EphemeralClaim>,
}

/// A claim under an ephemeral volume.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EphemeralClaim {
    /// Its name.
    pub claim_name: String,
    /// Always so, whatever is said.
    pub read_only: Option<bool>,
}

/// An empty disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDisk {
    /// Its size.
    pub capacity: Quantity,
}

/// A file of the host.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostDisk {
    /// Its path.
    pub path: String,
    /// `Disk`: it exists. `DiskOrCreate`: it is made when absent.
    #[serde(rename = "type")]
    pub type_: String,
    /// Size when it is made.
    pub capacity: Option<Quantity>,
    /// Whether all nodes see the same file.
    pub shared: Option<bool>,
}

/// User data and network data of cloud-init, each from at most one place.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CloudInit {
    /// User data.
    pub user_data: Option<String>,
    /// User data in base64.
    pub user_data_base64: Option<String>,
    /// Secret with user data.
    pub secret_ref: Option<LocalObjectReference>,
    /// Network data.
    pub network_data: Option<String>,
    /// Network data in base64.
    pub network_data_base64: Option<String>,
    /// Secret with network data.
    pub network_data_secret_ref: Option<LocalObjectReference>,
}

/// Windows' answer file: exactly one of its members.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sysprep {
    /// In a Secret.
    pub secret: Option<LocalObjectReference>,
    /// In a ConfigMap.
    pub config_map: Option<LocalObjectReference>,
}

/// A ConfigMap as a volume.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapVolume {
    /// Its name.
    pub name: Option<String>,
    /// Whether it may be absent.
    pub optional: Option<bool>,
    /// Label of the volume in the guest.
    pub volume_label: Option<String>,
}

/// A Secret as a volume.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretVolume {
    /// Its name.
    pub secret_name: Option<String>,
    /// Whether it may be absent.
    pub optional: Option<bool>,
    /// Label of the volume in the guest.
    pub volume_label: Option<String>,
}

/// Fields of the pod as a volume.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DownwardApiVolume {
    /// One file for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<DownwardAPIVolumeFile>,
    /// Label of the volume in the guest.
    pub volume_label: Option<String>,
}

/// A service account's token as a volume.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountVolume {
    /// The account.
    pub service_account_name: Option<String>,
}

/// A directory of the launcher's container.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPath {
    /// Its path.
    pub path: String,
    /// Whether it is only read.
    pub read_only: Option<bool>,
}

/// A claim that the launcher mounts and the guest does not see.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UtilityVolume {
    /// Its name.
    pub name: String,
    /// The claim.
    pub claim_name: String,
    /// Whether it is only read.
    pub read_only: Option<bool>,
    /// What for: `Backup` or `MemoryDump`.
    #[serde(rename = "type")]
    pub type_: Option<String>,
}
