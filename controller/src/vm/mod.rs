//! Machines: each gets the instance that its run strategy asks for.
//!
//! Reads the machine and its instance, plans (`plan`, pure), does the one next thing, reports (`status`, pure). An
//! instance has its machine's name, so that no two are ever made, whoever makes them.

mod data_volumes;
mod plan;
mod status;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::controller::Action as Requeue;
use kube::{Api, Resource, ResourceExt};
use nacelle_api::{VirtualMachine, VirtualMachineInstance, VirtualMachineSpec, defaults};
use serde::Deserialize;
use serde_json::{Value, json};

pub use plan::{Run, Strategy};

use crate::context::{Context, key};
use crate::error::{Doing, Error, Result, absent_is_done, is};
use crate::instancetype::{self, Pins};
use crate::pool::REVISION;
use crate::{VM_FINALIZER, VM_GENERATION, trace, volumes};
use data_volumes::Volumes;
use plan::Action;
use status::Found;

/// Until an instance that could not be made is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Until disks that are being filled are looked at again.
const FILLING: Duration = Duration::from_secs(2);
/// Fields of a machine's spec that its instance is made of.
const MADE_OF: [&str; 3] = ["template", "instancetype", "preference"];

/// Brings one machine a step nearer to what is wanted.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn reconcile(vm: Arc<VirtualMachine>, context: Arc<Context>) -> Result<Requeue> {
    if context.written.is_old(&*vm) {
        return Ok(Requeue::await_change());
    }
    let namespace = vm.namespace().ok_or(Error::Incomplete("namespace"))?;
    let name = vm.name_any();
    let vmi = context
        .vmis(&namespace)
        .get_opt(&name)
        .await
        .doing("reading the instance")?;
    let vmi = vmi.filter(|vmi| owned(vmi, &vm));
    if vm.metadata.deletion_timestamp.is_some() {
        return leave(&vm, vmi.as_ref(), &context).await;
    }

    let now = Timestamp::now();
    let mut plan = plan::plan(&vm, vmi.as_ref(), now);
    let pins = instancetype::pin(&vm, &context).await;
    let mut failure = None;
    let mut requeue = Requeue::await_change();
    if let Err(error) = &pins {
        // It may yet be made, which nobody tells us.
        failure = Some(("FailedCreate", error.to_string()));
        requeue = Requeue::requeue(RETRY);
    }
    let volumes = match data_volumes::ensure(&vm, &context).await {
        Ok(volumes) => volumes,
        Err(error) if !error.is_refusal() => return Err(error),
        Err(error) => {
            failure = Some(("FailedCreate", error.to_string()));
            requeue = Requeue::requeue(RETRY);
            Volumes {
                failed: failure.as_ref().map(|(_, message)| message.clone()),
                ..Volumes::default()
            }
        }
    };
    // They are looked at, not watched: where nobody serves DataVolumes a watch of them would only hold up the others.
    if volumes != Volumes::default() {
        requeue = Requeue::requeue(if volumes.filling { FILLING } else { RETRY });
    }
    let held = matches!(plan.action, Action::Create { .. }) && !volumes.ready();
    if held {
        plan.action = Action::Nothing;
    }
    match plan.action {
        Action::Nothing => {}
        Action::Wait(wait) => requeue = Requeue::requeue(wait),
        Action::Create { paused } => {
            // Its creation is a change that brings us back here; a name that is taken is told by this alone.
            let made = match &pins {
                Ok(pins) => create(&vm, pins, paused, &context).await,
                Err(error) => Err(Error::Types(error.to_string())),
            };
            if let Err(error) = made {
                let message = format!("Failed to create virtual machine instance {name}: {error}");
                context
                    .event(&vm.object_ref(&()), true, "FailedCreate", &message)
                    .await;
                failure = Some(("FailedCreate", error.to_string()));
                requeue = Requeue::requeue(RETRY);
            }
        }
        Action::Delete => {
            if let Some(vmi) = &vmi {
                delete(&vm, vmi, &context).await?;
            }
        }
    }
    // A start that could not be made is not done.
    let plan = if held || (failure.is_some() && matches!(plan.action, Action::Create { .. })) {
        plan::Plan {
            requests: vm
                .status
                .as_ref()
                .map(|status| status.state_change_requests.clone())
                .unwrap_or_default(),
            ..plan
        }
    } else {
        plan
    };
    if let (Some(vmi), Ok(pins)) = (&vmi, &pins)
        && Run::of(Some(vmi)) == Run::Alive
    {
        follow(&vm, vmi, pins, &context).await?;
    }
    let changed = match &vmi {
        Some(vmi) => changed(&vm, vmi, &context).await?,
        None => false,
    };
    let found = Found {
        vmi: vmi.as_ref(),
        plan: &plan,
        pins: pins.as_ref().ok(),
        failure,
        changed,
        volumes: &volumes,
    };
    report(&vm, &found, now, &context).await?;
    Ok(requeue)
}

