//! The process: every replica serves, the one that leads reconciles.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::routing::get;
use futures_util::StreamExt;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::PostParams;
use kube::runtime::controller::{Action as Requeue, Controller, Error as ControllerError};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::Config;
use kube::{Api, Client, ResourceExt};
use nacelle_api::kubevirt::KubeVirt;
use nacelle_api::{VirtualMachine, VirtualMachineInstance};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::certificates;
use crate::context::Context;
use crate::error::Error;
use crate::leader::Leadership;
use crate::server::{FrontProxy, Tls, serve};
use crate::settings::Settings;
use crate::{install, kubevirt, later, node, report, subresource, vm, vmi, webhook};

/// Runs until SIGTERM.
///
/// # Errors
/// What keeps it from starting, or ended it.
pub async fn run(settings: Settings) -> Result<()> {
    let client = Client::try_default().await.context("no way to the API server")?;
    let user = myself(&client).await?;
    log::info!("nacelle-controller {} as {user}", env!("CARGO_PKG_VERSION"));

    let (tls, report) = trusted(&client, &settings).await?;
    let (tls_sender, tls) = watch::channel(tls);
    let (report_sender, report) = watch::channel(report);
    // Before anybody is answered.
    let (configuration_sender, configuration) = watch::channel(kubevirt::configuration(&client).await?);
    let context = Context::new(client.clone(), settings.clone(), user, report, configuration);
    let context = Arc::new(context);
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("listening on {}", settings.listen))?;
    let renew = async {
        loop {
            sleep(settings.certificates_every).await;
            match trusted(&client, &settings).await {
                Ok((tls, report)) => {
                    tls_sender.send_replace(tls);
                    report_sender.send_if_modified(|old| std::mem::replace(old, report.clone()) != report);
                }
                Err(error) => log::warn!("certificates: {error:#}"),
            }
        }
    };
    let leadership = Leadership::new(client.clone(), &settings.namespace, &settings.replica);
    let lead = async {
        loop {
            leadership.acquire().await;
            log::info!("{} leads", settings.replica);
            if let Err(error) = kubevirt::ensure(&context).await {
                log::warn!("{error}");
            }
            // Who leads no more reconciles no more, at once; consoles that go through this replica go on.
            tokio::select! {
                lost = leadership.keep() => log::warn!("{} leads no more: {lost:#}", settings.replica),
                () = reconcile(context.clone()) => bail!("the reconcilers ended"),
            }
        }
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        done = serve(listener, tls, router(&context)) => done,
        done = lead => done,
        () = renew => Ok(()),
        () = kubevirt::follow(&client, &configuration_sender) => Ok(()),
        _ = terminate.recv() => leadership.release().await,
        _ = interrupt.recv() => leadership.release().await,
    }
}

fn router(context: &Arc<Context>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .merge(webhook::router(context.clone()))
        .merge(report::router(context.clone()))
        .merge(subresource::router(context.clone()))
}

/// Does what is due about certificates, and tells those whom it concerns.
async fn trusted(client: &Client, settings: &Settings) -> Result<(Tls, Arc<str>)> {
    let material = certificates::ensure(client, &settings.namespace, &settings.server_name()).await?;
    let tls = Tls::new(&material, FrontProxy::read(client).await?)?;
    install::trust(client, &material).await?;
    let report = install::report(client, settings, &material).await?;
    Ok((tls, report))
}

/// The name by which the API server knows us: what comes from it is ours.
async fn myself(client: &Client) -> Result<String> {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = api
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .context("asking who we are")?;
    let user = review.status.and_then(|status| status.user_info?.username);
    user.context("the API server does not know who we are")
}

/// All reconcilers, until one of them ends.
async fn reconcile(context: Arc<Context>) {
    let client = &context.client;
    let vms = Controller::new(Api::<VirtualMachine>::all(client.clone()), Config::default())
        .owns(
            Api::<VirtualMachineInstance>::all(client.clone()),
            Config::default(),
        )
        .trigger_backoff(Patience::new())
        .run(vm::reconcile, |_, error, _| retry(error), context.clone());
    let launchers = Config::default().labels("kubevirt.io=virt-launcher");
    let instances = Controller::new(
        Api::<VirtualMachineInstance>::all(client.clone()),
        Config::default(),
    );
    let store = instances.store();
    let instances = instances
        .owns(Api::<Pod>::all(client.clone()), launchers)
        .watches(Api::<Node>::all(client.clone()), Config::default(), move |node| {
            // A node that comes or goes concerns what runs on it.
            let name = node.name_any();
            let on = |vmi: &Arc<VirtualMachineInstance>| {
                vmi.status.as_ref().and_then(|status| status.node_name.as_deref()) == Some(name.as_str())
            };
            store
                .state()
                .into_iter()
                .filter(on)
                .map(|vmi| ObjectRef::from_obj(&*vmi))
                .collect::<Vec<_>>()
        })
        .trigger_backoff(Patience::new())
        .run(vmi::reconcile, |_, error, _| retry(error), context.clone());
    let nodes = Controller::new(Api::<Node>::all(client.clone()), Config::default()).run(
        node::reconcile,
        |_, error, _| retry(error),
        context.clone(),
    );
    let installations = Controller::new(Api::<KubeVirt>::all(client.clone()), Config::default()).run(
        kubevirt::reconcile,
        |_, error, _| retry(error),
        context.clone(),
    );
    tokio::join!(
        drain(vms),
        drain(instances),
        drain(nodes),
        drain(installations),
        later::run(context.clone())
    );
}

/// How long a watch that broke waits before it is tried again: longer and longer, but never as long as kube's half minute,
/// which an API server that was restarted would have to be waited for.
#[derive(Clone, Copy)]
pub(crate) struct Patience(Duration);

impl Patience {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(4);

    pub(crate) fn new() -> Self {
        Patience(Self::FIRST)
    }
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.0;
        self.0 = (wait * 2).min(Self::LONGEST);
        Some(wait)
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.0 = Self::FIRST;
    }
}

fn retry(error: &Error) -> Requeue {
    Requeue::requeue(error.retry_after())
}

fn drain<T, Q: std::error::Error + 'static>(
    results: impl futures_util::Stream<Item = Result<T, ControllerError<Error, Q>>>,
) -> impl Future<Output = ()> {
    results.for_each(async |result| match result {
        // Somebody else was faster: nothing to tell, it is looked at again.
        Err(ControllerError::ReconcilerFailed(error, object)) if !error.is_conflict() => {
            log::warn!("{object}: {error}");
        }
        Err(error) => log::debug!("{error}"),
        Ok(_) => {}
    })
}
