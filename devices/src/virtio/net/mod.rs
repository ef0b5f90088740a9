//! Network device (virtio 1.2, §5.1): frames between the guest and a [`NetBackend`], a queue pair for each.
//!
//! Where to look: `nic` is what the driver sees of it and what it saves, `rx` and `tx` move frames, `pair`
//! reacts to events, `ctrl` parses the driver's commands.

pub(crate) mod ctrl;
pub mod features;
pub(crate) mod nic;
mod pair;
pub(crate) mod rx;
pub(crate) mod tx;

use std::sync::Arc;

use self::ctrl::ControlQueue;
use self::nic::{DEVICE_ID, NAME, Nic};
pub use self::nic::{Direction, NetCounters};
use self::pair::{Pair, Watch};
use self::rx::Receiver;
use self::tx::Transmitter;
use super::{Activation, ActiveQueue, VirtioDevice};
use crate::net::{Frame, HEADER_LEN, NetBackend};
use crate::ratelimit::{RateLimiter, Throttle};
use crate::state::DeviceState;
use crate::worker::{Placed, Worker};
use crate::{Error, Result};

/// The longest frame with its header (§5.1.6.3.1).
pub const MAX_FRAME: usize = 65562;
/// Size of the receive and transmit queues where nothing else is asked for.
pub const QUEUE_SIZE: u16 = 256;

/// What a network device is made of.
pub struct NetConfig {
    /// The network: one connection for each queue pair.
    pub backends: Vec<Box<dyn NetBackend>>,
    /// The station's address.
    pub mac: [u8; 6],
    /// Largest payload of a frame, to be told the driver.
    pub mtu: Option<u16>,
    /// Size of each receive and transmit queue, a power of two.
    pub queue_size: u16,
    /// Holds all that comes from the network to its limits.
    pub rx_limiter: Option<RateLimiter>,
    /// Holds all that goes to the network to its limits.
    pub tx_limiter: Option<RateLimiter>,
}

/// The network device.
pub struct Net {
    nic: Arc<Nic>,
    workers: Vec<Worker>,
    rx_limiter: Option<RateLimiter>,
    tx_limiter: Option<RateLimiter>,
    running: Vec<Placed<Pair>>,
}

impl Net {
    /// A device whose queue pairs are served by `workers`, in turn.
    ///
    /// # Errors
    /// When there is no worker, no backend or too many, the address is no station's, or the MTU is one that no
    /// driver may use.
    pub fn new(config: NetConfig, workers: Vec<Worker>) -> Result<(Net, NetControl)> {
        if workers.is_empty() {
            return Err(Error::Config {
                device: NAME,
                reason: "no I/O thread".to_owned(),
            });
        }
        let backends = config.backends.into_iter().map(Arc::from).collect();
        let nic = Nic::new(backends, config.mac, config.mtu, config.queue_size, 0)?;
        let nic = Arc::new(nic);
        let control = NetControl::new(Arc::clone(&nic), None);
        let net = Net {
            nic,
            workers,
            rx_limiter: config.rx_limiter,
            tx_limiter: config.tx_limiter,
            running: Vec::new(),
        };
        Ok((net, control))
    }

