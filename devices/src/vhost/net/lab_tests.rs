//! The device in the kernel, where there is one: `tests/lab/devices` runs these in the lab.

use std::ffi::CStr;
use std::ptr::null;

use vm_memory::GuestAddress;

use super::*;
use crate::driver::{Driver, MEMORY, Over, over_both_transports};
use crate::memory::Memory;
use crate::net::testbed::{GUEST_MAC, Guest, HOST, in_namespace, take_up};
use crate::state::TransportState;
use crate::virtio::net::features::{CSUM, CTRL_VQ, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, STATUS};

fn open_tap() -> Tap {
    let tap = Tap::open("vm0", 1).unwrap().remove(0);
    take_up("vm0", HOST);
    tap
}

fn device(tap: Tap) -> (VhostNet, NetControl) {
    let config = VhostNetConfig {
        taps: vec![tap],
        mac: GUEST_MAC,
        mtu: None,
    };
    VhostNet::new(config, Worker::spawn("io0").unwrap()).unwrap()
}

fn guest(over: Over, features: u64) -> (Guest, NetControl) {
    let (device, control) = device(open_tap());
    let mut driver = Driver::over(over, device);
    driver.start(features);
    (Guest::new(driver), control)
}

over_both_transports! { in the lab:
    the_guest_pings_the_host_through_the_kernel
    segments_that_were_never_cut_up_pass_both_ways_through_the_kernel
    the_guest_goes_on_after_a_stop_and_after_a_reset
    a_paused_device_keeps_its_position_and_another_goes_on_from_it
    a_malformed_ring_asks_for_a_reset_and_a_reset_heals
    what_the_kernel_writes_is_noted_while_somebody_wants_to_know
}

fn what_the_kernel_writes_is_noted_while_somebody_wants_to_know(over: Over) {
    in_namespace(move || {
        let (mut guest, _) = guest(over, MRG_RXBUF | STATUS);
        let memory = Arc::clone(&guest.driver.memory);
        let log = Arc::new(WriteLog::new(&memory));
        let noted = |log: &WriteLog| -> u32 { log.take(0, MEMORY).map(u64::count_ones).sum() };
        guest.ping_host();
        assert_eq!(noted(&log), 0);
        guest.driver.transport.registers().log_writes(Some(&log)).unwrap();
        guest.ping_host();
        // The buffers of what was received, and both used rings.
        assert!(noted(&log) >= 3);
        // It is kept over a stop.
        guest.driver.transport.pause().unwrap();
        guest.driver.transport.resume().unwrap();
        noted(&log);
        guest.ping_host();
        assert!(noted(&log) >= 3);
        guest.driver.transport.registers().log_writes(None).unwrap();
        guest.ping_host();
        assert_eq!(noted(&log), 0);
    });
}

/// Shows the counters of this namespace's interfaces under /sys, to this thread alone.
fn mount_sysfs() {
    const SYS: &CStr = c"/sys";
    const SYSFS: &CStr = c"sysfs";
    // SAFETY: all strings end with a zero and outlive the calls.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0);
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        assert_eq!(libc::mount(null(), c"/".as_ptr(), null(), flags, null()), 0);
        assert_eq!(
            libc::mount(SYSFS.as_ptr(), SYS.as_ptr(), SYSFS.as_ptr(), 0, null()),
            0
        );
    }
}

fn the_guest_pings_the_host_through_the_kernel(over: Over) {
    in_namespace(move || {
        mount_sysfs();
        for features in [0, MRG_RXBUF, MRG_RXBUF | 1 << 29] {
            let (mut guest, control) = guest(over, features);
            guest.ping_host();
            let counters = control.counters().unwrap();
            assert!(
                counters.tx.packets >= 4 && counters.rx.packets >= 4,
                "{counters:?}"
            );
            assert!(guest.driver.interrupts() > 0);
        }
    });
}

fn segments_that_were_never_cut_up_pass_both_ways_through_the_kernel(over: Over) {
    in_namespace(move || {
        let (mut guest, _) = guest(over, MRG_RXBUF | CSUM | HOST_TSO4 | GUEST_CSUM | GUEST_TSO4);
        guest.ping_host();
        let longest = guest.exchange_large_segments(40_000);
        assert!(longest > 1514, "the longest frame received had {longest} bytes");
    });
}

fn the_guest_goes_on_after_a_stop_and_after_a_reset(over: Over) {
    in_namespace(move || {
        let (mut guest, _) = guest(over, MRG_RXBUF | 1 << 29);
        for _ in 0..20 {
            guest.ping_host();
            guest.driver.transport.pause().unwrap();
            guest.driver.transport.resume().unwrap();
        }
        guest.driver.start(MRG_RXBUF);
        guest.give_buffers();
        guest.ping_host();
    });
}

