//! What a conversation with the agent sees of the machine: its resets and its end, and whether the guest runs.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::port::Stop;
use super::{Asked, Refused};
use crate::admit::State;
use crate::driver::Status;

/// What the machine does, as far as it matters to a conversation.
pub(super) struct Machine {
    status: watch::Receiver<Status>,
    resets: u32,
}

impl Machine {
    pub fn new(status: watch::Receiver<Status>) -> Machine {
        let resets = status.borrow().resets;
        Machine { status, resets }
    }

    pub fn state(&self) -> State {
        self.status.borrow().state
    }

    /// The guest's processors run.
    pub fn runs(&self) -> bool {
        match self.state() {
            State::Running | State::Stopping | State::Migrating | State::Saving => true,
            State::Paused | State::HandedOver | State::Ended => false,
        }
    }

    /// Returns when something has changed that a conversation outlasts.
    pub async fn changed(&mut self) -> Result<(), Stop> {
        self.status.changed().await.map_err(|_| Stop::Ended)?;
        let status = self.status.borrow_and_update();
        let resets = std::mem::replace(&mut self.resets, status.resets);
        match status.state {
            State::Ended => Err(Stop::Ended),
            _ if resets != status.resets => Err(Stop::Reset),
            _ => Ok(()),
        }
    }

    /// Does `work`, unless the machine is reset or ends meanwhile, or the guest has run for `patience`.
    pub async fn race<T>(
        &mut self,
        patience: Duration,
        work: impl Future<Output = Result<T, Stop>>,
    ) -> Result<T, Stop> {
        tokio::pin!(work);
        let mut left = patience;
        loop {
            let (runs, since) = (self.runs(), Instant::now());
            tokio::select! {
                biased;
                changed = self.changed() => changed?,
                done = &mut work => return done,
                () = sleep(left), if runs => return Err(Stop::Silent),
            }
            if runs {
                left = left.saturating_sub(since.elapsed());
            }
        }
    }
}

/// Does `work` as [`Machine::race`] does. Who wishes something meanwhile is told that there is no agent.
pub(super) async fn race_without(
    machine: &mut Machine,
    wishes: &mut mpsc::Receiver<Asked>,
    patience: Duration,
    work: impl Future<Output = Result<(), Stop>>,
) -> Result<(), Stop> {
    let refuse = async {
        while let Some(asked) = wishes.recv().await {
            let _ = asked.reply.send(Err(Refused::NotConnected));
        }
        pending::<Infallible>().await
    };
    let raced = machine.race(patience, work);
    tokio::select! {
        biased;
        raced = raced => raced,
        never = refuse => match never {},
    }
}
