//! DataVolumes: each gets a claim, and a pod that fills it.
//!
//! What is wanted (`source`, pure) → the claim (`claim`, pure) → the importer pod (`pod`, pure) → status (`status`, pure, then
//! written). The claim has the DataVolume's name, the pod its UID. Where another controller serves the kind (`owner`), this one
//! does nothing.

mod claim;
mod config;
mod owner;
pub(crate) mod pod;
mod source;
mod status;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::controller::{Action as Requeue, Controller};
use kube::runtime::watcher::Config;
use kube::{Api, Resource, ResourceExt};
use nacelle_api::conditions;
use nacelle_api::datavolume::{DataSource, DataVolume, DataVolumeSource, DataVolumeStatus};
use serde_json::json;

pub use claim::UPLOAD_TARGET;

use crate::context::{Context, key};
use crate::error::{Doing, Error, Result, absent_is_done, is};
use crate::run::{Patience, drain, named, retry};
use source::Fetch;
use status::Found;

/// How often the progress of an import is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Until something is looked at again that nobody tells us of.
const AGAIN: Duration = Duration::from_secs(5);

/// Serves DataVolumes for as long as this replica leads, whenever nobody else does.
pub async fn run(context: Arc<Context>) {
    let client = &context.client;
    owner::while_ours(client, async || {
        log::info!("DataVolumes are served here");
        let importers = Config::default().labels(pod::LABEL);
        let volumes = Controller::new(Api::<DataVolume>::all(client.clone()), Config::default())
            .owns(Api::<Pod>::all(client.clone()), importers)
            .owns(
                Api::<PersistentVolumeClaim>::all(client.clone()),
                Config::default().labels(claim::LABEL),
            )
            .trigger_backoff(Patience::new())
            .run(named(reconcile), |_, error, _| retry(error), context.clone());
        tokio::join!(drain(volumes), config::run(&context));
    })
    .await;
}

/// Brings one DataVolume a step nearer to what is wanted.
///
/// # Errors
/// The API server cannot be asked, or refuses.
pub async fn reconcile(volume: Arc<DataVolume>, context: Arc<Context>) -> Result<Requeue> {
    if volume.metadata.deletion_timestamp.is_some() {
        return Ok(Requeue::await_change());
    }
    let namespace = volume.namespace().ok_or(Error::Incomplete("namespace"))?;
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let name = pod::name(&volume.uid().ok_or(Error::Incomplete("UID"))?);
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    if let Some("Succeeded" | "Failed") = phase {
        // What it was filled by is not needed any more.
        let done = pods.get_opt(&name).await.doing("reading the importer pod")?;
        if let Some(done) = done.filter(|_| phase == Some("Succeeded")) {
            delete(&pods, &done).await?;
        }
        return Ok(Requeue::await_change());
    }

    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace);
    let mut found = Found {
        claim: claims
            .get_opt(&volume.name_any())
            .await
            .doing("reading the claim")?,
        pod: pods.get_opt(&name).await.doing("reading the importer pod")?,
        verb: "Import",
        ..Found::default()
    };
    let mut requeue = Requeue::await_change();
    match step(&volume, &mut found, &claims, &pods, &context).await {
        Ok(()) => {}
        Err(Stop::Api(error)) => return Err(error),
        Err(Stop::Wait(reason, message)) => {
            found.waits = Some((reason, message));
            requeue = Requeue::requeue(AGAIN);
        }
        Err(Stop::Never(message)) => found.refused = Some(message),
    }
    if found.pod.as_ref().is_some_and(pod::runs) {
        found.progress = progress(&pods, &name).await;
        requeue = Requeue::requeue(LOOK);
    }
    // An upload may be waited for longer than an authority lasts; whoever sends one just now is not disturbed.
    let idle = found.progress.as_deref().is_none_or(|progress| progress == "N/A");
    let clients = context.trusted.borrow().material.authorities.clone();
    if let Some(old) = found.pod.take_if(|pod| idle && pod::trusts_others(pod, &clients)) {
        delete(&pods, &old).await?;
    }
    report(&volume, &found, &context).await?;
    Ok(requeue)
}

