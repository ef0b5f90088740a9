//! The guest agent: a program in the guest that says what it is, and does what only it can do (qemu-guest-agent, on the
//! port `org.qemu.guest_agent.0`).
//!
//! [`Agent`] is the way to it, for any number of tasks. One task has the conversation (`session`, by lines of `port`); what is
//! asked there is in `commands`, what is made of the answers in `answers`.

mod answers;
mod commands;
mod machine;
mod port;
mod session;

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

pub use self::answers::{Address, Few, Filesystem, FreezeStatus, FsInfo, Interface, Os, Said, Text};
use self::session::Session;
use crate::admit::{Denied, admit_guest};
use crate::driver::{Driver, Status};

/// When frozen file systems are thawed, where nothing else is said.
pub const UNFREEZE: Duration = Duration::from_secs(300);
/// How long a command in the guest is waited for at most: nothing else is asked meanwhile.
const LONGEST_EXEC: Duration = Duration::from_secs(30);
/// Most wishes that wait.
const WISHES: usize = 4;

/// Why the agent did not do a thing.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is not for now.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// There is no agent, or it has not answered yet.
    #[error("the guest agent is not connected")]
    NotConnected,
    /// It answers no more.
    #[error("the guest agent did not answer {0} in time")]
    Silent(&'static str),
    /// It answers what is no answer.
    #[error("the guest agent answered {0} with nonsense")]
    Nonsense(&'static str),
    /// The guest began anew.
    #[error("the machine was reset before the guest agent had answered")]
    Reset,
    /// It does not do it.
    #[error("the guest agent refused {command}: {reason}")]
    Declined {
        /// What it was asked.
        command: &'static str,
        /// What it says.
        reason: String,
    },
}

/// What the agent is to do.
enum Wish {
    /// Freeze the file systems, and thaw them after this time.
    Freeze(Option<Duration>),
    Unfreeze,
    Reboot,
    /// Let these keys in, and no others.
    Authorize {
        user: String,
        keys: Vec<String>,
    },
    SetPassword {
        user: String,
        password: Vec<u8>,
    },
    Ping,
    /// Run this, for at most this time.
    Exec(Vec<String>, Duration),
}

/// A wish, and where its answer goes.
struct Asked {
    wish: Wish,
    reply: oneshot::Sender<Result<(), Refused>>,
}

/// The way to a machine's guest agent.
#[derive(Clone)]
pub struct Agent {
    said: watch::Receiver<Said>,
    wishes: mpsc::Sender<Asked>,
    machine: watch::Receiver<Status>,
}

impl Agent {
    /// Talks to the agent at the other end of `port`, where the machine has such a port. It must run on a tokio runtime.
    ///
    /// # Errors
    /// When the port cannot be used.
    pub fn start(port: Option<UnixStream>, driver: &Driver) -> io::Result<Agent> {
        Agent::of(port, driver.changes())
    }

    fn of(port: Option<UnixStream>, machine: watch::Receiver<Status>) -> io::Result<Agent> {
        let (tell, said) = watch::channel(Said::default());
        let (wishes, wished) = mpsc::channel(WISHES);
        if let Some(port) = port {
            port.set_nonblocking(true)?;
            let port = tokio::net::UnixStream::from_std(port)?;
            tokio::spawn(Session::new(port, machine.clone(), tell, wished).run());
        }
        Ok(Agent {
            said,
            wishes,
            machine,
        })
    }

    /// What it said of the guest.
    pub fn said(&self) -> Said {
        self.said.borrow().clone()
    }

    /// Hears of each answer that says something new.
    pub fn changes(&self) -> watch::Receiver<Said> {
        self.said.clone()
    }

    /// Has the guest's file systems frozen: all is written, and nothing more is until they are thawed, after `timeout` at
    /// the latest where there is one. Where they are frozen already, that time counts from now on.
    ///
    /// # Errors
    /// When they are not.
    pub async fn freeze(&self, timeout: Option<Duration>) -> Result<(), Refused> {
        admit_guest(self.machine.borrow().state)?;
        self.ask(Wish::Freeze(timeout)).await
    }

    /// Has them thawed; those that are not frozen stay so.
    ///
    /// # Errors
    /// When they are not.
    pub async fn unfreeze(&self) -> Result<(), Refused> {
        // A guest that is moved or asked to power off must not be kept from that.
        match admit_guest(self.machine.borrow().state) {
            Ok(()) | Err(Denied::Stopping | Denied::Migrating | Denied::Saving) => {}
            Err(denied) => return Err(denied.into()),
        }
        self.ask(Wish::Unfreeze).await
    }

    /// Has the guest shut down in its own way and begin anew; returns when it does.
    ///
    /// # Errors
    /// When it does not.
    pub async fn reboot(&self) -> Result<(), Refused> {
        admit_guest(self.machine.borrow().state)?;
        self.ask(Wish::Reboot).await
    }

    /// Lets whoever has one of `keys` log in as `user` by SSH, and nobody who had another.
    ///
    /// # Errors
    /// When the guest does not.
    pub async fn authorize(&self, user: &str, keys: &[String]) -> Result<(), Refused> {
        admit_guest(self.machine.borrow().state)?;
        let (user, keys) = (user.to_owned(), keys.to_vec());
        self.ask(Wish::Authorize { user, keys }).await
    }

    /// Sets the password of `user`.
    ///
    /// # Errors
    /// When the guest does not.
    pub async fn set_password(&self, user: &str, password: &[u8]) -> Result<(), Refused> {
        admit_guest(self.machine.borrow().state)?;
        let (user, password) = (user.to_owned(), password.to_vec());
        self.ask(Wish::SetPassword { user, password }).await
    }

    /// Asks whether it is there.
    ///
    /// # Errors
    /// When it is not.
    pub async fn ping(&self) -> Result<(), Refused> {
        admit_guest(self.machine.borrow().state)?;
        self.ask(Wish::Ping).await
    }

    /// Has a command run in the guest; returns when it has ended with status 0.
    ///
    /// # Errors
    /// When it ends otherwise, or not within `time`; it is left to itself then.
    pub async fn exec(&self, command: Vec<String>, time: Duration) -> Result<(), Refused> {
        admit_guest(self.machine.borrow().state)?;
        self.ask(Wish::Exec(command, time.min(LONGEST_EXEC))).await
    }

    async fn ask(&self, wish: Wish) -> Result<(), Refused> {
        if !self.said.borrow().connected {
            return Err(Refused::NotConnected);
        }
        let (reply, answer) = oneshot::channel();
        // The task ends with the machine.
        let ended = Refused::Denied(Denied::Ended);
        match self.wishes.send(Asked { wish, reply }).await {
            Ok(()) => answer.await.unwrap_or(Err(ended)),
            Err(_) => Err(ended),
        }
    }
}

#[cfg(test)]
mod tests;
