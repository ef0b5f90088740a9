//! Instance types and preferences: what a machine is made of beside its template.
//!
//! `matcher` reads how a machine names them (pure), `infer` finds those that one of its volumes names, `find` looks them up, `revision` pins them at first use. [`expand`] writes
//! them out into a template (pure): conflicts with what the machine says itself (`conflicts`), the CPUs and memory of the
//! instance type (`apply`, `topology`), the defaults of the preference (`preference`) and what it requires (`requirements`).

mod apply;
mod conflicts;
mod find;
mod infer;
pub mod matcher;
mod preference;
mod requirements;
mod revision;
mod topology;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use nacelle_api::network::Interface;
use nacelle_api::{
    Cause, CauseKind, Empty, FieldPath, InstancetypeSpec, PreferenceSpec, VirtualMachine, defaults,
};

pub use find::{pinned, types};
pub use infer::infer;
pub use matcher::Role;
pub use revision::{Pins, pin};
pub use topology::check as check_preference;

/// What a machine's matchers name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Types {
    /// The instance type, if the machine names one.
    pub instancetype: Option<InstancetypeSpec>,
    /// The preference, if the machine names one.
    pub preference: Option<PreferenceSpec>,
}

/// Writes them out into the machine's template. `masquerade` says what an interface is that nobody describes.
///
/// # Errors
/// Everything in which template, instance type and preference do not go together.
pub fn expand(vm: &mut VirtualMachine, types: &Types, masquerade: bool) -> Result<(), Vec<Cause>> {
    let Types {
        instancetype,
        preference,
    } = types;
    let template = &mut vm.spec.template;
    if let Some(instancetype) = instancetype {
        topology::divisible(instancetype, preference.as_ref()).map_err(|cause| vec![cause])?;
        let annotations = template
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.annotations.as_ref());
        let conflicts = conflicts::find(instancetype, &template.spec, annotations);
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        apply::apply(instancetype, preference.as_ref(), &mut template.spec);
        annotate(&mut template.metadata, &instancetype.annotations);
    }
    if let Some(preference) = preference {
        preference::attach(preference, &mut template.spec);
        // What is there without being named gets what is preferred, too.
        defaults::disks(&mut template.spec);
        defaults::networks(&mut template.spec, || Interface {
            bridge: (!masquerade).then_some(Empty {}),
            masquerade: masquerade.then_some(Empty {}),
            ..Interface::default()
        });
        preference::apply(preference, &mut template.spec);
        annotate(&mut template.metadata, &preference.annotations);
    }
    Ok(())
}

/// Holds an expanded and completed machine against what its preference requires.
pub fn requirements(vm: &VirtualMachine, types: &Types) -> Vec<Cause> {
    match &types.preference {
        Some(preference) => {
            requirements::check(types.instancetype.as_ref(), preference, &vm.spec.template.spec)
        }
        None => Vec::new(),
    }
}

/// The annotations by which an instance tells what it was made of.
pub fn names(vm: &VirtualMachine) -> Vec<(String, String)> {
    let of = |role: Role| {
        let matcher = role.matcher(&vm.spec)?;
        let annotation = role.annotation(role.kind(matcher.kind.as_deref()).ok()?);
        Some((annotation, matcher.name.clone()?))
    };
    [Role::Instancetype, Role::Preference]
        .into_iter()
        .filter_map(of)
        .collect()
}

/// What a machine says of itself goes before.
fn annotate(metadata: &mut Option<ObjectMeta>, with: &BTreeMap<String, String>) {
    if with.is_empty() {
        return;
    }
    let metadata = metadata.get_or_insert_with(ObjectMeta::default);
    let annotations = metadata.annotations.get_or_insert_default();
    for (key, value) in with {
        annotations.entry(key.clone()).or_insert_with(|| value.clone());
    }
}

fn template() -> FieldPath {
    FieldPath::new("spec.template.spec")
}

fn invalid(field: FieldPath, message: String) -> Cause {
    Cause {
        kind: CauseKind::FieldValueInvalid,
        message,
        field,
    }
}

#[cfg(test)]
mod tests;
