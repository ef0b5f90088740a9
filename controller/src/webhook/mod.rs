//! Admission: what is stored is complete, and what cannot be honoured is refused where it is written.
//!
//! `mutate` and `validate` are pure: an object, the one before it and who asks, to a decision. The rules are those of
//! `nacelle-api`, which the reconcilers apply too: an object that came past the webhooks is not trusted.

mod eviction;
mod migration;
mod mutate;
mod replicas;
mod validate;

use std::sync::Arc;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use kube::core::response::{Status, StatusCause, StatusDetails, StatusSummary};
use nacelle_api::{Cause, VirtualMachine};
use serde::Deserialize;
use serde_json::Value;

use crate::configuration::Configuration;
use crate::context::Context;
use crate::instancetype::{self, Types};

/// Causes that a message lists; the others are counted.
const LISTED: usize = 10;

/// What is asked, without what no rule looks at.
struct Question<'a> {
    object: &'a Value,
    old: Option<&'a Value>,
    /// Whether the controller itself asks.
    ours: bool,
    /// What the administrator set.
    configuration: &'a Configuration,
    /// The instance type and the preference that a machine names.
    types: &'a Result<Types, Cause>,
}

/// What is answered to a question.
#[derive(Default)]
struct Verdict {
    causes: Vec<Cause>,
    warnings: Vec<String>,
}

/// The paths under `/webhook`.
pub fn router(context: Arc<Context>) -> Router {
    Router::new()
        .route("/webhook/mutate/virtualmachines", post(machines))
        .route(
            "/webhook/mutate/virtualmachineinstances",
            post(|s, r| mutating(s, r, mutate::vmi)),
        )
        .route(
            "/webhook/validate/virtualmachines",
            post(|s, r| validating(s, r, validate::vm)),
        )
        .route(
            "/webhook/validate/virtualmachineinstances",
            post(|s, r| validating(s, r, validate::vmi)),
        )
        .route(
            "/webhook/validate/replicasets",
            post(|s, r| validating(s, r, replicas::set)),
        )
        .route(
            "/webhook/validate/pools",
            post(|s, r| validating(s, r, replicas::pool)),
        )
        .route(
            "/webhook/validate/instancetypes",
            post(|s, r| validating(s, r, validate::instancetype)),
        )
        .route(
            "/webhook/validate/preferences",
            post(|s, r| validating(s, r, validate::preference)),
        )
        .route(
            "/webhook/validate/later",
            post(|s, r| validating(s, r, validate::later)),
        )
        .route(
            "/webhook/mutate/migrations",
            post(|s, r| mutating(s, r, migration::complete)),
        )
        .route("/webhook/validate/migrations", post(migration::review))
        .route("/webhook/validate/eviction", post(eviction::review))
        .with_state(context)
}

type Review = Json<AdmissionReview<DynamicObject>>;

/// A machine may leave it to one of its volumes what it is made of: that is written down before the rest is filled in.
async fn machines(State(context): State<Arc<Context>>, Json(review): Review) -> Review {
    let inferred = inferred(&review, &context).await;
    let rule = |question: &Question<'_>| match inferred {
        Ok(Some(object)) => mutate::vm(&Question {
            object: &object,
            ..*question
        }),
        Ok(None) => mutate::vm(question),
        Err(cause) => Err(cause),
    };
    mutating(State(context), Json(review), rule).await
}

/// The machine with what its volumes name, where they are asked.
async fn inferred(
    review: &AdmissionReview<DynamicObject>,
    context: &Context,
) -> Result<Option<Value>, Cause> {
    let Some((object, old)) = review.request.as_ref().and_then(objects) else {
        return Ok(None);
    };
    let deleting = object.pointer("/metadata/deletionTimestamp").is_some();
    let asks = |role: &str| object.pointer(&format!("/spec/{role}/inferFromVolume")).is_some();
    let same = old.is_some_and(|old| old.get("spec") == object.get("spec"));
    if deleting || same || !(asks("instancetype") || asks("preference")) {
        return Ok(None);
    }
    let mut vm: VirtualMachine = mutate::read(&object)?;
    // What is wrong with the matchers themselves is told by validation.
    if !instancetype::matcher::check(&vm.spec, None).is_empty() {
        return Ok(None);
    }
    instancetype::infer(&mut vm, context).await?;
    instancetype::matcher::defaults(&mut vm.spec);
    mutate::replaced(&object, "spec", &vm.spec).map(Some)
}

