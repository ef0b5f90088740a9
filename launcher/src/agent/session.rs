//! The conversation with the agent: one task, which alone reads and writes the port.
//!
//! ```text
//!           ┌──── silence: again, and longer; a reset: at once ────┐
//!           ▼                                                      │
//!   hello: a sync is answered ──► learn ──► idle ◄──► a poll, a wish, the thaw
//!           ▲                                                      │
//!           └──── nonsense: after a pause, in which nothing is read┘
//! ```
//! Every call is raced with the machine's resets, and its time runs while the guest does. A sync that nobody reads waits in
//! the port's socket for an agent that starts later.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::answers::{self, Declined, FreezeStatus, Said};
use super::commands::{self, Command};
use super::machine::{Machine, race_without};
use super::port::{Port, Stop};
use super::{Asked, Refused, UNFREEZE, Wish};
use crate::admit::{Denied, State};
use crate::driver::Status;

/// How often the agent is asked what changes often; every third time who is logged in, every sixth the rest.
const TICK: Duration = Duration::from_secs(10);
/// How long an agent has to answer a sync until it is sent another, at first and at most.
const HELLO: Duration = Duration::from_secs(10);
const LONGEST_HELLO: Duration = Duration::from_secs(60);
/// How long an agent that talks nonsense is left alone, at first and at most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often it is asked whether a command has ended.
const EXEC_LOOK: Duration = Duration::from_millis(100);
/// When a thaw that was refused is tried again.
const THAW_AGAIN: Duration = Duration::from_secs(10);

/// File systems that are frozen, and shall stay so.
#[derive(Clone, Copy, Debug)]
struct Held {
    until: Option<Instant>,
}

impl Held {
    fn of(timeout: Option<Duration>) -> Held {
        Held {
            until: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
        }
    }
}

/// The task's state.
pub(super) struct Session {
    machine: Machine,
    port: Port,
    said: watch::Sender<Said>,
    wishes: mpsc::Receiver<Asked>,
    /// It outlasts a conversation.
    held: Option<Held>,
    /// Of the last sync.
    id: u32,
}

impl Session {
    pub fn new(
        stream: UnixStream,
        machine: watch::Receiver<Status>,
        said: watch::Sender<Said>,
        wishes: mpsc::Receiver<Asked>,
    ) -> Session {
        Session {
            machine: Machine::new(machine),
            port: Port::new(stream),
            said,
            wishes,
            held: None,
            id: 0,
        }
    }

