//! Whether a machine has what its preference requires. Pure.

use nacelle_api::domain::Cpu;
use nacelle_api::preference::{CpuRequirement, MemoryRequirement, PreferenceRequirements};
use nacelle_api::{
    Cause, CauseKind, FieldPath, InstancetypeSpec, PreferenceSpec, VirtualMachineInstanceSpec, quantity,
};

use super::{template, topology};

/// The first thing that it lacks. The spec is complete.
pub(super) fn check(
    instancetype: Option<&InstancetypeSpec>,
    preference: &PreferenceSpec,
    spec: &VirtualMachineInstanceSpec,
) -> Vec<Cause> {
    let Some(PreferenceRequirements {
        cpu,
        memory,
        architecture,
    }) = &preference.requirements
    else {
        return Vec::new();
    };
    let lacking = cpu
        .as_ref()
        .and_then(|required| lacks_cpus(required, instancetype, preference, spec))
        .or_else(|| {
            memory
                .as_ref()
                .and_then(|required| lacks_memory(required, instancetype, spec))
        })
        .or_else(|| {
            architecture
                .as_ref()
                .and_then(|required| is_another(required, spec))
        });
    lacking.into_iter().map(cause).collect()
}

fn cause((field, why): (FieldPath, String)) -> Cause {
    Cause {
        kind: CauseKind::FieldValueNotFound,
        message: format!("failure checking preference requirements: {why}"),
        field,
    }
}

fn lacks_cpus(
    required: &CpuRequirement,
    instancetype: Option<&InstancetypeSpec>,
    preference: &PreferenceSpec,
    spec: &VirtualMachineInstanceSpec,
) -> Option<(FieldPath, String)> {
    let required = required.guest;
    if let Some(instancetype) = instancetype {
        let provided = instancetype.cpu.guest;
        return (provided < required).then(|| {
            (
                FieldPath::new("spec.instancetype"),
                format!("insufficient CPU resources of {provided} vCPU provided by instance type, preference requires {required} vCPU"),
            )
        });
    }
    let none = Cpu::default();
    let cpu = spec.domain.cpu.as_ref().unwrap_or(&none);
    let count = |count: Option<u32>| count.unwrap_or(1).max(1);
    let (sockets, cores, threads) = (count(cpu.sockets), count(cpu.cores), count(cpu.threads));
    let path = template().field("domain.cpu");
    let (provided, as_what, field) = match topology::preferred(Some(preference)) {
        "threads" => (threads, "threads", path.field("threads")),
        "cores" => (cores, "cores", path.field("cores")),
        "spread" => match topology::spread(Some(preference)).0 {
            across @ "CoresThreads" => (cores.saturating_mul(threads), across, path),
            across @ "SocketsCoresThreads" => (cpu.vcpus(), across, path),
            across => (sockets.saturating_mul(cores), across, path),
        },
        "any" => (cpu.vcpus(), "cores, sockets and threads", path),
        _ => (sockets, "sockets", path.field("sockets")),
    };
    (provided < required).then(|| {
        (
            field,
            format!("insufficient CPU resources of {provided} vCPU provided by VirtualMachine, preference requires {required} vCPU provided as {as_what}"),
        )
    })
}

fn lacks_memory(
    required: &MemoryRequirement,
    instancetype: Option<&InstancetypeSpec>,
    spec: &VirtualMachineInstanceSpec,
) -> Option<(FieldPath, String)> {
    let (provided, by, field) = match instancetype {
        Some(instancetype) => (
            &instancetype.memory.guest,
            "instance type",
            FieldPath::new("spec.instancetype"),
        ),
        None => (
            spec.domain.memory.as_ref()?.guest.as_ref()?,
            "VirtualMachine",
            template().field("domain.memory"),
        ),
    };
    let required = &required.guest;
    // What is no size is refused elsewhere.
    let too_little = quantity::whole(provided).ok()? < quantity::whole(required).ok()?;
    too_little.then(|| {
        (
            field,
            format!(
                "insufficient Memory resources of {} provided by {by}, preference requires {}",
                provided.0, required.0
            ),
        )
    })
}

fn is_another(required: &str, spec: &VirtualMachineInstanceSpec) -> Option<(FieldPath, String)> {
    let asked = spec.architecture.as_deref().unwrap_or("amd64");
    (asked != required).then(|| {
        (
            template().field("architecture"),
            format!("preference requires architecture {required} but {asked} is being requested"),
        )
    })
}
