//! The pod that fills a claim: it may do nothing but that. Pure.

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerStatus, EmptyDirVolumeSource, EnvVar,
    EnvVarSource, PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext, PodSpec, Probe,
    ResourceRequirements, SeccompProfile, SecretKeySelector, SecretVolumeSource, SecurityContext,
    TCPSocketAction, Volume, VolumeDevice, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use nacelle_api::datavolume::{DataVolume, HttpSource};

use super::source::{Fetch, is_archive};

/// The port at which a pod waits for an upload.
pub const UPLOAD_PORT: u16 = 8443;
/// What an importer is told of whose uploads to take: authorities in PEM, which are no secret.
const CLIENTS: &str = "NACELLE_CLIENTS";
/// Label of the pods that fill claims.
pub const LABEL: &str = "nacelle.io/importer";
/// The user that it runs as, to whom disks belong.
const USER: i64 = 107;
/// The program.
const IMPORTER: &str = "/usr/bin/nacelle-importer";
/// Where it finds the claim, the one that is copied, and room for images that are not raw.
const VOLUME: &str = "/volume";
const ORIGINAL: &str = "/original";
const SCRATCH: &str = "/scratch";

/// What a pod is made of.
pub struct Make<'a> {
    /// The DataVolume.
    pub volume: &'a DataVolume,
    /// What is fetched.
    pub fetch: &'a Fetch,
    /// Bytes of the disk.
    pub size: u64,
    /// Whether the claim is a block device.
    pub block: bool,
    /// Whether the claim that is copied is one.
    pub original_block: bool,
    /// The image with the importer.
    pub image: &'a str,
    /// When to pull it.
    pub image_pull_policy: &'a str,
    /// Authorities in PEM, whose clients may upload.
    pub clients: &'a str,
}

/// `importer-<UID>`, of the DataVolume: there never are two.
pub fn name(uid: &str) -> String {
    format!("importer-{uid}")
}

