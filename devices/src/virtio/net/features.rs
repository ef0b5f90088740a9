//! Feature bits of the network device as masks (virtio 1.2, §5.1.3), and what follows from a set of them.

use virtio_bindings::virtio_net as bits;

/// The driver may leave a checksum to us.
pub const CSUM: u64 = 1 << bits::VIRTIO_NET_F_CSUM;
/// The driver takes frames whose checksum is left to it.
pub const GUEST_CSUM: u64 = 1 << bits::VIRTIO_NET_F_GUEST_CSUM;
/// Offloads may be chosen with a command.
pub const CTRL_GUEST_OFFLOADS: u64 = 1 << bits::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
/// The configuration has an MTU.
pub const MTU: u64 = 1 << bits::VIRTIO_NET_F_MTU;
/// The configuration has the station's address.
pub const MAC: u64 = 1 << bits::VIRTIO_NET_F_MAC;
/// The driver takes TCP segments over IPv4 that were never cut up.
pub const GUEST_TSO4: u64 = 1 << bits::VIRTIO_NET_F_GUEST_TSO4;
/// The same over IPv6.
pub const GUEST_TSO6: u64 = 1 << bits::VIRTIO_NET_F_GUEST_TSO6;
/// The same with congestion marks.
pub const GUEST_ECN: u64 = 1 << bits::VIRTIO_NET_F_GUEST_ECN;
/// The driver takes UDP datagrams over IPv4 that were never cut up.
pub const GUEST_UFO: u64 = 1 << bits::VIRTIO_NET_F_GUEST_UFO;
/// We take TCP segments over IPv4 that were never cut up.
pub const HOST_TSO4: u64 = 1 << bits::VIRTIO_NET_F_HOST_TSO4;
/// The same over IPv6.
pub const HOST_TSO6: u64 = 1 << bits::VIRTIO_NET_F_HOST_TSO6;
/// The same with congestion marks.
pub const HOST_ECN: u64 = 1 << bits::VIRTIO_NET_F_HOST_ECN;
/// We take UDP datagrams over IPv4 that were never cut up.
pub const HOST_UFO: u64 = 1 << bits::VIRTIO_NET_F_HOST_UFO;
/// A frame may take several receive buffers.
pub const MRG_RXBUF: u64 = 1 << bits::VIRTIO_NET_F_MRG_RXBUF;
/// The configuration has a status.
pub const STATUS: u64 = 1 << bits::VIRTIO_NET_F_STATUS;
/// There is a control queue.
pub const CTRL_VQ: u64 = 1 << bits::VIRTIO_NET_F_CTRL_VQ;
/// The driver announces the guest when asked.
pub const GUEST_ANNOUNCE: u64 = 1 << bits::VIRTIO_NET_F_GUEST_ANNOUNCE;
/// There are several queue pairs.
pub const MQ: u64 = 1 << bits::VIRTIO_NET_F_MQ;
/// The address may be changed with a command.
pub const CTRL_MAC_ADDR: u64 = 1 << bits::VIRTIO_NET_F_CTRL_MAC_ADDR;

/// What frames to the guest may need of it.
pub const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO;
/// What frames from the guest may need of us.
pub const HOST_OFFLOADS: u64 = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO;

/// These `GUEST_` features without those whose requirement is missing (§5.1.3.1).
pub fn consistent_guest_offloads(features: u64) -> u64 {
    let mut features = features & GUEST_OFFLOADS;
    if features & GUEST_CSUM == 0 {
        return 0;
    }
    if features & (GUEST_TSO4 | GUEST_TSO6) == 0 {
        features &= !GUEST_ECN;
    }
    features
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offload_without_what_it_requires_is_not_used() {
        for (asked, used) in [
            (0, 0),
            (GUEST_CSUM, GUEST_CSUM),
            (GUEST_TSO4 | GUEST_UFO, 0),
            (GUEST_CSUM | GUEST_ECN, GUEST_CSUM),
            (GUEST_CSUM | GUEST_UFO | CSUM, GUEST_CSUM | GUEST_UFO),
            (
                GUEST_CSUM | GUEST_TSO6 | GUEST_ECN,
                GUEST_CSUM | GUEST_TSO6 | GUEST_ECN,
            ),
            (GUEST_OFFLOADS, GUEST_OFFLOADS),
        ] {
            assert_eq!(consistent_guest_offloads(asked), used, "{asked:#x}");
        }
    }
}
