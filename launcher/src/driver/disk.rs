//! A machine one of whose disks failed: it is paused, and tries again when it is resumed.

use std::io;

use super::plug::PREFIX;
use super::{End, Thread};
use crate::admit::State;

impl Thread {
    /// What follows from a disk that failed: it is known, and a machine that runs is paused.
    pub(super) fn disk_failed(&mut self, id: &str, error: &io::Error) -> Option<End> {
        // The plan makes it of the name that the manifest has.
        let name = id.strip_prefix(PREFIX).unwrap_or(id);
        let what = format!("disk {name}: {error}");
        log::error!("{what}; {}", outlook(self.state()));
        self.status.send_modify(|status| status.disk_error = Some(what));
        self.stop_for_disk()
    }

    /// Pauses a running machine of which a disk has failed. One that is moved or saved comes here when that has ended.
    pub(super) fn stop_for_disk(&mut self) -> Option<End> {
        if self.state() != State::Running || self.status.borrow().disk_error.is_none() {
            return None;
        }
        match self.vm.pause() {
            Ok(()) => self.enter(State::Paused),
            Err(error) => return Some(End::Failed(error)),
        }
        None
    }
}

/// What becomes of a machine in `state` whose disk failed.
fn outlook(state: State) -> &'static str {
    match state {
        State::Running | State::Paused | State::HandedOver | State::Ended => {
            "the machine is paused, and tries again when it is resumed"
        }
        State::Migrating | State::Saving => {
            "it is tried again where the machine goes on; one that stays here is paused"
        }
        State::Stopping => "the guest waits for it, and is killed when its time to power off is over",
    }
}
