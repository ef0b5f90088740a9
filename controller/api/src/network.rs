//! `domain.devices.interfaces[]` and `spec.networks[]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::{Empty, Freeform};

/// An interface: connected to the network of its name, by exactly one binding.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name, which is a network's.
    pub name: String,
    /// `virtio` (the default), `e1000`, `e1000e`, `igb`, `ne2k_pci`, `pcnet` or `rtl8139`.
    pub model: Option<String>,
    /// Binding: a bridge; the guest has the pod's address.
    pub bridge: Option<Empty>,
    /// Binding: NAT; the guest has a private address.
    pub masquerade: Option<Empty>,
    /// Binding: a virtual function passed through.
    pub sriov: Option<Empty>,
    /// Binding: passt.
    pub passt_binding: Option<Empty>,
    /// Binding that KubeVirt has given up: QEMU's user network.
    pub slirp: Option<Empty>,
    /// Binding that KubeVirt has given up: macvtap.
    pub macvtap: Option<Empty>,
    /// Binding that KubeVirt has given up: passt of old.
    pub passt: Option<Empty>,
    /// Binding by a plugin.
    pub binding: Option<PluginBinding>,
    /// Ports that are forwarded; all when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Ranges of ports that are forwarded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_ranges: Vec<Freeform>,
    /// MAC address, with colons or dashes.
    pub mac_address: Option<String>,
    /// Place in the boot order, from 1.
    pub boot_order: Option<u32>,
    /// Where it lies on the PCI bus.
    pub pci_address: Option<String>,
    /// More DHCP options.
    pub dhcp_options: Option<DhcpOptions>,
    /// Tag in the config drive.
    pub tag: Option<String>,
    /// Index that the guest names the interface by.
    pub acpi_index: Option<i32>,
    /// `absent`, `up` or `down`.
    pub state: Option<String>,
}

impl Interface {
    /// How many bindings it has; exactly one is right.
    pub fn bindings(&self) -> usize {
        let Interface {
            bridge,
            masquerade,
            sriov,
            passt_binding,
            slirp,
            macvtap,
            passt,
            binding,
            ..
        } = self;
        let own = [bridge, masquerade, sriov, passt_binding, slirp, macvtap, passt];
        own.into_iter().flatten().count() + usize::from(binding.is_some())
    }
}

/// A binding by a plugin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PluginBinding {
    /// The plugin.
    pub name: String,
}

/// A port that is forwarded to the guest.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Its name.
    pub name: Option<String>,
    /// `TCP` (the default) or `UDP`.
    pub protocol: Option<String>,
    /// Its number.
    pub port: i32,
}

/// More DHCP options.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DhcpOptions {
    /// Option 67.
    pub boot_file_name: Option<String>,
    /// Option 66.
    pub tftp_server_name: Option<String>,
    /// Option 42.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ntp_servers: Vec<String>,
    /// Options 224 to 254.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub private_options: Vec<DhcpPrivateOption>,
}

/// A DHCP option for private use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DhcpPrivateOption {
    /// 224 to 254.
    pub option: i32,
    /// Its value.
    pub value: String,
}

/// A network: exactly one of the kinds.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The pod's own network.
    pub pod: Option<PodNetwork>,
    /// One that Multus attaches.
    pub multus: Option<MultusNetwork>,
    /// One of a resource claim.
    pub resource_claim: Option<NetworkResourceClaim>,
}

/// The pod's own network.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodNetwork {
    /// Addresses behind masquerade; `10.0.2.0/24` by default.
    #[serde(rename = "vmNetworkCIDR")]
    pub vm_network_cidr: Option<String>,
    /// IPv6 addresses behind masquerade; `fd10:0:2::/120` by default.
    #[serde(rename = "vmIPv6NetworkCIDR")]
    pub vm_ipv6_network_cidr: Option<String>,
}

/// A network that Multus attaches.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MultusNetwork {
    /// `name` or `namespace/name` of a NetworkAttachmentDefinition.
    pub network_name: String,
    /// Whether it takes the pod network's place.
    pub default: Option<bool>,
}

/// A network of a resource claim.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkResourceClaim {
    /// The claim.
    pub claim_name: Option<String>,
    /// The request in the claim.
    pub request_name: Option<String>,
}
