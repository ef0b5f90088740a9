//! Console with several ports (virtio 1.2, §5.3): terminals, and channels with a name for programs in the
//! guest, such as its agent. Each port ends in a socket on the host.
//!
//! A side that does not read stops the other: we take no chain that the host has no room for, and read
//! nothing from the host that the guest has no buffer for, or no program. When the host hangs up, the guest
//! is told that the port is closed, and what it still sends is dropped.

pub(crate) mod control;
mod port;
mod queues;

use std::collections::HashSet;
use std::os::unix::net::UnixStream;

use self::port::Port;
use self::queues::ConsoleQueues;
use super::{Activation, ActiveQueue, VirtioDevice, read_config_bytes};
use crate::state::{ConsoleState, DeviceState};
use crate::worker::{Placed, Worker};
use crate::{Error, Result};

const DEVICE_ID: u32 = 3;
const NAME: &str = "console";
const MULTIPORT: u64 = 1 << 1;
const QUEUE_SIZE: u16 = 64;
/// Ports of one console; more than any machine has, and few enough to look at all of them.
const MAX_PORTS: usize = 32;
/// A name must fit the buffers that drivers offer for control messages.
const MAX_NAME: usize = 256;

/// A console's ports.
pub struct ConsoleConfig {
    /// In the order in which the guest numbers them; a driver that knows one port only has the first.
    pub ports: Vec<PortConfig>,
}

/// One port of a console.
pub struct PortConfig {
    /// Name for programs in the guest, as in `/dev/virtio-ports/NAME`; empty for none.
    pub name: String,
    /// The guest makes a terminal of it, as in `/dev/hvc0`.
    pub console: bool,
    /// The host's side: what is written to the other end reaches the guest. Closing the other end, or
    /// shutting it down for writing, closes the port.
    pub host: UnixStream,
}

/// The console.
pub struct Console {
    queue_sizes: Vec<u16>,
    worker: Worker,
    running: Option<Placed<ConsoleQueues>>,
    /// While stopped.
    ports: Vec<Port>,
}

impl Console {
    /// A console whose queues are served by `worker`.
    ///
    /// # Errors
    /// When there is no port, there are too many, a name is too long or given twice, or a socket cannot be
    /// made not to block.
    pub fn new(config: ConsoleConfig, worker: Worker) -> Result<Console> {
        let refuse = |reason: String| Error::Config { device: NAME, reason };
        if config.ports.is_empty() || config.ports.len() > MAX_PORTS {
            let count = config.ports.len();
            return Err(refuse(format!("{count} ports instead of 1 to {MAX_PORTS}")));
        }
        let mut names = HashSet::new();
        let mut ports = Vec::new();
        for PortConfig { name, console, host } in config.ports {
            if name.len() > MAX_NAME || name.contains('\0') {
                return Err(refuse(format!("the name {name:?} of a port is no name")));
            }
            if !name.is_empty() && !names.insert(name.clone()) {
                return Err(refuse(format!("two ports have the name {name}")));
            }
            host.set_nonblocking(true)
                .map_err(Error::io(format!("set the socket of port {name:?} not to block")))?;
            ports.push(Port::new(name, console, host));
        }
        Ok(Console {
            queue_sizes: vec![QUEUE_SIZE; 2 * (ports.len() + 1)],
            worker,
            running: None,
            ports,
        })
    }
}

impl VirtioDevice for Console {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> u64 {
        MULTIPORT
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// `cols`, `rows` and `emerg_wr` belong to features that are not offered; `max_nr_ports` (§5.3.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let max_nr_ports = (self.queue_sizes.len() / 2 - 1) as u32;
        let mut space = [0; 12];
        for (to, byte) in space.iter_mut().skip(4).zip(max_nr_ports.to_le_bytes()) {
            *to = byte;
        }
        read_config_bytes(&space, offset, data);
    }

    fn start(&mut self, activation: Activation) -> Result<()> {
        let multiport = activation.features & MULTIPORT != 0;
        let queues = ConsoleQueues::new(activation, multiport, std::mem::take(&mut self.ports));
        self.running = Some(self.worker.add(queues)?);
        Ok(())
    }

    fn stop(&mut self) -> Result<Vec<ActiveQueue>> {
        let Some(running) = self.running.take() else {
            return Ok(Vec::new());
        };
        let (queues, ports) = running.remove()?.stop();
        self.ports = ports;
        Ok(queues)
    }

    fn reset(&mut self) {
        for port in &mut self.ports {
            port.agreement.state = Default::default();
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Console(ConsoleState {
            ports: self.ports.iter().map(|port| port.agreement.state).collect(),
        })
    }

    fn restore(&mut self, state: DeviceState) -> Result<()> {
        let DeviceState::Console(state) = state else {
            return Err(state.refused_by(self.name()));
        };
        if state.ports.len() != self.ports.len() {
            return Err(Error::State {
                device: self.name(),
                reason: format!("{} ports instead of {}", state.ports.len(), self.ports.len()),
            });
        }
        for (port, saved) in self.ports.iter_mut().zip(state.ports) {
            port.agreement.state = saved;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
