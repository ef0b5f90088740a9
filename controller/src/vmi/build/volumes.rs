//! The pod's volumes, and where they are in the container that runs the machine.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    ConfigMapProjection, ConfigMapVolumeSource, DownwardAPIProjection, DownwardAPIVolumeFile,
    DownwardAPIVolumeSource, EmptyDirVolumeSource, KeyToPath, LocalObjectReference, ObjectFieldSelector,
    PersistentVolumeClaimVolumeSource, ProjectedVolumeSource, SecretProjection, SecretVolumeSource,
    ServiceAccountTokenProjection, Volume, VolumeDevice, VolumeMount, VolumeProjection,
};
use nacelle_api::VirtualMachineInstanceSpec;
use nacelle_api::volume::{CloudInit, Volume as Source};

use super::super::validate::Valid;
use super::containers::{mount, read_only};
use super::{INSTANCE, MIGRATION, REPORT};

/// Audience of the token that only our report endpoint takes.
pub const AUDIENCE: &str = "nacelle.io/report";
/// Seconds that it is good for; the kubelet renews it.
const TOKEN: i64 = 3600;
/// Directory of the volumes, as in KubeVirt.
const PRIVATE: &str = "/var/run/kubevirt-private";

/// All volumes of the pod.
pub(super) fn volumes(valid: &Valid<'_>) -> Vec<Volume> {
    let mut volumes = vec![
        empty_dir("nacelle-run"),
        empty_dir("nacelle-scratch"),
        Volume {
            name: "nacelle-pod".to_owned(),
            downward_api: Some(DownwardAPIVolumeSource {
                items: Some(vec![
                    annotation("vmi.json", INSTANCE),
                    annotation("report.json", REPORT),
                    annotation("migration.json", MIGRATION),
                ]),
                ..DownwardAPIVolumeSource::default()
            }),
            ..Volume::default()
        },
        projected(
            "nacelle-token",
            vec![VolumeProjection {
                service_account_token: Some(ServiceAccountTokenProjection {
                    audience: Some(AUDIENCE.to_owned()),
                    expiration_seconds: Some(TOKEN),
                    path: "token".to_owned(),
                    ..ServiceAccountTokenProjection::default()
                }),
                ..VolumeProjection::default()
            }],
        ),
    ];
    volumes.extend(cold(valid).filter_map(volume));
    volumes.extend(credentials(&valid.vmi.spec).map(|(name, secret)| Volume {
        name,
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }));
    volumes
}

/// What is mounted into `compute`, and the block devices that it gets.
pub(super) fn of_compute(valid: &Valid<'_>) -> (Vec<VolumeMount>, Vec<VolumeDevice>) {
    let mut mounts = vec![
        mount("nacelle-run", "/run/nacelle"),
        mount("nacelle-scratch", "/var/lib/nacelle"),
        read_only("nacelle-pod", "/etc/nacelle"),
        read_only("nacelle-token", "/var/run/secrets/nacelle.io"),
    ];
    let mut devices = Vec::new();
    for source in cold(valid) {
        let name = &source.name;
        let path = |kind: &str| format!("{PRIVATE}/{kind}/{name}");
        if claim(source).is_some() {
            if valid.block_volumes.contains(name) {
                devices.push(VolumeDevice {
                    name: name.clone(),
                    device_path: format!("/dev/{name}"),
                });
            } else {
                mounts.push(VolumeMount {
                    read_only: source.ephemeral.is_some().then_some(true),
                    ..mount(name, &path("vmi-disks"))
                });
            }
        }
        for (kind, set) in [
            ("config-map", source.config_map.is_some()),
            ("secret", source.secret.is_some()),
            ("downwardapi", source.downward_api.is_some()),
            ("service-account", source.service_account.is_some()),
            ("cloud-init", cloud_init(source).is_some_and(has_secrets)),
        ] {
            if set {
                mounts.push(read_only(name, &path(kind)));
            }
        }
    }
    for (name, secret) in credentials(&valid.vmi.spec) {
        mounts.push(read_only(
            &name,
            &format!("{PRIVATE}/access-credentials/{secret}"),
        ));
    }
    (mounts, devices)
}

/// Secrets with keys and passwords for the guest's users, each under the name of a volume.
fn credentials(spec: &VirtualMachineInstanceSpec) -> impl Iterator<Item = (String, &str)> {
    let secrets = spec.access_credentials.iter().filter_map(|credential| {
        let keys = credential.ssh_public_key.as_ref().map(|key| &key.source);
        let passwords = credential.user_password.as_ref().map(|password| &password.source);
        Some(keys.or(passwords)?.secret.as_ref()?.secret_name.as_str())
    });
    let secrets: BTreeSet<_> = secrets.collect();
    let names = (0..).map(|index: u32| format!("nacelle-credentials-{index}"));
    names.zip(secrets)
}

/// What comes later comes by a pod of its own.
fn cold<'a>(valid: &'a Valid<'_>) -> impl Iterator<Item = &'a Source> {
    let all = valid.vmi.spec.volumes.iter();
    all.filter(|source| !crate::volumes::is_hot(source))
}

/// Secrets by which users' images are pulled.
pub(super) fn pull_secrets(spec: &VirtualMachineInstanceSpec) -> Option<Vec<LocalObjectReference>> {
    let disks = spec
        .volumes
        .iter()
        .filter_map(|volume| volume.container_disk.as_ref()?.image_pull_secret.clone());
    let kernel = spec.domain.firmware.as_ref().and_then(|firmware| {
        firmware
            .kernel_boot
            .as_ref()?
            .container
            .as_ref()?
            .image_pull_secret
            .clone()
    });
    let names: BTreeSet<_> = disks.chain(kernel).collect();
    (!names.is_empty()).then(|| {
        names
            .into_iter()
            .map(|name| LocalObjectReference { name })
            .collect()
    })
}

