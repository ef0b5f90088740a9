//! A real Linux guest on the launcher's networks, on a host in a network namespace of the test's own.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use nacelle_launcher::net::{Binding, DEFAULT_NETWORK, Net, Options, Prepared, prepare};
use nacelle_vmm::config::{DeviceKind, NetConfig};
use support::{Guest, Namespace, config, device};

const MAC: [u8; 6] = [2, 0, 0, 0x12, 0x34, 0x56];

/// Runs `story` on a network that is served as the launcher does, and undone when it is told.
fn on_masquerade(story: impl FnOnce(NetConfig) + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let net = Net {
            name: "default".into(),
            binding: Binding::Masquerade {
                ipv6: None,
                ipv4: DEFAULT_NETWORK,
                ports: Vec::new(),
            },
            mac: MAC,
            mac_given: true,
            queue_pairs: 1,
        };
        let options = Options {
            machine: "guest".into(),
            hostname: "guest".into(),
            ..Default::default()
        };
        let Prepared { mut nets, held } = prepare(&[net], &options).await.unwrap();
        let host = nets.remove(0);
        let config = NetConfig {
            tap: host.tap,
            mac: MAC,
            mtu: host.mtu,
            queue_pairs: 1,
            vhost: false,
            limit: None,
        };
        // Its threads inherit this one's namespace.
        let story = tokio::task::spawn_blocking(|| story(config));
        let told = story.await;
        drop(held);
        told.unwrap();
    });
}

#[test]
fn a_guest_gets_its_address_by_dhcp_and_the_host_reaches_it() {
    Namespace::enter();
    on_masquerade(|net| {
        let mut config = config();
        config.boot.cmdline += " nacelle.dhcp";
        config.devices = vec![device("default", DeviceKind::Net(net))];
        let guest = Guest::boot(config);
        guest.said.wait(0, "its lease", |text| {
            text.contains("nacelle-guest address 10.0.2.2").then_some(())
        });

        guest.run("ping -c 3 -W 20 10.0.2.1");
        Namespace.run("ping -c 3 -W 20 10.0.2.2");
        // More than a frame, in pieces.
        Namespace.run("ping -c 1 -W 20 -s 4000 10.0.2.2");
    });

    let left = Command::new("nft").args(["list", "tables"]).output().unwrap();
    assert!(left.stdout.is_empty(), "{left:?}");
    let tap = Command::new("ip")
        .args(["link", "show", "nacelle0"])
        .output()
        .unwrap();
    assert!(!tap.status.success(), "{tap:?}");
}
