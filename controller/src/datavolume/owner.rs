//! Who serves DataVolumes: we do where the definition is ours, and stand aside where another controller's is.

use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::runtime::watcher::{self, watch_object};
use kube::{Api, Client, ResourceExt};

use crate::crd::SERVED_BY;

/// The definition that decides.
const NAME: &str = "datavolumes.cdi.kubevirt.io";
/// Label of all that CDI's operator made or took over.
const CDI: &str = "operator.cdi.kubevirt.io";

/// Whether its objects are ours to work on. One that was ours, and that CDI's operator has put its label on, is CDI's.
pub fn is_ours(definition: Option<&CustomResourceDefinition>) -> bool {
    let (key, value) = SERVED_BY;
    definition.is_some_and(|definition| {
        let labels = definition.labels();
        labels.get(key).is_some_and(|by| by == value) && !labels.contains_key(CDI)
    })
}

/// Runs `serve` whenever the definition is ours, and drops it when it is not any more.
pub async fn while_ours(client: &Client, serve: impl AsyncFn()) {
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let mut changes = pin!(watch_object(definitions, NAME));
    loop {
        until(&mut changes, true).await;
        tokio::select! {
            () = serve() => {}
            () = until(&mut changes, false) => log::info!("DataVolumes are served by another controller, or not at all"),
        }
    }
}

/// Waits until the definition is ours, or is not.
async fn until<S>(changes: &mut S, ours: bool)
where
    S: Stream<Item = Result<Option<CustomResourceDefinition>, watcher::Error>> + Unpin,
{
    loop {
        match changes.next().await {
            Some(Ok(definition)) if is_ours(definition.as_ref()) == ours => return,
            Some(Ok(_)) => {}
            // The watch begins anew by itself.
            Some(Err(error)) => {
                log::debug!("watching {NAME}: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_is_ours_as_long_as_nobody_else_claims_it() {
        let ours = crate::crd::cdi().unwrap().remove(0);
        assert_eq!(ours.metadata.name.as_deref(), Some(NAME));
        assert!(is_ours(Some(&ours)) && !is_ours(None));
        let mut taken = ours.clone();
        taken
            .metadata
            .labels
            .get_or_insert_default()
            .insert(CDI.to_owned(), String::new());
        let mut theirs = ours;
        theirs.metadata.labels = None;
        assert!(!is_ours(Some(&taken)) && !is_ours(Some(&theirs)));
    }
}
