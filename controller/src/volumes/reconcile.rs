//! The one next thing for each volume that comes or goes: `step` decides (pure), the rest does it.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use nacelle_api::VirtualMachineInstance;
use nacelle_api::disk::{Disk, DiskTarget};
use nacelle_api::vmi::VirtualMachineInstanceStatus;
use nacelle_api::volume::Volume;
use serde::Deserialize;
use serde_json::{Value, json};

use super::hot;
use super::pod::{self, Place};
use super::status::{self, ATTACHED, BOUND, PENDING, Plugged, READY, UNMOUNTED, VolumeStatus};
use crate::context::Context;
use crate::error::{Doing, Result, absent_is_done, is};
use crate::subresource::launcher;
use crate::vmi::build::volumes::claim;

/// Until a launcher that refused, or a guest that takes its time, is asked again; its report is usually sooner.
const AGAIN: Duration = Duration::from_secs(5);
/// Until a pod that has just begun is asked again.
const SOON: Duration = Duration::from_millis(200);

/// How an attachment pod fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Absent,
    Begins,
    Runs,
    Ended,
    Leaves,
}

impl Run {
    fn of(pod: Option<&Pod>) -> Run {
        let Some(pod) = pod else {
            return Run::Absent;
        };
        if pod.metadata.deletion_timestamp.is_some() {
            return Run::Leaves;
        }
        match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
            Some("Running") => Run::Runs,
            Some("Succeeded" | "Failed") => Run::Ended,
            _ => Run::Begins,
        }
    }
}

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    MakePod,
    Attach,
    Detach,
    DeletePod,
    Forget,
}

/// Decides for a volume that is `wanted` or not, by how far it is and how its pod fares.
fn step(wanted: bool, one: &VolumeStatus, run: Run) -> Step {
    match (wanted, run) {
        (true, Run::Absent) => Step::MakePod,
        (true, Run::Runs) if !one.is(READY) => Step::Attach,
        // It goes anyway, and is made anew.
        (true, Run::Ended) if !one.is(READY) => Step::DeletePod,
        (true, _) => Step::Nothing,
        // A guest that never had it has let go of it, which its launcher knows.
        (false, Run::Runs | Run::Begins | Run::Ended) if !one.is(UNMOUNTED) => Step::Detach,
        (false, Run::Runs | Run::Begins | Run::Ended) => Step::DeletePod,
        (false, Run::Leaves) => Step::Nothing,
        (false, Run::Absent) if one.is(UNMOUNTED) => Step::Forget,
        (false, Run::Absent) => Step::Detach,
    }
}

/// Brings the volumes of a machine that runs in `launcher` a step nearer to what is wanted, and says in `status` how far
/// they are; when it is to be looked at again, where nobody will say so.
///
/// # Errors
/// The API server cannot be asked.
pub async fn reconcile(
    vmi: &VirtualMachineInstance,
    launcher: &Pod,
    status: &mut VirtualMachineInstanceStatus,
    context: &Context,
) -> Result<Option<Duration>> {
    let wanted: Vec<&Volume> = hot(&vmi.spec).collect();
    let mut all = status::plugged(status);
    if wanted.is_empty() && all.is_empty() || status.phase.as_deref() != Some("Running") {
        return Ok(None);
    }
    for source in &wanted {
        let attachment = pod::name(vmi, source);
        if !all.iter().any(|one| one.name == source.name) {
            all.push(VolumeStatus::new(&source.name, &attachment));
        }
    }
    let mut again: Option<Duration> = None;
    let mut left = Vec::new();
    for mut one in all {
        let attachment = one.hotplug_volume.clone().unwrap_or_default().attach_pod_name;
        let source = wanted.iter().find(|source| pod::name(vmi, source) == attachment);
        let work = Work {
            vmi,
            launcher,
            context,
            attachment: &attachment,
        };
        let (stays, wait) = work.on(&mut one, source.copied()).await?;
        again = [again, wait].into_iter().flatten().min();
        // Where the name is wanted of another claim, that one has its turn when this one is written off.
        if stays {
            left.push(one);
        }
    }
    status::write(status, &left);
    Ok(again)
}

/// Lets go of all volumes of a machine that has ended.
///
/// # Errors
/// The API server cannot be asked.
pub async fn forget(
    vmi: &VirtualMachineInstance,
    status: &mut VirtualMachineInstanceStatus,
    context: &Context,
) -> Result<()> {
    for one in status::plugged(status) {
        let attachment = one.hotplug_volume.unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(context.client.clone(), &vmi.namespace().unwrap_or_default());
        let gone = pods
            .delete(&attachment.attach_pod_name, &DeleteParams::default())
            .await;
        absent_is_done(gone).doing("deleting an attachment pod")?;
    }
    status::write(status, &[]);
    Ok(())
}

/// What is done for one volume.
struct Work<'a> {
    vmi: &'a VirtualMachineInstance,
    launcher: &'a Pod,
    context: &'a Context,
    attachment: &'a str,
}

