//! The thread `driver`: the only owner of the machine. Commands and the machine's own events come in on one
//! channel; the state goes out to everybody who watches.
//!
//! ```text
//!            ┌── pause ──► Paused ──┐
//!   start ─► Running ◄── resume ──┘ │ stop
//!            │  └───── stop ─► Stopping ─── the guest powers off, or its time is over ─┐
//!            └── kill, the guest powers off, a vCPU fails ─────────────────────► Ended ◄┘
//! ```
//! A disk that fails may pause the machine, too; resume then tries again.
//!
//! A running machine that moves is Migrating, and then Ended here, or Running again. One that was handed over and
//! of which nothing was heard since is HandedOver.

mod disk;
mod event;
mod handle;
mod moving;
mod plug;
mod status;

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nacelle_vmm::migrate::{self, Cancel, Report, Stream, Watch};
use nacelle_vmm::sandbox::{Role, Sandbox};
use nacelle_vmm::snapshot::{self, Snapshot, Tracking};
use nacelle_vmm::{Stats, Vm, VmConfig, VmEvent};
use tokio::sync::{oneshot, watch};

pub use self::handle::Driver;
use self::moving::{Ask, Beside, Work};
pub use self::moving::{Moving, Saving, Then};
pub use self::plug::Plug;
pub use self::status::{End, Plugged, Status};
use crate::admit::{Command, Denied, State, admit};
use crate::convert::{Plan, Watchdog};

/// What follows when the guest asks for a reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReset {
    /// It is reset, as a PC would be.
    #[default]
    Reset,
    /// The machine ends.
    End,
}

/// How a machine is driven.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What follows when the guest asks for a reset.
    pub on_reset: OnReset,
    /// What follows when the guest does not feed its watchdog.
    pub watchdog: Watchdog,
    /// How long a guest has to power off that its watchdog asks for it.
    pub grace: Duration,
    /// The first instruction waits for a resume.
    pub paused: bool,
}

impl From<&Plan> for Options {
    fn from(plan: &Plan) -> Options {
        Options {
            on_reset: if plan.reboot_ends {
                OnReset::End
            } else {
                OnReset::Reset
            },
            watchdog: plan.watchdog.unwrap_or_default(),
            grace: Duration::from_secs(plan.grace_period),
            paused: plan.start_paused,
        }
    }
}

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is not for now.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The machine could not do it.
    #[error("the machine could not do it")]
    Failed(#[from] nacelle_vmm::Error),
}

/// What a command gives.
#[derive(Debug)]
pub enum Answer {
    /// It is done.
    Done,
    /// The counters.
    Stats(Box<Stats>),
    /// It has moved.
    Moved(Report),
    /// Its snapshot is written.
    Saved(snapshot::Report),
}

/// A command, and where its answer goes.
struct Request {
    command: Command,
    /// What takes longer, and goes on beside.
    work: Option<Box<Work>>,
    reply: oneshot::Sender<Result<Answer, Refused>>,
}

/// All that the thread hears.
enum Message {
    Request(Request),
    Event(VmEvent),
    /// Of the migration's thread.
    Ask(Ask),
    /// How the migration went.
    Moved(nacelle_vmm::Result<Report>),
    /// How the snapshot went.
    Saved(nacelle_vmm::Result<(snapshot::Report, Option<Tracking>)>),
}

impl From<VmEvent> for Message {
    fn from(event: VmEvent) -> Self {
        Message::Event(event)
    }
}

/// A machine that has been started.
pub struct Started {
    /// Tells it what to do.
    pub driver: Driver,
    /// The host's end of its serial line.
    pub console: UnixStream,
    /// That of the port of its guest agent, where it has one.
    pub agent: Option<UnixStream>,
    /// How it ended, once it has: nothing of it is held any more then.
    pub ended: oneshot::Receiver<End>,
}

