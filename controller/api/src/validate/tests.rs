use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::{Manifest, defaults, parse};

/// What is wrong with a spec of this YAML once defaults are in it: (kind, field, message).
fn found(spec: &str) -> Vec<(CauseKind, String, String)> {
    let text = format!("{{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, spec: {{{spec}}}}}");
    let mut vmi = match parse(&text) {
        Ok(Manifest::VirtualMachineInstance(vmi)) => vmi,
        other => panic!("{spec}: {other:?}"),
    };
    defaults::apply(&mut vmi.spec);
    let causes = validate_vmi(&vmi);
    causes
        .into_iter()
        .map(|cause| (cause.kind, cause.field.to_string(), cause.message))
        .collect()
}

/// Every case has exactly one thing wrong: its field below `base`, and its message, in which `^` is `base`.
fn each(base: &str, wrap: impl Fn(&str) -> String, cases: &[(&str, &str, &str)]) {
    for (given, field, message) in cases {
        let causes = found(&wrap(given));
        let causes: Vec<_> = causes
            .iter()
            .map(|(_, field, message)| (field.as_str(), message.as_str()))
            .collect();
        let (field, message) = (format!("{base}{field}"), message.replace('^', base));
        assert_eq!(causes, [(field.as_str(), message.as_str())], "{given}");
    }
}

/// None of these has anything wrong.
fn none(wrap: impl Fn(&str) -> String, cases: &[&str]) {
    for given in cases {
        assert_eq!(found(&wrap(given)), [], "{given}");
    }
}

fn domain(more: &str) -> String {
    format!("domain: {{devices: {{}}, memory: {{guest: 1Gi}}, {more}}}")
}

fn device(more: &str) -> String {
    format!("domain: {{memory: {{guest: 1Gi}}, devices: {{{more}}}}}")
}

/// One disk on a claim.
fn disk(more: &str) -> String {
    format!(
        "{}, volumes: [{{name: d, dataVolume: {{name: v}}}}]",
        device(&format!("disks: [{{name: d, {more}}}]"))
    )
}

fn volume(more: &str) -> String {
    format!("{}, volumes: [{{name: v, {more}}}]", device(""))
}

/// One interface on the pod network.
fn interface(more: &str) -> String {
    format!(
        "{}, networks: [{{name: n, pod: {{}}}}]",
        device(&format!("interfaces: [{{name: n, {more}}}]"))
    )
}

#[test]
fn memory_and_resources() {
    let wrap = |memory: &str| format!("domain: {{devices: {{}}, {memory}}}");
    each(
        "spec.domain.",
        wrap,
        &[
            (
                "",
                "memory",
                "no memory requested, at least one of '^memory.guest', '^memory.hugepages.size' or '^resources' must be set",
            ),
            (
                "memory: {guest: 1Gi}, resources: {requests: {memory: 0}}",
                "resources.requests.memory",
                "^resources.requests.memory '0': must be greater than or equal to 1M.",
            ),
            (
                "memory: {guest: 1Gi}, resources: {requests: {memory: -1Gi}}",
                "resources.requests.memory",
                "^resources.requests.memory '-1Gi': must be greater than or equal to 0.",
            ),
            (
                "memory: {guest: 512}",
                "memory.guest",
                "^memory.guest '512': must be greater than or equal to 1M.",
            ),
            (
                "memory: {guest: 1Gi}, resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}",
                "resources.requests.memory",
                "^resources.requests.memory '2Gi' is greater than ^resources.limits.memory '1Gi'",
            ),
            (
                "memory: {guest: 1Gi}, resources: {requests: {cpu: 1500m}, limits: {cpu: 1}}",
                "resources.requests.cpu",
                "^resources.requests.cpu '1500m' is greater than ^resources.limits.cpu '1'",
            ),
            (
                "memory: {guest: 2Gi}, resources: {limits: {memory: 1Gi}}",
                "memory.guest",
                "^memory.guest '2Gi' must be equal to or less than the memory limit ^resources.limits.memory '1Gi'",
            ),
            (
                "memory: {guest: 1Gi, hugepages: {pageSize: 2MB}}",
                "memory.hugepages.pageSize",
                "^memory.hugepages.pageSize '2MB': '2MB' is not a quantity such as 4Gi, 500M, 1e9 or 100m",
            ),
            (
                "memory: {guest: 1Gi, hugepages: {pageSize: 0}}"
                    .replace(": 0", ": '0'")
                    .leak(),
                "memory.hugepages.pageSize",
                "^memory.hugepages.pageSize '0': must be greater than 0",
            ),
            (
                "memory: {guest: 512Mi, hugepages: {pageSize: 1Gi}}",
                "memory.hugepages.pageSize",
                "^memory.guest '512Mi' must be equal to or larger than page size ^memory.hugepages.pageSize '1Gi'",
            ),
            (
                "memory: {guest: 3M, hugepages: {pageSize: 2Mi}}",
                "memory.hugepages.pageSize",
                "^memory.guest '3M' is not a multiple of the page size ^memory.hugepages.pageSize '2Mi'",
            ),
        ],
    );
    none(
        wrap,
        &[
            "memory: {guest: 64Mi}",
            "memory: {guest: 1Gi}, resources: {requests: {memory: 1Gi, cpu: 1}, limits: {memory: 2Gi, cpu: 2}}",
            "memory: {guest: 4Gi, hugepages: {pageSize: 1Gi}}",
            "resources: {requests: {memory: 100Pi}}",
        ],
    );
}