/// Whether the instance was made by this machine, not by one of the same name before it or by a person.
fn owned(vmi: &VirtualMachineInstance, vm: &VirtualMachine) -> bool {
    vmi.owner_references()
        .iter()
        .any(|owner| Some(&owner.uid) == vm.metadata.uid.as_ref())
}

/// A machine that is deleted takes its instance along, unless it is asked to leave it behind.
async fn leave(
    vm: &VirtualMachine,
    vmi: Option<&VirtualMachineInstance>,
    context: &Context,
) -> Result<Requeue> {
    let finalizers = vm.finalizers();
    let orphans = finalizers.iter().any(|finalizer| finalizer == "orphan");
    match vmi {
        // The garbage collector takes our mark off the instance first.
        _ if orphans => return Ok(Requeue::requeue(Duration::from_secs(1))),
        Some(vmi) => {
            if vmi.metadata.deletion_timestamp.is_none() {
                delete(vm, vmi, context).await?;
            }
            let plan = plan::plan(vm, Some(vmi), Timestamp::now());
            let found = Found {
                vmi: Some(vmi),
                plan: &plan,
                pins: None,
                failure: None,
                changed: false,
                volumes: &Volumes::default(),
            };
            report(vm, &found, Timestamp::now(), context).await?;
        }
        None if finalizers.iter().any(|finalizer| finalizer == VM_FINALIZER) => {
            let left: Vec<_> = finalizers
                .iter()
                .filter(|finalizer| *finalizer != VM_FINALIZER)
                .collect();
            let patch = json!({"metadata": {"finalizers": left, "resourceVersion": vm.resource_version()}});
            let api = context.vms(&vm.namespace().unwrap_or_default());
            let done = api
                .patch(&vm.name_any(), &PatchParams::default(), &Patch::Merge(patch))
                .await;
            absent_is_done(done).doing("letting go of the machine")?;
            context.written.forget(vm);
        }
        None => {}
    }
    Ok(Requeue::await_change())
}

