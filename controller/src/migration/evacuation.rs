//! Evacuations: an instance that is to leave its node (`status.evacuationNodeName`, which the eviction of its pod sets) gets a
//! migration of its own, and another one, later and later, where that comes to nothing. The decision is pure.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{ListParams, PostParams};
use kube::{Resource, ResourceExt};
use nacelle_api::migration::VirtualMachineInstanceMigrationSpec;
use nacelle_api::{VirtualMachineInstance, VirtualMachineInstanceMigration, conditions};

use super::plan::{is_over, phase_of};
use super::{api_of, labels};
use crate::context::Context;
use crate::error::{Doing, Result, is};
use crate::vmi::build::name_of;
use crate::vmi::status::is_final;

/// Annotation of migrations that an evacuation made: the node that is left.
pub const EVACUATION: &str = "kubevirt.io/evacuationMigration";
/// The pause after a first attempt that came to nothing, and the longest.
const PAUSE: SignedDuration = SignedDuration::from_secs(20);
const LONGEST: SignedDuration = SignedDuration::from_mins(5);

/// What an evacuation needs now.
#[derive(Debug, PartialEq, Eq)]
enum Need {
    /// Nothing: there is none, or a migration of the instance goes on.
    Nothing,
    /// One more migration, the number of which this is.
    Migration(usize),
    /// The same, so much later.
    Later(SignedDuration),
}

/// Whether an instance goes when its node is drained.
pub fn leaves(vmi: &VirtualMachineInstance) -> bool {
    moves(vmi) && can_move(vmi)
}

/// Whether this kind of instance is moved by us when its pod is evicted.
fn moves(vmi: &VirtualMachineInstance) -> bool {
    matches!(
        vmi.spec.eviction_strategy.as_deref(),
        Some("LiveMigrate" | "LiveMigrateIfPossible")
    )
}

/// Whether it can be moved.
pub fn can_move(vmi: &VirtualMachineInstance) -> bool {
    let status = vmi.status.as_ref();
    status.is_some_and(|status| conditions::is_true(&status.conditions, "LiveMigratable"))
}

fn need(
    vmi: &VirtualMachineInstance,
    migrations: &[VirtualMachineInstanceMigration],
    now: Timestamp,
) -> Need {
    let Some(status) = vmi.status.as_ref() else {
        return Need::Nothing;
    };
    let leaves = status.evacuation_node_name.is_some() && status.evacuation_node_name == status.node_name;
    let able = moves(vmi) && can_move(vmi) && vmi.metadata.deletion_timestamp.is_none();
    if !leaves || !able || is_final(status) || migrations.iter().any(|migration| !is_over(migration)) {
        return Need::Nothing;
    }
    let of_this = |migration: &&VirtualMachineInstanceMigration| {
        migration.annotations().get(EVACUATION) == status.node_name.as_ref()
            && phase_of(migration) == "Failed"
    };
    let ended = |migration: &VirtualMachineInstanceMigration| {
        let state = migration.status.as_ref()?.migration_state.as_ref()?;
        state.end_timestamp.as_ref().map(|time| time.0)
    };
    let failed: Vec<_> = migrations.iter().filter(of_this).collect();
    let Some(last) = failed.iter().filter_map(|migration| ended(migration)).max() else {
        return Need::Migration(failed.len());
    };
    let doublings = u32::try_from(failed.len().saturating_sub(1)).unwrap_or(8).min(8);
    let pause = (PAUSE * 2_i32.pow(doublings)).min(LONGEST);
    let left = last + pause;
    match left > now {
        true => Need::Later(left.duration_since(now)),
        false => Need::Migration(failed.len()),
    }
}

