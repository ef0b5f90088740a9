//! Manifests and the machines that they make. Each `golden/NAME.yaml` has its plan beside it in `NAME.plan`; with
//! `UPDATE_GOLDEN=1` in the environment the plans are written anew, to be looked at before they are committed.

use std::fs;
use std::path::Path;

use nacelle_vmm::config::{CacheMode, DiskIo};

use super::*;
use crate::Error;
use crate::cli::run_arguments;
use crate::run::read;

fn plan_of(yaml: &str, words: &[&str]) -> Result<Plan> {
    let words: Vec<_> = ["vm.yaml"].iter().chain(words).copied().collect();
    read("vm.yaml", yaml, &run_arguments(&words))
}

/// An instance with `fields` in its domain, and a kernel.
fn domain(fields: &str) -> Plan {
    let yaml = format!(
        "{{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, metadata: {{name: a}}, spec: {{domain: {{{fields}}}}}}}"
    );
    plan_of(&yaml, &["--kernel", "vmlinux"]).unwrap()
}

/// The plan as text, bytes beside each other instead of one a line.
fn text(plan: &Plan) -> String {
    let mut text = String::new();
    for line in format!("{plan:#?}\n").lines() {
        let number = line
            .trim()
            .strip_suffix(',')
            .is_some_and(|number| number.parse::<u8>().is_ok());
        if number && text.ends_with(['[', ' ']) {
            text.push_str(line.trim());
            text.push(' ');
        } else if number {
            text.truncate(text.trim_end().len());
            text.push_str(line.trim());
            text.push(' ');
        } else if text.ends_with(' ') {
            text.truncate(text.trim_end_matches([' ', ',']).len());
            text.push_str(line.trim());
            text.push('\n');
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[test]
fn manifests_make_the_machines_that_they_made_before() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/convert/golden");
    for (name, words) in [
        ("ledger", &["--kernel", "vmlinuz", "--initrd", "initrd.img"][..]),
        ("everything", &[]),
    ] {
        let yaml = fs::read_to_string(golden.join(format!("{name}.yaml"))).unwrap();
        let plan = text(&plan_of(&yaml, words).unwrap());
        let file = golden.join(format!("{name}.plan"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, plan).unwrap();
        } else {
            assert_eq!(plan, fs::read_to_string(&file).unwrap(), "{name}");
        }
    }
}

#[test]
fn memory_is_rounded_up_to_what_it_comes_in() {
    for (fields, mib) in [
        ("devices: {}, memory: {guest: 128Mi}", 128),
        ("devices: {}, memory: {guest: 129Mi}", 130),
        ("devices: {}, memory: {guest: 1G}", 954),
        ("devices: {}, resources: {requests: {memory: 1Gi}}", 1024),
        (
            "devices: {}, memory: {guest: 2Gi, hugepages: {pageSize: 1Gi}}",
            2048,
        ),
    ] {
        assert_eq!(domain(fields).memory.size, mib << 20, "{fields}");
    }
}

#[test]
fn a_machine_keeps_its_identity_and_others_have_another() {
    let identity = |name: &str| {
        let yaml = format!(
            "{{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, metadata: {{name: {name}}}, \
             spec: {{domain: {{memory: {{guest: 1Gi}}, devices: {{autoattachVSOCK: true}}}}}}}}"
        );
        let plan = plan_of(&yaml, &["--kernel", "k"]).unwrap();
        (plan.identity.uuid, plan.nets[0].mac, plan.vsock.unwrap())
    };
    assert_eq!(identity("a"), identity("a"));
    let ((uuid, mac, cid), (other_uuid, other_mac, other_cid)) = (identity("a"), identity("b"));
    assert!(uuid != other_uuid && mac != other_mac && cid != other_cid);
    // Version 5, and the variant of RFC 9562.
    assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (5, 2));
}

#[test]
fn what_nobody_mentions_is_attached_as_in_kubevirt() {
    let plan = domain("devices: {}, memory: {guest: 1Gi}");
    assert!(plan.balloon.is_some_and(|balloon| balloon.free_page_reporting));
    assert!(plan.serial_console && !plan.rng && plan.vsock.is_none());
    assert_eq!(plan.nets.len(), 1);
    let plan = domain(
        "memory: {guest: 1Gi}, devices: {autoattachMemBalloon: false, autoattachSerialConsole: false, \
         autoattachPodInterface: false, rng: {}}",
    );
    assert!(plan.balloon.is_none() && !plan.serial_console && plan.rng && plan.nets.is_empty());
}

#[test]
fn a_disk_is_driven_as_its_manifest_says() {
    let disk = |fields: &str| {
        let yaml = format!(
            "{{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, metadata: {{name: a}}, spec: {{domain: \
             {{memory: {{guest: 1Gi}}, devices: {{disks: [{{name: d, disk: {{bus: virtio}}{fields}}}]}}}}, \
             volumes: [{{name: d, persistentVolumeClaim: {{claimName: c}}}}]}}}}"
        );
        plan_of(&yaml, &["--kernel", "k"]).map(|mut plan| plan.disks.remove(0))
    };
    let usual = disk("").unwrap();
    assert_eq!(
        (usual.io, usual.shared, usual.cache),
        (DiskIo::Native, false, None)
    );
    assert_eq!(usual.block_size, BlockSize::Usual);
    assert_eq!(disk(", io: native").unwrap().io, DiskIo::Native);
    assert_eq!(disk(", io: threads").unwrap().io, DiskIo::Threads);
    assert_eq!(
        disk(", blockSize: {matchVolume: {}}").unwrap().block_size,
        BlockSize::OfVolume
    );
    let off = disk(", blockSize: {matchVolume: {enabled: false}}").unwrap();
    assert_eq!(off.block_size, BlockSize::Usual);
    let custom = ", blockSize: {custom: {logical: 512, physical: 4096, discardGranularity: 1048576}}";
    let custom = disk(custom).unwrap();
    assert_eq!(custom.block_size, BlockSize::Custom(512, 4096));
    assert_eq!(custom.discard_granularity, Some(1 << 20));
    // It is written past the page cache, which the hosts do not share.
    let shared = disk(", shareable: true").unwrap();
    assert_eq!((shared.shared, shared.cache), (true, Some(CacheMode::None)));
    let error = disk(", shareable: true, cache: writeback").unwrap_err();
    let Error::Refused { causes, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(
        causes[0].message,
        "spec.domain.devices.disks[0].cache 'writeback' is not supported by this version of Nacelle; a shareable disk is \
         written past the page cache: use none"
    );
}

#[test]
fn io_threads_follow_the_policy() {
    let disks = |count: usize, dedicated: usize, policy: &str| {
        let disk = |index: usize| {
            let own = if index < dedicated {
                ", dedicatedIOThread: true"
            } else {
                ""
            };
            format!("{{name: d{index}, disk: {{bus: virtio}}{own}}}")
        };
        let volume = |index: usize| format!("{{name: d{index}, emptyDisk: {{capacity: 1Gi}}}}");
        let list = |of: &dyn Fn(usize) -> String| (0..count).map(of).collect::<Vec<_>>().join(", ");
        let yaml = format!(
            "{{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, metadata: {{name: a}}, spec: {{domain: \
             {{{policy}memory: {{guest: 1Gi}}, devices: {{autoattachPodInterface: false, disks: [{}]}}}}, volumes: [{}]}}}}",
            list(&disk),
            list(&volume)
        );
        plan_of(&yaml, &["--kernel", "k"]).unwrap().io_threads
    };
    assert_eq!(disks(0, 0, ""), IoThreads::Shared);
    assert_eq!(disks(3, 0, ""), IoThreads::Shared);
    assert_eq!(disks(3, 2, ""), IoThreads::Pool(3));
    assert_eq!(disks(2, 2, ""), IoThreads::Pool(2));
    assert_eq!(disks(4, 0, "ioThreadsPolicy: shared, "), IoThreads::Shared);
    // One vCPU: two threads at most.
    assert_eq!(disks(4, 0, "ioThreadsPolicy: auto, "), IoThreads::Pool(2));
}

#[test]
fn host_names_are_labels() {
    assert_eq!(hostname(None, "web.example"), "web");
    assert_eq!(hostname(Some("given"), "web"), "given");
    assert_eq!(hostname(None, &"a".repeat(70)), "a".repeat(63));
    assert_eq!(hostname(None, &format!("{}-b", "a".repeat(62))), "a".repeat(62));
}

#[test]
fn what_cannot_be_is_refused_with_what_to_do() {
    let ledger = include_str!("golden/ledger.yaml");
    let cases: [(String, &str); 4] = [
        (ledger.replace("cores", "coers"), "cannot be used"),
        (
            ledger.replace("bus: virtio", "bus: scsi"),
            "disk.bus 'scsi' is not supported by this version",
        ),
        (
            ledger.replace("name: root, disk", "name: wrong, disk"),
            "disks[0].Name 'wrong' not found.",
        ),
        (
            ledger.replace("metadata: {name: ledger}", "metadata: {}"),
            "give one by --name",
        ),
    ];
    for (yaml, message) in cases {
        let error = plan_of(&yaml, &["--kernel", "k"]).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        if let Error::Parse { source, .. } = error {
            assert!(source.to_string().contains("did you mean `cores`?"), "{source}");
        }
    }
}

#[test]
fn without_a_kernel_the_firmware_looks_at_the_disks_in_boot_order() {
    let machine = |disks: &str| {
        let yaml = format!(
            "{{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, metadata: {{name: a}}, spec: {{domain: \
             {{memory: {{guest: 1Gi}}, devices: {{disks: [{disks}]}}}}, volumes: [\
             {{name: a, emptyDisk: {{capacity: 1Gi}}}}, {{name: b, emptyDisk: {{capacity: 1Gi}}}}, \
             {{name: c, emptyDisk: {{capacity: 1Gi}}}}]}}}}"
        );
        plan_of(&yaml, &["--boot-menu", "5"]).unwrap().boot
    };
    let wishes = |disks: &[usize]| {
        let disks = disks.to_vec();
        Boot::Disk(FirmwareWishes { disks, menu: 5 })
    };
    assert_eq!(machine("{name: a}, {name: b}, {name: c}"), wishes(&[0, 1, 2]));
    let ordered = machine("{name: a, bootOrder: 3}, {name: b}, {name: c, bootOrder: 1}");
    assert_eq!(ordered, wishes(&[2, 0]));
    let Boot::Disk(wishes) = ordered else {
        panic!("{ordered:?}");
    };
    assert_eq!(wishes.cmdline(), "disks=2,0 wait=5");
    assert_eq!(FirmwareWishes { menu: 0, ..wishes }.cmdline(), "disks=2,0");
}

#[test]
fn a_machine_with_neither_kernel_nor_disk_is_refused() {
    let yaml = "{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, metadata: {name: a}, spec: {domain: \
                {memory: {guest: 1Gi}, devices: {}}}}";
    let error = plan_of(yaml, &[]).unwrap_err().to_string();
    assert!(
        error.contains("machine a has nothing to boot: give it a disk"),
        "{error}"
    );
}
