//! Interfaces and the networks behind them.

use ipnet::{Ipv4Net, Ipv6Net};
use nacelle_api::vmi::VirtualMachineInstanceSpec;
use nacelle_vmm::config::CpuConfig;
use sha2::{Digest, Sha256};

use super::Names;
use crate::net::{Binding, DEFAULT_NETWORK, Net, Port};
use crate::{Error, Result};

/// Every interface in the order of the spec.
pub(super) fn nets(names: &Names, spec: &VirtualMachineInstanceSpec, cpus: CpuConfig) -> Result<Vec<Net>> {
    let devices = &spec.domain.devices;
    let queue_pairs = match devices.network_interface_multiqueue {
        Some(true) => cpus.count().map_or(1, u16::from),
        _ => 1,
    };
    let mut nets = Vec::new();
    for interface in &devices.interfaces {
        let refuse = |reason: String| Error::Network {
            network: interface.name.clone(),
            reason,
        };
        let network = spec
            .networks
            .iter()
            .find(|network| network.name == interface.name);
        let pod = network
            .and_then(|network| network.pod.as_ref())
            .ok_or_else(|| refuse("only the pod network is supported".into()))?;
        let binding = if interface.masquerade.is_some() {
            let ports = interface.ports.iter().map(|port| {
                let number = u16::try_from(port.port).ok().filter(|&number| number > 0);
                Ok(Port {
                    udp: port.protocol.as_deref() == Some("UDP"),
                    port: number.ok_or_else(|| refuse(format!("{} is no port", port.port)))?,
                })
            });
            let network = |text: &String| {
                text.parse::<Ipv4Net>()
                    .map_err(|_| refuse(format!("{text} is no IPv4 network, as 10.0.2.0/24")))
            };
            let network6 = |text: &String| {
                text.parse::<Ipv6Net>()
                    .map_err(|_| refuse(format!("{text} is no IPv6 network, as fd10:0:2::/120")))
            };
            Binding::Masquerade {
                ipv4: pod
                    .vm_network_cidr
                    .as_ref()
                    .map_or(Ok(DEFAULT_NETWORK), network)?,
                ipv6: pod.vm_ipv6_network_cidr.as_ref().map(network6).transpose()?,
                ports: ports.collect::<Result<_>>()?,
            }
        } else if interface.bridge.is_some() {
            Binding::Bridge
        } else {
            return Err(refuse("only masquerade and bridge are supported".into()));
        };
        let mac = match &interface.mac_address {
            Some(text) => parse_mac(text).ok_or_else(|| refuse(format!("{text} is no MAC address")))?,
            None => own_mac(names, &interface.name),
        };
        nets.push(Net {
            name: interface.name.clone(),
            binding,
            mac,
            mac_given: interface.mac_address.is_some(),
            queue_pairs,
        });
    }
    Ok(nets)
}

/// Six bytes in hexadecimal, between colons or hyphens.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split([':', '-'])
        .map(|byte| (byte.len() == 2).then(|| u8::from_str_radix(byte, 16).ok())?)
        .collect::<Option<_>>()?;
    bytes.try_into().ok()
}

/// An address of the local kind that follows from the names: the same at every start, so that the guest's
/// network settings and its DHCP lease still hold.
fn own_mac(names: &Names, interface: &str) -> [u8; 6] {
    let hash = Sha256::digest(format!("{}/{}/{interface}", names.namespace, names.name));
    let mut mac = [0; 6];
    for (byte, hash) in mac.iter_mut().zip(hash.iter()) {
        *byte = *hash;
    }
    // Locally administered (bit 1), not a group address (bit 0).
    mac[0] = mac[0] & 0xfc | 0x02;
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses() {
        assert_eq!(parse_mac("02:00:ff:0a:00:01"), Some([2, 0, 255, 10, 0, 1]));
        assert_eq!(parse_mac("02-00-FF-0A-00-01"), Some([2, 0, 255, 10, 0, 1]));
        for wrong in [
            "",
            "02:00:ff:0a:00",
            "02:00:ff:0a:00:01:02",
            "0200ff0a0001",
            "g2:00:ff:0a:00:01",
        ] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
        let names = |name: &str| Names {
            name: name.into(),
            namespace: "default".into(),
            uid: String::new(),
        };
        let mac = own_mac(&names("a"), "default");
        assert_eq!(mac, own_mac(&names("a"), "default"));
        assert_ne!(mac, own_mac(&names("b"), "default"));
        assert_eq!(mac[0] & 3, 2);
    }
}
