//! Migrations: an instance goes on in another pod, on another node.
//!
//! Reads everything that counts, plans (`plan`, pure), does the one next thing, writes the phase. The instance's status says
//! which migration has it (`status.migrationState`): that is written first, so that two never begin. Keys never leave the
//! launchers; what is carried between them are certificates.

pub mod evacuation;
pub mod plan;
mod queue;
mod report;
pub mod settings;
mod source;
mod target;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::runtime::controller::Action as Requeue;
use kube::{Api, Resource, ResourceExt};
use nacelle_api::migration::{MigrationPolicySpec, MigrationState, VirtualMachineInstanceMigration};
use nacelle_api::{VirtualMachineInstance, quantity};
use serde::Deserialize;
use serde_json::json;

use crate::context::Context;
use crate::crd::KINDS;
use crate::error::{Doing, Error, Result, absent_is_done};
use crate::report::ARRIVAL;
use crate::vmi::moving::{self, ended};
use crate::vmi::{self, dereference};
use crate::{MIGRATION_FINALIZER, VMI_NAME};
use plan::{Step, World, is_over};
use settings::Settings;

/// Annotation of the target pod: since when the guest runs there.
const READY: &str = "kubevirt.io/migration-target-ready-timestamp";
/// How many that are over are kept of an instance.
const KEPT: usize = 5;
/// How soon what changes without an event is looked at again.
const SOON: Duration = Duration::from_secs(2);
/// How soon what changes with an event is, in case it was missed.
const LATER: Duration = Duration::from_secs(5);
/// How soon one that waits is.
const QUEUE: Duration = Duration::from_secs(3);
/// How long a source may still be there that the guest has left.
const LEAVES: Duration = Duration::from_secs(10);

/// Brings one migration a step nearer to its end.
///
/// # Errors
/// The API server or a launcher cannot be asked, or refuses.
pub async fn reconcile(
    migration: Arc<VirtualMachineInstanceMigration>,
    context: Arc<Context>,
) -> Result<Requeue> {
    if is_over(&migration) {
        return over(&migration, &context).await;
    }
    let namespace = migration.namespace().ok_or(Error::Incomplete("namespace"))?;
    let uid = migration.uid().ok_or(Error::Incomplete("uid"))?;
    // Who claims, counts what is claimed: one after the other.
    let turn = context.claims.lock().await;
    let name = migration.spec.vmi_name.clone().unwrap_or_default();
    let vmi = context
        .vmis(&namespace)
        .get_opt(&name)
        .await
        .doing("reading the instance")?;
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let (mut source, mut goes_to) = (None, None);
    if let Some(vmi) = &vmi {
        let state = vmi
            .status
            .as_ref()
            .and_then(|status| status.migration_state.as_ref());
        let state = state.filter(|state| state.migration_uid.as_ref() == Some(&uid));
        let from = state.and_then(|state| state.source_pod.clone());
        let from = from.unwrap_or_else(|| moving::in_charge(vmi));
        source = pods.get_opt(&from).await.doing("reading the source pod")?;
        let to = moving::target_name(vmi, &uid);
        goes_to = pods.get_opt(&to).await.doing("reading the target pod")?;
    }
    let arrival = goes_to
        .as_ref()
        .and_then(|pod| serde_json::from_str(pod.annotations().get(ARRIVAL)?).ok());
    let mut world = World {
        migration: &migration,
        vmi: vmi.as_ref(),
        source: source.as_ref(),
        target: goes_to.as_ref(),
        arrival,
        busy: None,
        now: Timestamp::now(),
    };
    let mut step = world.next();
    if step == Step::Claim {
        world.busy = queue::busy(&migration, vmi.as_ref(), &context).await?;
        step = world.next();
    }
    if step != Step::Claim {
        drop(turn);
    }
    let requeue = Requeue::requeue(act(&world, &step, &context).await?);
    report::write(&world, &step, &context).await?;
    Ok(requeue)
}