    /// Talks until the machine has ended.
    pub async fn run(mut self) {
        let (mut hello, mut pause) = (HELLO, PAUSE);
        loop {
            let begun = Instant::now();
            let Err(stop) = self.converse(hello).await;
            let was_connected = self.said.send_replace(Said::default()).connected;
            self.port.forget();
            if was_connected {
                hello = HELLO;
                log::debug!("the guest agent is not connected any more");
            }
            // One that is in order at first and then never is no better.
            if begun.elapsed() > LONGEST_PAUSE {
                pause = PAUSE;
            }
            match stop {
                Stop::Ended => return,
                Stop::Reset => {
                    self.held = None;
                    hello = HELLO;
                }
                Stop::Silent => hello = (hello * 2).min(LONGEST_HELLO),
                Stop::Nonsense(reason) => {
                    log::debug!("the guest agent talks nonsense: {reason}");
                    let rest = race_without(&mut self.machine, &mut self.wishes, pause, pending());
                    match rest.await {
                        Err(Stop::Ended) => return,
                        Err(Stop::Reset) => self.held = None,
                        _ => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn converse(&mut self, hello: Duration) -> Result<Infallible, Stop> {
        self.id = self.id.wrapping_add(1);
        let sync = self.port.sync(self.id);
        race_without(&mut self.machine, &mut self.wishes, hello, sync).await?;
        self.learn().await?;
        let version = self.said.borrow().guest_agent_version.clone();
        log::debug!("guest agent {version} is connected");
        self.learn_more().await?;
        self.idle().await
    }

    /// Asks `command`. It may be declined.
    async fn call<T: DeserializeOwned>(&mut self, command: &Command<T>) -> Result<Result<T, Declined>, Stop> {
        self.call_with(command, Value::Null).await
    }

    async fn call_with<T: DeserializeOwned>(
        &mut self,
        command: &Command<T>,
        arguments: Value,
    ) -> Result<Result<T, Declined>, Stop> {
        let line = command.line(arguments);
        let exchange = self.port.exchange(&line, command.limit);
        let answer = self.machine.race(command.patience, exchange).await?;
        let answer = answers::read(&answer)?;
        if let Err(Declined(reason)) = &answer {
            log::debug!("the guest agent declines {}: {reason}", command.name);
        }
        Ok(answer)
    }

    /// Asks `command` and has `tell` note what is said.
    async fn ask<T: DeserializeOwned>(
        &mut self,
        command: &Command<T>,
        tell: impl FnOnce(&mut Said, T),
    ) -> Result<(), Stop> {
        if let Ok(answer) = self.call(command).await? {
            self.tell(|said| tell(said, answer));
        }
        Ok(())
    }

    fn tell(&self, tell: impl FnOnce(&mut Said)) {
        self.said.send_if_modified(|said| {
            let before = said.clone();
            tell(said);
            *said != before
        });
    }

    /// What is told of an agent first, all at once.
    async fn learn(&mut self) -> Result<(), Stop> {
        self.ask(&commands::INFO, |said, info| {
            said.guest_agent_version = info.version;
            said.supported_commands = info.supported_commands;
        })
        .await?;
        self.freeze_status().await?;
        if !self.frozen() {
            self.ask(&commands::OS, |said, os| said.os = os).await?;
            self.interfaces().await?;
        }
        self.tell(|said| said.connected = true);
        Ok(())
    }

    async fn learn_more(&mut self) -> Result<(), Stop> {
        if self.frozen() {
            return Ok(());
        }
        self.ask(&commands::HOST_NAME, |said, name| {
            said.hostname = Some(name.host_name)
        })
        .await?;
        self.ask(&commands::TIMEZONE, |said, zone| {
            said.timezone = Some(zone.to_string())
        })
        .await?;
        self.users().await?;
        self.ask(&commands::FILESYSTEMS, |said, disks| said.fs_info.disks = disks)
            .await
    }

    async fn interfaces(&mut self) -> Result<(), Stop> {
        self.ask(&commands::INTERFACES, |said, interfaces| {
            said.interfaces = interfaces
        })
        .await
    }

    async fn users(&mut self) -> Result<(), Stop> {
        self.ask(&commands::USERS, |said, users| said.user_list = users)
            .await
    }

    fn frozen(&self) -> bool {
        self.said.borrow().fs_freeze_status == Some(FreezeStatus::Frozen)
    }

    /// Asks whether file systems are frozen. Those that are, and of which nothing is known here, another process has frozen:
    /// they are not left so for ever.
    async fn freeze_status(&mut self) -> Result<(), Stop> {
        self.ask(&commands::FREEZE_STATUS, |said, status| {
            said.fs_freeze_status = Some(status)
        })
        .await?;
        if self.frozen() {
            self.held.get_or_insert_with(|| Held::of(Some(UNFREEZE)));
        } else {
            self.held = None;
        }
        Ok(())
    }

    /// Waits for what is next, and does it.
    async fn idle(&mut self) -> Result<Infallible, Stop> {
        let mut ticks = 0u64;
        let mut next = Instant::now() + TICK;
        let mut stops = false;
        loop {
            // A guest that is to power off must be able to write.
            let stopped = std::mem::replace(&mut stops, self.machine.state() == State::Stopping);
            if let (true, false, Some(held)) = (stops, stopped, &mut self.held) {
                held.until = Some(Instant::now());
            }
            let runs = self.machine.runs();
            let thaw = self.held.and_then(|held| held.until);
            tokio::select! {
                biased;
                changed = self.machine.changed() => changed?,
                Some(asked) = self.wishes.recv() => self.fulfil(asked).await?,
                () = sleep_until(thaw.unwrap_or(next)), if runs && thaw.is_some() => self.thaw_in_time().await?,
                () = sleep_until(next), if runs => {
                    ticks += 1;
                    self.poll(ticks).await?;
                    next = Instant::now() + TICK;
                }
            }
        }
    }

    /// Asks what is due at this tick. A frozen guest is asked nothing else.
    async fn poll(&mut self, ticks: u64) -> Result<(), Stop> {
        let was_frozen = self.frozen();
        self.freeze_status().await?;
        if self.frozen() {
            return self.call(&commands::PING).await.map(drop);
        }
        self.interfaces().await?;
        if was_frozen || ticks.is_multiple_of(6) {
            self.ask(&commands::OS, |said, os| said.os = os).await?;
            self.learn_more().await?;
        } else if ticks.is_multiple_of(3) {
            self.users().await?;
        }
        Ok(())
    }

    /// Does what is wished, and says how that went.
    async fn fulfil(&mut self, asked: Asked) -> Result<(), Stop> {
        // Who has waited too long for it may have done something else instead.
        if asked.reply.is_closed() {
            return Ok(());
        }
        let reboots = matches!(asked.wish, Wish::Reboot);
        let (command, done) = match asked.wish {
            Wish::Freeze(timeout) => (commands::FREEZE.name, self.freeze(timeout).await),
            Wish::Unfreeze => (commands::THAW.name, self.thaw().await),
            Wish::Reboot => (commands::REBOOT.name, self.reboot().await),
            Wish::Authorize { user, keys } => {
                // Keys that are not named any more are not valid any more.
                let arguments = json!({ "username": user, "keys": keys, "reset": true });
                let done = self.call_with(&commands::AUTHORIZE, arguments).await;
                (commands::AUTHORIZE.name, done.map(|done| done.map(drop)))
            }
            Wish::Ping => {
                let done = self.call(&commands::PING).await;
                (commands::PING.name, done.map(|done| done.map(drop)))
            }
            Wish::Exec(command, time) => (commands::EXEC.name, self.exec(&command, time).await),
            Wish::SetPassword { user, password } => {
                let password = BASE64_STANDARD.encode(password);
                let arguments = json!({ "username": user, "password": password, "crypted": false });
                let done = self.call_with(&commands::SET_PASSWORD, arguments).await;
                (commands::SET_PASSWORD.name, done.map(|done| done.map(drop)))
            }
        };
        let (answer, goes_on) = match done {
            Ok(Ok(())) => (Ok(()), Ok(())),
            Ok(Err(Declined(reason))) => {
                let reason = reason.to_string();
                (Err(Refused::Declined { command, reason }), Ok(()))
            }
            // That is what was wished.
            Err(stop @ (Stop::Reset | Stop::Ended)) if reboots => (Ok(()), Err(stop)),
            Err(stop) => {
                let refused = match stop {
                    Stop::Reset => Refused::Reset,
                    Stop::Ended => Denied::Ended.into(),
                    Stop::Silent => Refused::Silent(command),
                    Stop::Nonsense(_) => Refused::Nonsense(command),
                };
                (Err(refused), Err(stop))
            }
        };
        let _ = asked.reply.send(answer);
        goes_on
    }

    async fn freeze(&mut self, timeout: Option<Duration>) -> Result<Result<(), Declined>, Stop> {
        // An agent that has died since it was asked last would read the command when it is started again.
        self.freeze_status().await?;
        if !self.frozen() {
            // Whatever is answered, they may be frozen from now on.
            self.held = Some(Held::of(timeout));
            if let Err(declined) = self.call(&commands::FREEZE).await? {
                self.freeze_status().await?;
                return Ok(Err(declined));
            }
            self.tell(|said| said.fs_freeze_status = Some(FreezeStatus::Frozen));
        }
        self.held = Some(Held::of(timeout));
        Ok(Ok(()))
    }

    /// Has a command run, and waits for its end.
    async fn exec(&mut self, command: &[String], time: Duration) -> Result<Result<(), Declined>, Stop> {
        let Some((path, arguments)) = command.split_first() else {
            return Ok(Err(Declined("there is no command".into())));
        };
        let asked = json!({ "path": path, "arg": arguments, "capture-output": false });
        let begun = match self.call_with(&commands::EXEC, asked).await? {
            Ok(begun) => begun,
            Err(declined) => return Ok(Err(declined)),
        };
        let until = Instant::now() + time;
        loop {
            let status = json!({ "pid": begun.pid });
            match self.call_with(&commands::EXEC_STATUS, status).await? {
                Ok(ended) if ended.exited => return Ok(ended.well()),
                Ok(_) if Instant::now() >= until => {
                    return Ok(Err(Declined("the command has not ended in time".into())));
                }
                Ok(_) => {}
                Err(declined) => return Ok(Err(declined)),
            }
            let pause = async {
                sleep(EXEC_LOOK).await;
                Ok(())
            };
            self.machine.race(time + EXEC_LOOK, pause).await?;
        }
    }

    async fn thaw(&mut self) -> Result<Result<(), Declined>, Stop> {
        let thawed = self.call(&commands::THAW).await?;
        if thawed.is_ok() {
            self.held = None;
            self.tell(|said| said.fs_freeze_status = Some(FreezeStatus::Thawed));
        }
        Ok(thawed.map(drop))
    }

    /// Thaws what was frozen for a time that is over.
    async fn thaw_in_time(&mut self) -> Result<(), Stop> {
        log::warn!("the guest's file systems are thawed: they were frozen for long enough");
        if let Err(Declined(reason)) = self.thaw().await? {
            log::warn!("the guest's file systems stay frozen: {reason}");
            self.held = Some(Held::of(Some(THAW_AGAIN)));
        }
        Ok(())
    }

    /// Returns when the agent declines, or is silent: a reset is the end of this conversation.
    async fn reboot(&mut self) -> Result<Result<(), Declined>, Stop> {
        // As before a freeze: a machine must not be rebooted twice.
        if let Err(declined) = self.call(&commands::PING).await? {
            return Ok(Err(declined));
        }
        // To shut down, it must be able to write.
        if self.frozen()
            && let Err(declined) = self.thaw().await?
        {
            return Ok(Err(declined));
        }
        let line = commands::REBOOT.line(json!({ "mode": "reboot" }));
        let Session { machine, port, .. } = self;
        let asked = async {
            let answer = port.exchange(&line, commands::REBOOT.limit).await?;
            match answers::read::<serde::de::IgnoredAny>(&answer)? {
                Err(declined) => Ok(declined),
                // It will be done.
                Ok(_) => pending().await,
            }
        };
        let declined = machine.race(commands::REBOOT.patience, asked).await?;
        Ok(Err(declined))
    }
}
