//! The aggregated API `subresources.kubevirt.io`: what people do to machines beside changing objects.
//!
//! The API server passes requests on and vouches for their users. Each is held against RBAC once (`authz`), then done:
//! `lifecycle` and `agent` decide (pure) what a verb comes to, `stream` connects a WebSocket to a console or a port.

mod agent;
pub(crate) mod authz;
pub(crate) mod discovery;
pub(crate) mod launcher;
mod lifecycle;
mod moves;
mod route;
mod stream;
mod volume;

use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use nacelle_api::{Cause, VirtualMachine, VirtualMachineInstance};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::is;
use crate::instancetype;
use crate::server::{Peer, User};
use lifecycle::Change;
use route::{Operation, Resource, Route, Target};

/// Bytes that a body may be long: `expand-vm-spec` sends whole machines.
const LIMIT: usize = 1 << 20;

/// Times that a verb is tried on a machine that others write meanwhile.
const TRIES: u32 = 8;

/// An answer that is a `metav1.Status`.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    code: StatusCode,
    reason: &'static str,
    message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Refusal {
    pub(crate) fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Refusal {
            code,
            reason,
            message: message.into(),
        }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    fn conflict(message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::CONFLICT, "Conflict", message)
    }

    /// Why, for people.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Whether what is asked about is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        self.code == StatusCode::NOT_FOUND
    }

    fn not_found(resource: Resource, name: &str) -> Self {
        let message = format!("{}.kubevirt.io \"{name}\" not found", resource.as_str());
        Refusal::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }
}

impl From<kube::Error> for Refusal {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let reason = if code == StatusCode::CONFLICT {
                    "Conflict"
                } else {
                    "InternalError"
                };
                Refusal::new(code, reason, status.message)
            }
            other => Refusal::internal(format!("the API server cannot be asked: {other}")),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        (self.code, Json(status)).into_response()
    }
}

/// Everything under `/apis` and `/openapi`.
pub fn router(context: Arc<Context>) -> Router {
    discovery::router().fallback(answer).with_state(context)
}

