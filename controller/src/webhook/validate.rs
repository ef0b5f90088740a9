//! What is refused.

use nacelle_api::VirtualMachineInstanceSpec;
use nacelle_api::validate::{validate_vm, validate_vmi, vm_warnings};
use nacelle_api::{Cause, CauseKind, FieldPath, VirtualMachine, VirtualMachineInstance, defaults, support};
use serde_json::Value;

use super::mutate::read;
use super::{Question, Verdict};

pub(super) fn vm(question: &Question<'_>) -> Verdict {
    let mut vm: VirtualMachine = match read(question.object) {
        Ok(vm) => vm,
        Err(cause) => {
            return Verdict {
                causes: vec![cause],
                ..Verdict::default()
            };
        }
    };
    // Status is written apart: an update that leaves the spec alone is not held up by rules that came later.
    if question
        .old
        .is_some_and(|old| old.get("spec") == question.object.get("spec"))
    {
        return Verdict::default();
    }
    let mut warnings = vm_warnings(&vm.spec);
    defaults::apply(&mut vm.spec.template.spec);
    let mut causes = validate_vm(&vm);
    causes.extend(not_yet(&vm));
    instance(
        &vm.spec.template.spec,
        "spec.template.spec",
        &mut causes,
        &mut warnings,
    );
    Verdict { causes, warnings }
}

pub(super) fn vmi(question: &Question<'_>) -> Verdict {
    let vmi: VirtualMachineInstance = match read(question.object) {
        Ok(vmi) => vmi,
        Err(cause) => {
            return Verdict {
                causes: vec![cause],
                ..Verdict::default()
            };
        }
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
fn instance(
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
    let fields = [
        ("spec.instancetype", spec.instancetype.is_some()),
        ("spec.preference", spec.preference.is_some()),
        ("spec.dataVolumeTemplates", !spec.data_volume_templates.is_empty()),
    ];
    let mut causes: Vec<_> = fields
        .into_iter()
        .filter(|(_, set)| *set)
        .map(|(field, _)| Cause {
            kind: CauseKind::FieldValueNotSupported,
            message: format!("{field} is not supported by this version of Nacelle"),
            field: FieldPath::new(field),
        })
        .collect();
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
