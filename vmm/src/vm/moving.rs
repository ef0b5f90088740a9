//! What a machine gives to whoever moves it, and its disks on the way.

use std::sync::Arc;

use nacelle_devices::disk::Disk;
use vm_memory::GuestAddressSpace;

use super::{Lifecycle, Vm};
use crate::config::Opened;
use crate::migrate::message::Description;
use crate::migrate::{DiskDescription, Local, MigrationPort};
use crate::vcpu::VcpuHandle;
use crate::vcpu::throttle::Throttle;
use crate::{Error, Result};

impl Vm {
    /// What a migration of this machine needs of it, for a thread of its own.
    ///
    /// # Errors
    /// When a device cannot move.
    pub fn migration(&mut self) -> Result<MigrationPort> {
        if let Some((id, reason)) = self.devices.staying() {
            return Err(Error::Cannot(format!("device {id} cannot move: {reason}")));
        }
        self.port()
    }

    /// The same for a move on which disks go along: those that end with the machine, and `copied`.
    ///
    /// # Errors
    /// When there is no such disk.
    pub fn moving(&mut self, copied: &[String]) -> Result<MigrationPort> {
        let disks = self.devices.local_disks(copied)?;
        let mut port = self.port()?;
        let describe = |local: &Local| DiskDescription {
            id: local.id.clone(),
            len: local.disk.len(),
        };
        port.description.disks = disks.iter().map(describe).collect();
        port.disks = disks;
        Ok(port)
    }

    /// The disk that is this device.
    pub(crate) fn disk(&self, id: &str) -> Option<Arc<dyn Disk>> {
        self.devices.disk(id)
    }

    /// What a process of this host that goes on with this machine needs beside [`VmState`], and what its being handed
    /// over needs here.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn handover(&mut self) -> Result<(MigrationPort, Opened)> {
        let mut opened = self.devices.opened()?;
        opened.memory = crate::memory::file(&self.memory.memory())?;
        let mut port = self.port()?;
        port.handover = true;
        port.description.in_place = opened.memory.is_some();
        Ok((port, opened))
    }

    fn port(&mut self) -> Result<MigrationPort> {
        let kickers = self.vcpus.iter().map(VcpuHandle::kicker).collect();
        // One that is still of use to a snapshot serves both.
        let kernel = match self.kernel_writes.upgrade() {
            Some(kernel) => kernel,
            None => self.devices.log_writes()?,
        };
        self.kernel_writes = Arc::downgrade(&kernel);
        Ok(MigrationPort {
            kernel,
            memory: self.memory.clone(),
            partition: Arc::clone(&self.partition),
            throttle: Throttle::new(self.share.clone(), kickers, self.sandbox.clone()),
            sandbox: self.sandbox.clone(),
            description: self.description.clone(),
            handover: false,
            disks: Vec::new(),
        })
    }

    pub(crate) fn description(&self) -> &Description {
        &self.description
    }

    /// Lets another machine have the disks. [`Vm::resume`] takes them back.
    ///
    /// # Errors
    /// When the machine is not paused, or what was written cannot be brought to the disks.
    pub fn unlock_disks(&mut self) -> Result<()> {
        if self.lifecycle != Lifecycle::Paused {
            return Err(self.refuse("give its disks away"));
        }
        self.disks_free = true;
        self.devices.unlock_disks()
    }

    /// Leaves the disks, with their locks, to the process that has what [`Vm::handover`] gave. [`Vm::resume`] takes
    /// them back.
    ///
    /// # Errors
    /// When the machine is not paused, or a disk fails.
    pub fn hand_over(&mut self) -> Result<()> {
        if self.lifecycle != Lifecycle::Paused {
            return Err(self.refuse("hand its disks over"));
        }
        self.disks_free = true;
        self.devices.hand_over()
    }

    pub(crate) fn lock_disks(&mut self) -> Result<()> {
        if self.disks_free {
            self.devices.lock_disks()?;
            self.disks_free = false;
        }
        Ok(())
    }

    /// Makes the guest known on its networks: it has moved.
    pub fn announce(&self) {
        self.devices.announce();
    }
}