#[test]
fn cpu_and_machine() {
    each(
        "spec.domain.",
        domain,
        &[
            (
                "machine: {type: pc-i440fx}",
                "machine.type",
                "^machine.type is not supported: pc-i440fx (allowed values: [q35* pc-q35*])",
            ),
            (
                "cpu: {sockets: 3, maxSockets: 2}",
                "cpu.sockets",
                "Number of sockets in CPU topology is greater than the maximum sockets allowed",
            ),
            (
                "cpu: {dedicatedCpuPlacement: true}, resources: {requests: {cpu: 1200m}}",
                "resources.requests.cpu",
                "provided resources CPU requests must be an interger",
            ),
            (
                "cpu: {dedicatedCpuPlacement: true}, resources: {limits: {cpu: 1200m}}",
                "resources.limits.cpu",
                "provided resources CPU limits must be an interger",
            ),
            (
                "cpu: {dedicatedCpuPlacement: true}, resources: {requests: {memory: 1Gi}, limits: {memory: 2Gi}}",
                "resources.requests.memory",
                "^resources.requests.memory '1Gi' must be equal to ^resources.limits.memory '2Gi' when DedicatedCPUPlacement is true",
            ),
            (
                "cpu: {dedicatedCpuPlacement: true, threads: 3}",
                "cpu.threads",
                "Not more than two threads must be provided at ^cpu.threads (got 3) when DedicatedCPUPlacement is true",
            ),
            (
                "cpu: {isolateEmulatorThread: true}",
                "cpu.isolateEmulatorThread",
                "IsolateEmulatorThread should be only set in combination with DedicatedCPUPlacement",
            ),
            (
                "cpu: {dedicatedCpuPlacement: true, numa: {guestMappingPassthrough: {}}}",
                "cpu.numa.guestMappingPassthrough",
                "^memory.hugepages must be requested when NUMA topology strategy is set in ^cpu.numa.guestMappingPassthrough",
            ),
            (
                "cpu: {features: [{name: x, policy: y1}]}",
                "cpu.features[0].policy",
                "CPU feature x uses policy y1 that is not supported.",
            ),
            (
                "ioThreadsPolicy: many",
                "ioThreadsPolicy",
                "Invalid IOThreadsPolicy (many)",
            ),
            (
                "rebootPolicy: Explode",
                "rebootPolicy",
                "^rebootPolicy is set with an unrecognized option: Explode",
            ),
        ],
    );
    let numa = "domain: {devices: {}, memory: {guest: 2Mi, hugepages: {pageSize: 2Mi}}, cpu: {numa: {guestMappingPassthrough: {}}}}";
    assert_eq!(
        found(numa)[0].2,
        "spec.domain.cpu.dedicatedCpuPlacement must be set to true when NUMA topology strategy is set in spec.domain.cpu.numa.guestMappingPassthrough"
    );
    none(
        domain,
        &[
            "machine: {type: q35}",
            "machine: {type: pc-q35-rhel9.2.0}",
            "cpu: {sockets: 2, maxSockets: 4, features: [{name: x}, {name: y1, policy: forbid}]}",
            "cpu: {dedicatedCpuPlacement: true, isolateEmulatorThread: true, threads: 2}",
        ],
    );
}

