//! The claim of a DataVolume. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, Pod, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use nacelle_api::datavolume::{DataVolume, DataVolumeStatus, StorageSpec};
use nacelle_api::quantity;
use serde_json::{Value, json};

use super::pod;
use super::source::{self, Fetch};

/// Label of the claims that are made here.
pub const LABEL: &str = "nacelle.io/data-volume";
/// Annotation of DataVolumes whose claims are bound without waiting for a machine.
const AT_ONCE: &str = "cdi.kubevirt.io/storage.bind.immediate.requested";
/// Annotation of claims that wait for an upload.
pub const UPLOAD_TARGET: &str = "cdi.kubevirt.io/storage.upload.target";
/// Of a claim's bytes in a file system, those that the file system is thought to need, in hundredths.
pub const OVERHEAD: u64 = 6;
/// Sizes are whole ones of these.
const MIB: u64 = 1 << 20;

/// The claim that a DataVolume wants.
#[derive(Debug)]
pub struct Want {
    /// The claim.
    pub claim: PersistentVolumeClaim,
    /// Bytes of the disk in it.
    pub size: u64,
}

/// The claim, of the size of the one that is copied where the DataVolume has none.
///
/// # Errors
/// The DataVolume does not say what a claim needs.
pub fn claim(volume: &DataVolume, original: Option<&PersistentVolumeClaim>) -> Result<Want, String> {
    let owner = volume
        .controller_owner_ref(&())
        .ok_or("the DataVolume has no UID")?;
    let (mut spec, storage) = match (&volume.spec.pvc, &volume.spec.storage) {
        (Some(pvc), None) => (pvc.clone(), false),
        (None, Some(storage)) => (completed(storage), true),
        (None, None) => return Err("Missing Data volume PVC".into()),
        (Some(_), Some(_)) => {
            return Err("Duplicate storage definition, both target storage and target pvc defined".into());
        }
    };
    let size = match size(&spec)? {
        Some(size) => size,
        None => original
            .and_then(|original| size_of(original).transpose())
            .ok_or("PVC size is missing: resources.requests.storage")??,
    };
    let block = spec.volume_mode.as_deref() == Some("Block");
    if block && source::is_archive(&volume.spec) {
        return Err("contentType archive needs volumeMode Filesystem".into());
    }
    let bytes = if storage && !block {
        with_overhead(size)
    } else {
        size
    };
    let resources = spec.resources.get_or_insert_default();
    let requests = resources.requests.get_or_insert_default();
    requests.insert("storage".to_owned(), Quantity(bytes.to_string()));
    if spec.access_modes.as_ref().is_none_or(Vec::is_empty) {
        return Err("Required value: at least 1 access mode is required".into());
    }
    let mut labels = volume.labels().clone();
    labels.insert(LABEL.to_owned(), String::new());
    let mut annotations = volume.annotations().clone();
    annotations.retain(|key, _| key != "kubectl.kubernetes.io/last-applied-configuration");
    Ok(Want {
        claim: PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(volume.name_any()),
                namespace: volume.namespace(),
                labels: Some(labels),
                annotations: Some(annotations),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
            status: None,
        },
        size,
    })
}

/// A claim's spec with the gaps filled: one node at a time, a file system.
fn completed(storage: &StorageSpec) -> PersistentVolumeClaimSpec {
    let modes = match storage.access_modes.as_slice() {
        [] => vec!["ReadWriteOnce".to_owned()],
        modes => modes.to_vec(),
    };
    PersistentVolumeClaimSpec {
        access_modes: Some(modes),
        selector: storage.selector.clone(),
        resources: Some(storage.resources.clone().unwrap_or_default()),
        volume_name: storage.volume_name.clone(),
        storage_class_name: storage.storage_class_name.clone(),
        volume_mode: Some(
            storage
                .volume_mode
                .clone()
                .unwrap_or_else(|| "Filesystem".to_owned()),
        ),
        data_source: storage.data_source.clone(),
        data_source_ref: storage.data_source_ref.clone(),
        ..PersistentVolumeClaimSpec::default()
    }
}

/// Bytes that a claim must have for a disk of `size` in a file system.
fn with_overhead(size: u64) -> u64 {
    let grown = u128::from(size) * 100 / u128::from(100 - OVERHEAD);
    u64::try_from(grown)
        .unwrap_or(u64::MAX - MIB)
        .saturating_add(MIB - 1)
        / MIB
        * MIB
}

fn size(spec: &PersistentVolumeClaimSpec) -> Result<Option<u64>, String> {
    let storage =
        |resources: &VolumeResourceRequirements| resources.requests.as_ref()?.get("storage").cloned();
    let quantity = spec.resources.as_ref().and_then(storage);
    quantity
        .map(|size| quantity::whole(&size).map_err(|error| error.to_string()))
        .transpose()
}

fn size_of(claim: &PersistentVolumeClaim) -> Result<Option<u64>, String> {
    claim.spec.as_ref().map_or(Ok(None), size)
}

