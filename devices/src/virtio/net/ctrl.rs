//! The control queue (virtio 1.2, §5.1.6.5): the driver's commands, each parsed once into a [`Command`].

use std::io::{Read, Write};
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET,
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use virtio_queue::Error;

use super::features::{CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, GUEST_ANNOUNCE, GUEST_OFFLOADS, MQ};
use super::nic::{NAME, Nic, is_station};
use crate::irq::Interrupt;
use crate::memory::Memory;
use crate::virtio::{ActiveQueue, Chain};

const MAC_ADDR_SET: (u8, u8) = (VIRTIO_NET_CTRL_MAC as u8, VIRTIO_NET_CTRL_MAC_ADDR_SET as u8);
const ANNOUNCE_ACK: (u8, u8) = (VIRTIO_NET_CTRL_ANNOUNCE as u8, VIRTIO_NET_CTRL_ANNOUNCE_ACK as u8);
const PAIRS_SET: (u8, u8) = (VIRTIO_NET_CTRL_MQ as u8, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8);
const OFFLOADS_SET: (u8, u8) = (
    VIRTIO_NET_CTRL_GUEST_OFFLOADS as u8,
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET as u8,
);
/// The longest command that is served: class, command, eight bytes. A longer one is none of them.
const MAX_COMMAND: usize = 10;

/// A command that the driver may give and that we can carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The station's address is this from now on (§5.1.6.5.2).
    SetMac([u8; 6]),
    /// The driver has seen that it is to announce itself (§5.1.6.5.4).
    AnnounceDone,
    /// Frames to the guest go through this many queue pairs (§5.1.6.5.5).
    SetPairs(u16),
    /// Frames to the guest may need these features of it (§5.1.6.5.6.2).
    SetGuestOffloads(u64),
}

impl Command {
    /// The command in `bytes`, from a driver that negotiated `features` with a device of `max_pairs` queue
    /// pairs; nothing where there is none that this driver may give.
    pub fn parse(bytes: &[u8], features: u64, max_pairs: usize) -> Option<Command> {
        let (&[class, command], data) = bytes.split_first_chunk::<2>()?;
        let has = |feature| (features & feature != 0).then_some(());
        match (class, command) {
            MAC_ADDR_SET => {
                has(CTRL_MAC_ADDR)?;
                let mac = data.try_into().ok().filter(|mac| is_station(*mac))?;
                Some(Command::SetMac(mac))
            }
            ANNOUNCE_ACK => {
                has(GUEST_ANNOUNCE)?;
                data.is_empty().then_some(Command::AnnounceDone)
            }
            PAIRS_SET => {
                has(MQ)?;
                let pairs = u16::from_le_bytes(data.try_into().ok()?);
                (1..=max_pairs)
                    .contains(&usize::from(pairs))
                    .then_some(Command::SetPairs(pairs))
            }
            OFFLOADS_SET => {
                has(CTRL_GUEST_OFFLOADS)?;
                let offloads = u64::from_le_bytes(data.try_into().ok()?);
                (offloads & !(features & GUEST_OFFLOADS) == 0).then_some(Command::SetGuestOffloads(offloads))
            }
            _ => None,
        }
    }
}

/// The control queue while it is served.
pub struct ControlQueue {
    /// The queue.
    pub queue: ActiveQueue,
    /// Whom the commands are for.
    pub nic: Arc<Nic>,
    /// What the driver negotiated.
    pub features: u64,
}

impl ControlQueue {
    /// Serves all commands on offer.
    ///
    /// # Errors
    /// When the ring is malformed.
    pub fn run(&mut self, memory: &Arc<Memory>, interrupt: &dyn Interrupt) -> Result<(), Error> {
        let ControlQueue { queue, nic, features } = self;
        queue.serve(memory, interrupt, |chain| answer(chain, memory, nic, *features))
    }
}

