//! CDI's DataVolume: a claim and where its contents come from; by itself, or among a machine's `dataVolumeTemplates`.

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaimSpec, TypedLocalObjectReference, TypedObjectReference, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::conditions::Condition;
use crate::object::object;
use crate::{Empty, Freeform};

object!(
    /// A claim that is filled before anybody uses it.
    DataVolume,
    "datavolumes",
    DataVolumeSpec,
    DataVolumeStatus,
    "cdi.kubevirt.io",
    "v1beta1"
);

object!(
    /// A name for where contents come from, so that DataVolumes need not say.
    DataSource,
    "datasources",
    DataSourceSpec,
    DataSourceStatus,
    "cdi.kubevirt.io",
    "v1beta1"
);

/// How far a DataVolume is.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataVolumeStatus {
    /// The claim.
    pub claim_name: Option<String>,
    /// `Pending`, `ImportInProgress`, `Succeeded`, ...
    pub phase: Option<String>,
    /// `37.50%`, or `N/A`.
    pub progress: Option<String>,
    /// Times that the import began anew.
    pub restart_count: Option<i32>,
    /// `Bound`, `Running`, `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Where contents come from.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataSourceSpec {
    /// Exactly one of its members.
    #[serde(default)]
    pub source: DataSourceSource,
}

/// Exactly one of its members.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataSourceSource {
    /// A claim.
    pub pvc: Option<NamespacedName>,
    /// A VolumeSnapshot.
    pub snapshot: Option<NamespacedName>,
    /// Another DataSource.
    pub data_source: Option<NamespacedName>,
}

/// What is reported of a DataSource.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataSourceStatus {
    /// The source, as it was found.
    pub source: Option<DataSourceSource>,
    /// `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A DataVolume that is made with the machine.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataVolumeTemplate {
    /// `cdi.kubevirt.io/v1beta1`; tools write it, it says nothing new.
    pub api_version: Option<String>,
    /// `DataVolume`; the same.
    pub kind: Option<String>,
    /// Its name, and labels.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The volume and where its contents come from.
    pub spec: DataVolumeSpec,
    /// Nothing any more; old manifests have it.
    pub status: Option<Freeform>,
}

/// A claim and where its contents come from.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataVolumeSpec {
    /// Where the contents come from.
    pub source: Option<DataVolumeSource>,
    /// A DataSource that says where the contents come from.
    pub source_ref: Option<DataVolumeSourceRef>,
    /// The claim, taken literally.
    pub pvc: Option<PersistentVolumeClaimSpec>,
    /// The claim, completed by CDI's storage profile.
    pub storage: Option<StorageSpec>,
    /// Priority of the importer pod.
    pub priority_class_name: Option<String>,
    /// `kubevirt` or `archive`.
    pub content_type: Option<String>,
    /// Stages of a warm import.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<DataVolumeCheckpoint>,
    /// Whether the last checkpoint is the final one.
    pub final_checkpoint: Option<bool>,
    /// Whether to allocate all space at once.
    pub preallocation: Option<bool>,
    /// Account of the importer pod.
    pub service_account_name: Option<String>,
}

/// Exactly one of its members.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataVolumeSource {
    /// A file by HTTP(S).
    pub http: Option<HttpSource>,
    /// An object in S3.
    pub s3: Option<ObjectStoreSource>,
    /// An object in Google Cloud Storage.
    pub gcs: Option<ObjectStoreSource>,
    /// A disk in a container image.
    pub registry: Option<RegistrySource>,
    /// A copy of a claim.
    pub pvc: Option<NamespacedName>,
    /// A copy of a VolumeSnapshot.
    pub snapshot: Option<NamespacedName>,
    /// What a client uploads.
    pub upload: Option<Empty>,
    /// Nothing: an empty disk.
    pub blank: Option<Empty>,
    /// A disk of oVirt.
    pub imageio: Option<ImageIoSource>,
    /// A disk of VMware.
    pub vddk: Option<VddkSource>,
}

/// Where a file lies on the web.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// Its address.
    pub url: String,
    /// Secret with `accessKeyId` and `secretKey`.
    pub secret_ref: Option<String>,
    /// ConfigMap with certificate authorities.
    pub cert_config_map: Option<String>,
    /// Headers to send.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_headers: Vec<String>,
    /// Secrets whose contents are sent as headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_extra_headers: Vec<String>,
    /// `algorithm:hash` that the file must have.
    pub checksum: Option<String>,
    /// Whether certificates go unchecked.
    pub insecure_skip_verify: Option<bool>,
}

/// Where an object lies in a store.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStoreSource {
    /// Its address.
    pub url: String,
    /// Secret with the credentials.
    pub secret_ref: Option<String>,
    /// ConfigMap with certificate authorities.
    pub cert_config_map: Option<String>,
}

/// Where a container image lies.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistrySource {
    /// `docker://...` or `oci-archive://...`.
    pub url: Option<String>,
    /// Name of an ImageStream.
    pub image_stream: Option<String>,
    /// `pod` or `node`: who pulls.
    pub pull_method: Option<String>,
    /// Secret with the credentials.
    pub secret_ref: Option<String>,
    /// ConfigMap with certificate authorities.
    pub cert_config_map: Option<String>,
    /// Which image of a multi-platform one.
    pub platform: Option<PlatformOptions>,
}

/// Which image of a multi-platform one.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlatformOptions {
    /// `amd64`, ...
    pub architecture: Option<String>,
}

/// An object in any namespace.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamespacedName {
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// A disk of oVirt.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageIoSource {
    /// Address of the engine.
    pub url: String,
    /// The disk.
    pub disk_id: String,
    /// Secret with the credentials.
    pub secret_ref: Option<String>,
    /// ConfigMap with certificate authorities.
    pub cert_config_map: Option<String>,
    /// Whether certificates go unchecked.
    pub insecure_skip_verify: Option<bool>,
}

/// A disk of VMware.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VddkSource {
    /// Address of vCenter or the host.
    pub url: Option<String>,
    /// The virtual machine.
    pub uuid: Option<String>,
    /// The disk's file.
    pub backing_file: Option<String>,
    /// Certificate fingerprint of the host.
    pub thumbprint: Option<String>,
    /// Secret with the credentials.
    pub secret_ref: Option<String>,
    /// Image with the VDDK library.
    #[serde(rename = "initImageURL")]
    pub init_image_url: Option<String>,
    /// ConfigMap with more arguments.
    pub extra_args: Option<String>,
}

/// Names a DataSource.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataVolumeSourceRef {
    /// `DataSource`.
    pub kind: String,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// A claim whose gaps CDI fills.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// `ReadWriteOnce`, `ReadWriteMany`, ...
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access_modes: Vec<String>,
    /// Labels of the PersistentVolume.
    pub selector: Option<LabelSelector>,
    /// Size.
    pub resources: Option<VolumeResourceRequirements>,
    /// The PersistentVolume.
    pub volume_name: Option<String>,
    /// The storage class.
    pub storage_class_name: Option<String>,
    /// `Block` or `Filesystem`.
    pub volume_mode: Option<String>,
    /// An object that the storage driver fills the volume from.
    pub data_source: Option<TypedLocalObjectReference>,
    /// The same, in any namespace.
    pub data_source_ref: Option<TypedObjectReference>,
}

/// A stage of a warm import.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataVolumeCheckpoint {
    /// The snapshot before.
    pub previous: String,
    /// The snapshot of this stage.
    pub current: String,
}
