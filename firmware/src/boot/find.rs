//! Looks for everything that can be booted on the file systems of a disk.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::uki::Unified;
use super::{Entry, File, Kind, Menu, Volume, bls, extlinux, grub, version};
use crate::fs;
use crate::io::Source;
use crate::partitions::{self, Partition, Purpose};

/// What was found on a disk.
#[derive(Default)]
pub struct Found {
    /// Its file systems.
    pub volumes: Vec<Volume>,
    /// Menus, those that are tried first in front.
    pub menus: Vec<Menu>,
    /// What is worth saying: what was looked at and could not be read.
    pub notes: Vec<String>,
    /// Partitions without a known file system, as they may be meant by who asks why nothing boots.
    pub unknown: Vec<String>,
}

/// Looks at a disk whose blocks have `block_size` bytes.
pub fn look(disk: &Source, block_size: u32) -> Found {
    let mut found = Found::default();
    match partitions::partitions(disk, block_size) {
        Ok(partitions) if partitions.is_empty() => found.add("hd0".into(), disk, None),
        Ok(partitions) => {
            for partition in &partitions {
                let name = format!("hd0,{}{}", partition.table, partition.number);
                match partitions::open(disk, partition) {
                    Ok(source) => found.add(name, &source, Some(partition)),
                    Err(error) => found.notes.push(format!("{name}: {error}")),
                }
            }
        }
        Err(error) => found.notes.push(format!("{error}")),
    }
    found.menus();
    found
}

impl Found {
    fn add(&mut self, name: String, source: &Source, partition: Option<&Partition>) {
        match fs::open(source) {
            Ok(Some(fs)) => self.volumes.push(Volume {
                name,
                purpose: partition.map_or(Purpose::Other, |partition| partition.purpose),
                partition_uuid: partition
                    .map(|partition| partition.uuid.clone())
                    .unwrap_or_default(),
                fs,
            }),
            Ok(None) => self.unknown.push(name),
            Err(error) => self.notes.push(format!("{name}: {error}")),
        }
    }

    fn menus(&mut self) {
        // The system partition first, then the extended one, then the others as they come.
        let mut order: Vec<usize> = Vec::new();
        for purpose in [Purpose::Esp, Purpose::Xbootldr, Purpose::Other] {
            let volumes = self.volumes.iter().enumerate();
            order.extend(
                volumes
                    .filter(|(_, volume)| volume.purpose == purpose)
                    .map(|(i, _)| i),
            );
        }
        let saved = self.saved(&order);
        let (mut unified, mut specified) = (Vec::new(), Vec::new());
        for &volume in &order {
            unified.extend(self.unified(volume));
            specified.extend(self.specified(volume, &saved));
        }
        let wanted = self.wanted(&order, &saved);
        let default = |entries: &[Entry]| {
            let named = |entry: &Entry| wanted.as_ref().is_some_and(|wanted| named(wanted, &entry.id));
            entries.iter().position(named)
        };
        let menus = [unified, specified].map(|entries| Menu {
            default: default(&entries).unwrap_or(0),
            entries,
        });
        let [unified, specified] = menus;
        // Unified images come first, unless one of the others is what the system's loader is told to boot.
        match default(&unified.entries).is_none() && default(&specified.entries).is_some() {
            true => self.menus.extend([specified, unified]),
            false => self.menus.extend([unified, specified]),
        }
        for &volume in &order {
            let grub = self.grub(volume);
            self.menus.extend(grub);
        }
        for &volume in &order {
            let extlinux = self.extlinux(volume);
            self.menus.extend(extlinux);
        }
        self.menus.retain(|menu| !menu.entries.is_empty());
    }

    /// What GRUB has saved, for the entries that are its.
    fn saved(&self, order: &[usize]) -> grub::Variables {
        let mut saved = grub::Variables::default();
        for volume in order.iter().filter_map(|index| self.volumes.get(*index)) {
            let mut blocks = grub::PLACES
                .iter()
                .filter_map(|place| volume.fs.text(&format!("{place}/grubenv")).ok());
            for (name, value) in blocks.next().map(|text| grub::block(&text)).unwrap_or_default() {
                saved.set(&name, &value);
            }
        }
        saved
    }

