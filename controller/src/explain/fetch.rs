//! Reads what there is of a machine. Who may not see a part is told so, and gets the rest.

use std::collections::BTreeSet;
use std::fmt::Debug;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use nacelle_api::datavolume::DataVolume;
use nacelle_api::{VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceMigration};
use serde::de::DeserializeOwned;

use super::{Claim, World};
use crate::VMI_NAME;
use crate::migration::plan::is_over;
use crate::vmi::build::volumes;
use crate::vmi::moving;

/// Reads it.
pub(super) async fn fetch(client: &Client, namespace: &str, name: &str) -> Result<World> {
    let mut world = World::default();
    let here = Here { client, namespace };
    // Without these there is nothing to explain.
    let vm = here.api::<VirtualMachine>().get_opt(name).await;
    world.vm = vm.with_context(|| format!("reading VirtualMachine {namespace}/{name}"))?;
    let vmi = here.api::<VirtualMachineInstance>().get_opt(name).await;
    world.vmi = vmi.with_context(|| format!("reading VirtualMachineInstance {namespace}/{name}"))?;
    let spec = match (&world.vm, &world.vmi) {
        (_, Some(vmi)) => vmi.spec.clone(),
        (Some(vm), None) => vm.spec.template.spec.clone(),
        (None, None) => bail!("there is no VirtualMachine and no VirtualMachineInstance {namespace}/{name}"),
    };
    if let Some(vmi) = &world.vmi {
        let unseen = &mut world.unseen;
        world.pod = here.get::<Pod>(&moving::in_charge(vmi), unseen).await;
        let of_this = ListParams::default().labels(&format!("{VMI_NAME}={name}"));
        let migrations = here
            .list::<VirtualMachineInstanceMigration>(&of_this, unseen)
            .await;
        world.migrations = migrations
            .into_iter()
            .filter(|migration| !is_over(migration))
            .collect();
    }
    if let Some(pod) = &world.pod {
        world.events = here.said_of(pod, &mut world.unseen).await;
    }
    let claims: BTreeSet<_> = spec
        .volumes
        .iter()
        .filter_map(volumes::claim)
        .map(|(name, _)| name)
        .collect();
    for name in claims {
        let unseen = &mut world.unseen;
        // A cluster may serve none, which is no news.
        if let Ok(Some(volume)) = here.api::<DataVolume>().get_opt(&name).await {
            world.volumes.insert(name.clone(), volume);
        }
        let before = unseen.len();
        let claim = here.get::<PersistentVolumeClaim>(&name, unseen).await;
        if unseen.len() > before {
            continue;
        }
        let events = match &claim {
            Some(claim) => here.said_of(claim, unseen).await,
            None => Vec::new(),
        };
        world.claims.insert(name, Claim { claim, events });
    }
    Ok(world)
}

/// The API server's own words, where it has some.
fn words(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message,
        other => other.to_string(),
    }
}

struct Here<'a> {
    client: &'a Client,
    namespace: &'a str,
}

impl Here<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    async fn get<K>(&self, name: &str, unseen: &mut Vec<String>) -> Option<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let found = self.api::<K>().get_opt(name).await;
        found.unwrap_or_else(|error| {
            unseen.push(format!("{} {name}: {}", K::kind(&()), words(error)));
            None
        })
    }

    async fn list<K>(&self, which: &ListParams, unseen: &mut Vec<String>) -> Vec<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        match self.api::<K>().list(which).await {
            Ok(list) => list.items,
            Err(error) => {
                unseen.push(format!("{}: {}", K::plural(&()), words(error)));
                Vec::new()
            }
        }
    }

    async fn said_of(&self, object: &impl ResourceExt, unseen: &mut Vec<String>) -> Vec<Event> {
        let of_this = format!("involvedObject.uid={}", object.uid().unwrap_or_default());
        self.list(&ListParams::default().fields(&of_this), unseen).await
    }
}
