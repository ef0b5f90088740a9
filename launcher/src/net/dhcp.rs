//! DHCPv4 server for one guest (RFC 2131): one lease, of the guest's own MAC address.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::time::Duration;

use dhcproto::v4::{
    CLIENT_PORT, DhcpOption, DhcpOptions, Encodable, Encoder, Flags, HType, MIN_PACKET_SIZE, Message,
    MessageType, Opcode, OptionCode, SERVER_PORT, borrowed,
};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::error::Cause;
use super::resolver::Resolver;

/// As in KubeVirt: 999 days.
pub(super) const LEASE_SECONDS: u32 = 999 * 24 * 3600;
/// Longest packet that is looked at; more of one is not read.
const MAX_PACKET: usize = 1500;
/// Bytes of packets that wait to be read.
const RECEIVE_BUFFER: usize = 16 << 10;
/// After each packet, so that a guest that sends many costs little.
pub(super) const PAUSE: Duration = Duration::from_millis(10);
/// `hlen` of Ethernet and where it is in a message (RFC 2131, §2).
const ETHERNET_LEN: u8 = 6;
const HLEN_AT: usize = 2;

/// Where a guest is in its network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// Our own address there.
    pub server: Ipv4Addr,
    /// The guest's, with its network.
    pub address: Ipv4Net,
    /// Where its packets to everybody else go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<Ipv4Addr>,
    /// More specific routes, each with its router; 0.0.0.0 is the link itself. A client that is told of them takes
    /// no notice of `router` (RFC 3442), so the default route is among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
}

/// What the guest is offered.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    /// Who is offered it.
    pub mac: [u8; 6],
    /// Its address and routes.
    pub lease: Lease,
    /// Largest packet.
    pub mtu: u16,
    /// Name of the guest.
    pub hostname: String,
    /// DNS.
    pub resolver: Resolver,
}

/// A request, as far as the answer depends on it.
struct Request {
    kind: MessageType,
    xid: u32,
    flags: Flags,
    ciaddr: Ipv4Addr,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl Request {
    /// What `mac` asks, if the packet is such a thing. Only what is needed is decoded: the library's decoder of
    /// all options panics on some that a guest may send.
    fn parse(packet: &[u8], mac: [u8; 6]) -> Option<Request> {
        // The library trusts this length.
        if packet.get(HLEN_AT) != Some(&ETHERNET_LEN) {
            return None;
        }
        let message = borrowed::Message::new(packet).ok()?;
        let from_it = message.opcode() == Opcode::BootRequest
            && message.htype() == HType::Eth
            && message.chaddr() == mac
            && message.giaddr().is_unspecified();
        if !from_it {
            return None;
        }
        let (mut kind, mut wanted, mut server) = (None, None, None);
        for option in message.opts() {
            let address = || <[u8; 4]>::try_from(option.data()).ok().map(Ipv4Addr::from);
            match option.code() {
                OptionCode::MessageType => kind = option.data().first().copied(),
                OptionCode::RequestedIpAddress => wanted = address(),
                OptionCode::ServerIdentifier => server = address(),
                _ => {}
            }
        }
        Some(Request {
            kind: kind?.into(),
            xid: message.xid(),
            flags: message.flags(),
            ciaddr: message.ciaddr(),
            wanted,
            server,
        })
    }
}

/// What is said, and to whom.
#[derive(Debug)]
struct Answer {
    message: Message,
    to: Ipv4Addr,
}

impl Offer {
    /// What is answered to a packet, if anything.
    fn answer(&self, packet: &[u8]) -> Option<Answer> {
        let request = Request::parse(packet, self.mac)?;
        let Lease { server, address, .. } = &self.lease;
        let (server, guest) = (*server, address.addr());
        let kind = match request.kind {
            MessageType::Discover => MessageType::Offer,
            MessageType::Inform => MessageType::Ack,
            MessageType::Request => {
                if request.server.is_some_and(|chosen| chosen != server) {
                    return None;
                }
                // It asks for an address, or wants to keep the one that it has (§4.3.2).
                let wanted = request.wanted.unwrap_or(request.ciaddr);
                if wanted == guest {
                    MessageType::Ack
                } else {
                    MessageType::Nak
                }
            }
            MessageType::Decline => {
                log::warn!("the guest says that its address {guest} is in use");
                return None;
            }
            _ => return None,
        };
        let mut message = Message::new_with_id(
            request.xid,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            &self.mac,
        );
        message.set_opcode(Opcode::BootReply).set_flags(request.flags);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(server));
        if kind != MessageType::Nak {
            self.configuration(options);
            message.set_ciaddr(request.ciaddr);
            if request.kind != MessageType::Inform {
                message
                    .opts_mut()
                    .insert(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
                message.set_yiaddr(guest);
            }
        }
        // A guest without an address hears what is sent to all; it is alone on its link.
        let to = match (kind, request.ciaddr) {
            (MessageType::Ack, ip) if ip == guest => ip,
            _ => Ipv4Addr::BROADCAST,
        };
        Some(Answer { message, to })
    }

