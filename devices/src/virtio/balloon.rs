//! Memory balloon (virtio 1.2, §5.5): the guest gives pages away when the host asks, and reports free ones.
//!
//! What the guest gives goes back to the host at once, in runs as long as they come. Behind huge pages the
//! host can take back whole ones only: those that the guest gave in every part (`pages.rs`), or that
//! it reported whole. A page that a device of the host has pinned (VFIO) must not be given: whoever plans a
//! machine with such a device leaves the balloon out.

mod discard;
mod pages;
mod queues;
mod statistics;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use self::discard::discard;
use self::pages::{Given, PAGE};
use self::queues::BalloonQueues;
pub use self::statistics::BalloonStatistics;
use super::{Activation, ActiveQueue, VirtioDevice, read_config_bytes};
use crate::state::{BalloonState, DeviceState};
use crate::worker::{Placed, Worker};
use crate::{Error, Result};

const DEVICE_ID: u32 = 5;
const NAME: &str = "balloon";
const STATS_VQ: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const PAGE_POISON: u64 = 1 << 4;
const PAGE_REPORTING: u64 = 1 << 5;
/// Inflate, deflate, statistics, free page hints (not offered), free page reporting (§5.5.2).
const QUEUE_SIZES: &[u16] = &[128, 128, 16, 128, 128];

/// What a balloon can do.
#[derive(Clone, Copy, Debug, Default)]
pub struct BalloonConfig {
    /// The guest may take pages back when it runs out of memory, without asking.
    pub deflate_on_oom: bool,
    /// The guest reports pages that it does not use, and they go back to the host.
    pub free_page_reporting: bool,
}

/// The memory balloon.
pub struct Balloon {
    config: BalloonConfig,
    shared: Arc<Shared>,
    worker: Worker,
    running: Option<Placed<BalloonQueues>>,
    /// While stopped.
    given: Given,
}

/// What the host's side, the configuration space and the queues share: single values, each for itself.
struct Shared {
    num_pages: AtomicU32,
    actual: AtomicU32,
    poison_val: AtomicU32,
    /// Zero: statistics are not asked for.
    interval_ms: AtomicU64,
    /// The driver has not been told of `num_pages` yet.
    resized: AtomicBool,
    statistics: Mutex<BalloonStatistics>,
    /// Wakes the queues' handler after a change; keeps the signal while there is none.
    wake: EventFd,
}

impl Shared {
    fn statistics(&self) -> MutexGuard<'_, BalloonStatistics> {
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) -> Result<()> {
        self.wake.write(1).map_err(Error::io("wake the balloon"))
    }
}

/// The host's side of a balloon, for any thread.
#[derive(Clone)]
pub struct BalloonControl {
    shared: Arc<Shared>,
}

impl BalloonControl {
    /// Asks the guest to have `bytes` of its memory in the balloon, in pages of 4 KiB rounded down. The guest
    /// follows as it can: [`BalloonControl::actual_bytes`] says how far it is.
    ///
    /// # Errors
    /// When it is more than a balloon can hold, 16 TiB, or the I/O thread cannot be told.
    pub fn set_target_bytes(&self, bytes: u64) -> Result<()> {
        let num_pages = u32::try_from(bytes / PAGE).map_err(|_| Error::Io {
            what: format!("put {bytes} bytes into the balloon"),
            source: std::io::ErrorKind::InvalidInput.into(),
        })?;
        self.shared.num_pages.store(num_pages, Ordering::SeqCst);
        self.shared.resized.store(true, Ordering::SeqCst);
        self.shared.wake()
    }

    /// Bytes that the guest is asked to have in the balloon.
    pub fn target_bytes(&self) -> u64 {
        u64::from(self.shared.num_pages.load(Ordering::SeqCst)) * PAGE
    }

    /// Bytes that the guest says are in the balloon.
    pub fn actual_bytes(&self) -> u64 {
        u64::from(self.shared.actual.load(Ordering::SeqCst)) * PAGE
    }

    /// What the guest last said about its memory.
    pub fn statistics(&self) -> BalloonStatistics {
        *self.shared.statistics()
    }

