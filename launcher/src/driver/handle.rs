//! The way to a machine's thread.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use nacelle_vmm::vcpu::profile::Profile;
use tokio::sync::{oneshot, watch};

use super::moving::{Moving, Saving, Work};
use super::{Answer, Message, Plug, Refused, Request, Status};
use crate::admit::{Command, Denied, State};
use crate::migrate::Plan;
use crate::upgrade::Heir;

/// The way to a machine, for any number of tasks.
#[derive(Clone)]
pub struct Driver {
    pub(super) mailbox: Sender<Message>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) moving: watch::Receiver<Option<Moving>>,
    /// What the guest is shown of the processor, for as long as there is a machine.
    pub profile: Arc<Profile>,
}

impl Driver {
    /// Has `command` done; returns when it is.
    ///
    /// # Errors
    /// When it is not taken, or fails.
    pub async fn ask(&self, command: Command) -> Result<Answer, Refused> {
        self.send(command, None).await
    }

    /// Has the machine move as `plan` says; returns when it has.
    ///
    /// # Errors
    /// When it does not; then it goes on here.
    pub async fn migrate(&self, plan: Plan) -> Result<Answer, Refused> {
        self.send(Command::Migrate, Some(Work::Move(plan))).await
    }

    /// Has another program go on with the machine; returns when it does.
    ///
    /// # Errors
    /// When it does not; then it goes on here.
    pub async fn hand_over(&self, heir: Heir) -> Result<Answer, Refused> {
        self.send(Command::Migrate, Some(Work::HandOver(heir))).await
    }

    /// Has a snapshot of the machine written; returns when it is.
    ///
    /// # Errors
    /// When it is not; the machine goes on.
    pub async fn snapshot(&self, saving: Saving) -> Result<Answer, Refused> {
        self.send(Command::Snapshot, Some(Work::Save(saving))).await
    }

    /// Has a disk plugged in; returns when the guest has been told of it.
    ///
    /// # Errors
    /// When it is not.
    pub async fn attach(&self, plug: Plug) -> Result<Answer, Refused> {
        self.send(Command::Attach, Some(Work::Attach(plug))).await
    }

    /// Has the guest asked to let go of disk `name`; [`Status::plugged`] says when it has.
    ///
    /// # Errors
    /// When no such disk was plugged in, or it cannot be asked.
    pub async fn detach(&self, name: String) -> Result<Answer, Refused> {
        self.send(Command::Detach, Some(Work::Detach(name))).await
    }

    async fn send(&self, command: Command, work: Option<Work>) -> Result<Answer, Refused> {
        let (reply, answer) = oneshot::channel();
        let work = work.map(Box::new);
        let request = Request { command, work, reply };
        let _ = self.mailbox.send(Message::Request(request));
        // Whoever ends the machine drops the commands that wait.
        answer.await.unwrap_or(Err(Refused::Denied(Denied::Ended)))
    }

    /// What the machine is doing. Never waits for it.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Hears of each change of what it is doing.
    pub fn changes(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// How far the machine's migration is, where one is under way.
    pub fn moving(&self) -> Option<Moving> {
        self.moving.borrow().clone()
    }

    /// Returns when the machine has ended.
    pub async fn ended(&self) {
        let mut status = self.status.clone();
        // An error says that the thread is gone, which is an end too.
        let _ = status.wait_for(|status| status.state == State::Ended).await;
    }
}