/// Does it; how soon to look again.
async fn act(world: &World<'_>, step: &Step, context: &Context) -> Result<Duration> {
    let migration = world.migration;
    let uid = migration.uid().unwrap_or_default();
    let goes = Ok;
    let now = Time(world.now);
    match (step, world.vmi) {
        (Step::Queue(..), _) => goes(QUEUE),
        (Step::Claim, Some(vmi)) => {
            let (policy, settings) = settings_of(vmi, context).await?;
            let status = vmi.status.clone().unwrap_or_default();
            let state = MigrationState {
                migration_uid: Some(uid.clone()),
                source_node: status.node_name.clone(),
                source_pod: Some(moving::in_charge(vmi)),
                target_pod: Some(moving::target_name(vmi, &uid)),
                mode: Some("PreCopy".to_owned()),
                migration_policy_name: policy,
                migration_configuration: Some(settings.shown()),
                ..MigrationState::default()
            };
            says(vmi, context, |of| *of = state).await?;
            goes(Duration::ZERO)
        }
        (Step::Create, Some(vmi)) => target::create(world, vmi, context).await,
        (Step::Announce, Some(vmi)) => {
            let arrival = world.arrival.as_ref().map(|arrival| arrival.address.clone());
            let node = world.target.and_then(|pod| pod.spec.as_ref()?.node_name.clone());
            says(vmi, context, |state| {
                state.target_node_address = arrival;
                state.target_node = node;
            })
            .await?;
            context
                .event(
                    &vmi.object_ref(&()),
                    false,
                    "PreparingTarget",
                    "VirtualMachineInstance Migration Target Prepared.",
                )
                .await;
            goes(Duration::ZERO)
        }
        (Step::Depart, Some(vmi)) => {
            let Some(arrival) = &world.arrival else {
                return goes(SOON);
            };
            let (_, settings) = settings_of(vmi, context).await?;
            let wanted = settings.wanted(&arrival.address, bytes(vmi));
            let body = json!({"migration": uid, "certificate": arrival.certificate, "migrate": wanted});
            source::depart(context, vmi, body).await?;
            context
                .event(
                    &vmi.object_ref(&()),
                    false,
                    "Migrating",
                    "VirtualMachineInstance is migrating.",
                )
                .await;
            // Its report says that it sends; where that is late, it is asked again, and begins once.
            goes(QUEUE)
        }
        (Step::Stop(why), Some(vmi)) => stop(world, vmi, why, context).await,
        (Step::Arrived, Some(_)) => arrived(world, &now, context).await,
        (Step::Clean, _) => {
            if let Some(pod) = world.target {
                vmi::remove(pod, None, context).await?;
            }
            goes(SOON)
        }
        (Step::Over(Err(_)), Some(vmi)) => {
            // Where the controller was killed between the two: nobody runs it elsewhere, so it goes on.
            let claimed = world.ours().is_some_and(|state| !state.has_arrived());
            // A finalizer does not wait for a node that may never come back.
            if claimed
                && world.source.is_some_and(|pod| !ended(pod))
                && dereference::silence(world.source, context).await?.is_none()
                && source::departure(context, vmi).await?.unconfirmed(&uid)
            {
                source::take_back(context, vmi).await?;
            }
            goes(LATER)
        }
        (Step::Over(_), _) => goes(LATER),
        _ => goes(LATER),
    }
}

/// Writes what the instance says of its migration.
async fn says(
    vmi: &VirtualMachineInstance,
    context: &Context,
    change: impl FnOnce(&mut MigrationState),
) -> Result<()> {
    let old = vmi.status.clone().unwrap_or_default();
    let mut new = old.clone();
    change(new.migration_state.get_or_insert_default());
    vmi::write(vmi, &old, &new, context).await
}

/// Bytes that are to be sent: memory, and disks that are copied are not larger than that, most often.
fn bytes(vmi: &VirtualMachineInstance) -> u64 {
    let memory = vmi
        .spec
        .domain
        .memory
        .as_ref()
        .and_then(|memory| memory.guest.as_ref());
    memory
        .and_then(|guest| quantity::whole(guest).ok())
        .unwrap_or(1 << 30)
}

/// The policy that counts, by name, and the settings with it.
async fn settings_of(vmi: &VirtualMachineInstance, context: &Context) -> Result<(Option<String>, Settings)> {
    #[derive(Deserialize)]
    struct Policy {
        spec: MigrationPolicySpec,
    }
    let settings = context.configuration().migrations.clone();
    let Some(kind) = KINDS.iter().find(|kind| kind.name == "MigrationPolicy") else {
        return Ok((None, settings));
    };
    let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &kind.resource());
    let list = api.list(&ListParams::default()).await.doing("listing policies")?;
    let policies: Vec<_> = list
        .into_iter()
        .filter_map(|policy| {
            let name = policy.name_any();
            Some((name, serde_json::from_value::<Policy>(policy.data).ok()?.spec))
        })
        .collect();
    if policies.is_empty() {
        return Ok((None, settings));
    }
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let namespace = namespaces.get_opt(&vmi.namespace().unwrap_or_default()).await;
    let namespace = namespace.doing("reading the namespace")?.unwrap_or_default();
    Ok(
        match settings::policy(&policies, vmi.labels(), namespace.labels()) {
            Some((name, policy)) => (Some(name.clone()), settings.under(policy)),
            None => (None, settings),
        },
    )
}

