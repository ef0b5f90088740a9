//! `status.volumeStatus[]` of volumes that are plugged in. Pure.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use nacelle_api::Freeform;
use nacelle_api::vmi::VirtualMachineInstanceStatus;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The claim is not there, or not bound.
pub const PENDING: &str = "Pending";
/// The claim is bound, the attachment pod does not run yet.
pub const BOUND: &str = "Bound";
/// The attachment pod has it.
pub const ATTACHED: &str = "AttachedToNode";
/// The guest was told of it.
pub const READY: &str = "Ready";
/// The guest was asked to let go of it.
pub const DETACHING: &str = "Detaching";
/// The guest has let go of it.
pub const UNMOUNTED: &str = "UnMountedFromPod";

/// How a volume fares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Where the guest has it; not known here.
    pub target: String,
    /// How far it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// One word on why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A sentence on why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Its attachment pod, where it is plugged in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hotplug_volume: Option<Attachment>,
    /// The claim behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim_info: Option<Value>,
}

/// An attachment pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attachment {
    /// Its name.
    pub attach_pod_name: String,
    /// Its UID.
    #[serde(rename = "attachPodUID")]
    pub attach_pod_uid: String,
}

impl VolumeStatus {
    /// Of a volume that is to come by the pod `attachment`.
    pub fn new(name: &str, attachment: &str) -> VolumeStatus {
        VolumeStatus {
            name: name.to_owned(),
            hotplug_volume: Some(Attachment {
                attach_pod_name: attachment.to_owned(),
                attach_pod_uid: String::new(),
            }),
            ..VolumeStatus::default()
        }
    }

    /// Says how far it is, and why no further.
    pub fn enter(&mut self, phase: &str, reason: &str, message: impl Into<String>) {
        let word = |word: String| (!word.is_empty()).then_some(word);
        self.phase = Some(phase.to_owned());
        self.reason = word(reason.to_owned());
        self.message = word(message.into());
    }

    /// How far it is.
    pub fn is(&self, phase: &str) -> bool {
        self.phase.as_deref() == Some(phase)
    }
}

/// What is said of a claim.
pub fn of_claim(name: &str, claim: &PersistentVolumeClaim) -> Value {
    let spec = claim.spec.as_ref();
    let capacity = claim.status.as_ref().and_then(|status| status.capacity.clone());
    json!({
        "claimName": name,
        "accessModes": spec.and_then(|spec| spec.access_modes.clone()).unwrap_or_default(),
        "volumeMode": spec.and_then(|spec| spec.volume_mode.clone()).unwrap_or_else(|| "Filesystem".to_owned()),
        "capacity": capacity.unwrap_or_default(),
    })
}

/// Those that are plugged in.
pub fn plugged(status: &VirtualMachineInstanceStatus) -> Vec<VolumeStatus> {
    let read = |one: &Freeform| {
        let one = serde_json::to_value(one).ok()?;
        VolumeStatus::deserialize(one).ok()
    };
    let all = status.volume_status.iter().filter_map(read);
    all.filter(|one| one.hotplug_volume.is_some()).collect()
}

/// Puts them back; those that are not plugged in stay as they are.
pub fn write(status: &mut VirtualMachineInstanceStatus, plugged: &[VolumeStatus]) {
    status
        .volume_status
        .retain(|one| !one.contains_key("hotplugVolume"));
    let written = plugged.iter().filter_map(|one| {
        let one = serde_json::to_value(one).ok()?;
        Freeform::deserialize(one).ok()
    });
    status.volume_status.extend(written);
}

/// A disk that a launcher says was plugged in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Plugged {
    /// Its name.
    pub name: String,
    /// The guest was asked to let go of it.
    pub leaving: bool,
}

/// What follows from what a launcher says.
pub fn told(status: &mut VirtualMachineInstanceStatus, said: &[Plugged]) {
    let mut all = plugged(status);
    for one in &mut all {
        apply(one, said);
    }
    write(status, &all);
}

/// The same for one of them.
pub fn apply(one: &mut VolumeStatus, said: &[Plugged]) {
    match said.iter().find(|said| said.name == one.name) {
        Some(said) if said.leaving => one.enter(DETACHING, "", "the guest was asked to let go of it"),
        Some(_) => one.enter(READY, "", ""),
        None if one.is(READY) || one.is(DETACHING) => one.enter(UNMOUNTED, "", ""),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_as_the_launcher_says() {
        let mut status = VirtualMachineInstanceStatus::default();
        let other = Freeform::from([("name".to_owned(), json!("root"))]);
        status.volume_status.push(other.clone());
        let mut data = VolumeStatus::new("data", "hp-volume-data-12345");
        data.enter(ATTACHED, "", "");
        write(&mut status, &[data]);
        let phase = |status: &VirtualMachineInstanceStatus| plugged(status)[0].phase.clone().unwrap();
        let said = |leaving| Plugged {
            name: "data".to_owned(),
            leaving,
        };
        for (says, becomes) in [
            (vec![], ATTACHED),
            (vec![said(false)], READY),
            (vec![said(true)], DETACHING),
            (vec![], UNMOUNTED),
        ] {
            told(&mut status, &says);
            assert_eq!(phase(&status), becomes);
        }
        assert_eq!(status.volume_status[0], other);
        assert_eq!(
            status.volume_status[1]["hotplugVolume"],
            json!({"attachPodName": "hp-volume-data-12345", "attachPodUID": ""})
        );
    }
}
