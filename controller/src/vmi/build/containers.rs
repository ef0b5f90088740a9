//! The containers: at most one before the others, then the machine's and those that serve it, which start in any order and
//! end with it. A container in turn costs a start a second, in which the kubelet looks at what became of the one before.

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EnvVar, EnvVarSource, ExecAction, ObjectFieldSelector, Probe, SecurityContext,
    VolumeMount,
};
use log::LevelFilter;
use nacelle_api::VirtualMachineInstanceSpec;

use super::super::validate::Valid;
use super::{Installation, USER, resources, volumes};
use crate::logging::Format;

/// The launcher, in our image.
const NACELLE: &str = "/usr/bin/nacelle";
/// Where the program is put that serves files of users' images.
const BIN: &str = "/run/nacelle/bin";
/// Where its sockets are.
const FILES: &str = "/run/nacelle/files";
/// Where the machine listens as long as it lives.
const MACHINE: &str = "/run/nacelle/machine.sock";

/// What goes before, if something has to, and the rest: the machine's first, as in KubeVirt.
pub(super) fn containers(
    valid: &Valid<'_>,
    installation: &Installation,
    overhead: u64,
) -> Result<(Option<Container>, Vec<Container>), String> {
    let spec = &valid.vmi.spec;
    let configured = &installation.configuration;
    let pull_policy = configured.image_pull_policy.as_deref();
    let pull_policy = pull_policy.unwrap_or(&installation.image_pull_policy);
    let mut said: Vec<&str> = match configured.launcher_log {
        Some(LevelFilter::Trace) => vec!["-vv"],
        Some(LevelFilter::Debug) => vec!["-v"],
        _ => Vec::new(),
    };
    if installation.log != Format::default() {
        said.extend(["--log", installation.log.word()]);
    }
    let ours = |name: &str, command: &[&str]| Container {
        image: Some(installation.image.clone()),
        image_pull_policy: Some(pull_policy.to_owned()),
        ..container(
            name,
            std::iter::once(&NACELLE)
                .chain(&said)
                .chain(command)
                .map(|word| (*word).to_owned())
                .collect(),
        )
    };
    let files = files(spec);
    let devices = &spec.domain.devices;
    let networked = !devices.interfaces.is_empty();
    let logged =
        devices.autoattach_serial_console != Some(false) && devices.log_serial_console != Some(false);

    let copies: &[&str] = if files.is_empty() {
        &[]
    } else {
        &["--serve-file", BIN]
    };
    let mut init = Container {
        resources: Some(resources::helper()),
        volume_mounts: Some(vec![
            mount("nacelle-run", "/run/nacelle"),
            read_only("nacelle-pod", "/etc/nacelle"),
        ]),
        ..ours("init", &[&["pod", "init"], copies].concat())
    };
    if networked {
        init.resources = Some(resources::network());
        init.security_context = Some(network_context());
    }
    let init = (networked || !files.is_empty()).then_some(init);

    let log = logged.then(|| Container {
        resources: Some(resources::helper()),
        volume_mounts: Some(vec![mount("nacelle-run", "/run/nacelle")]),
        ..ours("guest-console-log", &["pod", "console-log"])
    });
    let run: &[&str] = if logged {
        &["pod", "run", "--logged"]
    } else {
        &["pod", "run"]
    };
    let (mounts, block) = volumes::of_compute(valid);
    let compute = Container {
        env: Some(environment()),
        resources: Some(resources::compute(spec, overhead, configured)),
        volume_mounts: Some(mounts),
        volume_devices: (!block.is_empty()).then_some(block),
        readiness_probe: spec.readiness_probe.as_ref().map(probe),
        liveness_probe: spec.liveness_probe.as_ref().map(probe),
        ..ours("compute", run)
    };
    Ok((init, std::iter::once(compute).chain(files).chain(log).collect()))
}

