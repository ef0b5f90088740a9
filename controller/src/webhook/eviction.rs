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
use crate::migration::evacuation::can_move;
use crate::vmi::moving::{Role, role, under_way};

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

/// What an eviction of the pod `name` on `node` comes to.
fn decide(vmi: &VirtualMachineInstance, name: &str, node: &str) -> Decision {
    let of = format!("{}/{}", vmi.namespace().unwrap_or_default(), vmi.name_any());
    let status = vmi.status.as_ref();
    match role(vmi, name) {
        Some(Role::InCharge) => {}
        Some(Role::Target) if status.is_some_and(under_way) => {
            return Decision::Deny("Eviction request for target Pod".to_owned());
        }
        // The machine has left it, or never comes.
        _ => return Decision::Allow,
    }
    let external = match vmi.spec.eviction_strategy.as_deref() {
        Some("LiveMigrate") if !can_move(vmi) => {
            return Decision::Deny(format!(
                "VMI {} is configured with an eviction strategy but is not live-migratable",
                vmi.name_any()
            ));
        }
        Some("LiveMigrateIfPossible") if !can_move(vmi) => return Decision::Allow,
        Some("LiveMigrate" | "LiveMigrateIfPossible") => false,
        Some("External") => true,
        _ => return Decision::Allow,
    };
    let triggered = format!("Eviction triggered evacuation of VMI \"{of}\"");
    let marked = status.and_then(|status| status.evacuation_node_name.as_deref());
    // One that was left behind by another node says nothing of this one; whoever moves External ones may clear it late.
    match marked == Some(node) || (external && marked.is_some()) {
        true => Decision::Deny(format!("Evacuation in progress: {triggered}")),
        false => Decision::Announce(triggered),
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
        Ok(Some((vmi, node))) => match decide(&vmi, &request.name, &node) {
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
    use crate::vmi::moving::in_charge;

    #[test]
    fn only_a_machine_that_asks_for_it_stays_or_moves() {
        let vmi = |strategy: &str, able: &str, marked: Option<&str>| -> VirtualMachineInstance {
            serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "n", "uid": "1"},
                "spec": {"domain": {"devices": {}}, "evictionStrategy": strategy},
                "status": {"phase": "Running", "evacuationNodeName": marked,
                    "conditions": [{"type": "LiveMigratable", "status": able}]}}))
            .unwrap()
        };
        let fixed = "VMI a is configured with an eviction strategy but is not live-migratable";
        let moves = "Eviction triggered evacuation of VMI \"n/a\"";
        let begun = format!("Evacuation in progress: {moves}");
        let table = [
            ("None", "True", None, Decision::Allow),
            ("LiveMigrate", "False", None, Decision::Deny(fixed.into())),
            ("LiveMigrate", "True", None, Decision::Announce(moves.into())),
            ("LiveMigrate", "True", Some("here"), Decision::Deny(begun.clone())),
            (
                "LiveMigrate",
                "True",
                Some("before"),
                Decision::Announce(moves.into()),
            ),
            ("LiveMigrateIfPossible", "False", None, Decision::Allow),
            (
                "LiveMigrateIfPossible",
                "True",
                None,
                Decision::Announce(moves.into()),
            ),
            ("External", "False", None, Decision::Announce(moves.into())),
            ("External", "False", Some("here"), Decision::Deny(begun)),
        ];
        for (strategy, able, marked, decision) in table {
            let vmi = vmi(strategy, able, marked);
            assert_eq!(
                decide(&vmi, &in_charge(&vmi), "here"),
                decision,
                "{strategy} {able} {marked:?}"
            );
        }
    }

    #[test]
    fn a_pod_that_the_machine_has_left_goes_and_one_that_waits_for_it_stays() {
        let vmi = |there: Option<&str>| -> VirtualMachineInstance {
            serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "n", "uid": "1"},
                "spec": {"domain": {"devices": {}}, "evictionStrategy": "LiveMigrate"},
                "status": {"phase": "Running", "migrationState": {"sourcePod": "from", "targetPod": "to",
                    "targetNodeDomainReadyTimestamp": there}}}))
            .unwrap()
        };
        let waits = Decision::Deny("Eviction request for target Pod".into());
        assert_eq!(decide(&vmi(None), "to", "there"), waits);
        assert_eq!(
            decide(&vmi(Some("2026-01-01T00:00:00Z")), "from", "here"),
            Decision::Allow
        );
    }
}