#[test]
fn firmware_and_launch_security() {
    each(
        "spec.domain.",
        domain,
        &[
            (
                "firmware: {bootloader: {bios: {}, efi: {secureBoot: false}}}",
                "firmware.bootloader",
                "^firmware.bootloader has both EFI and BIOS configured, but they are mutually exclusive.",
            ),
            (
                "firmware: {bootloader: {efi: {}}}",
                "firmware.bootloader.efi",
                "^firmware.bootloader.efi has EFI SecureBoot enabled. SecureBoot requires SMM, which is currently disabled.",
            ),
            (
                "features: {smm: {}}",
                "features.smm",
                "^features.smm is not allowed: SMM feature gate is not enabled",
            ),
            (
                "firmware: {kernelBoot: {kernelArgs: quiet}}",
                "firmware.kernelBoot.kernelArgs",
                "kernel arguments cannot be provided without an external kernel",
            ),
            (
                "firmware: {kernelBoot: {kernelArgs: quiet, container: {image: i, initrdPath: /i}}}",
                "firmware.kernelBoot.kernelArgs",
                "kernel arguments cannot be provided without an external kernel",
            ),
            (
                "firmware: {kernelBoot: {container: {image: '', kernelPath: /k}}}",
                "firmware.kernelBoot.container.image",
                "^firmware.kernelBoot.container.image must be given to boot from a container",
            ),
            (
                "firmware: {kernelBoot: {container: {image: i}}}",
                "firmware.kernelBoot.container",
                "^firmware.kernelBoot.container must have at least one of kernelPath and initrdPath",
            ),
            (
                "launchSecurity: {}",
                "launchSecurity",
                "^launchSecurity must have exactly one of sev, snp and tdx set",
            ),
            (
                "launchSecurity: {tdx: {}}",
                "launchSecurity.tdx",
                "^launchSecurity.tdx is not allowed: WorkloadEncryptionTDX feature gate is not enabled",
            ),
            (
                "launchSecurity: {sev: {policy: {encryptedState: true}}}",
                "launchSecurity.sev",
                "^launchSecurity.sev is not allowed: WorkloadEncryptionSEV feature gate is not enabled",
            ),
        ],
    );
    none(
        domain,
        &[
            "firmware: {bootloader: {efi: {secureBoot: false}}}",
            "firmware: {kernelBoot: {kernelArgs: quiet, container: {image: i, kernelPath: /k}}}",
            "features: {smm: {enabled: false}}",
        ],
    );
}

#[test]
fn smaller_devices() {
    each(
        "spec.domain.devices.",
        device,
        &[
            (
                "inputs: [{name: k, type: keyboard}]",
                "inputs[0].type",
                "Input device can have only tablet type.",
            ),
            (
                "inputs: [{name: k, bus: ps2}]",
                "inputs[0].bus",
                "Input device can have only virtio, usb or empty bus.",
            ),
            (
                "inputs: [{name: ''}]",
                "inputs[0].name",
                "Input device requires a name field.",
            ),
            (
                "sound: {name: s, model: sb16}",
                "sound",
                "Sound device type is not supported. Options: 'ich9' or 'ac97'",
            ),
            (
                "sound: {name: ''}",
                "sound.name",
                "Sound device requires a name field.",
            ),
            (
                "video: {type: qxl}",
                "video.type",
                "^video.type qxl is not supported (allowed values: [virtio vga bochs cirrus ramfb])",
            ),
            (
                "watchdog: {name: w, i6300esb: {action: bark}}",
                "watchdog.i6300esb.action",
                "^watchdog.i6300esb.action has invalid value bark",
            ),
            (
                "watchdog: {name: w, diag288: {}}",
                "watchdog",
                "amd64 does not support DIAG288 watchdogs; use i6300esb",
            ),
            (
                "watchdog: {name: ''}",
                "watchdog.name",
                "^watchdog.name is required",
            ),
            (
                "downwardMetrics: {}",
                "downwardMetrics",
                "^downwardMetrics is not allowed: DownwardMetrics feature gate is not enabled",
            ),
            (
                "clientPassthrough: {}",
                "clientPassthrough",
                "^clientPassthrough is not allowed: ClientPassthrough feature gate is not enabled",
            ),
        ],
    );
}

