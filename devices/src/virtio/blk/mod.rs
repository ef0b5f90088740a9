//! Block device (virtio 1.2, §5.2): the guest's disks.
//!
//! ```text
//!   driver ─▶ queue ─▶ request::parse ─▶ rate limit ─▶ DiskQueue::submit        worker.rs, on an I/O thread
//!   driver ◀─ used ring, interrupt ◀─ status byte ◀─ DiskQueue::reap
//! ```
//! What the disk fails is answered or held as the [`ErrorPolicy`] says (failure.rs).
//!
//! Several queues share the disk, the limits and the counters; each has its own disk queue and may be on a
//! worker of its own.

mod counters;
mod failure;
pub(crate) mod request;
mod worker;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use counters::{BlkCounters, OpCounters};
pub use failure::ErrorPolicy;
use failure::Held;
use virtio_bindings::virtio_blk::*;
use worker::{BlkQueue, Engine};

use super::{Activation, ActiveQueue, VirtioDevice, read_config_bytes};
use crate::disk::{Disk, SECTOR};
use crate::irq::{Interrupt, Vector};
use crate::ratelimit::{Limits, RateLimiter, Throttle};
use crate::state::{BlkState, DeviceState};
use crate::worker::{Placed, Worker};
use crate::{Error, Result};

const DEVICE_ID: u32 = 2;
const NAME: &str = "blk";
/// Requests of one queue in flight, and descriptors in one request.
const QUEUE_SIZE: u16 = 256;
/// Header and status take a descriptor each.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// SEG_MAX of these are less than what the kernel moves at once (2 GiB), so that no valid request is cut.
const SIZE_MAX: u32 = 4 << 20;
/// Sectors of one discard: 1 GiB, which a file system forgets in a moment.
const MAX_DISCARD: u32 = 1 << 21;
/// Sectors of one write-zeroes: 32 MiB, since some storage has to write them.
const MAX_WRITE_ZEROES: u32 = 1 << 16;
/// Offset of `writeback` in the configuration space (§5.2.4).
const WRITEBACK: u64 = 32;

/// When a write is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// When the host has it; a flush brings it to stable storage. A driver that cannot flush gets
    /// write-through (§5.2.6.2).
    #[default]
    WriteBack,
    /// When stable storage has it.
    WriteThrough,
}

/// Tells the owner of a device that its disk failed, and why.
pub type TellFailure = Box<dyn Fn(io::Error) + Send + Sync>;

/// What a block device is made of.
pub struct BlkConfig {
    /// The disk behind it.
    pub disk: Arc<dyn Disk>,
    /// Serial number that the guest sees: at most 20 bytes of ASCII.
    pub serial: String,
    /// Number of queues, 1 to 64.
    pub queues: u16,
    /// The guest may not write; a read-only disk implies it.
    pub read_only: bool,
    /// When a write is answered, until the driver chooses.
    pub cache: Cache,
    /// Logical and physical block size that the guest sees, in bytes; powers of two, the logical one 512 to
    /// 4096. `None` for 512, as images are usually made for, and what the storage has.
    pub block_size: Option<(u32, u32)>,
    /// What the guest discards at once, in bytes, a power of two of at least 512; `None` for the physical block size.
    pub discard_granularity: Option<u32>,
    /// What the guest may use of the disk.
    pub limits: Limits,
    /// What happens when the disk fails.
    pub on_error: ErrorPolicy,
    /// Called on an I/O thread when the disk fails and `on_error` is to stop; then not again before the device is
    /// started again. What is held meanwhile is tried again at that start.
    pub tell_failure: TellFailure,
}

impl BlkConfig {
    /// One queue, write-back, without limits; the driver is told what fails, and nobody else.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        BlkConfig {
            disk,
            serial: String::new(),
            queues: 1,
            read_only: false,
            cache: Cache::default(),
            block_size: None,
            discard_granularity: None,
            limits: Limits::default(),
            on_error: ErrorPolicy::default(),
            tell_failure: Box::new(|_| {}),
        }
    }
}

