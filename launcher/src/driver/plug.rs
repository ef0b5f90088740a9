//! Disks that come to a machine that runs, and leave it.

use std::fs::File;

use nacelle_vmm::Error;
use nacelle_vmm::config::{DeviceConfig, DeviceKind, DiskConfig};

use super::status::Plugged;
use super::{Answer, Refused, Thread};
use crate::admit::Denied;

/// What the names of the machine's disks begin with, as its devices are called.
pub const PREFIX: &str = "disk-";

/// A disk on its way to a machine.
#[derive(Debug)]
pub struct Plug {
    /// Its name.
    pub name: String,
    /// What it is.
    pub config: DiskConfig,
    /// What was opened for it; nothing where its path says enough.
    pub files: Vec<File>,
}

impl Thread {
    /// Plugs a disk in. One that is there already is the same one: who asks twice has it once.
    pub(super) fn attach(&mut self, plug: Plug) -> Result<Answer, Refused> {
        let Plug { name, config, files } = plug;
        match self.plugged(&name) {
            Some(true) => return Err(Denied::Leaving.into()),
            Some(false) => return Ok(Answer::Done),
            None => {}
        }
        let device = DeviceConfig::new(format!("{PREFIX}{name}"), DeviceKind::Disk(config));
        self.vm.attach_opened(device, files)?;
        log::info!("disk {name} is attached");
        let plugged = Plugged { name, leaving: false };
        self.status.send_modify(|status| status.plugged.push(plugged));
        Ok(Answer::Done)
    }

    /// Asks the guest to let go of a disk that was plugged in; it may be asked again.
    pub(super) fn detach(&mut self, name: &str) -> Result<Answer, Refused> {
        if self.plugged(name).is_none() {
            let what = format!("disk {name} among those that were attached while the machine ran");
            return Err(Error::NotFound(what).into());
        }
        self.vm.detach(&format!("{PREFIX}{name}"))?;
        self.status.send_modify(|status| {
            for plugged in &mut status.plugged {
                plugged.leaving |= plugged.name == name;
            }
        });
        Ok(Answer::Done)
    }

    /// The guest has let go of a device.
    pub(super) fn detached(&mut self, id: &str) {
        if let Err(error) = self.vm.remove(id) {
            log::warn!("{id} has left and stays open: {error}");
        }
        let name = id.strip_prefix(PREFIX).unwrap_or(id);
        log::info!("disk {name} has left");
        self.status
            .send_modify(|status| status.plugged.retain(|plugged| plugged.name != name));
    }

    /// Whether disk `name`, if it was plugged in, is on its way out.
    fn plugged(&self, name: &str) -> Option<bool> {
        let status = self.status.borrow();
        let plugged = status.plugged.iter().find(|plugged| plugged.name == name);
        plugged.map(|plugged| plugged.leaving)
    }

    /// What cannot be done while there are such disks: whoever goes on with the machine is told of its manifest alone.
    pub(super) fn all_is_in_the_manifest(&self) -> Result<(), Denied> {
        match self.status.borrow().plugged.is_empty() {
            true => Ok(()),
            false => Err(Denied::Plugged),
        }
    }
}