impl Work<'_> {
    fn pods(&self) -> Api<Pod> {
        let namespace = self.vmi.namespace().unwrap_or_default();
        Api::namespaced(self.context.client.clone(), &namespace)
    }

    /// Does the next thing; whether the volume is still of concern, and when to look again.
    async fn on(&self, one: &mut VolumeStatus, source: Option<&Volume>) -> Result<(bool, Option<Duration>)> {
        let pod = self.pods().get_opt(self.attachment).await;
        let pod = pod.doing("reading an attachment pod")?;
        if let (Some(pod), Some(attachment)) = (&pod, &mut one.hotplug_volume) {
            attachment.attach_pod_uid = pod.uid().unwrap_or_default();
        }
        let run = Run::of(pod.as_ref());
        let wait = match (step(source.is_some(), one, run), source) {
            (Step::MakePod, Some(source)) => self.make(one, source).await?,
            (Step::Attach, Some(source)) => self.attach(one, source).await,
            (Step::Detach, _) => self.detach(one).await,
            (Step::DeletePod, _) => {
                if let Some(pod) = &pod {
                    self.delete(one, pod, source.is_some()).await?;
                }
                source.is_some().then_some(AGAIN)
            }
            (Step::Forget, _) => return Ok((false, None)),
            _ => None,
        };
        // The pod's end is a change that brings us back; that there never was one is none.
        let gone = source.is_none() && run == Run::Absent && one.is(UNMOUNTED);
        Ok((!gone, wait))
    }

    async fn make(&self, one: &mut VolumeStatus, source: &Volume) -> Result<Option<Duration>> {
        let Some((name, _)) = claim(source) else {
            return Ok(None);
        };
        let namespace = self.vmi.namespace().unwrap_or_default();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.context.client.clone(), &namespace);
        let Some(claim) = claims.get_opt(&name).await.doing("reading a claim")? else {
            one.enter(
                PENDING,
                "FailedPvcNotFound",
                format!("PVC {namespace}/{name} does not exist"),
            );
            return Ok(Some(AGAIN));
        };
        one.persistent_volume_claim_info = Some(status::of_claim(&name, &claim));
        let spec = claim.spec.as_ref();
        let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        let configured = self.context.configuration();
        let settings = &self.context.settings;
        let place = Place {
            launcher: self.launcher,
            block: spec.and_then(|spec| spec.volume_mode.as_deref()) == Some("Block"),
            image: &settings.image,
            image_pull_policy: configured
                .image_pull_policy
                .as_deref()
                .unwrap_or(&settings.image_pull_policy),
        };
        let Some(pod) = pod::pod(self.vmi, source, &place) else {
            return Ok(Some(AGAIN));
        };
        match self.pods().create(&PostParams::default(), &pod).await {
            Ok(made) => {
                if let Some(attachment) = &mut one.hotplug_volume {
                    attachment.attach_pod_uid = made.uid().unwrap_or_default();
                }
                let message = format!("Created attachment pod {}", made.name_any());
                self.say(false, "SuccessfulCreate", &message).await;
            }
            Err(error) if is(&error, 409) => {}
            Err(kube::Error::Api(said)) if (400..500).contains(&said.code) && said.code != 429 => {
                let message = format!("failed to create the attachment pod: {}", said.message);
                if one.message.as_deref() != Some(&message) {
                    self.say(true, "FailedCreate", &message).await;
                }
                one.enter(PENDING, "FailedCreate", message);
                return Ok(Some(AGAIN));
            }
            Err(error) => return Err(error).doing("creating an attachment pod"),
        }
        let message = "the attachment pod has been created";
        one.enter(if bound { BOUND } else { PENDING }, "", message);
        Ok(None)
    }

    /// Reads the word of who has the volume, and tells it to the launcher.
    async fn attach(&self, one: &mut VolumeStatus, source: &Volume) -> Option<Duration> {
        let namespace = self.vmi.namespace().unwrap_or_default();
        let word = match launcher::word(self.context, &namespace, self.attachment).await {
            Ok(word) => word,
            Err(refusal) => {
                log::debug!("{}: {}", self.attachment, refusal.message());
                one.enter(ATTACHED, "", "the attachment pod runs");
                return Some(SOON);
            }
        };
        let disk = disk(self.vmi, source);
        let body = json!({"disk": disk, "handover": word});
        match launcher::change(self.context, self.vmi, "attach", body).await {
            Ok(said) => status::apply(one, &plugged(&said)),
            Err(refusal) => {
                let message = format!("the launcher does not attach it: {}", refusal.message());
                if one.message.as_deref() != Some(&message) {
                    self.say(true, "HotplugFailed", &message).await;
                }
                one.enter(ATTACHED, "HotplugFailed", message);
            }
        }
        (!one.is(READY)).then_some(AGAIN)
    }

    async fn detach(&self, one: &mut VolumeStatus) -> Option<Duration> {
        let body = json!({"disk": one.name});
        match launcher::change(self.context, self.vmi, "detach", body).await {
            Ok(said) => {
                let said = plugged(&said);
                // It may have left by now.
                match said.iter().any(|said| said.name == one.name) {
                    true => status::apply(one, &said),
                    false => one.enter(UNMOUNTED, "", ""),
                }
            }
            Err(refusal) if refusal.is_not_found() => one.enter(UNMOUNTED, "", ""),
            Err(refusal) => {
                let message = format!("the launcher does not detach it: {}", refusal.message());
                if one.message.as_deref() != Some(&message) {
                    self.say(true, "HotplugFailed", &message).await;
                }
                let phase = one.phase.clone().unwrap_or_else(|| PENDING.to_owned());
                one.enter(&phase, "HotplugFailed", message);
            }
        }
        // A guest that takes its time is asked again.
        (!one.is(UNMOUNTED)).then_some(AGAIN)
    }

    async fn delete(&self, one: &mut VolumeStatus, pod: &Pod, wanted: bool) -> Result<()> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: pod.uid(),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        let gone = self.pods().delete(self.attachment, &params).await;
        absent_is_done(gone).doing("deleting an attachment pod")?;
        if wanted {
            let message = format!("attachment pod {} ended: {}", self.attachment, why(pod));
            self.say(true, "HotplugFailed", &message).await;
            one.enter(PENDING, "HotplugFailed", message);
        } else {
            let message = format!("Deleted attachment pod {}", self.attachment);
            self.say(false, "SuccessfulDelete", &message).await;
        }
        Ok(())
    }

    async fn say(&self, warning: bool, reason: &str, message: &str) {
        let about = self.vmi.object_ref(&());
        self.context.event(&about, warning, reason, message).await;
    }
}

