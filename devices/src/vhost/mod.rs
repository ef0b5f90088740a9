//! Data paths in the kernel (Linux's vhost): it serves the rings, we are only asked to start and stop it.
//!
//! What the kernel writes to guest memory is not in our dirty bitmap. A live migration gives it a [`WriteLog`] and
//! adds what is in that to ours.

mod log;
pub mod net;
pub mod vsock;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhost::vhost_kern::VhostKernBackend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::Memory;
use crate::virtio::ActiveQueue;
use crate::{Error, Result};

pub use self::log::WriteLog;

/// The kernel is to note what it writes (`VHOST_F_LOG_ALL`).
const LOG_ALL: u64 = 1 << 26;
/// The same of a ring (`VHOST_VRING_F_LOG`).
const LOG_RING: u32 = 1;

/// A vhost device of the kernel that works on one map of guest memory.
pub(crate) struct Vhost {
    file: Arc<File>,
    features: u64,
    /// The rings as they were set up.
    rings: Vec<(usize, VringConfigData)>,
    /// Where the kernel notes what it writes: it holds the address.
    log: Option<Arc<WriteLog>>,
    /// The kernel holds addresses in this map, so it stays mapped.
    memory: Arc<Memory>,
}

/// Opens the vhost device at `path` and makes this process its owner.
///
/// # Errors
/// When it is not there or may not be used; the message says what to do.
pub(crate) fn open(path: &str, module: &str) -> Result<Arc<File>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| Error::Io {
            what: match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                    format!("open {path} (load its module: `modprobe {module}`; in a container, give it this device)")
                }
                Some(libc::EACCES | libc::EPERM) => format!("open {path} (let this user read and write it)"),
                _ => format!("open {path}"),
            },
            source,
        })?;
    let vhost = Vhost::of(Arc::new(file));
    vhost
        .set_owner()
        .map_err(io_error)
        .map_err(Error::io(format!("own {path}")))?;
    Ok(vhost.file)
}

/// The features of the open vhost device `file`.
pub(crate) fn features(file: &Arc<File>) -> io::Result<u64> {
    let vhost = Vhost::of(Arc::clone(file));
    vhost.get_features().map_err(io_error)
}

fn io_error(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::IoctlError(error) | vhost::Error::IOError(error) => error,
        other => io::Error::other(other),
    }
}

impl Vhost {
    fn of(file: Arc<File>) -> Vhost {
        Vhost {
            file,
            features: 0,
            rings: Vec::new(),
            log: None,
            memory: Arc::default(),
        }
    }

    /// Prepares the open device `file` for a driver with these features in this memory.
    pub(crate) fn new(file: Arc<File>, memory: Arc<Memory>, features: u64) -> io::Result<Vhost> {
        let mut vhost = Vhost::of(file);
        vhost.features = features;
        vhost.set_features(features).map_err(io_error)?;
        vhost.set_memory(memory)?;
        Ok(vhost)
    }

    /// Lets the kernel work on another map of guest memory, running or not.
    pub(crate) fn set_memory(&mut self, memory: Arc<Memory>) -> io::Result<()> {
        let mut regions = Vec::new();
        for region in memory.iter() {
            let start = region.start_addr();
            let address = memory.get_host_address(start).map_err(io::Error::other)?;
            regions.push(VhostUserMemoryRegionInfo {
                guest_phys_addr: start.raw_value(),
                memory_size: region.len(),
                userspace_addr: address as u64,
                ..Default::default()
            });
        }
        self.set_mem_table(&regions).map_err(io_error)?;
        self.memory = memory;
        Ok(())
    }

    /// Gives the kernel a queue as its ring `ring`, at the queue's position. It signals `call` for the driver's
    /// interrupt and `broken` when the ring is malformed. The ring is served once it has a backend.
    pub(crate) fn set_ring(
        &mut self,
        ring: usize,
        queue: &ActiveQueue,
        call: &EventFd,
        broken: &EventFd,
    ) -> io::Result<()> {
        let config = VringConfigData {
            queue_max_size: queue.queue.max_size(),
            queue_size: queue.queue.size(),
            flags: 0,
            desc_table_addr: queue.queue.desc_table(),
            used_ring_addr: queue.queue.used_ring(),
            avail_ring_addr: queue.queue.avail_ring(),
            log_addr: None,
        };
        let set = || -> vhost::Result<()> {
            self.set_vring_num(ring, config.queue_size)?;
            self.set_vring_base(ring, queue.queue.next_avail())?;
            self.set_vring_addr(ring, &config)?;
            self.set_vring_call(ring, call)?;
            self.set_vring_err(ring, broken)?;
            self.set_vring_kick(ring, &queue.kick)
        };
        set().map_err(io_error)?;
        self.rings.push((ring, config));
        Ok(())
    }

    /// Has the kernel note in `log` what it writes, or nowhere, running or not. The log is the map's that it works
    /// on.
    pub(crate) fn set_log(&mut self, log: Option<&Arc<WriteLog>>) -> io::Result<()> {
        let set = || -> vhost::Result<()> {
            if let Some(log) = log {
                self.set_log_base(log.address(), None)?;
                self.set_features(self.features | LOG_ALL)?;
            }
            for (ring, config) in &self.rings {
                let config = VringConfigData {
                    flags: if log.is_some() { LOG_RING } else { 0 },
                    log_addr: log.map(|_| config.used_ring_addr),
                    ..*config
                };
                self.set_vring_addr(*ring, &config)?;
            }
            match log {
                Some(_) => Ok(()),
                None => self.set_features(self.features),
            }
        };
        set().map_err(io_error)?;
        // The former one is not written any more.
        self.log = log.cloned();
        Ok(())
    }

    /// Takes up how far the kernel came with a ring that has no backend any more.
    pub(crate) fn take_position(&self, ring: usize, queue: &mut ActiveQueue) -> io::Result<()> {
        let next_avail = self.get_vring_base(ring).map_err(io_error)?;
        let next_used = queue
            .queue
            .used_idx(&*self.memory, Ordering::Acquire)
            .map_err(io::Error::other)?;
        queue.queue.set_next_avail(next_avail as u16);
        queue.queue.set_next_used(next_used.0);
        Ok(())
    }
}

impl AsRawFd for Vhost {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl VhostKernBackend for Vhost {
    type AS = Arc<Memory>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }

    /// The kernel is told where a ring begins in this process and takes the rest to follow: each must lie in
    /// one region, or a guest could have it write behind the end of a mapping.
    fn is_valid(&self, config: &VringConfigData) -> bool {
        let size = usize::from(config.queue_size);
        let in_one_region = |address, len| self.memory.get_slice(GuestAddress(address), len).is_ok();
        config.queue_size.is_power_of_two()
            && config.queue_size <= config.queue_max_size
            && in_one_region(config.desc_table_addr, 16 * size)
            && in_one_region(config.avail_ring_addr, 6 + 2 * size)
            && in_one_region(config.used_ring_addr, 6 + 8 * size)
    }
}
