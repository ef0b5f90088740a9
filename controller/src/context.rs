//! What every part of the controller needs.

use std::sync::{Arc, OnceLock};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::Store;
use kube::{Api, Client, Resource, ResourceExt};
use nacelle_api::{VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceMigration};
use tokio::sync::watch;

use crate::certificates::Material;
use crate::configuration::Configuration;
use crate::metrics::Metrics;
use crate::server::Tls;
use crate::settings::Settings;
use crate::upload;
use crate::written::Written;

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
    /// Certificates and keys, as they are now.
    pub trusted: watch::Receiver<Trusted>,
    /// What the KubeVirt object says.
    pub configuration: watch::Receiver<Arc<Configuration>>,
    /// What was written to machines and instances, and the cache may not have yet.
    pub written: Written,
    /// What the reconcilers know of; nothing in a replica that does not lead.
    pub stores: OnceLock<Stores>,
    /// What is counted for Prometheus.
    pub metrics: Metrics,
    /// Migrations take turns to claim their instances.
    pub claims: tokio::sync::Mutex<()>,
    recorder: Recorder,
}

/// Certificates, and what is made of them: one look at what all replicas share.
#[derive(Clone)]
pub struct Trusted {
    /// For the API server and launchers.
    pub tls: Tls,
    /// For who uploads.
    pub public: Tls,
    /// Certificates and keys.
    pub material: Arc<Material>,
    /// Keys of tokens for uploads.
    pub keys: Arc<upload::Keys>,
}

/// The caches of the reconcilers.
pub struct Stores {
    /// All machines.
    pub vms: Store<VirtualMachine>,
    /// All instances.
    pub vmis: Store<VirtualMachineInstance>,
    /// All migrations.
    pub migrations: Store<VirtualMachineInstanceMigration>,
}

impl Context {
    /// A context of the parts that are known at the start.
    pub fn new(
        client: Client,
        settings: Settings,
        user: String,
        report: watch::Receiver<Arc<str>>,
        trusted: watch::Receiver<Trusted>,
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
            trusted,
            configuration,
            written: Written::default(),
            stores: OnceLock::new(),
            metrics: Metrics::default(),
            claims: tokio::sync::Mutex::default(),
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
