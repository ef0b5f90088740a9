//! Where launchers say how their machines are: `docs/pod.md`.
//!
//! A launcher shows a token that the kubelet made for its pod and this endpoint alone. The API server says whose it is;
//! the pod must be the instance's.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use nacelle_api::VirtualMachineInstance;
use nacelle_api::vmi::VirtualMachineInstanceStatus;
use serde_json::json;

use crate::context::Context;
use crate::error::{Doing, Error, absent_is_done};
use crate::logging::{self, Object};
use crate::trace::spans::Start;
use crate::vmi::moving::{self, Arrival, Role, role};
use crate::vmi::status::{Report, apply};
use crate::{trace, vmi};

/// Annotation of a pod that waits for its machine: where.
pub const ARRIVAL: &str = "nacelle.io/arrival";
/// Audience of the token.
const AUDIENCE: &str = "nacelle.io/report";
/// Bytes that a report may be long.
const LIMIT: usize = 64 << 10;
/// Attempts to write a status that somebody else writes too.
const ATTEMPTS: usize = 5;

/// A refusal, as status and sentence.
type Refusal = (StatusCode, String);

/// The paths under `/report`.
pub fn router(context: Arc<Context>) -> Router {
    Router::new()
        .route(
            "/report/v1/namespaces/{namespace}/virtualmachineinstances/{name}",
            post(report),
        )
        .layer(DefaultBodyLimit::max(LIMIT))
        .with_state(context)
}

async fn report(
    State(context): State<Arc<Context>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
    Json(report): Json<Report>,
) -> Result<StatusCode, Refusal> {
    let token = headers
        .get("authorization")
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let token = token.ok_or((
        StatusCode::UNAUTHORIZED,
        "a report needs its pod's token".to_owned(),
    ))?;
    let name_of_pod = caller(&context, token, &namespace).await?;
    for _ in 0..ATTEMPTS {
        let vmi = context
            .vmis(&namespace)
            .get_opt(&name)
            .await
            .doing("reading the instance")
            .map_err(unavailable)?;
        let vmi = vmi.ok_or((
            StatusCode::NOT_FOUND,
            format!("there is no instance {namespace}/{name}"),
        ))?;
        let role = owns(&vmi, &name_of_pod)?;
        let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
        let pod = pods
            .get_opt(&name_of_pod)
            .await
            .doing("reading the pod")
            .map_err(unavailable)?;
        let pod = pod.ok_or((StatusCode::GONE, format!("pod {name_of_pod} is gone")))?;
        let old = vmi.status.clone().unwrap_or_default();
        let mut new = old.clone();
        take(&mut new, role, &report, &pod);
        if let Some(arrival) = report.arrival.as_ref().filter(|_| role == Role::Target) {
            note(&context, &pod, arrival).await.map_err(unavailable)?;
        }
        match logging::about(Object::of(&vmi), vmi::write(&vmi, &old, &new, &context)).await {
            Ok(()) => {
                if let Some(start) = report.start.as_ref().filter(|_| role == Role::InCharge) {
                    trace(&context, &vmi, &pod, start);
                }
                return Ok(StatusCode::NO_CONTENT);
            }
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(unavailable(error)),
        }
    }
    Err((
        StatusCode::SERVICE_UNAVAILABLE,
        "others write this instance's status all the time".to_owned(),
    ))
}

/// Has a collector told where the time of a start went, if there is one. Nobody waits for it.
fn trace(context: &Context, vmi: &VirtualMachineInstance, pod: &Pod, start: &Start) {
    let Some(collector) = context.settings.otlp_endpoint.clone() else {
        return;
    };
    let spans = trace::spans::spans(vmi, pod, start);
    let uid = vmi.uid().unwrap_or_default();
    tokio::spawn(logging::about(Object::of(vmi), async move {
        if let Err(error) = trace::export(&collector, &uid, &spans).await {
            log::warn!("the trace of its start is lost: {collector}: {error:#}");
        }
    }));
}

/// What follows from a report.
fn take(status: &mut VirtualMachineInstanceStatus, role: Role, report: &Report, pod: &Pod) {
    let now = Timestamp::now();
    match role {
        Role::InCharge => {
            if !moving::departs(status, report, now) {
                apply(status, report, pod, now);
            }
        }
        Role::Target => {
            moving::arrives(status, report, pod, now);
            let arrived = status
                .migration_state
                .as_ref()
                .is_some_and(|state| state.has_arrived());
            if arrived {
                apply(status, report, pod, now);
            }
        }
        // The kubelet tells when it has ended.
        Role::Left => {}
    }
}

