//! The network device with its frames moved by the kernel (`/dev/vhost-net`), between the rings and a tap.
//!
//! To the driver and to the monitor it is the device of [`crate::virtio::net`], as far as the kernel serves it.
#![expect(
    unsafe_code,
    reason = "an ioctl that the vhost crate has for its own device only"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vhost::vhost_kern::vhost_binding::{VHOST_NET_SET_BACKEND, vhost_vring_file};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::{Vhost, WriteLog};
use crate::irq::{Interrupt, Vector};
use crate::memory::SharedMemory;
use crate::net::{Frame, HEADER_LEN, NetBackend, Tap};
use crate::state::DeviceState;
use crate::virtio::net::ctrl::ControlQueue;
use crate::virtio::net::features::MRG_RXBUF;
use crate::virtio::net::nic::{DEVICE_ID, NAME, Nic};
use crate::virtio::net::{NetControl, QUEUE_SIZE};
use crate::virtio::{Activation, ActiveQueue, VirtioDevice};
use crate::worker::{Placed, Worker};
use crate::{Error, Result};

const PATH: &str = "/dev/vhost-net";
/// What every device of ours offers, and so the kernel must serve.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Features that concern whoever moves frames; the others are the tap's or the control queue's.
const RING_FEATURES: u64 = TRANSPORT_FEATURES | MRG_RXBUF;
/// More frames than a tap keeps by itself.
const STALE_FRAMES: usize = 4096;

/// What a network device in the kernel is made of.
pub struct VhostNetConfig {
    /// One queue of a tap for each queue pair.
    pub taps: Vec<Tap>,
    /// The station's address.
    pub mac: [u8; 6],
    /// Largest payload of a frame, to be told the driver.
    pub mtu: Option<u16>,
}

/// The network device with its data path in the kernel.
pub struct VhostNet {
    nic: Arc<Nic>,
    /// The tap of each queue pair and the vhost device that serves it.
    pairs: Vec<(Arc<Tap>, Arc<File>)>,
    worker: Worker,
    running: Option<Running>,
    log: Option<Arc<WriteLog>>,
}

struct Running {
    pairs: Vec<RunningPair>,
    relay: Placed<Relay>,
}

struct RunningPair {
    vhost: Vhost,
    connection: Connection,
    queues: Vec<ActiveQueue>,
}

/// The tie between a vhost device's rings and a tap.
#[derive(Clone)]
struct Connection {
    vhost: Arc<File>,
    tap: Arc<Tap>,
    rings: Vec<usize>,
}