    fn unified(&mut self, volume: usize) -> Vec<Entry> {
        const DIRECTORY: &str = "/EFI/Linux";
        const FALLBACK: &str = "/EFI/BOOT/BOOTX64.EFI";
        let Some(fs) = self.volumes.get(volume).map(|volume| &volume.fs) else {
            return Vec::new();
        };
        let mut found: Vec<(bool, String, Entry)> = Vec::new();
        let names = fs.list(DIRECTORY).unwrap_or_default();
        let mut paths: Vec<String> = names.iter().map(|name| format!("{DIRECTORY}/{name}")).collect();
        // What EFI starts without being told may be such an image, too; mostly it is a boot loader.
        let fallback = fs.open(FALLBACK).and_then(|file| Unified::read(&file)).is_ok();
        paths.extend(fallback.then(|| FALLBACK.into()));
        for path in paths {
            let name = path.rsplit('/').next().unwrap_or_default();
            let Some((stem, extension)) = name.rsplit_once('.') else {
                continue;
            };
            if !extension.eq_ignore_ascii_case("efi") {
                continue;
            }
            match fs.open(&path).and_then(|file| Unified::read(&file)) {
                Ok(image) => {
                    let (id, exhausted) = bls::attempts(stem);
                    let title = if image.title.is_empty() {
                        id.into()
                    } else {
                        image.title
                    };
                    let entry = Entry {
                        title: format!("{title} {}", image.version).trim_end().into(),
                        id: id.into(),
                        kind: Kind::Unified,
                        kernel: File {
                            volume,
                            path: path.clone(),
                        },
                        initrds: Vec::new(),
                        options: image.options,
                    };
                    // The newest first; what was tried in vain as often as it may be last.
                    let at = found.partition_point(|(other, name, _)| {
                        let newer = || version::compare(name, id).is_ge();
                        (*other, exhausted) == (false, true) || *other == exhausted && newer()
                    });
                    found.insert(at, (exhausted, id.into(), entry));
                }
                Err(error) => self.notes.push(format!("{path}: {error}")),
            }
        }
        found.into_iter().map(|(.., entry)| entry).collect()
    }

    fn specified(&mut self, volume: usize, saved: &grub::Variables) -> Vec<Entry> {
        let mut notes = Vec::new();
        let variable = |name: &str| saved.get(name).map(String::from);
        let mut entries = Vec::new();
        for directory in ["/loader/entries", "/boot/loader/entries"] {
            let found = bls::read(&self.volumes, volume, directory, variable, &mut notes);
            // On a root file system the paths of entries are those of the partition for booting, as it has none.
            let below = if directory.starts_with("/boot") {
                "/boot"
            } else {
                ""
            };
            let fs = self.volumes.get(volume).map(|volume| &volume.fs);
            entries.extend(found.into_iter().map(|found| {
                let mut entry = found.entry;
                let mut settle = |file: &mut File| {
                    let there = |path: &str| fs.is_some_and(|fs| fs.open(path).is_ok());
                    let other = format!("{below}{}", file.path);
                    if !below.is_empty() && !there(&file.path) && there(&other) {
                        file.path = other;
                    }
                };
                settle(&mut entry.kernel);
                entry.initrds.iter_mut().for_each(&mut settle);
                entry
            }));
        }
        self.notes.append(&mut notes);
        entries
    }

    /// What the system's own boot loader is told to boot: systemd-boot's pattern, or GRUB's saved entry.
    fn wanted(&self, order: &[usize], saved: &grub::Variables) -> Option<String> {
        let volumes = order.iter().filter_map(|index| self.volumes.get(*index));
        let mut configurations = volumes.filter_map(|volume| volume.fs.text("/loader/loader.conf").ok());
        let pattern = configurations.find_map(|text| bls::loader_default(&text).map(String::from));
        pattern
            .or_else(|| saved.get("saved_entry").map(String::from))
            .filter(|wanted| !wanted.is_empty())
    }

    fn grub(&mut self, volume: usize) -> Vec<Menu> {
        let Some(fs) = self.volumes.get(volume).map(|volume| &volume.fs) else {
            return Vec::new();
        };
        let mut places: Vec<String> = grub::PLACES.map(|place| format!("{place}/grub.cfg")).into();
        let vendors = fs.list("/EFI").unwrap_or_default();
        places.extend(vendors.iter().map(|vendor| format!("/EFI/{vendor}/grub.cfg")));
        let mut menus = Vec::new();
        for place in places {
            match grub::read(&self.volumes, volume, &place) {
                Ok((menu, notes)) => {
                    self.notes
                        .extend(notes.into_iter().map(|note| format!("{place}: {note}")));
                    menus.push(menu);
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => self.notes.push(format!("{error}")),
            }
        }
        menus
    }

    fn extlinux(&mut self, volume: usize) -> Vec<Menu> {
        let Some(fs) = self.volumes.get(volume).map(|volume| &volume.fs) else {
            return Vec::new();
        };
        let mut menus = Vec::new();
        for place in extlinux::PLACES {
            let (directory, _) = place.rsplit_once('/').unwrap_or_default();
            match fs.text_if_there(place) {
                Ok(Some(text)) => menus.push(extlinux::parse(&text, volume, directory)),
                Ok(None) => {}
                Err(error) => self.notes.push(format!("{place}: {error}")),
            }
        }
        menus
    }
}

/// Whether an entry's id is the one wanted: a pattern, with or without the name's ending.
fn named(wanted: &str, id: &str) -> bool {
    let stem = wanted
        .strip_suffix(".conf")
        .or_else(|| wanted.strip_suffix(".efi"));
    let (wanted, _) = bls::attempts(stem.unwrap_or(wanted));
    bls::matches(wanted, id)
}

#[cfg(test)]
#[path = "find/tests.rs"]
mod tests;