async fn answer(
    State(context): State<Arc<Context>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Response, Refusal> {
    let route = route::parse(request.method(), request.uri().path())?;
    let user = user(&peer, request.headers())?;
    authz::check(&context, &user, authz::attributes(&route)).await?;
    match route {
        Route::ExpandSpec { namespace } => {
            let vm: Value = body(request).await?;
            expanded(&context, vm, &namespace).await
        }
        Route::Object(target) => object(&context, target, request).await,
    }
}

/// Whom the API server speaks for.
pub(crate) fn user(peer: &Peer, headers: &HeaderMap) -> Result<User, Refusal> {
    let user = peer.front_proxy.as_ref().and_then(|proxy| proxy.user(headers));
    user.ok_or_else(|| {
        Refusal::new(
            StatusCode::UNAUTHORIZED,
            "Unauthorized",
            "only the API server may ask this, for a user",
        )
    })
}

async fn object(context: &Context, target: Target, request: Request) -> Result<Response, Refusal> {
    let accepted = || StatusCode::ACCEPTED.into_response();
    let done = || StatusCode::OK.into_response();
    match target.operation {
        Operation::NotEnabled(message) => Err(Refusal::bad_request(message)),
        Operation::Start => {
            let options: lifecycle::StartOptions = body(request).await?;
            change(context, &target, &options.dry_run, |vm, vmi| {
                lifecycle::start(vm, vmi, &options)
            })
            .await?;
            Ok(accepted())
        }
        Operation::Stop => {
            let options: lifecycle::StopOptions = body(request).await?;
            change(context, &target, &options.dry_run, |vm, vmi| {
                lifecycle::stop(vm, vmi, &options)
            })
            .await?;
            Ok(accepted())
        }
        Operation::Restart => {
            let options: lifecycle::RestartOptions = body(request).await?;
            change(context, &target, &options.dry_run, |vm, vmi| {
                lifecycle::restart(vm, vmi, &options)
            })
            .await?;
            Ok(accepted())
        }
        Operation::Pause | Operation::Unpause | Operation::Reset | Operation::SoftReboot => {
            let options: lifecycle::Options = body(request).await?;
            let vmi = instance(context, &target).await?;
            let command = lifecycle::command(&vmi, target.operation)?;
            if options.dry_run.is_empty() {
                launcher::put(context, &vmi, command, None).await?;
            }
            Ok(done())
        }
        Operation::Freeze | Operation::Unfreeze => {
            let options: agent::FreezeOptions = body(request).await?;
            let vmi = instance(context, &target).await?;
            agent::connected(&vmi)?;
            lifecycle::reachable(&vmi)?;
            let (command, body) = agent::command(target.operation, &options);
            launcher::put(context, &vmi, command, body).await?;
            Ok(done())
        }
        Operation::AddVolume | Operation::RemoveVolume => volume::change(context, &target, request).await,
        Operation::Agent(asked) => {
            let vmi = instance(context, &target).await?;
            agent::connected(&vmi)?;
            let said = launcher::get(context, &vmi, "agent").await?;
            Ok(Json(agent::answer(asked, said)?).into_response())
        }
        Operation::Migrate => {
            let options: moves::MigrateOptions = body(request).await?;
            let (_, vmi) = machine(context, &target).await?;
            moves::migrate(context, vmi.as_ref(), &options).await?;
            Ok(accepted())
        }
        Operation::CancelEvacuation => {
            let options: lifecycle::Options = body(request).await?;
            let vmi = instance(context, &target).await?;
            moves::cancel_evacuation(context, &vmi, &options.dry_run).await?;
            Ok(done())
        }
        Operation::ExpandSpec => {
            let (vm, _) = machine(context, &target).await?;
            let vm = serde_json::to_value(vm).map_err(|error| Refusal::internal(error.to_string()))?;
            expanded(context, vm, &target.namespace).await
        }
        Operation::Console => {
            let vmi = instance(context, &target).await?;
            lifecycle::console(&vmi)?;
            let console = launcher::console(context, &vmi).await?;
            stream::bridge(request, console)
        }
        Operation::PortForward { port } => {
            let vmi = instance(context, &target).await?;
            lifecycle::reachable(&vmi)?;
            let guest = launcher::guest_port(context, &vmi, port).await?;
            stream::bridge(request, guest)
        }
    }
}

/// A body that may be absent, YAML or JSON, and hold what nobody knows: clients send odd things with a PUT.
pub(crate) async fn body<T: DeserializeOwned + Default>(request: Request<Body>) -> Result<T, Refusal> {
    let bytes: Bytes = to_bytes(request.into_body(), LIMIT)
        .await
        .map_err(|error| Refusal::bad_request(format!("the body cannot be read: {error}")))?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| Refusal::bad_request(format!("the body is no text: {error}")))?;
    let value: Value = serde_saphyr::from_str(text).map_err(|error| {
        Refusal::bad_request(format!(
            "Can not unmarshal Request body to struct, error: {error}"
        ))
    })?;
    if value.is_null() {
        return Ok(T::default());
    }
    T::deserialize(value).map_err(|error| {
        Refusal::bad_request(format!(
            "Can not unmarshal Request body to struct, error: {error}"
        ))
    })
}

async fn machine(
    context: &Context,
    target: &Target,
) -> Result<(VirtualMachine, Option<VirtualMachineInstance>), Refusal> {
    let vm = context.vms(&target.namespace).get_opt(&target.name).await?;
    let vm = vm.ok_or_else(|| Refusal::not_found(Resource::Vm, &target.name))?;
    let vmi = context.vmis(&target.namespace).get_opt(&target.name).await?;
    let uid = vm.uid();
    let vmi = vmi.filter(|vmi| {
        vmi.owner_references()
            .iter()
            .any(|owner| Some(&owner.uid) == uid.as_ref())
    });
    Ok((vm, vmi))
}

async fn instance(context: &Context, target: &Target) -> Result<VirtualMachineInstance, Refusal> {
    let vmi = context.vmis(&target.namespace).get_opt(&target.name).await?;
    vmi.ok_or_else(|| Refusal::not_found(Resource::Vmi, &target.name))
}