fn a_paused_device_keeps_its_position_and_another_goes_on_from_it(over: Over) {
    in_namespace(move || {
        let tap = open_tap();
        let same_tap = tap.as_fd().try_clone_to_owned().unwrap();
        let (source, _) = device(tap);
        let mut driver = Driver::over(over, source);
        driver.start(MRG_RXBUF | STATUS);
        let mut guest = Guest::new(driver);
        guest.ping_host();
        guest.driver.transport.pause().unwrap();
        let state = guest.driver.transport.save();
        // Each ping and the ARP request took one buffer of each queue, the frames that the stack sends unasked
        // some more to receive.
        let queues = match &state {
            TransportState::Mmio(state) => &state.queues,
            TransportState::Pci(state) => &state.virtio.queues,
        };
        assert_eq!((queues[1].next_avail, queues[1].next_used), (4, 4));
        assert_eq!(queues[0].next_avail, queues[0].next_used);
        assert!(queues[0].next_used >= 4);

        let (target, _) = device(Tap::from_fd(same_tap).unwrap());
        guest.driver.move_to(target, state);
        guest.ping_host();
    });
}

#[test]
#[ignore = "needs the lab: tests/lab/devices"]
fn the_link_goes_down_and_up_again() {
    in_namespace(|| {
        let (mut guest, control) = guest(Over::Mmio, MRG_RXBUF | STATUS);
        guest.ping_host();
        guest.driver.write(0x64, 3);
        control.set_link(false).unwrap();
        assert_eq!(guest.driver.read(0x60) & 2, 2);
        let host = std::net::UdpSocket::bind((HOST, 0)).unwrap();
        host.send_to(b"lost", (crate::net::testbed::GUEST, 9)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(guest.driver.used(0), None);
        control.set_link(true).unwrap();
        guest.ping_host();
    });
}

fn a_malformed_ring_asks_for_a_reset_and_a_reset_heals(over: Over) {
    in_namespace(move || {
        let (mut guest, _) = guest(over, CTRL_VQ);
        for queue in [1, 2] {
            guest.driver.set_avail_index(queue, 1000);
            guest.driver.ring(queue);
            guest.driver.wait_needs_reset();
            guest.driver.start(CTRL_VQ);
            guest.give_buffers();
            guest.ping_host();
        }
    });
}

#[test]
#[ignore = "needs the lab: tests/lab/devices"]
fn memory_that_is_plugged_while_it_runs_is_used() {
    in_namespace(|| {
        let half = MEMORY as usize / 2;
        let below = Memory::from_ranges(&[(GuestAddress(0), half)]).unwrap();
        let shared = SharedMemory::new(below.clone());
        let (device, _control) = device(open_tap());
        let mut driver = Driver::in_memory(device, shared.clone());
        driver.start(MRG_RXBUF);
        let mut guest = Guest::new(driver);
        guest.ping_host();

        let grown = below.insert_region(plugged_region(half)).unwrap();
        shared.lock().unwrap().replace(grown);
        guest.driver.transport.registers().memory_changed().unwrap();
        guest.driver.memory = shared.memory().into_inner();

        let frame = guest.station.arp_request();
        let at = half as u64 + 0x1000;
        guest.driver.put(at, &[0; HEADER_LEN]);
        guest.driver.put(at + HEADER_LEN as u64, &frame);
        guest
            .driver
            .request(1, &[(at, (HEADER_LEN + frame.len()) as u32, false)]);
        guest.receive_until(|station, frame| {
            frame.get(12..14) == Some(&[8, 6]) && frame.get(38..42) == Some(&station.ip.octets()[..])
        });
    });
}

fn plugged_region(len: usize) -> Arc<vm_memory::GuestRegionMmap<vm_memory::bitmap::AtomicBitmap>> {
    let region = vm_memory::GuestRegionMmap::from_range(GuestAddress(len as u64), len, None).unwrap();
    Arc::new(region)
}

#[test]
#[ignore = "needs the lab: tests/lab/devices"]
fn a_ring_that_leaves_its_region_is_refused() {
    in_namespace(|| {
        let (device, _control) = device(open_tap());
        let mut driver = Driver::new(device);
        assert!(driver.negotiate(1 << 32));
        driver.write(0x30, 1);
        driver.write(0x38, 256);
        // The two regions of the test's memory follow one another for the guest only.
        let boundary = (MEMORY / 2) as u32;
        for (register, address) in [(0x80, boundary - 0x800), (0x90, 0x1_0000), (0xa0, 0x2_0000)] {
            driver.write(register, address);
            driver.write(register + 4, 0);
        }
        driver.write(0x44, 1);
        driver.write(0x70, 3 | 8 | 4);
        assert_eq!(driver.status() & 0x40, 0x40);
    });
}