/// Containers of users' images: each serves the files that the machine needs of it.
fn files(spec: &VirtualMachineInstanceSpec) -> Vec<Container> {
    let server = |name: String, image: &str, policy: Option<&String>, files: Vec<(String, String)>| {
        let sockets = files
            .into_iter()
            .map(|(socket, path)| format!("{FILES}/{socket}.sock={path}"));
        Container {
            image: Some(image.to_owned()),
            image_pull_policy: policy.cloned(),
            resources: Some(resources::helper()),
            volume_mounts: Some(vec![mount("nacelle-run", "/run/nacelle")]),
            ..container(
                &name,
                [format!("{BIN}/serve-file"), MACHINE.to_owned()]
                    .into_iter()
                    .chain(sockets)
                    .collect(),
            )
        }
    };
    let disks = spec.volumes.iter().filter_map(|volume| {
        let disk = volume.container_disk.as_ref()?;
        let path = disk.path.clone().unwrap_or_else(|| "/disk/".to_owned());
        let files = vec![(volume.name.clone(), path)];
        Some(server(
            format!("volume{}", volume.name),
            &disk.image,
            disk.image_pull_policy.as_ref(),
            files,
        ))
    });
    let kernel = spec
        .domain
        .firmware
        .as_ref()
        .and_then(|firmware| firmware.kernel_boot.as_ref()?.container.as_ref());
    let kernel = kernel.map(|kernel| {
        let paths = [("kernel", &kernel.kernel_path), ("initrd", &kernel.initrd_path)];
        let files = paths
            .into_iter()
            .filter_map(|(what, path)| Some((format!("kernel-boot.{what}"), path.clone()?)))
            .collect();
        server(
            "kernel-boot".to_owned(),
            &kernel.image,
            kernel.image_pull_policy.as_ref(),
            files,
        )
    });
    disks.chain(kernel).collect()
}

fn container(name: &str, command: Vec<String>) -> Container {
    Container {
        name: name.to_owned(),
        command: Some(command),
        security_context: Some(unprivileged()),
        ..Container::default()
    }
}

/// What a container of ours may do that needs no right: nothing.
pub fn unprivileged() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            add: None,
            drop: Some(vec!["ALL".to_owned()]),
        }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        run_as_non_root: Some(true),
        ..SecurityContext::default()
    }
}

/// The one that makes taps and rules has the right to, and ends before the guest begins.
fn network_context() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            add: Some(vec!["NET_ADMIN".to_owned()]),
            drop: Some(vec!["ALL".to_owned()]),
        }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_user: Some(0),
        run_as_group: Some(0),
        run_as_non_root: Some(false),
        ..SecurityContext::default()
    }
}

fn environment() -> Vec<EnvVar> {
    [
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("POD_UID", "metadata.uid"),
        ("POD_IPS", "status.podIPs"),
        ("NODE_NAME", "spec.nodeName"),
    ]
    .into_iter()
    .map(|(name, path)| EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.to_owned(),
                api_version: None,
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    })
    .collect()
}

/// The kubelet asks the guest as it would a container: what is sent to the pod reaches the guest, and what would be run in
/// the container is run by the guest's agent.
fn probe(probe: &nacelle_api::vmi::Probe) -> Probe {
    let time = probe.timeout_seconds.unwrap_or(1);
    let seconds = time.to_string();
    let asks = |words: &[&str]| -> Vec<String> {
        let words = [&[NACELLE, "pod", "probe", "--timeout", &seconds], words].concat();
        words.into_iter().map(str::to_owned).collect()
    };
    let command = probe.exec.as_ref().map(|exec| {
        let command = exec.command.clone().unwrap_or_default();
        [asks(&["--"]), command].concat()
    });
    let ping = probe.guest_agent_ping.as_ref().map(|_| asks(&["--ping"]));
    let exec = command.or(ping).map(|command| ExecAction {
        command: Some(command),
    });
    Probe {
        http_get: probe.http_get.clone(),
        tcp_socket: probe.tcp_socket.clone(),
        initial_delay_seconds: probe.initial_delay_seconds,
        // A second more, so that why is heard.
        timeout_seconds: match exec {
            Some(_) => Some(time.saturating_add(1)),
            None => probe.timeout_seconds,
        },
        exec,
        period_seconds: probe.period_seconds,
        success_threshold: probe.success_threshold,
        failure_threshold: probe.failure_threshold,
        ..Probe::default()
    }
}

pub(super) fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    }
}

pub(super) fn read_only(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        read_only: Some(true),
        ..mount(volume, path)
    }
}
