//! What is refused.

use nacelle_api::instancetype::Data;
use nacelle_api::validate::{validate_vm, validate_vmi, vm_warnings};
use nacelle_api::{
    Cause, CauseKind, FieldPath, InstancetypeSpec, PreferenceSpec, VirtualMachine, VirtualMachineInstance,
    VirtualMachineInstanceSpec, VirtualMachineSpec, defaults, quantity, support,
};
use serde::Deserialize;
use serde_json::Value;

use super::mutate::read;
use super::{Question, Verdict};
use crate::instancetype;

/// Where a machine's template is.
const TEMPLATE: &str = "spec.template.spec";

pub(super) fn vm(question: &Question<'_>) -> Verdict {
    let vm: VirtualMachine = match read(question.object) {
        Ok(vm) => vm,
        Err(cause) => return refused(cause),
    };
    // Status is written apart: an update that leaves the spec alone is not held up by rules that came later.
    if question
        .old
        .is_some_and(|old| old.get("spec") == question.object.get("spec"))
    {
        return Verdict::default();
    }
    let old = question.old.and_then(|old| old.get("spec"));
    let old = old.and_then(|old| VirtualMachineSpec::deserialize(old).ok());
    machine(vm, old.as_ref(), question)
}

/// Judges a machine that is new, or has a spec that is.
pub(super) fn machine(
    mut vm: VirtualMachine,
    old: Option<&VirtualMachineSpec>,
    question: &Question<'_>,
) -> Verdict {
    let mut warnings = vm_warnings(&vm.spec);
    let own = support(&vm.spec.template.spec, &FieldPath::new(TEMPLATE)).unsupported;
    if let Err(causes) = expand(&mut vm, old, question) {
        return Verdict { causes, warnings };
    }
    defaults::apply(&mut vm.spec.template.spec);
    let mut causes = validate_vm(&vm);
    causes.extend(not_yet(&vm));
    if let Ok(types) = question.types {
        causes.extend(instancetype::requirements(&vm, types));
    }
    let before = causes.len();
    instance(&vm.spec.template.spec, TEMPLATE, &mut causes, &mut warnings);
    // Who looks for the field in the manifest should know where it comes from.
    for cause in causes
        .iter_mut()
        .skip(before)
        .filter(|cause| !own.contains(cause))
    {
        if vm.spec.instancetype.is_some() || vm.spec.preference.is_some() {
            cause
                .message
                .push_str(", and the instance type or the preference sets it");
        }
    }
    Verdict { causes, warnings }
}

/// The machine with its instance type and preference written out, or why that cannot be.
fn expand(
    vm: &mut VirtualMachine,
    old: Option<&VirtualMachineSpec>,
    question: &Question<'_>,
) -> Result<(), Vec<Cause>> {
    let causes = instancetype::matcher::check(&vm.spec, old);
    if !causes.is_empty() {
        return Err(causes);
    }
    match question.types {
        Ok(types) => instancetype::expand(vm, types, question.configuration.masquerade),
        Err(cause) => Err(vec![cause.clone()]),
    }
}

pub(super) fn instancetype(question: &Question<'_>) -> Verdict {
    let data: Data<InstancetypeSpec> = match read(question.object) {
        Ok(data) => data,
        Err(cause) => return refused(cause),
    };
    let mut causes = Vec::new();
    let cpus = data.spec.cpu.guest;
    if cpus == 0 {
        causes.push(invalid(
            "spec.cpu.guest",
            "spec.cpu.guest must be at least 1".to_owned(),
        ));
    }
    if let Err(error) = quantity::whole(&data.spec.memory.guest) {
        causes.push(invalid("spec.memory.guest", format!("spec.memory.guest {error}")));
    }
    let field = "spec.memory.overcommitPercent";
    let percent = data.spec.memory.overcommit_percent.unwrap_or(0);
    if !(0..=100).contains(&percent) {
        let message = format!("{field} '{percent}': must be in range between 0 and 100.");
        causes.push(invalid(field, message));
    }
    if percent != 0 && data.spec.memory.hugepages.is_some() {
        let message = format!("{field} and spec.memory.hugepages should not be requested together.");
        causes.push(invalid(field, message));
    }
    Verdict {
        causes,
        ..Verdict::default()
    }
}