/// Brings a migration to an end that came to nothing: only the source knows whether the guest is still its own.
async fn stop(
    world: &World<'_>,
    vmi: &VirtualMachineInstance,
    why: &str,
    context: &Context,
) -> Result<Duration> {
    let uid = world.migration.uid().unwrap_or_default();
    let soon = Ok(SOON);
    let aborted = world.migration.metadata.deletion_timestamp.is_some();
    if aborted
        && world
            .ours()
            .is_some_and(|state| state.abort_requested != Some(true))
    {
        says(vmi, context, |state| {
            state.abort_requested = Some(true);
            state.abort_status = Some("Aborting".to_owned());
        })
        .await?;
        return Ok(Duration::ZERO);
    }
    let departing = source::departure(context, vmi).await?;
    let stage = departing.of(&uid).map(|departure| departure.state);
    let reason = departing
        .of(&uid)
        .map(|departure| departure.message.clone())
        .filter(|said| !said.is_empty());
    let target_gone = world.target.is_none_or(ended);
    match stage {
        Some(moving::Stage::Moving) => {
            source::cancel(context, vmi).await;
            soon
        }
        // It may run there: that pod must be gone first, for certain.
        Some(moving::Stage::Unconfirmed) if !target_gone => {
            if let Some(pod) = world
                .target
                .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            {
                vmi::remove(pod, None, context).await?;
            }
            soon
        }
        stage => {
            let reason = match reason {
                Some(said) if !aborted => format!("{why}: {said}"),
                _ => why.to_owned(),
            };
            // Written first: a late word of the target is not believed any more.
            says(vmi, context, |state| moving::fail(state, &reason, world.now)).await?;
            if stage == Some(moving::Stage::Unconfirmed) {
                source::take_back(context, vmi).await?;
            }
            Ok(Duration::ZERO)
        }
    }
}

/// The guest runs at the target: who switches traffic is told, and the source goes.
async fn arrived(world: &World<'_>, now: &Time, context: &Context) -> Result<Duration> {
    let since = world
        .ours()
        .and_then(|state| state.target_node_domain_ready_timestamp.clone());
    if let (Some(pod), Some(since)) = (world.target, &since)
        && !pod.annotations().contains_key(READY)
    {
        let pods: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"uid": pod.uid(), "annotations": {READY: since}}});
        let done = pods
            .patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await;
        absent_is_done(done).doing("telling when the guest runs at the target")?;
    }
    let late = since.is_some_and(|since| now.0.duration_since(since.0).unsigned_abs() > LEAVES);
    if let Some(pod) = world
        .source
        .filter(|pod| late && !ended(pod) && pod.metadata.deletion_timestamp.is_none())
        && let Some(vmi) = world.vmi
    {
        // A source that has heard nothing stands still for ever; one whose memory follows is left alone.
        let uid = world.migration.uid().unwrap_or_default();
        let said = source::departure_of(context, vmi, &pod.name_any()).await;
        if said.is_ok_and(|departing| departing.unconfirmed(&uid)) {
            vmi::remove(pod, Some(1), context).await?;
        }
    }
    Ok(SOON)
}

fn api(
    migration: &VirtualMachineInstanceMigration,
    context: &Context,
) -> Api<VirtualMachineInstanceMigration> {
    api_of(context, &migration.namespace().unwrap_or_default())
}

/// The migrations of a namespace.
pub fn api_of(context: &Context, namespace: &str) -> Api<VirtualMachineInstanceMigration> {
    Api::namespaced(context.client.clone(), namespace)
}

/// One that is over lets go, and the oldest of them go.
async fn over(migration: &VirtualMachineInstanceMigration, context: &Context) -> Result<Requeue> {
    let api = api(migration, context);
    if migration
        .finalizers()
        .iter()
        .any(|finalizer| finalizer == MIGRATION_FINALIZER)
    {
        let left: Vec<_> = migration
            .finalizers()
            .iter()
            .filter(|name| *name != MIGRATION_FINALIZER)
            .collect();
        let patch =
            json!({"metadata": {"finalizers": left, "resourceVersion": migration.resource_version()}});
        let done = api
            .patch(
                &migration.name_any(),
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await;
        absent_is_done(done).doing("letting go of the migration")?;
    }
    let name = migration.spec.vmi_name.clone().unwrap_or_default();
    let of = ListParams::default().labels(&format!("{VMI_NAME}={}", label(&name)));
    let mut all = api.list(&of).await.doing("listing migrations")?.items;
    all.retain(is_over);
    all.sort_by_key(|migration| {
        std::cmp::Reverse(migration.metadata.creation_timestamp.as_ref().map(|time| time.0))
    });
    for old in all
        .iter()
        .skip(KEPT)
        .filter(|old| old.metadata.deletion_timestamp.is_none())
    {
        let done = api.delete(&old.name_any(), &DeleteParams::default()).await;
        absent_is_done(done.map(drop)).doing("deleting an old migration")?;
    }
    Ok(Requeue::await_change())
}

/// An instance's name as far as a label can hold it.
pub fn label(name: &str) -> String {
    let label: String = name.chars().take(63).collect();
    label.trim_end_matches(['-', '.']).to_owned()
}

/// Which migrations a pod concerns: it says so itself, or its instance moves.
pub fn of_pod(pod: &Pod) -> Option<(String, String)> {
    let job = pod.annotations().get(vmi::build::JOB_NAME)?;
    Some((pod.namespace()?, job.clone()))
}

/// Labels of a migration of an instance.
pub fn labels(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(VMI_NAME.to_owned(), label(name))])
}
