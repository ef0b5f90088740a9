//! Sets of instances: as many as are asked for. Reads the caches, plans (`plan`, pure), makes and deletes, reports.

mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::controller::{Action as Requeue, Controller};
use kube::runtime::watcher::Config;
use kube::{Api, Resource, ResourceExt};
use nacelle_api::{VirtualMachineInstance, VirtualMachineInstanceReplicaSet, conditions};

use crate::context::Context;
use crate::error::{Doing, Error, Result, is};
use crate::replicas::{self, AGAIN, Failure, RETRY, SETTLE, Seen};
use crate::run::{Patience, drain, named, retry};
use plan::Plan;
pub use plan::ready;

/// Reconciles all sets, for as long as this replica leads.
pub async fn run(context: Arc<Context>) {
    let client = context.client.clone();
    let sets = Controller::new(
        Api::<VirtualMachineInstanceReplicaSet>::all(client.clone()),
        Config::default(),
    )
    .owns(Api::<VirtualMachineInstance>::all(client), Config::default())
    .trigger_backoff(Patience::new())
    .run(named(reconcile), |_, error, _| retry(error), context);
    drain(sets).await;
}

async fn reconcile(set: Arc<VirtualMachineInstanceReplicaSet>, context: Arc<Context>) -> Result<Requeue> {
    tokio::time::sleep(SETTLE).await;
    let context = &*context;
    let Some(stores) = context.stores.get() else {
        return Ok(Requeue::requeue(RETRY));
    };
    let uid = set.uid().ok_or(Error::Incomplete("UID"))?;
    // Admission refuses others.
    let Ok(selector) = replicas::selector(&set.spec.selector) else {
        return Ok(Requeue::await_change());
    };
    let namespace = set.namespace().ok_or(Error::Incomplete("namespace"))?;
    let vmis = replicas::of(&stores.vmis, &namespace);
    let taken: BTreeSet<_> = vmis.iter().map(|vmi| vmi.name_any()).collect();
    let mut claims = replicas::claim(&uid, &selector, vmis);
    if set.metadata.deletion_timestamp.is_none() {
        replicas::release(&claims.strays, &uid, context).await?;
        let orphans = std::mem::take(&mut claims.orphans);
        if !orphans.is_empty() && still_there(&set, context).await? {
            for orphan in orphans {
                let owner = set.controller_owner_ref(&()).ok_or(Error::Incomplete("UID"))?;
                replicas::set_owner(&*orphan, vec![owner], context).await?;
                claims.mine.push(orphan);
            }
        }
    }
    let plan = plan::plan(&set, &claims.mine, &taken);
    if (claims.mine.is_empty() || !plan.create.is_empty())
        && !replicas::heard_of_all::<VirtualMachineInstance>(&namespace, &selector, &taken, context).await?
    {
        return Ok(Requeue::requeue(SETTLE));
    }
    let failure = carry_out(&set, &plan, context).await.err();
    let active: Vec<_> = claims.mine.iter().filter(|vmi| plan::active(vmi)).collect();
    let paused = set.spec.paused == Some(true);
    let seen = Seen {
        replicas: active.len(),
        ready: active.iter().filter(|vmi| plan::ready(vmi)).count(),
        failure,
        paused: paused.then_some(("Paused", "Controller got paused")),
    };
    let old = set.status.as_ref();
    let was_paused = old.is_some_and(|old| conditions::is_true(&old.conditions, "ReplicaPaused"));
    let status = replicas::status(old, &selector, &seen, Timestamp::now());
    replicas::report(&*set, old, &status, context).await?;
    match (was_paused, paused) {
        (false, true) => say(&set, false, "SuccessfulPaused", "Paused", context).await,
        (true, false) => say(&set, false, "SuccessfulResumed", "Resumed", context).await,
        _ => {}
    }
    Ok(Requeue::requeue(if seen.failure.is_some() {
        RETRY
    } else {
        AGAIN
    }))
}

/// Whether the set is there yet, by the API server's own word: who is going adopts nobody.
async fn still_there(set: &VirtualMachineInstanceReplicaSet, context: &Context) -> Result<bool> {
    let api: Api<VirtualMachineInstanceReplicaSet> =
        Api::namespaced(context.client.clone(), &set.namespace().unwrap_or_default());
    let now = api.get_opt(&set.name_any()).await.doing("reading the set")?;
    Ok(now.is_some_and(|now| now.uid() == set.uid() && now.metadata.deletion_timestamp.is_none()))
}

async fn say(
    set: &VirtualMachineInstanceReplicaSet,
    warning: bool,
    reason: &str,
    words: &str,
    context: &Context,
) {
    context.event(&set.object_ref(&()), warning, reason, words).await;
}

/// Makes and deletes; the first that fails ends it.
async fn carry_out(
    set: &VirtualMachineInstanceReplicaSet,
    plan: &Plan,
    context: &Context,
) -> Result<(), Failure> {
    let api = context.vmis(&set.namespace().unwrap_or_default());
    for name in &plan.create {
        match api.create(&PostParams::default(), &instance(set, name)).await {
            Ok(_) => {
                let words = format!(
                    "Started the virtual machine by creating the new virtual machine instance {name}"
                );
                say(set, false, "SuccessfulCreate", &words, context).await;
            }
            // The cache has not heard of it yet.
            Err(error) if is(&error, 409) => {}
            Err(error) => {
                let words = format!("Error creating virtual machine instance: {error}");
                say(set, true, "FailedCreate", &words, context).await;
                return Err(("FailedCreate", error.to_string()));
            }
        }
    }
    let surplus = plan.delete.iter().map(|vmi| (vmi, false));
    for (vmi, ended) in surplus.chain(plan.ended.iter().map(|vmi| (vmi, true))) {
        let (name, uid) = (vmi.name_any(), vmi.uid().unwrap_or_default());
        if let Err(error) = replicas::delete(&**vmi, context).await {
            let words = format!("Error deleting virtual machine instance {name}: {error}");
            say(set, true, "FailedDelete", &words, context).await;
            return Err(("FailedDelete", error.to_string()));
        }
        let words = if ended {
            format!("Deleted finished virtual machine: {uid}")
        } else {
            format!("Stopped the virtual machine by deleting the virtual machine instance {uid}")
        };
        say(set, false, "SuccessfulDelete", &words, context).await;
    }
    Ok(())
}

fn instance(set: &VirtualMachineInstanceReplicaSet, name: &str) -> VirtualMachineInstance {
    let template = set.spec.template.metadata.clone().unwrap_or_default();
    VirtualMachineInstance {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: set.namespace(),
            labels: template.labels,
            annotations: template.annotations,
            owner_references: set.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: set.spec.template.spec.clone(),
        status: None,
    }
}