    /// Asks the guest for statistics this often, in whole milliseconds rounded up; zero for never.
    ///
    /// # Errors
    /// When the I/O thread cannot be told.
    pub fn set_interval(&self, interval: Duration) -> Result<()> {
        let ms = interval.as_nanos().div_ceil(1_000_000);
        // Longer than any machine runs is never, and more would not fit the kernel's timer.
        let ms = u64::try_from(ms).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
        self.shared.interval_ms.store(ms, Ordering::SeqCst);
        self.shared.wake()
    }
}

impl Balloon {
    /// An empty balloon whose queues are served by `worker`, and its host's side.
    ///
    /// # Errors
    /// When the host has no eventfd left.
    pub fn new(config: BalloonConfig, worker: Worker) -> Result<(Balloon, BalloonControl)> {
        let shared = Arc::new(Shared {
            num_pages: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            poison_val: AtomicU32::new(0),
            interval_ms: AtomicU64::new(0),
            resized: AtomicBool::new(false),
            statistics: Mutex::default(),
            wake: EventFd::new(EFD_NONBLOCK).map_err(Error::io("make an eventfd for the balloon"))?,
        });
        let control = BalloonControl {
            shared: Arc::clone(&shared),
        };
        let balloon = Balloon {
            config,
            shared,
            worker,
            running: None,
            given: Given::default(),
        };
        Ok((balloon, control))
    }

    /// `num_pages`, `actual`, `free_page_hint_cmd_id` (not offered), `poison_val` (§5.5.4).
    fn config_space(&self) -> [u32; 4] {
        let load = |field: &AtomicU32| field.load(Ordering::SeqCst);
        [
            load(&self.shared.num_pages),
            load(&self.shared.actual),
            0,
            load(&self.shared.poison_val),
        ]
    }
}

impl VirtioDevice for Balloon {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> u64 {
        let mut features = STATS_VQ;
        if self.config.deflate_on_oom {
            features |= DEFLATE_ON_OOM;
        }
        if self.config.free_page_reporting {
            // A guest that fills free pages must be able to say so, or it cannot report them.
            features |= PAGE_REPORTING | PAGE_POISON;
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space: Vec<u8> = self
            .config_space()
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        read_config_bytes(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (base, field) in [(4, &self.shared.actual), (12, &self.shared.poison_val)] {
            let mut bytes = field.load(Ordering::SeqCst).to_le_bytes();
            for (at, byte) in (0..).zip(data) {
                let at = offset.checked_add(at).and_then(|at| at.checked_sub(base));
                if let Some(to) = at.and_then(|at| bytes.get_mut(usize::try_from(at).ok()?)) {
                    *to = *byte;
                }
            }
            field.store(u32::from_le_bytes(bytes), Ordering::SeqCst);
        }
    }

    fn start(&mut self, activation: Activation) -> Result<()> {
        let given = std::mem::take(&mut self.given);
        let queues = BalloonQueues::new(activation, Arc::clone(&self.shared), given)?;
        self.running = Some(self.worker.add(queues)?);
        Ok(())
    }

    fn stop(&mut self) -> Result<Vec<ActiveQueue>> {
        let Some(running) = self.running.take() else {
            return Ok(Vec::new());
        };
        let (queues, given) = running.remove()?.stop();
        self.given = given;
        Ok(queues)
    }

    fn reset(&mut self) {
        self.shared.actual.store(0, Ordering::SeqCst);
        self.shared.poison_val.store(0, Ordering::SeqCst);
        *self.shared.statistics() = BalloonStatistics::default();
        self.given = Given::default();
    }

    fn save(&self) -> DeviceState {
        let [num_pages, actual, _, poison_val] = self.config_space();
        DeviceState::Balloon(BalloonState {
            num_pages,
            actual,
            poison_val,
        })
    }

    fn restore(&mut self, state: DeviceState) -> Result<()> {
        let DeviceState::Balloon(state) = state else {
            return Err(state.refused_by(self.name()));
        };
        self.shared.num_pages.store(state.num_pages, Ordering::SeqCst);
        self.shared.actual.store(state.actual, Ordering::SeqCst);
        self.shared.poison_val.store(state.poison_val, Ordering::SeqCst);
        // The driver may not have been told yet where it was saved; twice does no harm.
        self.shared.resized.store(true, Ordering::SeqCst);
        self.shared.wake()
    }
}

#[cfg(test)]
mod lab_tests;
#[cfg(test)]
mod tests;
