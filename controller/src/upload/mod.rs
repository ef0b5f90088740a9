//! Uploads, as CDI has them: who may fill a claim asks for a token (`request`, an aggregated API), and sends the disk with it
//! to the proxy (`proxy`, a port of its own), which passes it on to the pod that waits for it.
//!
//! A token is good for minutes, for one claim (`token`, pure). Its keys are shared by all replicas (`keys`).

mod keys;
mod proxy;
mod request;
mod token;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;

pub use keys::{Keys, ensure};
pub use proxy::router as proxy;
pub use request::{GROUP, VERSION, group, router};

use crate::datavolume::UPLOAD_TARGET;

/// A claim that waits for an upload.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    /// Its UID.
    uid: String,
    /// The UID of its DataVolume, which the pod is named for.
    volume: String,
}

/// Whether a claim waits for an upload.
///
/// # Errors
/// It does not; why.
fn target(claim: &PersistentVolumeClaim) -> Result<Target, String> {
    let name = claim.name_any();
    let annotations = claim.annotations();
    if !annotations.contains_key(UPLOAD_TARGET) {
        return Err(format!(
            "PVC {name} is not an upload target: its DataVolume has another source"
        ));
    }
    if annotations
        .get("cdi.kubevirt.io/storage.pod.phase")
        .map(String::as_str)
        == Some("Succeeded")
    {
        return Err(format!(
            "PVC {name} has been filled already; another upload needs a new DataVolume"
        ));
    }
    let volume = claim
        .owner_references()
        .iter()
        .find(|owner| owner.kind == "DataVolume");
    let volume = volume.ok_or_else(|| format!("PVC {name} has no DataVolume"))?;
    Ok(Target {
        uid: claim.uid().unwrap_or_default(),
        volume: volume.uid.clone(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_claim_that_waits_for_an_upload_takes_one() {
        let owner =
            json!({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "name": "a", "uid": "v"});
        let target_ = json!({(UPLOAD_TARGET): ""});
        let full = json!({(UPLOAD_TARGET): "", "cdi.kubevirt.io/storage.pod.phase": "Succeeded"});
        let runs = json!({(UPLOAD_TARGET): "", "cdi.kubevirt.io/storage.pod.phase": "Running"});
        for (annotations, owners, refused) in [
            (&target_, json!([owner]), ""),
            (&runs, json!([owner]), ""),
            (&full, json!([owner]), "has been filled already"),
            (&json!({}), json!([owner]), "is not an upload target"),
            (&target_, json!([]), "has no DataVolume"),
        ] {
            let metadata =
                json!({"name": "a", "uid": "c", "annotations": annotations, "ownerReferences": owners});
            let claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": metadata})).unwrap();
            match target(&claim) {
                Ok(found) => {
                    assert_eq!(refused, "");
                    assert_eq!((found.uid.as_str(), found.volume.as_str()), ("c", "v"));
                }
                Err(said) => assert!(!refused.is_empty() && said.contains(refused), "{said}"),
            }
        }
    }
}