/// Does what a verb comes to, for the machine as it is. Where somebody (our own controller, most often) has written the
/// machine between the reading and the writing, it is read and decided upon again: a person's `start` says nothing of
/// versions.
async fn change(
    context: &Context,
    target: &Target,
    dry_run: &[String],
    decide: impl Fn(&VirtualMachine, Option<&VirtualMachineInstance>) -> Result<Vec<Change>, Refusal>,
) -> Result<(), Refusal> {
    let mut tries = 1..TRIES;
    loop {
        let (vm, vmi) = machine(context, target).await?;
        let changes = decide(&vm, vmi.as_ref())?;
        match apply(context, &vm, vmi.as_ref(), changes, dry_run).await {
            Err(error) if is(&error, 409) && tries.next().is_some() => {}
            done => return Ok(done?),
        }
    }
}

/// Writes what a verb comes to. Who reads and writes between is not overwritten: the versions go along.
async fn apply(
    context: &Context,
    vm: &VirtualMachine,
    vmi: Option<&VirtualMachineInstance>,
    changes: Vec<Change>,
    dry_run: &[String],
) -> kube::Result<()> {
    let params = PatchParams {
        dry_run: !dry_run.is_empty(),
        ..PatchParams::default()
    };
    let namespace = vm.namespace().unwrap_or_default();
    let name = vm.name_any();
    for change in changes {
        match change {
            Change::Requests(requests) => {
                let patch = json!({"metadata": {"resourceVersion": vm.resource_version()},
                    "status": {"stateChangeRequests": requests}});
                context
                    .vms(&namespace)
                    .patch_status(&name, &params, &Patch::Merge(patch))
                    .await?;
            }
            Change::Spec(spec) => {
                let patch = json!({"spec": spec});
                context
                    .vms(&namespace)
                    .patch(&name, &params, &Patch::Merge(patch))
                    .await?;
            }
            Change::Grace(seconds) => {
                let patch = json!({"spec": {"terminationGracePeriodSeconds": seconds}});
                if vmi.is_some() {
                    context
                        .vmis(&namespace)
                        .patch(&name, &params, &Patch::Merge(patch))
                        .await?;
                }
            }
        }
    }
    Ok(())
}

/// A machine with its instance type and preference written out, and no longer named.
async fn expanded(context: &Context, mut object: Value, namespace: &str) -> Result<Response, Refusal> {
    let mut vm = VirtualMachine::deserialize(&object).map_err(|error| {
        Refusal::bad_request(format!(
            "Can not unmarshal Request body to struct, error: {error}"
        ))
    })?;
    if vm.spec.instancetype.is_none() && vm.spec.preference.is_none() {
        return Ok(Json(object).into_response());
    }
    // Whoever may ask in a namespace is told of what is in that one.
    vm.metadata.namespace = Some(namespace.to_owned());
    let refused = |causes: &[Cause]| {
        let causes: Vec<_> = causes.iter().map(ToString::to_string).collect();
        Refusal::bad_request(causes.join(", "))
    };
    let wrong = instancetype::matcher::check(&vm.spec, None);
    if !wrong.is_empty() {
        return Err(refused(&wrong));
    }
    let types = instancetype::types(&vm, context)
        .await
        .map_err(|cause| refused(&[cause]))?;
    let masquerade = context.configuration().masquerade;
    instancetype::expand(&mut vm, &types, masquerade).map_err(|causes| refused(&causes))?;
    vm.spec.instancetype = None;
    vm.spec.preference = None;
    let spec = serde_json::to_value(&vm.spec).map_err(|error| Refusal::internal(error.to_string()))?;
    if let Some(fields) = object.as_object_mut() {
        fields.insert("spec".to_owned(), spec);
    }
    Ok(Json(object).into_response())
}

/// Whether the method is one that this API has.
fn verb(method: &Method) -> Option<&'static str> {
    match method.as_str() {
        "GET" => Some("get"),
        "PUT" => Some("update"),
        "POST" => Some("create"),
        "DELETE" => Some("delete"),
        _ => None,
    }
}
