//! The same by IPv6, where the pod network has it.

use super::*;

const POD: &str = "fd00:10:244:1::7";
const WORLD: &str = "fd00:10:244:1::1";

impl Pod {
    pub(super) fn with_ipv6(self) -> Pod {
        for (namespace, address, interface) in [(&self.inside, POD, "eth0"), (&self.world, WORLD, "gate")] {
            namespace.ip(&format!("address add {address}/64 dev {interface} nodad"));
        }
        self.inside.ip(&format!("route add default via {WORLD}"));
        self
    }
}

impl Guest {
    /// Asks for an address as a real client does, once the router has told it to; gives what it was told.
    fn dhcpv6(&self) -> String {
        self.eventually("ip -6 route show default | grep 'proto ra'");
        self.eventually("ip -6 address show dev eth0 scope link -tentative | grep fe80");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/net/tests/dhclient");
        let scratch = tempfile::tempdir().unwrap();
        let at = scratch.path().display();
        self.inside.sh(&format!(
            "PATH=$PATH:/sbin:/usr/sbin
             timeout 30 dhclient -6 -1 -q -sf {script} -lf {at}/leases -pf {at}/pid eth0 && kill $(cat {at}/pid)"
        ))
    }

    fn eventually(&self, command: &str) -> String {
        self.inside.sh(&format!(
            "for _ in $(seq 100); do {command} && exit; sleep 0.1; done; ip -6 address; ip -6 route; exit 1"
        ))
    }
}

#[test]
fn a_masqueraded_guest_has_its_pods_ipv6_too() {
    let mut pod = Pod::new().with_ipv6();
    let (made, guest) = pod.with_guest(masquerade(&[]));
    let ipv6 = made.ipv6.unwrap();
    assert_eq!(
        (ipv6.tap.as_str(), ipv6.outside.to_string()),
        ("tap0-router", POD.to_owned())
    );
    let lease = guest.dhcpv6();
    for line in ["ip=fd10:0:2::2", "lease=86313600"] {
        assert!(lease.lines().any(|said| said == line), "{line} in:\n{lease}");
    }
    assert_eq!(
        guest.inside.sh("cat /proc/sys/net/ipv6/conf/eth0/mtu").trim(),
        "1400"
    );
    says(&guest.inside, 80, "guest");
    says(&pod.world, 80, "world");
    assert_eq!(hears(&guest.inside, WORLD, 80), "world");
    assert_eq!(hears(&pod.world, POD, 80), "guest");
    guest.inside.sh(&format!("busybox ping6 -c 1 -W 2 {WORLD}"));
    guest.inside.sh("busybox ping6 -c 1 -W 2 fd10:0:2::1");
    pod.world.sh(&format!("busybox ping6 -c 1 -W 2 {POD}"));
}

#[test]
fn only_ports_that_are_named_lead_to_the_guest_by_ipv6_and_answers() {
    let mut pod = Pod::new().with_ipv6();
    let (_, guest) = pod.with_guest(masquerade(&[tcp(80)]));
    guest.dhcpv6();
    for port in [80, 81] {
        says(&guest.inside, port, "guest");
        says(&pod.world, port, "world");
    }
    says(&pod.inside, 81, "pod");
    assert_eq!(hears(&pod.world, POD, 80), "guest");
    assert_eq!(hears(&pod.world, POD, 81), "pod");
    assert_eq!(hears(&guest.inside, WORLD, 81), "world");
}

#[test]
fn the_guest_does_not_reach_the_pod_itself_by_ipv6() {
    let mut pod = Pod::new().with_ipv6();
    let (_, guest) = pod.with_guest(masquerade(&[]));
    guest.dhcpv6();
    says(&pod.inside, 9000, "pod");
    for address in [POD, "fd10:0:2::1"] {
        assert_eq!(hears(&guest.inside, address, 9000), "", "{address}");
    }
    // As somebody else, it is not heard at all.
    guest.inside.ip("address add fd00:10:244:1::9/128 dev eth0 nodad");
    let (_, answered) = guest
        .inside
        .try_sh(&format!("busybox ping6 -c 1 -W 1 -I fd00:10:244:1::9 {WORLD}"));
    assert!(!answered);
    says(&pod.world, 80, "world");
    assert_eq!(pod.reports_to(WORLD), "world");
}

#[test]
fn a_guest_learns_that_a_link_far_away_takes_less() {
    let mut pod = Pod::new().with_ipv6();
    let far = Namespace::new();
    pod.world
        .connect("far", "192.0.2.1/24", &far, "eth0", "192.0.2.2/24");
    for (namespace, address, interface) in [(&pod.world, "2001:db8::1", "far"), (&far, "2001:db8::2", "eth0")]
    {
        namespace.ip(&format!("address add {address}/64 dev {interface} nodad"));
    }
    far.ip("route add default via 2001:db8::1");
    pod.world.sh("echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
    pod.world.ip("link set far mtu 1280");
    let (_, guest) = pod.with_guest(masquerade(&[]));
    guest.dhcpv6();
    // Its segments are too long for that link, until it is told.
    let long = "word ".repeat(20_000);
    says(&guest.inside, 80, &long);
    assert_eq!(hears(&far, POD, 80), long);
    guest.inside.sh("ip -6 route get 2001:db8::2 | grep 'mtu 1280'");
}