/// Makes the migration that an evacuation of the instance needs, if it needs one; when to look again.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn step(
    vmi: &VirtualMachineInstance,
    context: &Context,
    now: Timestamp,
) -> Result<Option<Duration>> {
    let Some(node) = vmi
        .status
        .as_ref()
        .and_then(|status| status.evacuation_node_name.clone())
    else {
        return Ok(None);
    };
    let name = vmi.name_any();
    let api = api_of(context, &vmi.namespace().unwrap_or_default());
    let of = labels(&name)
        .into_iter()
        .map(|(label, value)| format!("{label}={value}"));
    let of = ListParams::default().labels(&of.collect::<String>());
    let migrations = api.list(&of).await.doing("listing migrations")?.items;
    let number = match need(vmi, &migrations, now) {
        Need::Nothing => return Ok(None),
        Need::Later(left) => return Ok(Some(left.unsigned_abs())),
        Need::Migration(number) => number,
    };
    let spec = VirtualMachineInstanceMigrationSpec {
        vmi_name: Some(name.clone()),
        priority: Some("system-critical".to_owned()),
        ..VirtualMachineInstanceMigrationSpec::default()
    };
    let newest = migrations
        .iter()
        .filter_map(ResourceExt::uid)
        .max()
        .unwrap_or_default();
    // Its name makes it once, whoever makes it.
    let unique = format!("{} {node} {number} {newest}", vmi.uid().unwrap_or_default());
    let unique = name_of(&name, &unique).replacen("virt-launcher-", "kubevirt-evacuation-", 1);
    let mut migration = VirtualMachineInstanceMigration::new(&unique, spec);
    migration.metadata.labels = Some(labels(&name));
    migration
        .annotations_mut()
        .insert(EVACUATION.to_owned(), node.clone());
    match api.create(&PostParams::default(), &migration).await {
        Ok(_) => {
            let message = format!("Created Migration {unique}: the VMI leaves node {node}");
            context
                .event(&vmi.object_ref(&()), false, "SuccessfulCreate", &message)
                .await;
            Ok(Some(Duration::from_secs(10)))
        }
        // It is there, or another one was faster, or the instance cannot move any more: it is looked at again.
        Err(error) if is(&error, 409) || is(&error, 422) => Ok(Some(Duration::from_secs(5))),
        Err(error) => Err(error).doing("creating a migration"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_evacuation_makes_one_migration_at_a_time_and_later_and_later_ones() {
        let now = Timestamp::from_second(1000).unwrap();
        let vmi = |strategy: &str, leaves: &str, able: &str| -> VirtualMachineInstance {
            serde_json::from_value(json!({"metadata": {"name": "a"},
                "spec": {"domain": {"devices": {}}, "evictionStrategy": strategy},
                "status": {"phase": "Running", "nodeName": "here", "evacuationNodeName": leaves,
                    "conditions": [{"type": "LiveMigratable", "status": able}]}}))
            .unwrap()
        };
        let migration = |phase: &str, ended: i64| -> VirtualMachineInstanceMigration {
            let ended = Timestamp::from_second(ended).unwrap();
            serde_json::from_value(
                json!({"metadata": {"name": "m", "annotations": {EVACUATION: "here"}}, "spec": {},
                "status": {"phase": phase, "migrationState": {"endTimestamp": ended}}}),
            )
            .unwrap()
        };
        let leaving = vmi("LiveMigrate", "here", "True");
        assert_eq!(need(&leaving, &[], now), Need::Migration(0));
        assert_eq!(
            need(&vmi("LiveMigrateIfPossible", "here", "True"), &[], now),
            Need::Migration(0)
        );
        for other in [
            vmi("LiveMigrate", "there", "True"),
            vmi("LiveMigrate", "here", "False"),
            vmi("External", "here", "True"),
            vmi("None", "here", "True"),
        ] {
            assert_eq!(need(&other, &[], now), Need::Nothing);
        }
        assert_eq!(need(&leaving, &[migration("Running", 0)], now), Need::Nothing);
        assert_eq!(
            need(&leaving, &[migration("Failed", 990)], now),
            Need::Later(SignedDuration::from_secs(10))
        );
        assert_eq!(
            need(&leaving, &[migration("Failed", 970)], now),
            Need::Migration(1)
        );
        let twice = [migration("Failed", 900), migration("Failed", 970)];
        assert_eq!(
            need(&leaving, &twice, now),
            Need::Later(SignedDuration::from_secs(10))
        );
    }
}
