//! Which command a machine takes, by its state and by what waits before it. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Most commands that wait. They are done in milliseconds: more than this is somebody's loop.
pub const QUEUE: usize = 16;

/// What a machine is doing, as its users see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// The guest runs.
    Running,
    /// The guest stands still and can go on.
    Paused,
    /// The guest was asked to power itself off.
    Stopping,
    /// The guest runs, and is being moved to another monitor.
    Migrating,
    /// The guest runs, and a snapshot of it is being written.
    Saving,
    /// Another monitor was told to run the guest, and nothing was heard of it since. It stands still here.
    HandedOver,
    /// There is no machine any more.
    Ended,
}

/// What a machine is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Hold the guest still. A paused machine stays paused.
    Pause,
    /// Let the guest go on. A running machine stays running.
    Resume,
    /// Press the power button, and kill the machine when the guest has not powered off after `grace`. A paused
    /// guest goes on first, or it could not do what it is asked. A second stop may shorten the time.
    Stop {
        /// How long the guest has.
        grace: Duration,
    },
    /// End the machine at once.
    Kill,
    /// Switch it off and on again.
    Reset,
    /// Press the power button, and switch the machine on again when the guest has powered off within this time.
    Reboot {
        /// How long that is meant: a guest that powers off later wants to be off.
        within: Duration,
    },
    /// Ask the guest to leave this much of its memory to the host.
    Balloon {
        /// Bytes.
        bytes: u64,
    },
    /// Give the counters.
    Stats,
    /// Move to another monitor.
    Migrate,
    /// Stop moving, and go on here.
    CancelMigration,
    /// Write a snapshot; the guest runs on meanwhile.
    Snapshot,
    /// Plug a disk in.
    Attach,
    /// Ask the guest to let go of a disk that was plugged in.
    Detach,
    /// Go on here after all: the monitor that was told to run the guest does not.
    TakeBack,
}

/// Why a command is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// There is no machine any more.
    #[error("the machine has ended")]
    Ended,
    /// It is on its way out.
    #[error("the machine is stopping")]
    Stopping,
    /// The guest cannot do its part.
    #[error("the machine is paused")]
    Paused,
    /// It is being moved.
    #[error("the machine is being moved")]
    Migrating,
    /// A snapshot of it is being written.
    #[error("a snapshot of the machine is being written")]
    Saving,
    /// It is not being moved.
    #[error("the machine is not being moved, and no snapshot of it written")]
    NotMigrating,
    /// It may run elsewhere.
    #[error("the machine was handed over to another monitor, which has not confirmed that it runs there")]
    HandedOver,
    /// It has disks that only this process knows of.
    #[error("disks were attached to the machine while it ran, and only here is it known what is behind them")]
    Plugged,
    /// The disk is on its way out.
    #[error("the guest was asked to let go of the disk of this name, and has not yet")]
    Leaving,
    /// The queue is full.
    #[error("{QUEUE} commands are waiting already")]
    Busy,
}

impl Denied {
    /// What its user can do.
    pub fn hint(self) -> &'static str {
        match self {
            Denied::Ended => "start it again with nacelle run",
            Denied::Stopping => "kill ends it now, another stop can shorten the time that the guest has",
            Denied::Paused => "resume it first",
            Denied::Migrating => "wait for it, or cancel it first with nacelle migrate-cancel",
            Denied::Saving => "wait for it, or cancel it first with nacelle migrate-cancel",
            Denied::NotMigrating => "nacelle status shows what it is doing",
            Denied::HandedOver => {
                "look there: where it runs, end it here with nacelle kill; where it does not, go on here with nacelle \
                 migrate-recover"
            }
            Denied::Plugged => "detach them first; nacelle status shows them",
            Denied::Leaving => "wait until it has left",
            Denied::Busy => "wait for their answers",
        }
    }
}

/// Whether a machine in `state` takes `next` when it has done what is `queued`.
///
/// # Errors
/// The reason when it does not.
pub fn admit(state: State, queued: &[Command], next: &Command) -> Result<(), Denied> {
    let state = queued.iter().fold(state, after);
    match (state, next) {
        (State::Ended, _) => Err(Denied::Ended),
        (_, Command::Kill) => Ok(()),
        _ if queued.len() >= QUEUE => Err(Denied::Busy),
        (_, Command::Stats) | (State::Stopping, Command::Stop { .. }) => Ok(()),
        (State::Stopping, _) => Err(Denied::Stopping),
        (State::Paused, Command::Reset | Command::Reboot { .. } | Command::Balloon { .. }) => {
            Err(Denied::Paused)
        }
        (State::Migrating | State::Saving, Command::Stop { .. } | Command::CancelMigration) => Ok(()),
        (State::Migrating, _) => Err(Denied::Migrating),
        (State::Saving, _) => Err(Denied::Saving),
        (State::HandedOver, Command::TakeBack) => Ok(()),
        (State::HandedOver, _) => Err(Denied::HandedOver),
        (_, Command::CancelMigration | Command::TakeBack) => Err(Denied::NotMigrating),
        (State::Paused, Command::Migrate | Command::Snapshot | Command::Attach | Command::Detach) => {
            Err(Denied::Paused)
        }
        (State::Running | State::Paused, _) => Ok(()),
    }
}

/// Whether the guest of a machine in `state` can be asked to do something that changes what it does: as [`admit`] for a
/// reboot, which is such a thing.
///
/// # Errors
/// The reason when it cannot.
pub fn admit_guest(state: State) -> Result<(), Denied> {
    let within = Duration::ZERO;
    admit(state, &[], &Command::Reboot { within })
}

