//! The thread of a vCPU: waits for commands at rest, runs the guest otherwise.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use super::kick::Stop;
use super::throttle::Share;
use super::{Buses, Command};
use crate::hypervisor::{Exit, Vcpu};
use crate::power::Power;
use crate::{Error, Result, VmEvent};

pub(super) struct Context {
    pub index: u8,
    pub vcpu: Box<dyn Vcpu>,
    pub buses: Buses,
    pub power: Arc<Power>,
    pub commands: Receiver<Command>,
    pub stop: Stop,
    pub share: Share,
}

/// What ended a run of the guest.
enum Ended {
    /// Look at the commands.
    Kicked,
    /// The guest cannot or must not go on until it is told to.
    Event(VmEvent),
    /// The guest asked for a reset or the end with its last write, and the owner has been told.
    Asked,
}

pub(super) fn thread(mut context: Context) {
    context.stop.arm(context.vcpu.immediate_exit_byte());
    let mut running = false;
    let mut pause = None;
    loop {
        // Cleared before the look at the commands: a kick that comes later ends the run that follows.
        context.vcpu.set_immediate_exit(false);
        let command = match running {
            true => match context.next(pause.take()) {
                Ok(command) => command,
                Err(_) => break,
            },
            false => match context.commands.recv() {
                Ok(command) => Some(command),
                Err(_) => break,
            },
        };
        match command {
            Some(Command::Run) => {
                running = true;
                context.vcpu.resumed();
            }
            Some(Command::Pause(reply)) => {
                running = false;
                context.settle();
                let _ = reply.send(());
            }
            Some(Command::Save(reply)) => {
                let _ = reply.send(context.vcpu.save());
            }
            Some(Command::Restore(state, reply)) => {
                let _ = reply.send(context.vcpu.restore(&state));
            }
            None => match context.run() {
                Ended::Kicked => pause = context.share.pause(),
                Ended::Asked => {
                    running = false;
                    context.settle();
                }
                Ended::Event(event) => {
                    running = false;
                    context.settle();
                    context.power.ask(event);
                }
            },
        }
    }
    context.stop.disarm();
}

impl Context {
    /// The next command, if there is one; for as long as `pause` the guest waits for it.
    fn next(&self, pause: Option<Duration>) -> std::result::Result<Option<Command>, TryRecvError> {
        let Some(pause) = pause else {
            return match self.commands.try_recv() {
                Err(TryRecvError::Empty) => Ok(None),
                command => command.map(Some),
            };
        };
        match self.commands.recv_timeout(pause) {
            Ok(command) => Ok(Some(command)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(TryRecvError::Disconnected),
        }
    }

    /// Runs the guest until a kick or until it cannot go on.
    fn run(&mut self) -> Ended {
        loop {
            match self.step() {
                Ok(None) => {}
                Ok(Some(ended)) => return ended,
                Err(error) => {
                    return Ended::Event(VmEvent::VcpuFailed {
                        vcpu: self.index,
                        error,
                    });
                }
            }
        }
    }

    fn step(&mut self) -> Result<Option<Ended>> {
        let ended = match self.vcpu.run()? {
            Exit::PortRead(port, data) => {
                self.buses.ports.read(u64::from(port), data);
                None
            }
            Exit::PortWrite(port, data) => {
                self.buses.ports.write(u64::from(port), data);
                self.power.asked().then_some(Ended::Asked)
            }
            Exit::MemoryRead(address, data) => {
                self.buses.memory.read(address, data);
                None
            }
            Exit::MemoryWrite(address, data) => {
                self.buses.memory.write(address, data);
                None
            }
            Exit::Again => None,
            Exit::Interrupted => Some(Ended::Kicked),
            Exit::Reset => Some(Ended::Event(VmEvent::Reset)),
            Exit::Shutdown => Some(Ended::Event(VmEvent::Shutdown)),
            Exit::Failed => {
                let reason = self.vcpu.explain();
                return Err(Error::Vcpu {
                    vcpu: self.index,
                    reason,
                });
            }
        };
        Ok(ended)
    }

    /// Completes what is pending: an access that the bus answered is only done with the next run.
    fn settle(&mut self) {
        self.vcpu.set_immediate_exit(true);
        while let Ok(exit) = self.vcpu.run() {
            match exit {
                Exit::Interrupted => break,
                // A string instruction may ask for its next element while the last one is completed.
                Exit::PortRead(port, data) => {
                    self.buses.ports.read(u64::from(port), data);
                }
                Exit::PortWrite(port, data) => {
                    self.buses.ports.write(u64::from(port), data);
                }
                Exit::MemoryRead(address, data) => {
                    self.buses.memory.read(address, data);
                }
                Exit::MemoryWrite(address, data) => {
                    self.buses.memory.write(address, data);
                }
                _ => break,
            }
        }
    }
}
