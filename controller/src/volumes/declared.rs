//! Volumes that somebody wrote into a machine's template, or out of it, while it runs. Pure.

use std::collections::BTreeSet;

use nacelle_api::disk::Disk;
use nacelle_api::volume::Volume;
use nacelle_api::{VirtualMachineInstance, VirtualMachineInstanceSpec};

use super::{APART, hot, is_hot};
use crate::vmi::build::volumes::claim;

/// What the lists of an instance should be, where they are not: the volumes that are plugged in are the template's, but for
/// those in which somebody wanted the instance to differ. A volume of another claim is first taken out.
pub fn wanted(
    template: &VirtualMachineInstanceSpec,
    vmi: &VirtualMachineInstance,
) -> Option<(Vec<Volume>, Vec<Disk>)> {
    let apart = apart(vmi);
    let spec = &vmi.spec;
    let (mut volumes, mut disks) = (spec.volumes.clone(), spec.domain.devices.disks.clone());
    let stays = |there: &Volume| {
        let declared = template.volumes.iter().find(|volume| volume.name == there.name);
        apart.contains(&there.name)
            || declared.is_some_and(|declared| is_hot(declared) && claim(declared) == claim(there))
    };
    let gone: BTreeSet<String> = hot(spec)
        .filter(|there| !stays(there))
        .map(|there| there.name.clone())
        .collect();
    volumes.retain(|volume| !gone.contains(&volume.name));
    disks.retain(|disk| !gone.contains(&disk.name));
    let missing = hot(template).filter(|volume| {
        let there = spec.volumes.iter().any(|there| there.name == volume.name);
        !there && !apart.contains(&volume.name)
    });
    for volume in missing {
        let disk = template
            .domain
            .devices
            .disks
            .iter()
            .find(|disk| disk.name == volume.name);
        if let Some(disk) = disk {
            volumes.push(volume.clone());
            disks.push(disk.clone());
        }
    }
    (volumes != spec.volumes).then_some((volumes, disks))
}

/// Volumes in which the instance differs from its machine, as somebody wanted.
pub fn apart(vmi: &VirtualMachineInstance) -> BTreeSet<String> {
    let annotations = vmi.metadata.annotations.as_ref();
    let list = annotations.and_then(|annotations| annotations.get(APART));
    list.and_then(|list| serde_json::from_str(list).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A spec with these volumes, each as `name=claim`, plugged in where it ends in `!`.
    fn spec(volumes: &[&str]) -> VirtualMachineInstanceSpec {
        let parts = |volume: &&str| {
            let (name, claim) = volume.trim_end_matches('!').split_once('=').unwrap();
            (name.to_owned(), claim.to_owned(), volume.ends_with('!'))
        };
        let sources: Vec<_> = volumes
            .iter()
            .map(parts)
            .map(|(name, claim, hot)| {
                json!({"name": name, "persistentVolumeClaim": {"claimName": claim, "hotpluggable": hot}})
            })
            .collect();
        let disks: Vec<_> = volumes
            .iter()
            .map(parts)
            .map(|(name, ..)| json!({"name": name}))
            .collect();
        serde_json::from_value(json!({"domain": {"devices": {"disks": disks}}, "volumes": sources})).unwrap()
    }

    fn names(template: &[&str], there: &[&str], apart: &str) -> Option<Vec<String>> {
        let mut vmi = VirtualMachineInstance::new("a", spec(there));
        vmi.metadata.annotations = Some([(APART.to_owned(), apart.to_owned())].into());
        let (volumes, disks) = wanted(&spec(template), &vmi)?;
        let names: Vec<_> = volumes.into_iter().map(|volume| volume.name).collect();
        let of_disks: Vec<_> = disks.into_iter().map(|disk| disk.name).collect();
        assert_eq!(names, of_disks);
        Some(names)
    }

    #[test]
    fn an_instance_follows_its_template_in_what_can_be_plugged() {
        let root = "root=r";
        for (template, there, apart, becomes) in [
            (vec![root], vec![root], "", None),
            (vec![root, "data=d!"], vec![root], "", Some(vec!["root", "data"])),
            (vec![root, "data=d!"], vec![root, "data=d!"], "", None),
            (vec![root], vec![root, "data=d!"], "", Some(vec!["root"])),
            // What cannot be plugged waits for the next start.
            (vec![root, "more=m"], vec![root], "", None),
            (vec![], vec![root], "", None),
            // Another claim: out with the old one first.
            (
                vec![root, "data=e!"],
                vec![root, "data=d!"],
                "",
                Some(vec!["root"]),
            ),
            // Of the instance alone.
            (vec![root], vec![root, "data=d!"], r#"["data"]"#, None),
            (vec![root, "data=d!"], vec![root], r#"["data"]"#, None),
        ] {
            let becomes = becomes.map(|names| names.into_iter().map(str::to_owned).collect());
            assert_eq!(
                names(&template, &there, apart),
                becomes,
                "{template:?} {there:?} {apart}"
            );
        }
    }
}