/// Builds a machine and gives it to a thread of its own, which starts it.
///
/// # Errors
/// When it cannot be built or started.
pub fn start(config: VmConfig, options: Options) -> nacelle_vmm::Result<Started> {
    let (mailbox, messages) = channel();
    let sandbox = config.sandbox.clone();
    let mut vm = Vm::build(config, mailbox.clone())?;
    if !options.paused {
        vm.start()?;
    }
    let begun = Begun {
        ran: !options.paused,
        rest: None,
        sandbox,
    };
    drive(vm, options, begun, mailbox, messages)
}

/// Takes up a machine that comes over the streams that `accept` gives, and gives it to a thread of its own. `cancel` also
/// ends the arrival of its memory where that follows, and is cancelled when the machine ends.
///
/// # Errors
/// When it does not come; it goes on where it was.
pub fn receive(
    config: VmConfig,
    options: Options,
    mut accept: impl FnMut() -> io::Result<Box<dyn Stream>> + Send + 'static,
    cancel: &Cancel,
    watch: &mut dyn Watch,
) -> nacelle_vmm::Result<Started> {
    let (mailbox, messages) = channel();
    let wanted = migrate::Options::default();
    let sandbox = config.sandbox.clone();
    let arrived = migrate::receive(config, mailbox.clone(), &mut accept, &wanted, cancel, watch)?;
    let mut begun = Begun {
        ran: true,
        rest: None,
        sandbox: sandbox.clone(),
    };
    if let Some(rest) = arrived.rest {
        let ends = cancel.clone();
        begun.rest = Some(ends.clone());
        let take = move || {
            if let Err(error) = sandbox.enter(Role::Memory) {
                return log::error!("the rest of the machine's memory is lost: {error}");
            }
            if let Err(error) = rest.take(&mut accept, &ends) {
                log::error!("the rest of the machine's memory is lost: {error}");
            }
        };
        std::thread::Builder::new()
            .name("memory".into())
            .spawn(take)
            .map_err(nacelle_vmm::Error::io("start the thread memory"))?;
    }
    let options = Options {
        paused: false,
        ..options
    };
    drive(arrived.vm, options, begun, mailbox, messages)
}

/// Goes on with the machine of a snapshot, and gives it to a thread of its own.
///
/// # Errors
/// When it cannot be had, or does not fit.
pub fn restore(config: VmConfig, options: Options, snapshot: &Snapshot) -> nacelle_vmm::Result<Started> {
    let (mailbox, messages) = channel();
    let sandbox = config.sandbox.clone();
    let memory = snapshot.memory(&config.memory)?;
    let mut vm = Vm::restore(config, snapshot.state(), memory, mailbox.clone())?;
    if !options.paused {
        vm.resume()?;
    }
    let begun = Begun {
        ran: true,
        rest: None,
        sandbox,
    };
    drive(vm, options, begun, mailbox, messages)
}

/// How a machine begins here.
struct Begun {
    /// The guest has run.
    ran: bool,
    /// The rest of its memory is on its way, until this says that it is of no use.
    rest: Option<Cancel>,
    /// How its threads are confined.
    sandbox: Sandbox,
}

