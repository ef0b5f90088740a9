//! The KubeVirt object, at which tools look first: is it installed, which version, is it well?

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::controller::Action as Requeue;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use nacelle_api::conditions;
use nacelle_api::kubevirt::{KubeVirt, KubeVirtSpec, KubeVirtStatus};
use serde_json::json;
use tokio::sync::watch;

use crate::configuration::Configuration;
use crate::context::Context;
use crate::error::{Doing, Result, absent_is_done, is};
use crate::run::Patience;

/// Version of this program.
const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

/// Makes the object where there is none: it cannot be applied together with its own definition.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn ensure(context: &Context) -> Result<()> {
    let all: Api<KubeVirt> = Api::all(context.client.clone());
    if !all
        .list(&ListParams::default().limit(1))
        .await
        .doing("looking for a KubeVirt object")?
        .items
        .is_empty()
    {
        return Ok(());
    }
    let mut object = KubeVirt::new("kubevirt", KubeVirtSpec::default());
    object.metadata.namespace = Some(context.settings.namespace.clone());
    let api: Api<KubeVirt> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    match api.create(&PostParams::default(), &object).await {
        Err(error) if !is(&error, 409) => Err(error).doing("making the KubeVirt object"),
        _ => Ok(()),
    }
}

/// The settings as they are now.
///
/// # Errors
/// The API server cannot be asked.
pub async fn configuration(client: &Client) -> Result<Arc<Configuration>> {
    let all: Api<KubeVirt> = Api::all(client.clone());
    let all = all
        .list(&ListParams::default())
        .await
        .doing("reading the settings")?;
    let configuration = all.items.first().map(|object| Configuration::of(&object.spec));
    let configuration = configuration.unwrap_or_default();
    heed(&configuration);
    Ok(Arc::new(configuration))
}

/// Keeps `settings` what the object says, in every replica.
pub async fn follow(client: &Client, settings: &watch::Sender<Arc<Configuration>>) {
    let all: Api<KubeVirt> = Api::all(client.clone());
    let events = watcher(all, watcher::Config::default()).backoff(Patience::new());
    events
        .for_each(async |event| {
            let configuration = match event {
                Ok(Event::Apply(object) | Event::InitApply(object)) => Configuration::of(&object.spec),
                Ok(Event::Delete(_)) => Configuration::default(),
                _ => return,
            };
            if **settings.borrow() != configuration {
                heed(&configuration);
                log::info!("the settings are {configuration:?}");
                settings.send_replace(Arc::new(configuration));
            }
        })
        .await;
}

/// What this program says is the first of it.
fn heed(configuration: &Configuration) {
    if let Some(level) = configuration.log {
        log::set_max_level(level);
    }
}

/// Reports that the installation is there: who can report it is.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn reconcile(object: Arc<KubeVirt>, context: Arc<Context>) -> Result<Requeue> {
    let status = status(&object, Timestamp::now());
    if object.status.as_ref() != Some(&status) {
        let api: Api<KubeVirt> =
            Api::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
        let patch = Patch::Merge(json!({"status": status}));
        let done = api
            .patch_status(&object.name_any(), &PatchParams::default(), &patch)
            .await;
        absent_is_done(done).doing("reporting the installation's status")?;
    }
    Ok(Requeue::requeue(Duration::from_secs(600)))
}

fn status(object: &KubeVirt, now: Timestamp) -> KubeVirtStatus {
    let mut status = object.status.clone().unwrap_or_default();
    let list = &mut status.conditions;
    conditions::set(
        list,
        "Created",
        true,
        "AllResourcesCreated",
        "All resources were created.",
        now,
    );
    conditions::set(
        list,
        "Available",
        true,
        "AllComponentsReady",
        "All components are ready.",
        now,
    );
    conditions::set(
        list,
        "Progressing",
        false,
        "AllComponentsReady",
        "All components are ready.",
        now,
    );
    conditions::set(
        list,
        "Degraded",
        false,
        "AllComponentsReady",
        "All components are ready.",
        now,
    );
    let ignored = Configuration::of(&object.spec).ignored;
    if ignored.is_empty() {
        conditions::clear(list, "ConfigurationIgnored");
    } else {
        let message = format!(
            "this version of Nacelle does not honour these settings, or not with these values: {}",
            ignored.join(", ")
        );
        conditions::set(list, "ConfigurationIgnored", true, "NotSupported", &message, now);
    }
    status.phase = Some("Deployed".to_owned());
    status.observed_generation = object.metadata.generation;
    status.observed_kube_virt_version = Some(VERSION.to_owned());
    status.target_kube_virt_version = Some(VERSION.to_owned());
    status.operator_version = Some(VERSION.to_owned());
    status.default_architecture = Some("amd64".to_owned());
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_deployed_and_says_which_settings_it_does_not_have() {
        let mut object = KubeVirt::new("kubevirt", Default::default());
        object.metadata.generation = Some(2);
        let settings = json!({"evictionStrategy": "LiveMigrate", "smbios": {"family": "Servers"}});
        object.spec.configuration = serde_json::from_value(settings).unwrap();
        let status = status(&object, Timestamp::now());
        assert_eq!(
            (status.phase.as_deref(), status.observed_generation),
            (Some("Deployed"), Some(2))
        );
        assert!(conditions::is_true(&status.conditions, "Available"));
        let ignored = conditions::find(&status.conditions, "ConfigurationIgnored").unwrap();
        assert!(
            ignored
                .message
                .as_deref()
                .unwrap()
                .ends_with(": spec.configuration.smbios")
        );
    }
}
