//! What is reported of a DataVolume. Pure.

use k8s_openapi::api::core::v1::{ContainerState, PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use nacelle_api::conditions;
use nacelle_api::datavolume::{DataVolume, DataVolumeStatus};

use super::{claim, pod};

/// What the reconciler found out.
#[derive(Default)]
pub struct Found {
    /// The claim of its name.
    pub claim: Option<PersistentVolumeClaim>,
    /// The pod that fills it.
    pub pod: Option<Pod>,
    /// `Import`, `Clone` or `Upload`, as phases have it.
    pub verb: &'static str,
    /// Its claim is bound when a machine wants it.
    pub first_consumer: bool,
    /// What must happen before: one word, a sentence.
    pub waits: Option<(&'static str, String)>,
    /// Why it never can be filled.
    pub refused: Option<String>,
    /// What the importer said of how far it is.
    pub progress: Option<String>,
}

/// The status that follows.
pub fn status(volume: &DataVolume, found: &Found, now: Timestamp) -> DataVolumeStatus {
    let mut status = volume.status.clone().unwrap_or_default();
    let own = found.claim.as_ref().filter(|claim| claim::belongs(claim, volume));
    let name = volume.name_any();
    status.claim_name = own.map(ResourceExt::name_any);
    let phase = phase(own, found);
    let list = &mut status.conditions;
    match own {
        Some(claim) if claim::is_pending(claim) => {
            conditions::set(
                list,
                "Bound",
                false,
                "Pending",
                &format!("PVC {name} Pending"),
                now,
            );
        }
        Some(_) => conditions::set(list, "Bound", true, "Bound", &format!("PVC {name} Bound"), now),
        None => conditions::set(list, "Bound", false, "NotFound", "No PVC found", now),
    }
    let (running, reason, message) = running(found);
    conditions::set(list, "Running", running, &reason, &message, now);
    let ready = phase == "Succeeded";
    let why = if running { "TransferRunning" } else { "" };
    conditions::set(list, "Ready", ready, why, "", now);
    if let Some(restarts) = found.pod.as_ref().and_then(pod::container_status) {
        status.restart_count = Some(restarts.restart_count);
    }
    status.progress = match phase.as_str() {
        "Succeeded" => Some("100.0%".to_owned()),
        _ => found
            .progress
            .clone()
            .or(status.progress)
            .or_else(|| Some("N/A".to_owned())),
    };
    status.phase = Some(phase);
    status
}

fn phase(claim: Option<&PersistentVolumeClaim>, found: &Found) -> String {
    if found.refused.is_some() {
        return "Failed".to_owned();
    }
    match (&found.pod, claim) {
        (Some(pod), _) => match pod::phase(pod) {
            "Succeeded" => "Succeeded".to_owned(),
            // It has to listen, too.
            "Running" if found.verb == "Upload" => match pod::is_ready(pod) {
                true => "UploadReady".to_owned(),
                false => "UploadScheduled".to_owned(),
            },
            "Running" => format!("{}InProgress", found.verb),
            _ => format!("{}Scheduled", found.verb),
        },
        (None, Some(_)) if found.first_consumer => "WaitForFirstConsumer".to_owned(),
        (None, Some(claim)) if !claim::is_pending(claim) => "PVCBound".to_owned(),
        (None, _) => "Pending".to_owned(),
    }
}

/// Whether the importer runs; why (not).
fn running(found: &Found) -> (bool, String, String) {
    let not = |reason: &str, message: &str| (false, reason.to_owned(), message.to_owned());
    if let Some(message) = &found.refused {
        return not("Error", message);
    }
    if let Some((reason, message)) = &found.waits {
        return not(reason, message);
    }
    let Some(pod) = &found.pod else {
        return not("", "");
    };
    if pod::phase(pod) == "Succeeded" {
        return not("Completed", &format!("{} Complete", found.verb));
    }
    let Some(container) = pod::container_status(pod) else {
        return not("Pending", "");
    };
    // What it said when it ended the last time.
    let ended = |state: &Option<ContainerState>| {
        let ended = state.as_ref()?.terminated.as_ref()?;
        let message = ended.message.clone().or_else(|| ended.reason.clone());
        (ended.exit_code != 0).then(|| message.unwrap_or_default())
    };
    if pod::runs(pod) {
        return (true, "Pod is running".to_owned(), String::new());
    }
    if let Some(message) = ended(&container.state).or_else(|| ended(&container.last_state)) {
        return not("Error", &format!("Unable to process data: {message}"));
    }
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    let text = |text: Option<&String>| text.cloned().unwrap_or_default();
    let reason = text(waiting.and_then(|waiting| waiting.reason.as_ref()));
    let message = text(waiting.and_then(|waiting| waiting.message.as_ref()));
    match reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" => not("ImagePullFailed", &message),
        _ => not(&reason, &message),
    }
}

/// The last line that tells how far an import is.
pub fn progress(log: &str) -> Option<String> {
    let said = |line: &str| {
        let number = line.strip_prefix("progress ")?;
        let is_number = number
            .strip_suffix('%')
            .is_some_and(|digits| digits.parse::<f64>().is_ok());
        ((number == "N/A" || is_number) && number.len() <= 7).then(|| number.to_owned())
    };
    log.lines().rev().find_map(said)
}

/// What is told of a phase that was entered: reason and message.
pub fn event(volume: &DataVolume, status: &DataVolumeStatus) -> Option<(&'static str, String)> {
    let name = volume.name_any();
    let source = volume.spec.source.as_ref();
    let said =
        || conditions::find(&status.conditions, "Running").and_then(|condition| condition.message.clone());
    Some(match status.phase.as_deref()? {
        "Pending" => ("Pending", format!("PVC {name} Pending")),
        "WaitForFirstConsumer" => (
            "WaitForFirstConsumer",
            format!("PVC {name} Pending and WaitForFirstConsumer"),
        ),
        "PVCBound" => ("Bound", format!("PVC {name} Bound")),
        "ImportScheduled" => ("ImportScheduled", format!("Import into {name} scheduled")),
        "ImportInProgress" => ("ImportInProgress", format!("Import into {name} in progress")),
        "CloneScheduled" => ("CloneScheduled", format!("Cloning into {name} scheduled")),
        "CloneInProgress" => ("CloneInProgress", format!("Cloning into {name} in progress")),
        "UploadScheduled" => ("UploadScheduled", format!("Upload into {name} scheduled")),
        "UploadReady" => ("UploadReady", format!("Upload into {name} ready")),
        "Succeeded" if source.is_some_and(|source| source.upload.is_some()) => {
            ("UploadSucceeded", format!("Successfully uploaded into {name}"))
        }
        "Succeeded" => (
            "ImportSucceeded",
            format!("Successfully imported into PVC {name}"),
        ),
        "Failed" => ("ImportFailed", said().unwrap_or_default()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    fn volume() -> DataVolume {
        let mut volume = DataVolume::new("a", nacelle_api::datavolume::DataVolumeSpec::default());
        volume.metadata.uid = Some("u".into());
        volume
    }

    fn claim(phase: &str) -> PersistentVolumeClaim {
        let owner =
            json!({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "name": "a", "uid": "u"});
        serde_json::from_value(
            json!({"metadata": {"name": "a", "ownerReferences": [owner]}, "status": {"phase": phase}}),
        )
        .unwrap()
    }

    fn pod(phase: &str, container: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "importer-u"}, "status": {"phase": phase,
            "containerStatuses": [{"name": "importer", "image": "", "imageID": "", "ready": false, "restartCount": 2,
                "state": container["state"], "lastState": container["last"]}]}}))
        .unwrap()
    }

    fn found(claim_phase: &str, pod: Option<Pod>) -> Found {
        Found {
            claim: Some(claim(claim_phase)),
            pod,
            verb: "Import",
            ..Found::default()
        }
    }

    #[test]
    fn phases_follow_the_claim_and_the_pod() {
        let runs = || pod("Running", json!({"state": {"running": {}}, "last": {}}));
        let done = || {
            pod(
                "Succeeded",
                json!({"state": {"terminated": {"exitCode": 0}}, "last": {}}),
            )
        };
        let late = Found {
            first_consumer: true,
            ..found("Pending", None)
        };
        let refused = Found {
            refused: Some("no".into()),
            ..Found::default()
        };
        for (found, phase, ready) in [
            (Found::default(), "Pending", false),
            (found("Pending", None), "Pending", false),
            (late, "WaitForFirstConsumer", false),
            (found("Bound", None), "PVCBound", false),
            (found("Bound", Some(Pod::default())), "ImportScheduled", false),
            (found("Bound", Some(runs())), "ImportInProgress", false),
            (found("Bound", Some(done())), "Succeeded", true),
            (refused, "Failed", false),
        ] {
            let status = status(&volume(), &found, now());
            assert_eq!(status.phase.as_deref(), Some(phase));
            assert_eq!(conditions::is_true(&status.conditions, "Ready"), ready, "{phase}");
            // Computed again it is the same.
            let mut again = volume();
            again.status = Some(status.clone());
            assert_eq!(
                super::status(
                    &again,
                    &found,
                    now() + k8s_openapi::jiff::SignedDuration::from_secs(9)
                ),
                status
            );
        }
    }

    #[test]
    fn an_upload_is_awaited_when_the_pod_listens() {
        let ready = |ready: &str| {
            let mut pod = pod("Running", json!({"state": {"running": {}}, "last": {}}));
            let condition = json!([{"type": "Ready", "status": ready}]);
            pod.status.as_mut().unwrap().conditions = serde_json::from_value(condition).unwrap();
            pod
        };
        let done = pod(
            "Succeeded",
            json!({"state": {"terminated": {"exitCode": 0}}, "last": {}}),
        );
        for (pod, phase, annotated) in [
            (Pod::default(), "UploadScheduled", ("Pending", "false")),
            (ready("False"), "UploadScheduled", ("Running", "false")),
            (ready("True"), "UploadReady", ("Running", "true")),
            (done, "Succeeded", ("Succeeded", "false")),
        ] {
            let found = Found {
                verb: "Upload",
                ..found("Bound", Some(pod))
            };
            let status = status(&volume(), &found, now());
            assert_eq!(status.phase.as_deref(), Some(phase));
            // What virtctl reads is told of the claim.
            let told = claim::told(found.claim.as_ref().unwrap(), &status, found.pod.as_ref()).unwrap();
            let told =
                |key: &str| told["metadata"]["annotations"][format!("cdi.kubevirt.io/storage.{key}")].clone();
            assert_eq!(
                (told("pod.phase"), told("pod.ready")),
                (json!(annotated.0), json!(annotated.1))
            );
        }
    }

    #[test]
    fn an_importer_that_ended_says_why() {
        let ended = json!({"terminated": {"exitCode": 1, "message": "checksum mismatch"}});
        let waits = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        for (state, last) in [(ended.clone(), json!({})), (waits, ended)] {
            let pod = pod("Running", json!({"state": state, "last": last}));
            let status = status(&volume(), &found("Bound", Some(pod)), now());
            let running = conditions::find(&status.conditions, "Running").unwrap();
            assert_eq!(running.reason.as_deref(), Some("Error"));
            assert_eq!(
                running.message.as_deref(),
                Some("Unable to process data: checksum mismatch")
            );
            assert_eq!(status.restart_count, Some(2));
        }
    }

    #[test]
    fn progress_is_a_percentage_or_not_believed() {
        assert_eq!(
            progress("progress 1.00%\nretrying\nprogress 37.50%\nother\n").as_deref(),
            Some("37.50%")
        );
        assert_eq!(progress("progress <b>%\n"), None);
        // An upload that broke off has made none.
        assert_eq!(
            progress("progress 37.50%\nprogress N/A\n").as_deref(),
            Some("N/A")
        );
    }
}