/// Gives a machine to a thread of its own.
fn drive(
    vm: Vm,
    options: Options,
    begun: Begun,
    mailbox: Sender<Message>,
    messages: Receiver<Message>,
) -> nacelle_vmm::Result<Started> {
    let profile = Arc::new(vm.profile().clone());
    let console = vm.console(0)?;
    let agent = vm.console(1).ok();
    let state = if options.paused {
        State::Paused
    } else {
        State::Running
    };
    let (announce, status) = watch::channel(Status {
        state,
        resets: 0,
        panicked: false,
        disk_error: None,
        plugged: Vec::new(),
    });
    let (moving, moves) = watch::channel(None);
    let (end, ended) = oneshot::channel();
    let thread = Thread {
        vm,
        mailbox: mailbox.clone(),
        messages,
        queue: VecDeque::new(),
        status: announce,
        options,
        begun: begun.ran,
        rest: begun.rest,
        sandbox: begun.sandbox,
        reset_waits: false,
        deadline: None,
        reboot_until: None,
        migration: None,
        moving,
        tracking: None,
        told: None,
    };
    std::thread::Builder::new()
        .name("driver".into())
        .spawn(move || {
            let ended = match thread.sandbox.enter(Role::Owner) {
                Ok(()) => thread.run(),
                Err(error) => End::Failed(nacelle_vmm::Error::io("confine the thread driver")(error)),
            };
            let _ = end.send(ended);
        })
        .map_err(nacelle_vmm::Error::io("start the thread driver"))?;
    Ok(Started {
        driver: Driver {
            mailbox,
            status,
            moving: moves,
            profile,
        },
        console,
        agent,
        ended,
    })
}

struct Thread {
    vm: Vm,
    mailbox: Sender<Message>,
    messages: Receiver<Message>,
    queue: VecDeque<Request>,
    status: watch::Sender<Status>,
    options: Options,
    /// The guest has run.
    begun: bool,
    /// Ends the arrival of its memory: who waits for a page of it cannot end.
    rest: Option<Cancel>,
    sandbox: Sandbox,
    /// The guest asked for a reset and was paused before it happened.
    reset_waits: bool,
    /// When a guest that was asked to power off is killed.
    deadline: Option<Instant>,
    /// A guest that powers off until then does so to begin anew.
    reboot_until: Option<Instant>,
    migration: Option<Beside>,
    moving: watch::Sender<Option<Moving>>,
    /// Keeps account of what is written, for the next snapshot.
    tracking: Option<Tracking>,
    /// Who is to be told, when all is over, that the machine has moved.
    told: Option<(oneshot::Sender<Result<Answer, Refused>>, Answer)>,
}