/// Keeps where a target listens with its pod, for who tells the source.
async fn note(context: &Context, pod: &Pod, arrival: &Arrival) -> Result<(), Error> {
    let text = serde_json::to_string(arrival).map_err(|error| Error::Json("where a pod listens", error))?;
    if pod.annotations().get(ARRIVAL) == Some(&text) {
        return Ok(());
    }
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
    let patch = json!({"metadata": {"uid": pod.uid(), "annotations": {ARRIVAL: text}}});
    let done = pods
        .patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await;
    absent_is_done(done).doing("noting where a pod listens")
}

/// The pod that a token belongs to.
async fn caller(context: &Context, token: &str, namespace: &str) -> Result<String, Refusal> {
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: token.to_owned(),
            audiences: Some(vec![AUDIENCE.to_owned()]),
        },
        ..TokenReview::default()
    };
    let api: Api<TokenReview> = Api::all(context.client.clone());
    let reviewed = api
        .create(&PostParams::default(), &review)
        .await
        .doing("reviewing a token")
        .map_err(unavailable)?;
    pod(&reviewed.status.unwrap_or_default(), namespace)
}

/// The pod's name, of a token for us from this namespace.
fn pod(status: &TokenReviewStatus, namespace: &str) -> Result<String, Refusal> {
    let user = status.user.as_ref();
    let audience = status
        .audiences
        .iter()
        .flatten()
        .any(|audience| audience == AUDIENCE);
    if status.authenticated != Some(true) || !audience {
        return Err((
            StatusCode::UNAUTHORIZED,
            "the token is not good here, or not any more".to_owned(),
        ));
    }
    let name = user.and_then(|user| user.username.as_deref()).unwrap_or_default();
    if !name.starts_with(&format!("system:serviceaccount:{namespace}:")) {
        return Err((
            StatusCode::FORBIDDEN,
            format!("the token is not of namespace {namespace}"),
        ));
    }
    let extra = user.and_then(|user| {
        user.extra
            .as_ref()?
            .get("authentication.kubernetes.io/pod-name")?
            .first()
    });
    extra.cloned().ok_or((
        StatusCode::FORBIDDEN,
        "the token is not bound to a pod".to_owned(),
    ))
}

/// The pod's name is made of the instance's UID, or of that of its migration: it can only be this one's, and only this run's.
fn owns(vmi: &VirtualMachineInstance, pod: &str) -> Result<Role, Refusal> {
    role(vmi, pod).ok_or_else(|| {
        (
            StatusCode::CONFLICT,
            format!("{pod} is not a pod of instance {}", vmi.name_any()),
        )
    })
}

fn unavailable(error: Error) -> Refusal {
    log::warn!("a report is not taken: {error}");
    (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn reviewed(user: &str, audience: &str, pod: Option<&str>) -> TokenReviewStatus {
        let extra = pod.map(|pod| {
            BTreeMap::from([(
                "authentication.kubernetes.io/pod-name".to_owned(),
                vec![pod.to_owned()],
            )])
        });
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![audience.to_owned()]),
            user: Some(UserInfo {
                username: Some(user.to_owned()),
                extra,
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    #[test]
    fn only_a_token_for_us_bound_to_a_pod_of_the_namespace_is_taken() {
        let user = "system:serviceaccount:n:default";
        let code = |status| pod(&status, "n").map_err(|(code, _)| code.as_u16());
        assert_eq!(code(reviewed(user, AUDIENCE, Some("p"))), Ok("p".to_owned()));
        assert_eq!(
            code(reviewed(user, "https://kubernetes.default.svc", Some("p"))),
            Err(401)
        );
        assert_eq!(
            code(reviewed("system:serviceaccount:m:default", AUDIENCE, Some("p"))),
            Err(403)
        );
        assert_eq!(
            code(reviewed("system:serviceaccount:nn:default", AUDIENCE, Some("p"))),
            Err(403)
        );
        assert_eq!(code(reviewed(user, AUDIENCE, None)), Err(403));
        assert_eq!(code(TokenReviewStatus::default()), Err(401));
    }
}
