//! IPv6 of a masqueraded guest in its pod.
//!
//! The kernel forwards nothing: to let it, a pod would need a setting of `/proc/sys/net/ipv6`, which is read-only there.
//! Instead nftables translates each packet where it comes in, one address for the other, and passes it on at once: that
//! needs no state, as the guest is alone behind the pod's address.

use std::fmt::Write;

use super::{OWN_PORTS, UPLINK};
use crate::net::Port;
use crate::net::ipv6::uplink::Uplink;
use crate::net::ipv6::{Ipv6, LINK_LOCAL};
use crate::net::masquerade::GATEWAY_MAC;

/// Connections that a guest with named ports may have begun at a time, and how long the answers to a silent one are let in.
const ASKED: &str = "size 65536; timeout 10m;";
/// Of the pod itself, whoever its packets are for: neighbour discovery (RFC 4861) and multicast listeners.
const OF_THE_LINK: &str = "{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect, \
                           mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report }";
const ERRORS: &str = "{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }";

/// What passes IPv6 between the guest with this MAC address behind `tap` and the pod's interface. Where the guest names no
/// ports, everything that comes to the pod is for it, but for the pod's own few.
///
/// The guest may not send as somebody else, nor to the pod itself.
pub(super) fn rules(tap: &str, mac: [u8; 6], ipv6: &Ipv6, uplink: &Uplink, ports: &[Port]) -> String {
    let Ipv6 {
        tap: side,
        gateway,
        address,
        outside,
    } = ipv6;
    let (guest, network) = (address.addr(), address.trunc());
    let (first_own, last_own) = (OWN_PORTS.start(), OWN_PORTS.end());
    let [mac, own_mac] = [mac, GATEWAY_MAC].map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
    let mut ways = String::new();
    for (network, via) in &uplink.routes {
        let via = via.map_or_else(|| "ip6 daddr".to_owned(), |via| via.to_string());
        let _ = writeln!(
            ways,
            "    ip6 daddr {network} fwd ip6 to {via} device \"{UPLINK}\""
        );
    }
    let (note, wanted) = if ports.is_empty() {
        (String::new(), "    goto to_guest\n".to_owned())
    } else {
        named(ports)
    };
    format!(
        r#"table netdev nacelle6
delete table netdev nacelle6
table netdev nacelle6 {{
  set asked {{
    type ipv6_addr . inet_proto . inet_service . inet_service
    flags dynamic,timeout; {ASKED}
  }}
  chain guest {{
    type filter hook ingress device "{tap}" priority -10; policy accept;
    ether type ip6 goto from_guest
  }}
  chain from_guest {{
    icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit }} fwd to "{side}"
    ip6 daddr ff02::1:2 udp dport 547 fwd to "{side}"
    ip6 daddr {{ {gateway}, {LINK_LOCAL} }} icmpv6 type echo-request fwd to "{side}"
    ip6 saddr != {guest} drop
    ip6 daddr {{ ::/127, fe80::/10, ff00::/8, {outside}, {network} }} drop
    meta l4proto icmpv6 icmpv6 type != {{ echo-request, echo-reply }} drop
{note}    ip6 saddr set {outside}
{ways}    drop
  }}
  chain answers {{
    type filter hook ingress device "{side}" priority -10; policy drop;
    fwd to "{tap}"
  }}
  chain network {{
    type filter hook ingress device "{UPLINK}" priority -10; policy accept;
    ip6 daddr {outside} goto to_pod
  }}
  chain to_pod {{
    icmpv6 type {OF_THE_LINK} accept
    tcp dport {first_own}-{last_own} accept
    icmpv6 type {ERRORS} @th,112,8 6 @th,384,16 {first_own}-{last_own} accept
    icmpv6 type {ERRORS} fwd to "{side}"
{wanted}  }}
  chain to_guest {{
    ip6 daddr set {guest} ether saddr set {own_mac} ether daddr set {mac} fwd to "{tap}"
  }}
}}
"#
    )
}

/// What is noted of packets from a guest that names its ports, and what of those to the pod is for it: these ports, and
/// the answers to what it asked.
fn named(ports: &[Port]) -> (String, String) {
    let mut wanted = String::new();
    for (protocol, udp) in [("tcp", false), ("udp", true)] {
        let ports = ports.iter().filter(|port| port.udp == udp);
        let ports: Vec<_> = ports.map(|port| port.port.to_string()).collect();
        if !ports.is_empty() {
            let _ = writeln!(
                wanted,
                "    {protocol} dport {{ {} }} goto to_guest",
                ports.join(", ")
            );
        }
    }
    // Ports are in the first fragment alone; the others are of no use without it.
    wanted +=
        "    meta l4proto { tcp, udp } ip6 saddr . meta l4proto . th dport . th sport @asked goto to_guest
    frag frag-off != 0 goto to_guest
    icmpv6 type echo-reply goto to_guest\n";
    let note =
        "    meta l4proto { tcp, udp } update @asked { ip6 daddr . meta l4proto . th sport . th dport }\n";
    (note.to_owned(), wanted)
}
