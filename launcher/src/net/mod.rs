//! The host's side of a machine's interfaces: what is made for each binding, and undone at the end.
//!
//! ```text
//! masquerade   tap nacelleN with the gateway's address, NAT by a table nacelleN of nftables, DHCP on the tap
//! bridge       tap nacelleN as a port of the bridge that --bridge names; addresses come from behind it
//! --tap NAME   a tap that somebody made, whatever the binding; used as it is
//! ```
//! In a pod it is otherwise: see [`pod`].
//!
//! The taps are not persistent: they vanish with the last descriptor, so also when this process is killed. The
//! rest of what a killed process leaves ([`masquerade`]) is removed when the next machine is prepared.

mod dhcp;
mod error;
mod forwarding;
mod ipv6;
mod lock;
mod masquerade;
mod nft;
pub mod pod;
mod resolver;
mod subnet;
mod tap;

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};
use nacelle_vmm::config::TapConfig;

pub use self::dhcp::Lease;
pub use self::error::{Cause, Error};
pub use self::ipv6::Ipv6;
use self::tap::{Host, Link};

/// An interface that the guest sees, and how it is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// Its name, which is its network's.
    pub name: String,
    /// How it is connected to the host.
    pub binding: Binding,
    /// MAC address.
    pub mac: [u8; 6],
    /// The manifest names it.
    pub mac_given: bool,
    /// Pairs of queues.
    pub queue_pairs: u16,
}

/// How an interface is connected to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// The guest has a private address; the host translates.
    Masquerade {
        /// The guest's network: the host has its first address, the guest its second.
        ipv4: Ipv4Net,
        /// The same of IPv6, where the manifest names it. Served in pods.
        ipv6: Option<Ipv6Net>,
        /// Ports of the guest that the host forwards to it.
        ports: Vec<Port>,
    },
    /// The guest is on a network of the host itself.
    Bridge,
}

/// KubeVirt's network for a machine that names none. Another is taken where this host uses it already.
pub const DEFAULT_NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 2, 0), 24);

/// A port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// UDP instead of TCP.
    pub udp: bool,
    /// Its number.
    pub port: u16,
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.port, if self.udp { "udp" } else { "tcp" })
    }
}

/// What the command line says of networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Taps made by somebody else, for the first interfaces in their order.
    pub taps: Vec<String>,
    /// The bridge for interfaces with that binding.
    pub bridge: Option<String>,
    /// Name of the machine.
    pub machine: String,
    /// Name that the guest is told by DHCP.
    pub hostname: String,
}

/// What stands for an interface on the host.
#[derive(Debug)]
pub struct HostNet {
    /// The tap, for the machine's configuration.
    pub tap: TapConfig,
    /// The guest's MAC address, where it is not for the manifest to say.
    pub mac: Option<[u8; 6]>,
    /// Largest payload of a frame, to be told the guest.
    pub mtu: Option<u16>,
    /// Where the guest is reached from this host, where we decide it.
    pub guest: Option<Ipv4Addr>,
}

/// The host's side of all interfaces, in their order.
#[derive(Debug)]
pub struct Prepared {
    /// One for each interface.
    pub nets: Vec<HostNet>,
    /// Undoes, when dropped, what was made besides the taps: to be kept until the machine has ended.
    pub held: Held,
}

/// See [`Prepared::held`].
#[derive(Debug, Default)]
pub struct Held(Vec<masquerade::Masquerade>);

/// What is done for an interface.
#[derive(Debug, PartialEq, Eq)]
enum Way<'a> {
    /// Use this tap as it is.
    Tap(&'a str),
    /// Make a tap, a port of this bridge.
    Bridge(&'a str),
    /// Make a tap, translate and answer DHCP.
    Masquerade(Ipv4Net, &'a [Port]),
}

/// Decides for each interface what is done.
fn plan<'a>(nets: &'a [Net], options: &'a Options) -> Result<Vec<Way<'a>>, Error> {
    if let Some(tap) = options.taps.get(nets.len()) {
        return Err(Error::NoInterface {
            tap: tap.clone(),
            count: nets.len(),
        });
    }
    let mut taps = options.taps.iter();
    nets.iter()
        .map(|net| match (taps.next(), &net.binding, &options.bridge) {
            (Some(tap), _, _) => Ok(Way::Tap(tap)),
            (None, Binding::Masquerade { ipv4, ipv6, ports }, _) => {
                if ipv6.is_some() {
                    log::warn!(
                        "network {}: vmIPv6NetworkCIDR has no effect without a cluster; the guest gets IPv4",
                        net.name
                    );
                }
                Ok(Way::Masquerade(*ipv4, ports))
            }
            (None, Binding::Bridge, Some(bridge)) => Ok(Way::Bridge(bridge)),
            (None, Binding::Bridge, None) => Err(Cause::NoBridge.of(&net.name)),
        })
        .collect()
}

/// Makes the host's side of `nets`. It must run on a tokio runtime with I/O and time, where the DHCP servers
/// then go on as tasks.
///
/// # Errors
/// When an interface cannot be had, with what to do about it. Nothing is left then.
pub async fn prepare(nets: &[Net], options: &Options) -> Result<Prepared, Error> {
    let ways = plan(nets, options)?;
    let mut prepared = Prepared {
        nets: Vec::with_capacity(nets.len()),
        held: Held::default(),
    };
    if nets.is_empty() {
        return Ok(prepared);
    }
    let host = Host::open().map_err(|cause| cause.of("of this host"))?;
    for (net, way) in nets.iter().zip(ways) {
        let made =
            match way {
                Way::Tap(name) => existing(&host, net, name).await,
                Way::Bridge(bridge) => bridged(&host, net, bridge).await,
                Way::Masquerade(wanted, ports) => masquerade::make(&host, net, wanted, ports, options)
                    .await
                    .map(|(host_net, masquerade)| {
                        prepared.held.0.push(masquerade);
                        host_net
                    }),
            };
        prepared.nets.push(made.map_err(|cause| cause.of(&net.name))?);
    }
    Ok(prepared)
}

/// A tap that somebody made for us.
async fn existing(host: &Host, net: &Net, name: &str) -> Result<HostNet, Cause> {
    let link = host.link(name).await?.ok_or_else(|| Cause::NoTap {
        tap: name.to_owned(),
        advice: tap::advice(name, net.queue_pairs, None),
    })?;
    if !link.up {
        log::warn!(
            "network {}: the tap {name} is down (ip link set {name} up)",
            net.name
        );
    }
    Ok(HostNet {
        tap: TapConfig::Name(name.to_owned()),
        mac: None,
        mtu: unusual(link.mtu),
        guest: None,
    })
}

/// A tap of ours on a bridge of the host.
async fn bridged(host: &Host, net: &Net, name: &str) -> Result<HostNet, Cause> {
    let bridge: Link = host
        .link(name)
        .await?
        .ok_or_else(|| Cause::NotThere(name.to_owned()))?;
    if !bridge.is_bridge {
        return Err(Cause::NotABridge(name.to_owned()));
    }
    let tap = tap::make(net.queue_pairs, None)?;
    host.set(&tap.name, bridge.mtu, None, Some(bridge.index)).await?;
    log::info!("network {}: tap {} on the bridge {name}", net.name, tap.name);
    Ok(HostNet {
        tap: TapConfig::Fds(tap.queues),
        mac: None,
        mtu: unusual(bridge.mtu),
        guest: None,
    })
}

/// The guest is told what it would not assume.
fn unusual(mtu: u32) -> Option<u16> {
    (mtu != 1500).then(|| u16::try_from(mtu).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod testbed;
#[cfg(test)]
mod tests;
