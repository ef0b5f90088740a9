//! What is filled in before an object is stored.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use nacelle_api::domain::{Cpu, Machine};
use nacelle_api::firmware::Firmware;
use nacelle_api::network::Interface;
use nacelle_api::vmi::{
    CpuTopology, MemoryStatus, PhaseTransition, VirtualMachineInstanceSpec, VirtualMachineInstanceStatus,
};
use nacelle_api::{
    Cause, CauseKind, Empty, FieldPath, VirtualMachine, VirtualMachineInstance, conditions, defaults,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Question;
use crate::configuration::Configuration;
use crate::instancetype;
use crate::{VM_FINALIZER, VMI_FINALIZER};

/// User of the launcher's processes.
const RUNTIME_USER: u64 = 107;

/// A machine gets its identity when it is made, and keeps it over all of its runs.
pub(super) fn vm(question: &Question<'_>) -> Result<Value, Cause> {
    if question.old.is_some() {
        return Ok(question.object.clone());
    }
    let mut vm: VirtualMachine = read(question.object)?;
    let spec = &mut vm.spec.template.spec;
    let firmware = spec.domain.firmware.get_or_insert_with(Firmware::default);
    firmware.uuid.get_or_insert(random_uuid()?);
    firmware.serial.get_or_insert(random_uuid()?);
    // A preference may prefer another; it is asked when the instance is made.
    if vm.spec.preference.is_none() {
        machine_type(spec, question.configuration);
        spec.architecture.get_or_insert_with(|| "amd64".to_owned());
    }
    instancetype::matcher::defaults(&mut vm.spec);
    let mut out = replaced(question.object, "spec", &vm.spec)?;
    add_finalizer(&mut out, VM_FINALIZER);
    Ok(out)
}

/// An instance is completed; of its status only the controller has a say.
pub(super) fn vmi(question: &Question<'_>) -> Result<Value, Cause> {
    let mut vmi: VirtualMachineInstance = read(question.object)?;
    if let Some(old) = question.old {
        let mut out = question.object.clone();
        if !question.ours
            && let Some(fields) = out.as_object_mut()
        {
            match old.get("status") {
                Some(status) => fields.insert("status".to_owned(), status.clone()),
                None => fields.remove("status"),
            };
        }
        return Ok(out);
    }
    configured(&mut vmi.spec, question.configuration);
    defaults::apply(&mut vmi.spec);
    vmi.spec.architecture.get_or_insert_with(|| "amd64".to_owned());
    let mut out = replaced(question.object, "spec", &vmi.spec)?;
    out = replaced(&out, "status", &first_status(&vmi, Timestamp::now()))?;
    add_finalizer(&mut out, VMI_FINALIZER);
    Ok(out)
}

/// What the administrator says of machines that do not say it themselves.
fn configured(spec: &mut VirtualMachineInstanceSpec, configuration: &Configuration) {
    machine_type(spec, configuration);
    if let Some(model) = &configuration.cpu_model {
        let cpu = spec.domain.cpu.get_or_insert_with(Cpu::default);
        cpu.model.get_or_insert_with(|| model.clone());
    }
    if let Some(strategy) = &configuration.eviction_strategy {
        spec.eviction_strategy.get_or_insert_with(|| strategy.clone());
    }
    if configuration.no_serial_console_log {
        spec.domain.devices.log_serial_console.get_or_insert(false);
    }
    if configuration.masquerade {
        defaults::networks(spec, || Interface {
            masquerade: Some(Empty {}),
            ..Interface::default()
        });
    }
}

fn machine_type(spec: &mut VirtualMachineInstanceSpec, configuration: &Configuration) {
    let machine = spec.domain.machine.get_or_insert_with(Machine::default);
    if machine.type_.is_empty() {
        let configured = configuration.machine_type.clone();
        machine.type_ = configured.unwrap_or_else(|| "q35".to_owned());
    }
}

/// The status with which an instance begins: one write less than giving it one afterwards.
fn first_status(vmi: &VirtualMachineInstance, now: Timestamp) -> VirtualMachineInstanceStatus {
    let domain = &vmi.spec.domain;
    let guest = domain.memory.as_ref().and_then(|memory| memory.guest.clone());
    let topology = |cpu: &Cpu| CpuTopology {
        cores: cpu.cores,
        sockets: cpu.sockets,
        threads: cpu.threads,
    };
    let mut list = Vec::new();
    conditions::set(
        &mut list,
        "Ready",
        false,
        "GuestNotRunning",
        "Guest VM is not reported as running",
        now,
    );
    VirtualMachineInstanceStatus {
        conditions: list,
        phase: Some("Pending".to_owned()),
        phase_transition_timestamps: vec![PhaseTransition {
            phase: "Pending".to_owned(),
            phase_transition_timestamp: Time(now),
        }],
        current_cpu_topology: domain.cpu.as_ref().map(topology),
        memory: guest.map(|guest| MemoryStatus {
            guest_at_boot: Some(guest.clone()),
            guest_current: Some(guest.clone()),
            guest_requested: Some(guest),
            memory_overhead: None,
        }),
        machine: domain.machine.clone(),
        runtime_user: Some(RUNTIME_USER),
        ..VirtualMachineInstanceStatus::default()
    }
}

/// The typed object; the CRD's schema has let it pass, so what is wrong here is rare.
pub(super) fn read<T: DeserializeOwned>(object: &Value) -> Result<T, Cause> {
    T::deserialize(object).map_err(|error| broken("spec", error.to_string()))
}

pub(super) fn replaced(object: &Value, field: &str, with: &impl Serialize) -> Result<Value, Cause> {
    let mut out = object.clone();
    let value = serde_json::to_value(with).map_err(|error| broken(field, error.to_string()))?;
    if let Some(fields) = out.as_object_mut() {
        fields.insert(field.to_owned(), value);
    }
    Ok(out)
}

fn broken(field: &str, message: String) -> Cause {
    Cause {
        kind: CauseKind::FieldValueInvalid,
        message,
        field: FieldPath::new(field),
    }
}

pub(super) fn add_finalizer(object: &mut Value, name: &str) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    let list = metadata
        .entry("finalizers")
        .or_insert_with(|| Value::Array(Vec::new()));
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|finalizer| finalizer == name)
    {
        list.push(name.into());
    }
}

fn random_uuid() -> Result<String, Cause> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| broken("spec", format!("no random numbers: {error}")))?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
}
