//! A machine's interface in its pod.
//!
//! ```text
//! init container `pod init`   root, NET_ADMIN alone: makes the tap and the rules of nftables, writes what it made
//! `pod run`                  no privilege at all: attaches to the tap, which is its user's, and answers DHCP
//! ```
//! Both live in the pod's network namespace, as long as the pod: nothing has to be undone. What is made:
//!
//! ```text
//! masquerade   the tap has the gateway's address; nftables translates between it and the pod's eth0
//!              Of IPv6, where the pod has it: each packet is translated as it comes in, and a tap beside the guest's
//!              has its router answer (`super::ipv6`)
//! bridge       the guest is the pod on its network: nftables passes frames between tap and eth0 as they are, and
//!              DHCP hands the pod's address over. The pod keeps the address too: what comes for the few ports in
//!              `OWN_PORTS`, from which the launcher reports, is its own
//! ```

mod ipv6;
mod rules;

use std::ops::RangeInclusive;

use ipnet::{Ipv4Net, Ipv6Net};
use nacelle_vmm::config::TapConfig;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::dhcp::{self, Lease, Offer};
use super::error::{Cause, Error};
use super::ipv6::uplink::{self, Uplink};
use super::ipv6::{DEFAULT_NETWORK, Ipv6, Router};
use super::masquerade::{GATEWAY_MAC, mtu};
use super::subnet::Subnet;
use super::tap::{self, Host, Link, Route};
use super::{Binding, HostNet, Net, Port, nft, resolver, unusual};

/// The pod's interface on the pod network, as every network plugin names it.
pub const UPLINK: &str = "eth0";
/// The user that runs the machine (KubeVirt's `qemu`).
pub const USER: u32 = 107;
/// TCP ports of the pod that are the launcher's own where the guest has the pod's address: its connections come
/// from these.
pub const OWN_PORTS: RangeInclusive<u16> = 65520..=65535;
/// TCP port of the machine's HTTP API on the pod's loopback address.
pub const API_PORT: u16 = 22480;
/// Our address on the tap of a bridged guest, as in KubeVirt: the DHCP server's.
const BRIDGED_SERVER: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(169, 254, 75, 10), 32);

/// An interface that `pod init` made, for `pod run`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its network.
    pub network: String,
    /// The tap.
    pub tap: String,
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// Largest payload of a frame.
    pub mtu: u32,
    /// What the guest is told by DHCP.
    pub lease: Lease,
    /// Where it is on IPv6, where the pod is on it and the guest is translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6>,
    /// The guest has the pod's own address.
    pub bridged: bool,
}

impl Interface {
    /// Not all that comes to the pod's address is the pod's: its own connections must begin at [`OWN_PORTS`].
    pub fn shares_address(&self) -> bool {
        self.bridged || self.ipv6.is_some()
    }
}

/// Makes the interface of `nets` in this network namespace. It must run on a tokio runtime with I/O and time.
///
/// # Errors
/// When it cannot be had, with what to do about it.
pub async fn make(nets: &[Net]) -> Result<Vec<Interface>, Error> {
    let net = match nets {
        [] => return Ok(Vec::new()),
        [net] => net,
        [_, second, ..] => return Err(Cause::OnePodNetwork.of(&second.name)),
    };
    let made = make_one(net).await.map_err(|cause| cause.of(&net.name))?;
    Ok(vec![made])
}

async fn make_one(net: &Net) -> Result<Interface, Cause> {
    let host = Host::open()?;
    let links = host.links().await?;
    let uplink = links.iter().find(|link| link.name == UPLINK);
    let uplink = uplink.ok_or_else(|| Cause::NotThere(UPLINK.to_owned()))?;
    let routes = host.routes().await?;
    let name = tap::make_for(USER, tap::POD_NAME, net.queue_pairs)?;
    host.without_ipv6_address(&name).await?;
    let mtu = mtu(&routes, &links);
    let tap = Tap {
        host: &host,
        name,
        mtu,
    };
    match &net.binding {
        Binding::Masquerade { ipv4, ipv6, ports } => {
            let subnet = Subnet::of(*ipv4)?;
            tap.set_up(Some(GATEWAY_MAC), subnet.gateway_net()).await?;
            // The rules are there before anything is forwarded.
            nft::apply(&rules::masquerade(&tap.name, &subnet, ports))?;
            host.forward(&tap.name, true).await?;
            host.forward(UPLINK, false).await?;
            let network = ipv6.unwrap_or(DEFAULT_NETWORK);
            let ipv6 = match uplink::of(&host, uplink.index).await? {
                Some(uplink) => Some(tap.translated(net, network, &uplink, ports).await?),
                None => None,
            };
            Ok(Interface {
                ipv6,
                ..tap.made(net, net.mac, subnet.lease(), false)
            })
        }
        Binding::Bridge => {
            let addresses = host.addresses(uplink.index).await?;
            let address = addresses.first().ok_or(Cause::NoPodAddress)?;
            let mac = own_mac(&host, uplink, net).await?;
            tap.set_up(None, BRIDGED_SERVER).await?;
            nft::apply(&rules::bridge(&tap.name))?;
            let lease = handed_over(*address, uplink, &routes);
            Ok(tap.made(net, mac, lease, true))
        }
    }
}

