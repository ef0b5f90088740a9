//! Interfaces of the host: taps, and what netlink tells and sets (rtnetlink(7)).

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use nacelle_devices::net::tap::Tap;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoKind, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::error::Cause;

/// Taps of ours: the kernel chooses the number.
const NAME: &str = "nacelle%d";
/// The tap of a pod, as in KubeVirt.
pub(super) const POD_NAME: &str = "tap0";
/// The tap beside it, by which the guest's router answers.
pub(super) const SIDE_NAME: &str = "tap0-router";
/// How all names of taps of ours begin.
pub(super) const PREFIX: &str = "nacelle";

/// A tap that lives as long as its queues are open.
pub(super) struct NewTap {
    /// Its name.
    pub name: String,
    /// A descriptor for each pair of queues.
    pub queues: Vec<OwnedFd>,
}

/// Makes a tap. Who must make one for us, if we may not, is told to give it `address`.
pub(super) fn make(queue_pairs: u16, address: Option<Ipv4Net>) -> Result<NewTap, Cause> {
    let taps = Tap::open(NAME, usize::from(queue_pairs)).map_err(|error| {
        let errno = match &error {
            nacelle_devices::Error::Io { source, .. } => source.raw_os_error(),
            _ => None,
        };
        let device = match errno {
            Some(libc::EPERM) => "",
            Some(libc::EACCES) => "  chmod a+rw /dev/net/tun\n",
            _ => return Cause::Tap(error),
        };
        Cause::Permission {
            advice: format!("{device}{}", advice("tap0", queue_pairs, address)),
        }
    })?;
    let name = taps.first().map(|tap| tap.name().to_owned()).unwrap_or_default();
    let queues = taps.iter().map(|tap| tap.as_fd().try_clone_to_owned());
    let queues = queues
        .collect::<Result<_, _>>()
        .map_err(Cause::io(format!("duplicate a descriptor of the tap {name}")))?;
    Ok(NewTap { name, queues })
}

/// Makes a tap that stays, and that the user `owner` may attach to. Gives its name.
pub(super) fn make_for(owner: u32, name: &str, queue_pairs: u16) -> Result<String, Cause> {
    let taps = Tap::open(name, usize::from(queue_pairs))?;
    let first = taps.first().ok_or_else(|| Cause::NotThere(name.to_owned()))?;
    first.keep_for(owner)?;
    Ok(first.name().to_owned())
}

/// Commands by which root makes a tap for this user.
pub(super) fn advice(name: &str, queue_pairs: u16, address: Option<Ipv4Net>) -> String {
    let user = rustix::process::getuid().as_raw();
    let queues = if queue_pairs > 1 { " multi_queue" } else { "" };
    let mut commands = format!("  ip tuntap add dev {name} mode tap vnet_hdr{queues} user {user}\n");
    if let Some(address) = address {
        commands += &format!("  ip address add {address} dev {name}\n");
    }
    commands + &format!("  ip link set {name} up")
}

/// An interface of the host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Largest payload of a frame.
    pub mtu: u32,
    /// Its MAC address, where it has one of that kind.
    pub mac: [u8; 6],
    /// It is up.
    pub up: bool,
    /// It is a bridge.
    pub is_bridge: bool,
}

/// A route of the host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Where to.
    pub network: Ipv4Net,
    /// By which interfaces.
    pub links: Vec<u32>,
    /// By which router; none is on the link.
    pub via: Option<Ipv4Addr>,
    /// To hosts, not to an address of our own.
    pub unicast: bool,
}

/// The host's network configuration, of the namespace that this thread is in.
pub(super) struct Host {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Host {
    /// A connection to it.
    pub fn open() -> Result<Host, Cause> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(Cause::io("open a netlink socket"))?;
        let connection = tokio::spawn(connection);
        Ok(Host { handle, connection })
    }

    /// What else netlink tells.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// All interfaces.
    pub async fn links(&self) -> Result<Vec<Link>, Cause> {
        let links = self.handle.link().get().execute();
        let links: Vec<LinkMessage> = links
            .try_collect()
            .await
            .map_err(Cause::netlink("list the interfaces"))?;
        Ok(links.into_iter().map(Link::from).collect())
    }

