//! Which migration may begin: so many at once in the cluster, and out of a node.

use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use nacelle_api::{VirtualMachineInstance, VirtualMachineInstanceMigration, conditions};

use super::plan::phase_of;
use super::report::WAITING;
use crate::context::Context;
use crate::error::{Doing, Result};

/// Why it has to wait for others.
pub(super) async fn busy(
    migration: &VirtualMachineInstanceMigration,
    vmi: Option<&VirtualMachineInstance>,
    context: &Context,
) -> Result<Option<String>> {
    let limits = context.configuration().migrations.clone();
    let all: Api<VirtualMachineInstance> = Api::all(context.client.clone());
    let all = all
        .list(&ListParams::default())
        .await
        .doing("listing instances")?;
    let node = vmi.and_then(|vmi| vmi.status.as_ref()?.node_name.clone());
    let under_way: Vec<_> = all
        .iter()
        .filter_map(|vmi| vmi.status.as_ref()?.migration_state.as_ref())
        .filter(|state| !state.is_over())
        .collect();
    let outbound = under_way.iter().filter(|state| state.source_node == node).count();
    if outbound >= limits.per_node {
        return Ok(Some(format!(
            "{outbound} migrations leave node {}, parallelOutboundMigrationsPerNode is {}",
            node.unwrap_or_default(),
            limits.per_node
        )));
    }
    let free = limits.per_cluster.saturating_sub(under_way.len());
    let migrations: Api<VirtualMachineInstanceMigration> = Api::all(context.client.clone());
    let waiting = migrations
        .list(&ListParams::default())
        .await
        .doing("listing migrations")?;
    let mine = rank(migration);
    let before = waiting
        .iter()
        .filter(|other| waits_for_a_place(other) && rank(other) < mine)
        .count();
    if before < free {
        return Ok(None);
    }
    Ok(Some(format!(
        "{} migrations go on and {before} wait before it, parallelMigrationsPerCluster is {}",
        under_way.len(),
        limits.per_cluster
    )))
}

/// Where it stands in the queue.
fn rank(migration: &VirtualMachineInstanceMigration) -> (u8, Option<Timestamp>, String) {
    let priority = match migration.spec.priority.as_deref() {
        Some("system-critical") => 0,
        None | Some("user-triggered") => 1,
        Some(_) => 2,
    };
    let made = migration.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (priority, made, migration.uid().unwrap_or_default())
}

/// Whether it waits for nothing else.
fn waits_for_a_place(migration: &VirtualMachineInstanceMigration) -> bool {
    let list = migration
        .status
        .as_ref()
        .map_or(&[][..], |status| &status.conditions);
    let waits = conditions::find(list, WAITING).is_some_and(|why| why.reason.as_deref() == Some("Limit"));
    waits && matches!(phase_of(migration), "" | "Pending") && migration.metadata.deletion_timestamp.is_none()
}
