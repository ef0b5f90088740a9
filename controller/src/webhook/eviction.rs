//! A node is drained: may this launcher pod be evicted?

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse};
use kube::core::response::{Status, StatusSummary};
use kube::{Api, ResourceExt};
use nacelle_api::VirtualMachineInstance;
use serde_json::json;

use super::Review;
use crate::context::Context;

/// What an eviction comes to.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// The pod goes, and its machine with it.
    Allow,
    /// 429 with this sentence.
    Deny(String),
    /// 429, and somebody else is asked to move the machine.
    Announce(String),
}

fn decide(vmi: &VirtualMachineInstance) -> Decision {
    let name = vmi.name_any();
    let namespace = vmi.namespace().unwrap_or_default();
    let moving = vmi
        .status
        .as_ref()
        .is_some_and(|status| status.evacuation_node_name.is_some());
    match vmi.spec.eviction_strategy.as_deref() {
        // Machines cannot be moved yet.
        Some("LiveMigrate") => Decision::Deny(format!(
            "VMI {name} is configured with an eviction strategy but is not live-migratable"
        )),
        Some("External") if moving => Decision::Deny(format!(
            "Evacuation in progress: Eviction triggered evacuation of VMI \"{namespace}/{name}\""
        )),
        Some("External") => Decision::Announce(format!(
            "Eviction triggered evacuation of VMI \"{namespace}/{name}\""
        )),
        _ => Decision::Allow,
    }
}

pub(super) async fn review(State(context): State<Arc<Context>>, Json(review): Review) -> Review {
    let request: AdmissionRequest<DynamicObject> = match review.try_into() {
        Ok(request) => request,
        Err(error) => return Json(AdmissionResponse::invalid(error).into_review()),
    };
    let response = AdmissionResponse::from(&request);
    let response = match instance(&context, &request).await {
        Ok(None) => response,
        Ok(Some((vmi, node))) => match decide(&vmi) {
            Decision::Allow => response,
            Decision::Deny(message) => too_many(response, message),
            Decision::Announce(message) => match announce(&context, &vmi, &node, request.dry_run).await {
                Ok(()) => too_many(response, message),
                Err(error) => too_many(response, format!("{message}; it cannot be noted: {error}")),
            },
        },
        Err(error) => too_many(response, format!("whose pod it is cannot be found out: {error}")),
    };
    Json(response.into_review())
}

/// The instance that runs in the pod, and its node; none where the pod is nobody's.
async fn instance(
    context: &Context,
    request: &AdmissionRequest<DynamicObject>,
) -> Result<Option<(VirtualMachineInstance, String)>, kube::Error> {
    let namespace = request.namespace.as_deref().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let Some(pod) = pods.get_opt(&request.name).await? else {
        return Ok(None);
    };
    let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let Some(name) = pod.annotations().get("kubevirt.io/domain") else {
        return Ok(None);
    };
    if matches!(ended, Some("Succeeded" | "Failed")) {
        return Ok(None);
    }
    let node = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.node_name.clone())
        .unwrap_or_default();
    Ok(context
        .vmis(namespace)
        .get_opt(name)
        .await?
        .map(|vmi| (vmi, node)))
}

async fn announce(
    context: &Context,
    vmi: &VirtualMachineInstance,
    node: &str,
    dry_run: bool,
) -> Result<(), kube::Error> {
    let patch = json!({"status": {"evacuationNodeName": node}});
    let params = PatchParams {
        dry_run,
        ..PatchParams::default()
    };
    let api = context.vmis(&vmi.namespace().unwrap_or_default());
    api.patch(&vmi.name_any(), &params, &Patch::Merge(patch))
        .await
        .map(|_| ())
}

fn too_many(mut response: AdmissionResponse, message: String) -> AdmissionResponse {
    response.allowed = false;
    response.result = Status {
        status: Some(StatusSummary::Failure),
        code: 429,
        message,
        reason: "TooManyRequests".to_owned(),
        ..Status::default()
    };
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_that_asks_for_it_stays() {
        let vmi = |strategy: Option<&str>| {
            let mut vmi = VirtualMachineInstance::new("a", Default::default());
            vmi.metadata.namespace = Some("n".into());
            vmi.spec.eviction_strategy = strategy.map(str::to_owned);
            vmi
        };
        assert_eq!(decide(&vmi(None)), Decision::Allow);
        assert_eq!(decide(&vmi(Some("None"))), Decision::Allow);
        assert_eq!(decide(&vmi(Some("LiveMigrateIfPossible"))), Decision::Allow);
        let message = "VMI a is configured with an eviction strategy but is not live-migratable";
        assert_eq!(decide(&vmi(Some("LiveMigrate"))), Decision::Deny(message.into()));
        let message = "Eviction triggered evacuation of VMI \"n/a\"";
        assert_eq!(decide(&vmi(Some("External"))), Decision::Announce(message.into()));
    }
}
