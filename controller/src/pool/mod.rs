//! Pools of machines: as many as are asked for, and a changed template rolled out to them.
//!
//! Reads the caches, plans (`plan` and `rollout`, pure), does it, reports. What each machine is made of is recorded as a
//! ControllerRevision, named in a label; those that nobody is made of any more go when there is a new one.

mod machine;
pub mod plan;
pub mod rollout;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action as Requeue, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Config;
use kube::{Api, Resource, ResourceExt};
use nacelle_api::pool::VirtualMachinePoolSpec;
use nacelle_api::{VirtualMachine, VirtualMachinePool, conditions};
use serde_json::json;

use crate::context::{Context, key};
use crate::error::{Doing, Error, Result, absent_is_done, is};
use crate::replicas::{self, AGAIN, Failure, RETRY, SETTLE, Seen};
use crate::run::{Patience, drain, named, retry};
pub use machine::REVISION;
use rollout::{Member, Step};

/// Label of revisions: the UID of the pool.
const OF_POOL: &str = "nacelle.io/pool";

/// Reconciles all pools, for as long as this replica leads.
pub async fn run(context: Arc<Context>) {
    let client = context.client.clone();
    let pools = Controller::new(Api::<VirtualMachinePool>::all(client.clone()), Config::default())
        .owns(Api::<VirtualMachine>::all(client), Config::default())
        .trigger_backoff(Patience::new())
        .run(named(reconcile), |_, error, _| retry(error), context);
    drain(pools).await;
}

async fn reconcile(pool: Arc<VirtualMachinePool>, context: Arc<Context>) -> Result<Requeue> {
    tokio::time::sleep(SETTLE).await;
    let context = &*context;
    let Some(stores) = context.stores.get() else {
        return Ok(Requeue::requeue(RETRY));
    };
    // The garbage collector takes its machines.
    if pool.metadata.deletion_timestamp.is_some() {
        return Ok(Requeue::await_change());
    }
    let uid = pool.uid().ok_or(Error::Incomplete("UID"))?;
    let namespace = pool.namespace().ok_or(Error::Incomplete("namespace"))?;
    // Admission refuses others.
    let Ok(selector) = replicas::selector(&pool.spec.selector) else {
        return Ok(Requeue::await_change());
    };
    let vms = replicas::of(&stores.vms, &namespace);
    let taken: BTreeSet<_> = vms.iter().map(|vm| vm.name_any()).collect();
    let claims = replicas::claim(&uid, &selector, vms);
    replicas::release(&claims.strays, &uid, context).await?;
    let mine = claims.mine;

    let paused = pool.spec.paused == Some(true);
    let mut failure = None;
    let scale = plan::scale(&pool, &mine, &taken, Timestamp::now());
    if (mine.is_empty() || !scale.create.is_empty())
        && !replicas::heard_of_all::<VirtualMachine>(&namespace, &selector, &taken, context).await?
    {
        return Ok(Requeue::requeue(SETTLE));
    }
    if !paused {
        let stable = scale.create.is_empty() && scale.delete.is_empty();
        let members: Vec<Member> = mine
            .iter()
            .map(|vm| {
                (
                    vm.clone(),
                    stores
                        .vmis
                        .get(&ObjectRef::new(&vm.name_any()).within(&namespace)),
                )
            })
            .collect();
        failure = carry_out(&pool, &scale, &members, context).await.err();
        if stable {
            failure = update(&pool, &members, context).await?.err();
        }
    }
    let ready = |vm: &&Arc<VirtualMachine>| {
        let status = vm.status.as_ref();
        status.is_some_and(|status| conditions::is_true(&status.conditions, "Ready"))
    };
    let seen = Seen {
        replicas: mine.len(),
        ready: mine.iter().filter(ready).count(),
        failure,
        paused: paused.then_some(("SuccessfulPaused", "Pool controller is paused")),
    };
    report(&pool, &selector, &seen, context).await?;
    Ok(Requeue::requeue(if seen.failure.is_some() {
        RETRY
    } else {
        AGAIN
    }))
}

/// Writes the status, and tells people of what is new in it.
async fn report(
    pool: &VirtualMachinePool,
    selector: &kube::core::Selector,
    seen: &Seen,
    context: &Context,
) -> Result<()> {
    let old = pool.status.as_ref();
    let status = replicas::status(old, selector, seen, Timestamp::now());
    replicas::report(pool, old, &status, context).await?;
    let had = |type_: &str| old.is_some_and(|old| conditions::is_true(&old.conditions, type_));
    if let Some((reason, message)) = &seen.failure
        && !had("ReplicaFailure")
    {
        say(pool, true, reason, message, context).await;
    }
    match (had("ReplicaPaused"), seen.paused.is_some()) {
        (false, true) => say(pool, false, "SuccessfulPaused", "Pool is paused", context).await,
        (true, false) => say(pool, false, "SuccessfulResume", "Pool is unpaused", context).await,
        _ => {}
    }
    Ok(())
}

async fn say(pool: &VirtualMachinePool, warning: bool, reason: &str, words: &str, context: &Context) {
    context.event(&pool.object_ref(&()), warning, reason, words).await;
}

