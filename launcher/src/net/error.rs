//! What can go wrong with the host's networks, with what to do about it.

use std::io;

use ipnet::{IpNet, Ipv4Net};

/// A network cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More taps are named than the machine has interfaces.
    #[error("--tap {tap}: the machine has only {count} interface(s)")]
    NoInterface {
        /// The first one too many.
        tap: String,
        /// How many interfaces there are.
        count: usize,
    },
    /// One interface cannot be connected.
    #[error("network {network} cannot be connected")]
    Network {
        /// Its name.
        network: String,
        /// Why.
        source: Cause,
    },
}

/// Why a network cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The binding needs a bridge.
    #[error(
        "binding bridge connects to a bridge of this host: name it by --bridge NAME, or a tap on it by --tap NAME \
         (root makes a bridge by `ip link add br0 type bridge && ip link set br0 up`)"
    )]
    NoBridge,
    /// There is no such bridge.
    #[error("there is no interface {0} here (ip link shows what there is)")]
    NotThere(String),
    /// It is something else.
    #[error("{0} is no bridge (ip link show type bridge lists them)")]
    NotABridge(String),
    /// A tap that was named is not there.
    #[error("there is no tap {tap}: have root run\n{advice}")]
    NoTap {
        /// Its name.
        tap: String,
        /// Commands that make it.
        advice: String,
    },
    /// We may not make a tap.
    #[error(
        "making it needs root (CAP_NET_ADMIN): run nacelle as root, or have root run\n{advice}\n\
         and run nacelle with --tap tap0; the guest must then set its address by itself"
    )]
    Permission {
        /// Commands that make one.
        advice: String,
    },
    /// No tap could be had of the kernel.
    #[error(transparent)]
    Tap(#[from] nacelle_devices::Error),
    /// The kernel's network configuration refused.
    #[error("cannot {what}")]
    Netlink {
        /// What was tried, as a verb phrase.
        what: String,
        /// Why.
        source: rtnetlink::Error,
    },
    /// The operating system refused.
    #[error("cannot {what}")]
    Io {
        /// What was tried, as a verb phrase.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The guest's network has too few addresses.
    #[error(
        "the network {0} is too small: it needs an address for the host and one for the guest (/30 or larger, IPv6: /126)"
    )]
    TooSmall(IpNet),
    /// The guest's network is in use on this host.
    #[error("the network {wanted} is in use on this host ({used}): name another by vmNetworkCIDR")]
    Used {
        /// The network.
        wanted: Ipv4Net,
        /// What of it is used.
        used: Ipv4Net,
    },
    /// A pod has one network.
    #[error("a pod has one pod network, and the first interface has it")]
    OnePodNetwork,
    /// There is nothing to hand over.
    #[error(
        "binding bridge hands the pod's IPv4 address to the guest, and the pod has none; use the binding masquerade"
    )]
    NoPodAddress,
    /// No network is free.
    #[error("no network from 10.0.2.0/24 to 10.0.254.0/24 is free on this host: name one by vmNetworkCIDR")]
    NoneFree,
    /// The program that sets up translation is not there.
    #[error("masquerade needs the program nft (Debian package nftables)")]
    NoNft,
    /// It refused.
    #[error("nft refused: {0}")]
    Nft(String),
    /// It told something that it does not tell.
    #[error("nft told of the tables of this host what cannot be understood")]
    NftOutput(#[source] serde_json::Error),
    /// Another process holds the lock.
    #[error("another nacelle has been setting up its network here for ten seconds")]
    Locked,
}

impl Cause {
    /// This, as the error of `network`.
    pub(super) fn of(self, network: &str) -> Error {
        Error::Network {
            network: network.to_owned(),
            source: self,
        }
    }

    /// A [`Cause::Io`], for use with `map_err`.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Cause {
        let what = what.into();
        move |source| Cause::Io { what, source }
    }

    /// A [`Cause::Netlink`], for use with `map_err`.
    pub(super) fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Cause {
        let what = what.into();
        move |source| Cause::Netlink { what, source }
    }
}
