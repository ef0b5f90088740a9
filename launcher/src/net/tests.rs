use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::testbed::{Guest, Namespace};
use super::*;
use crate::net::nft;

const MAC: [u8; 6] = [2, 0, 0, 0x12, 0x34, 0x56];
const MAC_TEXT: &str = "02:00:00:12:34:56";

fn masquerade(ports: &[Port]) -> Net {
    Net {
        name: "default".into(),
        binding: Binding::Masquerade {
            ipv6: None,
            ipv4: DEFAULT_NETWORK,
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

fn options() -> Options {
    Options {
        machine: "ledger".into(),
        hostname: "ledger".into(),
        ..Default::default()
    }
}

fn tcp(port: u16) -> Port {
    Port { udp: false, port }
}

fn fds(tap: TapConfig) -> Vec<OwnedFd> {
    match tap {
        TapConfig::Fds(fds) => fds,
        TapConfig::Name(name) => panic!("{name} and no descriptor"),
    }
}

/// A host with an uplink, and what is outside.
fn host_and_world() -> (Namespace, Namespace) {
    let (host, world) = (Namespace::new(), Namespace::new());
    host.connect("eth0", "192.0.2.2/24", &world, "veth0", "192.0.2.1/24");
    host.ip("link set eth0 mtu 1400");
    host.ip("route add default via 192.0.2.1");
    (host, world)
}

/// A machine's networks on a host whose runtime keeps running until it is dropped.
struct Machine {
    end: Option<std::sync::mpsc::Sender<()>>,
    ended: std::sync::mpsc::Receiver<()>,
    taps: Vec<OwnedFd>,
    guest: Option<Ipv4Addr>,
    mtu: Option<u16>,
}

impl Machine {
    /// Prepares on a thread of its own in the host's namespace, as a launcher's main thread.
    fn start(host: &Namespace, nets: Vec<Net>, options: Options) -> Result<Machine, Error> {
        let (end, ending) = std::sync::mpsc::channel::<()>();
        let (tell, ended) = std::sync::mpsc::channel();
        let (tell_prepared, prepared) = std::sync::mpsc::channel();
        host.run(move || {
            // A thread inherits the namespace of the one that makes it.
            std::thread::spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_io().enable_time().build().unwrap();
                runtime.block_on(async move {
                    match prepare(&nets, &options).await {
                        Ok(Prepared { nets, held }) => {
                            tell_prepared.send(Ok(nets)).unwrap();
                            let wait = tokio::task::spawn_blocking(move || ending.recv());
                            let _ = wait.await;
                            drop(held);
                        }
                        Err(error) => tell_prepared.send(Err(error)).unwrap(),
                    }
                    let _ = tell.send(());
                });
            })
        });
        let nets = prepared.recv().unwrap()?;
        let (guest, mtu) = (nets[0].guest, nets[0].mtu);
        Ok(Machine {
            end: Some(end),
            ended,
            taps: nets.into_iter().flat_map(|net| fds(net.tap)).collect(),
            guest,
            mtu,
        })
    }

    fn guest(&self) -> Guest {
        Guest::on(self.taps[0].try_clone().unwrap(), MAC_TEXT)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end.take();
        let _ = self.ended.recv();
    }
}

/// What is left of machines on a host: tables, taps, forwarding of the uplink.
fn traces(host: &Namespace) -> String {
    host.sh(
        "nft list tables | grep nacelle; ip -o link | grep -o 'nacelle[0-9]*'; \
         grep . /proc/sys/net/ipv4/conf/eth0/forwarding",
    )
}

#[test]
fn a_guest_gets_its_lease_and_reaches_the_world_and_is_reached() {
    let (host, world) = host_and_world();
    let machine = Machine::start(&host, vec![masquerade(&[tcp(8080)])], options()).unwrap();
    let guest = machine.guest();

    let lease = guest.dhcp();
    for line in [
        "ip=10.0.2.2",
        "mask=24",
        "router=10.0.2.1",
        "mtu=1400",
        "hostname=ledger",
        "serverid=10.0.2.1",
    ] {
        assert!(lease.lines().any(|said| said == line), "{line} in:\n{lease}");
    }
    assert_eq!(machine.mtu, Some(1400));
    assert_eq!(machine.guest, Some(Ipv4Addr::new(10, 0, 2, 2)));
    assert!(guest.inside.pings("10.0.2.1"), "the gateway");
    assert!(host.pings("10.0.2.2"), "the guest from the host");
    assert!(guest.inside.pings("192.0.2.1"), "the world");

    // The world sees the host's address.
    let server = world.run(|| UdpSocket::bind("192.0.2.1:7000").unwrap());
    guest.inside.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"who am I", "192.0.2.1:7000").unwrap();
    });
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
    assert_eq!(from.ip().to_string(), "192.0.2.2");

    // The port is forwarded from the world and from the host itself, by any of its addresses.
    let listener = guest.inside.run(|| TcpListener::bind("0.0.0.0:8080").unwrap());
    let serve = std::thread::spawn(move || {
        for stream in listener.incoming().take(3) {
            stream.unwrap().write_all(b"hello").unwrap();
        }
    });
    for (from, to) in [
        (&world, "192.0.2.2:8080"),
        (&host, "192.0.2.2:8080"),
        (&host, "127.0.0.1:8080"),
    ] {
        let said = from.run(move || {
            let address = to.parse().unwrap();
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            said
        });
        assert_eq!(said, "hello", "at {to}");
    }
    serve.join().unwrap();

    drop(guest);
    drop(machine);
    assert_eq!(traces(&host).trim(), "0");
}

