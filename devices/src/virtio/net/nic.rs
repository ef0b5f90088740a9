//! What a network device is to its driver, whoever moves the frames: features, configuration space, link,
//! and what it saves. Workers and the monitor share it, so all of it is atomic.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ctrl::Command;
use super::features::{
    CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, CTRL_VQ, GUEST_ANNOUNCE, GUEST_OFFLOADS, HOST_OFFLOADS, MAC, MQ,
    MRG_RXBUF, MTU, STATUS, consistent_guest_offloads,
};
use crate::irq::{Interrupt, Vector};
use crate::net::NetBackend;
use crate::state::NetState;
use crate::virtio::read_config_bytes;
use crate::{Error, Result};

/// Device type (virtio 1.2, §5.1.1).
pub const DEVICE_ID: u32 = 1;
/// Short name for messages.
pub const NAME: &str = "net";
/// Queue pairs that a device may have (§5.1.4.1), the control queue's index being 16 bits wide as well.
pub const MAX_PAIRS: usize = 0x7fff;
/// Size of the control queue.
pub const CONTROL_QUEUE_SIZE: u16 = 64;

const STATUS_LINK_UP: u16 = 1;
const STATUS_ANNOUNCE: u16 = 2;

/// Frames and bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Direction {
    /// Frames that arrived where they were sent.
    pub packets: u64,
    /// Their bytes, without headers.
    pub bytes: u64,
    /// Frames thrown away: the link was down, too large, malformed, or refused by the network.
    pub dropped: u64,
}

/// What went through a network device since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// Network to guest.
    pub rx: Direction,
    /// Guest to network.
    pub tx: Direction,
}