/// What the device, its queues and its control share.
struct Shared {
    disk: Arc<dyn Disk>,
    serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    read_only: bool,
    on_error: ErrorPolicy,
    tell_failure: TellFailure,
    /// The owner was told of a failure since the device was started.
    told: AtomicBool,
    /// The cache mode that holds while the driver can choose it (§5.2.5).
    writeback: AtomicBool,
    capacity: AtomicU64,
    generation: AtomicU32,
    counters: Arc<BlkCounters>,
    config_interrupt: Mutex<ConfigInterrupt>,
}

/// How the driver learns that the configuration changed.
#[derive(Default)]
struct ConfigInterrupt {
    running: Option<Arc<dyn Interrupt>>,
    /// It changed while the device was stopped.
    owed: bool,
}

impl Shared {
    /// What the device allows a driver that accepted `features`.
    fn rules(&self, features: u64) -> request::Rules {
        let flushes = features & (1 << VIRTIO_BLK_F_FLUSH) != 0;
        request::Rules {
            sectors: self.capacity.load(Ordering::Acquire),
            read_only: self.read_only,
            durable: !flushes || !self.writeback.load(Ordering::Acquire),
            max_descriptors: usize::from(QUEUE_SIZE),
            max_discard: MAX_DISCARD,
            max_write_zeroes: MAX_WRITE_ZEROES,
        }
    }

    /// Tells the owner that the disk failed, once until the device is started again.
    fn failed(&self, error: io::Error) {
        if !self.told.swap(true, Ordering::AcqRel) {
            (self.tell_failure)(error);
        }
    }

    fn config_interrupt(&self) -> MutexGuard<'_, ConfigInterrupt> {
        self.config_interrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reaches into a block device while it runs.
#[derive(Clone)]
pub struct BlkControl {
    shared: Arc<Shared>,
    limiter: RateLimiter,
}

impl BlkControl {
    /// Makes the disk `len` bytes long, or with `None` looks how long it is now, and tells the driver. Gives
    /// the length.
    ///
    /// # Errors
    /// When the disk cannot have that length.
    pub fn resize(&self, len: Option<u64>) -> Result<u64> {
        // Held throughout: two resizes at once must not publish each other's length last.
        let mut interrupt = self.shared.config_interrupt();
        let len = self.shared.disk.resize(len)?;
        self.shared.capacity.store(len / SECTOR, Ordering::Release);
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        match &interrupt.running {
            Some(running) => running
                .trigger(Vector::Config)
                .map_err(Error::io("tell the driver of a disk's new size"))?,
            None => interrupt.owed = true,
        }
        Ok(len)
    }

    /// Sets other limits; a queue that waits notices within a tenth of a second.
    pub fn set_limits(&self, limits: Limits) {
        self.limiter.set(limits);
    }

    /// What the device has done.
    pub fn counters(&self) -> Arc<BlkCounters> {
        Arc::clone(&self.shared.counters)
    }

    /// The disk behind the device.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.shared.disk
    }
}

/// The block device.
pub struct Blk {
    shared: Arc<Shared>,
    features: u64,
    /// Logical and physical, in bytes.
    block_size: (u32, u32),
    /// What is discarded at once, in bytes.
    discard: u32,
    default_writeback: bool,
    queue_sizes: Vec<u16>,
    workers: Vec<Worker>,
    /// Of each queue that is stopped.
    engines: Vec<Option<Engine>>,
    running: Vec<(u16, Placed<BlkQueue>)>,
}

