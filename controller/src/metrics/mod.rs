//! `GET /metrics` of the controller: what machines and instances are, and how long their starts took. What they use is for the
//! node agents to say. Every replica answers; what is in the reconcilers' caches, the one that leads.

mod families;
mod migrations;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use nacelle_api::vmi::VirtualMachineInstanceStatus;
use nacelle_api::{VirtualMachineInstance, VirtualMachineInstanceMigration};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::context::Context;

/// What the text is (OpenMetrics).
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Bounds of a start's times, in seconds: KubeVirt's, and finer where starts are faster.
const BOUNDS: [f64; 15] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 300.0, 600.0, 1800.0,
];

type Labels = Vec<(&'static str, String)>;

/// What is counted as it happens.
pub struct Metrics {
    leads: AtomicBool,
    /// Seconds from an instance's creation to a phase.
    phases: Family<Labels, Histogram, fn() -> Histogram>,
    /// The same of migrations.
    moves: Family<Labels, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            leads: AtomicBool::new(false),
            phases: Family::new_with_constructor(|| Histogram::new(BOUNDS)),
            moves: Family::new_with_constructor(|| Histogram::new(BOUNDS)),
        }
    }
}

impl Metrics {
    /// This replica reconciles from now on.
    pub fn leads(&self) {
        self.leads.store(true, Ordering::Relaxed);
    }

    /// A status was written: phases that are new in it are counted.
    pub fn entered(
        &self,
        vmi: &VirtualMachineInstance,
        old: &VirtualMachineInstanceStatus,
        new: &VirtualMachineInstanceStatus,
        now: Timestamp,
    ) {
        let before = old.phase_transition_timestamps.iter();
        let known: Vec<_> = before.map(|transition| &transition.phase).collect();
        for transition in &new.phase_transition_timestamps {
            if !known.contains(&&transition.phase) {
                observe(&self.phases, vmi, &transition.phase, now);
            }
        }
    }

    /// A migration was written that is in another phase than before.
    pub fn migrates(&self, migration: &VirtualMachineInstanceMigration, phase: &str, now: Timestamp) {
        observe(&self.moves, migration, phase, now);
    }
}

fn observe(
    histogram: &Family<Labels, Histogram, fn() -> Histogram>,
    object: &impl ResourceExt,
    phase: &str,
    now: Timestamp,
) {
    let Some(born) = object.creation_timestamp() else {
        return;
    };
    // Timestamps of objects have whole seconds.
    let seconds = now.duration_since(born.0).as_secs_f64();
    let labels = vec![("phase", phase.to_owned())];
    histogram.get_or_create(&labels).observe(seconds.max(0.0));
}

/// The path `/metrics`.
pub fn router(context: Arc<Context>) -> Router {
    Router::new().route("/metrics", get(answer)).with_state(context)
}

async fn answer(State(context): State<Arc<Context>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, TEXT)], exposition(context))
}

fn exposition(context: Arc<Context>) -> String {
    let mut registry = Registry::default();
    registry.register(
        "kubevirt_vmi_phase_transition_time_from_creation_seconds",
        "Seconds from the creation of an instance to each of its phases",
        context.metrics.phases.clone(),
    );
    registry.register(
        "kubevirt_vmi_migration_phase_transition_time_from_creation_seconds",
        "Seconds from the creation of a migration to each of its phases",
        context.metrics.moves.clone(),
    );
    registry.register_collector(Box::new(Objects(context)));
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = text::encode(&mut out, &registry);
    out
}

/// What is in the caches.
struct Objects(Arc<Context>);

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Objects")
    }
}

impl Collector for Objects {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let leads = f64::from(u8::from(self.0.metrics.leads.load(Ordering::Relaxed)));
        let own = [
            (
                "kubevirt_virt_controller_leading_status",
                "Whether this replica reconciles",
                leads,
            ),
            (
                "kubevirt_virt_controller_ready_status",
                "Whether this replica serves",
                1.0,
            ),
        ];
        for (name, help, value) in own {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        let labels = vec![
            ("goversion", String::new()),
            (
                "kubeversion",
                crate::subresource::discovery::COMPATIBLE.to_owned(),
            ),
            ("nacelleversion", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        let mut metric = encoder.encode_descriptor(
            "kubevirt_info",
            "Versions: of the API that is served, and of Nacelle",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(1.0).encode(metric.encode_family(&labels)?)?;
        let Some(stores) = self.0.stores.get() else {
            return Ok(());
        };
        families::encode(&mut encoder, &stores.vms.state(), &stores.vmis.state())?;
        migrations::encode(&mut encoder, &stores.migrations.state())
    }
}
