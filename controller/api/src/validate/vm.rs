//! What a VirtualMachine adds to its instance (rules 49, 50).

use super::{Cause, Causes, validate};
use crate::datavolume::DataVolumeTemplate;
use crate::path::FieldPath;
use crate::vm::{VirtualMachine, VirtualMachineSpec};

const RUN_STRATEGIES: &[&str] = &[
    "Always",
    "Halted",
    "Manual",
    "RerunOnFailure",
    "Once",
    "WaitAsReceiver",
];

/// Everything that is wrong with a VirtualMachine, its template included.
pub fn validate_vm(vm: &VirtualMachine) -> Vec<Cause> {
    let path = FieldPath::new("spec");
    let mut causes = Causes(validate(&vm.spec.template.spec, &path.field("template.spec")));
    running(&mut causes, &vm.spec, &path);
    let namespace = vm.metadata.namespace.as_deref();
    for (index, template) in vm.spec.data_volume_templates.iter().enumerate() {
        let field = path.field("dataVolumeTemplates").index(index);
        data_volume(&mut causes, template, &vm.spec, namespace, &field);
    }
    causes.0
}

/// What a user should hear though nothing is refused.
pub fn vm_warnings(spec: &VirtualMachineSpec) -> Vec<String> {
    match spec.running {
        Some(_) => vec!["spec.running is deprecated, please use spec.runStrategy instead.".to_owned()],
        None => Vec::new(),
    }
}

fn running(causes: &mut Causes, spec: &VirtualMachineSpec, path: &FieldPath) {
    match (spec.running, spec.run_strategy.as_deref()) {
        (Some(_), Some(_)) => causes.invalid(
            path.field("running"),
            "Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use RunStrategy instead",
        ),
        (None, None) => causes.invalid(path.field("runStrategy"), "RunStrategy must be specified"),
        (None, Some(strategy)) if !RUN_STRATEGIES.contains(&strategy) => {
            causes.invalid(path.field("runStrategy"), format!("Invalid RunStrategy ({strategy})"));
        }
        _ => {}
    }
}

fn data_volume(
    causes: &mut Causes,
    template: &DataVolumeTemplate,
    vm: &VirtualMachineSpec,
    namespace: Option<&str>,
    path: &FieldPath,
) {
    let name = template.metadata.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        let message = format!("'name' field must not be empty for DataVolumeTemplate entry {path}.");
        causes.required(path.field("name"), message);
        return;
    }
    let referenced = vm.template.spec.volumes.iter().any(|volume| {
        volume
            .data_volume
            .as_ref()
            .is_some_and(|source| source.name == name)
            || volume
                .persistent_volume_claim
                .as_ref()
                .is_some_and(|source| source.claim_name == name)
    });
    if !referenced {
        let message = format!(
            "DataVolumeTemplate entry {path} must be referenced in the VMI template's 'volumes' list"
        );
        causes.required(path.clone(), message);
    }
    let spec = &template.spec;
    match (spec.source.is_some(), spec.source_ref.is_some()) {
        (false, false) if !populated(template) => {
            causes.required(
                path.field("spec"),
                "Data volume should have either Source or SourceRef",
            );
        }
        (true, true) => causes.invalid(
            path.field("spec"),
            "Data volume should have either Source or SourceRef, not both",
        ),
        _ => {}
    }
    match (spec.storage.is_some(), spec.pvc.is_some()) {
        (false, false) => causes.required(path.field("spec"), "Missing Data volume PVC"),
        (true, true) => {
            causes.invalid(
                path.field("spec"),
                "Duplicate storage definition, both target storage and target pvc defined",
            );
        }
        _ => {}
    }
    if let Some(other) = template.metadata.namespace.as_deref()
        && other != namespace.unwrap_or("default")
    {
        let message = format!(
            "Embedded DataVolume namespace {other} differs from VM namespace {}",
            namespace.unwrap_or("default")
        );
        causes.invalid(path.field("metadata.namespace"), message);
    }
}

/// Whether the claim itself says what it is filled with, so that CDI has nothing to fetch.
fn populated(template: &DataVolumeTemplate) -> bool {
    let storage = template.spec.storage.as_ref();
    let pvc = template.spec.pvc.as_ref();
    storage.is_some_and(|storage| storage.data_source.is_some() || storage.data_source_ref.is_some())
        || pvc.is_some_and(|pvc| pvc.data_source.is_some() || pvc.data_source_ref.is_some())
}