impl Blk {
    /// A device whose queues are spread over `workers`, and the handle that reaches it while it runs.
    ///
    /// # Errors
    /// When the configuration is not possible, or the kernel has no ring, eventfd or timer left.
    pub fn new(config: BlkConfig, workers: Vec<Worker>) -> Result<(Blk, BlkControl)> {
        let BlkConfig {
            disk,
            serial,
            queues,
            read_only,
            cache,
            block_size,
            discard_granularity,
            limits,
            on_error,
            tell_failure,
        } = config;
        let refused = |reason: String| Error::DiskRefused {
            disk: disk.name().into(),
            reason,
        };
        if !(1..=64).contains(&queues) || workers.is_empty() {
            let count = workers.len();
            return Err(refused(format!(
                "{queues} queues on {count} workers, not 1 to 64 on one or more"
            )));
        }
        let block_size = block_size.unwrap_or((SECTOR as u32, disk.topology().physical));
        let (logical, physical) = block_size;
        if !logical.is_power_of_two()
            || !physical.is_power_of_two()
            || !(512..=4096).contains(&logical)
            || physical < logical
        {
            return Err(refused(format!(
                "blocks of {logical} and physically {physical} bytes, not powers of two from 512 to 4096"
            )));
        }
        let discard = discard_granularity.unwrap_or(physical);
        if !discard.is_power_of_two() || discard < logical {
            return Err(refused(format!(
                "a discard granularity of {discard} bytes, not a power of two of at least a block's {logical}"
            )));
        }
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        match id.get_mut(..serial.len()) {
            Some(room) if serial.is_ascii() => room.copy_from_slice(serial.as_bytes()),
            _ => {
                return Err(refused(format!(
                    "serial number {serial:?} is not at most 20 ASCII characters"
                )));
            }
        }
        let limiter = RateLimiter::new(limits);
        let mut engines = Vec::new();
        for _ in 0..queues {
            engines.push(Some(Engine {
                disk: disk.open_queue(QUEUE_SIZE)?,
                throttle: Throttle::new(limiter.clone())?,
                held: Held::default(),
            }));
        }
        let read_only = read_only || disk.read_only();
        let writeback = cache == Cache::WriteBack;
        let shared = Arc::new(Shared {
            serial: id,
            read_only,
            on_error,
            tell_failure,
            told: AtomicBool::new(false),
            writeback: AtomicBool::new(writeback),
            capacity: AtomicU64::new(disk.len() / SECTOR),
            generation: AtomicU32::new(0),
            counters: Arc::default(),
            config_interrupt: Mutex::default(),
            disk,
        });
        let control = BlkControl {
            shared: Arc::clone(&shared),
            limiter,
        };
        let blk = Blk {
            shared,
            features: offered(queues, read_only),
            block_size,
            discard,
            default_writeback: writeback,
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            workers,
            engines,
            running: Vec::new(),
        };
        Ok((blk, control))
    }

    fn config_space(&self) -> Vec<u8> {
        let topology = self.shared.disk.topology();
        let (block, physical) = self.block_size;
        let blocks = |bytes: u32| bytes / block;
        let mut space = Vec::with_capacity(60);
        space.extend(self.shared.capacity.load(Ordering::Acquire).to_le_bytes());
        space.extend(SIZE_MAX.to_le_bytes());
        space.extend(SEG_MAX.to_le_bytes());
        // Cylinders, heads, sectors: not offered.
        space.extend([0; 4]);
        space.extend(block.to_le_bytes());
        space.push((physical / block).trailing_zeros() as u8);
        space.push(u8::try_from(blocks(topology.alignment)).unwrap_or(0));
        space.extend(u16::try_from(blocks(topology.minimum)).unwrap_or(0).to_le_bytes());
        space.extend(blocks(topology.optimal).to_le_bytes());
        space.push(u8::from(self.shared.writeback.load(Ordering::Acquire)));
        space.push(0);
        space.extend((self.queue_sizes.len() as u16).to_le_bytes());
        if !self.shared.read_only {
            let granularity = self.discard / SECTOR as u32;
            // One segment each: a request is one operation on the disk.
            for value in [MAX_DISCARD, 1, granularity, MAX_WRITE_ZEROES, 1] {
                space.extend(value.to_le_bytes());
            }
            // Unmapping may be asked for.
            space.extend([1, 0, 0, 0]);
        }
        space
    }

    fn start_queue(&mut self, queue: ActiveQueue, activation: &Activation) -> Result<()> {
        let index = queue.index;
        let worker = usize::from(index) % self.workers.len().max(1);
        let slot = self.engines.get_mut(usize::from(index));
        let (Some(engine), Some(worker)) = (slot.and_then(Option::take), self.workers.get(worker)) else {
            return Err(Error::Queue { device: NAME, index });
        };
        let handler = BlkQueue::new(
            queue,
            activation.memory.clone(),
            Arc::clone(&activation.interrupt),
            Arc::clone(&self.shared),
            activation.features,
            engine,
        );
        self.running.push((index, worker.add(handler)?));
        Ok(())
    }
}

