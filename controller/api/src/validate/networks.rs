//! Interfaces and networks (rules 31-33, 35-38).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::{CauseKind, Causes, count, names};
use crate::network::{DhcpOptions, Interface, Network, Port};
use crate::path::FieldPath;
use crate::vmi::VirtualMachineInstanceSpec;

/// The bridge in the pod has it.
const RESERVED_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0];
const MODELS: &[&str] = &["e1000", "e1000e", "igb", "ne2k_pci", "pcnet", "rtl8139", "virtio"];
/// How many ranges of ports one interface may have.
const MAX_PORT_RANGES: usize = 10;

pub(super) fn check(causes: &mut Causes, spec: &VirtualMachineInstanceSpec, prefix: &FieldPath) {
    let path = prefix.field("domain.devices.interfaces");
    let networks_path = prefix.field("networks");
    let mut networks = BTreeMap::new();
    for (index, network) in spec.networks.iter().enumerate() {
        let field = networks_path.index(index);
        if networks.insert(network.name.as_str(), network).is_some() {
            let message = format!(
                "Network with name \"{}\" already exists, every network must have a unique name",
                network.name
            );
            causes.add(CauseKind::FieldValueDuplicate, field.field("name"), message);
        }
        self::network(causes, network, &field);
    }
    if spec
        .networks
        .iter()
        .filter(|network| network.pod.is_some())
        .count()
        > 1
    {
        causes.add(
            CauseKind::FieldValueDuplicate,
            path.clone(),
            "more than one interface is connected to a pod network",
        );
    }
    let mut interfaces = BTreeSet::new();
    for (index, interface) in spec.domain.devices.interfaces.iter().enumerate() {
        let field = path.index(index);
        if !interfaces.insert(interface.name.as_str()) {
            causes.add(
                CauseKind::FieldValueDuplicate,
                field.field("name"),
                "Only one interface can be connected to one specific network",
            );
        }
        let network = networks.get(interface.name.as_str()).copied();
        if network.is_none() {
            let message = format!("{} '{}' not found.", field.field("name"), interface.name);
            causes.invalid(field.field("name"), message);
        }
        self::interface(causes, interface, network, &field);
    }
    for (index, network) in spec.networks.iter().enumerate() {
        if !interfaces.contains(network.name.as_str()) {
            let field = networks_path.index(index).field("name");
            let message = format!("{field} '{}' not found.", network.name);
            causes.required(field, message);
        }
    }
}

fn network(causes: &mut Causes, network: &Network, path: &FieldPath) {
    let Network {
        name: _,
        pod,
        multus,
        resource_claim,
    } = network;
    match count([pod.is_some(), multus.is_some(), resource_claim.is_some()]) {
        1 => {}
        0 => causes.required(path.clone(), "should have a network type"),
        _ => causes.required(path.clone(), "should have only one network type"),
    }
    if multus
        .as_ref()
        .is_some_and(|multus| multus.network_name.is_empty())
    {
        let field = path.field("multus.networkName");
        causes.required(field, "CNI delegating plugin must have a networkName");
    }
}