/// Makes and deletes machines; the first that fails ends it.
async fn carry_out(
    pool: &VirtualMachinePool,
    scale: &plan::Scale,
    members: &[Member],
    context: &Context,
) -> Result<(), Failure> {
    let namespace = pool.namespace().unwrap_or_default();
    if !scale.create.is_empty() {
        let failed = |error: String| ("FailedScaleOut", format!("error during scale out: {error}"));
        let revision = record(pool, members, context)
            .await
            .map_err(|error| failed(error.to_string()))?;
        for index in &scale.create {
            let vm = machine::machine(pool, *index, &revision);
            match context.vms(&namespace).create(&PostParams::default(), &vm).await {
                Ok(made) => {
                    let words = format!("Created VM {}", key(&made));
                    say(pool, false, "SuccessfulCreate", &words, context).await;
                }
                // The cache has not heard of it yet.
                Err(error) if is(&error, 409) => {}
                Err(error) => {
                    let words = format!("Error creating VM: {error}");
                    say(pool, true, "FailedCreate", &words, context).await;
                    return Err(failed(error.to_string()));
                }
            }
        }
    }
    for vm in &scale.delete {
        if let Err(error) = replicas::delete(&**vm, context).await {
            let words = format!("Error deleting virtual machine {}: {error}", key(&**vm));
            say(pool, true, "FailedDelete", &words, context).await;
            return Err(("FailedScaleIn", format!("error during scale in: {error}")));
        }
        let uid = vm.uid().unwrap_or_default();
        let words = format!("Deleted VM {} with uid {uid} from pool", key(&**vm));
        say(pool, false, "SuccessfulDelete", &words, context).await;
    }
    Ok(())
}

/// Rolls a changed template out.
async fn update(
    pool: &VirtualMachinePool,
    members: &[Member],
    context: &Context,
) -> Result<Result<(), Failure>> {
    let mut records = BTreeMap::new();
    let current = rollout::revision(pool);
    let api = revisions(pool, context);
    for name in rollout::in_use(members) {
        if name != current
            && let Some(record) = api.get_opt(&name).await.doing("reading a revision")?
            && let Ok(spec) = serde_json::from_value::<VirtualMachinePoolSpec>(record.data.0)
        {
            records.insert(name, spec);
        }
    }
    for step in rollout::rollout(pool, members, &records) {
        let (vm, done) = match &step {
            Step::Update(vm) => (vm.name_any(), renew(pool, vm, members, context).await),
            Step::Restart(vmi) => (vmi.name_any(), replicas::delete(&**vmi, context).await),
            Step::Replace(vm) => (vm.name_any(), replicas::delete(&**vm, context).await),
            Step::Relabel(vmi, name) => {
                let patch = json!({"metadata": {"uid": vmi.uid(), "labels": {REVISION: name}}});
                let api = context.vmis(&vmi.namespace().unwrap_or_default());
                let done = api
                    .patch(&vmi.name_any(), &PatchParams::default(), &Patch::Merge(patch))
                    .await;
                (vmi.name_any(), absent_is_done(done))
            }
        };
        let of = format!("{}/{vm}", pool.namespace().unwrap_or_default());
        match done {
            Ok(()) => {
                let (reason, words) = match step {
                    Step::Update(_) => ("SuccessfulUpdate", format!("Updated VM {of}")),
                    _ => ("SuccessfulDelete", format!("Successfully updated resource {of}")),
                };
                say(pool, false, reason, &words, context).await;
            }
            // Somebody was faster: it is looked at again.
            Err(error) if is(&error, 409) => {}
            Err(error) => {
                let words = format!("Error updating virtual machine {of}: {error}");
                say(pool, true, "FailedUpdate", &words, context).await;
                return Ok(Err(("FailedUpdate", format!("error during VM update: {error}"))));
            }
        }
    }
    Ok(Ok(()))
}

/// Gives a machine the template of now.
async fn renew(
    pool: &VirtualMachinePool,
    vm: &VirtualMachine,
    members: &[Member],
    context: &Context,
) -> Result<(), kube::Error> {
    // An adopted machine may have any name; those of pools end in a number.
    let Some(index) = machine::index(vm) else {
        return Ok(());
    };
    let revision = record(pool, members, context).await?;
    let new = machine::updated(vm, pool, index, &revision);
    let api = context.vms(&pool.namespace().unwrap_or_default());
    let done = api.replace(&vm.name_any(), &PostParams::default(), &new).await;
    absent_is_done(done)
}

fn revisions(pool: &VirtualMachinePool, context: &Context) -> Api<ControllerRevision> {
    Api::namespaced(context.client.clone(), &pool.namespace().unwrap_or_default())
}

/// Records what machines are made of now; its name. Where that is new, records of which nothing is made any more go.
async fn record(
    pool: &VirtualMachinePool,
    members: &[Member],
    context: &Context,
) -> Result<String, kube::Error> {
    let name = rollout::revision(pool);
    let uid = pool.uid().unwrap_or_default();
    let record = ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(BTreeMap::from([(OF_POOL.to_owned(), uid.clone())])),
            owner_references: pool.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        data: RawExtension(json!(pool.spec)),
        revision: pool.metadata.generation,
    };
    let api = revisions(pool, context);
    match api.create(&PostParams::default(), &record).await {
        Err(error) if is(&error, 409) => {
            let there = api.get(&name).await?;
            if there.owner_references().iter().any(|owner| owner.uid == uid) {
                return Ok(name);
            }
            // A pool of this name was there before.
            if there.labels().contains_key(OF_POOL) {
                absent_is_done(api.delete(&name, &DeleteParams::default()).await)?;
            }
            return Err(error);
        }
        made => drop(made?),
    }
    let used = rollout::in_use(members);
    let all = ListParams::default().labels(&format!("{OF_POOL}={uid}"));
    for old in api.list(&all).await?.items {
        let old = old.name_any();
        if old != name && !used.contains(&old) {
            absent_is_done(api.delete(&old, &DeleteParams::default()).await)?;
        }
    }
    Ok(name)
}
