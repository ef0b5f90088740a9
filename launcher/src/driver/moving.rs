//! A machine that moves, or is saved: that has a thread of its own, which asks the machine's thread for what only
//! that may do.

use std::path::PathBuf;
use std::sync::mpsc::{self, Sender, channel};

use clap::ValueEnum;
use nacelle_vmm::migrate::{self, Cancel, Owner, Phase, Progress, Recover, Report, Watch};
use nacelle_vmm::sandbox::{Role, Sandbox};
use nacelle_vmm::snapshot::{self, Tracking};
use nacelle_vmm::{Error, VmState};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use super::{After, Answer, End, Message, Plug, Refused, Thread};
use crate::admit::{Denied, State};
use crate::exit::Chain;
use crate::migrate::Plan;
use crate::migrate::stream::Connector;
use crate::upgrade::Heir;

/// How far a migration is.
#[derive(Clone, Debug)]
pub struct Moving {
    /// Where the machine goes.
    pub to: String,
    /// What is being done.
    pub phase: Phase,
    /// Bytes of this round that are on their way, and all of it.
    pub sending: (u64, u64),
    /// The last round that has ended.
    pub progress: Progress,
}

/// What the migration's thread asks of the machine's.
pub(super) enum Ask {
    Pause(Sender<Result<VmState, Error>>),
    Release(Sender<Result<(), Error>>),
    HandOver(Sender<Result<(), Error>>),
    GoOn(Sender<Result<(), Error>>),
    /// Its memory follows it.
    Follows,
}

/// The machine's thread, to the migration's.
struct Remote(Sender<Message>);

impl Remote {
    fn ask<T>(&self, ask: impl FnOnce(Sender<Result<T, Error>>) -> Ask) -> Result<T, Error> {
        let (reply, answer) = channel();
        let _ = self.0.send(Message::Ask(ask(reply)));
        // A machine that has ended answers nothing.
        answer
            .recv()
            .map_err(|_| Error::Cannot("the machine has ended".into()))?
    }
}

impl Owner for Remote {
    fn pause(&mut self) -> Result<VmState, Error> {
        self.ask(Ask::Pause)
    }

    fn release(&mut self) -> Result<(), Error> {
        self.ask(Ask::Release)
    }

    fn hand_over(&mut self) -> Result<(), Error> {
        self.ask(Ask::HandOver)
    }

    fn go_on(&mut self) -> Result<(), Error> {
        self.ask(Ask::GoOn)
    }

    fn follows(&mut self) {
        let _ = self.0.send(Message::Ask(Ask::Follows));
    }
}

/// Passes on how far it is.
struct Teller(watch::Sender<Option<Moving>>);

impl Watch for Teller {
    fn phase(&mut self, phase: Phase) {
        log::debug!("migration: {phase:?}");
        self.0.send_modify(|moving| {
            if let Some(moving) = moving {
                moving.phase = phase;
            }
        });
    }

    fn broken(&mut self, error: &Error) {
        log::error!(
            "the rest of the machine's memory cannot follow it ({}): its guest waits there for nacelle migrate-recover \
             here",
            Chain(error)
        );
    }

    fn sending(&mut self, done: u64, of: u64) {
        self.0.send_modify(|moving| {
            if let Some(moving) = moving {
                moving.sending = (done, of);
            }
        });
    }

    fn progress(&mut self, progress: &Progress) {
        self.0.send_modify(|moving| {
            if let Some(moving) = moving {
                moving.progress = *progress;
            }
        });
    }
}

/// A snapshot that somebody wants.
#[derive(Clone, Debug)]
pub struct Saving {
    /// Where it goes.
    pub directory: PathBuf,
    /// Only what was written since the last one.
    pub incremental: bool,
    /// Keep account of what is written from now on.
    pub track: bool,
    /// What follows.
    pub then: Then,
}

/// What follows a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Then {
    /// The guest goes on
    #[default]
    Continue,
    /// The guest stays paused: its disks are as the snapshot knows them
    Pause,
    /// The machine ends: its disks are as the snapshot knows them
    Stop,
}

/// What goes on beside the machine.
pub(super) enum Work {
    Move(Plan),
    HandOver(Heir),
    Save(Saving),
    /// These are done at once.
    Attach(Plug),
    Detach(String),
}

fn confine(sandbox: &Sandbox) -> Result<(), Error> {
    sandbox
        .enter(Role::Migration)
        .map_err(Error::io("confine a thread"))
}

/// A migration or a snapshot under way, as the machine's thread keeps it.
pub(super) struct Beside {
    then: Then,
    /// It goes to another process of this host.
    handover: bool,
    pub cancel: Cancel,
    /// It goes on where its connection was broken.
    recover: Recover,
    reply: oneshot::Sender<Result<Answer, Refused>>,
    /// It has the guest stand still.
    paused: bool,
}

