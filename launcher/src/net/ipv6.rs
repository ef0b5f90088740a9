//! What a masqueraded guest hears of IPv6 on its link. The rules of nftables ([`super::pod`]) pass its packets; this
//! answers what a router answers itself, frame by frame, on a tap beside the guest's:
//!
//! ```text
//! router solicitation     advertisement: the router's address, the MTU, addresses by DHCPv6   RFC 4861 §6
//! neighbour solicitation  for the gateway's addresses: its MAC address                        RFC 4861 §7
//! echo request            to the gateway: the reply                                           RFC 4443 §4
//! DHCPv6                  the guest's one address, DNS                                        RFC 8415
//! error, from outside     the same with the guest's own address in the packet that it quotes  RFC 4443 §3
//! ```
//! None of it needs a privilege: raw sockets would.

mod dhcp;
mod packet;
pub(super) mod uplink;

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ipnet::Ipv6Net;
use nacelle_devices::net::HEADER_LEN;
use nacelle_devices::net::tap::Tap;
use serde::{Deserialize, Serialize};
use smoltcp::wire::{
    EthernetAddress, Icmpv6Repr, NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr,
    NdiscRouterFlags, RawHardwareAddress,
};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use self::packet::{Body, Packet};
use super::dhcp::PAUSE;
use super::error::Cause;
use super::masquerade::GATEWAY_MAC;
use super::resolver::Resolver;

/// KubeVirt's network for a machine that names none.
pub(super) const DEFAULT_NETWORK: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 0), 120);
/// The gateway's link-local address: its MAC address as an interface identifier (RFC 4291, Appendix A).
pub(super) const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// What neighbours of a link send, and nobody else can (RFC 4861, §6.1).
const OWN_LINK: u8 = 255;
const HOP_LIMIT: u8 = 64;
/// How long the guest believes in its router unless told again: the longest (RFC 4861, §6.2.1), and how often it is.
const LIFETIME: Duration = Duration::from_secs(9000);
const ADVERTISE: Duration = Duration::from_secs(600);
/// Longest frame that is looked at.
const MAX_FRAME: usize = 1514;

/// Where a guest is in its IPv6 network, and who it is outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6 {
    /// The tap beside the guest's.
    pub tap: String,
    /// The gateway's address.
    pub gateway: Ipv6Addr,
    /// The guest's, with its network.
    pub address: Ipv6Net,
    /// The pod's, which the guest's is translated to.
    pub outside: Ipv6Addr,
}

impl Ipv6 {
    /// The addresses in `network`, as in KubeVirt: first the gateway, then the guest.
    pub(super) fn of(tap: &str, network: Ipv6Net, outside: Ipv6Addr) -> Result<Ipv6, Cause> {
        let first = network.network().to_bits();
        if network.prefix_len() > 126 {
            return Err(Cause::TooSmall(network.into()));
        }
        let guest = Ipv6Addr::from_bits(first | 2);
        Ok(Ipv6 {
            tap: tap.to_owned(),
            gateway: Ipv6Addr::from_bits(first | 1),
            address: Ipv6Net::new(guest, network.prefix_len()).unwrap_or(network),
            outside,
        })
    }
}

/// The router on a guest's link.
#[derive(Clone, Debug)]
pub(super) struct Router {
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// Its addresses.
    pub ipv6: Ipv6,
    /// Largest packet.
    pub mtu: u32,
    /// DNS.
    pub resolver: Resolver,
}

impl Router {
    /// What is answered to a frame, if anything.
    fn answer(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let packet = Packet::parse(frame)?;
        let ours = |address: Ipv6Addr| address == self.ipv6.gateway || address == LINK_LOCAL;
        if packet.destination == self.ipv6.outside {
            // An error on its way to the guest: it quotes the packet as it was outside.
            return match packet.body {
                Body::Error(message) => packet::translated(self.mac, &packet, message, &self.ipv6),
                _ => None,
            };
        }
        if packet.mac != self.mac {
            return None;
        }
        // Who has no address yet is answered where everybody listens.
        let to = match packet.source {
            Ipv6Addr::UNSPECIFIED => ALL_NODES,
            source => source,
        };
        match packet.body {
            Body::RouterSolicitation if packet.hop_limit == OWN_LINK => Some(self.advertisement(to)),
            Body::NeighborSolicitation { target } if packet.hop_limit == OWN_LINK && ours(target) => {
                let solicited = match to {
                    ALL_NODES => NdiscNeighborFlags::empty(),
                    _ => NdiscNeighborFlags::SOLICITED,
                };
                let advertisement = NdiscRepr::NeighborAdvert {
                    flags: NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE | solicited,
                    target_addr: target,
                    lladdr: Some(own_mac()),
                };
                Some(packet::icmp(
                    self.mac,
                    target,
                    to,
                    OWN_LINK,
                    &Icmpv6Repr::Ndisc(advertisement),
                ))
            }
            Body::EchoRequest { ident, seq_no, data } if ours(packet.destination) => {
                let reply = Icmpv6Repr::EchoReply { ident, seq_no, data };
                Some(packet::icmp(self.mac, packet.destination, to, HOP_LIMIT, &reply))
            }
            Body::Dhcp { port, message } => {
                let answer = dhcp::answer(&self.ipv6, &self.resolver, message)?;
                Some(packet::udp(
                    self.mac,
                    LINK_LOCAL,
                    to,
                    (dhcproto::v6::SERVER_PORT, port),
                    &answer,
                ))
            }
            _ => None,
        }
    }

