//! The socket device with its streams in the kernel (`/dev/vhost-vsock`): programs of the host reach the guest
//! with AF_VSOCK sockets at its context id, and the guest reaches theirs at context 2.
//!
//! To the driver it is the device of [`crate::virtio::vsock`]. The kernel serves the queues of packets; the
//! queue of events is served here, and interrupts are passed on where the transport must act on each.
#![expect(
    unsafe_code,
    reason = "two ioctls that the vhost crate has for its own device only"
)]

use std::fs::File;
use std::io;
use std::os::raw::c_int;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vhost::vhost_kern::vhost_binding::{VHOST_VSOCK_SET_GUEST_CID, VHOST_VSOCK_SET_RUNNING};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::{Vhost, WriteLog};
use crate::irq::{Interrupt, Vector};
use crate::memory::SharedMemory;
use crate::state::{DeviceState, VsockState};
use crate::virtio::vsock::event::tell_of_reset;
use crate::virtio::vsock::{DEVICE_ID, NAME, QUEUE_SIZES, STREAM, check_cid, read_config};
use crate::virtio::{Activation, ActiveQueue, VirtioDevice};
use crate::worker::{Placed, Worker};
use crate::{Error, Result};

const PATH: &str = "/dev/vhost-vsock";
/// What every device of ours offers, and so the kernel must serve.
const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// The queue that the kernel does not serve.
const EVENT: u16 = 2;

/// The socket device with its streams in the kernel.
pub struct VhostVsock {
    guest_cid: u64,
    file: Arc<File>,
    worker: Worker,
    running: Option<Running>,
    /// The guest must be told that its streams are gone.
    reset_due: bool,
    log: Option<Arc<WriteLog>>,
}

struct Running {
    vhost: Vhost,
    /// Those that the kernel serves.
    queues: Vec<ActiveQueue>,
    relay: Placed<Relay>,
}

impl VhostVsock {
    /// A device for the guest with this context id, which the kernel keeps for it as long as the device
    /// exists; `worker` serves what the kernel does not.
    ///
    /// # Errors
    /// When vhost-vsock is not there or may not be used, lacks what every virtio device has, or the context id
    /// is reserved or another guest's.
    pub fn new(guest_cid: u64, worker: Worker) -> Result<VhostVsock> {
        check_cid(guest_cid)?;
        let file = super::open(PATH, "vhost_vsock")?;
        let served = super::features(&file).map_err(Error::io("ask vhost-vsock for its features"))?;
        if RING_FEATURES & !served != 0 {
            return Err(Error::Config {
                device: NAME,
                reason: format!(
                    "this kernel's vhost-vsock lacks features {:#x}",
                    RING_FEATURES & !served
                ),
            });
        }
        // SAFETY: VHOST_VSOCK_SET_GUEST_CID reads a u64.
        if unsafe { ioctl_with_ref(&*file, VHOST_VSOCK_SET_GUEST_CID(), &guest_cid) } < 0 {
            let source = io::Error::last_os_error();
            let why = match source.raw_os_error() {
                Some(libc::EADDRINUSE) => " (another guest of this host has it)",
                _ => "",
            };
            return Err(Error::Io {
                what: format!("take the context id {guest_cid}{why}"),
                source,
            });
        }
        Ok(VhostVsock {
            guest_cid,
            file,
            worker,
            running: None,
            reset_due: false,
            log: None,
        })
    }

