//! What the API server asks an aggregated API before it passes anything on, and what needs no user.

use std::sync::Arc;

use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::route::SUBRESOURCES;
use crate::context::Context;
use crate::upload;

/// The group.
const GROUP: &str = "subresources.kubevirt.io";
/// Versions, the preferred one first; they are the same.
const VERSIONS: [&str; 2] = ["v1", "v1alpha3"];
/// The version of KubeVirt's API that this one is compatible with. virtctl compares it with its own.
pub(crate) const COMPATIBLE: &str = "v1.8.4";

pub(super) fn router() -> Router<Arc<Context>> {
    let mut router = Router::new()
        .route(
            "/apis",
            get(async || {
                Json(
                    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group(), upload::group()]}),
                )
            }),
        )
        .route(&format!("/apis/{GROUP}"), get(async || Json(group())))
        .route("/openapi/v2", get(async || Json(swagger())))
        .route("/openapi/v3", get(async || Json(openapi_index())));
    for version in VERSIONS {
        router = router
            .route(
                &format!("/apis/{GROUP}/{version}"),
                get(async move || Json(resources(version))),
            )
            .route(
                &format!("/apis/{GROUP}/{version}/version"),
                get(async || Json(info())),
            )
            .route(&format!("/apis/{GROUP}/{version}/healthz"), get(async || "ok"))
            .route(
                &format!("/openapi/v3/apis/{GROUP}/{version}"),
                get(async move || Json(openapi(version))),
            );
    }
    router
}

fn group() -> Value {
    let version = |version| json!({"groupVersion": format!("{GROUP}/{version}"), "version": version});
    let versions: Vec<_> = VERSIONS.into_iter().map(version).collect();
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": GROUP, "versions": versions, "preferredVersion": versions.first()})
}

fn resources(version: &str) -> Value {
    let mut list: Vec<Value> = SUBRESOURCES
        .iter()
        .map(|(resource, method, name, _)| {
            let kind = match resource {
                super::Resource::Vm => "VirtualMachine",
                super::Resource::Vmi => "VirtualMachineInstance",
            };
            let verb = if *method == "GET" { "get" } else { "update" };
            json!({"name": format!("{}/{name}", resource.as_str()), "singularName": "", "namespaced": true,
                "kind": kind, "verbs": [verb]})
        })
        .collect();
    list.push(json!({"name": "expand-vm-spec", "singularName": "", "namespaced": true, "kind": "VirtualMachine", "verbs": ["update"]}));
    list.push(json!({"name": "version", "singularName": "", "namespaced": false, "kind": "Version", "verbs": ["get"]}));
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{version}"), "resources": list})
}

fn info() -> Value {
    json!({
        "major": "1", "minor": "8", "gitVersion": COMPATIBLE, "gitCommit": concat!("nacelle-", env!("CARGO_PKG_VERSION")),
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
        "platform": "linux/amd64",
    })
}

/// Operations by path, for both forms of OpenAPI.
fn paths(version: &str) -> Value {
    let mut paths = serde_json::Map::new();
    for (resource, method, name, _) in SUBRESOURCES {
        let path = format!(
            "/apis/{GROUP}/{version}/namespaces/{{namespace}}/{}/{{name}}/{name}",
            resource.as_str()
        );
        let operation = json!({
            "operationId": format!("{version}{}-{name}", resource.as_str()),
            "responses": {"200": {"description": "OK"}, "401": {"description": "Unauthorized"}},
        });
        let at = paths.entry(path).or_insert_with(|| json!({}));
        at[method.to_lowercase()] = operation;
    }
    Value::Object(paths)
}

fn description() -> Value {
    json!({"title": "KubeVirt API, served by Nacelle", "version": COMPATIBLE})
}

fn swagger() -> Value {
    let mut all = serde_json::Map::new();
    for version in VERSIONS {
        if let Value::Object(paths) = paths(version) {
            all.extend(paths);
        }
    }
    json!({"swagger": "2.0", "info": description(), "paths": all})
}

fn openapi_index() -> Value {
    let entry = |path: String| {
        let url = format!("/openapi/v3/{path}?hash={}", env!("CARGO_PKG_VERSION"));
        (path, json!({"serverRelativeURL": url}))
    };
    let upload = entry(format!("apis/{}/{}", upload::GROUP, upload::VERSION));
    let own = VERSIONS.map(|version| entry(format!("apis/{GROUP}/{version}")));
    json!({"paths": own.into_iter().chain([upload]).collect::<serde_json::Map<_, _>>()})
}

fn openapi(version: &str) -> Value {
    json!({"openapi": "3.0.0", "info": description(), "paths": paths(version)})
}