impl Thread {
    /// Begins with what comes with more than a word; answered when it is done.
    pub(super) fn begin(&mut self, work: Work, reply: oneshot::Sender<Result<Answer, Refused>>) {
        let handover = matches!(work, Work::HandOver(_));
        let beside = !matches!(work, Work::Attach(_) | Work::Detach(_));
        if beside && let Err(denied) = self.all_is_in_the_manifest() {
            return drop(reply.send(Err(denied.into())));
        }
        let recover = match &work {
            Work::Move(plan) => plan.options.recover.clone(),
            _ => Recover::default(),
        };
        let (begun, state, then) = match work {
            Work::Attach(plug) => return drop(reply.send(self.attach(plug))),
            Work::Detach(name) => return drop(reply.send(self.detach(&name))),
            Work::Move(plan) => (self.begin_to_move(&plan), State::Migrating, Then::Continue),
            Work::HandOver(heir) => (self.begin_to_hand_over(heir), State::Migrating, Then::Continue),
            Work::Save(saving) => {
                let then = saving.then;
                (self.begin_to_save(saving), State::Saving, then)
            }
        };
        match begun {
            Err(refused) => drop(reply.send(Err(refused))),
            Ok(cancel) => {
                self.migration = Some(Beside {
                    then,
                    handover,
                    recover,
                    cancel,
                    reply,
                    paused: false,
                });
                self.enter(state);
            }
        }
    }

    fn begin_to_save(&mut self, saving: Saving) -> Result<Cancel, Refused> {
        let port = self.vm.migration()?;
        let cancel = Cancel::new();
        let (mut owner, mailbox, wish) = (Remote(self.mailbox.clone()), self.mailbox.clone(), cancel.clone());
        let options = snapshot::Options {
            incremental: saving.incremental,
            track: saving.track,
            pause: saving.then != Then::Continue,
        };
        let (tracking, sandbox) = (self.tracking.take(), self.sandbox.clone());
        let work = move || {
            let saved = confine(&sandbox).and_then(|()| {
                snapshot::save(&port, &mut owner, &saving.directory, options, tracking, &wish)
            });
            let _ = mailbox.send(Message::Saved(saved));
        };
        std::thread::Builder::new()
            .name("snapshot".into())
            .spawn(work)
            .map_err(Error::io("start the thread snapshot"))?;
        Ok(cancel)
    }

    fn begin_to_move(&mut self, plan: &Plan) -> Result<Cancel, Refused> {
        let cannot = |error: crate::Error| Refused::Failed(Error::Cannot(Chain(&error).to_string()));
        let connector = Connector::new(plan).map_err(cannot)?;
        let port = self.vm.moving(&plan.copied)?;
        let options = plan.options.clone();
        self.send(plan.to.to_string(), move |owner, wish, teller| {
            migrate::send(port, owner, &mut |_| connector.connect(), &options, wish, teller)
        })
    }

    fn begin_to_hand_over(&mut self, heir: Heir) -> Result<Cancel, Refused> {
        let (port, mut opened) = self.vm.handover()?;
        self.send(heir.binary.display().to_string(), move |owner, wish, teller| {
            let mut connect = |_| heir.start(&mut opened);
            let moved = migrate::send(port, owner, &mut connect, &Heir::options(), wish, teller);
            if let Err(error) = &moved
                && !matches!(error, Error::Unconfirmed { .. })
            {
                heir.fail();
            }
            moved
        })
    }

    /// Has a thread of its own send the machine.
    fn send(
        &mut self,
        to: String,
        send: impl FnOnce(&mut Remote, &Cancel, &mut Teller) -> Result<Report, Error> + Send + 'static,
    ) -> Result<Cancel, Refused> {
        // Both would take pages from the one log.
        self.tracking = None;
        let cancel = Cancel::new();
        let (mut owner, mailbox) = (Remote(self.mailbox.clone()), self.mailbox.clone());
        let wish = cancel.clone();
        self.moving.send_replace(Some(Moving {
            to,
            phase: Phase::Hello,
            sending: (0, 0),
            progress: Progress::default(),
        }));
        let mut teller = Teller(self.moving.clone());
        let sandbox = self.sandbox.clone();
        let work = move || {
            let moved = confine(&sandbox).and_then(|()| send(&mut owner, &wish, &mut teller));
            let _ = mailbox.send(Message::Moved(moved));
        };
        std::thread::Builder::new()
            .name("migrate".into())
            .spawn(work)
            .map_err(Error::io("start the thread migrate"))?;
        Ok(cancel)
    }