    fn configuration(&self, options: &mut DhcpOptions) {
        let network = self.lease.address;
        options.insert(DhcpOption::SubnetMask(network.netmask()));
        options.insert(DhcpOption::BroadcastAddr(network.broadcast()));
        if let Some(router) = self.lease.router {
            options.insert(DhcpOption::Router(vec![router]));
        }
        if !self.lease.routes.is_empty() {
            options.insert(DhcpOption::ClasslessStaticRoute(self.lease.routes.clone()));
        }
        options.insert(DhcpOption::InterfaceMtu(self.mtu));
        if !self.hostname.is_empty() {
            options.insert(DhcpOption::Hostname(self.hostname.clone()));
        }
        if !self.resolver.servers.is_empty() {
            options.insert(DhcpOption::DomainNameServer(self.resolver.servers.clone()));
        }
        if let Some(first) = self.resolver.search.first() {
            options.insert(DhcpOption::DomainName(first.clone()));
        }
        let search = self.resolver.search_names();
        if !search.is_empty() {
            options.insert(DhcpOption::DomainSearch(search));
        }
    }
}

/// Answers on `tap` from now on, as a task of this runtime; aborting it ends it.
pub(super) fn serve(tap: &str, offer: Offer) -> Result<JoinHandle<()>, Cause> {
    let socket = bind(tap).map_err(Cause::io(format!("answer DHCP on {tap} (port {SERVER_PORT})")))?;
    Ok(tokio::spawn(run(socket, offer)))
}

fn bind(tap: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // Other servers of this host, on other interfaces, have the port too.
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(tap.as_bytes()))?;
    socket.set_broadcast(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_nonblocking(true)?;
    without_checksum(&socket)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER_PORT).into())?;
    UdpSocket::from_std(socket.into())
}

/// Sends UDP without checksum (RFC 768). The kernel would leave it to be filled in by the guest, and some DHCP
/// clients, which read whole packets, take that for a wrong one.
#[expect(unsafe_code, reason = "a socket option that the library lacks")]
fn without_checksum(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the option is an int, which `on` is.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const on).cast(),
            len,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

async fn run(socket: UdpSocket, offer: Offer) {
    let mut buffer = [0; MAX_PACKET];
    loop {
        let received = match socket.recv(&mut buffer).await {
            Ok(len) => buffer.get(..len),
            Err(error) => {
                log::debug!("DHCP: {error}");
                None
            }
        };
        if let Some(answer) = received.and_then(|packet| offer.answer(packet))
            && let Err(error) = send(&socket, &answer).await
        {
            log::debug!("DHCP: the answer could not be sent: {error}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn send(socket: &UdpSocket, answer: &Answer) -> io::Result<()> {
    let mut packet = Vec::with_capacity(MIN_PACKET_SIZE);
    answer
        .message
        .encode(&mut Encoder::new(&mut packet))
        .map_err(io::Error::other)?;
    // Old clients drop what is shorter than a BOOTP message.
    packet.resize(packet.len().max(MIN_PACKET_SIZE), 0);
    socket.send_to(&packet, (answer.to, CLIENT_PORT)).await?;
    log::debug!(
        "DHCP: {:?} to the guest",
        answer
            .message
            .opts()
            .msg_type()
            .unwrap_or(MessageType::Unknown(0))
    );
    Ok(())
}

#[cfg(test)]
mod tests;