/// The pod.
///
/// # Errors
/// The DataVolume lacks what the API server always gives.
pub fn pod(make: &Make<'_>) -> Result<Pod, String> {
    let volume = make.volume;
    let owner = volume
        .controller_owner_ref(&())
        .ok_or("the DataVolume has no UID")?;
    let (container, volumes) = container(make, Parts::of(make));
    Ok(Pod {
        metadata: ObjectMeta {
            name: Some(name(&owner.uid)),
            namespace: volume.namespace(),
            labels: Some(
                [
                    (LABEL.to_owned(), String::new()),
                    ("app".to_owned(), "containerized-data-importer".to_owned()),
                ]
                .into(),
            ),
            annotations: Some([("sidecar.istio.io/inject".to_owned(), "false".to_owned())].into()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            restart_policy: Some("OnFailure".to_owned()),
            containers: vec![container],
            volumes: Some(volumes),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            service_account_name: volume.spec.service_account_name.clone(),
            priority_class_name: volume.spec.priority_class_name.clone(),
            security_context: Some(PodSecurityContext {
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                run_as_non_root: Some(true),
                fs_group: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            ..PodSpec::default()
        }),
        status: None,
    })
}

fn container(make: &Make<'_>, parts: Parts) -> (Container, Vec<Volume>) {
    let quantities = |cpu: &str, memory: &str| {
        Some(
            [("cpu", cpu), ("memory", memory)]
                .map(|(key, value)| (key.to_owned(), Quantity(value.to_owned())))
                .into(),
        )
    };
    let container = Container {
        name: "importer".to_owned(),
        image: Some(make.image.to_owned()),
        image_pull_policy: Some(make.image_pull_policy.to_owned()),
        command: Some(vec![IMPORTER.to_owned()]),
        args: Some(parts.arguments),
        env: Some(parts.environment),
        volume_mounts: Some(parts.mounts),
        volume_devices: (!parts.devices.is_empty()).then_some(parts.devices),
        // As CDI's, so that quotas that fit that fit this.
        readiness_probe: matches!(make.fetch, Fetch::Upload).then(listens),
        resources: Some(ResourceRequirements {
            requests: quantities("100m", "60M"),
            limits: quantities("750m", "600M"),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    };
    (container, parts.volumes)
}

/// Whether an upload would be taken.
fn listens() -> Probe {
    Probe {
        tcp_socket: Some(TCPSocketAction {
            port: IntOrString::Int(UPLOAD_PORT.into()),
            host: None,
        }),
        period_seconds: Some(1),
        ..Probe::default()
    }
}

/// What arguments need: volumes, where they are, and secrets.
#[derive(Default)]
struct Parts {
    arguments: Vec<String>,
    environment: Vec<EnvVar>,
    volumes: Vec<Volume>,
    mounts: Vec<VolumeMount>,
    devices: Vec<VolumeDevice>,
}

impl Parts {
    fn of(make: &Make<'_>) -> Parts {
        let mut parts = Parts::default();
        let from = match make.fetch {
            Fetch::Http(http) => http.url.clone(),
            Fetch::S3(object) => format!("s3:{}", object.url),
            Fetch::Registry { url, .. } => url.clone(),
            Fetch::Blank => "blank".to_owned(),
            Fetch::Upload => "upload".to_owned(),
            Fetch::Claim { name, .. } => {
                format!(
                    "copy:{}",
                    parts.claim("original", ORIGINAL, name, make.original_block, true)
                )
            }
        };
        let mut to = parts.claim("volume", VOLUME, &make.volume.name_any(), make.block, false);
        if is_archive(&make.volume.spec) {
            VOLUME.clone_into(&mut to);
            parts.argue(&["--archive"]);
        }
        parts.directory(
            SCRATCH,
            Volume {
                name: "scratch".to_owned(),
                empty_dir: Some(EmptyDirVolumeSource::default()),
                ..Volume::default()
            },
        );
        let size = make.size.to_string();
        parts.argue(&[&from, "--to", &to, "--size", &size, "--scratch", SCRATCH]);
        if make.volume.spec.preallocation == Some(true) {
            parts.argue(&["--preallocate"]);
        }
        match make.fetch {
            Fetch::Http(http) => parts.http(http),
            Fetch::S3(object) => {
                parts.trust(object.secret_ref.as_ref(), object.cert_config_map.as_ref());
            }
            Fetch::Registry { source, .. } => {
                if let Some(architecture) = source
                    .platform
                    .as_ref()
                    .and_then(|platform| platform.architecture.as_ref())
                {
                    parts.argue(&["--architecture", architecture]);
                }
                parts.trust(source.secret_ref.as_ref(), source.cert_config_map.as_ref());
            }
            Fetch::Upload => {
                parts.argue(&["--port", &UPLOAD_PORT.to_string()]);
                parts.environment.push(EnvVar {
                    name: CLIENTS.to_owned(),
                    value: Some(make.clients.to_owned()),
                    value_from: None,
                });
            }
            Fetch::Claim { .. } | Fetch::Blank => {}
        }
        parts
    }

    /// What a server wants to see, and what it has to show.
    fn http(&mut self, http: &HttpSource) {
        if let Some(checksum) = &http.checksum {
            self.argue(&["--checksum", checksum]);
        }
        if http.insecure_skip_verify == Some(true) {
            self.argue(&["--insecure"]);
        }
        for header in &http.extra_headers {
            self.argue(&["--header", header]);
        }
        for (index, secret) in http.secret_extra_headers.iter().enumerate() {
            let path = format!("/headers/{index}");
            self.argue(&["--headers", &path]);
            self.directory(
                &path,
                Volume {
                    name: format!("headers-{index}"),
                    secret: Some(SecretVolumeSource {
                        secret_name: Some(secret.clone()),
                        ..SecretVolumeSource::default()
                    }),
                    ..Volume::default()
                },
            );
        }
        self.trust(http.secret_ref.as_ref(), http.cert_config_map.as_ref());
    }

    /// Who we are to a server, and whom we believe to be it.
    fn trust(&mut self, secret: Option<&String>, authorities: Option<&String>) {
        if let Some(map) = authorities {
            self.argue(&["--authorities", "/authorities"]);
            self.directory(
                "/authorities",
                Volume {
                    name: "authorities".to_owned(),
                    config_map: Some(ConfigMapVolumeSource {
                        name: map.clone(),
                        ..ConfigMapVolumeSource::default()
                    }),
                    ..Volume::default()
                },
            );
        }
        if let Some(secret) = secret {
            for (name, key) in [("NACELLE_USER", "accessKeyId"), ("NACELLE_PASSWORD", "secretKey")] {
                self.environment.push(EnvVar {
                    name: name.to_owned(),
                    value: None,
                    value_from: Some(EnvVarSource {
                        secret_key_ref: Some(SecretKeySelector {
                            name: secret.clone(),
                            key: key.to_owned(),
                            optional: None,
                        }),
                        ..EnvVarSource::default()
                    }),
                });
            }
        }
    }

    fn argue(&mut self, arguments: &[&str]) {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
    }

    fn directory(&mut self, path: &str, volume: Volume) {
        self.mounts.push(VolumeMount {
            name: volume.name.clone(),
            mount_path: path.to_owned(),
            ..VolumeMount::default()
        });
        self.volumes.push(volume);
    }

    /// A claim; where its disk is.
    fn claim(&mut self, name: &str, path: &str, claim: &str, block: bool, read_only: bool) -> String {
        let volume = Volume {
            name: name.to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.to_owned(),
                read_only: read_only.then_some(true),
            }),
            ..Volume::default()
        };
        if block {
            self.volumes.push(volume);
            self.devices.push(VolumeDevice {
                name: name.to_owned(),
                device_path: path.to_owned(),
            });
            return path.to_owned();
        }
        self.directory(path, volume);
        format!("{path}/disk.img")
    }
}

/// `Pending`, `Running`, ...
pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("Pending")
}

/// What the kubelet says of the importer.
pub fn container_status(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

/// Whether the importer runs now.
pub fn runs(pod: &Pod) -> bool {
    container_status(pod)
        .is_some_and(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()))
}

/// Whether it does what it is there for: an importer runs, one that waits for an upload listens.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|list| {
        list.iter()
            .any(|one| one.type_ == "Ready" && one.status == "True")
    })
}

