//! Binding masquerade: a tap with the gateway's address, a table of nftables that translates, DHCP on the tap.
//!
//! The table is named after the tap. A process that is killed leaves its table: as its tap is gone, whoever
//! prepares the next machine sees that and removes it, and what it had turned on.

use std::fmt::Write;
use std::os::fd::OwnedFd;

use ipnet::Ipv4Net;
use nacelle_vmm::config::TapConfig;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::task::JoinHandle;

use super::error::Cause;
use super::lock::Lock;
use super::nft::{self, LENT, Table};
use super::subnet::{self, Subnet};
use super::tap::{self, Host, Link, Route};
use super::{DEFAULT_NETWORK, HostNet, Net, Options, Port, dhcp, forwarding, resolver, unusual};

/// The gateway's MAC address, as in KubeVirt: the same on every host that a guest may move to.
pub(super) const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0];
/// The largest MTU of a tap: its frames have at most 65535 bytes.
const MAX_MTU: u32 = 65535 - 14;

/// What translates for one interface; dropping it undoes it.
#[derive(Debug)]
pub(super) struct Masquerade {
    table: String,
    dhcp: Option<JoinHandle<()>>,
    /// Sockets that keep other programs of this host off the ports that are forwarded.
    _ports: Vec<Socket>,
    /// Keeps the tap, so that nobody else gets its name before the table is removed.
    _tap: Option<OwnedFd>,
}

impl Drop for Masquerade {
    fn drop(&mut self) {
        if let Some(dhcp) = &self.dhcp {
            dhcp.abort();
        }
        let removed = Lock::take().and_then(|_lock| remove(|table| table.name == self.table));
        if let Err(error) = removed {
            log::warn!("the table ip {} of nftables stays: {error}", self.table);
        }
    }
}

/// Removes the tables that `goes` chooses, and what was turned on for them only.
fn remove(goes: impl Fn(&Table) -> bool) -> Result<(), Cause> {
    let (gone, left): (Vec<_>, Vec<_>) = nft::tables()?.into_iter().partition(goes);
    if !gone.is_empty() {
        let script = gone
            .iter()
            .map(|table| format!("delete table ip {}\n", table.name));
        nft::apply(&script.collect::<String>())?;
        forwarding::give_back(&gone, &left);
    }
    Ok(())
}

/// Makes the host's side of `net`.
pub(super) async fn make(
    host: &Host,
    net: &Net,
    wanted: Ipv4Net,
    ports: &[Port],
    options: &Options,
) -> Result<(HostNet, Masquerade), Cause> {
    let _lock = Lock::take()?;
    let links = host.links().await?;
    let routes = host.routes().await?;
    let used = routes.iter().map(|route| route.network);
    let used: Vec<Ipv4Net> = used.chain(host.networks().await?).collect();
    let subnet = subnet::choose(wanted, &used)?;
    let tap = tap::make(net.queue_pairs, Some(subnet.gateway_net()))?;
    remove(|table| !links.iter().any(|link| link.name == table.name))?;

    let mtu = mtu(&routes, &links);
    forwarding::without_ipv6(&tap.name)?;
    host.set(&tap.name, mtu, Some(GATEWAY_MAC), None).await?;
    let index = host.link(&tap.name).await?.map_or(0, |link| link.index);
    host.add_address(index, subnet.gateway_net()).await?;

    let (ports, sockets) = reserve(&net.name, ports)?;
    let own = tap.queues.first().map(OwnedFd::try_clone).transpose();
    let own = own.map_err(Cause::io(format!(
        "duplicate a descriptor of the tap {}",
        tap.name
    )))?;
    let mut masquerade = Masquerade {
        table: tap.name.clone(),
        dhcp: None,
        _ports: sockets,
        _tap: own,
    };
    let uplinks = uplinks(&routes, &links);
    let rules = Rules {
        tap: &tap.name,
        subnet: &subnet,
        ports: &ports,
        lent: &forwarding::to_lend(&uplinks, &nft::tables()?)?,
        comment: &format!("machine {} network {}", options.machine, net.name),
    };
    // The rules are there before anything is forwarded.
    nft::apply(&rules.script())?;
    for interface in rules.lent.iter().chain([&tap.name]) {
        forwarding::turn_on(interface)?;
    }
    if !ports.is_empty() {
        forwarding::route_loopback(&tap.name)?;
    }
    let offer = dhcp::Offer {
        mac: net.mac,
        lease: subnet.lease(),
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        hostname: options.hostname.clone(),
        resolver: resolver::of_host(),
    };
    masquerade.dhcp = Some(dhcp::serve(&tap.name, offer)?);
    warn_of_firewalls()?;
    tell(net, &tap.name, &subnet, &ports, wanted);
    let host_net = HostNet {
        tap: TapConfig::Fds(tap.queues),
        mac: None,
        mtu: unusual(mtu),
        guest: Some(subnet.guest),
    };
    Ok((host_net, masquerade))
}

