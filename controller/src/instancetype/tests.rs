use nacelle_api::VirtualMachineSpec;
use nacelle_api::vm::{
    ControllerRevisionRef, InstancetypeMatcher, InstancetypeStatusRef, VirtualMachineStatus,
};

use super::*;

fn instancetype(yaml: &str) -> InstancetypeSpec {
    serde_saphyr::from_str(yaml).unwrap()
}

fn preference(yaml: &str) -> PreferenceSpec {
    serde_saphyr::from_str(yaml).unwrap()
}

/// A machine whose template's spec, beside its devices, is as given.
fn vm(spec: &str) -> VirtualMachine {
    let text = format!("{{runStrategy: Halted, template: {{spec: {spec}}}}}");
    VirtualMachine::new("a", serde_saphyr::from_str(&text).unwrap())
}

fn types(instancetype: Option<&str>, preference: Option<&str>) -> Types {
    Types {
        instancetype: instancetype.map(self::instancetype),
        preference: preference.map(self::preference),
    }
}

fn expanded(spec: &str, with: &Types) -> nacelle_api::VirtualMachineInstanceSpec {
    let mut vm = vm(spec);
    expand(&mut vm, with, false).unwrap();
    vm.spec.template.spec
}

const SMALL: &str = "{cpu: {guest: 4}, memory: {guest: 2Gi}}";
const EMPTY: &str = "{domain: {devices: {}}}";

#[test]
fn vcpus_are_shown_as_the_preference_wants() {
    #[rustfmt::skip]
    let table = [
        (1, "{cpu: {preferredCPUTopology: cores}}", (1, 1, 1)),
        (4, "{}", (4, 1, 1)),
        (4, "{cpu: {preferredCPUTopology: sockets}}", (4, 1, 1)),
        (4, "{cpu: {preferredCPUTopology: any}}", (4, 1, 1)),
        (4, "{cpu: {preferredCPUTopology: cores}}", (1, 4, 1)),
        (4, "{cpu: {preferredCPUTopology: preferCores}}", (1, 4, 1)),
        (4, "{cpu: {preferredCPUTopology: threads}}", (1, 1, 4)),
        (8, "{cpu: {preferredCPUTopology: spread}}", (4, 2, 1)),
        (8, "{cpu: {preferredCPUTopology: preferSpread}, preferSpreadSocketToCoreRatio: 4}", (2, 4, 1)),
        (8, "{cpu: {preferredCPUTopology: spread, spreadOptions: {ratio: 8}}, preferSpreadSocketToCoreRatio: 4}", (1, 8, 1)),
        (8, "{cpu: {preferredCPUTopology: spread, spreadOptions: {across: CoresThreads}}}", (1, 4, 2)),
        (8, "{cpu: {preferredCPUTopology: spread, spreadOptions: {across: SocketsCoresThreads}}}", (2, 2, 2)),
    ];
    for (vcpus, preferred, (sockets, cores, threads)) in table {
        let with = Types {
            instancetype: Some(instancetype(&format!(
                "{{cpu: {{guest: {vcpus}}}, memory: {{guest: 1Gi}}}}"
            ))),
            preference: Some(preference(preferred)),
        };
        let cpu = expanded(EMPTY, &with).domain.cpu.unwrap();
        assert_eq!(
            (cpu.sockets, cpu.cores, cpu.threads),
            (Some(sockets), Some(cores), Some(threads)),
            "{vcpus} {preferred}"
        );
    }
}

#[test]
fn vcpus_that_cannot_be_spread_are_refused() {
    #[rustfmt::skip]
    let table = [
        (3, "SocketsCores", "3 vCPUs provided by the instance type are not divisible by the Spec.PreferSpreadSocketToCoreRatio or Spec.CPU.PreferSpreadOptions.Ratio of 2 provided by the preference"),
        (5, "CoresThreads", "5 vCPUs provided by the instance type are not divisible by the number of threads per core 2"),
        (6, "SocketsCoresThreads", "6 vCPUs provided by the instance type are not divisible by the number of threads per core 2 and Spec.PreferSpreadSocketToCoreRatio or Spec.CPU.PreferSpreadOptions.Ratio of 2"),
    ];
    for (vcpus, across, message) in table {
        let with = types(
            Some(&format!("{{cpu: {{guest: {vcpus}}}, memory: {{guest: 1Gi}}}}")),
            Some(&format!(
                "{{cpu: {{preferredCPUTopology: spread, spreadOptions: {{across: {across}}}}}}}"
            )),
        );
        let causes = expand(&mut vm(EMPTY), &with, false).unwrap_err();
        assert_eq!(causes[0].message, message);
        assert_eq!(causes[0].field.as_str(), "instancetype.spec.cpu.guest");
    }
}