#[test]
fn disks() {
    each(
        "spec.domain.devices.disks[0]",
        disk,
        &[
            (
                "disk: {}, cdrom: {}",
                "",
                "^ can only have a single target type defined",
            ),
            ("disk: {bus: ide}", ".disk.bus", "IDE bus is not supported"),
            (
                "disk: {bus: nvme}",
                ".disk.bus",
                "^.disk.bus is set with an unrecognized bus nvme, must be one of: [virtio scsi sata usb]",
            ),
            (
                "cdrom: {bus: virtio}",
                ".cdrom.bus",
                "Bus type virtio is invalid for CD-ROM device",
            ),
            (
                "lun: {bus: usb}",
                ".lun.bus",
                "^.lun.bus is set with an unrecognized bus usb, must be one of: [virtio scsi sata]",
            ),
            (
                "disk: {bus: sata, readonly: true}",
                "",
                "^ hard-disks do not support read-only.",
            ),
            (
                "disk: {bus: scsi, pciAddress: '0000:81:01.0'}",
                ".disk.pciAddress",
                "disk d - setting a PCI address is only possible with bus type virtio.",
            ),
            (
                "disk: {bus: virtio, pciAddress: '81:01.0'}",
                ".disk.pciAddress",
                "disk d has malformed PCI address (81:01.0).",
            ),
            (
                "bootOrder: 0",
                ".bootOrder",
                "^.bootOrder must have a boot order > 0, if supplied",
            ),
            (
                "serial: 'a b'",
                ".serial",
                "^.serial must be made up of the following characters [A-Za-z0-9_.+-], if specified",
            ),
            (
                format!("serial: {}", "s".repeat(257)).leak(),
                ".serial",
                "^.serial must be less than or equal to 256 in length, if specified",
            ),
            ("cache: fast", ".cache", "^.cache has invalid value fast"),
            (
                "errorPolicy: panic",
                ".errorPolicy",
                "^.errorPolicy has invalid value panic",
            ),
            (
                "io: io_uring",
                ".io",
                "Disk IO mode for ^.io is not supported. Supported modes are: native, threads.",
            ),
            (
                "disk: {bus: sata}, dedicatedIOThread: true",
                ".dedicatedIOThread",
                "IOThreads are not supported for disks on a sata bus",
            ),
            (
                "blockSize: {custom: {logical: 256, physical: 512}}",
                ".blockSize.custom.logical",
                "Provided size of 256 is less than the minimum size of 512",
            ),
            (
                "blockSize: {custom: {logical: 512, physical: 4194304}}",
                ".blockSize.custom.physical",
                "Provided size of 4194304 is greater than the maximum size of 2097152",
            ),
            (
                "blockSize: {custom: {logical: 513, physical: 4096}}",
                ".blockSize.custom.logical",
                "Provided size of 513 is not a power of 2",
            ),
            (
                "blockSize: {custom: {logical: 4096, physical: 512}}",
                ".blockSize.custom",
                "Logical size 4096 must be the same or less than the physical size of 512",
            ),
            (
                "disk: {bus: sata}, blockSize: {custom: {logical: 4096, physical: 4096}}",
                ".blockSize.custom.logical",
                "Logical size 4096 must be 512 for SATA devices",
            ),
            (
                "blockSize: {custom: {logical: 512, physical: 512}, matchVolume: {}}",
                ".blockSize",
                "^.blockSize can have only one of custom and matchVolume set",
            ),
            (
                "lun: {bus: scsi, reservation: true}",
                ".lun.reservation",
                "^.lun.reservation is not allowed: PersistentReservation feature gate is not enabled",
            ),
        ],
    );
    none(
        disk,
        &[
            "",
            "disk: {bus: virtio, readonly: true, pciAddress: '0000:81:01.0'}",
            "disk: {readonly: true}",
            "cdrom: {bus: sata}",
            "lun: {bus: scsi}",
            "disk: {bus: usb}, serial: A-z_0.+, cache: none, io: native, errorPolicy: report, dedicatedIOThread: true, bootOrder: 1",
            "blockSize: {custom: {logical: 512, physical: 4096, discardGranularity: 1048576}}",
        ],
    );
    let base = "spec.domain.devices.";
    each(base, |spec| spec.to_owned(), &[
        ("domain: {memory: {guest: 1Gi}, devices: {disks: [{name: x}]}}", "disks[0].name", "^disks[0].Name 'x' not found."),
        ("domain: {memory: {guest: 1Gi}, devices: {disks: [{name: x}, {name: x}]}}, volumes: [{name: x, emptyDisk: {capacity: 1Gi}}]",
         "disks[1].name", "^disks[0] and ^disks[1] must not have the same Name."),
        ("domain: {memory: {guest: 1Gi}, devices: {disks: [{name: x, lun: {bus: scsi}}]}}, volumes: [{name: x, emptyDisk: {capacity: 1Gi}}]",
         "disks[0].lun", "^disks[0].lun can only be mapped to a DataVolume or PersistentVolumeClaim volume."),
        ("domain: {memory: {guest: 1Gi}, devices: {disks: [{name: x, bootOrder: 1}], interfaces: [{name: n, bridge: {}, bootOrder: 1}]}},
          volumes: [{name: x, emptyDisk: {capacity: 1Gi}}], networks: [{name: n, pod: {}}]",
         "interfaces[0].bootOrder", "Boot order for ^interfaces[0].bootOrder already set for a different device."),
    ]);
}

