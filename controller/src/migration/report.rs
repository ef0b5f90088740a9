//! What is written of a migration: its phase, why it waits, what its instance says.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Resource, ResourceExt};
use nacelle_api::conditions;
use nacelle_api::migration::{MigrationPhaseTransition, VirtualMachineInstanceMigration};
use serde_json::json;

use super::api;
use super::plan::{Step, World, phase_of};
use crate::context::{Context, key};
use crate::error::{Doing, Error, Result, absent_is_done};

/// Condition of one that waits: why.
pub(super) const WAITING: &str = "Waiting";
/// Condition of one whose target the namespace's quota does not allow.
pub(super) const QUOTA: &str = "migrationRejectedByResourceQuota";
/// Condition of one that somebody deleted while it went on.
const ABORT: &str = "migrationAbortRequested";

/// Writes the phase, why it waits, and what the instance says.
pub(super) async fn write(world: &World<'_>, step: &Step, context: &Context) -> Result<()> {
    let migration = world.migration;
    let old = migration.status.clone().unwrap_or_default();
    let mut new = old.clone();
    let phase = world.phase(step);
    if new.phase.as_deref() != Some(phase) {
        new.phase = Some(phase.to_owned());
        new.phase_transition_timestamps.push(MigrationPhaseTransition {
            phase: phase.to_owned(),
            phase_transition_timestamp: Time(world.now),
        });
    }
    match step {
        Step::Queue(reason, message) => {
            conditions::set(&mut new.conditions, WAITING, true, reason, message, world.now);
        }
        // The quota's word stays until there is a pod.
        Step::Create => {}
        _ => {
            conditions::clear(&mut new.conditions, WAITING);
            conditions::clear(&mut new.conditions, QUOTA);
        }
    }
    if migration.metadata.deletion_timestamp.is_some() && world.ours().is_some() {
        conditions::set(&mut new.conditions, ABORT, true, "", "", world.now);
    }
    if let Some(state) = world.ours() {
        new.migration_state = Some(state.clone());
    }
    if let Step::Over(end) = step {
        let state = new.migration_state.get_or_insert_default();
        match end {
            Ok(()) => state.completed = Some(true),
            Err(why) => {
                state.failed = Some(true);
                state.failure_reason.get_or_insert_with(|| why.clone());
            }
        }
        state.end_timestamp.get_or_insert(Time(world.now));
    }
    if matches!(step, Step::Create) && old.conditions.iter().any(|condition| condition.type_ == QUOTA) {
        // The two would take turns.
        new.conditions.clone_from(&old.conditions);
    }
    if new == old {
        return Ok(());
    }
    let status = serde_json::to_value(&new).map_err(|error| Error::Json("the migration's status", error))?;
    patch(migration, status, context).await?;
    if old.phase != new.phase {
        log::info!("{}: {} -> {phase}", key(migration), phase_of(migration));
        context.metrics.migrates(migration, phase, world.now);
        let about = migration.object_ref(&());
        match step {
            Step::Over(Ok(())) => {
                let message = "Source node reported migration succeeded";
                context.event(&about, false, "SuccessfulMigration", message).await;
            }
            Step::Over(Err(why)) => context.event(&about, true, "FailedMigration", why).await,
            _ => {}
        }
    }
    Ok(())
}

pub(super) async fn patch(
    migration: &VirtualMachineInstanceMigration,
    status: serde_json::Value,
    context: &Context,
) -> Result<()> {
    let patch = json!({"metadata": {"uid": migration.uid()}, "status": status});
    let done = api(migration, context)
        .patch_status(
            &migration.name_any(),
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await;
    absent_is_done(done).doing("reporting the migration's status")
}