/// Why the next step is not done.
enum Stop {
    Api(Error),
    /// Something must happen before: one word, a sentence.
    Wait(&'static str, String),
    /// It never can be.
    Never(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Api(error)
    }
}

/// Makes the claim, then the pod.
async fn step(
    volume: &DataVolume,
    found: &mut Found,
    claims: &Api<PersistentVolumeClaim>,
    pods: &Api<Pod>,
    context: &Context,
) -> Result<(), Stop> {
    let wanted = wanted(volume, context).await?;
    let fetch = source::fetch(&volume.spec, &wanted).map_err(Stop::Never)?;
    found.verb = fetch.verb();
    let original = original(volume, &fetch, claims).await?;
    let mut want = claim::claim(volume, original.as_ref()).map_err(Stop::Never)?;
    claim::annotate(&mut want.claim, &fetch, source::is_archive(&volume.spec));
    let there = match found.claim.take() {
        Some(there) => there,
        None => match claims.create(&PostParams::default(), &want.claim).await {
            Ok(made) => made,
            Err(kube::Error::Api(said))
                if (400..500).contains(&said.code) && said.code != 409 && said.code != 429 =>
            {
                return Err(Stop::Wait(
                    "ErrClaimNotValid",
                    format!("the claim cannot be made: {}", said.message),
                ));
            }
            Err(error) => {
                return Err(Stop::Api(Error::Api {
                    doing: "making the claim",
                    source: Box::new(error),
                }));
            }
        },
    };
    if !claim::belongs(&there, volume) {
        let message = format!(
            "Resource {:?} already exists and is not managed by DataVolume",
            volume.name_any()
        );
        found.claim = Some(there);
        return Err(Stop::Wait("ErrResourceExists", message));
    }
    let late = claim::is_pending(&there) && binds_late(&there, context).await?;
    found.first_consumer = late && !claim::at_once(volume) && found.pod.is_none();
    let ready = !claim::is_pending(&there) || (late && claim::at_once(volume));
    let block = claim::is_block(&there);
    found.claim = Some(there);
    if found.pod.is_some() || !ready {
        if let Some(failed) = found.pod.take_if(|pod| pod::gave_up(pod)) {
            // Evicted, or its node is gone: the next one begins anew.
            delete(pods, &failed).await?;
        }
        return Ok(());
    }
    if let Some(original) = &original {
        unused(original, pods).await?;
    }
    let clients = context.trusted.borrow().material.authorities.clone();
    let make = pod::Make {
        volume,
        fetch: &fetch,
        size: want.size,
        block,
        original_block: original.as_ref().is_some_and(claim::is_block),
        image: &context.settings.image,
        image_pull_policy: &context.settings.image_pull_policy,
        clients: &clients,
    };
    match pods
        .create(&PostParams::default(), &pod::pod(&make).map_err(Stop::Never)?)
        .await
    {
        Ok(made) => found.pod = Some(made),
        Err(error) if is(&error, 409) => {}
        Err(kube::Error::Api(said)) if (400..500).contains(&said.code) && said.code != 429 => {
            return Err(Stop::Wait(
                "Error",
                format!("the importer pod cannot be made: {}", said.message),
            ));
        }
        Err(error) => {
            return Err(Stop::Api(Error::Api {
                doing: "making the importer pod",
                source: Box::new(error),
            }));
        }
    }
    Ok(())
}

/// Where the contents come from, through a DataSource if that is named.
async fn wanted(volume: &DataVolume, context: &Context) -> Result<DataVolumeSource, Stop> {
    let Some(reference) = &volume.spec.source_ref else {
        return Ok(volume.spec.source.clone().unwrap_or_default());
    };
    let own = volume.namespace().unwrap_or_default();
    let namespace = reference.namespace.as_deref().unwrap_or(&own);
    if reference.kind != "DataSource" {
        return Err(Stop::Never(format!(
            "sourceRef.kind {} is not supported; DataSource is",
            reference.kind
        )));
    }
    let sources: Api<DataSource> = Api::namespaced(context.client.clone(), namespace);
    let source = sources
        .get_opt(&reference.name)
        .await
        .doing("reading the DataSource")?;
    let Some(source) = source else {
        let message = format!("DataSource {namespace}/{} does not exist", reference.name);
        return Err(Stop::Wait("SourceNotFound", message));
    };
    source::named(&source, namespace).map_err(Stop::Never)
}

/// The claim that is copied, if one is.
async fn original(
    volume: &DataVolume,
    fetch: &Fetch,
    claims: &Api<PersistentVolumeClaim>,
) -> Result<Option<PersistentVolumeClaim>, Stop> {
    let Fetch::Claim { namespace, name } = fetch else {
        return Ok(None);
    };
    let own = volume.namespace().unwrap_or_default();
    if namespace.as_ref().is_some_and(|namespace| *namespace != own) {
        return Err(Stop::Never(
            "a claim of another namespace cannot be copied by this version of Nacelle; copy it in its own"
                .into(),
        ));
    }
    match claims
        .get_opt(name)
        .await
        .doing("reading the claim that is copied")?
    {
        Some(original) => Ok(Some(original)),
        None => Err(Stop::Wait(
            "CloneValidationFailed",
            format!("PVC {own}/{name} does not exist"),
        )),
    }
}

/// Nobody may write what is copied.
async fn unused(original: &PersistentVolumeClaim, pods: &Api<Pod>) -> Result<(), Stop> {
    let name = original.name_any();
    let all = pods
        .list(&ListParams::default())
        .await
        .doing("looking who uses the claim that is copied")?;
    match all.items.iter().find(|pod| pod::uses(pod, &name)) {
        Some(user) => Err(Stop::Wait(
            "CloneSourceInUse",
            format!(
                "pod {} uses PVC {name}, which is copied; it begins when that has ended",
                user.name_any()
            ),
        )),
        None => Ok(()),
    }
}

/// Whether the claim's class binds it when a pod wants it, not before.
async fn binds_late(claim: &PersistentVolumeClaim, context: &Context) -> Result<bool> {
    let class = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.storage_class_name.clone());
    let Some(class) = class.filter(|class| !class.is_empty()) else {
        return Ok(false);
    };
    let classes: Api<StorageClass> = Api::all(context.client.clone());
    let class = classes.get_opt(&class).await.doing("reading the storage class")?;
    Ok(class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")))
}

/// The last that the importer said of how far it is.
async fn progress(pods: &Api<Pod>, name: &str) -> Option<String> {
    let last = LogParams {
        tail_lines: Some(5),
        limit_bytes: Some(4096),
        ..LogParams::default()
    };
    status::progress(&pods.logs(name, &last).await.ok()?)
}

async fn delete(pods: &Api<Pod>, pod: &Pod) -> Result<()> {
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: pod.uid(),
            ..Preconditions::default()
        }),
        ..DeleteParams::default()
    };
    absent_is_done(pods.delete(&pod.name_any(), &params).await).doing("deleting the importer pod")
}

