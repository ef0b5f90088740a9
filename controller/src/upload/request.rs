//! The aggregated API `upload.cdi.kubevirt.io`: an UploadTokenRequest is created, and answered with a token.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use serde::Deserialize;
use serde_json::{Value, json};

use super::target;
use super::token::Claims;
use crate::context::Context;
use crate::server::Peer;
use crate::subresource::{Refusal, authz, body, user};

/// The group.
pub const GROUP: &str = "upload.cdi.kubevirt.io";
/// Its version.
pub const VERSION: &str = "v1beta1";
const RESOURCE: &str = "uploadtokenrequests";
const KIND: &str = "UploadTokenRequest";

/// What is asked.
#[derive(Default, Deserialize)]
#[serde(default)]
struct UploadTokenRequest {
    metadata: Value,
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    pvc_name: String,
}

/// The API, and what is found out about it.
pub fn router(context: Arc<Context>) -> Router {
    let root = format!("/apis/{GROUP}");
    Router::new()
        .route(&root, get(async || Json(group())))
        .route(&format!("{root}/{VERSION}"), get(async || Json(resources())))
        .route(
            &format!("/openapi/v3/apis/{GROUP}/{VERSION}"),
            get(async || Json(openapi())),
        )
        .route(
            &format!("{root}/{VERSION}/namespaces/{{namespace}}/{RESOURCE}"),
            post(create),
        )
        .with_state(context)
}

/// As discovery has it.
pub fn group() -> Value {
    let version = json!({"groupVersion": format!("{GROUP}/{VERSION}"), "version": VERSION});
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": GROUP, "versions": [version], "preferredVersion": version})
}

fn resources() -> Value {
    let resource = json!({"name": RESOURCE, "singularName": "uploadtokenrequest", "namespaced": true, "kind": KIND,
        "shortNames": ["utr", "utrs"], "verbs": ["create"]});
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": [resource]})
}

fn openapi() -> Value {
    let operation = json!({
        "operationId": "createUploadTokenRequest",
        "responses": {"201": {"description": "Created"}, "401": {"description": "Unauthorized"}},
        "x-kubernetes-group-version-kind": {"group": GROUP, "version": VERSION, "kind": KIND},
    });
    let path = format!("/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/{RESOURCE}");
    json!({"openapi": "3.0.0", "info": {"title": "CDI's upload API, served by Nacelle", "version": VERSION},
        "paths": {(path): {"post": operation}}})
}

async fn create(
    State(context): State<Arc<Context>>,
    Extension(peer): Extension<Peer>,
    Path(namespace): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let user = user(&peer, request.headers())?;
    let attributes = ResourceAttributes {
        group: Some(GROUP.to_owned()),
        version: Some(VERSION.to_owned()),
        resource: Some(RESOURCE.to_owned()),
        namespace: Some(namespace.clone()),
        verb: Some("create".to_owned()),
        ..ResourceAttributes::default()
    };
    authz::check(&context, &user, attributes).await?;
    let mut asked: UploadTokenRequest = body(request).await?;
    let name = asked.spec.pvc_name;
    if name.is_empty() {
        return Err(Refusal::bad_request(
            "spec.pvcName is missing: the claim that is to be filled",
        ));
    }
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace);
    let claim = claims.get_opt(&name).await?;
    let claim = claim.ok_or_else(|| {
        let message = format!("persistentvolumeclaims \"{name}\" not found in the namespace \"{namespace}\"");
        Refusal::new(StatusCode::NOT_FOUND, "NotFound", message)
    })?;
    let target = target(&claim).map_err(Refusal::bad_request)?;
    let keys = context.trusted.borrow().keys.clone();
    let now = Timestamp::now();
    let token = Claims::new(&namespace, &name, &target.uid, now).signed(keys.current());
    let token = token.map_err(|error| Refusal::internal(error.to_string()))?;
    if let Some(metadata) = asked.metadata.as_object_mut() {
        metadata.insert("namespace".to_owned(), json!(namespace));
        metadata.insert(
            "creationTimestamp".to_owned(),
            json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        );
    }
    let answer = json!({"apiVersion": format!("{GROUP}/{VERSION}"), "kind": KIND, "metadata": asked.metadata,
        "spec": {"pvcName": name}, "status": {"token": token}});
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}