impl Thread {
    fn run(mut self) -> End {
        let end = loop {
            if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                break End::GraceExpired;
            }
            let end = match self.hear() {
                Some(message) => self.message(message),
                None => self.work(),
            };
            if let Some(end) = end {
                break end;
            }
        };
        if let Some(migration) = &self.migration {
            migration.cancel.cancel();
        }
        if let Some(rest) = &self.rest {
            rest.cancel();
        }
        // What the machine holds, its disks above all, is free before anybody hears that it ended.
        drop(self.tracking);
        drop(self.vm);
        self.status.send_modify(|status| status.state = State::Ended);
        if let Some((reply, answer)) = self.told {
            let _ = reply.send(Ok(answer));
        }
        for request in self.queue {
            let answer = match (request.command, &end) {
                (Command::Kill, _) | (Command::Stop { .. }, End::PoweredOff) => Ok(Answer::Done),
                _ => Err(Denied::Ended.into()),
            };
            let _ = request.reply.send(answer);
        }
        end
    }

    fn message(&mut self, message: Message) -> Option<End> {
        match message {
            Message::Event(event) => self.event(event),
            Message::Request(request) => self.take(request),
            Message::Ask(ask) => self.answer(ask),
            Message::Moved(moved) => self.moved(moved),
            Message::Saved(saved) => self.saved(saved),
        }
    }

    /// The next message. All that has come is heard before a command is worked on; `None` when there is no
    /// more of it, or the guest's time is over.
    fn hear(&mut self) -> Option<Message> {
        if !self.queue.is_empty() {
            return self.messages.try_recv().ok();
        }
        let Some(deadline) = self.deadline else {
            // The machine keeps a sender for its events: there is no end of messages while it lives.
            return self.messages.recv().ok();
        };
        let left = deadline.saturating_duration_since(Instant::now());
        self.messages.recv_timeout(left).ok()
    }

    fn state(&self) -> State {
        self.status.borrow().state
    }

    fn enter(&self, state: State) {
        self.status.send_modify(|status| status.state = state);
    }

    /// Queues a command, or says why not. Kill does not wait for its turn.
    fn take(&mut self, request: Request) -> Option<End> {
        let queued: Vec<Command> = self.queue.iter().map(|request| request.command).collect();
        if let Err(denied) = admit(self.state(), &queued, &request.command) {
            let _ = request.reply.send(Err(denied.into()));
            return None;
        }
        let kill = request.command == Command::Kill;
        self.queue.push_back(request);
        kill.then_some(End::Killed)
    }

    /// Does the first command of the queue.
    fn work(&mut self) -> Option<End> {
        let mut request = self.queue.pop_front()?;
        if let Some(work) = request.work.take() {
            match admit(self.state(), &[], &request.command) {
                Err(denied) => drop(request.reply.send(Err(denied.into()))),
                Ok(()) => self.begin(*work, request.reply),
            }
            return None;
        }
        // What waited before it may have failed.
        let answer = match admit(self.state(), &[], &request.command) {
            Err(denied) => Err(denied.into()),
            Ok(()) => self.command(request.command),
        };
        match answer {
            Ok(After::Ends(end)) => {
                // Answered when the end has come.
                self.queue.push_front(request);
                return Some(end);
            }
            Ok(After::Goes(answer)) => drop(request.reply.send(Ok(answer))),
            Err(refused) => drop(request.reply.send(Err(refused))),
        }
        None
    }

    fn command(&mut self, command: Command) -> Result<After, Refused> {
        match command {
            Command::Pause => {
                // One that never ran stands still already.
                if self.begun {
                    self.vm.pause()?;
                }
                self.enter(State::Paused);
            }
            Command::Resume => {
                self.resume()?;
                self.enter(State::Running);
            }
            // A guest that never ran, or was about to begin anew, has nothing to put in order.
            Command::Stop { .. } if !self.begun || self.reset_waits => {
                return Ok(After::Ends(End::PoweredOff));
            }
            Command::Stop { grace } => {
                if let Some(migration) = &self.migration {
                    migration.cancel.cancel();
                }
                if self.state() == State::Paused {
                    self.resume()?;
                    self.enter(State::Running);
                }
                self.stop(grace)?;
            }
            Command::Kill => return Ok(After::Ends(End::Killed)),
            Command::Reset => {
                if let Err(error) = self.reset() {
                    return Ok(After::Ends(End::Failed(error)));
                }
            }
            Command::Reboot { within } => {
                self.vm.power_button()?;
                self.reboot_until = Instant::now().checked_add(within);
            }
            // They come with more, and are begun by that.
            Command::Migrate | Command::Snapshot | Command::Attach | Command::Detach => {
                return Err(Denied::NotMigrating.into());
            }
            Command::CancelMigration => return self.cancel_migration(),
            Command::TakeBack => return self.take_back(),
            Command::Balloon { bytes } => self.vm.balloon(bytes)?,
            Command::Stats => return Ok(After::Goes(Answer::Stats(self.vm.stats().into()))),
        }
        Ok(After::Goes(Answer::Done))
    }

    /// Asks the guest to power off, and kills it when it does not.
    fn stop(&mut self, grace: Duration) -> nacelle_vmm::Result<()> {
        self.vm.power_button()?;
        let asked = Instant::now().checked_add(grace);
        self.deadline = [self.deadline, asked].into_iter().flatten().min();
        self.enter(State::Stopping);
        Ok(())
    }

    fn resume(&mut self) -> nacelle_vmm::Result<()> {
        self.status.send_modify(|status| status.disk_error = None);
        if !self.begun {
            self.vm.start()?;
            self.begun = true;
            Ok(())
        } else if self.reset_waits {
            self.reset()
        } else {
            self.vm.resume()
        }
    }
}

/// What a command leaves behind.
enum After {
    Goes(Answer),
    Ends(End),
}

#[cfg(test)]
mod tests;
