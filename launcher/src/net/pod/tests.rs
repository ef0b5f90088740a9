use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Sender, channel};

use nacelle_devices::net::tap::Tap;

use super::*;
use crate::net::testbed::{Guest, Namespace};
use crate::net::{DEFAULT_NETWORK, Port};

mod ipv6;

const MAC: [u8; 6] = [2, 0, 0, 0x12, 0x34, 0x56];
const MAC_TEXT: &str = "02:00:00:12:34:56";

/// A pod on a network with somebody else, the namespace `world`.
struct Pod {
    inside: Namespace,
    world: Namespace,
    _runs: Option<Sender<()>>,
}

impl Pod {
    fn new() -> Pod {
        let (inside, world) = (Namespace::new(), Namespace::new());
        inside.connect("eth0", "10.244.1.7/24", &world, "gate", "10.244.1.1/24");
        inside.ip("link set eth0 mtu 1400");
        inside.ip("route add default via 10.244.1.1");
        Pod {
            inside,
            world,
            _runs: None,
        }
    }

    /// Does what `pod init` and then `pod run` do, and gives the guest on their tap.
    fn with_guest(&mut self, net: Net) -> (Interface, Guest) {
        let mut made = self
            .inside
            .block_on(move || async move { make(&[net]).await })
            .unwrap();
        let (runs, end) = channel::<()>();
        let (tell, told) = channel();
        let interfaces = made.clone();
        self.inside.run(move || {
            // A thread inherits the namespace of the one that makes it.
            std::thread::spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                runtime
                    .enable_io()
                    .enable_time()
                    .build()
                    .unwrap()
                    .block_on(async move {
                        let (_nets, _served) = take(&interfaces, "ledger").unwrap();
                        tell.send(()).unwrap();
                        let _ = tokio::task::spawn_blocking(move || end.recv()).await;
                    });
            });
        });
        told.recv().unwrap();
        self._runs = Some(runs);
        let tap = made[0].tap.clone();
        let tap: OwnedFd = self.inside.run(move || {
            let tap = Tap::open(&tap, 1).unwrap().remove(0);
            tap.as_fd().try_clone_to_owned().unwrap()
        });
        (made.remove(0), Guest::on(tap, MAC_TEXT))
    }

    /// What the launcher's own connection, from a port of its own, hears at port 80 there.
    fn reports_to(&self, address: &str) -> String {
        let to = SocketAddr::new(address.parse().unwrap(), 80);
        self.inside.run(move || {
            let domain = socket2::Domain::for_address(to);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
            let any: IpAddr = if to.is_ipv6() {
                Ipv6Addr::UNSPECIFIED.into()
            } else {
                Ipv4Addr::UNSPECIFIED.into()
            };
            socket
                .bind(&SocketAddr::new(any, *OWN_PORTS.start()).into())
                .unwrap();
            socket
                .connect_timeout(&to.into(), std::time::Duration::from_secs(10))
                .unwrap();
            let mut heard = String::new();
            std::io::Read::read_to_string(&mut std::net::TcpStream::from(socket), &mut heard).unwrap();
            heard
        })
    }

    fn has(&self, what: &str) -> bool {
        self.inside.try_sh(what).1
    }
}

fn masquerade(ports: &[Port]) -> Net {
    Net {
        name: "default".into(),
        binding: Binding::Masquerade {
            ipv4: DEFAULT_NETWORK,
            ipv6: None,
            ports: ports.to_vec(),
        },
        mac: MAC,
        mac_given: true,
        queue_pairs: 1,
    }
}

fn bridge() -> Net {
    Net {
        binding: Binding::Bridge,
        ..masquerade(&[])
    }
}

fn tcp(port: u16) -> Port {
    Port { udp: false, port }
}

/// Serves `word` on a TCP port there, for as long as the namespace lives.
fn says(namespace: &Namespace, port: u16, word: &str) {
    let word = word.to_owned();
    namespace.run(move || {
        let listener = std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = std::io::Write::write_all(&mut stream, word.as_bytes());
            }
        });
    });
}

/// What somebody there hears at a TCP port; nothing where nobody answers.
fn hears(namespace: &Namespace, address: &str, port: u16) -> String {
    let address: IpAddr = address.parse().unwrap();
    namespace.run(move || {
        let patience = std::time::Duration::from_secs(2);
        let mut heard = String::new();
        if let Ok(mut stream) = std::net::TcpStream::connect_timeout(&(address, port).into(), patience) {
            stream.set_read_timeout(Some(patience)).unwrap();
            let _ = std::io::Read::read_to_string(&mut stream, &mut heard);
        }
        heard
    })
}

#[test]
fn a_masqueraded_guest_is_what_its_pod_shows() {
    let mut pod = Pod::new();
    let (made, guest) = pod.with_guest(masquerade(&[]));
    assert_eq!((made.tap.as_str(), made.mac, made.mtu), ("tap0", MAC, 1400));
    let lease = guest.dhcp();
    for line in ["ip=10.0.2.2", "router=10.0.2.1", "mtu=1400", "hostname=ledger"] {
        assert!(lease.lines().any(|said| said == line), "{line} in:\n{lease}");
    }
    says(&guest.inside, 80, "guest");
    says(&pod.world, 80, "world");
    assert_eq!(hears(&guest.inside, "10.244.1.1", 80), "world");
    assert_eq!(hears(&pod.world, "10.244.1.7", 80), "guest");
    // As the API server's port-forward does.
    assert_eq!(hears(&pod.inside, "127.0.0.1", 80), "guest");
    assert!(guest.inside.pings("10.244.1.1") && pod.world.pings("10.244.1.7"));
}

