//! The attachment pod: it has a claim on the machine's node, and hands it over. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Container, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext, PodSpec, ResourceRequirements,
    SeccompProfile, Toleration, Volume, VolumeDevice, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use nacelle_api::VirtualMachineInstance;
use nacelle_api::volume::Volume as Source;
use sha2::{Digest, Sha256};

use crate::vmi::build::unprivileged;
use crate::vmi::build::volumes::claim;

/// Value of the label `kubevirt.io` by which these pods are known, as in KubeVirt.
pub const ROLE: &str = "hotplug-disk";
/// Annotation with the name of the instance that it is for.
pub const INSTANCE: &str = "nacelle.io/instance";
/// User and group of the pod, as of the machine's.
const USER: i64 = 107;
/// It has nothing to put in order.
const GRACE: i64 = 1;
/// Where it has the claim.
const DIRECTORY: &str = "/volume";
const DEVICE: &str = "/dev/volume";

/// What the pod takes from elsewhere.
pub struct Place<'a> {
    /// The machine's pod.
    pub launcher: &'a Pod,
    /// The claim is a block device.
    pub block: bool,
    /// Our image.
    pub image: &'a str,
    /// When it is pulled.
    pub image_pull_policy: &'a str,
}

/// Its name: of the volume, and five characters that follow from instance and claim, so that it is never made twice, and is
/// another one for another claim.
pub fn name(vmi: &VirtualMachineInstance, source: &Source) -> String {
    const ALPHABET: &[u8; 32] = b"bcdfghjklmnpqrstvwxz2456789aeiou";
    let (claim, read_only) = claim(source).unwrap_or_default();
    let identity = format!(
        "{} {} {claim} {read_only}",
        vmi.uid().unwrap_or_default(),
        source.name
    );
    let hash = Sha256::digest(identity);
    let five = hash
        .iter()
        .take(5)
        .filter_map(|byte| ALPHABET.get(usize::from(byte % 32)));
    let five: String = five.map(|byte| char::from(*byte)).collect();
    format!("hp-volume-{}-{five}", source.name)
}

/// Makes the pod; `None` where the machine's pod has no node yet, or the volume no claim.
pub fn pod(vmi: &VirtualMachineInstance, source: &Source, place: &Place<'_>) -> Option<Pod> {
    let (claim_name, read_only) = claim(source)?;
    let launcher = place.launcher.spec.as_ref()?;
    let node = launcher.node_name.clone()?;
    let path = if place.block { DEVICE } else { DIRECTORY };
    let mut command = vec!["/usr/bin/nacelle", "pod", "volume", path];
    if read_only {
        command.push("--read-only");
    }
    let container = Container {
        name: ROLE.to_owned(),
        image: Some(place.image.to_owned()),
        image_pull_policy: Some(place.image_pull_policy.to_owned()),
        command: Some(command.into_iter().map(str::to_owned).collect()),
        resources: Some(resources()),
        security_context: Some(unprivileged()),
        volume_mounts: (!place.block).then(|| {
            vec![VolumeMount {
                name: source.name.clone(),
                mount_path: DIRECTORY.to_owned(),
                read_only: read_only.then_some(true),
                ..VolumeMount::default()
            }]
        }),
        volume_devices: place.block.then(|| {
            vec![VolumeDevice {
                name: source.name.clone(),
                device_path: DEVICE.to_owned(),
            }]
        }),
        ..Container::default()
    };
    Some(Pod {
        metadata: ObjectMeta {
            name: Some(name(vmi, source)),
            namespace: vmi.namespace(),
            labels: Some(BTreeMap::from([("kubevirt.io".to_owned(), ROLE.to_owned())])),
            annotations: Some(BTreeMap::from([(INSTANCE.to_owned(), vmi.name_any())])),
            // It goes with the machine's pod, whatever else happens.
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: place.launcher.name_any(),
                uid: place.launcher.uid()?,
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            restart_policy: Some("Never".to_owned()),
            containers: vec![container],
            volumes: Some(vec![Volume {
                name: source.name.clone(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name,
                    read_only: read_only.then_some(true),
                }),
                ..Volume::default()
            }]),
            termination_grace_period_seconds: Some(GRACE),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            security_context: Some(PodSecurityContext {
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                run_as_non_root: Some(true),
                fs_group: Some(USER),
                // A large volume is gone through only where it is another's.
                fs_group_change_policy: Some("OnRootMismatch".to_owned()),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            // By the scheduler all the same: it binds claims that wait for their first consumer.
            affinity: Some(on(&node)),
            tolerations: Some(tolerations(launcher)),
            scheduler_name: launcher.scheduler_name.clone(),
            priority_class_name: launcher.priority_class_name.clone(),
            ..PodSpec::default()
        }),
        status: None,
    })
}