/// The tap in the making.
struct Tap<'a> {
    host: &'a Host,
    name: String,
    mtu: u32,
}

impl Tap<'_> {
    async fn set_up(&self, mac: Option<[u8; 6]>, address: Ipv4Net) -> Result<(), Cause> {
        self.host.set(&self.name, self.mtu, mac, None).await?;
        let link = self.host.link(&self.name).await?;
        let link = link.ok_or_else(|| Cause::NotThere(self.name.clone()))?;
        // It is there when the container is run again.
        if self.host.addresses(link.index).await?.contains(&address) {
            return Ok(());
        }
        self.host.add_address(link.index, address).await
    }

    /// Makes what passes IPv6 to and from the guest.
    async fn translated(
        &self,
        net: &Net,
        network: Ipv6Net,
        uplink: &Uplink,
        ports: &[Port],
    ) -> Result<Ipv6, Cause> {
        let side = tap::make_for(USER, tap::SIDE_NAME, 1)?;
        self.host.without_ipv6_address(&side).await?;
        self.host.set(&side, self.mtu, None, None).await?;
        let ipv6 = Ipv6::of(&side, network, uplink.address)?;
        nft::apply(&ipv6::rules(&self.name, net.mac, &ipv6, uplink, ports))?;
        Ok(ipv6)
    }

    fn made(self, net: &Net, mac: [u8; 6], lease: Lease, bridged: bool) -> Interface {
        Interface {
            network: net.name.clone(),
            tap: self.name,
            mac,
            mtu: self.mtu,
            lease,
            ipv6: None,
            bridged,
        }
    }
}

/// A bridged guest and its pod have the same MAC address: the one that the manifest names, else the pod's.
async fn own_mac(host: &Host, uplink: &Link, net: &Net) -> Result<[u8; 6], Cause> {
    if net.mac_given && net.mac != uplink.mac {
        host.set(UPLINK, uplink.mtu, Some(net.mac), None).await?;
        return Ok(net.mac);
    }
    Ok(uplink.mac)
}

/// What a guest is told that takes the pod's address: the pod's routes. Where the only one is a router in the pod's
/// own network, every client understands it; else they are listed.
fn handed_over(address: Ipv4Net, uplink: &Link, routes: &[Route]) -> Lease {
    let ours = routes.iter().filter(|route| {
        let connected = route.via.is_none() && route.network == address.trunc();
        route.unicast && route.links.contains(&uplink.index) && !connected
    });
    let ours: Vec<_> = ours.map(|route| (route.network, route.via)).collect();
    let (mut router, mut listed) = (None, Vec::new());
    match ours.as_slice() {
        [(network, Some(via))] if network.prefix_len() == 0 && address.contains(via) => router = Some(*via),
        all => {
            let link = std::net::Ipv4Addr::UNSPECIFIED;
            listed = all
                .iter()
                .map(|(network, via)| (*network, via.unwrap_or(link)))
                .collect();
            // The router of a route comes before who needs it.
            listed.sort_by_key(|(network, via)| (*via != link, std::cmp::Reverse(network.prefix_len())));
        }
    }
    Lease {
        server: BRIDGED_SERVER.addr(),
        address,
        router,
        routes: listed,
    }
}

/// The DHCP servers of a pod's interfaces; dropping them ends them.
#[derive(Debug)]
pub struct Served(Vec<JoinHandle<()>>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Takes the interfaces that [`make`] made and answers their guest, which is called `hostname`, from now on, as tasks
/// of this runtime.
///
/// # Errors
/// When the port of DHCP is not ours to take.
pub fn take(interfaces: &[Interface], hostname: &str) -> Result<(Vec<HostNet>, Served), Error> {
    let mut served = Served(Vec::new());
    let mut nets = Vec::new();
    for interface in interfaces {
        let offer = Offer {
            mac: interface.mac,
            lease: interface.lease.clone(),
            mtu: u16::try_from(interface.mtu).unwrap_or(u16::MAX),
            hostname: hostname.to_owned(),
            resolver: resolver::of_host(),
        };
        if let Some(ipv6) = &interface.ipv6 {
            let router = Router {
                mac: interface.mac,
                ipv6: ipv6.clone(),
                mtu: interface.mtu,
                resolver: offer.resolver.clone(),
            };
            let router = super::ipv6::serve(router).map_err(|cause| cause.of(&interface.network))?;
            served.0.push(router);
        }
        let server = dhcp::serve(&interface.tap, offer).map_err(|cause| cause.of(&interface.network))?;
        served.0.push(server);
        nets.push(HostNet {
            tap: TapConfig::Name(interface.tap.clone()),
            mac: Some(interface.mac),
            mtu: unusual(interface.mtu),
            guest: None,
        });
    }
    Ok((nets, served))
}

#[cfg(test)]
mod tests;
