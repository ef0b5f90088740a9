//! Migrations: labelled and kept until they are over; refused where the instance cannot move. The decision is pure.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use kube::ResourceExt;
use kube::api::ListParams;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, Operation};
use nacelle_api::{
    Cause, CauseKind, FieldPath, VirtualMachineInstance, VirtualMachineInstanceMigration, conditions,
};
use serde_json::Value;

use super::mutate::{add_finalizer, read, replaced};
use super::{Question, Review, objects, refused};
use crate::MIGRATION_FINALIZER;
use crate::context::Context;
use crate::migration::plan::is_over;
use crate::migration::{api_of, labels};
use crate::vmi::status::is_final;

/// A migration is found by its instance, and stays until it is over.
pub(super) fn complete(question: &Question<'_>) -> Result<Value, Cause> {
    let migration: VirtualMachineInstanceMigration = read(question.object)?;
    if question.old.is_some() {
        return Ok(question.object.clone());
    }
    let mut all = migration.metadata.labels.clone().unwrap_or_default();
    all.extend(labels(migration.spec.vmi_name.as_deref().unwrap_or_default()));
    let mut out = question.object.clone();
    if let Some(metadata) = out.get("metadata") {
        let metadata = replaced(metadata, "labels", &all)?;
        out = replaced(&out, "metadata", &metadata)?;
    }
    add_finalizer(&mut out, MIGRATION_FINALIZER);
    Ok(out)
}

fn invalid(field: &str, message: impl Into<String>) -> Cause {
    Cause {
        kind: CauseKind::FieldValueInvalid,
        message: message.into(),
        field: FieldPath::new(field),
    }
}

/// What is wrong with a migration that is made, for this instance, of which these others are there.
fn check(
    migration: &VirtualMachineInstanceMigration,
    vmi: Option<&VirtualMachineInstance>,
    others: &[VirtualMachineInstanceMigration],
    ours: bool,
) -> Result<(), Cause> {
    let spec = &migration.spec;
    let namespace = migration.namespace().unwrap_or_default();
    let name = spec.vmi_name.as_deref().unwrap_or_default();
    if name.is_empty() {
        return Err(invalid("spec.vmiName", "vmiName is missing"));
    }
    for (field, there) in [
        ("spec.sendTo", spec.send_to.is_some()),
        ("spec.receive", spec.receive.is_some()),
    ] {
        if there {
            let message =
                format!("{field} is not allowed: DecentralizedLiveMigration feature gate is not enabled");
            return Err(invalid(field, message));
        }
    }
    if spec.priority.is_some() && !ours {
        return Err(invalid(
            "spec.priority",
            "spec.priority can only be set by the controller",
        ));
    }
    let Some(vmi) = vmi else {
        return Err(invalid(
            "spec.vmiName",
            format!("the VMI \"{namespace}/{name}\" does not exist"),
        ));
    };
    let status = vmi.status.clone().unwrap_or_default();
    if is_final(&status) {
        return Err(invalid("spec.vmiName", "Cannot migrate VMI in finalized state."));
    }
    if let Some(why) =
        conditions::find(&status.conditions, "LiveMigratable").filter(|why| why.status == "False")
    {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let message = format!(
            "Cannot migrate VMI, Reason: {}, Message: {}",
            text(&why.reason),
            text(&why.message)
        );
        return Err(invalid("spec.vmiName", message));
    }
    let active = others
        .iter()
        .find(|other| other.spec.vmi_name == spec.vmi_name && !is_over(other));
    if let Some(other) = active {
        let message = format!(
            "in-flight migration detected. Active migration job ({}) is currently already in progress for VMI {name}.",
            other.uid().unwrap_or_default()
        );
        return Err(invalid("spec.vmiName", message));
    }
    Ok(())
}