    /// The advertisement of the router, to one or to all.
    fn advertisement(&self, to: Ipv6Addr) -> Vec<u8> {
        let network = self.ipv6.address.trunc();
        let forever = smoltcp::time::Duration::from_secs(u32::MAX.into());
        let advertisement = NdiscRepr::RouterAdvert {
            hop_limit: HOP_LIMIT,
            flags: NdiscRouterFlags::MANAGED | NdiscRouterFlags::OTHER,
            router_lifetime: LIFETIME.into(),
            reachable_time: smoltcp::time::Duration::ZERO,
            retrans_time: smoltcp::time::Duration::ZERO,
            lladdr: Some(own_mac()),
            mtu: Some(self.mtu),
            // Its one address the guest has of DHCPv6, not of itself.
            prefix_info: Some(NdiscPrefixInformation {
                prefix_len: network.prefix_len(),
                flags: NdiscPrefixInfoFlags::ON_LINK,
                valid_lifetime: forever,
                preferred_lifetime: forever,
                prefix: network.network(),
            }),
        };
        packet::icmp(
            self.mac,
            LINK_LOCAL,
            to,
            OWN_LINK,
            &Icmpv6Repr::Ndisc(advertisement),
        )
    }
}

fn own_mac() -> RawHardwareAddress {
    EthernetAddress(GATEWAY_MAC).into()
}

/// Answers from now on, as a task of this runtime; aborting it ends it.
#[expect(unsafe_code, reason = "tokio cannot know whose a descriptor is")]
pub(super) fn serve(router: Router) -> Result<JoinHandle<()>, Cause> {
    let name = router.ipv6.tap.clone();
    let tap = Tap::open(&name, 1)?
        .pop()
        .ok_or_else(|| Cause::NotThere(name.clone()))?;
    let fd = tap.as_fd().try_clone_to_owned();
    let fd = fd.map_err(Cause::io(format!("duplicate the descriptor of {name}")))?;
    // SAFETY: an owned descriptor is the same one until it is dropped.
    let fd = unsafe { AsyncFd::register(fd) };
    let fd = fd.map_err(|error| Cause::io(format!("wait for frames of {name}"))(error.into()))?;
    Ok(tokio::spawn(run(fd, router)))
}

async fn run(tap: AsyncFd<OwnedFd>, router: Router) {
    // Each frame has a header of virtio-net before it (virtio 1.2, 5.1.6), which is all zeros here.
    let mut buffer = [0; HEADER_LEN + MAX_FRAME];
    let mut advertise = tokio::time::interval(ADVERTISE);
    loop {
        let answer = tokio::select! {
            _ = advertise.tick() => Some(router.advertisement(ALL_NODES)),
            received = receive(&tap, &mut buffer) => match received {
                Ok(len) => buffer.get(HEADER_LEN..len).and_then(|frame| router.answer(frame)),
                Err(error) => {
                    log::debug!("IPv6: {error}");
                    None
                }
            },
        };
        if let Some(frame) = answer {
            let sent = rustix::io::write(tap.get_ref(), &[&[0; HEADER_LEN], frame.as_slice()].concat());
            if let Err(error) = sent {
                log::debug!("IPv6: the answer could not be sent: {error}");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn receive(tap: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = tap.readable().await?;
        let read = ready.try_io(|tap| Ok(rustix::io::read(tap.get_ref(), &mut *buffer)?));
        if let Ok(result) = read {
            return result;
        }
    }
}

#[cfg(test)]
mod tests;
