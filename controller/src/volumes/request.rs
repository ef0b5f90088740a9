//! `addvolume` and `removevolume`: what they come to, in KubeVirt's words where it is no. Pure.

use nacelle_api::disk::{Disk, DiskTarget};
use nacelle_api::volume::{DataVolumeVolume, PersistentVolumeClaimVolume, Volume};
use nacelle_api::{Cause, FieldPath, VirtualMachineInstanceSpec, support_disk, validate_disk};
use serde::Deserialize;

use super::is_hot;
use crate::vmi::build::volumes::claim;

/// Of `addvolume`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AddVolume {
    /// The volume's name.
    pub name: String,
    /// How the guest sees it.
    pub disk: Option<Disk>,
    /// What is behind it.
    pub volume_source: Option<Source>,
    /// Only see whether it could be done.
    pub dry_run: Vec<String>,
}

/// Of `removevolume`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RemoveVolume {
    /// The volume's name.
    pub name: String,
    /// Only see whether it could be done.
    pub dry_run: Vec<String>,
}

/// What is behind a volume that can be plugged.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    persistent_volume_claim: Option<PersistentVolumeClaimVolume>,
    data_volume: Option<DataVolumeVolume>,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum No {
    /// The request is not one.
    Bad(String),
    /// It does not go with what is there.
    Conflict(String),
}

/// A volume and its disk, and what is to be said of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Added {
    /// The volume.
    pub volume: Volume,
    /// The disk.
    pub disk: Disk,
    /// A sentence for who asked.
    pub warning: Option<String>,
}

impl AddVolume {
    /// What is to be added.
    ///
    /// # Errors
    /// When the request is incomplete, or asks for what a disk cannot be.
    pub fn read(&self) -> Result<Added, No> {
        let bad = |message: &str| No::Bad(message.to_owned());
        if self.name.is_empty() {
            return Err(bad("AddVolumeOptions requires name to be set"));
        }
        let disk = self.disk.clone();
        let mut disk = disk.ok_or_else(|| bad("AddVolumeOptions requires disk to not be nil"))?;
        let source = self.volume_source.clone();
        let mut source = source.ok_or_else(|| bad("AddVolumeOptions requires VolumeSource to not be nil"))?;
        disk.name.clone_from(&self.name);
        if let Some(volume) = &mut source.data_volume {
            volume.hotpluggable = Some(true);
        }
        if let Some(claim) = &mut source.persistent_volume_claim {
            claim.hotpluggable = Some(true);
        }
        let warning = as_virtio(&mut disk);
        let volume = Volume {
            name: self.name.clone(),
            persistent_volume_claim: source.persistent_volume_claim,
            data_volume: source.data_volume,
            ..Volume::default()
        };
        let path = FieldPath::new("disk");
        let mut causes = validate_disk(&disk, &volume, &path);
        causes.extend(support_disk(&disk, &path).unsupported);
        if !causes.is_empty() {
            let causes: Vec<_> = causes.iter().map(Cause::to_string).collect();
            return Err(No::Bad(causes.join(", ")));
        }
        Ok(Added {
            volume,
            disk,
            warning,
        })
    }
}

/// KubeVirt's default for what is plugged in, which virtctl sends when nobody says anything, is SCSI.
fn as_virtio(disk: &mut Disk) -> Option<String> {
    if disk.lun.is_some() || disk.cdrom.is_some() {
        return None;
    }
    let target = disk.disk.get_or_insert_with(DiskTarget::default);
    if target.bus.as_deref() != Some("scsi") {
        return None;
    }
    target.bus = Some("virtio".to_owned());
    Some(format!(
        "disk {} is presented as virtio, where KubeVirt would present scsi",
        disk.name
    ))
}

/// The lists of `spec` with what is added.
///
/// # Errors
/// When there is one of that name or of that claim.
pub fn add(spec: &VirtualMachineInstanceSpec, added: &Added) -> Result<(Vec<Volume>, Vec<Disk>), No> {
    let name = &added.volume.name;
    let source = claim(&added.volume).map(|(claim, _)| claim);
    for volume in &spec.volumes {
        if volume.name == *name {
            let message =
                format!("Unable to add volume [{name}] because volume with that name already exists");
            return Err(No::Conflict(message));
        }
        let there = claim(volume)
            .filter(|_| volume.ephemeral.is_none())
            .map(|(claim, _)| claim);
        if let (Some(source), Some(there)) = (&source, &there)
            && source == there
        {
            let message = format!("Unable to add volume source [{source}] because it already exists");
            return Err(No::Conflict(message));
        }
    }
    let (mut volumes, mut disks) = (spec.volumes.clone(), spec.domain.devices.disks.clone());
    volumes.push(added.volume.clone());
    disks.push(added.disk.clone());
    Ok((volumes, disks))
}

