use super::*;

/// A spec from the YAML of its `domain`, with defaults.
fn completed(spec: &str) -> VirtualMachineInstanceSpec {
    let text = format!("{{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, spec: {spec}}}");
    let mut spec = match crate::parse(&text) {
        Ok(crate::Manifest::VirtualMachineInstance(vmi)) => vmi.spec,
        other => panic!("{other:?}"),
    };
    apply(&mut spec);
    let once = spec.clone();
    apply(&mut spec);
    assert_eq!(spec, once, "defaults are not stable");
    spec
}

#[test]
fn memory_comes_from_what_is_asked_of_the_node() {
    for (domain, expected) in [
        (
            "memory: {guest: 1Gi}, resources: {requests: {memory: 2Gi}}",
            Some("1Gi"),
        ),
        (
            "resources: {requests: {memory: 2Gi}, limits: {memory: 3Gi}}",
            Some("2Gi"),
        ),
        ("resources: {limits: {memory: 3Gi}}", Some("3Gi")),
        ("memory: {hugepages: {pageSize: 1Gi}}", Some("1Gi")),
        (
            "memory: {hugepages: {pageSize: 1Gi}}, resources: {requests: {memory: 4Gi}}",
            Some("4Gi"),
        ),
        ("", None),
    ] {
        let spec = completed(&format!("{{domain: {{devices: {{}}, {domain}}}}}"));
        let guest = spec
            .domain
            .memory
            .and_then(|memory| memory.guest)
            .map(|guest| guest.0);
        assert_eq!(guest.as_deref(), expected, "{domain}");
    }
}

#[test]
fn topology_is_complete() {
    for (domain, expected) in [
        ("", (1, 1, 1)),
        ("cpu: {cores: 4}", (1, 4, 1)),
        ("cpu: {cores: 0, sockets: 2}", (2, 1, 1)),
        ("resources: {requests: {cpu: 1500m}}", (2, 1, 1)),
        ("resources: {requests: {cpu: 1}, limits: {cpu: 3}}", (3, 1, 1)),
        ("cpu: {threads: 2}, resources: {requests: {cpu: 8}}", (1, 1, 2)),
        ("resources: {requests: {cpu: 5G}}", (u32::MAX, 1, 1)),
    ] {
        let cpu = completed(&format!("{{domain: {{devices: {{}}, {domain}}}}}"))
            .domain
            .cpu
            .unwrap();
        let found = (cpu.sockets.unwrap(), cpu.cores.unwrap(), cpu.threads.unwrap());
        assert_eq!(found, expected, "{domain}");
        assert_eq!(cpu.model.as_deref(), Some("host-model"));
    }
}

#[test]
fn disks_are_something_and_volumes_have_one() {
    let spec = completed(
        "{domain: {devices: {disks: [{name: a}, {name: c, cdrom: {}}], filesystems: [{name: f, virtiofs: {}}]}},
          volumes: [{name: a, containerDisk: {image: x}}, {name: b, emptyDisk: {capacity: 1Gi}},
                    {name: c, containerDisk: {image: x}}, {name: f, configMap: {name: m}},
                    {name: d, memoryDump: {claimName: p}}]}",
    );
    let disks = &spec.domain.devices.disks;
    let names: Vec<_> = disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["a", "c", "b"]);
    assert_eq!(disks[0].disk, Some(DiskTarget::default()), "the bus stays absent");
    let cdrom = disks[1].cdrom.as_ref().unwrap();
    assert_eq!(
        (cdrom.readonly, cdrom.tray.as_deref()),
        (Some(true), Some("closed"))
    );
}

#[test]
fn a_machine_without_networks_is_bridged_to_the_pods() {
    let spec = completed("{domain: {devices: {}}}");
    assert!(spec.domain.devices.interfaces[0].bridge.is_some());
    assert_eq!(spec.domain.devices.interfaces[0].name, spec.networks[0].name);
    assert!(spec.networks[0].pod.is_some());
    let spec = completed("{domain: {devices: {autoattachPodInterface: false}}}");
    assert!(spec.domain.devices.interfaces.is_empty() && spec.networks.is_empty());
}

#[test]
fn images_are_pulled_again_unless_pinned() {
    for (image, expected) in [
        ("fedora", "Always"),
        ("quay.io/a/fedora:latest", "Always"),
        ("localhost:5000/fedora", "Always"),
        ("localhost:5000/fedora:41", "IfNotPresent"),
        ("fedora@sha256:00", "IfNotPresent"),
    ] {
        let spec = completed(&format!(
            "{{domain: {{devices: {{}}}}, volumes: [{{name: a, containerDisk: {{image: '{image}'}}}}]}}"
        ));
        let policy = spec.volumes[0]
            .container_disk
            .as_ref()
            .unwrap()
            .image_pull_policy
            .as_deref();
        assert_eq!(policy, Some(expected), "{image}");
    }
}

#[test]
fn the_rest() {
    let spec = completed(
        "{domain: {firmware: {kernelBoot: {container: {image: k}}}, features: {smm: {}, hyperv: {spinlocks: {}, relaxed: {}}},
                   devices: {inputs: [{name: t}], watchdog: {name: w}}},
          livenessProbe: {tcpSocket: {port: 22}}}",
    );
    assert_eq!(spec.termination_grace_period_seconds, Some(30));
    let domain = spec.domain;
    assert_eq!(domain.machine.unwrap().type_, "q35");
    let kernel = domain.firmware.unwrap().kernel_boot.unwrap().container.unwrap();
    assert_eq!(kernel.image_pull_policy.as_deref(), Some("Always"));
    let input = &domain.devices.inputs[0];
    assert_eq!(
        (input.type_.as_str(), input.bus.as_deref()),
        ("tablet", Some("usb"))
    );
    let watchdog = domain.devices.watchdog.unwrap().i6300esb.unwrap();
    assert_eq!(watchdog.action.as_deref(), Some("reset"));
    let features = domain.features.unwrap();
    assert_eq!(features.acpi.unwrap().enabled, Some(true));
    assert_eq!(features.smm.unwrap().enabled, Some(true));
    assert_eq!(features.hyperv.unwrap().spinlocks.unwrap().retries, Some(4096));
    let probe = spec.liveness_probe.unwrap();
    assert_eq!((probe.timeout_seconds, probe.period_seconds), (Some(1), Some(10)));
    assert_eq!(
        (probe.success_threshold, probe.failure_threshold),
        (Some(1), Some(3))
    );
}