#[test]
fn volumes() {
    let long = "x".repeat(2049);
    let encoded = STANDARD.encode(&long);
    each(
        "spec.volumes[0]",
        volume,
        &[
            ("", "", "^ must have exactly one source type set"),
            (
                "emptyDisk: {capacity: 1Gi}, dataVolume: {name: d}",
                "",
                "^ must have exactly one source type set",
            ),
            (
                "emptyDisk: {capacity: -1Gi}",
                ".emptyDisk.capacity",
                "^.emptyDisk.capacity: '-1Gi' is negative",
            ),
            (
                "cloudInitNoCloud: {}",
                ".cloudInitNoCloud",
                "^.cloudInitNoCloud must have at least one userdatasource or one networkdatasource set.",
            ),
            (
                "cloudInitNoCloud: {userData: a, userDataBase64: YQ==}",
                ".cloudInitNoCloud",
                "^.cloudInitNoCloud must have only one userdatasource set.",
            ),
            (
                "cloudInitConfigDrive: {networkData: a, networkDataSecretRef: {name: s}}",
                ".cloudInitConfigDrive",
                "^.cloudInitConfigDrive must have only one networkdata source set.",
            ),
            (
                format!("cloudInitNoCloud: {{userData: {long}}}").leak(),
                ".cloudInitNoCloud.userData",
                "^.cloudInitNoCloud userdata exceeds 2048 byte limit. Should use UserDataSecretRef for larger data.",
            ),
            (
                format!("cloudInitNoCloud: {{networkDataBase64: {encoded}}}").leak(),
                ".cloudInitNoCloud.networkDataBase64",
                "^.cloudInitNoCloud networkdata exceeds 2048 byte limit. Should use NetworkDataSecretRef for larger data.",
            ),
            (
                "cloudInitNoCloud: {userDataBase64: '???'}",
                ".cloudInitNoCloud.userDataBase64",
                "^.cloudInitNoCloud.userDataBase64 is not a valid base64 value.",
            ),
            (
                "hostDisk: {path: '', type: Disk}",
                ".hostDisk.path",
                "^.hostDisk.path is required for hostDisk volume",
            ),
            (
                "hostDisk: {path: /d, type: ''}",
                ".hostDisk.type",
                "^.hostDisk.type is required for hostDisk volume",
            ),
            (
                "hostDisk: {path: /d, type: File}",
                ".hostDisk.type",
                "^.hostDisk.type has invalid value 'File', allowed are 'Disk' and 'DiskOrCreate'",
            ),
            (
                "hostDisk: {path: /d, type: DiskOrCreate}",
                ".hostDisk.capacity",
                "^.hostDisk.capacity is required for hostDisk volume of type 'DiskOrCreate'",
            ),
            (
                "sysprep: {}",
                ".sysprep",
                "^.sysprep must have exactly one of secret and configMap set",
            ),
            (
                "downwardMetrics: {}",
                ".downwardMetrics",
                "^.downwardMetrics is not allowed: DownwardMetrics feature gate is not enabled",
            ),
        ],
    );
    none(
        volume,
        &[
            "cloudInitNoCloud: {userData: '#cloud-config', networkData: x}",
            "hostDisk: {path: /d, type: DiskOrCreate, capacity: 1Gi}",
        ],
    );
    let twice = |source: &str| {
        format!(
            "domain: {{memory: {{guest: 1Gi}}, devices: {{}}}}, volumes: [{{name: a, {source}}}, {{name: b, {source}}}]"
        )
    };
    each(
        "spec.volumes",
        twice,
        &[
            (
                "serviceAccount: {}",
                "",
                "^ must have max one serviceAccount volume set",
            ),
            (
                "memoryDump: {claimName: c}",
                "",
                "^ must have max one memoryDump volume set",
            ),
        ],
    );
    each(
        "spec.volumes",
        |spec| format!("{}, {spec}", device("disks: [{name: a}]")),
        &[(
            "volumes: [{name: a, emptyDisk: {capacity: 1Gi}}, {name: a, dataVolume: {name: d}}]",
            "[1].name",
            "^[0].name and ^[1].name must not have the same Name.",
        )],
    );
}