/// Carries out the command of one chain and writes its acknowledgement; gives how many bytes were written.
fn answer(chain: Chain, memory: &Memory, nic: &Nic, features: u64) -> u32 {
    let (Ok(reader), Ok(mut writer)) = (chain.clone().reader(memory), chain.writer(memory)) else {
        return 0;
    };
    // Without room for the answer the driver could not tell what came of it: nothing is done.
    if writer.available_bytes() == 0 {
        return 0;
    }
    let mut bytes = Vec::with_capacity(MAX_COMMAND + 1);
    let read = reader.take(MAX_COMMAND as u64 + 1).read_to_end(&mut bytes);
    let command = read
        .ok()
        .and_then(|_| Command::parse(&bytes, features, nic.backends().len()));
    let ack = match command.map(|command| nic.execute(command)) {
        Some(Ok(())) => VIRTIO_NET_OK,
        Some(Err(error)) => {
            log::warn!("{NAME}: a command of the driver failed: {error}");
            VIRTIO_NET_ERR
        }
        None => VIRTIO_NET_ERR,
    };
    match writer.write_all(&[ack as u8]) {
        Ok(()) => 1,
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::features::{GUEST_CSUM, GUEST_TSO4};
    use super::*;

    const ALL: u64 = CTRL_MAC_ADDR | GUEST_ANNOUNCE | MQ | CTRL_GUEST_OFFLOADS | GUEST_CSUM;

    #[test]
    fn commands_are_taken_as_the_specification_writes_them_and_nothing_else_is() {
        let mac = [2, 0, 0, 1, 2, 3];
        let table: &[(&[u8], u64, Option<Command>)] = &[
            (&[1, 1, 2, 0, 0, 1, 2, 3], ALL, Some(Command::SetMac(mac))),
            (&[1, 1, 2, 0, 0, 1, 2, 3], ALL & !CTRL_MAC_ADDR, None),
            (&[1, 1, 2, 0, 0, 1, 2], ALL, None),
            (&[1, 1, 2, 0, 0, 1, 2, 3, 4], ALL, None),
            (&[1, 1, 3, 0, 0, 1, 2, 3], ALL, None),
            (&[1, 1, 0, 0, 0, 0, 0, 0], ALL, None),
            // Filters are not offered.
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0], ALL, None),
            (&[0, 0, 1], ALL, None),
            (&[2, 0, 1, 0], ALL, None),
            (&[3, 0], ALL, Some(Command::AnnounceDone)),
            (&[3, 0], ALL & !GUEST_ANNOUNCE, None),
            (&[3, 0, 0], ALL, None),
            (&[3, 1], ALL, None),
            (&[4, 0, 1, 0], ALL, Some(Command::SetPairs(1))),
            (&[4, 0, 4, 0], ALL, Some(Command::SetPairs(4))),
            (&[4, 0, 0, 0], ALL, None),
            (&[4, 0, 5, 0], ALL, None),
            (&[4, 0, 255, 255], ALL, None),
            (&[4, 0, 1], ALL, None),
            (&[4, 0, 1, 0], ALL & !MQ, None),
            (&[4, 1, 1, 0], ALL, None),
            (
                &[5, 0, 2, 0, 0, 0, 0, 0, 0, 0],
                ALL,
                Some(Command::SetGuestOffloads(GUEST_CSUM)),
            ),
            (
                &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                ALL,
                Some(Command::SetGuestOffloads(0)),
            ),
            // Not negotiated.
            (&[5, 0, GUEST_TSO4 as u8, 0, 0, 0, 0, 0, 0, 0], ALL, None),
            (&[5, 0, 0, 0, 0, 0, 0, 0, 0, 128], ALL, None),
            (&[5, 0, 2, 0, 0, 0], ALL, None),
            (&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0], ALL & !CTRL_GUEST_OFFLOADS, None),
            (&[255, 255], ALL, None),
            (&[5], ALL, None),
            (&[], ALL, None),
        ];
        for (bytes, features, expected) in table {
            assert_eq!(
                Command::parse(bytes, *features, 4),
                *expected,
                "{bytes:?} with {features:#x}"
            );
        }
    }
}
