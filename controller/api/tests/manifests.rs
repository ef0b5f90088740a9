//! Whole manifests on the way that the launcher takes them: parse, defaults, validate, support.
#![expect(
    clippy::expect_used,
    reason = "clippy's leave for tests does not reach helpers of integration tests"
)]

use nacelle_api::vmi::VirtualMachineInstanceSpec;
use nacelle_api::{Cause, FieldPath, Manifest, Support, defaults, parse, support, validate_vm, validate_vmi};

fn read(text: &str) -> (VirtualMachineInstanceSpec, Vec<Cause>, Support) {
    match parse(text).expect("a manifest") {
        Manifest::VirtualMachine(mut vm) => {
            defaults::apply(&mut vm.spec.template.spec);
            let causes = validate_vm(&vm);
            let found = support(&vm.spec.template.spec, &FieldPath::new("spec.template.spec"));
            (vm.spec.template.spec, causes, found)
        }
        Manifest::VirtualMachineInstance(mut vmi) => {
            defaults::apply(&mut vmi.spec);
            let causes = validate_vmi(&vmi);
            let found = support(&vmi.spec, &FieldPath::new("spec"));
            (vmi.spec, causes, found)
        }
    }
}

#[test]
fn the_form_that_people_have_is_served_in_full() {
    let (spec, causes, found) = read(include_str!("manifests/ledger.yaml"));
    assert_eq!(causes, []);
    assert_eq!(found, Support::default());
    assert_eq!(spec.domain.cpu.map(|cpu| cpu.vcpus()), Some(2));
}

#[test]
fn a_cloud_image_is_served_and_its_placement_left_to_the_cluster() {
    let (spec, causes, found) = read(include_str!("manifests/cloud.yaml"));
    assert_eq!(causes, []);
    assert_eq!(
        (found.unsupported.as_slice(), found.warnings.as_slice()),
        (&[][..], &[][..])
    );
    assert_eq!(
        found.note().as_deref(),
        Some("these fields matter only in a cluster: nodeSelector")
    );
    assert_eq!(spec.domain.cpu.map(|cpu| cpu.vcpus()), Some(2));
    assert_eq!(
        spec.domain
            .memory
            .and_then(|memory| memory.guest)
            .map(|guest| guest.0)
            .as_deref(),
        Some("1024M")
    );
    let disks: Vec<_> = spec
        .domain
        .devices
        .disks
        .iter()
        .map(|disk| disk.name.as_str())
        .collect();
    assert_eq!(disks, ["system", "seed", "scratch"]);
}

#[test]
fn a_kernel_without_a_disk_in_json() {
    let (spec, causes, found) = read(include_str!("manifests/kernel.json"));
    assert_eq!(causes, []);
    assert_eq!(found, Support::default());
    assert!(spec.networks.is_empty());
}

#[test]
fn a_desktop_is_refused_with_every_reason() {
    let (_, causes, found) = read(include_str!("manifests/desktop.yaml"));
    let fields = |causes: &[Cause]| {
        causes
            .iter()
            .map(|cause| cause.field.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(fields(&causes), ["spec.domain.features.smm"]);
    assert_eq!(
        fields(&found.unsupported),
        [
            "spec.domain.cpu.model",
            "spec.domain.firmware.bootloader",
            "spec.domain.features.hyperv",
            "spec.domain.devices.tpm",
            "spec.domain.devices.disks[0].disk.bus",
            "spec.domain.devices.interfaces[0].model",
        ]
    );
    assert_eq!(found.warnings.len(), 5, "{:?}", found.warnings);
}
