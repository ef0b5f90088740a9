//! An instance's status, written with the version that was read.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Resource, ResourceExt};
use nacelle_api::VirtualMachineInstance;
use nacelle_api::vmi::VirtualMachineInstanceStatus;
use serde_json::{Value, json};

use super::{moving, said};
use crate::context::{Context, key};
use crate::error::{Doing, Error, Result, absent_is_done};
use crate::{NODE_NAME, TARGET_NODE_NAME};

/// Writes what changed of a status, if something did, unless somebody else was faster.
///
/// # Errors
/// As the API server says; a conflict where the instance is another by now.
pub async fn write(
    vmi: &VirtualMachineInstance,
    old: &VirtualMachineInstanceStatus,
    new: &VirtualMachineInstanceStatus,
    context: &Context,
) -> Result<()> {
    if old == new {
        return Ok(());
    }
    let value = |status: &VirtualMachineInstanceStatus| {
        serde_json::to_value(status).map_err(|error| Error::Json("the status", error))
    };
    let mut patch = value(new)?;
    name_absent(&mut patch, &value(old)?);
    let target = new.migration_state.as_ref().filter(|_| moving::under_way(new));
    let target = target.and_then(|state| state.target_node.as_ref());
    let mut labels = BTreeMap::new();
    if let Some(node) = &new.node_name {
        labels.insert(NODE_NAME, Some(node));
    }
    if target.is_some() || vmi.labels().contains_key(TARGET_NODE_NAME) {
        labels.insert(TARGET_NODE_NAME, target);
    }
    let patch = json!({
        "metadata": {"resourceVersion": vmi.resource_version(), "labels": labels},
        "status": patch,
    });
    let api = context.vmis(&vmi.namespace().unwrap_or_default());
    let done = api
        .patch(&vmi.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await;
    if let Ok(written) = &done {
        context.written.note(vmi, written);
        context.metrics.entered(vmi, old, new, Timestamp::now());
    }
    absent_is_done(done).doing("reporting the instance's status")?;
    let word = |phase: &Option<String>| phase.clone().unwrap_or_default();
    log::info!("{}: {} -> {}", key(vmi), word(&old.phase), word(&new.phase));
    for (warning, reason, message) in said::said(old, new) {
        context
            .event(&vmi.object_ref(&()), warning, &reason, &message)
            .await;
    }
    Ok(())
}

/// Names what `old` has and `new` has not: a merge leaves as it is what it does not name.
fn name_absent(new: &mut Value, old: &Value) {
    if let (Some(new), Some(old)) = (new.as_object_mut(), old.as_object()) {
        for (field, old) in old {
            name_absent(new.entry(field).or_insert(Value::Null), old);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_any_more_is_named() {
        let mut new = json!({"a": {"b": 1}, "l": [1], "e": {"x": 1}});
        name_absent(
            &mut new,
            &json!({"a": {"c": 2, "b": 3}, "l": [1, 2], "d": {"f": 1}, "e": 5}),
        );
        assert_eq!(
            new,
            json!({"a": {"b": 1, "c": null}, "l": [1], "d": null, "e": {"x": 1}})
        );
    }
}
