//! Virtual processors: one thread each, which owns the hypervisor's vCPU and is told what to do.

pub mod cpuid;
pub mod features;
mod kick;
pub mod profile;
mod run;
pub mod setup;
pub mod state;
pub(crate) mod throttle;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use nacelle_devices::bus::Bus;

use self::kick::{Kick, Kicker};
use self::state::VcpuState;
use self::throttle::Share;
use crate::hypervisor::Vcpu;
use crate::power::Power;
use crate::sandbox::{Role, Sandbox};
use crate::{Error, Result};

/// What a vCPU's thread is told.
enum Command {
    /// Run the guest.
    Run,
    /// Come to rest with nothing pending, then answer.
    Pause(Sender<()>),
    /// Give the whole state. At rest only.
    Save(Sender<Result<VcpuState>>),
    /// Take up a state. At rest only.
    Restore(Box<VcpuState>, Sender<Result<()>>),
}

/// Where a vCPU's accesses go.
#[derive(Clone)]
pub(crate) struct Buses {
    /// Ports.
    pub ports: Arc<Bus>,
    /// Memory that is not RAM.
    pub memory: Arc<Bus>,
}

/// A vCPU and its thread. Dropping it ends both.
pub(crate) struct VcpuHandle {
    index: u8,
    commands: Option<Sender<Command>>,
    kick: Kick,
}

impl VcpuHandle {
    /// Starts the thread of vCPU `index`, at rest, confined by `sandbox`.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn spawn(
        index: u8,
        vcpu: Box<dyn Vcpu>,
        buses: Buses,
        power: Arc<Power>,
        share: Share,
        sandbox: Sandbox,
    ) -> Result<Self> {
        let (commands, receiver) = channel();
        let kick = Kick::spawn(&format!("vcpu{index}"), move |stop| {
            if let Err(error) = sandbox.enter(Role::Vcpu) {
                return log::error!("vCPU {index} does not start: {error}");
            }
            run::thread(run::Context {
                index,
                vcpu,
                buses,
                power,
                commands: receiver,
                stop,
                share,
            });
        })?;
        Ok(VcpuHandle {
            index,
            commands: Some(commands),
            kick,
        })
    }

    /// Kicks the thread for others.
    pub fn kicker(&self) -> Kicker {
        self.kick.kicker()
    }

    fn send(&self, command: Command) -> Result<()> {
        let sent = self
            .commands
            .as_ref()
            .is_some_and(|commands| commands.send(command).is_ok());
        if !sent {
            return Err(Error::ThreadEnded(format!("vCPU {}", self.index)));
        }
        self.kick.now();
        Ok(())
    }

    fn answer<T>(&self, answer: &Receiver<T>) -> Result<T> {
        answer
            .recv()
            .map_err(|_| Error::ThreadEnded(format!("vCPU {}", self.index)))
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// When the thread has ended.
    pub fn run(&self) -> Result<()> {
        self.send(Command::Run)
    }

    /// Asks the vCPU to come to rest; what comes back is ready when it has.
    ///
    /// # Errors
    /// When the thread has ended.
    pub fn pause(&self) -> Result<Receiver<()>> {
        let (reply, answer) = channel();
        self.send(Command::Pause(reply))?;
        Ok(answer)
    }

    /// Waits for what [`VcpuHandle::pause`] gave.
    ///
    /// # Errors
    /// When the thread has ended.
    pub fn wait(&self, paused: &Receiver<()>) -> Result<()> {
        self.answer(paused)
    }

    /// The whole state. Only right at rest.
    ///
    /// # Errors
    /// When the hypervisor does not give it.
    pub fn save(&self) -> Result<VcpuState> {
        let (reply, answer) = channel();
        self.send(Command::Save(reply))?;
        self.answer(&answer)?
    }

    /// Takes up a state. Only right at rest.
    ///
    /// # Errors
    /// When the hypervisor refuses it.
    pub fn restore(&self, state: VcpuState) -> Result<()> {
        let (reply, answer) = channel();
        self.send(Command::Restore(Box::new(state), reply))?;
        self.answer(&answer)?
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        // Without its commands a thread ends; the kick makes it look.
        self.commands = None;
        self.kick.now();
        self.kick.join();
    }
}