#[test]
fn an_instance_type_brings_what_it_says() {
    let text = "{cpu: {guest: 2, model: host-passthrough, maxSockets: 8}, \
        memory: {guest: 1Gi, overcommitPercent: 25, maxGuest: 4Gi}, nodeSelector: {disk: fast}, schedulerName: mine, \
        ioThreadsPolicy: auto, annotations: {a: b}}";
    let mut vm = vm(EMPTY);
    expand(&mut vm, &types(Some(text), None), false).unwrap();
    let spec = &vm.spec.template.spec;
    let cpu = spec.domain.cpu.as_ref().unwrap();
    assert_eq!(
        (cpu.model.as_deref(), cpu.max_sockets),
        (Some("host-passthrough"), Some(8))
    );
    let memory = spec.domain.memory.as_ref().unwrap();
    assert_eq!(memory.guest.as_ref().unwrap().0, "1Gi");
    assert_eq!(memory.max_guest.as_ref().unwrap().0, "4Gi");
    let requests = &spec.domain.resources.as_ref().unwrap().requests;
    assert_eq!(requests["memory"].0, (768 << 20).to_string());
    assert_eq!(spec.node_selector["disk"], "fast");
    assert_eq!(spec.scheduler_name.as_deref(), Some("mine"));
    assert_eq!(spec.domain.io_threads_policy.as_deref(), Some("auto"));
    let metadata = vm.spec.template.metadata.as_ref().unwrap();
    assert_eq!(metadata.annotations.as_ref().unwrap()["a"], "b");
}

#[test]
fn what_is_the_instance_types_to_say_is_not_the_machines() {
    let rich = "{cpu: {guest: 4, model: host-model, dedicatedCPUPlacement: true}, memory: {guest: 2Gi, maxGuest: 4Gi}, \
        nodeSelector: {a: b}, schedulerName: s, ioThreadsPolicy: auto}";
    #[rustfmt::skip]
    let table = [
        (SMALL, "{domain: {cpu: {cores: 1}, devices: {}}}", "domain.cpu.cores"),
        (SMALL, "{domain: {cpu: {sockets: 2}, devices: {}}}", "domain.cpu.sockets"),
        (SMALL, "{domain: {cpu: {threads: 2}, devices: {}}}", "domain.cpu.threads"),
        (SMALL, "{domain: {memory: {guest: 1Gi}, devices: {}}}", "domain.memory.guest"),
        (SMALL, "{domain: {resources: {requests: {memory: 1Gi}}, devices: {}}}", "domain.resources.requests.memory"),
        (SMALL, "{domain: {resources: {limits: {memory: 1Gi}}, devices: {}}}", "domain.resources.limits.memory"),
        (SMALL, "{domain: {resources: {requests: {cpu: 1}}, devices: {}}}", "domain.resources.requests.cpu"),
        (SMALL, "{domain: {resources: {limits: {cpu: 1}}, devices: {}}}", "domain.resources.limits.cpu"),
        (rich, "{domain: {cpu: {model: host-model}, devices: {}}}", "domain.cpu.model"),
        (rich, "{domain: {cpu: {dedicatedCpuPlacement: true}, devices: {}}}", "domain.cpu.dedicatedCPUPlacement"),
        (rich, "{domain: {memory: {maxGuest: 1Gi}, devices: {}}}", "domain.memory.maxGuest"),
        (rich, "{domain: {devices: {}}, nodeSelector: {c: d}}", "nodeSelector"),
        (rich, "{domain: {devices: {}}, schedulerName: t}", "schedulerName"),
        (rich, "{domain: {ioThreadsPolicy: shared, devices: {}}}", "domain.ioThreadsPolicy"),
    ];
    for (instancetype, spec, field) in table {
        let causes = expand(&mut vm(spec), &types(Some(instancetype), None), false).unwrap_err();
        assert_eq!(causes.len(), 1, "{field}: {causes:?}");
        let path = format!("spec.template.spec.{field}");
        assert_eq!(causes[0].field.as_str(), path);
        assert_eq!(
            causes[0].message,
            format!("VM field(s) {path} conflicts with selected instance type")
        );
    }
    // Where the instance type says nothing, and where 0 says nothing.
    for spec in [
        "{domain: {cpu: {model: host-model, cores: 0}, devices: {}}}",
        "{domain: {devices: {}}, nodeSelector: {c: d}}",
        "{domain: {memory: {hugepages: {pageSize: 2Mi}}, devices: {}}}",
    ] {
        expand(&mut vm(spec), &types(Some(SMALL), None), false).unwrap();
    }
}