async fn report(volume: &DataVolume, found: &Found, context: &Context) -> Result<()> {
    let old = volume.status.clone().unwrap_or_default();
    let status = status::status(volume, found, Timestamp::now());
    let namespace = volume.namespace().unwrap_or_default();
    if let Some(claim) = &found.claim
        && claim::belongs(claim, volume)
        && let Some(patch) = claim::told(claim, &status, found.pod.as_ref())
    {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace);
        let done = claims
            .patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await;
        absent_is_done(done).doing("annotating the claim")?;
    }
    if old == status {
        return Ok(());
    }
    log::debug!("{}: {:?}", key(volume), status.phase);
    let patch = json!({"metadata": {"resourceVersion": volume.resource_version()}, "status": status});
    let api: Api<DataVolume> = Api::namespaced(context.client.clone(), &namespace);
    let done = api
        .patch_status(&volume.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await;
    absent_is_done(done).doing("reporting the DataVolume's status")?;
    tell(volume, &old, &status, context).await;
    Ok(())
}

/// Events: of each phase, and of what is wrong.
async fn tell(volume: &DataVolume, old: &DataVolumeStatus, status: &DataVolumeStatus, context: &Context) {
    let about = volume.object_ref(&());
    if old.phase != status.phase
        && let Some((reason, message)) = status::event(volume, status)
    {
        context
            .event(
                &about,
                status.phase.as_deref() == Some("Failed"),
                reason,
                &message,
            )
            .await;
    }
    let wrong = |status: &DataVolumeStatus| {
        ["Running", "Bound"].into_iter().find_map(|type_| {
            let condition = conditions::find(&status.conditions, type_)?;
            let reason = condition
                .reason
                .clone()
                .filter(|reason| reason.starts_with("Err") || reason.starts_with("Clone"))?;
            Some((reason, condition.message.clone().unwrap_or_default()))
        })
    };
    if let Some((reason, message)) = wrong(status)
        && wrong(old).as_ref() != Some(&(reason.clone(), message.clone()))
    {
        context.event(&about, true, &reason, &message).await;
    }
}