    /// The interface `name`, if there is one.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, Cause> {
        let links = self.links().await?;
        Ok(links.into_iter().find(|link| link.name == name))
    }

    /// All IPv4 routes.
    pub async fn routes(&self) -> Result<Vec<Route>, Cause> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes = self.handle.route().get(all).execute();
        let routes: Vec<RouteMessage> = routes
            .try_collect()
            .await
            .map_err(Cause::netlink("list the routes"))?;
        Ok(routes.into_iter().filter_map(route).collect())
    }

    /// The networks of all IPv4 addresses, also of interfaces that are down.
    pub async fn networks(&self) -> Result<Vec<Ipv4Net>, Cause> {
        let addresses = self.handle.address().get().execute();
        let addresses: Vec<_> = addresses
            .try_collect()
            .await
            .map_err(Cause::netlink("list the addresses"))?;
        let addresses = addresses.into_iter().filter_map(of_message);
        Ok(addresses.map(|address| address.trunc()).collect())
    }

    /// Takes `name` up with this MTU, and as asked with this MAC address and as a port of this bridge.
    pub async fn set(
        &self,
        name: &str,
        mtu: u32,
        mac: Option<[u8; 6]>,
        bridge: Option<u32>,
    ) -> Result<(), Cause> {
        let mut message = LinkUnspec::new_with_name(name).mtu(mtu).up();
        if let Some(mac) = mac {
            message = message.address(mac.to_vec());
        }
        if let Some(bridge) = bridge {
            message = message.controller(bridge);
        }
        let request = self.handle.link().set(message.build());
        request
            .execute()
            .await
            .map_err(Cause::netlink(format!("set up the tap {name}")))
    }

    /// Has packets that come in by `name` forwarded and, as asked, lets this host's loopback addresses be used there.
    /// Netlink takes these settings of who has CAP_NET_ADMIN also where /proc/sys is read-only, as in a pod.
    pub async fn forward(&self, name: &str, loopback: bool) -> Result<(), Cause> {
        let mut settings = InetDevConf::default();
        settings.forwarding = 1;
        settings.route_localnet = i32::from(loopback);
        let inet = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(settings)]);
        self.family(name, inet, "have packets forwarded that come in by")
            .await
    }

    /// Has the kernel make itself no IPv6 address on `name`.
    pub async fn without_ipv6_address(&self, name: &str) -> Result<(), Cause> {
        let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        match self.family(name, inet6, "have no IPv6 address on").await {
            // This kernel has no IPv6 at all.
            Err(Cause::Netlink {
                source: rtnetlink::Error::NetlinkError(error),
                ..
            }) if error.raw_code() == -libc::EAFNOSUPPORT => Ok(()),
            other => other,
        }
    }

    async fn family(&self, name: &str, settings: AfSpecUnspec, what: &str) -> Result<(), Cause> {
        let attribute = LinkAttribute::AfSpecUnspec(vec![settings]);
        let message = LinkUnspec::new_with_name(name)
            .append_extra_attribute(attribute)
            .build();
        let request = self.handle.link().set(message);
        request
            .execute()
            .await
            .map_err(Cause::netlink(format!("{what} {name}")))
    }

    /// The IPv4 addresses of the interface `index`, each with its network.
    pub async fn addresses(&self, index: u32) -> Result<Vec<Ipv4Net>, Cause> {
        let addresses = self.handle.address().get().set_link_index_filter(index).execute();
        let addresses: Vec<_> = addresses
            .try_collect()
            .await
            .map_err(Cause::netlink("list the addresses"))?;
        Ok(addresses.into_iter().filter_map(of_message).collect())
    }

    /// Gives the interface `index` an address in a network.
    pub async fn add_address(&self, index: u32, address: Ipv4Net) -> Result<(), Cause> {
        let (ip, prefix) = (address.addr().into(), address.prefix_len());
        let request = self.handle.address().add(index, ip, prefix);
        request
            .execute()
            .await
            .map_err(Cause::netlink(format!("give the tap the address {address}")))
    }
}

fn of_message(message: AddressMessage) -> Option<Ipv4Net> {
    let prefix = message.header.prefix_len;
    message
        .attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Address(IpAddr::V4(ip)) => Ipv4Net::new(ip, prefix).ok(),
            _ => None,
        })
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Link {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            mac: [0; 6],
            up: message.header.flags.contains(LinkFlags::Up),
            is_bridge: false,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(mac) => link.mac = mac.try_into().unwrap_or_default(),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                }
                _ => {}
            }
        }
        link
    }
}

fn route(message: RouteMessage) -> Option<Route> {
    if message.header.address_family != AddressFamily::Inet {
        return None;
    }
    let mut address = Ipv4Addr::UNSPECIFIED;
    let (mut links, mut via) = (Vec::new(), None);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => via = Some(ip),
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => address = ip,
            RouteAttribute::Oif(index) => links.push(index),
            RouteAttribute::MultiPath(hops) => links.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    Some(Route {
        network: Ipv4Net::new(address, message.header.destination_prefix_length).ok()?,
        links,
        via,
        unicast: message.header.kind == RouteType::Unicast,
    })
}