#[test]
fn an_annotation_has_one_value() {
    let mut vm = vm(EMPTY);
    let annotations = BTreeMap::from([("a".to_owned(), "c".to_owned())]);
    vm.spec.template.metadata = Some(ObjectMeta {
        annotations: Some(annotations.clone()),
        ..ObjectMeta::default()
    });
    let text = "{cpu: {guest: 1}, memory: {guest: 1Gi}, annotations: {a: b}}";
    let causes = expand(&mut vm, &types(Some(text), None), false).unwrap_err();
    assert_eq!(causes[0].field.as_str(), "annotations.a");
    // What is only preferred gives way.
    expand(&mut vm, &types(None, Some("{annotations: {a: b, d: e}}")), false).unwrap();
    let now = vm.spec.template.metadata.unwrap().annotations.unwrap();
    assert_eq!((now["a"].as_str(), now["d"].as_str()), ("c", "e"));
}

#[test]
fn a_preference_fills_in_what_the_machine_leaves_open() {
    let preferred = "{devices: {preferredDiskBus: virtio, preferredCdromBus: scsi, preferredInterfaceModel: virtio, \
        preferredRng: {}, preferredDiskCache: none, preferredDiskDedicatedIoThread: true, \
        preferredAutoattachGraphicsDevice: false}, \
        features: {preferredAcpi: {}}, firmware: {preferredEfi: {secureBoot: false}}, \
        machine: {preferredMachineType: pc-q35-rhel9.6.0}, clock: {preferredClockOffset: {utc: {}}}, \
        preferredSubdomain: s, preferredTerminationGracePeriodSeconds: 7, preferredArchitecture: amd64}";
    let with = types(None, Some(preferred));
    let spec = expanded(
        "{domain: {devices: {disks: [{name: cd, cdrom: {}}, {name: own, disk: {bus: sata}, cache: writeback}]}}, \
          volumes: [{name: unnamed, emptyDisk: {capacity: 1Mi}}]}",
        &with,
    );
    let devices = &spec.domain.devices;
    let bus = |index: usize| {
        devices.disks[index]
            .disk
            .as_ref()
            .and_then(|disk| disk.bus.as_deref())
    };
    assert_eq!(
        devices.disks[0].cdrom.as_ref().unwrap().bus.as_deref(),
        Some("scsi")
    );
    assert_eq!(bus(1), Some("sata"));
    assert_eq!(devices.disks[1].cache.as_deref(), Some("writeback"));
    assert_eq!(devices.disks[1].dedicated_io_thread, None);
    assert_eq!(devices.disks[2].name, "unnamed");
    assert_eq!(bus(2), Some("virtio"));
    assert_eq!(devices.disks[2].cache.as_deref(), Some("none"));
    assert_eq!(devices.disks[2].dedicated_io_thread, Some(true));
    assert_eq!(devices.interfaces[0].model.as_deref(), Some("virtio"));
    assert!(devices.interfaces[0].bridge.is_some());
    assert!(devices.rng.is_some());
    assert_eq!(devices.autoattach_graphics_device, Some(false));
    let loader = spec
        .domain
        .firmware
        .as_ref()
        .unwrap()
        .bootloader
        .as_ref()
        .unwrap();
    assert_eq!(loader.efi.as_ref().unwrap().secure_boot, Some(false));
    assert_eq!(spec.domain.machine.unwrap().type_, "pc-q35-rhel9.6.0");
    assert!(spec.domain.clock.unwrap().utc.is_some());
    assert_eq!(spec.subdomain.as_deref(), Some("s"));
    assert_eq!(spec.termination_grace_period_seconds, Some(7));
    assert_eq!(spec.architecture.as_deref(), Some("amd64"));

    let own = expanded(
        "{domain: {devices: {autoattachGraphicsDevice: true}, machine: {type: q35}, firmware: {bootloader: {bios: {}}}, \
          clock: {timezone: Europe/Berlin}}, subdomain: t, terminationGracePeriodSeconds: 0}",
        &with,
    );
    assert_eq!(own.domain.devices.autoattach_graphics_device, Some(true));
    assert_eq!(own.domain.machine.unwrap().type_, "q35");
    assert!(own.domain.firmware.unwrap().bootloader.unwrap().efi.is_none());
    assert!(own.domain.clock.unwrap().utc.is_none());
    assert_eq!(own.subdomain.as_deref(), Some("t"));
    assert_eq!(own.termination_grace_period_seconds, Some(0));
}