/// The counters of one direction while frames pass.
#[derive(Debug, Default)]
pub struct Counter {
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Counter {
    /// Counts a frame of `bytes` that passed.
    pub fn count(&self, bytes: usize) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a frame that was thrown away.
    pub fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> Direction {
        Direction {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

/// What a data path that is not ours does when the link goes up or down.
pub type LinkChange = Box<dyn FnMut(bool) -> io::Result<()> + Send>;

/// The way to the driver for changes of the configuration. A change while the device stands still is told
/// when it starts.
#[derive(Default)]
struct Notice {
    interrupt: Option<Arc<dyn Interrupt>>,
    pending: bool,
}

/// The device's face.
pub struct Nic {
    backends: Vec<Arc<dyn NetBackend>>,
    features: u64,
    queue_sizes: Vec<u16>,
    mtu: Option<u16>,
    own_mac: u64,
    mac: AtomicU64,
    link_down: AtomicBool,
    announce: AtomicBool,
    generation: AtomicU32,
    driver_features: AtomicU64,
    /// Offloads that the driver chose with a command; what it negotiated where it chose none.
    chosen_offloads: Mutex<Option<u64>>,
    pairs: AtomicU16,
    notice: Mutex<Notice>,
    link_change: Mutex<Option<LinkChange>>,
    /// Network to guest.
    pub rx: Counter,
    /// Guest to network.
    pub tx: Counter,
}

/// A lock that another thread's panic left behind still holds a whole value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn mac_to_bits(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

fn bits_to_mac(bits: u64) -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = bits.to_le_bytes();
    [a, b, c, d, e, f]
}

/// A station's own address: not of a group and not zero.
pub(super) fn is_station(mac: [u8; 6]) -> bool {
    mac != [0; 6] && mac[0] & 1 == 0
}

impl Nic {
    /// The face of a device over `backends`, one for each queue pair. `lacks` are features that whoever moves
    /// the frames cannot serve.
    ///
    /// # Errors
    /// When there is no backend or too many, the address is no station's, or the MTU is one that no driver may
    /// use.
    pub fn new(
        backends: Vec<Arc<dyn NetBackend>>,
        mac: [u8; 6],
        mtu: Option<u16>,
        queue_size: u16,
        lacks: u64,
    ) -> Result<Nic> {
        let refuse = |reason: String| Error::Config { device: NAME, reason };
        if backends.is_empty() || backends.len() > MAX_PAIRS {
            return Err(refuse(format!("{} queue pairs", backends.len())));
        }
        if !is_station(mac) {
            return Err(refuse(format!("{mac:02x?} is not the address of a station")));
        }
        // §5.1.4.1
        if let Some(mtu) = mtu.filter(|mtu| *mtu < 68) {
            return Err(refuse(format!("the MTU {mtu} is below 68")));
        }
        let served = backends
            .iter()
            .fold(u64::MAX, |all, backend| all & backend.offloads());
        let mut features = MAC | STATUS | MRG_RXBUF | CTRL_VQ | CTRL_MAC_ADDR | GUEST_ANNOUNCE;
        features |= served & (GUEST_OFFLOADS | HOST_OFFLOADS);
        if features & GUEST_OFFLOADS != 0 {
            features |= CTRL_GUEST_OFFLOADS;
        }
        if mtu.is_some() {
            features |= MTU;
        }
        if backends.len() > 1 {
            features |= MQ;
        }
        let mut queue_sizes = vec![queue_size; 2 * backends.len()];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        // A driver that does not take MQ finds the control queue behind the first pair (§5.1.2).
        let own_mac = mac_to_bits(mac);
        Ok(Nic {
            backends,
            features: features & !lacks,
            queue_sizes,
            mtu,
            own_mac,
            mac: AtomicU64::new(own_mac),
            link_down: AtomicBool::new(false),
            announce: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            driver_features: AtomicU64::new(0),
            chosen_offloads: Mutex::new(None),
            pairs: AtomicU16::new(1),
            notice: Mutex::default(),
            link_change: Mutex::default(),
            rx: Counter::default(),
            tx: Counter::default(),
        })
    }

    /// Features offered.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Sizes of the queues: each pair's two, then the control queue.
    pub fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// The networks, one for each queue pair.
    pub fn backends(&self) -> &[Arc<dyn NetBackend>] {
        &self.backends
    }

    /// What went through.
    pub fn counters(&self) -> NetCounters {
        NetCounters {
            rx: self.rx.get(),
            tx: self.tx.get(),
        }
    }

    /// Index of the control queue for a driver with these features (§5.1.2).
    pub fn control_queue(&self, driver_features: u64) -> u16 {
        if driver_features & MQ != 0 {
            2 * self.backends.len() as u16
        } else {
            2
        }
    }

    /// Configuration space (§5.1.4).
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut status = 0;
        if !self.link_down.load(Ordering::Acquire) {
            status |= STATUS_LINK_UP;
        }
        if self.announce.load(Ordering::Acquire) {
            status |= STATUS_ANNOUNCE;
        }
        let mut space = self.mac().to_vec();
        space.extend(status.to_le_bytes());
        space.extend((self.backends.len() as u16).to_le_bytes());
        space.extend(self.mtu.unwrap_or(0).to_le_bytes());
        read_config_bytes(&space, offset, data);
    }

    /// Changes with the configuration space.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// The station's address.
    pub fn mac(&self) -> [u8; 6] {
        bits_to_mac(self.mac.load(Ordering::Acquire))
    }

    /// Whether frames pass.
    pub fn link_up(&self) -> bool {
        !self.link_down.load(Ordering::Acquire)
    }

    /// Whether frames to the guest go through this pair (§5.1.6.5.5).
    pub fn is_active(&self, pair: usize) -> bool {
        pair < usize::from(self.pairs.load(Ordering::Acquire))
    }

    /// What the driver negotiated, while the device runs.
    pub fn driver_features(&self) -> u64 {
        self.driver_features.load(Ordering::Acquire)
    }

    /// Prepares the networks for a driver with these features, which is then told of changes by `interrupt`.
    ///
    /// # Errors
    /// When a network refuses.
    pub fn start(&self, driver_features: u64, interrupt: Arc<dyn Interrupt>) -> Result<()> {
        self.driver_features.store(driver_features, Ordering::Release);
        let chosen = lock(&self.chosen_offloads).unwrap_or(driver_features);
        self.apply_offloads(chosen & driver_features)
            .map_err(Error::io("set the offloads of the network"))?;
        self.apply_pairs(self.pairs.load(Ordering::Acquire))
            .map_err(Error::io("choose the queues of the network"))?;
        let mut notice = lock(&self.notice);
        let pending = std::mem::take(&mut notice.pending) || self.announce.load(Ordering::Acquire);
        notice.interrupt = Some(interrupt);
        drop(notice);
        if pending {
            self.config_changed();
        }
        Ok(())
    }

    /// The device stands still; changes are told when it starts again.
    pub fn stop(&self) {
        lock(&self.notice).interrupt = None;
        *lock(&self.link_change) = None;
    }

    /// Lets `act` follow the link, now and until [`Nic::stop`].
    ///
    /// # Errors
    /// As `act`.
    pub fn on_link_change(&self, mut act: LinkChange) -> io::Result<()> {
        let mut link_change = lock(&self.link_change);
        act(self.link_up())?;
        *link_change = Some(act);
        Ok(())
    }

    /// Forgets the driver.
    pub fn reset(&self) {
        self.mac.store(self.own_mac, Ordering::Release);
        self.announce.store(false, Ordering::Release);
        self.driver_features.store(0, Ordering::Release);
        self.pairs.store(1, Ordering::Release);
        *lock(&self.chosen_offloads) = None;
        lock(&self.notice).pending = false;
    }

    /// What a restored device must know.
    pub fn save(&self) -> NetState {
        NetState {
            mac: Some(self.mac()),
            guest_offloads: *lock(&self.chosen_offloads),
            queue_pairs: self.pairs.load(Ordering::Acquire),
            announce: self.announce.load(Ordering::Acquire),
            link_down: self.link_down.load(Ordering::Acquire),
        }
    }

    /// Takes up a saved state.
    ///
    /// # Errors
    /// When it does not fit this device.
    pub fn restore(&self, state: NetState) -> Result<()> {
        let refuse = |reason: String| Error::State { device: NAME, reason };
        let mac = state.mac.unwrap_or_else(|| self.mac());
        if !is_station(mac) {
            return Err(refuse(format!("{mac:02x?} is not the address of a station")));
        }
        let pairs = state.queue_pairs.max(1);
        if usize::from(pairs) > self.backends.len() {
            return Err(refuse(format!(
                "{pairs} queue pairs in use instead of at most {}",
                self.backends.len()
            )));
        }
        let offloads = state.guest_offloads;
        if let Some(unknown) = offloads
            .map(|offloads| offloads & !self.features)
            .filter(|bits| *bits != 0)
        {
            return Err(refuse(format!("offloads {unknown:#x} that are not offered here")));
        }
        self.mac.store(mac_to_bits(mac), Ordering::Release);
        self.pairs.store(pairs, Ordering::Release);
        self.announce.store(state.announce, Ordering::Release);
        self.link_down.store(state.link_down, Ordering::Release);
        *lock(&self.chosen_offloads) = offloads;
        Ok(())
    }

    /// Does what the driver commands.
    ///
    /// # Errors
    /// When a network refuses.
    pub fn execute(&self, command: Command) -> io::Result<()> {
        match command {
            Command::SetMac(mac) => {
                self.mac.store(mac_to_bits(mac), Ordering::Release);
                self.generation.fetch_add(1, Ordering::AcqRel);
            }
            Command::AnnounceDone => {
                self.announce.store(false, Ordering::Release);
                self.generation.fetch_add(1, Ordering::AcqRel);
            }
            Command::SetPairs(pairs) => {
                self.apply_pairs(pairs)?;
                self.pairs.store(pairs, Ordering::Release);
            }
            Command::SetGuestOffloads(offloads) => {
                self.apply_offloads(offloads)?;
                *lock(&self.chosen_offloads) = Some(offloads);
            }
        }
        Ok(())
    }

    /// Takes the link up or down and tells the driver.
    ///
    /// # Errors
    /// When a data path that is not ours does not follow; the driver is told all the same.
    pub fn set_link(&self, up: bool) -> io::Result<()> {
        let mut link_change = lock(&self.link_change);
        if self.link_down.swap(!up, Ordering::AcqRel) != up {
            return Ok(());
        }
        let followed = link_change.as_mut().map_or(Ok(()), |act| act(up));
        drop(link_change);
        self.config_changed();
        followed
    }

    /// Asks the driver to announce the guest's addresses on the network (§5.1.6.5.4); `false` when it cannot.
    pub fn ask_to_announce(&self) -> bool {
        let can = self.driver_features() & GUEST_ANNOUNCE != 0;
        if can {
            self.announce.store(true, Ordering::Release);
            self.config_changed();
        }
        can
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        let mut notice = lock(&self.notice);
        match &notice.interrupt {
            Some(interrupt) => {
                if let Err(error) = interrupt.trigger(Vector::Config) {
                    log::warn!("{NAME}: the driver is not told of a new configuration: {error}");
                }
            }
            None => notice.pending = true,
        }
    }

    fn apply_offloads(&self, features: u64) -> io::Result<()> {
        let offloads = consistent_guest_offloads(features);
        for backend in &self.backends {
            backend.set_offloads(offloads)?;
        }
        Ok(())
    }

    fn apply_pairs(&self, pairs: u16) -> io::Result<()> {
        for (index, backend) in self.backends.iter().enumerate() {
            backend.set_active(index < usize::from(pairs))?;
        }
        Ok(())
    }
}