/// It waits for most of its life. What else it has is the way to the node agent.
fn resources() -> ResourceRequirements {
    let list = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter();
        let list = pairs.map(|(name, size)| ((*name).to_owned(), Quantity((*size).to_owned())));
        Some(list.collect())
    };
    ResourceRequirements {
        requests: list(&[("cpu", "1m"), ("memory", "4M")]),
        limits: list(&[
            ("cpu", "100m"),
            ("memory", "40M"),
            ("devices.kubevirt.io/volumes", "1"),
        ]),
        claims: None,
    }
}

fn on(node: &str) -> Affinity {
    let field = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: vec![NodeSelectorTerm {
                    match_fields: Some(vec![field]),
                    match_expressions: None,
                }],
            }),
            preferred_during_scheduling_ignored_during_execution: None,
        }),
        ..Affinity::default()
    }
}

/// Those of the machine's pod, which may be on a node that takes no new ones.
fn tolerations(launcher: &PodSpec) -> Vec<Toleration> {
    let mut tolerations = launcher.tolerations.clone().unwrap_or_default();
    tolerations.push(Toleration {
        key: Some("node.kubernetes.io/unschedulable".to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some("NoSchedule".to_owned()),
        ..Toleration::default()
    });
    tolerations
}

#[cfg(test)]
mod tests {
    use nacelle_api::volume::PersistentVolumeClaimVolume;
    use serde_json::json;

    use super::*;

    fn volume(claim: &str) -> Source {
        Source {
            name: "data".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolume {
                claim_name: claim.to_owned(),
                ..PersistentVolumeClaimVolume::default()
            }),
            ..Source::default()
        }
    }

    fn made(block: bool) -> serde_json::Value {
        let mut vmi = VirtualMachineInstance::new("ledger", Default::default());
        vmi.metadata.uid = Some("1".to_owned());
        let launcher = json!({"metadata": {"name": "virt-launcher-ledger-abcde", "uid": "2"},
            "spec": {"nodeName": "node1", "containers": [], "tolerations": [{"key": "vms"}]}});
        let launcher: Pod = serde_json::from_value(launcher).unwrap();
        let place = Place {
            launcher: &launcher,
            block,
            image: "nacelle:1",
            image_pull_policy: "IfNotPresent",
        };
        serde_json::to_value(pod(&vmi, &volume("c"), &place).unwrap()).unwrap()
    }

    #[test]
    fn it_has_the_claim_on_the_machines_node_and_may_do_nothing() {
        let pod = made(false);
        let container = &pod["spec"]["containers"][0];
        assert_eq!(
            container["command"],
            json!(["/usr/bin/nacelle", "pod", "volume", "/volume"])
        );
        assert_eq!(container["volumeMounts"][0]["mountPath"], "/volume");
        assert_eq!(
            container["resources"]["limits"]["devices.kubevirt.io/volumes"],
            "1"
        );
        let security = &container["securityContext"];
        assert_eq!(security["privileged"], false);
        assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(
            (&security["runAsUser"], &security["runAsNonRoot"]),
            (&json!(107), &json!(true))
        );
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        assert_eq!(volumes.len(), 1, "no hostPath");
        assert_eq!(volumes[0]["persistentVolumeClaim"]["claimName"], "c");
        let terms =
            &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(
            terms["nodeSelectorTerms"][0]["matchFields"][0]["values"],
            json!(["node1"])
        );
        assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "2");

        let pod = made(true);
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["volumeDevices"][0]["devicePath"], "/dev/volume");
        assert!(container["volumeMounts"].is_null());
    }

    #[test]
    fn its_name_says_what_it_attaches() {
        let vmi = VirtualMachineInstance::new("ledger", Default::default());
        let first = name(&vmi, &volume("c"));
        assert!(first.starts_with("hp-volume-data-") && first.len() == "hp-volume-data-".len() + 5);
        assert_eq!(first, name(&vmi, &volume("c")));
        assert_ne!(first, name(&vmi, &volume("d")));
    }
}