#[test]
fn no_interface_is_made_where_none_is_preferred() {
    let with = types(None, Some("{devices: {preferredAutoattachPodInterface: false}}"));
    assert!(expanded(EMPTY, &with).domain.devices.interfaces.is_empty());
    let mut machine = vm(EMPTY);
    expand(&mut machine, &types(None, Some("{}")), true).unwrap();
    let interface = &machine.spec.template.spec.domain.devices.interfaces[0];
    assert!(interface.masquerade.is_some() && interface.bridge.is_none());
}

#[test]
fn a_machine_has_what_its_preference_requires_or_is_refused() {
    let two = "{requirements: {cpu: {guest: 2}, memory: {guest: 1Gi}}";
    #[rustfmt::skip]
    let table = [
        (Some("{cpu: {guest: 1}, memory: {guest: 2Gi}}"), format!("{two}}}"), EMPTY, "spec.instancetype",
            "insufficient CPU resources of 1 vCPU provided by instance type, preference requires 2 vCPU"),
        (Some("{cpu: {guest: 2}, memory: {guest: 512Mi}}"), format!("{two}}}"), EMPTY, "spec.instancetype",
            "insufficient Memory resources of 512Mi provided by instance type, preference requires 1Gi"),
        (None, format!("{two}}}"), "{domain: {cpu: {cores: 2}, memory: {guest: 2Gi}, devices: {}}}", "spec.template.spec.domain.cpu.sockets",
            "insufficient CPU resources of 1 vCPU provided by VirtualMachine, preference requires 2 vCPU provided as sockets"),
        (None, format!("{two}, cpu: {{preferredCPUTopology: any}}}}"), "{domain: {cpu: {cores: 2}, memory: {guest: 64Mi}, devices: {}}}", "spec.template.spec.domain.memory",
            "insufficient Memory resources of 64Mi provided by VirtualMachine, preference requires 1Gi"),
        (None, "{requirements: {architecture: arm64}}".to_owned(), EMPTY, "spec.template.spec.architecture",
            "preference requires architecture arm64 but amd64 is being requested"),
    ];
    for (instancetype, preferred, spec, field, why) in table {
        let with = types(instancetype, Some(&preferred));
        let mut vm = vm(spec);
        expand(&mut vm, &with, false).unwrap();
        defaults::apply(&mut vm.spec.template.spec);
        let causes = requirements(&vm, &with);
        assert_eq!(causes.len(), 1, "{why}");
        assert_eq!(
            causes[0].message,
            format!("failure checking preference requirements: {why}")
        );
        assert_eq!(causes[0].field.as_str(), field);
    }
    let enough = types(Some(SMALL), Some(&format!("{two}}}")));
    let mut vm = vm(EMPTY);
    expand(&mut vm, &enough, false).unwrap();
    assert!(requirements(&vm, &enough).is_empty());
}

#[test]
fn a_kind_may_be_written_in_many_ways() {
    for (role, asked, name) in [
        (Role::Instancetype, None, "VirtualMachineClusterInstancetype"),
        (Role::Instancetype, Some(""), "VirtualMachineClusterInstancetype"),
        (
            Role::Instancetype,
            Some("virtualmachineinstancetypes"),
            "VirtualMachineInstancetype",
        ),
        (
            Role::Instancetype,
            Some("VirtualMachineInstancetype"),
            "VirtualMachineInstancetype",
        ),
        (Role::Preference, None, "VirtualMachineClusterPreference"),
        (
            Role::Preference,
            Some("VIRTUALMACHINEPREFERENCE"),
            "VirtualMachinePreference",
        ),
    ] {
        assert_eq!(role.kind(asked).unwrap().name, name, "{asked:?}");
    }
    for (role, asked, why) in [
        (
            Role::Instancetype,
            "VirtualMachinePreference",
            "got unexpected kind in InstancetypeMatcher: VirtualMachinePreference",
        ),
        (
            Role::Preference,
            "Pod",
            "got unexpected kind in PreferenceMatcher: Pod",
        ),
    ] {
        assert_eq!(role.kind(Some(asked)).err().unwrap(), why);
    }
}

