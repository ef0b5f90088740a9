//! Which network a guest gets.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::DEFAULT_NETWORK;
use super::dhcp::Lease;
use super::error::Cause;

/// A guest's network with the addresses in it, as in KubeVirt: first the gateway, then the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subnet {
    /// The network.
    pub network: Ipv4Net,
    /// The host's address.
    pub gateway: Ipv4Addr,
    /// The guest's address.
    pub guest: Ipv4Addr,
}

impl Subnet {
    /// The addresses in `network`.
    pub fn of(network: Ipv4Net) -> Result<Subnet, Cause> {
        let network = network.trunc();
        let mut hosts = network.hosts();
        match (hosts.next(), hosts.next()) {
            (Some(gateway), Some(guest)) if network.prefix_len() <= 30 => Ok(Subnet {
                network,
                gateway,
                guest,
            }),
            _ => Err(Cause::TooSmall(network.into())),
        }
    }

    /// The gateway's address with the length of the network's prefix.
    pub fn gateway_net(&self) -> Ipv4Net {
        Ipv4Net::new(self.gateway, self.network.prefix_len()).unwrap_or(self.network)
    }

    /// What the guest is told of it.
    pub fn lease(&self) -> Lease {
        Lease {
            server: self.gateway,
            address: Ipv4Net::new(self.guest, self.network.prefix_len()).unwrap_or(self.network),
            router: Some(self.gateway),
            routes: Vec::new(),
        }
    }
}

/// The network `wanted`, unless this host has something of it in `used`. In place of the default one the next
/// is taken that is free.
pub(super) fn choose(wanted: Ipv4Net, used: &[Ipv4Net]) -> Result<Subnet, Cause> {
    let in_use = |network: Ipv4Net| {
        let overlap = |used: &&Ipv4Net| used.contains(&network) || network.contains(*used);
        // Everything is in the default route's network.
        let used = used.iter().filter(|used| used.prefix_len() > 0);
        used.copied().find(|used| overlap(&used))
    };
    let wanted = wanted.trunc();
    match in_use(wanted) {
        None => Subnet::of(wanted),
        Some(_) if wanted == DEFAULT_NETWORK => {
            let others = (3..255).filter_map(|third| Ipv4Net::new(Ipv4Addr::new(10, 0, third, 0), 24).ok());
            let free = others.into_iter().find(|&network| in_use(network).is_none());
            Subnet::of(free.ok_or(Cause::NoneFree)?)
        }
        Some(used) => Err(Cause::Used { wanted, used }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn a_guest_gets_the_network_it_wants_or_the_next_free_one() {
        let cases: &[(&str, &[&str], &str)] = &[
            ("10.0.2.0/24", &[], "10.0.2.0/24"),
            (
                "10.0.2.0/24",
                &["0.0.0.0/0", "192.0.2.0/24", "10.0.3.0/24"],
                "10.0.2.0/24",
            ),
            ("10.0.2.0/24", &["10.0.2.1/32", "10.0.3.0/24"], "10.0.4.0/24"),
            ("10.0.2.0/24", &["10.0.0.0/16"], "no network from 10.0.2.0/24"),
            ("10.9.8.7/16", &["10.0.2.0/24"], "10.9.0.0/16"),
            (
                "10.9.0.0/16",
                &["10.9.9.0/24"],
                "in use on this host (10.9.9.0/24)",
            ),
            ("10.9.0.0/30", &[], "10.9.0.0/30"),
            ("10.9.0.0/31", &[], "too small"),
        ];
        for (wanted, used, expected) in cases {
            let used: Vec<_> = used.iter().map(|used| net(used)).collect();
            let got = match choose(net(wanted), &used) {
                Ok(subnet) => subnet.network.to_string(),
                Err(error) => error.to_string(),
            };
            assert!(got.contains(expected), "{wanted} among {used:?}: {got}");
        }
    }

    #[test]
    fn the_host_has_the_first_address_and_the_guest_the_second() {
        let subnet = Subnet::of(net("10.0.2.0/24")).unwrap();
        assert_eq!(subnet.gateway_net().to_string(), "10.0.2.1/24");
        assert_eq!(subnet.guest, Ipv4Addr::new(10, 0, 2, 2));
    }
}