#[test]
fn only_ports_that_are_named_lead_to_the_guest() {
    let mut pod = Pod::new();
    let (_, guest) = pod.with_guest(masquerade(&[tcp(80)]));
    guest.dhcp();
    for port in [80, 81] {
        says(&guest.inside, port, "guest");
    }
    says(&pod.inside, 81, "pod");
    assert_eq!(hears(&pod.world, "10.244.1.7", 80), "guest");
    assert_eq!(hears(&pod.world, "10.244.1.7", 81), "pod");
    assert_eq!(hears(&pod.inside, "127.0.0.1", 81), "pod");
}

#[test]
fn the_guest_does_not_reach_the_pod_itself() {
    let mut pod = Pod::new();
    let (_, guest) = pod.with_guest(masquerade(&[]));
    guest.dhcp();
    says(&pod.inside, API_PORT, "api");
    says(&pod.inside, 9000, "pod");
    assert_eq!(hears(&pod.inside, "127.0.0.1", API_PORT), "api");
    for address in ["10.0.2.1", "10.244.1.7"] {
        for port in [API_PORT, 9000] {
            assert_eq!(hears(&guest.inside, address, port), "", "{address}:{port}");
        }
    }
    // It sends packets to 127.0.0.1 by the tap, and as somebody else.
    guest.inside.sh("sysctl -qw net.ipv4.conf.eth0.route_localnet=1");
    guest.inside.ip("address del 127.0.0.1/8 dev lo");
    guest.inside.ip("route add 127.0.0.1/32 via 10.0.2.1 dev eth0");
    assert_eq!(hears(&guest.inside, "127.0.0.1", API_PORT), "");
    guest.inside.ip("address add 192.0.2.7/32 dev eth0");
    let (_, answered) = guest
        .inside
        .try_sh("busybox ping -c 1 -W 1 -I 192.0.2.7 10.0.2.1");
    assert!(!answered);
    // Nor is there a way by IPv6.
    assert!(!pod.has("ip -6 address show dev tap0 | grep inet6"));
}

#[test]
fn a_bridged_guest_has_the_pods_address_and_the_pod_still_reports() {
    let mut pod = Pod::new();
    let (made, guest) = pod.with_guest(bridge());
    assert!(made.bridged && made.mac == MAC);
    let lease = guest.dhcp();
    for line in ["ip=10.244.1.7", "mask=24", "router=10.244.1.1", "mtu=1400"] {
        assert!(lease.lines().any(|said| said == line), "{line} in:\n{lease}");
    }
    says(&guest.inside, 80, "guest");
    says(&pod.world, 80, "world");
    assert_eq!(hears(&guest.inside, "10.244.1.1", 80), "world");
    assert_eq!(hears(&pod.world, "10.244.1.7", 80), "guest");
    assert_eq!(pod.reports_to("10.244.1.1"), "world");
}

#[test]
fn a_container_that_is_run_again_finds_what_it_made() {
    let pod = Pod::new().with_ipv6();
    let makes = || {
        pod.inside
            .block_on(|| async { make(&[masquerade(&[tcp(80)])]).await })
            .unwrap()
    };
    let first = makes();
    let rules = pod.inside.sh("nft list ruleset");
    assert_eq!(makes(), first);
    assert_eq!(pod.inside.sh("nft list ruleset"), rules);
}

#[test]
fn what_a_pod_does_not_have_is_said() {
    let alone = Namespace::new();
    let error = alone
        .block_on(|| async { make(&[masquerade(&[])]).await })
        .unwrap_err();
    assert!(
        crate::exit::Chain(&error)
            .to_string()
            .contains("no interface eth0"),
        "{error}"
    );
    let pod = Pod::new();
    pod.inside.ip("address flush dev eth0");
    let error = pod
        .inside
        .block_on(|| async { make(&[bridge()]).await })
        .unwrap_err();
    assert!(
        crate::exit::Chain(&error)
            .to_string()
            .contains("use the binding masquerade")
    );
    let two = pod
        .inside
        .block_on(|| async { make(&[masquerade(&[]), bridge()]).await });
    assert!(two.is_err());
}

#[test]
fn a_bridged_guest_is_told_the_pods_routes() {
    let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
    let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap();
    let uplink = Link {
        index: 2,
        name: UPLINK.into(),
        mtu: 1500,
        mac: MAC,
        up: true,
        is_bridge: false,
    };
    let route = |network: &str, via: Option<&str>, link| Route {
        network: net(network),
        links: vec![link],
        via: via.map(ip),
        unicast: true,
    };
    let connected = || route("10.244.1.0/24", None, 2);
    // A router in the pod's own network.
    let plain = [
        route("0.0.0.0/0", Some("10.244.1.1"), 2),
        connected(),
        route("10.9.0.0/16", None, 3),
    ];
    let lease = handed_over(net("10.244.1.7/24"), &uplink, &plain);
    assert_eq!((lease.router, lease.routes), (Some(ip("10.244.1.1")), vec![]));
    assert_eq!(lease.address, net("10.244.1.7/24"));
    // An address that is alone in its network, and a router that is reached by a route of its own.
    let alone = [
        route("0.0.0.0/0", Some("169.254.1.1"), 2),
        route("169.254.1.1/32", None, 2),
    ];
    let lease = handed_over(net("10.244.1.7/32"), &uplink, &alone);
    assert_eq!(lease.router, None);
    assert_eq!(
        lease.routes,
        [
            (net("169.254.1.1/32"), ip("0.0.0.0")),
            (net("0.0.0.0/0"), ip("169.254.1.1"))
        ]
    );
}