fn naming(instancetype: &str) -> VirtualMachineSpec {
    let text = format!("{{template: {{spec: {EMPTY}}}, instancetype: {instancetype}}}");
    serde_saphyr::from_str(&text).unwrap()
}

#[test]
fn a_matcher_names_something() {
    let message = |spec: &str, old: Option<&str>| {
        let causes = matcher::check(&naming(spec), old.map(naming).as_ref());
        causes
            .first()
            .map(|cause| (cause.field.to_string(), cause.message.clone()))
    };
    assert_eq!(message("{name: a}", None), None);
    assert_eq!(
        message("{}", None),
        Some((
            "spec.instancetype".to_owned(),
            "Either Name or InferFromVolume should be provided within the instancetype matcher".to_owned()
        ))
    );
    let infers = "{inferFromVolume: root, inferFromVolumeFailurePolicy: Ignore}";
    assert_eq!(message(infers, None), None);
    let (field, _) = message("{inferFromVolume: root, inferFromVolumeFailurePolicy: No}", None).unwrap();
    assert_eq!(field, "spec.instancetype.inferFromVolumeFailurePolicy");
    let (field, said) = message("{name: b, revisionName: r}", Some("{name: a, revisionName: r}")).unwrap();
    assert_eq!(field, "spec.instancetype.revisionName");
    assert_eq!(
        said,
        "the Matcher Name has been updated without updating the RevisionName"
    );
    assert_eq!(message("{name: b}", Some("{name: a, revisionName: r}")), None);

    let mut spec = naming("{name: a}");
    matcher::defaults(&mut spec);
    let kind = spec.instancetype.unwrap().kind;
    assert_eq!(kind.as_deref(), Some("virtualmachineclusterinstancetype"));
    assert_eq!(spec.preference, None);
}

#[test]
fn an_instance_tells_what_it_was_made_of() {
    let mut vm = VirtualMachine::new("a", naming("{name: u1.small}"));
    vm.spec.preference = Some(InstancetypeMatcher {
        name: Some("linux".into()),
        kind: Some("VirtualMachinePreference".into()),
        ..InstancetypeMatcher::default()
    });
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(
        names(&vm),
        [
            pair("kubevirt.io/cluster-instancetype-name", "u1.small"),
            pair("kubevirt.io/preference-name", "linux"),
        ]
    );
}

#[test]
fn a_pin_holds_while_the_spec_names_the_same() {
    let settled = |spec: &str, status: Option<(&str, &str)>| {
        let mut vm = VirtualMachine::new("a", naming(spec));
        vm.status = Some(VirtualMachineStatus {
            instancetype_ref: status.map(|(name, kind)| InstancetypeStatusRef {
                name: Some(name.into()),
                kind: Some(kind.into()),
                controller_revision_ref: Some(ControllerRevisionRef {
                    name: Some("pin".into()),
                }),
                ..InstancetypeStatusRef::default()
            }),
            ..VirtualMachineStatus::default()
        });
        let reference = revision::settled(Role::Instancetype, &vm)?;
        reference.controller_revision_ref?.name
    };
    let cluster = "virtualmachineclusterinstancetype";
    assert_eq!(settled("{name: a}", None), None);
    assert_eq!(settled("{name: a}", Some(("a", cluster))).as_deref(), Some("pin"));
    assert_eq!(
        settled(
            "{name: a, kind: VirtualMachineClusterInstancetype}",
            Some(("a", cluster))
        )
        .as_deref(),
        Some("pin")
    );
    assert_eq!(settled("{name: b}", Some(("a", cluster))), None);
    assert_eq!(
        settled(
            "{name: a, kind: VirtualMachineInstancetype}",
            Some(("a", cluster))
        ),
        None
    );
    assert_eq!(
        settled("{name: a, revisionName: own}", Some(("a", cluster))).as_deref(),
        Some("own")
    );
}

