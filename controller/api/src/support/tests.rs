use super::*;
use crate::{Manifest, parse};

fn of(spec: &str) -> Support {
    let text = format!("{{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, spec: {{{spec}}}}}");
    let mut vmi = match parse(&text) {
        Ok(Manifest::VirtualMachineInstance(vmi)) => vmi,
        other => panic!("{spec}: {other:?}"),
    };
    crate::defaults::apply(&mut vmi.spec);
    support(&vmi.spec, &FieldPath::new("spec"))
}

#[test]
fn what_this_version_serves() {
    let found = of("
      domain: {
        cpu: {cores: 2, sockets: 1, threads: 2, model: host-passthrough},
        memory: {guest: 1Gi, hugepages: {pageSize: 2Mi}},
        resources: {requests: {memory: 1Gi}},
        machine: {type: pc-q35-9.2},
        firmware: {uuid: u, serial: s, kernelBoot: {kernelArgs: quiet, container: {image: i, kernelPath: /k}}},
        clock: {utc: {offsetSeconds: 5}, timer: {hpet: {present: false}, rtc: {}, kvm: {}}},
        features: {acpi: {}, apic: {}, smm: {enabled: false}, kvm: {}, pvspinlock: {}},
        ioThreadsPolicy: auto,
        rebootPolicy: Reboot,
        devices: {
          rng: {}, autoattachVSOCK: true, autoattachGraphicsDevice: false, blockMultiQueue: true,
          networkInterfaceMultiqueue: true, disableHotplug: true, useVirtioTransitional: false, tpm: {enabled: false},
          disks: [
            {name: a, disk: {bus: virtio}, bootOrder: 1, serial: s, cache: none, io: native, dedicatedIOThread: true,
             blockSize: {custom: {logical: 512, physical: 4096}}, errorPolicy: report, shareable: false},
            {name: b, cdrom: {}}, {name: d, disk: {}, errorPolicy: stop}, {name: e, disk: {}, errorPolicy: ignore},
            {name: f, disk: {}, errorPolicy: enospace}],
          interfaces: [{name: n, masquerade: {}, model: virtio, macAddress: 'de:ad:00:00:be:af', ports: [{port: 22}]}]}},
      hostname: h, terminationGracePeriodSeconds: 0, startStrategy: Paused, architecture: amd64,
      networks: [{name: n, pod: {vmNetworkCIDR: 10.9.0.0/24}}],
      volumes: [{name: a, containerDisk: {image: i}}, {name: b, cloudInitNoCloud: {userData: u}},
                {name: c, hostDisk: {path: /x, type: Disk}}, {name: d, emptyDisk: {capacity: 1Gi}},
                {name: e, persistentVolumeClaim: {claimName: c}}, {name: f, dataVolume: {name: v}},
                {name: g, ephemeral: {persistentVolumeClaim: {claimName: c}}}, {name: h, cloudInitConfigDrive: {userData: u}}]
    ");
    assert_eq!(found, Support::default());
    assert_eq!(found.note(), None);
}

#[test]
fn what_it_does_not_serve_is_told_not_ignored() {
    let found = of(
        "domain: {devices: {tpm: {}, disks: [{name: a, disk: {bus: sata}}, {name: c, cdrom: {bus: sata}}],
        interfaces: [{name: n, bridge: {}, model: e1000}]}}, architecture: arm64",
    );
    let messages: Vec<_> = found
        .unsupported
        .iter()
        .map(|cause| cause.message.as_str())
        .collect();
    assert_eq!(
        messages,
        [
            "spec.architecture 'arm64' is not supported by this version of Nacelle; use amd64",
            "spec.domain.devices.tpm is not supported by this version of Nacelle",
            "spec.domain.devices.disks[0].disk.bus 'sata' is not supported by this version of Nacelle; use virtio",
            "spec.domain.devices.disks[1].cdrom.bus 'sata' is not supported by this version of Nacelle; leave it out, and the guest sees a read-only virtio disk",
            "spec.domain.devices.interfaces[0].model 'e1000' is not supported by this version of Nacelle; use virtio",
        ]
    );
    assert!(
        found
            .unsupported
            .iter()
            .all(|cause| cause.kind == CauseKind::FieldValueNotSupported)
    );
}

#[test]
fn what_has_no_effect_says_so() {
    let found = of(
        "domain: {cpu: {maxSockets: 4}, memory: {guest: 1Gi, maxGuest: 4Gi},
        clock: {timer: {hpet: {}, pit: {tickPolicy: delay}, rtc: {tickPolicy: catchup}}},
        devices: {sound: {name: s}, autoattachGraphicsDevice: true}}",
    );
    assert!(found.unsupported.is_empty());
    assert_eq!(
        found.warnings,
        [
            "spec.domain.cpu.maxSockets has no effect: CPUs cannot be hot-plugged yet",
            "spec.domain.memory.maxGuest has no effect: memory cannot be hot-plugged yet",
            "spec.domain.clock.timer.hpet has no effect: the machine has no HPET",
            "spec.domain.clock.timer.pit.tickPolicy has no effect: missed ticks are KVM's to make up for",
            "spec.domain.clock.timer.rtc.tickPolicy has no effect: missed ticks are KVM's to make up for",
            "spec.domain.devices.autoattachGraphicsDevice has no effect: the machine has no graphics yet",
            "spec.domain.devices.sound has no effect: there is nobody to hear it",
        ]
    );
}

#[test]
fn what_is_the_clusters_is_one_line() {
    let found = of(
        "domain: {devices: {}}, nodeSelector: {a: b}, priorityClassName: p, evictionStrategy: LiveMigrate",
    );
    assert_eq!(
        found.note().as_deref(),
        Some("these fields matter only in a cluster: evictionStrategy, priorityClassName, nodeSelector")
    );
}

#[test]
fn everything_at_once() {
    let Ok(Manifest::VirtualMachine(vm)) = parse(include_str!("../parse/everything.yaml")) else {
        panic!()
    };
    let found = support(&vm.spec.template.spec, &FieldPath::new("spec.template.spec"));
    assert!(found.unsupported.len() > 40, "{:?}", found.unsupported);
}
