//! One queue pair on its worker: the doorbells, the network's descriptor, and with the first pair the control
//! queue.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use super::ctrl::ControlQueue;
use super::nic::{NAME, Nic};
use super::rx::{self, Receiver};
use super::tx::{self, Transmitter};
use crate::irq::Interrupt;
use crate::memory::{Memory, SharedMemory};
use crate::net::NetBackend;
use crate::ratelimit::Throttle;
use crate::virtio::ActiveQueue;

const RX_KICK: u32 = 0;
const TX_KICK: u32 = 1;
const CONTROL_KICK: u32 = 2;
const NETWORK: u32 = 3;
const RX_TIMER: u32 = 4;
const TX_TIMER: u32 = 5;

/// A queue pair while it is served.
pub struct Pair {
    pub index: usize,
    pub nic: Arc<Nic>,
    pub backend: Arc<dyn NetBackend>,
    pub memory: SharedMemory,
    pub interrupt: Arc<dyn Interrupt>,
    pub rx: Option<Receiver>,
    pub tx: Option<Transmitter>,
    pub control: Option<ControlQueue>,
    pub watch: Watch,
}

/// What we wait for at the network's descriptor.
#[derive(Default)]
pub struct Watch {
    /// What the kernel was told.
    registered: Option<EventSet>,
    receive: bool,
    send: bool,
    /// Nothing comes from the network any more.
    gone: bool,
    /// The driver must reset: nothing is served.
    broken: bool,
}

impl Pair {
    /// Ends serving: the queues as the driver sees them.
    pub fn into_queues(self) -> Vec<ActiveQueue> {
        let rx = self.rx.map(|rx| rx.into_queue(&self.nic.rx));
        let tx = self.tx.map(|tx| tx.queue);
        let control = self.control.map(|control| control.queue);
        rx.into_iter().chain(tx).chain(control).collect()
    }

    fn receive(&mut self, memory: &Arc<Memory>) -> Result<(), virtio_queue::Error> {
        let Some(rx) = self.rx.as_mut().filter(|_| !self.watch.gone) else {
            return Ok(());
        };
        let counters = &self.nic.rx;
        let outcome = if self.nic.link_up() && self.nic.is_active(self.index) {
            rx.run(memory, &*self.interrupt, &*self.backend, counters)?
        } else {
            rx.discard(&*self.backend, counters)
                .map(|()| rx::Waiting::Network)
        };
        match outcome {
            Ok(waiting) => self.watch.receive = waiting == rx::Waiting::Network,
            Err(error) => {
                log::error!(
                    "{NAME}: the network of queue pair {} is gone: {error}",
                    self.index
                );
                (self.watch.gone, self.watch.receive) = (true, false);
            }
        }
        Ok(())
    }

    fn transmit(&mut self, memory: &Arc<Memory>) -> Result<(), virtio_queue::Error> {
        let Some(tx) = &mut self.tx else {
            return Ok(());
        };
        let backend = self.nic.link_up().then_some(&*self.backend);
        let waiting = tx.run(memory, &*self.interrupt, backend, &self.nic.tx)?;
        self.watch.send = waiting == tx::Waiting::Network;
        Ok(())
    }

    fn serve(&mut self, event: u32) -> Result<(), virtio_queue::Error> {
        let memory = self.memory.memory().into_inner();
        match event {
            RX_KICK | RX_TIMER => self.receive(&memory),
            TX_KICK | TX_TIMER => self.transmit(&memory),
            CONTROL_KICK => match &mut self.control {
                Some(control) => control.run(&memory, &*self.interrupt),
                None => Ok(()),
            },
            _ => {
                if self.watch.send {
                    self.transmit(&memory)?;
                }
                if self.watch.receive {
                    self.receive(&memory)?;
                }
                Ok(())
            }
        }
    }

    fn throttles(&mut self) -> impl Iterator<Item = (u32, &mut Throttle)> {
        let rx = self.rx.iter_mut().filter_map(|rx| rx.throttle.as_mut());
        let tx = self.tx.iter_mut().filter_map(|tx| tx.throttle.as_mut());
        rx.map(|throttle| (RX_TIMER, throttle))
            .chain(tx.map(|throttle| (TX_TIMER, throttle)))
    }

    fn kicks(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        let rx = self.rx.iter().map(|rx| (RX_KICK, &rx.queue.kick));
        let tx = self.tx.iter().map(|tx| (TX_KICK, &tx.queue.kick));
        let control = self
            .control
            .iter()
            .map(|control| (CONTROL_KICK, &control.queue.kick));
        rx.chain(tx).chain(control)
    }

    /// Tells the kernel what we wait for at the network, where that has changed.
    fn watch_network(&mut self, ops: &mut EventOps) {
        let mut wanted = EventSet::empty();
        if !self.watch.broken {
            wanted.set(EventSet::IN, self.watch.receive);
            wanted.set(EventSet::OUT, self.watch.send);
        }
        // Not watched at all rather than for nothing: an error of the descriptor would be told again and again.
        let wanted = Some(wanted).filter(|wanted| !wanted.is_empty());
        let before = std::mem::replace(&mut self.watch.registered, wanted);
        let fd = self.backend.as_fd().as_raw_fd();
        let events = |set| Events::with_data_raw(fd, NETWORK, set);
        let told = match (before, wanted) {
            (None, Some(set)) => ops.add(events(set)),
            (Some(set), None) => ops.remove(events(set)),
            (Some(before), Some(set)) if before != set => ops.modify(events(set)),
            _ => Ok(()),
        };
        if let Err(error) = told {
            log::error!(
                "{NAME}: cannot watch the network of queue pair {}: {error:?}",
                self.index
            );
        }
    }
}

impl MutEventSubscriber for Pair {
    fn init(&mut self, ops: &mut EventOps) {
        for (event, kick) in self.kicks() {
            // Told at each ring, so that it need not be read: a system call less for each.
            let each = EventSet::IN | EventSet::EDGE_TRIGGERED;
            if let Err(error) = ops.add(Events::with_data(kick, event, each)) {
                log::error!("{NAME}: cannot watch a doorbell: {error:?}");
            }
            // What the driver offered before we ran (a restore, a resume) has rung no doorbell of ours.
            let _ = kick.write(1);
        }
        for (event, throttle) in self.throttles() {
            if let Err(error) = ops.add(Events::with_data(throttle.timer(), event, EventSet::IN)) {
                log::error!("{NAME}: cannot watch the timer of a rate limit: {error:?}");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if let Some((_, throttle)) = self.throttles().find(|(event, _)| *event == events.data()) {
            throttle.acknowledge();
        }
        if !self.watch.broken
            && let Err(error) = self.serve(events.data())
        {
            log::warn!("{NAME}: a queue is malformed, the driver must reset: {error}");
            self.interrupt.needs_reset();
            self.watch.broken = true;
        }
        self.watch_network(ops);
    }
}
