//! The rules of nftables in a pod. Each script replaces what an earlier run of it made.

use super::{API_PORT, OWN_PORTS, UPLINK};

/// The first of our ports: where a pod waits for a machine that moves.
const MOVES: u16 = *OWN_PORTS.start();
use crate::net::Port;
use crate::net::subnet::Subnet;

/// What translates for a guest behind `tap`. Where it names no ports, everything that comes to the pod is for it.
///
/// What comes for the port at which a pod waits for its machine is the pod's.
///
/// The guest may not send as somebody else, and hears of the pod itself only DHCP and echoes: not what listens on the
/// pod's loopback address, whatever it writes into its packets.
pub(super) fn masquerade(tap: &str, subnet: &Subnet, ports: &[Port]) -> String {
    let Subnet { network, guest, .. } = subnet;
    let own = format!("tcp dport != {API_PORT} ");
    let (mut outside, mut inside) = (Vec::new(), Vec::new());
    if ports.is_empty() {
        outside.push(String::new());
        inside.extend([own.clone(), "meta l4proto udp ".to_owned()]);
    }
    for (protocol, udp, besides) in [("tcp", false, own.as_str()), ("udp", true, "")] {
        let ports = ports.iter().filter(|port| port.udp == udp);
        let ports: Vec<String> = ports.map(|port| port.port.to_string()).collect();
        if !ports.is_empty() {
            let matches = format!("{protocol} dport {{ {} }} ", ports.join(", "));
            inside.push(format!("{besides}{matches}"));
            outside.push(matches);
        }
    }
    let rules = |of: &str, matches: &[String]| -> String {
        let rules = matches.iter();
        rules
            .map(|matches| format!("    {of} {matches}dnat to {guest}\n"))
            .collect()
    };
    let from_outside = rules(&format!("iifname \"{UPLINK}\""), &outside);
    let from_inside = rules("ip daddr 127.0.0.0/8", &inside);
    format!(
        r#"table netdev nacelle
delete table netdev nacelle
table netdev nacelle {{
  chain guest {{
    type filter hook ingress device "{tap}" priority 0; policy drop;
    ether type arp accept
    ip saddr {{ 0.0.0.0, {network} }} ip daddr != 127.0.0.0/8 accept
  }}
}}
table ip nacelle
delete table ip nacelle
table ip nacelle {{
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname != "{tap}" accept
    ct state {{ established, related }} accept
    udp dport 67 accept
    icmp type echo-request accept
    drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname "{tap}" accept
    ct state {{ established, related }} accept
    oifname "{tap}" ct status dnat accept
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    tcp dport {MOVES} return
{from_outside}  }}
  chain output {{
    type nat hook output priority -100; policy accept;
{from_inside}  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {network} oifname != "{tap}" masquerade
    ip saddr 127.0.0.0/8 oifname "{tap}" masquerade
  }}
}}
"#
    )
}

/// What passes frames between `tap` and the pod's interface. ARP is heard by guest and pod, which have the same
/// addresses and so give the same answers.
pub(super) fn bridge(tap: &str) -> String {
    format!(
        r#"table netdev nacelle
delete table netdev nacelle
table netdev nacelle {{
  chain network {{
    type filter hook ingress device "{UPLINK}" priority 0; policy accept;
    ether type arp dup to "{tap}"
    ether type arp accept
    ether type ip tcp dport {}-{} accept
    fwd to "{tap}"
  }}
  chain guest {{
    type filter hook ingress device "{tap}" priority 0; policy accept;
    ether type ip udp dport 67 accept
    fwd to "{UPLINK}"
  }}
}}
"#,
        OWN_PORTS.start(),
        OWN_PORTS.end()
    )
}