#[test]
fn a_host_does_not_become_a_router_for_others_nor_a_guest_somebody_else() {
    let (host, world) = host_and_world();
    let machine = Machine::start(&host, vec![masquerade(&[tcp(8080)])], options()).unwrap();
    let guest = machine.guest();
    guest.dhcp();

    world.ip("route add 10.0.2.0/24 via 192.0.2.2");
    assert!(!world.pings("10.0.2.2"), "the world enters");
    // Another network of the host, which the world could reach through it now that eth0 forwards.
    let other = Namespace::new();
    host.connect("eth1", "198.51.100.1/24", &other, "veth1", "198.51.100.2/24");
    other.ip("route add default via 198.51.100.1");
    world.ip("route add 198.51.100.0/24 via 192.0.2.2");
    assert!(!world.pings("198.51.100.2"), "the world is forwarded");

    guest.inside.ip("address add 203.0.113.7/32 dev eth0");
    let heard = world.run(|| UdpSocket::bind("192.0.2.1:7000").unwrap());
    heard.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let say = |from: &str| {
        let from = from.to_owned();
        guest.inside.run(move || {
            let socket = UdpSocket::bind(from).unwrap();
            socket.send_to(b"x", "192.0.2.1:7000").unwrap();
        });
    };
    say("203.0.113.7:0");
    assert!(heard.recv(&mut [0; 8]).is_err(), "a guest has another's address");
    say("10.0.2.2:0");
    assert!(heard.recv(&mut [0; 8]).is_ok());
    // Port forwarding lets loopback packets out by the tap, but none in.
    let private = host.run(|| UdpSocket::bind("127.0.0.1:7001").unwrap());
    private.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    guest
        .inside
        .ip("route add 127.0.0.1 via 10.0.2.1 dev eth0 table 99");
    guest.inside.sh(
        "echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet; ip rule add to 127.0.0.1 dport 7001 table 99 pref 0; \
         ip rule add from all lookup local pref 1; ip rule del pref 0 lookup local",
    );
    guest.inside.run(|| {
        let socket = UdpSocket::bind("10.0.2.2:0").unwrap();
        let _ = socket.send_to(b"x", "127.0.0.1:7001");
    });
    assert!(
        private.recv(&mut [0; 8]).is_err(),
        "a guest reaches the host's loopback"
    );
}

#[test]
fn several_machines_share_a_host_and_the_last_one_leaves_nothing() {
    let (host, _world) = host_and_world();
    let first = Machine::start(&host, vec![masquerade(&[])], options()).unwrap();
    let second = Machine::start(&host, vec![masquerade(&[])], options()).unwrap();
    assert_eq!(first.guest, Some(Ipv4Addr::new(10, 0, 2, 2)));
    assert_eq!(second.guest, Some(Ipv4Addr::new(10, 0, 3, 2)));
    drop(first);

    let guest = second.guest();
    guest.dhcp();
    assert!(guest.inside.pings("192.0.2.1"), "the world, through the second");

    drop((guest, second));
    assert_eq!(traces(&host).trim(), "0");
}

#[test]
fn what_a_killed_machine_leaves_is_removed_by_the_next() {
    let (host, _world) = host_and_world();
    host.block_on(|| async {
        let prepared = prepare(&[masquerade(&[])], &options()).await.unwrap();
        std::mem::forget(prepared.held);
    });
    // As when the process is killed: the tap vanishes, the table stays.
    host.ip("link delete nacelle0");
    assert_eq!(traces(&host).split_whitespace().last(), Some("1"));
    assert!(traces(&host).contains("table ip nacelle0"));

    drop(Machine::start(&host, vec![masquerade(&[])], options()).unwrap());
    assert_eq!(traces(&host).trim(), "0");
}

#[test]
fn a_port_that_a_program_of_the_host_has_stays_its_own() {
    let (host, _world) = host_and_world();
    let listener = host.run(|| TcpListener::bind("0.0.0.0:8080").unwrap());
    let machine = Machine::start(&host, vec![masquerade(&[tcp(8080), tcp(8081)])], options()).unwrap();

    let rules = host.sh("nft list table ip nacelle0");
    assert!(rules.contains("tcp dport 8081"), "{rules}");
    assert!(!rules.contains("8080"), "{rules}");
    let taken = host.run(|| TcpListener::bind("0.0.0.0:8081").is_err());
    assert!(taken, "another program gets a port that is forwarded");
    drop((listener, machine));
}

