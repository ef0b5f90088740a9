//! What a machine says itself that is its instance type's to say. Pure.

use std::collections::BTreeMap;

use nacelle_api::domain::{Cpu, ResourceRequirements};
use nacelle_api::{Cause, FieldPath, InstancetypeSpec, VirtualMachineInstanceSpec};

use super::{invalid, template};

/// Every such field of the template.
pub(super) fn find(
    instancetype: &InstancetypeSpec,
    spec: &VirtualMachineInstanceSpec,
    annotations: Option<&BTreeMap<String, String>>,
) -> Vec<Cause> {
    let domain = &spec.domain;
    let devices = &domain.devices;
    let none = Cpu::default();
    let cpu = domain.cpu.as_ref().unwrap_or(&none);
    let memory = domain.memory.as_ref();
    let theirs = &instancetype.cpu;
    let resource = |list: fn(&ResourceRequirements) -> &BTreeMap<_, _>, name: &str| {
        domain
            .resources
            .as_ref()
            .is_some_and(|resources| list(resources).contains_key(name))
    };
    let requests = |name| resource(|resources| &resources.requests, name);
    let limits = |name| resource(|resources| &resources.limits, name);
    // To the real API, 0 and absent are the same.
    let counts = |count: Option<u32>| count.is_some_and(|count| count != 0);
    let on = |flag: Option<bool>| flag == Some(true);
    let both = |ours: bool, theirs: bool| ours && theirs;

    let table = [
        (
            "nodeSelector",
            both(
                !spec.node_selector.is_empty(),
                !instancetype.node_selector.is_empty(),
            ),
        ),
        (
            "schedulerName",
            both(
                spec.scheduler_name.is_some(),
                instancetype.scheduler_name.is_some(),
            ),
        ),
        ("domain.resources.requests.cpu", requests("cpu")),
        ("domain.resources.limits.cpu", limits("cpu")),
        ("domain.cpu.sockets", counts(cpu.sockets)),
        ("domain.cpu.cores", counts(cpu.cores)),
        ("domain.cpu.threads", counts(cpu.threads)),
        (
            "domain.cpu.model",
            both(cpu.model.is_some(), theirs.model.is_some()),
        ),
        (
            "domain.cpu.dedicatedCPUPlacement",
            both(
                on(cpu.dedicated_cpu_placement),
                theirs.dedicated_cpu_placement.is_some(),
            ),
        ),
        (
            "domain.cpu.isolateEmulatorThread",
            both(
                on(cpu.isolate_emulator_thread),
                theirs.isolate_emulator_thread.is_some(),
            ),
        ),
        ("domain.cpu.numa", both(cpu.numa.is_some(), theirs.numa.is_some())),
        (
            "domain.cpu.realtime",
            both(cpu.realtime.is_some(), theirs.realtime.is_some()),
        ),
        (
            "domain.memory.guest",
            memory.is_some_and(|memory| memory.guest.is_some()),
        ),
        (
            "domain.memory.hugepages",
            both(
                memory.is_some_and(|memory| memory.hugepages.is_some()),
                instancetype.memory.hugepages.is_some(),
            ),
        ),
        (
            "domain.memory.maxGuest",
            both(
                memory.is_some_and(|memory| memory.max_guest.is_some()),
                instancetype.memory.max_guest.is_some(),
            ),
        ),
        ("domain.resources.requests.memory", requests("memory")),
        ("domain.resources.limits.memory", limits("memory")),
        (
            "domain.ioThreadsPolicy",
            both(
                domain.io_threads_policy.is_some(),
                instancetype.io_threads_policy.is_some(),
            ),
        ),
        (
            "domain.ioThreads",
            both(domain.io_threads.is_some(), instancetype.io_threads.is_some()),
        ),
        (
            "domain.launchSecurity",
            both(
                domain.launch_security.is_some(),
                instancetype.launch_security.is_some(),
            ),
        ),
        (
            "domain.devices.gpus",
            both(!devices.gpus.is_empty(), !instancetype.gpus.is_empty()),
        ),
        (
            "domain.devices.hostDevices",
            both(
                !devices.host_devices.is_empty(),
                !instancetype.host_devices.is_empty(),
            ),
        ),
    ];
    let base = template();
    let fields = table
        .into_iter()
        .filter(|(_, conflict)| *conflict)
        .map(|(field, _)| base.field(field));
    let differ = |(key, value): &(&String, &String)| {
        annotations
            .and_then(|ours| ours.get(*key))
            .is_some_and(|ours| ours != *value)
    };
    let annotations = instancetype.annotations.iter().filter(differ);
    let annotations = annotations.map(|(key, _)| FieldPath::new("annotations").field(key));
    fields.chain(annotations).map(conflict).collect()
}

fn conflict(field: FieldPath) -> Cause {
    let message = format!("VM field(s) {field} conflicts with selected instance type");
    invalid(field, message)
}