    /// Does what the migration's thread asks.
    pub(super) fn answer(&mut self, ask: Ask) -> Option<End> {
        match ask {
            Ask::Pause(reply) => self.pause_to_move(&reply),
            Ask::Release(reply) => {
                let _ = reply.send(self.vm.unlock_disks());
                None
            }
            Ask::HandOver(reply) => {
                let _ = reply.send(self.vm.hand_over());
                None
            }
            Ask::Follows => {
                self.enter(State::HandedOver);
                None
            }
            Ask::GoOn(reply) => {
                let gone_on = self.resume();
                if let Some(migration) = self.migration.as_mut().filter(|_| gone_on.is_ok()) {
                    migration.paused = false;
                }
                let _ = reply.send(gone_on);
                None
            }
        }
    }

    fn pause_to_move(&mut self, reply: &mpsc::Sender<Result<VmState, Error>>) -> Option<End> {
        let paused = self.vm.pause();
        if let (Ok(()), Some(migration)) = (&paused, &mut self.migration) {
            migration.paused = true;
        }
        // What the guest asked for before it stood still must not be lost with it.
        let before: Vec<Message> = self.messages.try_iter().collect();
        let ends: Vec<End> = before
            .into_iter()
            .filter_map(|message| self.message(message))
            .collect();
        if let Some(end) = ends.into_iter().next() {
            return Some(end);
        }
        let state = match paused {
            Ok(()) if self.reset_waits => Err(Error::Cannot("the guest has just asked for a reset".into())),
            Ok(()) => self.vm.save(),
            Err(error) => Err(error),
        };
        let _ = reply.send(state);
        None
    }

    /// Whether the guest stands still for a migration.
    pub(super) fn stands_still(&self) -> bool {
        self.migration.as_ref().is_some_and(|migration| migration.paused)
    }

    /// What follows from how a migration went.
    pub(super) fn moved(&mut self, moved: Result<Report, Error>) -> Option<End> {
        let migration = self.migration.take()?;
        let stopping = self.state() == State::Stopping;
        let error = match moved {
            Ok(report) => {
                self.told = Some((migration.reply, Answer::Moved(report)));
                return Some(match migration.handover {
                    true => End::HandedOn,
                    false => End::Moved,
                });
            }
            Err(error) => error,
        };
        log::warn!("the machine is not moved: {}", Chain(&error));
        if migration.handover && matches!(error, Error::Unconfirmed { .. }) {
            // That process may have run it, in the memory that both have.
            let _ = migration.reply.send(Err(Refused::Failed(error)));
            return Some(End::HandedOn);
        }
        if matches!(error, Error::Unconfirmed { .. }) {
            self.enter(State::HandedOver);
        } else if migration.paused {
            // It could not even go on here.
            self.enter(State::Paused);
        } else if !stopping {
            self.enter(State::Running);
        }
        self.moving.send_replace(None);
        let _ = migration.reply.send(Err(Refused::Failed(error)));
        self.stop_for_disk()
    }

    /// What follows from how a snapshot went.
    pub(super) fn saved(
        &mut self,
        saved: Result<(snapshot::Report, Option<Tracking>), Error>,
    ) -> Option<End> {
        let saving = self.migration.take()?;
        let (report, tracking) = match saved {
            Ok(saved) => saved,
            Err(error) => {
                if saving.paused {
                    self.enter(State::Paused);
                } else if self.state() == State::Saving {
                    self.enter(State::Running);
                }
                let _ = saving.reply.send(Err(Refused::Failed(error)));
                return self.stop_for_disk();
            }
        };
        self.tracking = tracking;
        if saving.then == Then::Stop {
            self.told = Some((saving.reply, Answer::Saved(report)));
            return Some(End::Saved);
        }
        if self.state() == State::Saving {
            self.enter(match saving.then {
                Then::Pause => State::Paused,
                Then::Continue | Then::Stop => State::Running,
            });
        }
        let _ = saving.reply.send(Ok(Answer::Saved(report)));
        self.stop_for_disk()
    }

    /// Stops what goes on beside.
    pub(super) fn cancel_migration(&self) -> Result<After, Refused> {
        match &self.migration {
            Some(migration) => {
                migration.cancel.cancel();
                Ok(After::Goes(Answer::Done))
            }
            None => Err(Denied::NotMigrating.into()),
        }
    }

    /// Takes a machine back that was handed over to nobody; has the memory of one that runs elsewhere follow it again.
    pub(super) fn take_back(&mut self) -> Result<After, Refused> {
        if let Some(migration) = &self.migration {
            migration.recover.now();
            return Ok(After::Goes(Answer::Done));
        }
        self.resume()?;
        self.enter(State::Running);
        Ok(After::Goes(Answer::Done))
    }
}