/// The instance that a run of the machine is; its template has everything that it is made of.
fn instance(vm: &VirtualMachine, paused: bool) -> Option<VirtualMachineInstance> {
    let template = vm.spec.template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    annotations.extend(instancetype::names(vm));
    annotations.insert(VM_GENERATION.to_owned(), vm.metadata.generation?.to_string());
    let mut spec = vm.spec.template.spec.clone();
    if paused {
        spec.start_strategy = Some("Paused".to_owned());
    }
    Some(VirtualMachineInstance {
        metadata: ObjectMeta {
            name: Some(vm.name_any()),
            namespace: vm.namespace(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![vm.controller_owner_ref(&())?]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    })
}

/// Name of the record of what an instance was made of.
fn revision(vm: &VirtualMachine, generation: &str) -> String {
    format!("revision-start-vm-{}-{generation}", vm.uid().unwrap_or_default())
}

async fn create(vm: &VirtualMachine, pins: &Pins, paused: bool, context: &Context) -> Result<()> {
    let namespace = vm.namespace().unwrap_or_default();
    let expanded = expanded(vm, pins, context).await?;
    let mut vmi = instance(&expanded, paused).ok_or(Error::Incomplete("generation"))?;
    if context.settings.otlp_endpoint.is_some() {
        vmi.annotations_mut().extend([trace::made(Timestamp::now())]);
    }
    let generation = vm.metadata.generation.unwrap_or_default();
    let record = ControllerRevision {
        metadata: ObjectMeta {
            name: Some(revision(vm, &generation.to_string())),
            owner_references: vmi.metadata.owner_references.clone(),
            ..ObjectMeta::default()
        },
        data: RawExtension(json!({"spec": vm.spec})),
        revision: Some(generation),
    };
    let records: Api<ControllerRevision> = Api::namespaced(context.client.clone(), &namespace);
    match records.create(&PostParams::default(), &record).await {
        Err(error) if !is(&error, 409) => return Err(error).doing("recording what the instance is made of"),
        _ => {}
    }
    match context
        .vmis(&namespace)
        .create(&PostParams::default(), &vmi)
        .await
    {
        Ok(made) => {
            let message = format!(
                "Started the virtual machine by creating the new virtual machine instance {}",
                made.name_any()
            );
            context
                .event(&vm.object_ref(&()), false, "SuccessfulCreate", &message)
                .await;
            Ok(())
        }
        Err(error) if is(&error, 409) => {
            let there = context
                .vmis(&namespace)
                .get_opt(&vm.name_any())
                .await
                .doing("reading the instance")?;
            if there.is_some_and(|there| owned(&there, vm)) {
                return Ok(());
            }
            Err(error).doing("another instance has this machine's name")
        }
        Err(error) => Err(error).doing("creating the instance"),
    }
}

/// Has the instance plug in and out what the template has more or less than it.
async fn follow(
    vm: &VirtualMachine,
    vmi: &VirtualMachineInstance,
    pins: &Pins,
    context: &Context,
) -> Result<()> {
    if volumes::declared::wanted(&vm.spec.template.spec, vmi).is_none() {
        return Ok(());
    }
    let expanded = expanded(vm, pins, context).await?;
    let mut spec = expanded.spec.template.spec;
    defaults::apply(&mut spec);
    let Some((volumes, disks)) = volumes::declared::wanted(&spec, vmi) else {
        return Ok(());
    };
    let patch = json!({
        "metadata": {"resourceVersion": vmi.resource_version()},
        "spec": {"volumes": volumes, "domain": {"devices": {"disks": disks}}},
    });
    let api = context.vmis(&vm.namespace().unwrap_or_default());
    let done = api
        .patch(&vmi.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await;
    absent_is_done(done).doing("plugging volumes in and out")
}

/// The machine with its instance type and preference written out.
async fn expanded(vm: &VirtualMachine, pins: &Pins, context: &Context) -> Result<VirtualMachine> {
    let types = instancetype::pinned(pins, &vm.namespace().unwrap_or_default(), context).await?;
    let mut expanded = vm.clone();
    instancetype::expand(&mut expanded, &types, context.configuration().masquerade).map_err(|causes| {
        let causes: Vec<_> = causes.iter().map(ToString::to_string).collect();
        Error::Types(causes.join(", "))
    })?;
    Ok(expanded)
}

async fn delete(vm: &VirtualMachine, vmi: &VirtualMachineInstance, context: &Context) -> Result<()> {
    let api = context.vmis(&vm.namespace().unwrap_or_default());
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: vmi.uid(),
            ..Preconditions::default()
        }),
        ..DeleteParams::default()
    };
    absent_is_done(api.delete(&vmi.name_any(), &params).await).doing("deleting the instance")?;
    let message = format!(
        "Stopped the virtual machine by deleting the virtual machine instance {}",
        vmi.uid().unwrap_or_default()
    );
    context
        .event(&vm.object_ref(&()), false, "SuccessfulDelete", &message)
        .await;
    Ok(())
}