/// The lists of `spec` without the volume `name`, which may be called by its claim.
///
/// # Errors
/// When there is none, or it cannot be taken from a machine that runs.
pub fn remove(spec: &VirtualMachineInstanceSpec, name: &str) -> Result<(Vec<Volume>, Vec<Disk>), No> {
    if name.is_empty() {
        return Err(No::Bad("RemoveVolumeOptions requires name to be set".to_owned()));
    }
    let called =
        |volume: &&Volume| volume.name == name || claim(volume).is_some_and(|(claim, _)| claim == name);
    let Some(found) = spec.volumes.iter().find(called) else {
        let message = format!("Unable to remove volume [{name}] because it does not exist");
        return Err(No::Conflict(message));
    };
    if !is_hot(found) {
        let message = format!(
            "Unable to remove volume [{}] because it is not hotpluggable",
            found.name
        );
        return Err(No::Conflict(message));
    }
    let (mut volumes, mut disks) = (spec.volumes.clone(), spec.domain.devices.disks.clone());
    volumes.retain(|volume| volume.name != found.name);
    disks.retain(|disk| disk.name != found.name);
    Ok((volumes, disks))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec() -> VirtualMachineInstanceSpec {
        serde_json::from_value(json!({
            "domain": {"devices": {"disks": [{"name": "root"}, {"name": "data"}]}},
            "volumes": [
                {"name": "root", "persistentVolumeClaim": {"claimName": "r"}},
                {"name": "data", "dataVolume": {"name": "d", "hotpluggable": true}},
            ],
        }))
        .unwrap()
    }

    fn asked(value: serde_json::Value) -> Result<Added, No> {
        serde_json::from_value::<AddVolume>(value).unwrap().read()
    }

    #[test]
    fn what_virtctl_sends_becomes_a_virtio_disk_of_a_claim_that_can_be_plugged() {
        let added = asked(
            json!({"name": "more", "disk": {"name": "x", "serial": "more", "disk": {"bus": "scsi"}},
            "volumeSource": {"persistentVolumeClaim": {"claimName": "more"}}}),
        )
        .unwrap();
        assert_eq!(added.disk.name, "more");
        assert_eq!(added.disk.disk.as_ref().unwrap().bus.as_deref(), Some("virtio"));
        assert!(added.warning.as_ref().unwrap().contains("presented as virtio"));
        assert!(is_hot(&added.volume));
        let (volumes, disks) = add(&spec(), &added).unwrap();
        assert_eq!((volumes.len(), disks.len()), (3, 3));
        let (volumes, disks) = remove(&spec(), "data").unwrap();
        assert_eq!((volumes.len(), disks.len()), (1, 1));
        // By its claim, too.
        assert_eq!(remove(&spec(), "d").unwrap().0.len(), 1);
    }

    #[test]
    fn what_cannot_be_is_refused_in_kubevirts_words() {
        let source = json!({"persistentVolumeClaim": {"claimName": "c"}});
        for (request, message) in [
            (json!({}), "AddVolumeOptions requires name to be set"),
            (
                json!({"name": "a"}),
                "AddVolumeOptions requires disk to not be nil",
            ),
            (
                json!({"name": "a", "disk": {"name": "a"}}),
                "AddVolumeOptions requires VolumeSource to not be nil",
            ),
            (
                json!({"name": "a", "disk": {"name": "a", "cache": "fast"}, "volumeSource": source}),
                "disk.cache",
            ),
            (
                json!({"name": "a", "disk": {"name": "a", "lun": {}}, "volumeSource": source}),
                "disk.lun is not supported",
            ),
            (
                json!({"name": "a", "disk": {"name": "a"}, "volumeSource": {}}),
                "must have exactly one source type set",
            ),
        ] {
            let Err(No::Bad(said)) = asked(request.clone()) else {
                panic!("{request} was taken");
            };
            assert!(said.contains(message), "{said}");
        }
        let conflict = |name: &str, claim: &str| {
            let added = asked(json!({"name": name, "disk": {"name": name},
                "volumeSource": {"persistentVolumeClaim": {"claimName": claim}}}));
            match add(&spec(), &added.unwrap()) {
                Err(No::Conflict(message)) => message,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            conflict("data", "e"),
            "Unable to add volume [data] because volume with that name already exists"
        );
        assert_eq!(
            conflict("more", "d"),
            "Unable to add volume source [d] because it already exists"
        );
        let refused = |name| remove(&spec(), name).unwrap_err();
        assert_eq!(
            refused("root"),
            No::Conflict("Unable to remove volume [root] because it is not hotpluggable".to_owned())
        );
        assert_eq!(
            refused("gone"),
            No::Conflict("Unable to remove volume [gone] because it does not exist".to_owned())
        );
    }
}