pub(super) async fn review(State(context): State<Arc<Context>>, Json(review): Review) -> Review {
    let request: AdmissionRequest<DynamicObject> = match review.try_into() {
        Ok(request) => request,
        Err(error) => return Json(AdmissionResponse::invalid(error).into_review()),
    };
    let response = AdmissionResponse::from(&request);
    let response = match decide(&context, &request).await {
        Ok(Ok(())) => response,
        Ok(Err(cause)) => refused(response, &[cause]),
        Err(error) => response.deny(format!("the instance cannot be looked at: {error}")),
    };
    Json(response.into_review())
}

async fn decide(
    context: &Context,
    request: &AdmissionRequest<DynamicObject>,
) -> Result<Result<(), Cause>, kube::Error> {
    let Some((object, old)) = objects(request) else {
        return Ok(Ok(()));
    };
    let migration: VirtualMachineInstanceMigration = match read(&object) {
        Ok(migration) => migration,
        Err(cause) => return Ok(Err(cause)),
    };
    if request.operation == Operation::Update {
        let same = old.is_some_and(|old| old.get("spec") == object.get("spec"));
        let changed = || Err(invalid("spec", "update of Migration object's spec is restricted"));
        return Ok(if same { Ok(()) } else { changed() });
    }
    let ours = request.user_info.username.as_deref() == Some(&context.user);
    let namespace = request.namespace.clone().unwrap_or_default();
    let name = migration.spec.vmi_name.clone().unwrap_or_default();
    let vmi = match name.is_empty() {
        true => None,
        false => context.vmis(&namespace).get_opt(&name).await?,
    };
    let others = api_of(context, &namespace)
        .list(&ListParams::default())
        .await?
        .items;
    let mut migration = migration;
    migration.metadata.namespace = Some(namespace);
    Ok(check(&migration, vmi.as_ref(), &others, ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<T: serde::de::DeserializeOwned>(text: &str) -> T {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn what_cannot_move_is_refused_in_kubevirts_words() {
        let migration = |spec: &str| -> VirtualMachineInstanceMigration {
            of(&format!("{{metadata: {{name: m, namespace: n}}, spec: {spec}}}"))
        };
        let vmi = |status: &str| -> VirtualMachineInstance {
            of(&format!(
                "{{metadata: {{name: a}}, spec: {{domain: {{devices: {{}}}}}}, status: {status}}}"
            ))
        };
        let fine = vmi("{phase: Running}");
        let said = |migration: &_, vmi: Option<&_>, others: &[_]| {
            check(migration, vmi, others, false)
                .err()
                .map(|cause| cause.message)
                .unwrap_or_default()
        };
        let asked = migration("{vmiName: a}");
        assert_eq!(said(&asked, Some(&fine), &[]), "");
        assert_eq!(said(&migration("{}"), Some(&fine), &[]), "vmiName is missing");
        assert_eq!(said(&asked, None, &[]), "the VMI \"n/a\" does not exist");
        let ended = vmi("{phase: Succeeded}");
        assert_eq!(
            said(&asked, Some(&ended), &[]),
            "Cannot migrate VMI in finalized state."
        );
        let fixed = vmi(
            "{phase: Running, conditions: [{type: LiveMigratable, status: 'False', \
            reason: DisksNotLiveMigratable, message: why}]}",
        );
        assert_eq!(
            said(&asked, Some(&fixed), &[]),
            "Cannot migrate VMI, Reason: DisksNotLiveMigratable, Message: why"
        );
        let mut other = migration("{vmiName: a}");
        other.metadata.uid = Some("u".into());
        let message = "in-flight migration detected. Active migration job (u) is currently already in progress for VMI a.";
        assert_eq!(said(&asked, Some(&fine), &[other.clone()]), message);
        other.status.get_or_insert_default().phase = Some("Failed".into());
        assert_eq!(said(&asked, Some(&fine), &[other]), "");
        let hurried = migration("{vmiName: a, priority: system-critical}");
        assert!(said(&hurried, Some(&fine), &[]).starts_with("spec.priority"));
    }
}
