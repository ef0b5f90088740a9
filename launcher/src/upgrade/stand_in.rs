//! The process that was started first, when another one has its machine.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, set_child_subreaper};
use tokio::task::spawn_blocking;

use super::give::Successor;
use crate::live::Signals;
use crate::terminal::{self, Attached, Happened};
use crate::{Error, Result, Status};

/// Waits for whoever has the machine, and has that end by its status; passes on what this process is told.
///
/// # Errors
/// When there is nobody to wait for.
pub async fn stand_in(
    successor: Successor,
    terminal: &mut Option<Attached>,
    signals: &mut Signals,
) -> Result<Status> {
    let group = Pid::from_child(&successor.child);
    // One that hands it on ends; the next one is then this process's to wait for.
    set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| Error::io("wait for others' children")(error.into()))?;
    // It has waited for this to have the terminal.
    drop(successor.stream);
    crate::memory::give_back();
    let waiting = spawn_blocking(wait);
    tokio::pin!(waiting);
    loop {
        tokio::select! {
            ended = &mut waiting => {
                let ended = ended.map_err(|error| Error::io("wait for the machine")(io::Error::other(error)))?;
                return ended.map(status);
            }
            () = signals.next() => {}
            happened = terminal::next(terminal) => if happened == Happened::Closed {
                continue;
            },
        }
        if let Err(error) = kill_process_group(group, Signal::TERM) {
            log::warn!("the machine is not told to stop: {error}");
        }
    }
}

/// Waits until a child ends that has not handed the machine on.
fn wait() -> Result<ExitStatus> {
    loop {
        let ended = rustix::process::wait(WaitOptions::empty());
        match ended.map_err(|error| Error::io("wait for the machine")(error.into()))? {
            Some((_, status)) if status.exit_status() == Some(Status::HandedOn as i32) => {}
            Some((_, status)) => return Ok(ExitStatus::from_raw(status.as_raw())),
            None => {}
        }
    }
}

fn status(ended: ExitStatus) -> Status {
    match ended.code().and_then(Status::of) {
        Some(status) => status,
        None => {
            log::error!("the process that has the machine ended: {ended}");
            Status::Failed
        }
    }
}