    fn place(&mut self, activation: Activation) -> Result<()> {
        let Activation {
            features,
            memory,
            interrupt,
            queues,
        } = activation;
        let control_index = self.nic.control_queue(features);
        let mut queues: Vec<Option<ActiveQueue>> = queues.into_iter().map(Some).collect();
        let mut take = |index: u16| {
            queues
                .iter_mut()
                .find(|queue| queue.as_ref().is_some_and(|queue| queue.index == index))?
                .take()
        };
        let mut control = take(control_index).map(|queue| ControlQueue {
            queue,
            nic: Arc::clone(&self.nic),
            features,
        });
        let workers = self.workers.iter().cycle();
        for ((index, backend), worker) in self.nic.backends().iter().enumerate().zip(workers) {
            let throttle = |limiter: &Option<RateLimiter>| limiter.clone().map(Throttle::new).transpose();
            let rx = match take(2 * index as u16) {
                Some(queue) => Some(Receiver::new(queue, features, throttle(&self.rx_limiter)?)),
                None => None,
            };
            let tx = match take(2 * index as u16 + 1) {
                Some(queue) => Some(Transmitter::new(queue, features, throttle(&self.tx_limiter)?)),
                None => None,
            };
            let pair = Pair {
                index,
                nic: Arc::clone(&self.nic),
                backend: Arc::clone(backend),
                memory: memory.clone(),
                interrupt: Arc::clone(&interrupt),
                rx,
                tx,
                control: control.take(),
                watch: Watch::default(),
            };
            self.running.push(worker.add(pair)?);
        }
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> u64 {
        self.nic.features()
    }

    fn queue_sizes(&self) -> &[u16] {
        self.nic.queue_sizes()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.nic.read_config(offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.nic.generation()
    }

    fn start(&mut self, activation: Activation) -> Result<()> {
        let started = self
            .nic
            .start(activation.features, Arc::clone(&activation.interrupt))
            .and_then(|()| self.place(activation));
        if started.is_err() {
            self.stop()?;
        }
        started
    }

    fn stop(&mut self) -> Result<Vec<ActiveQueue>> {
        self.nic.stop();
        let mut queues = Vec::new();
        for placed in self.running.drain(..) {
            queues.extend(placed.remove()?.into_queues());
        }
        Ok(queues)
    }

    fn reset(&mut self) {
        self.nic.reset();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(self.nic.save())
    }

    fn restore(&mut self, state: DeviceState) -> Result<()> {
        match state {
            DeviceState::Net(state) => self.nic.restore(state),
            other => Err(other.refused_by(NAME)),
        }
    }
}

/// What the monitor does to a network device while a guest uses it.
#[derive(Clone)]
pub struct NetControl {
    nic: Arc<Nic>,
    /// The tap whose counters are the device's: the kernel moves the frames.
    tap: Option<String>,
}

impl NetControl {
    pub(crate) fn new(nic: Arc<Nic>, tap: Option<String>) -> Self {
        NetControl { nic, tap }
    }

    /// Takes the link up or down; the driver is told, and no frame passes while it is down.
    ///
    /// # Errors
    /// When the kernel moves the frames and does not follow.
    pub fn set_link(&self, up: bool) -> Result<()> {
        let what = if up {
            "take the link up"
        } else {
            "take the link down"
        };
        self.nic.set_link(up).map_err(Error::io(what))
    }

    /// Whether the link is up.
    pub fn link_up(&self) -> bool {
        self.nic.link_up()
    }

    /// The guest's address now; its driver may have changed it.
    pub fn mac(&self) -> [u8; 6] {
        self.nic.mac()
    }

    /// What went through: since the device was made, or with vhost since the tap was.
    ///
    /// # Errors
    /// With vhost, when sysfs does not tell (it shows the network namespace that it was mounted in).
    pub fn counters(&self) -> Result<NetCounters> {
        match &self.tap {
            None => Ok(self.nic.counters()),
            Some(tap) => tap_counters(tap).map_err(Error::io(format!("read the counters of {tap}"))),
        }
    }

    /// Makes the guest known at its new place, after it has moved: the switches hear its address from us, and
    /// a driver that can is asked to tell its neighbours (§5.1.6.5.4).
    ///
    /// # Errors
    /// When the network does not take the frame; the driver has been asked all the same.
    pub fn announce(&self) -> Result<()> {
        self.nic.ask_to_announce();
        let mut header = [0; HEADER_LEN];
        let mut frame = Frame::new(&mut header);
        let mut rarp = reverse_arp_request(self.nic.mac());
        frame.own(&mut rarp);
        match self.nic.backends().first() {
            Some(backend) => backend
                .send(&frame)
                .map_err(Error::io("announce the guest on its network")),
            None => Ok(()),
        }
    }
}

/// What the kernel counted at a tap: its ends are the other way round.
fn tap_counters(tap: &str) -> std::io::Result<NetCounters> {
    let read = |name: &str| -> std::io::Result<u64> {
        let text = std::fs::read_to_string(format!("/sys/class/net/{tap}/statistics/{name}"))?;
        text.trim().parse().map_err(std::io::Error::other)
    };
    let direction = |at_tap: &str| -> std::io::Result<Direction> {
        Ok(Direction {
            packets: read(&format!("{at_tap}_packets"))?,
            bytes: read(&format!("{at_tap}_bytes"))?,
            dropped: read(&format!("{at_tap}_dropped"))?,
        })
    };
    Ok(NetCounters {
        rx: direction("tx")?,
        tx: direction("rx")?,
    })
}

/// A frame from `mac` to everybody that asks for its own address (RFC 903); it teaches switches where it is.
fn reverse_arp_request(mac: [u8; 6]) -> [u8; 60] {
    const ETHERNET_IPV4_REQUEST_REVERSE: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 3];
    let parts = [
        &[0xff; 6][..],
        &mac,
        &[0x80, 0x35],
        &ETHERNET_IPV4_REQUEST_REVERSE,
        &mac,
        &[0; 4],
        &mac,
    ];
    let mut frame = [0; 60];
    for (to, byte) in frame.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *byte;
    }
    frame
}

#[cfg(test)]
pub(crate) mod testbed;
#[cfg(test)]
mod tests;