/// Whether what the instance was made of changed since. What was recorded then is as people wrote it, so is what is now: an
/// instance type that is written out differs from neither.
async fn changed(vm: &VirtualMachine, vmi: &VirtualMachineInstance, context: &Context) -> Result<bool> {
    let Some(made_of) = vmi.annotations().get(VM_GENERATION) else {
        return Ok(false);
    };
    if Some(made_of)
        == vm
            .metadata
            .generation
            .map(|generation| generation.to_string())
            .as_ref()
    {
        return Ok(false);
    }
    let records: Api<ControllerRevision> =
        Api::namespaced(context.client.clone(), &vm.namespace().unwrap_or_default());
    let record = records
        .get_opt(&revision(vm, made_of))
        .await
        .doing("reading what the instance was made of")?;
    let then = record.and_then(|record| record.data.0.get("spec").cloned());
    let now = serde_json::to_value(&vm.spec).map_err(|error| Error::Json("the machine", error))?;
    Ok(then.is_some_and(|then| differ(&then, &now)))
}

/// Whether one is of other things than the other, but for volumes that are plugged in: in these the instance follows.
fn differ(then: &Value, now: &Value) -> bool {
    let cold = |spec: &Value| {
        let mut spec = VirtualMachineSpec::deserialize(spec).ok()?;
        spec.template.spec = volumes::cold(&spec.template.spec);
        serde_json::to_value(spec).ok()
    };
    let (then, now) = (cold(then), cold(now));
    let part = |of: &Option<Value>, name| of.as_ref().and_then(|of| part(of, name));
    MADE_OF.iter().any(|name| part(&then, name) != part(&now, name))
}

/// A part of a spec, without the label that a pool gives to all that it makes.
fn part(spec: &Value, field: &str) -> Option<Value> {
    let mut part = spec.get(field)?.clone();
    let labels = part
        .pointer_mut("/metadata/labels")
        .and_then(Value::as_object_mut);
    if let Some(labels) = labels {
        labels.remove(REVISION);
    }
    Some(part)
}

async fn report(vm: &VirtualMachine, found: &Found<'_>, now: Timestamp, context: &Context) -> Result<()> {
    let status = status::status(vm, found, now);
    if vm.status.as_ref() == Some(&status) {
        return Ok(());
    }
    log::debug!("{}: {:?}", key(vm), status.printable_status);
    let value = serde_json::to_value(&status).map_err(|error| Error::Json("the status", error))?;
    let Value::Object(mut fields) = value else {
        return Ok(());
    };
    // A merge leaves out what it does not name.
    for (field, empty) in [
        ("stateChangeRequests", status.state_change_requests.is_empty()),
        ("startFailure", status.start_failure.is_none()),
        ("instancetypeRef", status.instancetype_ref.is_none()),
        ("preferenceRef", status.preference_ref.is_none()),
    ] {
        if empty {
            fields.insert(field.to_owned(), Value::Null);
        }
    }
    let patch = json!({"metadata": {"resourceVersion": vm.resource_version()}, "status": fields});
    let api = context.vms(&vm.namespace().unwrap_or_default());
    let done = api
        .patch_status(&vm.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await;
    if let Ok(written) = &done {
        context.written.note(vm, written);
    }
    absent_is_done(done).doing("reporting the machine's status")?;
    let old = vm.status.clone().unwrap_or_default();
    for (warning, reason, message) in status::said(&old, &status) {
        context
            .event(&vm.object_ref(&()), warning, reason, &message)
            .await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plugged_in_needs_no_restart() {
        let spec = |hot: bool, more: &[&str]| {
            let volumes: Vec<_> = more
                .iter()
                .map(|name| {
                    json!({"name": name, "persistentVolumeClaim": {"claimName": name, "hotpluggable": hot}})
                })
                .collect();
            let disks: Vec<_> = more.iter().map(|name| json!({"name": name})).collect();
            json!({"runStrategy": "Always", "template": {"spec":
                {"domain": {"devices": {"disks": disks}}, "volumes": volumes}}})
        };
        assert!(!differ(&spec(true, &[]), &spec(true, &["data"])));
        assert!(!differ(&spec(true, &["data"]), &spec(true, &["other"])));
        assert!(differ(&spec(false, &[]), &spec(false, &["data"])));
        assert!(differ(&spec(false, &["data"]), &spec(true, &["data"])));
        let mut halted = spec(true, &[]);
        halted["runStrategy"] = json!("Halted");
        assert!(!differ(&spec(true, &[]), &halted));
    }
}
