//! Frames with IPv6: what comes is parsed once, what goes is made by smoltcp.

use std::net::Ipv6Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv6Message, Icmpv6Packet, Icmpv6Repr,
    IpProtocol, Ipv6Packet, Ipv6Repr, UdpPacket, UdpRepr,
};

use super::Ipv6;
use crate::net::masquerade::GATEWAY_MAC;

const ETHERNET_LEN: usize = 14;
const IPV6_LEN: usize = 40;
/// Where an error of ICMPv6 quotes a packet (RFC 4443, §3), and where in that the source is (RFC 8200, §3).
const QUOTED_AT: usize = 8;
const QUOTED_SOURCE_AT: usize = QUOTED_AT + 8;

/// A packet that may have an answer.
pub(super) struct Packet<'a> {
    /// Who sent it on this link.
    pub mac: [u8; 6],
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    pub hop_limit: u8,
    pub body: Body<'a>,
}

/// What it is.
pub(super) enum Body<'a> {
    RouterSolicitation,
    NeighborSolicitation {
        target: Ipv6Addr,
    },
    EchoRequest {
        ident: u16,
        seq_no: u16,
        data: &'a [u8],
    },
    /// An error, the whole message.
    Error(&'a [u8]),
    /// To a server of DHCPv6, from this port.
    Dhcp {
        port: u16,
        message: &'a [u8],
    },
}

impl<'a> Packet<'a> {
    /// What is in a frame, if it is of that kind. Extension headers have no place in any of these.
    pub fn parse(frame: &'a [u8]) -> Option<Packet<'a>> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        if ethernet.ethertype() != EthernetProtocol::Ipv6 {
            return None;
        }
        let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
        if ip.version() != 6 {
            return None;
        }
        let body = match ip.next_header() {
            IpProtocol::Icmpv6 => icmp_body(ip.payload())?,
            IpProtocol::Udp => {
                let udp = UdpPacket::new_checked(ip.payload()).ok()?;
                if udp.dst_port() != dhcproto::v6::SERVER_PORT {
                    return None;
                }
                Body::Dhcp {
                    port: udp.src_port(),
                    message: udp.payload(),
                }
            }
            _ => return None,
        };
        Some(Packet {
            mac: ethernet.src_addr().0,
            source: ip.src_addr(),
            destination: ip.dst_addr(),
            hop_limit: ip.hop_limit(),
            body,
        })
    }
}

fn icmp_body(message: &[u8]) -> Option<Body<'_>> {
    let icmp = Icmpv6Packet::new_checked(message).ok()?;
    Some(match icmp.msg_type() {
        Icmpv6Message::RouterSolicit => Body::RouterSolicitation,
        Icmpv6Message::NeighborSolicit => Body::NeighborSolicitation {
            target: icmp.target_addr(),
        },
        Icmpv6Message::EchoRequest => Body::EchoRequest {
            ident: icmp.echo_ident(),
            seq_no: icmp.echo_seq_no(),
            data: icmp.payload(),
        },
        Icmpv6Message::DstUnreachable
        | Icmpv6Message::PktTooBig
        | Icmpv6Message::TimeExceeded
        | Icmpv6Message::ParamProblem => Body::Error(message),
        _ => return None,
    })
}

/// A frame for `mac` with `len` bytes behind its IPv6 header, which `emit` writes.
fn frame(mac: [u8; 6], ip: &Ipv6Repr, emit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = vec![0; ETHERNET_LEN + IPV6_LEN + ip.payload_len];
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(GATEWAY_MAC),
        dst_addr: EthernetAddress(mac),
        ethertype: EthernetProtocol::Ipv6,
    };
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    let (_, rest) = bytes.split_at_mut(ETHERNET_LEN);
    ip.emit(&mut Ipv6Packet::new_unchecked(&mut *rest));
    emit(rest.split_at_mut(IPV6_LEN).1);
    bytes
}

/// A frame for `mac` with a message of ICMPv6.
pub(super) fn icmp(
    mac: [u8; 6],
    from: Ipv6Addr,
    to: Ipv6Addr,
    hop_limit: u8,
    message: &Icmpv6Repr,
) -> Vec<u8> {
    let ip = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.buffer_len(),
        hop_limit,
    };
    let checksums = ChecksumCapabilities::default();
    frame(mac, &ip, |bytes| {
        message.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(bytes), &checksums);
    })
}

/// A frame for `mac` with a datagram, between these ports.
pub(super) fn udp(mac: [u8; 6], from: Ipv6Addr, to: Ipv6Addr, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    let udp = UdpRepr {
        src_port: ports.0,
        dst_port: ports.1,
    };
    let ip = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + data.len(),
        hop_limit: super::HOP_LIMIT,
    };
    frame(mac, &ip, |bytes| {
        udp.emit(
            &mut UdpPacket::new_unchecked(bytes),
            &from.into(),
            &to.into(),
            data.len(),
            |payload| payload.copy_from_slice(data),
            &ChecksumCapabilities::default(),
        );
    })
}

/// An error that came for the address outside, as the guest knows it: to its own address, and quoting that. Nothing
/// where the error is damaged, or is about a packet that the guest has not sent.
pub(super) fn translated(mac: [u8; 6], packet: &Packet, message: &[u8], ipv6: &Ipv6) -> Option<Vec<u8>> {
    let intact = Icmpv6Packet::new_checked(message).ok()?;
    if !intact.verify_checksum(&packet.source, &packet.destination) {
        return None;
    }
    let quoted = message.get(QUOTED_SOURCE_AT..)?.first_chunk::<16>()?;
    if *quoted != ipv6.outside.octets() {
        return None;
    }
    let guest = ipv6.address.addr();
    let ip = Ipv6Repr {
        src_addr: packet.source,
        dst_addr: guest,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.len(),
        hop_limit: packet.hop_limit.checked_sub(1).filter(|&left| left > 0)?,
    };
    Some(frame(mac, &ip, |bytes| {
        bytes.copy_from_slice(message);
        if let Some(source) = bytes.get_mut(QUOTED_SOURCE_AT..QUOTED_SOURCE_AT + 16) {
            source.copy_from_slice(&guest.octets());
        }
        Icmpv6Packet::new_unchecked(bytes).fill_checksum(&packet.source, &guest);
    }))
}
