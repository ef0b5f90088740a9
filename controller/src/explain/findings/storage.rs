//! What the disks of a machine wait for.

use nacelle_api::datavolume::DataVolume;

use super::super::{Claim, Finding, Weight, World};
use super::{conditions, newest, said, seen};

/// What may be said of a claim that is not bound.
const OF_CLAIMS: [&str; 5] = [
    "ProvisioningFailed",
    "FailedBinding",
    "WaitForFirstConsumer",
    "WaitForPodScheduled",
    "ExternalProvisioning",
];

/// Of each disk that is not there yet.
pub(super) fn findings(world: &World) -> Vec<Finding> {
    let of_volumes = world
        .volumes
        .iter()
        .filter_map(|(name, volume)| filling(name, volume));
    let of_claims = world.claims.iter().filter_map(|(name, claim)| {
        // Who fills it says more, and what waits for a machine is bound when that begins.
        let made = claim.claim.is_some() || world.volumes.contains_key(name);
        if !made {
            return Some(missing(name));
        }
        unbound(name, claim)
    });
    of_volumes.chain(of_claims).collect()
}

fn missing(name: &str) -> Finding {
    let message = format!("PersistentVolumeClaim {name} does not exist");
    let next = format!("make it, or name another in the machine's volumes: kubectl get pvc {name}");
    Finding::new(Weight::Stuck, "FailedPvcNotFound", message).next(next)
}

fn filling(name: &str, volume: &DataVolume) -> Option<Finding> {
    let status = volume.status.clone().unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or_default();
    let next = format!("kubectl describe dv {name}");
    let list = &status.conditions;
    let running = conditions::find(list, "Running");
    let stopped =
        running.filter(|running| running.status == "False" && running.reason.as_deref() == Some("Error"));
    let since = conditions::find(list, "Ready").and_then(|ready| ready.last_transition_time.as_ref());
    if let Some(stopped) = stopped {
        let mut finding = said(Weight::Stuck, stopped).next(next);
        finding.reason = "DataVolumeError".to_owned();
        finding.message = format!("DataVolume {name}: {}", finding.message);
        return Some(finding);
    }
    let waits = |message: String| Finding::new(Weight::Waits, phase, message).since(since);
    let progress = status
        .progress
        .as_deref()
        .filter(|progress| progress.ends_with('%'));
    Some(match phase {
        "Succeeded" => return None,
        "Failed" => {
            let message = format!("DataVolume {name} cannot be filled");
            Finding::new(Weight::Stuck, "DataVolumeError", message)
                .since(since)
                .next(next)
        }
        // That is what its machine's pod is for.
        "WaitForFirstConsumer" | "PendingPopulation" => waits(format!(
            "DataVolume {name} is filled where the machine's pod is scheduled"
        )),
        "" => Finding::new(
            Weight::Waits,
            "DataVolume",
            format!("DataVolume {name} is not looked at yet"),
        ),
        _ => match progress {
            Some(progress) => waits(format!("DataVolume {name} is filled: {progress} of it is there")),
            None => waits(format!("DataVolume {name} is to be filled ({phase})")).next(next),
        },
    })
}

fn unbound(name: &str, claim: &Claim) -> Option<Finding> {
    let claimed = claim.claim.as_ref()?;
    let phase = claimed.status.as_ref().and_then(|status| status.phase.as_deref());
    let since = claimed.metadata.creation_timestamp.as_ref();
    match phase {
        Some("Bound") => return None,
        Some("Lost") => {
            let message = format!("PersistentVolumeClaim {name} lost the volume that it was bound to");
            let next = format!("kubectl describe pvc {name}; what was on it is to be restored");
            return Some(Finding::new(Weight::Stuck, "ClaimLost", message).next(next));
        }
        _ => {}
    }
    let class = claimed
        .spec
        .as_ref()
        .and_then(|spec| spec.storage_class_name.as_deref());
    let class = class.filter(|class| !class.is_empty());
    let of_class = class
        .map(|class| format!(", storage class {class}"))
        .unwrap_or_default();
    let event = newest(&claim.events, &OF_CLAIMS);
    let words = event.and_then(|event| event.message.as_deref());
    let words = words.map(|words| format!(": {words}")).unwrap_or_default();
    let message = format!("PersistentVolumeClaim {name} is not bound to a volume{of_class}{words}");
    let reason = event
        .and_then(|event| event.reason.as_deref())
        .unwrap_or("Unbound");
    let weight = match reason {
        "WaitForFirstConsumer" | "WaitForPodScheduled" | "ExternalProvisioning" => Weight::Waits,
        _ => Weight::Stuck,
    };
    let mut finding = Finding::new(weight, reason, message).since(since);
    if finding.since.is_none() {
        finding.since = event.and_then(seen);
    }
    Some(match (weight, class) {
        (Weight::Waits, _) => finding,
        (_, Some(class)) => finding.next(format!(
            "kubectl describe pvc {name}; does kubectl get storageclass {class} name a provisioner that runs, or is there a PersistentVolume that fits?"
        )),
        (_, None) => finding.next("name a storageClassName in the claim, have a default one, or make a PersistentVolume that fits"),
    })
}
