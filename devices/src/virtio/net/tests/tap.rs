//! The device over a real tap: the kernel's own stack answers the guest.

use super::*;
use crate::driver::Over;
use crate::net::Tap;
use crate::net::testbed::{GUEST_MAC, Guest, HOST, in_namespace, take_up};

fn on_tap(queues: usize, features: u64) -> (Guest, NetControl) {
    behind(Over::Mmio, queues, features)
}

fn behind(over: Over, queues: usize, features: u64) -> (Guest, NetControl) {
    let taps = Tap::open("vm0", queues).unwrap();
    take_up("vm0", HOST);
    let backends = taps.into_iter().map(|tap| Box::new(tap) as _).collect();
    let (device, control) = net(NetConfig {
        mac: GUEST_MAC,
        ..config(backends)
    });
    let mut driver = Driver::over(over, device);
    driver.start(features);
    (Guest::new(driver), control)
}

#[test]
fn the_guest_finds_the_host_and_pings_it() {
    in_namespace(|| {
        for features in [0, MRG_RXBUF, MRG_RXBUF | 1 << 29] {
            behind(Over::Mmio, 1, features).0.ping_host();
            behind(Over::Pci, 1, features).0.ping_host();
        }
    });
}

#[test]
fn segments_that_were_never_cut_up_pass_both_ways() {
    in_namespace(|| {
        let offloads = CSUM | HOST_TSO4 | GUEST_CSUM | GUEST_TSO4;
        let (mut guest, control) = on_tap(1, MRG_RXBUF | offloads);
        guest.ping_host();
        let longest = guest.exchange_large_segments(40_000);
        assert!(longest > 1514, "the longest frame received had {longest} bytes");
        assert_eq!(control.counters().unwrap().tx.dropped, 0);
    });
}

#[test]
fn without_segmentation_offload_the_guest_gets_whole_frames_of_the_mtu() {
    in_namespace(|| {
        let (mut guest, _) = on_tap(1, CSUM | HOST_TSO4);
        guest.ping_host();
        assert!(guest.exchange_large_segments(20_000) <= 1514);
    });
}

#[test]
fn the_guest_goes_on_after_a_stop_and_after_a_reset() {
    in_namespace(|| {
        let (mut guest, _) = on_tap(1, MRG_RXBUF);
        guest.ping_host();
        guest.driver.transport.registers().pause().unwrap();
        guest.driver.transport.registers().resume().unwrap();
        guest.ping_host();
        guest.driver.start(MRG_RXBUF);
        guest.give_buffers();
        guest.ping_host();
    });
}

#[test]
fn a_tap_with_several_queues_serves_a_driver_that_uses_one() {
    in_namespace(|| {
        on_tap(4, MRG_RXBUF).0.ping_host();
    });
}

#[test]
fn a_tap_that_is_down_loses_frames_and_nothing_else() {
    in_namespace(|| {
        let tap = Tap::open("vm0", 1).unwrap().remove(0);
        let (device, control) = net(config(vec![Box::new(tap)]));
        let mut driver = Driver::new(device);
        driver.start(0);
        send(&mut driver, &frame(60));
        send(&mut driver, &frame(60));
        assert_eq!(control.counters().unwrap().tx.dropped, 2);
        take_up("vm0", HOST);
        Guest::new(driver).ping_host();
    });
}
