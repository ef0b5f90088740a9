//! An instance type and a preference that a machine does not name, but one of its volumes does: by labels of the claim, or of
//! the DataVolume or DataSource that fills it.
//!
//! Where to look first and where then is pure; [`resolved`] goes there.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, ResourceExt};
use nacelle_api::datavolume::{DataSource, DataVolume, DataVolumeSpec};
use nacelle_api::vm::InstancetypeMatcher;
use nacelle_api::{Cause, CauseKind, FieldPath, VirtualMachine};

use super::Role;
use super::find::words;
use super::matcher::said;
use crate::context::Context;

/// `inferFromVolumeFailurePolicy` by which a volume that names nothing is put up with.
const IGNORE: &str = "Ignore";

/// An object whose labels may name it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Claim { namespace: String, name: String },
    Volume { namespace: String, name: String },
    Source { namespace: String, name: String },
}

/// Why nothing was found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// The volume names nothing, which may be put up with.
    Silent(String),
    /// It cannot be looked at, or there is none.
    Lost(String),
}

/// What a machine names: its matcher as it is, or what the volume of its matcher says; nothing where that says nothing and the
/// machine puts up with it.
///
/// # Errors
/// The volume says nothing, or cannot be looked at.
pub async fn resolved(
    role: Role,
    vm: &VirtualMachine,
    context: &Context,
) -> Result<Option<InstancetypeMatcher>, Cause> {
    let Some(matcher) = role.matcher(&vm.spec) else {
        return Ok(None);
    };
    let Some(volume) = matcher
        .infer_from_volume
        .as_deref()
        .filter(|name| !name.is_empty())
    else {
        return Ok(Some(matcher.clone()));
    };
    match inferred(role, vm, volume, context).await {
        Ok(inferred) => Ok(Some(inferred)),
        Err(Failure::Silent(_)) if ignores(matcher) => Ok(None),
        Err(Failure::Silent(why) | Failure::Lost(why)) => Err(Cause {
            kind: CauseKind::FieldValueNotFound,
            message: format!("Failure to infer {}: {why}", role.word()),
            field: FieldPath::new("spec").field(role.word()).field("inferFromVolume"),
        }),
    }
}

/// Writes what volumes say into the machine. An instance type that was found where none had to be has its own memory.
///
/// # Errors
/// A volume says nothing, or cannot be looked at.
pub async fn infer(vm: &mut VirtualMachine, context: &Context) -> Result<(), Cause> {
    let infers = |matcher: &Option<InstancetypeMatcher>| {
        matcher
            .as_ref()
            .is_some_and(|matcher| said(&matcher.infer_from_volume))
    };
    if infers(&vm.spec.instancetype) {
        let may_miss = vm.spec.instancetype.as_ref().is_some_and(ignores);
        vm.spec.instancetype = resolved(Role::Instancetype, vm, context).await?;
        if may_miss && vm.spec.instancetype.is_some() {
            vm.spec.template.spec.domain.memory = None;
        }
    }
    if infers(&vm.spec.preference) {
        vm.spec.preference = resolved(Role::Preference, vm, context).await?;
    }
    Ok(())
}

fn ignores(matcher: &InstancetypeMatcher) -> bool {
    matcher.infer_from_volume_failure_policy.as_deref() == Some(IGNORE)
}

/// What is wrong with the policy of a matcher, if something is.
pub(super) fn check(matcher: &InstancetypeMatcher, path: &FieldPath) -> Option<Cause> {
    let policy = matcher.infer_from_volume_failure_policy.as_deref()?;
    (![IGNORE, "Reject"].contains(&policy)).then(|| {
        let field = path.field("inferFromVolumeFailurePolicy");
        super::invalid(
            field.clone(),
            format!("{field} is Reject or Ignore, not {policy:?}"),
        )
    })
}

async fn inferred(
    role: Role,
    vm: &VirtualMachine,
    volume: &str,
    context: &Context,
) -> Result<InstancetypeMatcher, Failure> {
    // Each leads to another kind, and none back: DataVolume, DataSource, claim.
    let mut place = first(vm, volume)?;
    loop {
        let (labels, next) = look(&place, role, context).await?;
        if let Some(found) = named(role, &labels) {
            return Ok(found);
        }
        place = next?;
    }
}