#[test]
fn interfaces() {
    each(
        "spec.domain.devices.interfaces[0]",
        interface,
        &[
            (
                "",
                "",
                "logical n interface must have exactly one binding method or binding plugin",
            ),
            (
                "bridge: {}, masquerade: {}",
                "",
                "logical n interface must have exactly one binding method or binding plugin",
            ),
            (
                "slirp: {}",
                ".slirp",
                "Slirp network binding has been discontinued since v1.3",
            ),
            (
                "macvtap: {}",
                ".macvtap",
                "Macvtap network binding has been discontinued since v1.3",
            ),
            (
                "passt: {}",
                ".passt",
                "Passt network binding has been discontinued since v1.3",
            ),
            (
                "masquerade: {}, macAddress: 02-00-00-00-00-00",
                ".macAddress",
                "The requested MAC address is reserved for the in-pod bridge. Please choose another one.",
            ),
            (
                "bridge: {}, macAddress: '02:00:00:00:00'",
                ".macAddress",
                "interface ^.name has malformed MAC address (02:00:00:00:00).",
            ),
            (
                "bridge: {}, model: vmxnet3",
                ".model",
                "interface ^.name uses model vmxnet3 that is not supported.",
            ),
            (
                "bridge: {}, pciAddress: x",
                ".pciAddress",
                "interface ^.name has malformed PCI address (x).",
            ),
            (
                "masquerade: {}, ports: [{port: 0}]",
                ".ports[0]",
                "Port field is mandatory.",
            ),
            (
                "masquerade: {}, ports: [{port: 65536}]",
                ".ports[0]",
                "Port field must be in range 0 < x < 65536.",
            ),
            (
                "masquerade: {}, ports: [{port: 1, protocol: SCTP}]",
                ".ports[0].protocol",
                "Unknown protocol, only TCP or UDP allowed",
            ),
            (
                "masquerade: {}, ports: [{port: 1, name: a}, {port: 2, name: a}]",
                ".ports[1].name",
                "Duplicate name of the port: a",
            ),
            (
                "masquerade: {}, ports: [{port: 1, name: A_B}]",
                ".ports[0].name",
                "Invalid name of the port: A_B",
            ),
            (
                "bridge: {}, portRanges: [{}]",
                ".portRanges",
                "^.portRanges is only possible with the masquerade binding",
            ),
            (
                "masquerade: {}, portRanges: [{},{},{},{},{},{},{},{},{},{},{}]",
                ".portRanges",
                "^.portRanges must have no more than 10 ranges",
            ),
            (
                "bridge: {}, dhcpOptions: {privateOptions: [{option: 223, value: v}]}",
                ".dhcpOptions.privateOptions[0]",
                "provided DHCPPrivateOptions are out of range, must be in range 224 to 254",
            ),
            (
                "bridge: {}, dhcpOptions: {privateOptions: [{option: 240, value: v}, {option: 240, value: w}]}",
                ".dhcpOptions.privateOptions[1]",
                "Found Duplicates: you have provided duplicate DHCPPrivateOptions",
            ),
            (
                "bridge: {}, dhcpOptions: {ntpServers: ['::1']}",
                ".dhcpOptions.ntpServers[0]",
                "NTP servers must be a list of valid IPv4 addresses.",
            ),
            (
                "bridge: {}, state: gone",
                ".state",
                "logical n interface state value is unsupported: gone",
            ),
            (
                "bridge: {}, state: absent",
                ".state",
                "\"n\" interface's state \"absent\" is not supported on default networks",
            ),
        ],
    );
    none(
        interface,
        &[
            "bridge: {}",
            "masquerade: {}, model: virtio, macAddress: de-ad-00-00-be-af, ports: [{port: 22}, {name: http, port: 80, protocol: TCP}], state: up",
            "binding: {name: plugin}",
            "passtBinding: {}",
        ],
    );
}

#[test]
fn networks_and_interfaces_belong_together() {
    let wrap = |parts: &str| {
        let (interfaces, networks) = parts.split_once('|').unwrap();
        format!(
            "{}, networks: [{networks}]",
            device(&format!("interfaces: [{interfaces}]"))
        )
    };
    let base = "spec.";
    each(
        base,
        wrap,
        &[
            (
                "{name: a, bridge: {}}|",
                "domain.devices.interfaces[0].name",
                "^domain.devices.interfaces[0].name 'a' not found.",
            ),
            (
                "|{name: a, pod: {}}",
                "networks[0].name",
                "^networks[0].name 'a' not found.",
            ),
            (
                "{name: a, bridge: {}}|{name: a}",
                "networks[0]",
                "should have a network type",
            ),
            (
                "{name: a, bridge: {}}|{name: a, pod: {}, multus: {networkName: m}}",
                "networks[0]",
                "should have only one network type",
            ),
            (
                "{name: a, bridge: {}}|{name: a, multus: {networkName: ''}}",
                "networks[0].multus.networkName",
                "CNI delegating plugin must have a networkName",
            ),
            (
                "{name: a, bridge: {}}|{name: a, pod: {}}, {name: a, multus: {networkName: m}}",
                "networks[1].name",
                "Network with name \"a\" already exists, every network must have a unique name",
            ),
            (
                "{name: a, bridge: {}}, {name: a, bridge: {}}|{name: a, pod: {}}",
                "domain.devices.interfaces[1].name",
                "Only one interface can be connected to one specific network",
            ),
            (
                "{name: a, bridge: {}}, {name: b, bridge: {}}|{name: a, pod: {}}, {name: b, pod: {}}",
                "domain.devices.interfaces",
                "more than one interface is connected to a pod network",
            ),
            (
                "{name: a, masquerade: {}}|{name: a, multus: {networkName: m}}",
                "domain.devices.interfaces[0].name",
                "Masquerade interface only implemented with pod network",
            ),
            (
                "{name: a, sriov: {}, state: absent}|{name: a, multus: {networkName: m}}",
                "domain.devices.interfaces[0].state",
                "\"a\" interface's state \"absent\" is supported only for bridge binding",
            ),
        ],
    );
    none(
        wrap,
        &[
            "|",
            "{name: a, bridge: {}, state: absent}|{name: a, multus: {networkName: m}}",
        ],
    );
}