/// What a claim says of how it is filled, for tools.
pub fn annotate(claim: &mut PersistentVolumeClaim, fetch: &Fetch, archive: bool) {
    let annotations = claim.metadata.annotations.get_or_insert_default();
    let mut set = |key: &str, value: &str| {
        annotations.insert(format!("cdi.kubevirt.io/storage.{key}"), value.to_owned());
    };
    set("contentType", if archive { "archive" } else { "kubevirt" });
    match fetch {
        Fetch::Http(http) => {
            set("import.source", "http");
            set("import.endpoint", &http.url);
        }
        Fetch::S3(object) => {
            set("import.source", "s3");
            set("import.endpoint", &object.url);
        }
        Fetch::Registry { url, .. } => {
            set("import.source", "registry");
            set("import.endpoint", url);
        }
        Fetch::Blank => set("import.source", "none"),
        // virtctl takes up again what says something.
        Fetch::Upload => set("upload.target", "true"),
        Fetch::Claim { .. } => {}
    }
}

/// The change that has the claim say how far it is, if it does not say so.
pub fn told(claim: &PersistentVolumeClaim, status: &DataVolumeStatus, pod: Option<&Pod>) -> Option<Value> {
    let mut new = BTreeMap::new();
    if let Some(pod) = pod {
        let role = match claim.annotations().contains_key(UPLOAD_TARGET) {
            true => "uploadPodName",
            false => "import.importPodName",
        };
        new.insert(format!("cdi.kubevirt.io/storage.{role}"), pod.name_any());
        new.insert(
            "cdi.kubevirt.io/storage.pod.ready".to_owned(),
            pod::is_ready(pod).to_string(),
        );
        new.insert(
            "cdi.kubevirt.io/storage.pod.phase".to_owned(),
            pod::phase(pod).to_owned(),
        );
    }
    for condition in &status.conditions {
        let key = format!(
            "cdi.kubevirt.io/storage.condition.{}",
            condition.type_.to_lowercase()
        );
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        if condition.type_ == "Running" {
            new.insert(key.clone(), condition.status.to_lowercase());
            new.insert(format!("{key}.reason"), text(&condition.reason));
            new.insert(format!("{key}.message"), text(&condition.message));
        }
    }
    let old = claim.annotations();
    new.retain(|key, value| old.get(key) != Some(value));
    (!new.is_empty()).then(|| json!({"metadata": {"annotations": new}}))
}

/// Whether the claim was made for this DataVolume.
pub fn belongs(claim: &PersistentVolumeClaim, volume: &DataVolume) -> bool {
    claim
        .owner_references()
        .iter()
        .any(|owner| Some(&owner.uid) == volume.metadata.uid.as_ref())
}

/// Whether the claim has no volume yet.
pub fn is_pending(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound")
}

/// Whether it is a block device.
pub fn is_block(claim: &PersistentVolumeClaim) -> bool {
    claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()) == Some("Block")
}

/// Whether it is filled though no machine wants it yet.
pub fn at_once(volume: &DataVolume) -> bool {
    volume
        .annotations()
        .get(AT_ONCE)
        .is_some_and(|value| value != "false")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(spec: &str) -> DataVolume {
        let mut volume = DataVolume::new("a", serde_saphyr::from_str(spec).unwrap());
        volume.metadata.uid = Some("u".into());
        volume
    }

    fn request(want: &Want) -> (&str, &str) {
        let spec = want.claim.spec.as_ref().unwrap();
        let size = &spec.resources.as_ref().unwrap().requests.as_ref().unwrap()["storage"];
        (&size.0, &spec.access_modes.as_ref().unwrap()[0])
    }

    #[test]
    fn a_claim_is_literal_and_storage_is_completed() {
        let literal = volume("{pvc: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}}");
        let want = claim(&literal, None).unwrap();
        assert_eq!(
            (want.size, request(&want)),
            (1 << 30, ("1073741824", "ReadWriteMany"))
        );
        let storage = volume("{storage: {resources: {requests: {storage: 1Gi}}}}");
        let want = claim(&storage, None).unwrap();
        // 1024 / 0.94, in whole MiB.
        assert_eq!(
            (want.size, request(&want)),
            (1 << 30, ("1142947840", "ReadWriteOnce"))
        );
        let block = volume("{storage: {volumeMode: Block, resources: {requests: {storage: 1Gi}}}}");
        assert_eq!(request(&claim(&block, None).unwrap()).0, "1073741824");
    }

    #[test]
    fn a_copy_without_a_size_is_as_large_as_what_is_copied() {
        let copy = volume("{storage: {volumeMode: Block}}");
        let original = claim(
            &volume("{pvc: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 3Mi}}}}"),
            None,
        );
        let original = original.unwrap().claim;
        assert_eq!(claim(&copy, Some(&original)).unwrap().size, 3 << 20);
        assert!(claim(&copy, None).unwrap_err().contains("size is missing"));
    }

    #[test]
    fn a_claim_that_says_so_already_is_not_written() {
        let mut there = claim(
            &volume("{storage: {resources: {requests: {storage: 1Gi}}}}"),
            None,
        )
        .unwrap()
        .claim;
        let mut status = DataVolumeStatus::default();
        let now = k8s_openapi::jiff::Timestamp::from_second(1).unwrap();
        nacelle_api::conditions::set(&mut status.conditions, "Running", true, "Pod is running", "", now);
        let patch = told(&there, &status, None).unwrap();
        let annotations: BTreeMap<String, String> =
            serde_json::from_value(patch["metadata"]["annotations"].clone()).unwrap();
        assert_eq!(annotations["cdi.kubevirt.io/storage.condition.running"], "true");
        there
            .metadata
            .annotations
            .get_or_insert_default()
            .extend(annotations);
        assert_eq!(told(&there, &status, None), None);
    }
}
