//! Whether a pod can be made of an instance and what it refers to. Pure.

use std::collections::BTreeSet;

use nacelle_api::{FieldPath, VirtualMachineInstance, support, validate_vmi};

use super::build::volumes;
use super::dereference::References;
use crate::volumes::is_hot;

/// An instance of which a pod can be made.
pub struct Valid<'a> {
    /// The instance.
    pub vmi: &'a VirtualMachineInstance,
    /// Volumes whose claims are block devices.
    pub block_volumes: BTreeSet<String>,
}

/// Why not: the reason and the message of the condition `Synchronized`.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid {
    /// One word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// Holds an instance against KubeVirt's rules, ours, and what it refers to. Admission did the first two before; an
/// object that came past it, or was stored by another version, is not trusted.
///
/// # Errors
/// Everything that is wrong, in one message.
pub fn validate<'a>(vmi: &'a VirtualMachineInstance, found: &References) -> Result<Valid<'a>, Invalid> {
    let mut causes = validate_vmi(vmi);
    causes.extend(support(&vmi.spec, &FieldPath::new("spec")).unsupported);
    if !causes.is_empty() {
        let messages: Vec<_> = causes.iter().map(ToString::to_string).collect();
        return Err(Invalid {
            reason: "FailedCreate",
            message: messages.join(", "),
        });
    }
    let mut block_volumes = BTreeSet::new();
    let now = vmi.spec.volumes.iter().filter(|source| !is_hot(source));
    for source in now {
        let Some((name, _)) = volumes::claim(source) else {
            continue;
        };
        let Some(claim) = found.claims.get(&name).and_then(Option::as_ref) else {
            return Err(Invalid {
                reason: "FailedPvcNotFound",
                message: format!(
                    "PVC {}/{name} does not exist",
                    vmi.metadata.namespace.as_deref().unwrap_or_default()
                ),
            });
        };
        let mode = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
        if mode == Some("Block") {
            block_volumes.insert(source.name.clone());
        }
    }
    Ok(Valid { vmi, block_volumes })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec};
    use nacelle_api::defaults;

    use super::*;

    fn vmi(text: &str) -> VirtualMachineInstance {
        let mut vmi: VirtualMachineInstance = serde_saphyr::from_str(text).unwrap();
        defaults::apply(&mut vmi.spec);
        vmi
    }

    const CLAIMED: &str = "{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, metadata: {name: a, namespace: n}, \
        spec: {domain: {memory: {guest: 64Mi}, devices: {disks: [{name: root, disk: {bus: virtio}}]}}, \
        volumes: [{name: root, persistentVolumeClaim: {claimName: c}}]}}";

    #[test]
    fn a_claim_must_be_there_and_its_mode_is_known() {
        let vmi = vmi(CLAIMED);
        let mut found = References::default();
        let missing = validate(&vmi, &found).err().unwrap();
        assert_eq!(missing.reason, "FailedPvcNotFound");
        assert_eq!(missing.message, "PVC n/c does not exist");
        for (mode, block) in [("Block", 1), ("Filesystem", 0)] {
            let claim = PersistentVolumeClaim {
                spec: Some(PersistentVolumeClaimSpec {
                    volume_mode: Some(mode.to_owned()),
                    ..PersistentVolumeClaimSpec::default()
                }),
                ..PersistentVolumeClaim::default()
            };
            found.claims.insert("c".to_owned(), Some(claim));
            assert_eq!(
                validate(&vmi, &found).ok().unwrap().block_volumes.len(),
                block,
                "{mode}"
            );
        }
    }

    #[test]
    fn what_admission_would_refuse_is_refused_here_too() {
        let vmi = vmi(&CLAIMED.replace("memory: {guest: 64Mi}, ", ""));
        let invalid = validate(&vmi, &References::default()).err().unwrap();
        assert_eq!(invalid.reason, "FailedCreate");
        assert!(
            invalid.message.starts_with("no memory requested"),
            "{}",
            invalid.message
        );
    }
}