#[test]
fn the_pod_around_it() {
    let wrap = |spec: &str| format!("{}, {spec}", device(""));
    each(
        "spec.",
        wrap,
        &[
            (
                "startStrategy: Running",
                "startStrategy",
                "^startStrategy is set with an unrecognized option: Running",
            ),
            (
                "startStrategy: Paused, livenessProbe: {guestAgentPing: {}}",
                "startStrategy",
                "either startStrategy or livenessProbe should be provided.Pausing VMI with LivenessProbe is not supported",
            ),
            (
                "evictionStrategy: Maybe",
                "evictionStrategy",
                "^evictionStrategy is set with an unrecognized option: Maybe",
            ),
            (
                "hostname: Big_Host",
                "hostname",
                "^hostname does not conform to the kubernetes DNS_LABEL rules : only lower-case letters, digits and '-' are possible, with a letter or digit at both ends",
            ),
            (
                "subdomain: a..b",
                "subdomain",
                "^subdomain does not conform to the kubernetes DNS_SUBDOMAIN rules : only lower-case letters, digits, '-' and '.' are possible, with a letter or digit at both ends of each part",
            ),
            (
                "terminationGracePeriodSeconds: -1",
                "terminationGracePeriodSeconds",
                "^terminationGracePeriodSeconds '-1': must be greater than or equal to 0.",
            ),
            (
                "livenessProbe: {}",
                "livenessProbe",
                "either ^livenessProbe.tcpSocket, ^livenessProbe.httpGet, ^livenessProbe.exec or ^livenessProbe.guestAgentPing must be set if a ^livenessProbe is specified",
            ),
            (
                "readinessProbe: {guestAgentPing: {}, exec: {command: [w]}}",
                "readinessProbe",
                "^readinessProbe must have exactly one probe type set",
            ),
            (
                "accessCredentials: [{}]",
                "accessCredentials[0]",
                "^accessCredentials[0] must have exactly one access credential type set",
            ),
            (
                "accessCredentials: [{sshPublicKey: {source: {secret: {secretName: s}}, propagationMethod: {qemuGuestAgent: {users: []}}}}]",
                "accessCredentials[0].sshPublicKey.propagationMethod.qemuGuestAgent.users",
                "^accessCredentials[0].sshPublicKey.propagationMethod.qemuGuestAgent.users requires at least one user to be present",
            ),
            (
                "accessCredentials: [{userPassword: {source: {}, propagationMethod: {qemuGuestAgent: {}}}}]",
                "accessCredentials[0].userPassword.source",
                "^accessCredentials[0].userPassword must have a source set",
            ),
            (
                "accessCredentials: [{userPassword: {source: {secret: {secretName: s}}, propagationMethod: {}}}]",
                "accessCredentials[0].userPassword.propagationMethod",
                "^accessCredentials[0].userPassword must have exactly one propagation method set",
            ),
            (
                "dnsPolicy: Best",
                "dnsPolicy",
                "DNSPolicy: Best is not supported, valid values: [ClusterFirstWithHostNet ClusterFirst Default None]",
            ),
            (
                "dnsPolicy: None",
                "dnsConfig.nameservers",
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            ),
            (
                "dnsConfig: {nameservers: [x]}",
                "dnsConfig.nameservers[0]",
                "must be valid IP address: x",
            ),
            (
                "dnsConfig: {nameservers: [192.0.2.1, 192.0.2.2, 192.0.2.3, '::1']}",
                "dnsConfig.nameservers",
                "must not have more than 3 nameservers",
            ),
            (
                "dnsConfig: {options: [{value: v}]}",
                "dnsConfig.options[0].name",
                "Option.Name must not be empty for value",
            ),
        ],
    );
    each(
        "spec.",
        |spec| format!("{}, {spec}", device("autoattachPodInterface: false")),
        &[
            (
                "livenessProbe: {tcpSocket: {port: 22}}",
                "livenessProbe.tcpSocket",
                "^livenessProbe.tcpSocket is only allowed if the Pod Network is attached",
            ),
            (
                "readinessProbe: {httpGet: {port: 80}}",
                "readinessProbe.httpGet",
                "^readinessProbe.httpGet is only allowed if the Pod Network is attached",
            ),
        ],
    );
    none(
        wrap,
        &[
            "startStrategy: Paused, hostname: host-1, subdomain: a.b, evictionStrategy: External",
            "livenessProbe: {tcpSocket: {port: 22}}",
            "dnsPolicy: None, dnsConfig: {nameservers: ['::1'], searches: [example.org., a]}",
        ],
    );
}

