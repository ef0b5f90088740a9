//! The process: every replica serves, the one that leads reconciles.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::routing::get;
use futures_util::StreamExt;
use futures_util::stream::unfold;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::PostParams;
use kube::runtime::controller::{Action as Requeue, Controller, Error as ControllerError};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::Config;
use kube::{Api, Client, Resource, ResourceExt};
use nacelle_api::kubevirt::KubeVirt;
use nacelle_api::{VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceMigration};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::futures::TaskLocalFuture;
use tokio::time::sleep;

use crate::certificates;
use crate::context::{Context, Stores, Trusted};
use crate::error::Error;
use crate::leader::Leadership;
use crate::logging::{self, Object};
use crate::server::{FrontProxy, IDLE, IDLE_IN_PUBLIC, Tls, serve};
use crate::settings::Settings;
use crate::{
    datavolume, install, kubevirt, later, metrics, migration, node, pool, replicaset, report, subresource,
    upload, vm, vmi, volumes, webhook,
};

/// Runs until SIGTERM.
///
/// # Errors
/// What keeps it from starting, or ended it.
pub async fn run(settings: Settings) -> Result<()> {
    let client = Client::try_default().await.context("no way to the API server")?;
    let user = myself(&client).await?;
    log::info!("nacelle-controller {} as {user}", env!("CARGO_PKG_VERSION"));

    let (trust, report) = trusted(&client, &settings).await?;
    let (trust_sender, trust) = watch::channel(trust);
    let (report_sender, report) = watch::channel(report);
    // Before anybody is answered.
    let (configuration_sender, configuration) = watch::channel(kubevirt::configuration(&client).await?);
    let context = Context::new(
        client.clone(),
        settings.clone(),
        user,
        report,
        trust.clone(),
        configuration,
    );
    let context = Arc::new(context);
    let listener = listen(settings.listen).await?;
    let uploads = listen(settings.listen_uploads).await?;
    let renew = async {
        loop {
            sleep(settings.certificates_every).await;
            match trusted(&client, &settings).await {
                Ok((trust, report)) => {
                    trust_sender.send_replace(trust);
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
        done = serve(listener, IDLE, || trust.borrow().tls.clone(), router(&context)) => done,
        done = serve(uploads, IDLE_IN_PUBLIC, || trust.borrow().public.clone(), upload::proxy(context.clone())) => done,
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
        .merge(metrics::router(context.clone()))
        .merge(upload::router(context.clone()))
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("listening on {address}"))
}

/// Does what is due about certificates, and tells those whom it concerns.
async fn trusted(client: &Client, settings: &Settings) -> Result<(Trusted, Arc<str>)> {
    let material = certificates::ensure(client, &settings.namespace, &settings.server_name()).await?;
    let keys = upload::ensure(client, &settings.namespace).await?;
    let tls = Tls::new(&material, Some(FrontProxy::read(client).await?))?;
    let public = Tls::new(&material, None)?;
    install::trust(client, settings, &material).await?;
    let report = install::report(client, settings, &material).await?;
    let trusted = Trusted {
        tls,
        public,
        material: Arc::new(material),
        keys: Arc::new(keys),
    };
    Ok((trusted, report))
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
    let vms = Controller::new(Api::<VirtualMachine>::all(client.clone()), Config::default());
    let machines = vms.store();
    let vms = vms
        .owns(
            Api::<VirtualMachineInstance>::all(client.clone()),
            Config::default(),
        )
        .trigger_backoff(Patience::new())
        .run(named(vm::reconcile), |_, error, _| retry(error), context.clone());
    let launchers = Config::default().labels("kubevirt.io=virt-launcher");
    let attachments = Config::default().labels(&format!("kubevirt.io={}", volumes::pod::ROLE));
    let instances = Controller::new(
        Api::<VirtualMachineInstance>::all(client.clone()),
        Config::default(),
    );
    let store = instances.store();
    let migrations = Controller::new(
        Api::<VirtualMachineInstanceMigration>::all(client.clone()),
        Config::default(),
    );
    let stores = Stores {
        vms: machines,
        vmis: store.clone(),
        migrations: migrations.store(),
    };
    // Who leads reconciles once, to the end of the process.
    let _ = context.stores.set(stores);
    context.metrics.leads();
    let instances = instances
        .owns(Api::<Pod>::all(client.clone()), launchers)
        .watches(Api::<Pod>::all(client.clone()), attachments, |pod| {
            let instance = pod.annotations().get(volumes::pod::INSTANCE)?;
            Some(ObjectRef::new(instance).within(&pod.namespace()?))
        })
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
        .run(named(vmi::reconcile), |_, error, _| retry(error), context.clone());
    let tellers = Api::<Pod>::namespaced(client.clone(), &context.settings.namespace);
    // Which models are obsolete concerns all nodes.
    let settings = unfold(context.configuration.clone(), |mut settings| async move {
        settings.changed().await.ok()?;
        Some(((), settings))
    });
    let nodes = Controller::new(Api::<Node>::all(client.clone()), Config::default())
        .watches(tellers, Config::default().labels(node::LABEL), |pod| {
            node::node_of(&pod).map(|node| ObjectRef::new(&node))
        })
        .reconcile_all_on(settings)
        .trigger_backoff(Patience::new())
        .run(
            named(node::reconcile),
            |_, error, _| retry(error),
            context.clone(),
        );
    let installations = Controller::new(Api::<KubeVirt>::all(client.clone()), Config::default()).run(
        named(kubevirt::reconcile),
        |_, error, _| retry(error),
        context.clone(),
    );
    let targets = Config::default().labels("kubevirt.io/migrationJobUID");
    let store = migrations.store();
    let migrations = migrations
        .watches(Api::<Pod>::all(client.clone()), targets, |pod| {
            let (namespace, name) = migration::of_pod(&pod)?;
            Some(ObjectRef::new(&name).within(&namespace))
        })
        .watches(
            Api::<VirtualMachineInstance>::all(client.clone()),
            Config::default(),
            move |vmi| {
                // Who has it is told what it says, and who waits for it.
                let of = |migration: &Arc<VirtualMachineInstanceMigration>| {
                    migration.namespace() == vmi.namespace()
                        && migration.spec.vmi_name.as_ref() == vmi.metadata.name.as_ref()
                        && !migration::plan::is_over(migration)
                };
                let all = store.state().into_iter().filter(of);
                all.map(|migration| ObjectRef::from_obj(&*migration))
                    .collect::<Vec<_>>()
            },
        )
        .trigger_backoff(Patience::new())
        .run(
            named(migration::reconcile),
            |_, error, _| retry(error),
            context.clone(),
        );
    tokio::join!(
        drain(vms),
        drain(instances),
        drain(migrations),
        drain(nodes),
        drain(installations),
        replicaset::run(context.clone()),
        pool::run(context.clone()),
        later::run(context.clone()),
        datavolume::run(context.clone())
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

pub(crate) fn retry(error: &Error) -> Requeue {
    Requeue::requeue(error.retry_after())
}

/// A reconciler all of whose log lines name its object.
pub(crate) fn named<K, F>(
    reconcile: impl Fn(Arc<K>, Arc<Context>) -> F,
) -> impl Fn(Arc<K>, Arc<Context>) -> TaskLocalFuture<Object, F>
where
    K: Resource<DynamicType = ()>,
    F: Future,
{
    move |object, context| logging::about(Object::of(&*object), reconcile(object, context))
}

pub(crate) fn drain<T, Q: std::error::Error + 'static>(
    results: impl futures_util::Stream<Item = Result<T, ControllerError<Error, Q>>>,
) -> impl Future<Output = ()> {
    results.for_each(async |result| match result {
        // Somebody else was faster: nothing to tell, it is looked at again.
        Err(ControllerError::ReconcilerFailed(error, object)) if !error.is_conflict() => {
            logging::about_now(Object::named(&object), || log::warn!("{object}: {error}"));
        }
        Err(error) => log::debug!("{error}"),
        Ok(_) => {}
    })
}