/// What is offered (§5.2.3); each is served.
fn offered(queues: u16, read_only: bool) -> u64 {
    let mut bits = vec![
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_CONFIG_WCE,
    ];
    if read_only {
        bits.push(VIRTIO_BLK_F_RO);
    } else {
        bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
    }
    if queues > 1 {
        bits.push(VIRTIO_BLK_F_MQ);
    }
    bits.into_iter().fold(0, |features, bit| features | 1 << bit)
}

impl VirtioDevice for Blk {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config_space(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (WRITEBACK, &[mode]) = (offset, data) {
            self.shared.writeback.store(mode != 0, Ordering::Release);
        }
    }

    fn config_generation(&self) -> u32 {
        self.shared.generation.load(Ordering::Acquire)
    }

    fn start(&mut self, mut activation: Activation) -> Result<()> {
        self.shared.told.store(false, Ordering::Release);
        if activation.features & (1 << VIRTIO_BLK_F_FLUSH) == 0 {
            // A driver that cannot flush has write-through, and reads so (§5.2.5.2).
            self.shared.writeback.store(false, Ordering::Release);
        }
        for queue in std::mem::take(&mut activation.queues) {
            if let Err(error) = self.start_queue(queue, &activation) {
                // All or none: what runs already must not go on alone.
                if let Err(second) = self.stop() {
                    log::error!("blk: a queue did not stop: {second}");
                }
                return Err(error);
            }
        }
        let mut interrupt = self.shared.config_interrupt();
        if std::mem::take(&mut interrupt.owed)
            && let Err(error) = activation.interrupt.trigger(Vector::Config)
        {
            log::warn!("blk: the driver does not hear of the disk's new size: {error}");
        }
        interrupt.running = Some(activation.interrupt);
        Ok(())
    }

    fn stop(&mut self) -> Result<Vec<ActiveQueue>> {
        self.shared.config_interrupt().running = None;
        let mut queues = Vec::new();
        let mut handlers = Vec::new();
        // All stop taking in before the first is waited for.
        for (index, placed) in self.running.drain(..) {
            handlers.push((index, placed.remove()?));
        }
        for (index, handler) in handlers {
            let (queue, engine) = handler.finish()?;
            queues.push(queue);
            if let Some(slot) = self.engines.get_mut(usize::from(index)) {
                *slot = Some(engine);
            }
        }
        Ok(queues)
    }

    fn reset(&mut self) {
        self.shared
            .writeback
            .store(self.default_writeback, Ordering::Release);
        for engine in self.engines.iter_mut().flatten() {
            engine.held = Held::default();
        }
    }

    fn save(&self) -> DeviceState {
        let held = |engine: &Option<Engine>| engine.as_ref().map(|engine| engine.held.heads());
        let held: Vec<_> = self
            .engines
            .iter()
            .map(|engine| held(engine).unwrap_or_default())
            .collect();
        DeviceState::Blk(BlkState {
            writeback: self.shared.writeback.load(Ordering::Acquire),
            held: match held.iter().all(Vec::is_empty) {
                true => Vec::new(),
                false => held,
            },
        })
    }

    fn restore(&mut self, state: DeviceState) -> Result<()> {
        match state {
            DeviceState::Blk(BlkState { writeback, held }) => {
                if held.len() > self.engines.len()
                    || held.iter().any(|heads| heads.len() > usize::from(QUEUE_SIZE))
                {
                    return Err(Error::State {
                        device: NAME,
                        reason: "it holds more requests than this device can have in flight".into(),
                    });
                }
                self.shared.writeback.store(writeback, Ordering::Release);
                for (engine, heads) in self.engines.iter_mut().flatten().zip(held) {
                    engine.held = heads.into();
                }
                Ok(())
            }
            other => Err(other.refused_by(NAME)),
        }
    }
}

#[cfg(test)]
mod tests;