#[test]
fn a_topology_that_nobody_knows_is_refused_and_an_old_name_is_told() {
    let check = |cpu: &str| {
        let (causes, warnings) = check_preference(&preference(&format!("{{cpu: {cpu}}}")));
        let causes: Vec<_> = causes.into_iter().map(|cause| cause.message).collect();
        [causes, warnings].concat().join("|")
    };
    #[rustfmt::skip]
    let table = [
        ("{preferredCPUTopology: cores}", ""),
        ("{preferredCPUTopology: spread, spreadOptions: {across: CoresThreads, ratio: 2}}", ""),
        ("{preferredCPUTopology: rings}", "unknown preferredCPUTopology rings"),
        ("{preferredCPUTopology: preferCores}", "PreferredCPUTopology preferCores is deprecated for removal in a future release, please use cores instead"),
        ("{preferredCPUTopology: spread, spreadOptions: {across: Rooms}}", "across Rooms is not supported"),
        ("{preferredCPUTopology: spread, spreadOptions: {across: CoresThreads, ratio: 4}}", "only a ratio of 2 (1 core 2 threads) is allowed when spreading vCPUs over cores and threads"),
    ];
    for (cpu, said) in table {
        assert_eq!(check(cpu), said, "{cpu}");
    }
}

#[test]
fn a_revision_has_the_name_and_the_labels_that_people_look_for() {
    let mut vm = VirtualMachine::new("a", naming("{name: u1.small}"));
    vm.metadata.uid = Some("vm-uid".into());
    vm.metadata.namespace = Some("n".into());
    let kind = Role::Instancetype.kind(None).unwrap();
    let mut object = kube::api::DynamicObject::new("u1.small", &kind.resource());
    object.metadata.uid = Some("uid".into());
    object.metadata.generation = Some(3);
    object.metadata.labels = Some(BTreeMap::from([("left".to_owned(), "out".to_owned())]));
    object.data = serde_json::json!({"spec": {"cpu": {"guest": 1}, "memory": {"guest": "1Gi"}}});
    let record = revision::record(&vm, &object, kind).unwrap();
    assert_eq!(record.metadata.name.as_deref(), Some("a-u1.small-v1beta1-uid-3"));
    assert_eq!(
        record.metadata.owner_references.as_ref().unwrap()[0].uid,
        "vm-uid"
    );
    let labels = record.metadata.labels.unwrap();
    for (key, value) in [
        ("generation", "3"),
        ("kind", "VirtualMachineClusterInstancetype"),
        ("name", "u1.small"),
        ("uid", "uid"),
        ("version", "v1beta1"),
    ] {
        assert_eq!(labels[&format!("instancetype.kubevirt.io/object-{key}")], value);
    }
    let data = record.data.0;
    assert_eq!(data["kind"], "VirtualMachineClusterInstancetype");
    assert_eq!(data["spec"]["cpu"]["guest"], 1);
    assert_eq!(data["metadata"].get("labels"), None);
}

#[test]
fn the_common_set_is_understood_and_goes_together() {
    let text = include_str!("../../../deploy/instancetypes.yaml");
    let documents: Vec<serde_json::Value> = text
        .split("---\n")
        .map(|document| serde_saphyr::from_str(document).unwrap())
        .collect();
    let of = |suffix: &str| {
        let ours = |document: &&serde_json::Value| document["kind"].as_str().unwrap().ends_with(suffix);
        documents
            .iter()
            .filter(ours)
            .map(|document| document["spec"].clone())
            .collect::<Vec<_>>()
    };
    let (instancetypes, preferences) = (of("Instancetype"), of("Preference"));
    assert_eq!(instancetypes.len() + preferences.len(), documents.len());
    for instancetype in &instancetypes {
        for preference in &preferences {
            let with = Types {
                instancetype: Some(serde_json::from_value(instancetype.clone()).unwrap()),
                preference: Some(serde_json::from_value(preference.clone()).unwrap()),
            };
            assert!(check_preference(with.preference.as_ref().unwrap()).0.is_empty());
            let spec = expanded(EMPTY, &with);
            let found = nacelle_api::support(&spec, &template());
            assert_eq!(found.unsupported, []);
        }
    }
}