#[test]
fn reserved_labels() {
    let text = "{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, metadata: {labels: {kubevirt.io/nodeName: here}},
                 spec: {domain: {memory: {guest: 1Gi}, devices: {}}}}";
    let Ok(Manifest::VirtualMachineInstance(vmi)) = parse(text) else {
        panic!()
    };
    let causes = validate_vmi(&vmi);
    assert_eq!(causes.len(), 1);
    assert_eq!(
        causes[0].to_string(),
        "creation of the following reserved kubevirt.io/ labels on a VMI object is prohibited"
    );
    assert_eq!(causes[0].kind.as_str(), "FieldValueNotSupported");
}

/// A VirtualMachine whose spec has `more` beside a valid template.
fn vm(more: &str) -> Box<crate::VirtualMachine> {
    let text = format!(
        "{{apiVersion: kubevirt.io/v1, kind: VirtualMachine, metadata: {{name: m}}, spec: {{{more},
           template: {{spec: {{domain: {{memory: {{guest: 1Gi}}, devices: {{disks: [{{name: d}}]}}}}, volumes: [{{name: d, dataVolume: {{name: root}}}}]}}}}}}}}"
    );
    match parse(&text) {
        Ok(Manifest::VirtualMachine(vm)) => vm,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_virtual_machine() {
    let good = "running: true, dataVolumeTemplates: [{metadata: {name: root}, spec: {source: {blank: {}}, storage: {}}}]";
    assert_eq!(validate_vm(&vm(good)), []);
    assert_eq!(
        vm_warnings(&vm(good).spec),
        ["spec.running is deprecated, please use spec.runStrategy instead."]
    );
    assert!(vm_warnings(&vm("runStrategy: Halted").spec).is_empty());
    let template = |template: &str| format!("runStrategy: Always, dataVolumeTemplates: [{{{template}}}]");
    let at = "spec.dataVolumeTemplates[0]";
    for (more, field, message) in [
        (
            "running: true, runStrategy: Always".to_owned(),
            "spec.running",
            "Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use RunStrategy instead",
        ),
        (
            "preference: {}".to_owned(),
            "spec.runStrategy",
            "RunStrategy must be specified",
        ),
        (
            "runStrategy: Sometimes".to_owned(),
            "spec.runStrategy",
            "Invalid RunStrategy (Sometimes)",
        ),
        (
            template("spec: {source: {blank: {}}, storage: {}}"),
            "spec.dataVolumeTemplates[0].name",
            "'name' field must not be empty for DataVolumeTemplate entry spec.dataVolumeTemplates[0].",
        ),
        (
            template("metadata: {name: other}, spec: {source: {blank: {}}, storage: {}}"),
            at,
            "DataVolumeTemplate entry spec.dataVolumeTemplates[0] must be referenced in the VMI template's 'volumes' list",
        ),
        (
            template("metadata: {name: root}, spec: {storage: {}}"),
            "spec.dataVolumeTemplates[0].spec",
            "Data volume should have either Source or SourceRef",
        ),
        (
            template(
                "metadata: {name: root}, spec: {source: {blank: {}}, sourceRef: {kind: DataSource, name: x}, storage: {}}",
            ),
            "spec.dataVolumeTemplates[0].spec",
            "Data volume should have either Source or SourceRef, not both",
        ),
        (
            template("metadata: {name: root}, spec: {source: {blank: {}}}"),
            "spec.dataVolumeTemplates[0].spec",
            "Missing Data volume PVC",
        ),
        (
            template("metadata: {name: root}, spec: {source: {blank: {}}, storage: {}, pvc: {}}"),
            "spec.dataVolumeTemplates[0].spec",
            "Duplicate storage definition, both target storage and target pvc defined",
        ),
        (
            template("metadata: {name: root, namespace: far}, spec: {source: {blank: {}}, storage: {}}"),
            "spec.dataVolumeTemplates[0].metadata.namespace",
            "Embedded DataVolume namespace far differs from VM namespace default",
        ),
    ] {
        let causes = validate_vm(&vm(&more));
        assert_eq!(causes.len(), 1, "{more}: {causes:?}");
        assert_eq!(
            (causes[0].field.as_str(), causes[0].message.as_str()),
            (field, message),
            "{more}"
        );
    }
}

#[test]
fn in_a_virtual_machine_the_paths_start_at_the_template() {
    let mut vm = vm("runStrategy: Always");
    vm.spec.template.spec.domain.memory = None;
    vm.spec.template.spec.volumes.clear();
    let fields: Vec<_> = validate_vm(&vm)
        .into_iter()
        .map(|cause| cause.field.to_string())
        .collect();
    assert_eq!(
        fields,
        [
            "spec.template.spec.domain.memory",
            "spec.template.spec.domain.devices.disks[0].name"
        ]
    );
}

#[test]
fn everything_at_once_is_many_causes_and_no_panic() {
    let Ok(Manifest::VirtualMachine(vm)) = parse(include_str!("../parse/everything.yaml")) else {
        panic!()
    };
    assert!(validate_vm(&vm).len() > 20);
}