/// The labels of an object, and where to look if they say nothing.
async fn look(
    place: &Place,
    role: Role,
    context: &Context,
) -> Result<(BTreeMap<String, String>, Result<Place, Failure>), Failure> {
    let client = context.client.clone();
    let lost = |error| Failure::Lost(words(error));
    Ok(match place {
        Place::Claim { namespace, name } => {
            let api: Api<PersistentVolumeClaim> = Api::namespaced(client, namespace);
            let claim = api.get(name).await.map_err(lost)?;
            let [label, _] = role.labels();
            let why = format!("unable to find required {label} label on the volume");
            (claim.labels().clone(), Err(Failure::Silent(why)))
        }
        Place::Volume { namespace, name } => {
            let api: Api<DataVolume> = Api::namespaced(client, namespace);
            match api.get_opt(name).await.map_err(lost)? {
                Some(volume) => (volume.labels().clone(), of_volume(&volume.spec, namespace)),
                // Its claim may be there alone.
                None => (BTreeMap::new(), Ok(claim(namespace, name))),
            }
        }
        Place::Source { namespace, name } => {
            let api: Api<DataSource> = Api::namespaced(client, namespace);
            let source = api.get(name).await.map_err(lost)?;
            (source.labels().clone(), of_source(&source, namespace))
        }
    })
}