#[test]
fn a_bridge_takes_the_tap_as_a_port() {
    let (host, world) = host_and_world();
    host.sh("ip link add br0 type bridge && ip link set br0 up && ip address flush dev eth0");
    host.sh("ip link set eth0 master br0 && ip address add 192.0.2.2/24 dev br0");
    let with_bridge = Options {
        bridge: Some("br0".into()),
        ..options()
    };
    let machine = Machine::start(&host, vec![bridge()], with_bridge).unwrap();
    let guest = machine.guest();
    guest.inside.ip("address add 192.0.2.3/24 dev eth0");

    assert!(guest.inside.pings("192.0.2.1"), "the world");
    assert!(world.pings("192.0.2.3"), "the guest from the world");
    assert_eq!(machine.guest, None);
    drop((guest, machine));
    // The kernel takes the tap away a moment after its last descriptor is closed.
    host.sh("timeout 60 sh -c 'until [ $(ip -o link show master br0 | wc -l) = 1 ]; do sleep 0.05; done'");
}

#[test]
fn a_named_tap_is_used_as_it_is() {
    let host = Namespace::new();
    host.ip("tuntap add dev tap7 mode tap vnet_hdr");
    host.ip("link set tap7 mtu 9000");
    let before = host.sh("ip address show tap7");
    let with_tap = Options {
        taps: vec!["tap7".into()],
        ..options()
    };
    let prepared = host.block_on(move || async move {
        let Prepared { nets, held } = prepare(&[bridge()], &with_tap).await.unwrap();
        drop(held);
        nets
    });
    assert!(matches!(&prepared[0].tap, TapConfig::Name(name) if name == "tap7"));
    assert_eq!(prepared[0].mtu, Some(9000));
    assert_eq!(host.sh("ip address show tap7"), before);
}

#[test]
fn a_firewall_that_drops_lets_a_guest_through_once_its_root_did_as_told() {
    let (host, _world) = host_and_world();
    host.sh("nft 'table ip filter {
           chain INPUT { type filter hook input priority filter; policy drop; }
           chain FORWARD { type filter hook forward priority filter; policy drop; }
         }'");
    let machine = Machine::start(&host, vec![masquerade(&[])], options()).unwrap();
    for dropping in host.run(nft::dropping).unwrap() {
        host.sh(&dropping.remedy());
    }
    let guest = machine.guest();
    guest.dhcp();
    assert!(guest.inside.pings("192.0.2.1"), "the world");
    drop((guest, machine));
}

#[test]
fn a_tap_has_as_many_queues_as_the_interface() {
    let host = Namespace::new();
    let net = Net {
        queue_pairs: 2,
        ..masquerade(&[])
    };
    let machine = Machine::start(&host, vec![net], options()).unwrap();
    assert_eq!(machine.taps.len(), 2);
    let tap = host.sh("ip -d link show nacelle0");
    assert!(tap.contains("multi_queue numqueues 2"), "{tap}");
    drop(machine);
}

/// All that an error says.
fn text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(|error| error.to_string())
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn errors_say_what_to_do() {
    let cases = [
        (
            vec![bridge()],
            options(),
            "name it by --bridge NAME, or a tap on it by --tap NAME",
        ),
        (
            vec![bridge()],
            Options {
                bridge: Some("br7".into()),
                ..options()
            },
            "there is no interface br7 here",
        ),
        (
            vec![bridge()],
            Options {
                bridge: Some("lo".into()),
                ..options()
            },
            "lo is no bridge",
        ),
        (
            vec![masquerade(&[])],
            Options {
                taps: vec!["tap8".into()],
                ..options()
            },
            "there is no tap tap8: have root run\n  ip tuntap add dev tap8 mode tap vnet_hdr user 0\n  ip link set tap8 up",
        ),
        (
            vec![],
            Options {
                taps: vec!["tap8".into()],
                ..options()
            },
            "--tap tap8: the machine has only 0 interface(s)",
        ),
    ];
    let host = Namespace::new();
    for (nets, options, expected) in cases {
        let error = host.block_on(move || async move { prepare(&nets, &options).await.unwrap_err() });
        assert!(text(&error).contains(expected), "{}", text(&error));
    }
}

#[test]
#[expect(unsafe_code, reason = "only this thread becomes another user")]
fn who_may_not_make_a_tap_is_told_what_root_should_do() {
    let host = Namespace::new();
    let said = host.run(|| {
        // SAFETY: the system call, other than the library's function, changes this thread only; no memory is
        // touched.
        let became = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(became, 0);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_io().enable_time().build().unwrap();
        let prepared = runtime.block_on(async { prepare(&[masquerade(&[])], &options()).await });
        text(&prepared.unwrap_err())
    });
    for expected in [
        "making it needs root (CAP_NET_ADMIN): run nacelle as root, or have root run
",
        "  ip tuntap add dev tap0 mode tap vnet_hdr user 65534
  ip address add 10.0.2.1/24 dev tap0
  \
         ip link set tap0 up
and run nacelle with --tap tap0",
    ] {
        assert!(said.contains(expected), "{said}");
    }
}
