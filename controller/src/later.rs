//! Kinds whose controller is still to come: their objects say so.

use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::runtime::controller::{Action as Requeue, Controller};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use nacelle_api::conditions::{self, Condition};
use serde_json::json;

use crate::context::Context;
use crate::crd::{KINDS, Kind, Served};
use crate::error::{Doing, Error, Result, absent_is_done};
use crate::run::Patience;

/// Reason of the condition.
const REASON: &str = "NotSupported";

/// Watches every such kind, for as long as this replica leads.
pub async fn run(context: Arc<Context>) {
    let kinds = KINDS
        .iter()
        .filter(|kind| kind.status && matches!(kind.schema, Served::Stored));
    futures_util::future::join_all(kinds.map(|kind| watch(kind, context.clone()))).await;
}

async fn watch(kind: &'static Kind, context: Arc<Context>) {
    let resource = kind.resource();
    let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &resource);
    Controller::new_with(api, watcher::Config::default(), resource)
        .trigger_backoff(Patience::new())
        .run(
            move |object, context| tell(object, kind, context),
            |_, error: &Error, _| Requeue::requeue(error.retry_after()),
            context,
        )
        .for_each(async |_| {})
        .await;
}

async fn tell(object: Arc<DynamicObject>, kind: &'static Kind, context: Arc<Context>) -> Result<Requeue> {
    let list = object
        .data
        .pointer("/status/conditions")
        .cloned()
        .unwrap_or_default();
    let mut list: Vec<Condition> = serde_json::from_value(list).unwrap_or_default();
    let before = list.clone();
    let message = format!(
        "this version of Nacelle stores a {} and does nothing with it yet",
        kind.name
    );
    conditions::set(&mut list, "Ready", false, REASON, &message, Timestamp::now());
    if list != before {
        let resource = kind.resource();
        let api: Api<DynamicObject> = match object.namespace() {
            Some(namespace) => Api::namespaced_with(context.client.clone(), &namespace, &resource),
            None => Api::all_with(context.client.clone(), &resource),
        };
        let patch = Patch::Merge(json!({"status": {"conditions": list}}));
        let done = api
            .patch_status(&object.name_any(), &PatchParams::default(), &patch)
            .await;
        absent_is_done(done).doing("saying that a kind is not supported yet")?;
    }
    Ok(Requeue::await_change())
}
