//! What every part of the controller needs.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource, ResourceExt};
use nacelle_api::{VirtualMachine, VirtualMachineInstance};
use tokio::sync::watch;

use crate::configuration::Configuration;
use crate::settings::Settings;
use crate::vmi::written::Written;

/// Client, recorder and settings; one for the process.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What was asked for.
    pub settings: Settings,
    /// User name by which the API server knows this controller.
    pub user: String,
    /// What launchers are told of how to report: `report.json` of `docs/pod.md`.
    pub report: watch::Receiver<Arc<str>>,
    /// What the KubeVirt object says.
    pub configuration: watch::Receiver<Arc<Configuration>>,
    /// What was written to instances and the cache may not have yet.
    pub written: Written,
    recorder: Recorder,
}

impl Context {
    /// A context of the parts that are known at the start.
    pub fn new(
        client: Client,
        settings: Settings,
        user: String,
        report: watch::Receiver<Arc<str>>,
        configuration: watch::Receiver<Arc<Configuration>>,
    ) -> Self {
        let reporter = Reporter {
            controller: "virtualmachine-controller".to_owned(),
            instance: Some(settings.replica.clone()),
        };
        Context {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            settings,
            user,
            report,
            configuration,
            written: Written::default(),
        }
    }

    /// The administrator's settings, as they are now.
    pub fn configuration(&self) -> Arc<Configuration> {
        self.configuration.borrow().clone()
    }

    /// The machines of a namespace.
    pub fn vms(&self, namespace: &str) -> Api<VirtualMachine> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The instances of a namespace.
    pub fn vmis(&self, namespace: &str) -> Api<VirtualMachineInstance> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Tells people what happened to an object. An event that is lost is logged, nothing more depends on it.
    pub async fn event(&self, about: &ObjectReference, warning: bool, reason: &str, message: &str) {
        let event = Event {
            type_: if warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: reason.to_owned(),
            note: Some(message.chars().take(1000).collect()),
            action: reason.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, about).await {
            log::warn!("event {reason} of {:?} is lost: {error}", about.name);
        }
    }
}

/// `namespace/name`, for messages.
pub fn key<K: Resource>(object: &K) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}
