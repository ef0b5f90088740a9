//! Looks up what a machine names: the ControllerRevision that pins it, or the object itself.

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::api::DynamicObject;
use kube::{Api, ResourceExt};
use nacelle_api::vm::InstancetypeMatcher;
use nacelle_api::{Cause, VirtualMachine};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::matcher::not_found;
use super::revision::{Pins, settled};
use super::{Role, Types, infer};
use crate::context::Context;
use crate::crd::Scope;
use crate::error::{Error, Result};

/// What a machine that may not be pinned yet would be made of now.
///
/// # Errors
/// One of the two is not there, or cannot be looked up.
pub async fn types(vm: &VirtualMachine, context: &Context) -> Result<Types, Cause> {
    let namespace = vm.namespace().unwrap_or_default();
    let mut found = Types::default();
    if let Some(value) = content(Role::Instancetype, vm, &namespace, context).await? {
        found.instancetype = spec(Role::Instancetype, &value)?;
    }
    if let Some(value) = content(Role::Preference, vm, &namespace, context).await? {
        found.preference = spec(Role::Preference, &value)?;
    }
    Ok(found)
}

/// What a machine is made of that was pinned.
///
/// # Errors
/// A revision is not there, or holds something else.
pub async fn pinned(pins: &Pins, namespace: &str, context: &Context) -> Result<Types> {
    let told = |cause: Cause| Error::Types(cause.message);
    let mut found = Types::default();
    if let Some(name) = pins.revision(Role::Instancetype) {
        let value = revision(Role::Instancetype, name, namespace, context).await;
        found.instancetype = value.and_then(|v| spec(Role::Instancetype, &v)).map_err(told)?;
    }
    if let Some(name) = pins.revision(Role::Preference) {
        let value = revision(Role::Preference, name, namespace, context).await;
        found.preference = value.and_then(|v| spec(Role::Preference, &v)).map_err(told)?;
    }
    Ok(found)
}

async fn content(
    role: Role,
    vm: &VirtualMachine,
    namespace: &str,
    context: &Context,
) -> Result<Option<Value>, Cause> {
    let Some(matcher) = infer::resolved(role, vm, context).await? else {
        return Ok(None);
    };
    if let Some(reference) = settled(role, vm) {
        let name = reference
            .controller_revision_ref
            .and_then(|reference| reference.name);
        let name = name.unwrap_or_default();
        return revision(role, &name, namespace, context).await.map(Some);
    }
    let object = object(role, &matcher, namespace, context).await?;
    Ok(Some(object.data))
}

/// The object as it is now.
pub(super) async fn object(
    role: Role,
    matcher: &InstancetypeMatcher,
    namespace: &str,
    context: &Context,
) -> Result<DynamicObject, Cause> {
    let kind = role
        .kind(matcher.kind.as_deref())
        .map_err(|why| not_found(role, &why))?;
    let client = context.client.clone();
    let resource = kind.resource();
    let api: Api<DynamicObject> = match kind.scope {
        Scope::Namespaced => Api::namespaced_with(client, namespace, &resource),
        Scope::Cluster => Api::all_with(client, &resource),
    };
    let name = matcher.name.as_deref().unwrap_or_default();
    let found = api.get(name).await;
    found.map_err(|error| not_found(role, &words(error)))
}

async fn revision(role: Role, name: &str, namespace: &str, context: &Context) -> Result<Value, Cause> {
    let revisions: Api<ControllerRevision> = Api::namespaced(context.client.clone(), namespace);
    let found = revisions
        .get(name)
        .await
        .map_err(|error| not_found(role, &words(error)))?;
    let data = found.data.0;
    // Anybody may name any revision of the namespace: another kind's spec would be taken for an empty preference.
    let kind = data.get("kind").and_then(Value::as_str).unwrap_or_default();
    if kind.ends_with(role.suffix()) {
        return Ok(data);
    }
    let why = format!("ControllerRevision {namespace}/{name} holds no {}", role.word());
    Err(not_found(role, &why))
}

fn spec<T: DeserializeOwned>(role: Role, object: &Value) -> Result<Option<T>, Cause> {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    T::deserialize(spec)
        .map(Some)
        .map_err(|error| not_found(role, &format!("what it says is not understood: {error}")))
}

/// The API server's own words, where it has some.
pub(super) fn words(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message,
        other => format!("the API server cannot be asked: {other}"),
    }
}