pub(super) fn preference(question: &Question<'_>) -> Verdict {
    match read::<Data<PreferenceSpec>>(question.object) {
        Ok(data) => {
            let (causes, warnings) = instancetype::check_preference(&data.spec);
            Verdict { causes, warnings }
        }
        Err(cause) => refused(cause),
    }
}

pub(super) fn refused(cause: Cause) -> Verdict {
    Verdict {
        causes: vec![cause],
        ..Verdict::default()
    }
}

pub(super) fn invalid(field: &str, message: String) -> Cause {
    Cause {
        kind: CauseKind::FieldValueInvalid,
        message,
        field: FieldPath::new(field),
    }
}

pub(super) fn vmi(question: &Question<'_>) -> Verdict {
    let vmi: VirtualMachineInstance = match read(question.object) {
        Ok(vmi) => vmi,
        Err(cause) => return refused(cause),
    };
    if question.ours {
        return Verdict::default();
    }
    if let Some(old) = question.old {
        let changed = old.get("spec") != question.object.get("spec");
        let causes = if changed {
            vec![restricted("spec")]
        } else {
            reserved_labels(old, question.object)
        };
        return Verdict {
            causes,
            ..Verdict::default()
        };
    }
    let mut verdict = Verdict {
        causes: validate_vmi(&vmi),
        ..Verdict::default()
    };
    instance(&vmi.spec, "spec", &mut verdict.causes, &mut verdict.warnings);
    verdict
}

/// Kinds whose controller is still to come.
pub(super) fn later(question: &Question<'_>) -> Verdict {
    let kind = question
        .object
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or("object");
    Verdict {
        warnings: vec![format!(
            "this version of Nacelle stores a {kind} and does nothing with it yet"
        )],
        ..Verdict::default()
    }
}

/// What is wrong with a spec beyond KubeVirt's rules, and what is only to be said.
pub(super) fn instance(
    spec: &VirtualMachineInstanceSpec,
    prefix: &str,
    causes: &mut Vec<Cause>,
    warnings: &mut Vec<String>,
) {
    let path = FieldPath::new(prefix);
    let found = support(spec, &path);
    causes.extend(found.unsupported);
    warnings.extend(found.warnings);
    for (index, disk) in spec.domain.devices.disks.iter().enumerate() {
        let bus = |bus: Option<&String>| bus.is_none();
        if disk.disk.as_ref().is_some_and(|target| bus(target.bus.as_ref())) {
            let field = path.field("domain.devices.disks").index(index);
            warnings.push(format!(
                "{field} has no bus: it is presented as virtio, where KubeVirt would present sata"
            ));
        }
    }
}

fn not_yet(vm: &VirtualMachine) -> Vec<Cause> {
    let spec = &vm.spec;
    let mut causes = Vec::new();
    if spec.run_strategy.as_deref() == Some("WaitAsReceiver") {
        causes.push(Cause {
            kind: CauseKind::FieldValueNotSupported,
            message: "spec.runStrategy WaitAsReceiver is not allowed: DecentralizedLiveMigration feature gate is not enabled".to_owned(),
            field: FieldPath::new("spec.runStrategy"),
        });
    }
    causes
}

fn restricted(field: &str) -> Cause {
    Cause {
        kind: CauseKind::FieldValueNotSupported,
        message: "update of VMI object is restricted".to_owned(),
        field: FieldPath::new(field),
    }
}

/// Labels by which controllers know their own may not be changed by others.
fn reserved_labels(old: &Value, new: &Value) -> Vec<Cause> {
    let label = |object: &Value, key: &str| object.get("metadata")?.get("labels")?.get(key).cloned();
    let reserved = [
        "kubevirt.io/created-by",
        "kubevirt.io/nodeName",
        "kubevirt.io/migrationTargetNodeName",
    ];
    if reserved.into_iter().any(|key| label(old, key) != label(new, key)) {
        return vec![Cause {
            message:
                "modification of the following reserved kubevirt.io/ labels on a VMI object is prohibited"
                    .to_owned(),
            ..restricted("metadata.labels")
        }];
    }
    Vec::new()
}
