//! The host's DNS servers, as far as a guest can use them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use dhcproto::Name;

/// Where resolv.conf(5) names servers: the second is systemd-resolved's, for when the first names only itself.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// More than a client would ask.
const MAX_SERVERS: usize = 3;
/// What one option of DHCP surely holds.
const MAX_SEARCH: usize = 6;

/// Servers and search domains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resolver {
    /// Servers that a guest can reach by IPv4.
    pub servers: Vec<Ipv4Addr>,
    /// The same by IPv6.
    pub servers6: Vec<Ipv6Addr>,
    /// Domains that names are completed with.
    pub search: Vec<String>,
}

impl Resolver {
    /// The domains as DHCP has them (RFC 3397, RFC 3646).
    pub fn search_names(&self) -> Vec<Name> {
        let names = self.search.iter();
        names.filter_map(|name| Name::from_str(name).ok()).collect()
    }
}

/// The host's resolver. A loopback address is of no use to a guest.
pub(super) fn of_host() -> Resolver {
    let files = FILES.iter().filter_map(|file| fs::read_to_string(file).ok());
    let found = choose(files.map(|text| parse(&text)));
    if found.servers.is_empty() {
        log::warn!("this host names no IPv4 DNS server that a guest can reach: the guest gets none by DHCP");
    }
    found
}

/// The first that has servers, else the first.
fn choose(resolvers: impl Iterator<Item = Resolver>) -> Resolver {
    let mut first = None;
    for resolver in resolvers {
        if !resolver.servers.is_empty() {
            return resolver;
        }
        first = first.or(Some(resolver));
    }
    first.unwrap_or_default()
}

fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                let Some(Ok(server)) = words.next().map(str::parse::<IpAddr>) else {
                    continue;
                };
                if server.is_loopback() || server.is_unspecified() {
                    continue;
                }
                match server {
                    IpAddr::V4(ip) if resolver.servers.len() < MAX_SERVERS => resolver.servers.push(ip),
                    // One of the host's own links is none of the guest's.
                    IpAddr::V6(ip) if ip.is_unicast_link_local() => {}
                    IpAddr::V6(ip) if resolver.servers6.len() < MAX_SERVERS => resolver.servers6.push(ip),
                    _ => {}
                }
            }
            // The last line of these counts.
            Some("search" | "domain") => {
                resolver.search = words
                    .filter(|&word| word != ".")
                    .take(MAX_SEARCH)
                    .map(str::to_owned)
                    .collect();
            }
            _ => {}
        }
    }
    resolver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_of_servers_it_can_reach() {
        let stub = parse("# stub\nnameserver 127.0.0.53\noptions edns0\nsearch .\n");
        let real = parse(
            "nameserver 192.0.2.1\nnameserver fe80::1\nnameserver 2001:db8::53\nnameserver ::1\nnameserver 192.0.2.2\nsearch a.example b.example\n",
        );
        assert_eq!(stub, Resolver::default());
        assert_eq!(
            real.servers,
            [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)]
        );
        assert_eq!(real.servers6, ["2001:db8::53".parse::<Ipv6Addr>().unwrap()]);
        assert_eq!(real.search, ["a.example", "b.example"]);
        assert_eq!(choose([stub.clone(), real.clone()].into_iter()), real);
        assert_eq!(choose([stub.clone()].into_iter()), stub);
    }
}
