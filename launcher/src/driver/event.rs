//! What the machine tells its owner, and what follows: a reset, the end, a note in the status.

use std::time::Instant;

use nacelle_vmm::VmEvent;

use super::{End, OnReset, Thread};
use crate::admit::State;
use crate::convert::Watchdog;

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
            VmEvent::Reset => match (self.state(), self.options.on_reset) {
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
            VmEvent::Watchdog => {
                log::warn!("the guest did not feed its watchdog");
                match self.options.watchdog {
                    Watchdog::Reset => self.event(VmEvent::Reset),
                    Watchdog::PowerOff => Some(End::Watchdog),
                    // One that stands still or is on its way is asked where it goes on, when it bites again.
                    Watchdog::Shutdown if self.state() == State::Running => {
                        self.stop(self.options.grace).err().map(End::Failed)
                    }
                    Watchdog::Shutdown => None,
                }
            }
            VmEvent::VcpuFailed { error, .. } => Some(End::Failed(error)),
            VmEvent::DiskFailed { id, error } => self.disk_failed(&id, &error),
            VmEvent::Detached { id } => {
                self.detached(&id);
                None
            }
        }
    }
}