impl Connection {
    /// Lets the kernel move frames, or stops it; it touches neither ring nor tap afterwards.
    fn connect(&self, connected: bool) -> io::Result<()> {
        let fd = if connected {
            self.tap.as_fd().as_raw_fd()
        } else {
            -1
        };
        for &index in &self.rings {
            let backend = vhost_vring_file {
                index: index as u32,
                fd,
            };
            // SAFETY: VHOST_NET_SET_BACKEND reads one vhost_vring_file.
            if unsafe { ioctl_with_ref(&*self.vhost, VHOST_NET_SET_BACKEND(), &backend) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// Throws away what came while the link was down.
    fn discard(&self) {
        let mut header = [0; HEADER_LEN];
        for _ in 0..STALE_FRAMES {
            if self.tap.receive(&mut Frame::new(&mut header)).is_err() {
                break;
            }
        }
    }
}

/// Ring of the kernel for a queue: each vhost device has one pair.
fn ring_of(queue: u16) -> usize {
    usize::from(queue % 2)
}

impl VhostNet {
    /// A device whose frames the kernel moves; `worker` serves the driver's commands, and passes interrupts on
    /// where the transport must act on each.
    ///
    /// # Errors
    /// When vhost-net is not there or may not be used, lacks what every virtio device has, or as
    /// [`crate::virtio::net::Net::new`].
    pub fn new(config: VhostNetConfig, worker: Worker) -> Result<(VhostNet, NetControl)> {
        let mut pairs = Vec::new();
        let mut served = u64::MAX;
        for tap in config.taps {
            let vhost = super::open(PATH, "vhost_net")?;
            served &= super::features(&vhost).map_err(Error::io("ask vhost-net for its features"))?;
            pairs.push((Arc::new(tap), vhost));
        }
        if TRANSPORT_FEATURES & !served != 0 {
            return Err(Error::Config {
                device: NAME,
                reason: format!(
                    "this kernel's vhost-net lacks features {:#x}",
                    TRANSPORT_FEATURES & !served
                ),
            });
        }
        let name = pairs.first().map(|(tap, _)| tap.name().to_owned());
        let backends = pairs
            .iter()
            .map(|(tap, _)| Arc::clone(tap) as Arc<dyn NetBackend>)
            .collect();
        let lacks = RING_FEATURES & !served;
        let nic = Arc::new(Nic::new(backends, config.mac, config.mtu, QUEUE_SIZE, lacks)?);
        let control = NetControl::new(Arc::clone(&nic), name);
        let device = VhostNet {
            nic,
            pairs,
            worker,
            running: None,
            log: None,
        };
        Ok((device, control))
    }

    fn try_start(&mut self, activation: Activation) -> io::Result<Result<Running>> {
        let Activation {
            features,
            memory,
            interrupt,
            queues,
        } = activation;
        let control_index = self.nic.control_queue(features);
        let mut relay = Relay {
            broken: EventFd::new(EFD_NONBLOCK)?,
            calls: Vec::new(),
            control: None,
            memory: memory.clone(),
            interrupt: Arc::clone(&interrupt),
        };
        let map = memory.memory().into_inner();
        let mut pairs = Vec::new();
        for (tap, file) in &self.pairs {
            pairs.push(RunningPair {
                vhost: Vhost::new(Arc::clone(file), Arc::clone(&map), features & RING_FEATURES)?,
                connection: Connection {
                    vhost: Arc::clone(file),
                    tap: Arc::clone(tap),
                    rings: Vec::new(),
                },
                queues: Vec::new(),
            });
        }
        for queue in queues {
            if queue.index == control_index {
                relay.control = Some(ControlQueue {
                    queue,
                    nic: Arc::clone(&self.nic),
                    features,
                });
            } else if let Some(pair) = pairs.get_mut(usize::from(queue.index / 2)) {
                let ring = ring_of(queue.index);
                match interrupt.eventfd(Vector::Queue(queue.index)) {
                    Some(call) => pair.vhost.set_ring(ring, &queue, call, &relay.broken)?,
                    None => {
                        let call = EventFd::new(EFD_NONBLOCK)?;
                        pair.vhost.set_ring(ring, &queue, &call, &relay.broken)?;
                        relay.calls.push((queue.index, call));
                    }
                }
                pair.connection.rings.push(ring);
                pair.queues.push(queue);
            }
        }
        for pair in pairs.iter_mut().filter(|_| self.log.is_some()) {
            pair.vhost.set_log(self.log.as_ref())?;
        }
        Ok(self.worker.add(relay).map(|relay| Running { pairs, relay }))
    }

    /// From now on the kernel moves frames while the link is up.
    fn connect(&self, running: &Running) -> io::Result<()> {
        let connections: Vec<Connection> = running.pairs.iter().map(|pair| pair.connection.clone()).collect();
        let mut was_up = true;
        self.nic.on_link_change(Box::new(move |up| {
            for connection in &connections {
                if up && !was_up {
                    connection.discard();
                }
                connection.connect(up)?;
            }
            was_up = up;
            Ok(())
        }))?;
        // What the driver offered before we ran (a restore, a resume) has rung no doorbell of ours.
        for queue in running.pairs.iter().flat_map(|pair| &pair.queues) {
            let _ = queue.kick.write(1);
        }
        Ok(())
    }
}

impl VirtioDevice for VhostNet {
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
        let failed = || Error::io("start vhost-net");
        let started = self
            .nic
            .start(activation.features, Arc::clone(&activation.interrupt))
            .and_then(|()| self.try_start(activation).map_err(failed())?)
            .and_then(|running| {
                let connected = self.connect(&running).map_err(failed());
                self.running = Some(running);
                connected
            });
        if started.is_err() {
            self.stop()?;
        }
        started
    }

    fn stop(&mut self) -> Result<Vec<ActiveQueue>> {
        self.nic.stop();
        let Some(running) = self.running.take() else {
            return Ok(Vec::new());
        };
        let failed = || Error::io("stop vhost-net");
        let mut all = Vec::new();
        for mut pair in running.pairs {
            pair.connection.connect(false).map_err(failed())?;
            for queue in &mut pair.queues {
                let ring = ring_of(queue.index);
                pair.vhost.take_position(ring, queue).map_err(failed())?;
            }
            all.append(&mut pair.queues);
        }
        // Last, so that no interrupt of the rings is left in it.
        let relay = running.relay.remove()?;
        relay.pass_on();
        all.extend(relay.control.map(|control| control.queue));
        Ok(all)
    }

    fn memory_changed(&mut self, memory: &SharedMemory) -> Result<()> {
        let map = memory.memory().into_inner();
        for pair in self.running.iter_mut().flat_map(|running| &mut running.pairs) {
            pair.vhost
                .set_memory(Arc::clone(&map))
                .map_err(Error::io("give vhost-net the guest's new memory"))?;
        }
        Ok(())
    }

    fn log_writes(&mut self, log: Option<&Arc<WriteLog>>) -> Result<()> {
        self.log = log.cloned();
        for pair in self.running.iter_mut().flat_map(|running| &mut running.pairs) {
            let failed = Error::io("have vhost-net note what it writes");
            pair.vhost.set_log(log).map_err(failed)?;
        }
        Ok(())
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

const BROKEN: u32 = u32::MAX;
const CONTROL: u32 = u32::MAX - 1;

/// What is left to do here while the kernel moves frames.
struct Relay {
    broken: EventFd,
    /// Interrupts that the transport must act on, by index of the queue.
    calls: Vec<(u16, EventFd)>,
    control: Option<ControlQueue>,
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
        let control = self.control.iter().map(|control| (CONTROL, &control.queue.kick));
        for (event, fd) in calls.chain(control).chain([(BROKEN, &self.broken)]) {
            if let Err(error) = ops.add(Events::with_data(fd, event, EventSet::IN)) {
                log::error!("{NAME}: cannot watch an interrupt or doorbell: {error:?}");
            }
        }
        if let Some(control) = &self.control {
            let _ = control.queue.kick.write(1);
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        match events.data() {
            BROKEN => {
                let _ = self.broken.read();
                self.needs_reset();
            }
            CONTROL => {
                let memory = self.memory.memory().into_inner();
                let served = match &mut self.control {
                    Some(control) => {
                        let _ = control.queue.kick.read();
                        control.run(&memory, &*self.interrupt)
                    }
                    None => Ok(()),
                };
                if served.is_err() {
                    self.needs_reset();
                }
            }
            _ => self.pass_on(),
        }
    }
}

#[cfg(test)]
mod lab_tests;