/// Says which rules of the host's own firewall stand in the way.
fn warn_of_firewalls() -> Result<(), Cause> {
    for dropping in nft::dropping()? {
        log::warn!(
            "this host's firewall drops what it does not know ({}), also of guests; root lets them through by: {}",
            dropping.chain,
            dropping.remedy()
        );
    }
    Ok(())
}

fn tell(net: &Net, tap: &str, subnet: &Subnet, ports: &[Port], wanted: Ipv4Net) {
    if subnet.network != wanted.trunc() {
        log::warn!(
            "network {}: {DEFAULT_NETWORK} is in use on this host, so the guest is in {}",
            net.name,
            subnet.network
        );
    }
    let forwarded: Vec<String> = ports.iter().map(Port::to_string).collect();
    let forwarded = match forwarded.is_empty() {
        true => String::new(),
        false => format!(", and by the ports {} of this host", forwarded.join(", ")),
    };
    log::info!(
        "network {}: the guest is reached at {}{forwarded} (tap {tap})",
        net.name,
        subnet.guest
    );
}

/// The MTU of the way out, which is then the guest's.
pub(super) fn mtu(routes: &[Route], links: &[Link]) -> u32 {
    let default = routes.iter().find(|route| route.network.prefix_len() == 0);
    let uplink = default.and_then(|route| links.iter().find(|link| route.links.contains(&link.index)));
    uplink.map_or(1500, |link| link.mtu.min(MAX_MTU))
}

/// The interfaces by which answers to a guest can come in: those that a route leads to.
fn uplinks(routes: &[Route], links: &[Link]) -> Vec<String> {
    let has_route = |link: &&Link| {
        let mut routes = routes.iter().filter(|route| route.unicast);
        routes.any(|route| route.links.contains(&link.index))
    };
    let uplinks = links.iter().filter(|link| link.name != "lo").filter(has_route);
    uplinks.map(|link| link.name.clone()).collect()
}

/// Takes the ports on this host that are to be forwarded. One that is in use is not: its program keeps it.
fn reserve(network: &str, ports: &[Port]) -> Result<(Vec<Port>, Vec<Socket>), Cause> {
    let mut reserved = (Vec::new(), Vec::new());
    for &port in ports {
        let kind = if port.udp { Type::DGRAM } else { Type::STREAM };
        let address: SockAddr =
            std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, port.port).into();
        let socket = Socket::new(Domain::IPV4, kind, None).and_then(|socket| {
            socket.bind(&address)?;
            Ok(socket)
        });
        match socket {
            Ok(socket) => {
                reserved.0.push(port);
                reserved.1.push(socket);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => log::warn!(
                "network {network}: port {port} of this host is in use and not forwarded; reach the guest at its address"
            ),
            Err(error) => return Err(Cause::io(format!("take the port {port} of this host"))(error)),
        }
    }
    Ok(reserved)
}

/// What the table is made from.
struct Rules<'a> {
    tap: &'a str,
    subnet: &'a Subnet,
    ports: &'a [Port],
    lent: &'a [String],
    comment: &'a str,
}

impl Rules<'_> {
    fn script(&self) -> String {
        let Rules { tap, subnet, .. } = self;
        let Subnet { network, guest, .. } = subnet;
        let quoted: Vec<String> = self.lent.iter().map(|name| format!("\"{name}\"")).collect();
        let lent = match quoted.is_empty() {
            true => String::new(),
            false => format!("elements = {{ {} }}; ", quoted.join(", ")),
        };
        // Words only: the text goes into a quoted string of 128 bytes at most.
        let word = |c: char| c.is_ascii_alphanumeric() || "-._ ".contains(c);
        let comment: String = self.comment.chars().filter(|&c| word(c)).take(120).collect();
        let mut forward = String::new();
        for (protocol, udp) in [("tcp", false), ("udp", true)] {
            let ports = self.ports.iter().filter(|port| port.udp == udp);
            let ports: Vec<String> = ports.map(|port| port.port.to_string()).collect();
            if !ports.is_empty() {
                let ports = ports.join(", ");
                let _ = writeln!(
                    forward,
                    "    iifname != \"{tap}\" fib daddr type local {protocol} dport {{ {ports} }} dnat to {guest}"
                );
            }
        }
        // A guest may not send as somebody else, nor to this host's loopback addresses. Interfaces that forward
        // for us let through what was asked from here and what is forwarded to a guest, nothing else.
        format!(
            r#"table ip {tap} {{
  comment "{comment}"
  set {LENT} {{ type ifname; {lent}}}
  chain guest {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{tap}" ip saddr != {{ 0.0.0.0, {network} }} drop
    iifname "{tap}" ip daddr 127.0.0.0/8 drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname @{LENT} ct state {{ established, related }} accept
    iifname @{LENT} ct status dnat accept
    iifname @{LENT} drop
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
{forward}  }}
  chain output {{
    type nat hook output priority -100; policy accept;
{}  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {network} oifname != "{tap}" masquerade
    ip saddr 127.0.0.0/8 oifname "{tap}" masquerade
  }}
}}
"#,
            // In the output hook there is no interface that the packet came in by.
            forward.replace(&format!("iifname != \"{tap}\" "), "")
        )
    }
}
