//! `migrate` and `evacuate/cancel`.

use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use nacelle_api::migration::VirtualMachineInstanceMigrationSpec;
use nacelle_api::{VirtualMachineInstance, VirtualMachineInstanceMigration, conditions};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;

use super::Refusal;
use crate::context::Context;
use crate::error::is;
use crate::migration::evacuation::EVACUATION;
use crate::migration::plan::is_over;
use crate::migration::{api_of, labels};

/// Of `migrate`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct MigrateOptions {
    pub dry_run: Vec<String>,
    pub added_node_selector: BTreeMap<String, String>,
}

/// Whether the instance can be asked to move.
fn movable(vmi: Option<&VirtualMachineInstance>) -> Result<&VirtualMachineInstance, Refusal> {
    let running = |vmi: &&VirtualMachineInstance| {
        let status = vmi.status.as_ref();
        status.and_then(|status| status.phase.as_deref()) == Some("Running")
    };
    let vmi = vmi
        .filter(running)
        .ok_or_else(|| Refusal::conflict("VM is not running"))?;
    let list = vmi.status.as_ref().map_or(&[][..], |status| &status.conditions);
    if conditions::is_true(list, "Paused") {
        return Err(Refusal::conflict("VMI is paused"));
    }
    Ok(vmi)
}

/// Makes a migration of the instance.
pub(super) async fn migrate(
    context: &Context,
    vmi: Option<&VirtualMachineInstance>,
    options: &MigrateOptions,
) -> Result<(), Refusal> {
    let vmi = movable(vmi)?;
    let spec = VirtualMachineInstanceMigrationSpec {
        vmi_name: Some(vmi.name_any()),
        added_node_selector: options.added_node_selector.clone(),
        ..VirtualMachineInstanceMigrationSpec::default()
    };
    let mut migration = VirtualMachineInstanceMigration::new("", spec);
    migration.metadata.name = None;
    migration.metadata.generate_name = Some("kubevirt-migrate-vm-".to_owned());
    let params = PostParams {
        dry_run: !options.dry_run.is_empty(),
        ..PostParams::default()
    };
    let api = api_of(context, &vmi.namespace().unwrap_or_default());
    match api.create(&params, &migration).await {
        Err(kube::Error::Api(said)) if said.code == 422 => Err(Refusal::bad_request(said.message)),
        done => Ok(done.map(drop)?),
    }
}

/// The instance is left where it is; what was begun for the evacuation is given up.
pub(super) async fn cancel_evacuation(
    context: &Context,
    vmi: &VirtualMachineInstance,
    dry_run: &[String],
) -> Result<(), Refusal> {
    let namespace = vmi.namespace().unwrap_or_default();
    let params = PatchParams {
        dry_run: !dry_run.is_empty(),
        ..PatchParams::default()
    };
    let patch = json!({"status": {"evacuationNodeName": null}});
    context
        .vmis(&namespace)
        .patch(&vmi.name_any(), &params, &Patch::Merge(patch))
        .await?;
    let api = api_of(context, &namespace);
    let of = labels(&vmi.name_any())
        .into_iter()
        .map(|(label, value)| format!("{label}={value}"));
    let all = api
        .list(&ListParams::default().labels(&of.collect::<String>()))
        .await?;
    let begun = |migration: &&VirtualMachineInstanceMigration| {
        migration.annotations().contains_key(EVACUATION) && !is_over(migration)
    };
    for migration in all.iter().filter(begun) {
        let params = DeleteParams {
            dry_run: !dry_run.is_empty(),
            ..DeleteParams::default()
        };
        match api.delete(&migration.name_any(), &params).await {
            Err(error) if !is(&error, 404) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