/// Whether it takes uploads of whom others trust than these, and would refuse ours.
pub fn trusts_others(pod: &Pod, clients: &str) -> bool {
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    let variables = container.and_then(|container| container.env.as_ref());
    variables.is_some_and(|variables| {
        variables
            .iter()
            .any(|variable| variable.name == CLIENTS && variable.value.as_deref() != Some(clients))
    })
}

/// Whether it ended and will not be tried again.
pub fn gave_up(pod: &Pod) -> bool {
    phase(pod) == "Failed"
}

/// Whether a pod has a claim, and goes on to have it. Pods of ours only read what they copy, and do not write what is read.
pub fn uses(pod: &Pod, claim: &str) -> bool {
    let has = |volume: &Volume| {
        let source = volume.persistent_volume_claim.as_ref();
        source.is_some_and(|source| source.claim_name == claim && source.read_only != Some(true))
    };
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    !matches!(phase(pod), "Succeeded" | "Failed") && volumes.is_some_and(|volumes| volumes.iter().any(has))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(spec: &str, fetch: &Fetch, block: bool) -> Pod {
        let mut volume = DataVolume::new("a", serde_saphyr::from_str(spec).unwrap());
        volume.metadata.uid = Some("u".into());
        pod(&Make {
            volume: &volume,
            fetch,
            size: 5,
            block,
            original_block: false,
            image: "i",
            image_pull_policy: "Never",
            clients: "CA",
        })
        .unwrap()
    }

    #[test]
    fn it_may_do_nothing_but_fetch_and_write() {
        let http = "{url: 'https://a/b', checksum: 'sha256:0', secretRef: s, secretExtraHeaders: [h], certConfigMap: c, \
            extraHeaders: ['A: b']}";
        let pod = make("{}", &Fetch::Http(serde_saphyr::from_str(http).unwrap()), false);
        assert_eq!(pod.metadata.name.as_deref(), Some("importer-u"));
        let spec = pod.spec.unwrap();
        let context = spec.security_context.unwrap();
        assert_eq!(
            (context.run_as_user, context.run_as_non_root),
            (Some(107), Some(true))
        );
        assert_eq!(context.seccomp_profile.unwrap().type_, "RuntimeDefault");
        assert_eq!(spec.automount_service_account_token, Some(false));
        let container = &spec.containers[0];
        let security = container.security_context.as_ref().unwrap();
        assert_eq!(
            security.capabilities.as_ref().unwrap().drop,
            Some(vec!["ALL".to_owned()])
        );
        assert_eq!(
            container.args.as_ref().unwrap().join(" "),
            "https://a/b --to /volume/disk.img --size 5 --scratch /scratch --checksum sha256:0 --header A: b \
             --headers /headers/0 --authorities /authorities"
        );
        // No secret is among the arguments.
        let environment = container.env.as_ref().unwrap();
        assert!(environment.iter().all(|variable| variable.value.is_none()) && environment.len() == 2);
    }

    #[test]
    fn one_that_waits_for_an_upload_says_when_it_listens_and_to_whom() {
        let pod = make("{}", &Fetch::Upload, false);
        assert!(!trusts_others(&pod, "CA") && trusts_others(&pod, "NEW CA"));
        assert!(!trusts_others(&make("{}", &Fetch::Blank, false), "NEW CA"));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let arguments = container.args.as_ref().unwrap();
        assert_eq!(arguments[0], "upload");
        assert!(arguments.ends_with(&["--port".into(), "8443".into()]));
        let pod = make("{contentType: archive}", &Fetch::Upload, false);
        let arguments = pod.spec.as_ref().unwrap().containers[0]
            .args
            .clone()
            .unwrap()
            .join(" ");
        assert!(
            arguments.starts_with("--archive upload --to /volume --size"),
            "{arguments}"
        );
        let probed = container
            .readiness_probe
            .as_ref()
            .unwrap()
            .tcp_socket
            .as_ref()
            .unwrap();
        assert_eq!(probed.port, IntOrString::Int(8443));
    }

    #[test]
    fn an_object_is_named_and_its_secret_is_not_shown() {
        let object =
            serde_saphyr::from_str("{url: 'https://a/b/c', secretRef: s, certConfigMap: d}").unwrap();
        let pod = make("{}", &Fetch::S3(object), false);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let arguments = container.args.as_ref().unwrap().join(" ");
        assert!(arguments.starts_with("s3:https://a/b/c --to"), "{arguments}");
        assert!(arguments.ends_with("--authorities /authorities"), "{arguments}");
        assert_eq!(container.env.as_ref().unwrap().len(), 2);
    }

    #[test]
    fn a_copy_only_reads_what_it_copies() {
        let fetch = Fetch::Claim {
            namespace: None,
            name: "o".into(),
        };
        let pod = make("{}", &fetch, true);
        assert!(!uses(&pod, "o") && uses(&pod, "a"));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!(
            container.args.as_ref().unwrap()[..3].join(" "),
            "copy:/original/disk.img --to /volume"
        );
        assert_eq!(
            container.volume_devices.as_ref().unwrap()[0].device_path,
            "/volume"
        );
    }
}
