//! The pod's own place on an IPv6 network, by rtnetlink(7).

use std::net::{IpAddr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::Ipv6Net;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

use crate::net::error::Cause;
use crate::net::tap::Host;

/// An interface with an address of more than its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::net) struct Uplink {
    /// The address.
    pub address: Ipv6Addr,
    /// Where to, and by which router (none is on the link); the longest prefix first.
    pub routes: Vec<(Ipv6Net, Option<Ipv6Addr>)>,
}

/// What the interface `index` is on IPv6, if anything.
pub(in crate::net) async fn of(host: &Host, index: u32) -> Result<Option<Uplink>, Cause> {
    let addresses = host
        .handle()
        .address()
        .get()
        .set_link_index_filter(index)
        .execute();
    let addresses: Vec<AddressMessage> = addresses
        .try_collect()
        .await
        .map_err(Cause::netlink("list the addresses"))?;
    let Some(address) = addresses.into_iter().find_map(address) else {
        return Ok(None);
    };
    let all = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let routes = host.handle().route().get(all).execute();
    let routes: Vec<RouteMessage> = routes
        .try_collect()
        .await
        .map_err(Cause::netlink("list the routes"))?;
    let routes = routes.into_iter().filter_map(|message| route(message, index));
    let mut routes: Vec<_> = routes
        .filter(|(network, _)| of_the_world(network.addr()))
        .collect();
    routes.sort_by_key(|(network, via)| (std::cmp::Reverse(network.prefix_len()), *network, *via));
    Ok(Some(Uplink { address, routes }))
}

/// Not of one link or one host alone.
fn of_the_world(address: Ipv6Addr) -> bool {
    !address.is_unicast_link_local() && !address.is_loopback() && !address.is_multicast()
}

fn address(message: AddressMessage) -> Option<Ipv6Addr> {
    let mut addresses = message.attributes.into_iter();
    addresses.find_map(|attribute| match attribute {
        AddressAttribute::Address(IpAddr::V6(address)) if of_the_world(address) => Some(address),
        _ => None,
    })
}

fn route(message: RouteMessage, index: u32) -> Option<(Ipv6Net, Option<Ipv6Addr>)> {
    if message.header.address_family != AddressFamily::Inet6 || message.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut address, mut via, mut link) = (Ipv6Addr::UNSPECIFIED, None, None);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => via = Some(ip),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => address = ip,
            RouteAttribute::Oif(index) => link = Some(index),
            _ => {}
        }
    }
    let network = Ipv6Net::new(address, message.header.destination_prefix_length).ok()?;
    (link == Some(index)).then_some((network, via))
}