async fn mutating(
    State(context): State<Arc<Context>>,
    Json(review): Review,
    rule: impl FnOnce(&Question<'_>) -> Result<Value, Cause>,
) -> Review {
    answer(review, |request| {
        let response = AdmissionResponse::from(request);
        let Some((object, old)) = objects(request) else {
            return response;
        };
        let question = Question {
            object: &object,
            old: old.as_ref(),
            ours: request.user_info.username.as_deref() == Some(&context.user),
            configuration: &context.configuration(),
            // Nothing is filled in that depends on them.
            types: &Ok(Types::default()),
        };
        let changed = match rule(&question) {
            Ok(changed) => changed,
            Err(cause) => return refused(response, &[cause]),
        };
        match response.clone().with_patch(json_patch::diff(&object, &changed)) {
            Ok(response) => response,
            Err(error) => response.deny(format!("the defaults cannot be written: {error}")),
        }
    })
}

async fn validating(
    State(context): State<Arc<Context>>,
    Json(review): Review,
    rule: fn(&Question<'_>) -> Verdict,
) -> Review {
    let types = types(&review, &context).await;
    answer(review, |request| {
        let response = AdmissionResponse::from(request);
        let Some((object, old)) = objects(request) else {
            return response;
        };
        // What is being deleted loses its finalizers by updates that no rule should hold up.
        let deleting = object.pointer("/metadata/deletionTimestamp").is_some();
        if deleting && request.operation == Operation::Update {
            return response;
        }
        let verdict = rule(&Question {
            object: &object,
            old: old.as_ref(),
            ours: request.user_info.username.as_deref() == Some(&context.user),
            configuration: &context.configuration(),
            types: &types,
        });
        let mut response = if verdict.causes.is_empty() {
            response
        } else {
            refused(response, &verdict.causes)
        };
        response.warnings = (!verdict.warnings.is_empty()).then_some(verdict.warnings);
        response
    })
}

/// What a machine names, or the template of one, where its spec is new.
async fn types(review: &AdmissionReview<DynamicObject>, context: &Context) -> Result<Types, Cause> {
    let none = Ok(Types::default());
    let Some((object, old)) = review.request.as_ref().and_then(objects) else {
        return none;
    };
    let spec = |object: &Value| object.get("spec").cloned();
    if old.is_some_and(|old| spec(&old) == spec(&object)) {
        return none;
    }
    let vm = match object.get("kind").and_then(Value::as_str) {
        Some("VirtualMachine") => VirtualMachine::deserialize(&object).ok(),
        Some("VirtualMachinePool") => mutate::read(&object).ok().map(|pool| replicas::machine(&pool)),
        _ => None,
    };
    match vm {
        // What is wrong with the matchers themselves is told first.
        Some(vm) if instancetype::matcher::check(&vm.spec, None).is_empty() => {
            instancetype::types(&vm, context).await
        }
        _ => none,
    }
}

fn answer(
    review: AdmissionReview<DynamicObject>,
    with: impl FnOnce(&AdmissionRequest<DynamicObject>) -> AdmissionResponse,
) -> Review {
    let response = match review.try_into() {
        Ok(request) => with(&request),
        Err(error) => AdmissionResponse::invalid(error),
    };
    Json(response.into_review())
}

fn objects(request: &AdmissionRequest<DynamicObject>) -> Option<(Value, Option<Value>)> {
    let object = serde_json::to_value(request.object.as_ref()?).ok()?;
    let old = request
        .old_object
        .as_ref()
        .and_then(|old| serde_json::to_value(old).ok());
    Some((object, old))
}

/// KubeVirt's shape of a refusal: 422, every cause with its field, and a message that reads well in a terminal.
fn refused(mut response: AdmissionResponse, causes: &[Cause]) -> AdmissionResponse {
    let listed: Vec<_> = causes.iter().take(LISTED).map(ToString::to_string).collect();
    let mut message = listed.join(", ");
    if causes.len() > LISTED {
        message.push_str(&format!(", and {} more validation errors", causes.len() - LISTED));
    }
    response.allowed = false;
    response.result = Status {
        status: Some(StatusSummary::Failure),
        code: 422,
        message,
        reason: "Invalid".to_owned(),
        details: Some(StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: causes
                .iter()
                .map(|cause| StatusCause {
                    reason: cause.kind.as_str().to_owned(),
                    message: cause.message.clone(),
                    field: cause.field.to_string(),
                })
                .collect(),
            retry_after_seconds: 0,
        }),
        metadata: None,
    };
    response
}

#[cfg(test)]
mod tests;