/// The account whose token a volume shows to the guest: the pod must run under it.
pub(super) fn service_account(spec: &VirtualMachineInstanceSpec) -> Option<String> {
    spec.volumes
        .iter()
        .find_map(|volume| volume.service_account.as_ref()?.service_account_name.clone())
}

/// Name of the claim that holds a volume, and whether it is only read.
pub fn claim(source: &Source) -> Option<(String, bool)> {
    if let Some(claim) = &source.persistent_volume_claim {
        return Some((claim.claim_name.clone(), claim.read_only == Some(true)));
    }
    if let Some(volume) = &source.data_volume {
        return Some((volume.name.clone(), false));
    }
    let claim = source.ephemeral.as_ref()?.persistent_volume_claim.as_ref()?;
    Some((claim.claim_name.clone(), true))
}

fn volume(source: &Source) -> Option<Volume> {
    let named = Volume {
        name: source.name.clone(),
        ..Volume::default()
    };
    if let Some((claim_name, read_only)) = claim(source) {
        return Some(Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name,
                read_only: read_only.then_some(true),
            }),
            ..named
        });
    }
    if let Some(map) = &source.config_map {
        return Some(Volume {
            config_map: Some(ConfigMapVolumeSource {
                name: map.name.clone().unwrap_or_default(),
                optional: map.optional,
                ..ConfigMapVolumeSource::default()
            }),
            ..named
        });
    }
    if let Some(secret) = &source.secret {
        return Some(Volume {
            secret: Some(SecretVolumeSource {
                secret_name: secret.secret_name.clone(),
                optional: secret.optional,
                ..SecretVolumeSource::default()
            }),
            ..named
        });
    }
    if let Some(fields) = &source.downward_api {
        return Some(Volume {
            downward_api: Some(DownwardAPIVolumeSource {
                items: Some(fields.fields.clone()),
                ..DownwardAPIVolumeSource::default()
            }),
            ..named
        });
    }
    if source.service_account.is_some() {
        return Some(projected(&source.name, service_account_files()));
    }
    let secrets = cloud_init(source)
        .filter(|data| has_secrets(data))
        .map(cloud_init_files)?;
    Some(projected(&source.name, secrets))
}

fn cloud_init(source: &Source) -> Option<&CloudInit> {
    source
        .cloud_init_no_cloud
        .as_ref()
        .or(source.cloud_init_config_drive.as_ref())
}

fn has_secrets(data: &CloudInit) -> bool {
    data.secret_ref.is_some() || data.network_data_secret_ref.is_some()
}

/// The Secrets may hold the data under either of two keys, so both are asked for, and neither must be there.
fn cloud_init_files(data: &CloudInit) -> Vec<VolumeProjection> {
    let keys =
        |secret: &Option<LocalObjectReference>, keys: [&str; 2], path: &str| -> Vec<VolumeProjection> {
            let Some(secret) = secret else {
                return Vec::new();
            };
            keys.into_iter()
                .map(|key| VolumeProjection {
                    secret: Some(SecretProjection {
                        name: secret.name.clone(),
                        items: Some(vec![KeyToPath {
                            key: key.to_owned(),
                            path: path.to_owned(),
                            ..KeyToPath::default()
                        }]),
                        optional: Some(true),
                    }),
                    ..VolumeProjection::default()
                })
                .collect()
        };
    let mut files = keys(&data.secret_ref, ["userdata", "userData"], "userdata");
    files.extend(keys(
        &data.network_data_secret_ref,
        ["networkdata", "networkData"],
        "networkdata",
    ));
    files
}

/// What a pod finds under `/var/run/secrets/kubernetes.io/serviceaccount`.
fn service_account_files() -> Vec<VolumeProjection> {
    vec![
        VolumeProjection {
            service_account_token: Some(ServiceAccountTokenProjection {
                audience: None,
                expiration_seconds: Some(TOKEN),
                path: "token".to_owned(),
                ..ServiceAccountTokenProjection::default()
            }),
            ..VolumeProjection::default()
        },
        VolumeProjection {
            config_map: Some(ConfigMapProjection {
                name: "kube-root-ca.crt".to_owned(),
                items: Some(vec![KeyToPath {
                    key: "ca.crt".to_owned(),
                    path: "ca.crt".to_owned(),
                    ..KeyToPath::default()
                }]),
                optional: None,
            }),
            ..VolumeProjection::default()
        },
        VolumeProjection {
            downward_api: Some(DownwardAPIProjection {
                items: Some(vec![DownwardAPIVolumeFile {
                    path: "namespace".to_owned(),
                    field_ref: Some(field("metadata.namespace".to_owned())),
                    ..DownwardAPIVolumeFile::default()
                }]),
            }),
            ..VolumeProjection::default()
        },
    ]
}

fn annotation(path: &str, key: &str) -> DownwardAPIVolumeFile {
    DownwardAPIVolumeFile {
        path: path.to_owned(),
        field_ref: Some(field(format!("metadata.annotations['{key}']"))),
        ..DownwardAPIVolumeFile::default()
    }
}

fn field(field_path: String) -> ObjectFieldSelector {
    ObjectFieldSelector {
        field_path,
        api_version: None,
    }
}

fn empty_dir(name: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    }
}

fn projected(name: &str, sources: Vec<VolumeProjection>) -> Volume {
    Volume {
        name: name.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(sources),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}