/// Why a pod ended, as its container said.
fn why(pod: &Pod) -> String {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    let ended = statuses.into_iter().flatten().find_map(|container| {
        let end = container.state.as_ref()?.terminated.as_ref()?;
        Some(
            end.message
                .clone()
                .unwrap_or_else(|| format!("status {}", end.exit_code)),
        )
    });
    let of_pod = pod.status.as_ref().and_then(|status| status.message.clone());
    ended.or(of_pod).unwrap_or_default().trim().to_owned()
}

/// The disk that shows the volume; what the claim says of writing counts, too.
fn disk(vmi: &VirtualMachineInstance, source: &Volume) -> Disk {
    let mut disks = vmi.spec.domain.devices.disks.iter();
    let mut disk = disks
        .find(|disk| disk.name == source.name)
        .cloned()
        .unwrap_or_else(|| Disk {
            name: source.name.clone(),
            ..Disk::default()
        });
    // Firmware has long gone by it.
    disk.boot_order = None;
    if claim(source).is_some_and(|(_, read_only)| read_only) && disk.cdrom.is_none() {
        disk.disk.get_or_insert_with(DiskTarget::default).readonly = Some(true);
    }
    disk
}

/// What a launcher says was plugged in.
fn plugged(said: &Value) -> Vec<Plugged> {
    let list = said.get("plugged").cloned().unwrap_or_default();
    Vec::deserialize(list).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::status::DETACHING;
    use super::*;

    #[test]
    fn each_step_follows_from_how_far_a_volume_is() {
        let at = |phase: &str| {
            let mut one = VolumeStatus::new("data", "p");
            one.enter(phase, "", "");
            one
        };
        for (wanted, phase, run, next) in [
            (true, "", Run::Absent, Step::MakePod),
            (true, BOUND, Run::Begins, Step::Nothing),
            (true, BOUND, Run::Runs, Step::Attach),
            (true, ATTACHED, Run::Runs, Step::Attach),
            (true, READY, Run::Runs, Step::Nothing),
            // It was removed and is wanted again.
            (true, UNMOUNTED, Run::Leaves, Step::Nothing),
            (true, UNMOUNTED, Run::Absent, Step::MakePod),
            (true, DETACHING, Run::Runs, Step::Attach),
            (true, BOUND, Run::Ended, Step::DeletePod),
            (false, BOUND, Run::Begins, Step::Detach),
            (false, READY, Run::Runs, Step::Detach),
            (false, DETACHING, Run::Runs, Step::Detach),
            (false, UNMOUNTED, Run::Runs, Step::DeletePod),
            (false, UNMOUNTED, Run::Leaves, Step::Nothing),
            (false, UNMOUNTED, Run::Absent, Step::Forget),
            // Whatever became of its pod, the guest is asked.
            (false, READY, Run::Absent, Step::Detach),
        ] {
            assert_eq!(step(wanted, &at(phase), run), next, "{wanted} {phase} {run:?}");
        }
    }

    #[test]
    fn a_claim_that_is_only_read_is_a_disk_that_is_only_read() {
        let spec = json!({"domain": {"devices": {"disks": [{"name": "data", "serial": "D", "bootOrder": 2}]}},
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c", "readOnly": true, "hotpluggable": true}}]});
        let vmi = VirtualMachineInstance::new("a", serde_json::from_value(spec).unwrap());
        let disk = disk(&vmi, &vmi.spec.volumes[0]);
        assert_eq!(disk.serial.as_deref(), Some("D"));
        assert_eq!(disk.disk.unwrap().readonly, Some(true));
        assert_eq!(disk.boot_order, None);
    }
}