fn interface(causes: &mut Causes, interface: &Interface, network: Option<&Network>, path: &FieldPath) {
    binding(causes, interface, network, path);
    let name = &interface.name;
    if let Some(model) = &interface.model
        && !model.is_empty()
        && !MODELS.contains(&model.as_str())
    {
        let message = format!(
            "interface {} uses model {model} that is not supported.",
            path.field("name")
        );
        causes.not_supported(path.field("model"), message);
    }
    if let Some(text) = &interface.mac_address {
        let field = path.field("macAddress");
        match names::mac_address(text) {
            None => {
                let message = format!(
                    "interface {} has malformed MAC address ({text}).",
                    path.field("name")
                );
                causes.invalid(field, message);
            }
            Some(RESERVED_MAC) if interface.masquerade.is_some() => causes.invalid(
                field,
                "The requested MAC address is reserved for the in-pod bridge. Please choose another one.",
            ),
            Some(_) => {}
        }
    }
    if let Some(address) = &interface.pci_address
        && !names::is_pci_address(address)
    {
        let message = format!(
            "interface {} has malformed PCI address ({address}).",
            path.field("name")
        );
        causes.invalid(path.field("pciAddress"), message);
    }
    ports(causes, &interface.ports, &path.field("ports"));
    if !interface.port_ranges.is_empty() {
        let field = path.field("portRanges");
        if interface.port_ranges.len() > MAX_PORT_RANGES {
            causes.invalid(
                field.clone(),
                format!("{field} must have no more than {MAX_PORT_RANGES} ranges"),
            );
        }
        if interface.masquerade.is_none() {
            causes.invalid(
                field.clone(),
                format!("{field} is only possible with the masquerade binding"),
            );
        }
    }
    if let Some(options) = &interface.dhcp_options {
        dhcp(causes, options, &path.field("dhcpOptions"));
    }
    let field = path.field("state");
    match interface.state.as_deref() {
        None | Some("" | "up" | "down") => {}
        Some("absent") => {
            if interface.bridge.is_none() {
                let message =
                    format!("\"{name}\" interface's state \"absent\" is supported only for bridge binding");
                causes.invalid(field.clone(), message);
            }
            let default = |network: &Network| {
                network.pod.is_some()
                    || network
                        .multus
                        .as_ref()
                        .is_some_and(|multus| multus.default == Some(true))
            };
            if network.is_some_and(default) {
                let message =
                    format!("\"{name}\" interface's state \"absent\" is not supported on default networks");
                causes.invalid(field, message);
            }
        }
        Some(other) => {
            let message = format!("logical {name} interface state value is unsupported: {other}");
            causes.invalid(field, message);
        }
    }
}

fn binding(causes: &mut Causes, interface: &Interface, network: Option<&Network>, path: &FieldPath) {
    let Interface {
        masquerade,
        slirp,
        macvtap,
        passt,
        ..
    } = interface;
    if interface.bindings() != 1 {
        let message = format!(
            "logical {} interface must have exactly one binding method or binding plugin",
            interface.name
        );
        causes.invalid(path.clone(), message);
    }
    for (set, field, name) in [
        (slirp, "slirp", "Slirp"),
        (macvtap, "macvtap", "Macvtap"),
        (passt, "passt", "Passt"),
    ] {
        if set.is_some() {
            let message = format!("{name} network binding has been discontinued since v1.3");
            causes.not_supported(path.field(field), message);
        }
    }
    if masquerade.is_some() && network.is_some_and(|network| network.pod.is_none()) {
        causes.invalid(
            path.field("name"),
            "Masquerade interface only implemented with pod network",
        );
    }
}

fn ports(causes: &mut Causes, ports: &[Port], path: &FieldPath) {
    let mut taken = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = path.index(index);
        if port.port == 0 {
            causes.required(field.clone(), "Port field is mandatory.");
        } else if !(1..=65535).contains(&port.port) {
            causes.invalid(field.clone(), "Port field must be in range 0 < x < 65536.");
        }
        if port
            .protocol
            .as_deref()
            .is_some_and(|protocol| !["", "TCP", "UDP"].contains(&protocol))
        {
            causes.invalid(
                field.field("protocol"),
                "Unknown protocol, only TCP or UDP allowed",
            );
        }
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            if !taken.insert(name) {
                let message = format!("Duplicate name of the port: {name}");
                causes.add(CauseKind::FieldValueDuplicate, field.field("name"), message);
            }
            if !names::is_port_name(name) {
                causes.invalid(field.field("name"), format!("Invalid name of the port: {name}"));
            }
        }
    }
}

fn dhcp(causes: &mut Causes, options: &DhcpOptions, path: &FieldPath) {
    let mut taken = BTreeSet::new();
    for (index, private) in options.private_options.iter().enumerate() {
        let field = path.field("privateOptions").index(index);
        if !(224..=254).contains(&private.option) {
            causes.invalid(
                field.clone(),
                "provided DHCPPrivateOptions are out of range, must be in range 224 to 254",
            );
        }
        if !taken.insert(private.option) {
            causes.invalid(
                field,
                "Found Duplicates: you have provided duplicate DHCPPrivateOptions",
            );
        }
    }
    for (index, server) in options.ntp_servers.iter().enumerate() {
        if server.parse::<Ipv4Addr>().is_err() {
            causes.invalid(
                path.field("ntpServers").index(index),
                "NTP servers must be a list of valid IPv4 addresses.",
            );
        }
    }
}
