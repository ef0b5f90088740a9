//! What the machine tells its owner, and what follows: a reset, the end, a note in the status.

use std::time::Instant;

use nacelle_vmm::VmEvent;

use super::{End, OnReset, Thread};
use crate::admit::State;

impl Thread {
    pub(super) fn reset(&mut self) -> nacelle_vmm::Result<()> {
        self.vm.reset()?;
        self.reset_waits = false;
        self.reboot_until = None;
        self.status.send_modify(|status| {
            status.resets = status.resets.saturating_add(1);
            status.panicked = false;
            status.disk_error = None;
        });
        Ok(())
    }

    /// Whether a guest that powers off now was asked to begin anew, and not to go since.
    fn reboots(&self) -> bool {
        self.state() != State::Stopping && self.reboot_until.is_some_and(|until| Instant::now() <= until)
    }

    /// What follows from an event of the machine.
    pub(super) fn event(&mut self, event: VmEvent) -> Option<End> {
        match event {
            VmEvent::Shutdown if self.reboots() => self.event(VmEvent::Reset),
            VmEvent::Shutdown => Some(End::PoweredOff),
            VmEvent::Reset => match (self.state(), self.on_reset) {
                // It was asked to go, and it went.
                (State::Stopping, _) => Some(End::PoweredOff),
                (_, OnReset::End) => Some(End::Reset),
                _ if self.stands_still() => {
                    self.reset_waits = true;
                    None
                }
                (State::Paused | State::HandedOver, OnReset::Reset) => {
                    self.reset_waits = true;
                    None
                }
                (State::Running | State::Migrating | State::Saving | State::Ended, OnReset::Reset) => {
                    self.reset().err().map(End::Failed)
                }
            },
            VmEvent::Panicked => {
                self.status.send_modify(|status| status.panicked = true);
                None
            }
            VmEvent::VcpuFailed { error, .. } => Some(End::Failed(error)),
            VmEvent::DiskFailed { id, error } => self.disk_failed(&id, &error),
            VmEvent::Detached { id } => {
                if let Err(error) = self.vm.remove(&id) {
                    log::warn!("{id} has left and stays open: {error}");
                }
                None
            }
        }
    }
}
