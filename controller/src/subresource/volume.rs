//! `addvolume` and `removevolume`, of a machine and of an instance: they change lists of the spec, and the reconcilers do the
//! rest.

use axum::extract::Request;
use axum::http::header::WARNING;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use nacelle_api::disk::Disk;
use nacelle_api::volume::Volume;
use nacelle_api::{VirtualMachineInstance, VirtualMachineInstanceSpec};
use serde_json::{Value, json};

use super::route::{Operation, Resource, Target};
use super::{Refusal, TRIES, body, instance, lifecycle, machine};
use crate::context::Context;
use crate::error::is;
use crate::volumes::request::{AddVolume, Added, No, RemoveVolume, add, remove};
use crate::volumes::{APART, declared};

impl From<No> for Refusal {
    fn from(no: No) -> Self {
        match no {
            No::Bad(message) => Refusal::bad_request(message),
            No::Conflict(message) => Refusal::conflict(message),
        }
    }
}

/// What is asked.
enum Asked {
    Add(Box<Added>),
    Remove(String),
}

impl Asked {
    fn name(&self) -> &str {
        match self {
            Asked::Add(added) => &added.volume.name,
            Asked::Remove(name) => name,
        }
    }

    /// The lists that `spec` has then.
    fn lists(&self, spec: &VirtualMachineInstanceSpec) -> Result<(Vec<Volume>, Vec<Disk>), Refusal> {
        let lists = match self {
            Asked::Add(added) => add(spec, added),
            Asked::Remove(name) => remove(spec, name),
        };
        Ok(lists?)
    }
}

/// Does what `target` asks for, as the body of `request` says. Where somebody has written the object between the reading and
/// the writing, it is read and decided upon again.
pub(super) async fn change(
    context: &Context,
    target: &Target,
    request: Request,
) -> Result<Response, Refusal> {
    let (asked, dry_run) = match target.operation {
        Operation::AddVolume => {
            let options: AddVolume = body(request).await?;
            (Asked::Add(Box::new(options.read()?)), options.dry_run)
        }
        _ => {
            let options: RemoveVolume = body(request).await?;
            (Asked::Remove(options.name), options.dry_run)
        }
    };
    let params = PatchParams {
        dry_run: !dry_run.is_empty(),
        ..PatchParams::default()
    };
    let mut tries = 1..TRIES;
    loop {
        let (done, again) = match target.resource {
            Resource::Vm => of_machine(context, target, &asked, &params).await?,
            Resource::Vmi => of_instance(context, target, &asked, &params).await?,
        };
        if done {
            break;
        }
        if tries.next().is_none() {
            return Err(again);
        }
    }
    let mut response = StatusCode::ACCEPTED.into_response();
    let warning = match &asked {
        Asked::Add(added) => added.warning.as_deref(),
        Asked::Remove(_) => None,
    };
    if let Some(Ok(warning)) = warning.map(|warning| HeaderValue::from_str(&format!("299 - \"{warning}\""))) {
        response.headers_mut().insert(WARNING, warning);
    }
    Ok(response)
}

type Done = Result<(bool, Refusal), Refusal>;

/// Whether it is written, or why it is to be tried again.
fn written<T>(result: kube::Result<T>) -> Done {
    match result {
        Ok(_) => Ok((true, Refusal::conflict(""))),
        Err(error) if is(&error, 409) => Ok((false, error.into())),
        Err(error) => Err(error.into()),
    }
}

/// The machine has it from now on, and its instance follows.
async fn of_machine(context: &Context, target: &Target, asked: &Asked, params: &PatchParams) -> Done {
    let (vm, vmi) = machine(context, target).await?;
    let (volumes, disks) = asked.lists(&vm.spec.template.spec)?;
    let patch = json!({
        "metadata": {"resourceVersion": vm.resource_version()},
        "spec": {"template": {"spec": lists(&volumes, &disks)}},
    });
    // An instance that was to differ in this volume is to no more.
    if let Some(vmi) = vmi.filter(|vmi| declared::apart(vmi).contains(asked.name())) {
        let patch = json!({"metadata": {"annotations": {APART: apart(&vmi, asked.name(), false)}}});
        let vmis = context.vmis(&target.namespace);
        vmis.patch(&target.name, params, &Patch::Merge(patch)).await?;
    }
    let vms = context.vms(&target.namespace);
    written(vms.patch(&target.name, params, &Patch::Merge(patch)).await)
}

/// The instance alone has it, until it ends.
async fn of_instance(context: &Context, target: &Target, asked: &Asked, params: &PatchParams) -> Done {
    let vmi = instance(context, target).await?;
    lifecycle::running(&vmi).map_err(|_| Refusal::conflict("VMI is not running"))?;
    let (volumes, disks) = asked.lists(&vmi.spec)?;
    let patch = json!({
        "metadata": {
            "resourceVersion": vmi.resource_version(),
            "annotations": {APART: apart(&vmi, asked.name(), true)},
        },
        "spec": lists(&volumes, &disks),
    });
    let vmis = context.vmis(&target.namespace);
    written(vmis.patch(&target.name, params, &Patch::Merge(patch)).await)
}

fn lists(volumes: &[Volume], disks: &[Disk]) -> Value {
    json!({"volumes": volumes, "domain": {"devices": {"disks": disks}}})
}

/// The annotation that names what the instance has apart from its machine, with or without `name`.
fn apart(vmi: &VirtualMachineInstance, name: &str, with: bool) -> String {
    let mut names = declared::apart(vmi);
    match with {
        true => names.insert(name.to_owned()),
        false => names.remove(name),
    };
    json!(names).to_string()
}
