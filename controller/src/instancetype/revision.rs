//! Pins an instance type and a preference at first use: a ControllerRevision holds each as it was, for as long as the
//! machine exists. What becomes of the object afterwards does not change the machine.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, DynamicObject, ObjectMeta, PostParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use nacelle_api::VirtualMachine;
use nacelle_api::instancetype::GROUP;
use nacelle_api::vm::{ControllerRevisionRef, InstancetypeMatcher, InstancetypeStatusRef};
use serde_json::json;

use super::matcher::said;
use super::{Role, find};
use crate::context::Context;
use crate::crd::Kind;
use crate::error::{Doing, Error, Result, absent_is_done, is};

/// What a machine is made of, as its status says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pins {
    /// The instance type.
    pub instancetype: Option<InstancetypeStatusRef>,
    /// The preference.
    pub preference: Option<InstancetypeStatusRef>,
}

impl Pins {
    /// The name of the revision that holds one of the two.
    pub(super) fn revision(&self, role: Role) -> Option<&str> {
        let reference = match role {
            Role::Instancetype => self.instancetype.as_ref(),
            Role::Preference => self.preference.as_ref(),
        };
        reference?.controller_revision_ref.as_ref()?.name.as_deref()
    }
}

/// Pins what is not pinned yet. A machine that names nothing costs nothing.
///
/// # Errors
/// One of the two is not there, or cannot be pinned.
pub async fn pin(vm: &VirtualMachine, context: &Context) -> Result<Pins> {
    Ok(Pins {
        instancetype: one(Role::Instancetype, vm, context).await?,
        preference: one(Role::Preference, vm, context).await?,
    })
}

async fn one(role: Role, vm: &VirtualMachine, context: &Context) -> Result<Option<InstancetypeStatusRef>> {
    let Some(matcher) = role.matcher(&vm.spec) else {
        return Ok(None);
    };
    if let Some(reference) = settled(role, vm) {
        return Ok(Some(reference));
    }
    let namespace = vm.namespace().unwrap_or_default();
    let object = find::object(role, matcher, &namespace, context)
        .await
        .map_err(|cause| Error::Types(cause.message))?;
    let kind = role.kind(matcher.kind.as_deref()).map_err(Error::Types)?;
    let record = record(vm, &object, kind).ok_or(Error::Incomplete("UID"))?;
    store(vm, &record, &namespace, context).await?;
    Ok(Some(reference(role, matcher, record.name_any())))
}

/// What the machine is known to use: the revision that its spec names, or the one of its status while that is of what the
/// spec names.
pub(super) fn settled(role: Role, vm: &VirtualMachine) -> Option<InstancetypeStatusRef> {
    let matcher = role.matcher(&vm.spec)?;
    if said(&matcher.revision_name) {
        return Some(reference(role, matcher, matcher.revision_name.clone()?));
    }
    let known = role.reference(vm.status.as_ref()?)?;
    let name = known.controller_revision_ref.as_ref()?.name.clone()?;
    let kind = |kind: &Option<String>| role.kind(kind.as_deref()).ok().map(|kind| kind.plural);
    let same = known.name == matcher.name && kind(&known.kind) == kind(&matcher.kind);
    same.then(|| reference(role, matcher, name))
}

fn reference(role: Role, matcher: &InstancetypeMatcher, revision: String) -> InstancetypeStatusRef {
    let kind = matcher.kind.clone().unwrap_or_else(|| role.default().to_owned());
    InstancetypeStatusRef {
        name: matcher.name.clone(),
        kind: Some(kind),
        controller_revision_ref: Some(ControllerRevisionRef { name: Some(revision) }),
        ..InstancetypeStatusRef::default()
    }
}

/// The revision that holds an object for a machine.
pub(super) fn record(vm: &VirtualMachine, object: &DynamicObject, kind: &Kind) -> Option<ControllerRevision> {
    let (name, uid, generation) = (object.name_any(), object.uid()?, object.metadata.generation?);
    let version = kind.storage;
    let labels = [
        ("generation", generation.to_string()),
        ("kind", kind.name.to_owned()),
        ("name", name.clone()),
        ("uid", uid.clone()),
        ("version", version.to_owned()),
    ];
    let metadata = ObjectMeta {
        name: Some(name.clone()),
        namespace: object.namespace(),
        uid: Some(uid.clone()),
        generation: Some(generation),
        resource_version: object.resource_version(),
        creation_timestamp: object.creation_timestamp(),
        ..ObjectMeta::default()
    };
    Some(ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{name}-{version}-{uid}-{generation}", vm.name_any())),
            namespace: vm.namespace(),
            labels: Some(BTreeMap::from(
                labels.map(|(key, value)| (format!("{GROUP}/object-{key}"), value)),
            )),
            owner_references: Some(vec![vm.controller_owner_ref(&())?]),
            ..ObjectMeta::default()
        },
        data: RawExtension(json!({
            "apiVersion": format!("{}/{version}", kind.group),
            "kind": kind.name,
            "metadata": metadata,
            "spec": object.data.get("spec"),
        })),
        ..ControllerRevision::default()
    })
}

/// Stores it, unless it is there. One of a machine that had the same name is about to go with that machine: it goes now.
async fn store(
    vm: &VirtualMachine,
    record: &ControllerRevision,
    namespace: &str,
    context: &Context,
) -> Result<()> {
    let revisions: Api<ControllerRevision> = Api::namespaced(context.client.clone(), namespace);
    let doing = "recording an instance type or preference";
    match revisions.create(&PostParams::default(), record).await {
        Err(error) if is(&error, 409) => {}
        done => return done.map(drop).doing(doing),
    }
    let there = revisions.get_opt(&record.name_any()).await.doing(doing)?;
    if let Some(there) = there {
        let foreign = |owner: &_| foreign(owner, vm);
        if !there.owner_references().iter().any(foreign) {
            return Ok(());
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: there.uid(),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        let gone = revisions.delete(&record.name_any(), &params).await;
        absent_is_done(gone).doing(doing)?;
    }
    let made = revisions.create(&PostParams::default(), record).await;
    made.map(drop).doing(doing)
}

fn foreign(owner: &OwnerReference, vm: &VirtualMachine) -> bool {
    owner.kind == "VirtualMachine" && Some(&owner.uid) != vm.metadata.uid.as_ref()
}
