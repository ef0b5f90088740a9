//! The launcher pod of an instance (`docs/pod.md`). Pure: the same instance gives the same pod, with the same name, so
//! that it is never made twice.

mod containers;
mod resources;
mod target;
pub mod volumes;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Pod, PodReadinessGate, PodSecurityContext, PodSpec, SeccompProfile, Sysctl,
};
use kube::Resource;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use nacelle_api::VirtualMachineInstance;
use serde_json::json;
use sha2::{Digest, Sha256};

pub use self::containers::unprivileged;
pub use self::target::{JOB_NAME, Target, target};
use super::validate::Valid;
use crate::configuration::Configuration;
use crate::context::Context;
use crate::logging::Format;
use crate::node::SCHEDULABLE;
use crate::processor;

/// User and group of everything in the pod.
const USER: i64 = 107;
/// Seconds beyond the machine's own grace period that the kubelet waits.
pub(super) const GRACE_BEYOND: i64 = 30;
/// Grace period where the spec, which should have been completed, says none.
const GRACE: i64 = 30;
/// Kubernetes' limit on all of an object's annotations.
const ANNOTATIONS_MAX: usize = 256 * 1024;

/// Annotation with the instance, for the launcher.
pub const INSTANCE: &str = "nacelle.io/vmi";
/// Annotation by which the launcher does not have the guest report free memory.
const NO_FREE_PAGE_REPORTING: &str = "kubevirt.io/free-page-reporting-disabled";
/// Annotation with where and how to report.
pub const REPORT: &str = "nacelle.io/report";
/// Annotation of the pod that an instance moves to: who comes.
pub const MIGRATION: &str = "nacelle.io/migration";
/// Label with the instance's UID.
pub const CREATED_BY: &str = "kubevirt.io/created-by";

/// What the pod takes from the installation, not from the instance.
pub struct Installation {
    /// The launcher's image.
    pub image: String,
    /// When it is pulled.
    pub image_pull_policy: String,
    /// `report.json`.
    pub report: Arc<str>,
    /// What the administrator set.
    pub configuration: Arc<Configuration>,
    /// How its log lines look.
    pub log: Format,
}

impl Installation {
    /// As it is now.
    pub fn of(context: &Context) -> Installation {
        Installation {
            image: context.settings.image.clone(),
            image_pull_policy: context.settings.image_pull_policy.clone(),
            report: context.report.borrow().clone(),
            configuration: context.configuration(),
            log: context.settings.log,
        }
    }
}

/// Makes the pod.
///
/// # Errors
/// A sentence on why there can be none.
pub fn pod(valid: &Valid<'_>, installation: &Installation) -> Result<Pod, String> {
    let vmi = valid.vmi;
    let spec = &vmi.spec;
    let name = vmi.name_any();
    let owner = vmi.controller_owner_ref(&()).ok_or("the instance has no UID")?;
    let overhead = resources::overhead(spec, &installation.configuration);
    let annotations = annotations(vmi, installation, overhead)?;
    let grace = spec.termination_grace_period_seconds.unwrap_or(GRACE);
    let (init, containers) = containers::containers(valid, installation, overhead)?;
    Ok(Pod {
        metadata: ObjectMeta {
            name: Some(pod_name(vmi)),
            namespace: vmi.namespace(),
            labels: Some(labels(vmi, &owner.uid)),
            annotations: Some(annotations),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            restart_policy: Some("Never".to_owned()),
            init_containers: init.map(|init| vec![init]),
            containers,
            volumes: Some(volumes::volumes(valid)),
            termination_grace_period_seconds: Some(grace + GRACE_BEYOND),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            hostname: Some(spec.hostname.clone().unwrap_or_else(|| hostname(&name))),
            subdomain: spec.subdomain.clone(),
            security_context: Some(PodSecurityContext {
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                run_as_non_root: Some(true),
                fs_group: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    localhost_profile: None,
                }),
                // `compute` answers DHCP, on port 67, without a capability.
                sysctls: Some(vec![Sysctl {
                    name: "net.ipv4.ip_unprivileged_port_start".to_owned(),
                    value: "0".to_owned(),
                }]),
                ..PodSecurityContext::default()
            }),
            readiness_gates: Some(vec![PodReadinessGate {
                condition_type: super::unpaused::GATE.to_owned(),
            }]),
            node_selector: Some(node_selector(vmi, &installation.configuration)),
            affinity: processor::avoid(spec.affinity.clone(), spec.domain.cpu.as_ref()),
            tolerations: (!spec.tolerations.is_empty()).then(|| spec.tolerations.clone()),
            topology_spread_constraints: (!spec.topology_spread_constraints.is_empty())
                .then(|| spec.topology_spread_constraints.clone()),
            scheduler_name: spec.scheduler_name.clone(),
            priority_class_name: spec.priority_class_name.clone(),
            service_account_name: spec
                .service_account_name
                .clone()
                .or_else(|| volumes::service_account(spec)),
            dns_policy: spec.dns_policy.clone(),
            dns_config: spec.dns_config.clone(),
            image_pull_secrets: volumes::pull_secrets(spec),
            ..PodSpec::default()
        }),
        status: None,
    })
}