    /// Lets the kernel serve the rings, or stops it; it touches none of them afterwards.
    fn set_running(&self, running: bool) -> io::Result<()> {
        // SAFETY: VHOST_VSOCK_SET_RUNNING reads an int.
        match unsafe { ioctl_with_ref(&*self.file, VHOST_VSOCK_SET_RUNNING(), &c_int::from(running)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn prepare(&mut self, activation: Activation) -> io::Result<(Vhost, Vec<ActiveQueue>, Relay)> {
        let Activation {
            features,
            memory,
            interrupt,
            queues,
        } = activation;
        let mut relay = Relay {
            broken: EventFd::new(EFD_NONBLOCK)?,
            calls: Vec::new(),
            event: None,
            reset_due: self.reset_due,
            memory: memory.clone(),
            interrupt: Arc::clone(&interrupt),
        };
        let map = memory.memory().into_inner();
        let mut vhost = Vhost::new(Arc::clone(&self.file), map, features & RING_FEATURES)?;
        let mut served = Vec::new();
        for queue in queues {
            if queue.index == EVENT {
                relay.event = Some(queue);
                continue;
            }
            let ring = usize::from(queue.index);
            match interrupt.eventfd(Vector::Queue(queue.index)) {
                Some(call) => vhost.set_ring(ring, &queue, call, &relay.broken)?,
                None => {
                    let call = EventFd::new(EFD_NONBLOCK)?;
                    vhost.set_ring(ring, &queue, &call, &relay.broken)?;
                    relay.calls.push((queue.index, call));
                }
            }
            served.push(queue);
        }
        if self.log.is_some() {
            vhost.set_log(self.log.as_ref())?;
        }
        Ok((vhost, served, relay))
    }
}

impl VirtioDevice for VhostVsock {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> u64 {
        STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(self.guest_cid, offset, data);
    }

    fn start(&mut self, activation: Activation) -> Result<()> {
        let failed = || Error::io("start vhost-vsock");
        let (vhost, queues, relay) = self.prepare(activation).map_err(failed())?;
        self.running = Some(Running {
            vhost,
            queues,
            relay: self.worker.add(relay)?,
        });
        if let Err(error) = self.set_running(true) {
            self.stop()?;
            return Err(failed()(error));
        }
        // What the driver offered before we ran (a restore, a resume) has rung no doorbell of ours.
        for queue in self.running.iter().flat_map(|running| &running.queues) {
            let _ = queue.kick.write(1);
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<Vec<ActiveQueue>> {
        let Some(running) = self.running.take() else {
            return Ok(Vec::new());
        };
        let failed = || Error::io("stop vhost-vsock");
        self.set_running(false).map_err(failed())?;
        let mut queues = running.queues;
        for queue in &mut queues {
            running
                .vhost
                .take_position(usize::from(queue.index), queue)
                .map_err(failed())?;
        }
        // Last, so that no interrupt of the rings is left in it.
        let relay = running.relay.remove()?;
        relay.pass_on();
        self.reset_due = relay.reset_due;
        queues.extend(relay.event);
        Ok(queues)
    }

    fn memory_changed(&mut self, memory: &SharedMemory) -> Result<()> {
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        running
            .vhost
            .set_memory(memory.memory().into_inner())
            .map_err(Error::io("give vhost-vsock the guest's new memory"))
    }

    fn log_writes(&mut self, log: Option<&Arc<WriteLog>>) -> Result<()> {
        self.log = log.cloned();
        let failed = Error::io("have vhost-vsock note what it writes");
        match &mut self.running {
            Some(running) => running.vhost.set_log(log).map_err(failed),
            None => Ok(()),
        }
    }

    fn reset(&mut self) {
        self.reset_due = false;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(VsockState {})
    }

    fn restore(&mut self, state: DeviceState) -> Result<()> {
        let DeviceState::Vsock(VsockState {}) = state else {
            return Err(state.refused_by(NAME));
        };
        self.reset_due = true;
        Ok(())
    }
}

const BROKEN: u32 = u32::MAX;

/// What is left to do here while the kernel serves the streams.
struct Relay {
    broken: EventFd,
    /// Interrupts that the transport must act on, by index of the queue.
    calls: Vec<(u16, EventFd)>,
    event: Option<ActiveQueue>,
    reset_due: bool,
    memory: SharedMemory,
    interrupt: Arc<dyn Interrupt>,
}

impl Relay {
    /// Passes the kernel's interrupts on.
    fn pass_on(&self) {
        for (index, call) in &self.calls {
            if call.read().is_ok()
                && let Err(error) = self.interrupt.trigger(Vector::Queue(*index))
            {
                log::warn!("{NAME}: interrupt of queue {index} is lost: {error}");
            }
        }
    }

    fn needs_reset(&self) {
        log::warn!("{NAME}: a queue is malformed, the driver must reset");
        self.interrupt.needs_reset();
    }
}

impl MutEventSubscriber for Relay {
    fn init(&mut self, ops: &mut EventOps) {
        let calls = self.calls.iter().map(|(index, call)| (u32::from(*index), call));
        let event = self.event.iter().map(|queue| (u32::from(EVENT), &queue.kick));
        for (name, fd) in calls.chain(event).chain([(BROKEN, &self.broken)]) {
            if let Err(error) = ops.add(Events::with_data(fd, name, EventSet::IN)) {
                log::error!("{NAME}: cannot watch an interrupt or doorbell: {error:?}");
            }
        }
        if let Some(queue) = &self.event {
            let _ = queue.kick.write(1);
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        match events.data() {
            BROKEN => {
                let _ = self.broken.read();
                self.needs_reset();
            }
            name if name == u32::from(EVENT) => {
                let memory = self.memory.memory().into_inner();
                let Some(queue) = &mut self.event else {
                    return;
                };
                let _ = queue.kick.read();
                if tell_of_reset(queue, &memory, &*self.interrupt, &mut self.reset_due).is_err() {
                    self.needs_reset();
                }
            }
            _ => self.pass_on(),
        }
    }
}

#[cfg(test)]
mod lab_tests;