fn claim(namespace: &str, name: &str) -> Place {
    Place::Claim {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

/// Where a machine's volume is looked at first.
fn first(vm: &VirtualMachine, volume: &str) -> Result<Place, Failure> {
    let namespace = vm.metadata.namespace.clone().unwrap_or_default();
    let volumes = &vm.spec.template.spec.volumes;
    let found = volumes.iter().find(|source| source.name == volume);
    let found =
        found.ok_or_else(|| Failure::Lost(format!("unable to find volume {volume} to infer defaults")))?;
    if let Some(source) = &found.persistent_volume_claim {
        return Ok(claim(&namespace, &source.claim_name));
    }
    let Some(source) = &found.data_volume else {
        let why = format!("unable to infer defaults from volume {volume} as type is not supported");
        return Err(Failure::Silent(why));
    };
    let name = &source.name;
    let mut templates = vm.spec.data_volume_templates.iter();
    match templates.find(|template| template.metadata.name.as_ref() == Some(name)) {
        Some(template) => of_volume(&template.spec, &namespace),
        None => Ok(Place::Volume {
            namespace,
            name: name.clone(),
        }),
    }
}

/// What fills a DataVolume of a namespace.
fn of_volume(spec: &DataVolumeSpec, namespace: &str) -> Result<Place, Failure> {
    if let Some(source) = spec.source.as_ref().and_then(|source| source.pvc.as_ref()) {
        return Ok(claim(
            source.namespace.as_deref().unwrap_or(namespace),
            &source.name,
        ));
    }
    match &spec.source_ref {
        Some(reference) if reference.kind == "DataSource" => Ok(Place::Source {
            namespace: reference.namespace.as_deref().unwrap_or(namespace).to_owned(),
            name: reference.name.clone(),
        }),
        Some(reference) => Err(Failure::Silent(format!(
            "unable to infer defaults from DataVolumeSourceRef as Kind {} is not supported",
            reference.kind
        ))),
        None => Err(Failure::Silent(
            "unable to infer defaults from DataVolumeSpec as DataVolumeSource is not supported".to_owned(),
        )),
    }
}

/// The claim that a DataSource of a namespace stands for.
fn of_source(source: &DataSource, namespace: &str) -> Result<Place, Failure> {
    match &source.spec.source.pvc {
        Some(named) => Ok(claim(
            named.namespace.as_deref().unwrap_or(namespace),
            &named.name,
        )),
        None => Err(Failure::Silent(
            "unable to infer defaults from DataSource that doesn't provide DataVolumeSourcePVC".to_owned(),
        )),
    }
}

/// What labels name.
fn named(role: Role, labels: &BTreeMap<String, String>) -> Option<InstancetypeMatcher> {
    let [name, kind] = role.labels();
    Some(InstancetypeMatcher {
        name: Some(labels.get(&name)?.clone()),
        kind: labels.get(&kind).filter(|kind| !kind.is_empty()).cloned(),
        ..InstancetypeMatcher::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn vm(volume: Value, templates: Value) -> VirtualMachine {
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "a", "namespace": "n"},
            "spec": {"dataVolumeTemplates": templates,
                "template": {"spec": {"domain": {"devices": {}}, "volumes": [volume]}}},
        }))
        .unwrap()
    }

    #[test]
    fn where_a_volume_is_looked_at_follows_from_what_fills_it() {
        let of_claim = json!({"name": "root", "persistentVolumeClaim": {"claimName": "c"}});
        let of_volume = || json!({"name": "root", "dataVolume": {"name": "d"}});
        let template = |spec: Value| vm(of_volume(), json!([{"metadata": {"name": "d"}, "spec": spec}]));
        let volume = Place::Volume {
            namespace: "n".into(),
            name: "d".into(),
        };
        let source = |namespace: &str| Place::Source {
            namespace: namespace.into(),
            name: "s".into(),
        };
        let silent = |why: &str| Err(Failure::Silent(why.to_owned()));
        #[rustfmt::skip]
        let table = [
            (vm(of_claim, json!([])), Ok(claim("n", "c"))),
            (vm(of_volume(), json!([])), Ok(volume)),
            (template(json!({"source": {"pvc": {"namespace": "golden", "name": "debian"}}})), Ok(claim("golden", "debian"))),
            (template(json!({"sourceRef": {"kind": "DataSource", "name": "s"}})), Ok(source("n"))),
            (template(json!({"sourceRef": {"kind": "DataSource", "name": "s", "namespace": "golden"}})), Ok(source("golden"))),
            (template(json!({"sourceRef": {"kind": "Other", "name": "s"}})),
                silent("unable to infer defaults from DataVolumeSourceRef as Kind Other is not supported")),
            (template(json!({"source": {"blank": {}}})),
                silent("unable to infer defaults from DataVolumeSpec as DataVolumeSource is not supported")),
            (vm(json!({"name": "root", "emptyDisk": {"capacity": "1Mi"}}), json!([])),
                silent("unable to infer defaults from volume root as type is not supported")),
            (vm(json!({"name": "other", "emptyDisk": {"capacity": "1Mi"}}), json!([])),
                Err(Failure::Lost("unable to find volume root to infer defaults".to_owned()))),
        ];
        for (vm, place) in table {
            assert_eq!(first(&vm, "root"), place);
        }
        let named = |source: Value| {
            let object = json!({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataSource", "metadata": {"name": "s"},
                "spec": {"source": source}});
            of_source(&serde_json::from_value(object).unwrap(), "n")
        };
        assert_eq!(named(json!({"pvc": {"name": "c"}})), Ok(claim("n", "c")));
        assert!(matches!(
            named(json!({"snapshot": {"name": "c"}})),
            Err(Failure::Silent(_))
        ));
    }

    #[test]
    fn labels_name_a_name_and_may_name_a_kind() {
        let labels = |of: &[(&str, &str)]| {
            let of = of
                .iter()
                .map(|(key, value)| (format!("instancetype.kubevirt.io/{key}"), (*value).to_owned()));
            of.collect::<BTreeMap<_, _>>()
        };
        let both = labels(&[
            ("default-instancetype", "u1.small"),
            ("default-instancetype-kind", "VirtualMachineInstancetype"),
            ("default-preference", "linux"),
        ]);
        let instancetype = named(Role::Instancetype, &both).unwrap();
        assert_eq!(instancetype.name.as_deref(), Some("u1.small"));
        assert_eq!(instancetype.kind.as_deref(), Some("VirtualMachineInstancetype"));
        let preference = named(Role::Preference, &both).unwrap();
        assert_eq!(
            (preference.name.as_deref(), preference.kind),
            (Some("linux"), None)
        );
        assert_eq!(named(Role::Preference, &labels(&[])), None);
    }

    #[test]
    fn a_policy_is_one_of_two() {
        let with = |policy: Option<&str>| {
            let matcher = InstancetypeMatcher {
                infer_from_volume_failure_policy: policy.map(str::to_owned),
                ..InstancetypeMatcher::default()
            };
            check(&matcher, &FieldPath::new("spec.instancetype")).map(|cause| cause.message)
        };
        assert_eq!(with(None).or(with(Some("Ignore"))).or(with(Some("Reject"))), None);
        let said = with(Some("Perhaps")).unwrap();
        assert_eq!(
            said,
            "spec.instancetype.inferFromVolumeFailurePolicy is Reject or Ignore, not \"Perhaps\""
        );
    }
}