/// `virt-launcher-<name>-<5>`, the five from the instance's UID.
pub fn pod_name(vmi: &VirtualMachineInstance) -> String {
    name_of(&vmi.name_any(), &vmi.uid().unwrap_or_default())
}

/// The same, the five from any UID.
pub fn name_of(instance: &str, uid: &str) -> String {
    let suffix = suffix(uid);
    // A pod's name is at most 253 characters long, as the instance's is: the end of it may have to go.
    let name: String = instance.chars().take(253 - "virt-launcher--".len() - 5).collect();
    format!("virt-launcher-{}-{suffix}", name.trim_end_matches(['-', '.']))
}

/// The five characters at the end of a name that is made of something.
pub fn suffix(of: &str) -> String {
    const ALPHABET: &[u8; 32] = b"bcdfghjklmnpqrstvwxz2456789aeiou";
    let hash = Sha256::digest(of);
    let five = hash.iter().take(5);
    five.filter_map(|byte| ALPHABET.get(usize::from(byte % 32)))
        .map(|c| char::from(*c))
        .collect()
}

/// Host name where none is given: the instance's, as far as it is one.
fn hostname(name: &str) -> String {
    let label: String = name
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .take(63)
        .collect();
    label.trim_end_matches('-').to_owned()
}

fn labels(vmi: &VirtualMachineInstance, uid: &str) -> BTreeMap<String, String> {
    let mut labels = vmi.labels().clone();
    let hashed = |name: String| match name.len() {
        0..=63 => name,
        _ => Sha256::digest(name)
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    };
    for (key, value) in [
        ("kubevirt.io", "virt-launcher".to_owned()),
        (CREATED_BY, uid.to_owned()),
        ("vmi.kubevirt.io/id", hashed(vmi.name_any())),
        ("vm.kubevirt.io/name", hashed(vmi.name_any())),
    ] {
        labels.insert(key.to_owned(), value);
    }
    labels
}

fn annotations(
    vmi: &VirtualMachineInstance,
    installation: &Installation,
    overhead: u64,
) -> Result<BTreeMap<String, String>, String> {
    let mut annotations = vmi.annotations().clone();
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    if installation.configuration.no_free_page_reporting {
        annotations.insert(NO_FREE_PAGE_REPORTING.to_owned(), "true".to_owned());
    }
    let instance = json!({
        "apiVersion": nacelle_api::API_VERSION,
        "kind": "VirtualMachineInstance",
        "metadata": {
            "name": vmi.name_any(),
            "namespace": vmi.namespace(),
            "uid": vmi.uid(),
            "labels": vmi.labels(),
            "annotations": annotations,
        },
        "spec": crate::volumes::cold(&vmi.spec),
    });
    for (key, value) in [
        ("kubevirt.io/domain", vmi.name_any()),
        ("kubevirt.io/migrationTransportUnix", "true".to_owned()),
        ("kubectl.kubernetes.io/default-container", "compute".to_owned()),
        ("kubevirt.io/memory-overhead-bytes", overhead.to_string()),
        (
            "descheduler.alpha.kubernetes.io/request-evict-only",
            String::new(),
        ),
        (INSTANCE, instance.to_string()),
        (REPORT, installation.report.to_string()),
    ] {
        annotations.insert(key.to_owned(), value);
    }
    let size: usize = annotations
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if size > ANNOTATIONS_MAX {
        return Err(format!(
            "the instance and its annotations take {size} bytes, and a pod's annotations, by which the launcher gets \
             them, may take {ANNOTATIONS_MAX}: move what is long into Secrets or ConfigMaps"
        ));
    }
    Ok(annotations)
}

/// The labels of the nodes that the instance may be on.
pub fn node_selector(
    vmi: &VirtualMachineInstance,
    configuration: &Configuration,
) -> BTreeMap<String, String> {
    let mut selector = vmi.spec.node_selector.clone();
    selector.extend(configuration.node_selector.clone());
    let architecture = vmi
        .spec
        .architecture
        .clone()
        .unwrap_or_else(|| "amd64".to_owned());
    selector.insert("kubernetes.io/arch".to_owned(), architecture);
    selector.insert(SCHEDULABLE.to_owned(), "true".to_owned());
    selector.extend(processor::selector(vmi.spec.domain.cpu.as_ref()));
    selector
}

#[cfg(test)]
mod tests;