/// The state that `command` leads to.
fn after(state: State, command: &Command) -> State {
    match (state, command) {
        (State::Ended, _) | (_, Command::Kill) => State::Ended,
        (State::Stopping, _) | (_, Command::Stop { .. }) => State::Stopping,
        (_, Command::Pause) => State::Paused,
        (_, Command::Resume | Command::Reset | Command::Reboot { .. } | Command::TakeBack) => State::Running,
        (_, Command::Migrate) => State::Migrating,
        (_, Command::Snapshot) => State::Saving,
        (
            state,
            Command::Balloon { .. }
            | Command::Stats
            | Command::CancelMigration
            | Command::Attach
            | Command::Detach,
        ) => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOP: Command = Command::Stop {
        grace: Duration::from_secs(30),
    };
    const BALLOON: Command = Command::Balloon { bytes: 1 << 20 };
    const REBOOT: Command = Command::Reboot {
        within: Duration::from_secs(30),
    };
    const COMMANDS: [Command; 14] = [
        Command::Pause,
        Command::Resume,
        STOP,
        Command::Kill,
        Command::Reset,
        REBOOT,
        BALLOON,
        Command::Stats,
        Command::Migrate,
        Command::CancelMigration,
        Command::TakeBack,
        Command::Snapshot,
        Command::Attach,
        Command::Detach,
    ];
    const STATES: [State; 7] = [
        State::Running,
        State::Paused,
        State::Stopping,
        State::Migrating,
        State::Saving,
        State::HandedOver,
        State::Ended,
    ];

    #[test]
    fn every_command_in_every_state() {
        use Denied::{Ended, HandedOver, Migrating, NotMigrating, Paused, Saving, Stopping};
        let (ok, none, no) = (Ok(()), Err(NotMigrating), Err(Paused));
        let (stop, move_, save, gone) = (Err(Stopping), Err(Migrating), Err(Saving), Err(HandedOver));
        // Columns: Pause, Resume, Stop, Kill, Reset, Reboot, Balloon, Stats, Migrate, CancelMigration, TakeBack, Snapshot,
        // Attach, Detach.
        let table = [
            (
                State::Running,
                [ok, ok, ok, ok, ok, ok, ok, ok, ok, none, none, ok, ok, ok],
            ),
            (
                State::Paused,
                [ok, ok, ok, ok, no, no, no, ok, no, none, none, no, no, no],
            ),
            (
                State::Stopping,
                [
                    stop, stop, ok, ok, stop, stop, stop, ok, stop, stop, stop, stop, stop, stop,
                ],
            ),
            (
                State::Migrating,
                [
                    move_, move_, ok, ok, move_, move_, move_, ok, move_, ok, move_, move_, move_, move_,
                ],
            ),
            (
                State::Saving,
                [
                    save, save, ok, ok, save, save, save, ok, save, ok, save, save, save, save,
                ],
            ),
            (
                State::HandedOver,
                [
                    gone, gone, gone, ok, gone, gone, gone, ok, gone, gone, ok, gone, gone, gone,
                ],
            ),
            (State::Ended, [Err(Ended); 14]),
        ];
        assert_eq!(table.map(|(state, _)| state), STATES);
        for (state, verdicts) in table {
            for (command, verdict) in COMMANDS.iter().zip(verdicts) {
                assert_eq!(admit(state, &[], command), verdict, "{command:?} while {state:?}");
            }
        }
    }

    #[test]
    fn what_waits_counts_as_done() {
        // The state that each command leads to; rows as STATES, columns as COMMANDS.
        use State::{
            Ended as E, HandedOver as H, Migrating as M, Paused as P, Running as R, Saving as V,
            Stopping as S,
        };
        let leads_to = [
            [P, R, S, E, R, R, R, R, M, R, R, V, R, R],
            [P, R, S, E, R, R, P, P, M, P, R, V, P, P],
            [S, S, S, E, S, S, S, S, S, S, S, S, S, S],
            [P, R, S, E, R, R, M, M, M, M, R, V, M, M],
            [P, R, S, E, R, R, V, V, M, V, R, V, V, V],
            [P, R, S, E, R, R, H, H, M, H, R, V, H, H],
            [E, E, E, E, E, E, E, E, E, E, E, E, E, E],
        ];
        for (state, row) in STATES.into_iter().zip(leads_to) {
            for (first, then) in COMMANDS.iter().zip(row) {
                for next in &COMMANDS {
                    assert_eq!(
                        admit(state, &[*first], next),
                        admit(then, &[], next),
                        "{first:?}, then {next:?}, while {state:?}"
                    );
                }
            }
        }
        assert_eq!(
            admit(State::Running, &[Command::Pause, STOP], &Command::Reset),
            Err(Denied::Stopping)
        );
        assert_eq!(
            admit(State::Paused, &[Command::Resume, BALLOON], &Command::Reset),
            Ok(())
        );
    }

    #[test]
    fn a_full_queue_takes_nothing_but_kill() {
        let full = [Command::Stats; QUEUE];
        for next in &COMMANDS {
            let verdict = admit(State::Running, &full, next);
            assert_eq!(verdict.is_ok(), *next == Command::Kill, "{next:?}");
        }
        assert_eq!(admit(State::Running, &full[1..], &Command::Pause), Ok(()));
    }
}
