//! The device with a guest driver of the test on one side and a socket on the other.

mod tap;

use std::os::unix::net::UnixDatagram;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::features::*;
use super::testbed::{Seen, Wire};
use super::*;
use crate::driver::{BUFFERS, Driver, eventually};
use crate::ratelimit::{Limits, Rate, RateLimiter};

const RX: u16 = 0;
const TX: u16 = 1;
const CONTROL: u16 = 2;
const MAC_ADDRESS: [u8; 6] = [2, 0, 0, 0xaa, 0xbb, 0xcc];
/// Where tests put frames to send; receive buffers lie below.
const OUTGOING: u64 = BUFFERS + 0x80_0000;
const ANSWER: u64 = OUTGOING + 0x10_0000;

fn wire() -> (Box<dyn NetBackend>, UnixDatagram, Arc<Mutex<Seen>>) {
    let (socket, peer) = UnixDatagram::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let wire = Wire::new(socket);
    let seen = wire.seen.clone();
    (Box::new(wire), peer, seen)
}

fn config(backends: Vec<Box<dyn NetBackend>>) -> NetConfig {
    NetConfig {
        backends,
        mac: MAC_ADDRESS,
        mtu: None,
        queue_size: QUEUE_SIZE,
        rx_limiter: None,
        tx_limiter: None,
    }
}

fn net(config: NetConfig) -> (Net, NetControl) {
    Net::new(config, vec![Worker::spawn("io0").unwrap()]).unwrap()
}

/// A started device on a wire.
fn started(features: u64) -> (Driver, UnixDatagram, NetControl) {
    let (backend, peer, _) = wire();
    let (device, control) = net(config(vec![backend]));
    let mut driver = Driver::new(device);
    driver.start(features);
    (driver, peer, control)
}

/// A frame with its header: `len` bytes of payload that tell their place.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN];
    frame.extend((0..len).map(|i| (i * 7 + i / 251) as u8));
    frame
}

fn receive_from(peer: &UnixDatagram) -> Vec<u8> {
    let mut data = vec![0; MAX_FRAME + 1];
    let len = peer.recv(&mut data).unwrap();
    data.truncate(len);
    data
}

fn give_buffers(driver: &mut Driver, count: u64, len: u32) -> Vec<u16> {
    (0..count)
        .map(|i| driver.offer(RX, &[(BUFFERS + i * u64::from(len), len, true)]))
        .collect()
}

fn send(driver: &mut Driver, frame: &[u8]) {
    driver.put(OUTGOING, frame);
    assert_eq!(driver.request(TX, &[(OUTGOING, frame.len() as u32, false)]), 0);
}

fn command(driver: &mut Driver, bytes: &[u8]) -> u8 {
    driver.put(OUTGOING, bytes);
    driver.put(ANSWER, &[0xee]);
    let written = driver.request(
        CONTROL,
        &[(OUTGOING, bytes.len() as u32, false), (ANSWER, 1, true)],
    );
    assert_eq!(written, 1);
    driver.get(ANSWER, 1)[0]
}

#[test]
fn a_frame_of_the_guest_arrives_at_the_network_from_however_many_descriptors() {
    let (mut driver, peer, control) = started(0);
    let sent = frame(60);
    driver.put(OUTGOING, &sent);
    for split in [
        vec![(0, 72)],
        vec![(0, 12), (12, 60)],
        vec![(0, 5), (5, 20), (25, 47)],
    ] {
        let chain: Vec<_> = split
            .iter()
            .map(|&(at, len)| (OUTGOING + at, len, false))
            .collect();
        assert_eq!(driver.request(TX, &chain), 0);
        assert_eq!(receive_from(&peer), sent);
    }
    let tx = control.counters().unwrap().tx;
    assert_eq!(tx.packets, 3);
    assert_eq!(tx.bytes, 180);
    assert_eq!(tx.dropped, 0);
    driver.told();
}

#[test]
fn a_frame_of_the_network_arrives_in_the_guests_buffer() {
    let (mut driver, peer, control) = started(0);
    driver.put(BUFFERS, &[0xff; 4096]);
    let heads = give_buffers(&mut driver, 2, 1526);
    driver.ring(RX);
    peer.send(&frame(100)).unwrap();
    assert_eq!(driver.wait(RX), (heads[0], 112));

    let mut expected = frame(100);
    expected[10] = 1;
    assert_eq!(driver.get(BUFFERS, 112), expected);
    assert_eq!(driver.get(BUFFERS + 112, 1), [0xff]);
    peer.send(&frame(1514)).unwrap();
    assert_eq!(driver.wait(RX), (heads[1], 1526));
    assert_eq!(control.counters().unwrap().rx.packets, 2);
    assert_eq!(control.counters().unwrap().rx.bytes, 1614);
}

#[test]
fn a_frame_larger_than_one_buffer_takes_several_and_the_driver_sees_all_at_once() {
    let (mut driver, peer, _) = started(MRG_RXBUF);
    let heads = give_buffers(&mut driver, 60, 1536);
    driver.ring(RX);
    let sent = frame(4000);
    peer.send(&sent).unwrap();

    assert_eq!(driver.wait(RX), (heads[0], 1536));
    assert_eq!(driver.used(RX), Some((heads[1], 1536)));
    assert_eq!(driver.used(RX), Some((heads[2], 4012 - 2 * 1536)));
    assert_eq!(driver.used(RX), None);
    let mut expected = sent;
    expected[10] = 3;
    assert_eq!(driver.get(BUFFERS, 4012), expected);
    driver.told();
}

#[test]
fn the_largest_frame_arrives_and_a_larger_one_does_not() {
    let (mut driver, peer, control) = started(MRG_RXBUF);
    give_buffers(&mut driver, 20, 4096);
    driver.ring(RX);
    peer.send(&frame(MAX_FRAME - HEADER_LEN + 1)).unwrap();
    peer.send(&frame(MAX_FRAME - HEADER_LEN)).unwrap();
    let mut len = 0;
    for _ in 0..17 {
        len += driver.wait(RX).1 as usize;
    }
    assert_eq!(len, MAX_FRAME);
    assert_eq!(driver.get(BUFFERS + 10, 2), [17, 0]);
    assert_eq!(
        driver.get(BUFFERS + 12, MAX_FRAME - 12),
        frame(MAX_FRAME - HEADER_LEN)[12..]
    );
    eventually("the drop is counted", || {
        control.counters().unwrap().rx.dropped > 0
    });
}

#[test]
fn a_frame_waits_for_buffers_when_those_offered_are_too_small_for_it() {
    let (mut driver, peer, control) = started(MRG_RXBUF);
    let first = give_buffers(&mut driver, 2, 512);
    driver.ring(RX);
    let sent = frame(1400);
    peer.send(&sent).unwrap();
    peer.send(&frame(20)).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.used(RX), None);

    let last = driver.offer(RX, &[(BUFFERS + 1024, 512, true)]);
    let next = driver.offer(RX, &[(BUFFERS + 8192, 512, true)]);
    driver.ring(RX);
    assert_eq!(driver.wait(RX), (first[0], 512));
    assert_eq!(driver.wait(RX), (first[1], 512));
    assert_eq!(driver.wait(RX), (last, 1412 - 1024));
    assert_eq!(driver.wait(RX), (next, 32));
    let mut expected = sent;
    expected[10] = 3;
    assert_eq!(driver.get(BUFFERS, 1412), expected);
    assert_eq!(control.counters().unwrap().rx.dropped, 0);
}

#[test]
fn a_frame_that_fits_no_buffer_is_dropped_and_the_buffer_stays_offered() {
    let (mut driver, peer, control) = started(0);
    let heads = give_buffers(&mut driver, 1, 1526);
    driver.ring(RX);
    peer.send(&frame(1515)).unwrap();
    peer.send(&frame(40)).unwrap();
    assert_eq!(driver.wait(RX), (heads[0], 52));
    assert_eq!(control.counters().unwrap().rx.dropped, 1);
}

#[test]
fn without_receive_buffers_the_network_waits_and_the_worker_rests() {
    let (mut driver, peer, _) = started(1 << 29);
    driver.ring(RX);
    for _ in 0..3 {
        peer.send(&frame(50)).unwrap();
    }
    std::thread::sleep(Duration::from_millis(50));
    let before = cpu_time("io0");
    std::thread::sleep(Duration::from_millis(300));
    let spent = cpu_time("io0") - before;
    assert!(spent < 10, "the worker spun for {spent} of 30 ticks");

    let heads = give_buffers(&mut driver, 3, 1526);
    driver.ring(RX);
    for head in heads {
        assert_eq!(driver.wait(RX), (head, 62));
    }
}

/// Ticks of 10 ms that threads of this name and this test's process used; the busiest one's.
fn cpu_time(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok());
    let named = stats.filter(|stat| stat.contains(&format!("({name})")));
    let ticks = named.map(|stat| {
        let after_name = stat.rsplit_once(") ").unwrap().1;
        let fields: Vec<&str> = after_name.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    });
    ticks.max().unwrap_or(0)
}

#[test]
fn malformed_receive_buffers_come_back_empty_in_their_order() {
    let (mut driver, peer, _) = started(MRG_RXBUF);
    type Chain<'a> = &'a [(u64, u32, bool)];
    let chains: &[(Chain, u32)] = &[
        (&[(BUFFERS, 1526, true)], 62),
        // Cannot be written; too small for the header; not in memory; nothing at all.
        (&[(BUFFERS, 1526, false)], 0),
        (&[(BUFFERS, 11, true)], 0),
        (&[(1 << 40, 1526, true)], 0),
        (&[(BUFFERS, 0, true)], 0),
        (&[(BUFFERS, 1526, true), (BUFFERS, 10, false)], 0),
        (&[(BUFFERS, 1526, true)], 62),
    ];
    let heads: Vec<u16> = chains.iter().map(|(chain, _)| driver.offer(RX, chain)).collect();
    driver.ring(RX);
    peer.send(&frame(50)).unwrap();
    peer.send(&frame(50)).unwrap();
    for (head, (chain, written)) in heads.into_iter().zip(chains) {
        assert_eq!(driver.wait(RX), (head, *written), "{chain:?}");
    }
}

#[test]
fn malformed_frames_are_returned_and_not_sent() {
    let (mut driver, peer, control) = started(CSUM);
    driver.put(OUTGOING, &frame(65_600));
    let chains: &[&[(u64, u32, bool)]] = &[
        &[(OUTGOING, 12, false)],
        &[(OUTGOING, 25, false)],
        &[(OUTGOING, 5, false)],
        &[(OUTGOING, 65_563, false)],
        &[(OUTGOING, 60, true)],
        &[(OUTGOING, 60, false), (OUTGOING, 10, true)],
        &[(1 << 40, 60, false)],
        &[(u64::MAX - 10, 60, false)],
        &[(OUTGOING, u32::MAX, false)],
    ];
    for chain in chains {
        assert_eq!(driver.request(TX, chain), 0, "{chain:?}");
    }
    // Segmentation was not negotiated.
    let mut segments = frame(3000);
    segments[..12].copy_from_slice(&[1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]);
    send(&mut driver, &segments);
    let dropped = control.counters().unwrap().tx.dropped;
    assert_eq!(dropped, chains.len() as u64 + 1);

    let sent = frame(MAX_FRAME - HEADER_LEN);
    send(&mut driver, &sent);
    assert_eq!(receive_from(&peer), sent);
}

#[test]
fn a_full_network_holds_frames_back_and_loses_none() {
    let (mut driver, peer, control) = started(0);
    // The socket's queue is far shorter than this.
    let sent: Vec<u8> = (0..200).collect();
    for number in &sent {
        let mut frame = frame(60);
        frame[12] = *number;
        let at = OUTGOING + u64::from(*number) * 128;
        driver.put(at, &frame);
        driver.offer(TX, &[(at, 72, false)]);
    }
    driver.ring(TX);
    std::thread::sleep(Duration::from_millis(20));
    let arrived: Vec<u8> = sent.iter().map(|_| receive_from(&peer)[12]).collect();
    assert_eq!(arrived, sent);
    assert_eq!(control.counters().unwrap().tx.dropped, 0);
}

#[test]
fn the_driver_reads_what_kind_of_card_it_has() {
    let (backend, _peer, _) = wire();
    let (device, control) = net(NetConfig {
        mtu: Some(9000),
        ..config(vec![backend])
    });
    let driver = Driver::new(device);
    let every = MAC | MTU | STATUS | MRG_RXBUF | CTRL_VQ | CTRL_MAC_ADDR | CTRL_GUEST_OFFLOADS;
    let transports = 1 << 32 | 1 << 29 | 1 << 28;
    assert_eq!(
        driver.offered(),
        transports | every | GUEST_ANNOUNCE | GUEST_OFFLOADS | HOST_OFFLOADS
    );
    let config = |len: u64| -> Vec<u8> {
        (0..len)
            .map(|at| {
                let mut byte = [0];
                driver.transport.registers().read_config(at, &mut byte);
                byte[0]
            })
            .collect()
    };
    assert_eq!(
        config(14),
        [2, 0, 0, 0xaa, 0xbb, 0xcc, 1, 0, 1, 0, 0x28, 0x23, 0, 0]
    );

    let generation = driver.read(0xfc);
    control.set_link(false).unwrap();
    assert_eq!(config(8)[6..], [0, 0]);
    assert_ne!(driver.read(0xfc), generation);
}

#[test]
fn configurations_that_no_driver_could_use_are_refused() {
    let refused = |change: &dyn Fn(&mut NetConfig)| {
        let mut config = config(vec![wire().0]);
        change(&mut config);
        let worker = Worker::spawn("io0").unwrap();
        match Net::new(config, vec![worker]) {
            Ok(_) => panic!("it must be refused"),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(
        refused(&|config| config.mtu = Some(67)),
        "net: it cannot be made so: the MTU 67 is below 68"
    );
    assert!(refused(&|config| config.mac = [1, 0, 0, 0, 0, 1]).contains("address of a station"));
    assert!(refused(&|config| config.backends.clear()).contains("0 queue pairs"));
    assert!(Net::new(config(vec![wire().0]), Vec::new()).is_err());
}

#[test]
fn offloads_reach_the_network_as_negotiated_and_as_commanded() {
    let (backend, _peer, seen) = wire();
    let (device, _) = net(config(vec![backend]));
    let mut driver = Driver::new(device);
    driver.start(CTRL_VQ | CTRL_GUEST_OFFLOADS | GUEST_CSUM | GUEST_TSO4 | GUEST_UFO);
    let offloads = || seen.lock().unwrap().offloads;
    assert_eq!(offloads(), GUEST_CSUM | GUEST_TSO4 | GUEST_UFO);

    let set = |driver: &mut Driver, offloads: u64| {
        let mut bytes = vec![5, 0];
        bytes.extend(offloads.to_le_bytes());
        command(driver, &bytes)
    };
    assert_eq!(set(&mut driver, GUEST_CSUM), 0);
    assert_eq!(offloads(), GUEST_CSUM);
    assert_eq!(set(&mut driver, GUEST_TSO6), 1, "it was not negotiated");
    assert_eq!(offloads(), GUEST_CSUM);

    // A pause keeps the choice, a new driver does not.
    driver.transport.registers().pause().unwrap();
    driver.transport.registers().resume().unwrap();
    assert_eq!(offloads(), GUEST_CSUM);
    driver.start(GUEST_CSUM | GUEST_TSO4);
    assert_eq!(offloads(), GUEST_CSUM | GUEST_TSO4);
}

#[test]
fn a_driver_without_checksums_is_told_of_none() {
    for (features, flags) in [(0, 0), (GUEST_CSUM, 3)] {
        let (mut driver, peer, _) = started(features);
        give_buffers(&mut driver, 1, 1526);
        driver.ring(RX);
        let mut sent = frame(60);
        sent[0] = 0x7f;
        peer.send(&sent).unwrap();
        assert_eq!(driver.wait(RX).1, 72);
        assert_eq!(driver.get(BUFFERS, 1), [flags]);
    }
}

#[test]
fn the_address_is_the_drivers_to_change_until_it_resets() {
    let (mut driver, _peer, control) = started(CTRL_VQ | CTRL_MAC_ADDR);
    let generation = driver.read(0xfc);
    assert_eq!(command(&mut driver, &[1, 1, 2, 0, 0, 1, 2, 3]), 0);
    assert_eq!(control.mac(), [2, 0, 0, 1, 2, 3]);
    assert_ne!(driver.read(0xfc), generation);
    assert_eq!(command(&mut driver, &[1, 1, 3, 0, 0, 1, 2, 3]), 1);
    assert_eq!(control.mac(), [2, 0, 0, 1, 2, 3]);
    driver.start(0);
    assert_eq!(control.mac(), MAC_ADDRESS);
}

#[test]
fn hostile_commands_are_answered_or_returned() {
    let (mut driver, _peer, control) = started(CTRL_VQ | CTRL_MAC_ADDR);
    for bytes in [&[][..], &[1], &[255; 2], &[1, 1, 2], &[1; 5000]] {
        if !bytes.is_empty() {
            assert_eq!(command(&mut driver, bytes), 1, "{} bytes", bytes.len());
        }
    }
    let set_mac = [1, 1, 2, 0, 0, 1, 2, 3];
    driver.put(OUTGOING, &set_mac);
    // No room for the answer; the answer not in memory; the command not in memory; all writable.
    let chains: &[&[(u64, u32, bool)]] = &[
        &[(OUTGOING, 8, false)],
        &[(OUTGOING, 8, false), (1 << 40, 1, true)],
        &[(1 << 40, 8, false), (ANSWER, 1, true)],
    ];
    for chain in chains {
        assert_eq!(driver.request(CONTROL, chain), 0, "{chain:?}");
    }
    assert_eq!(driver.request(CONTROL, &[(ANSWER, 1, true)]), 1);
    assert_eq!(driver.get(ANSWER, 1), [1]);
    assert_eq!(control.mac(), MAC_ADDRESS, "none of them was carried out");
    // A command in pieces is one.
    let pieces = [
        (OUTGOING, 1, false),
        (OUTGOING + 1, 4, false),
        (OUTGOING + 5, 3, false),
        (ANSWER, 4, true),
    ];
    assert_eq!(driver.request(CONTROL, &pieces), 1);
    assert_eq!(control.mac(), [2, 0, 0, 1, 2, 3]);
}

#[test]
fn several_queue_pairs_receive_as_the_driver_chooses() {
    let (wires, peers_seen): (Vec<_>, Vec<_>) = (0..3)
        .map(|_| wire())
        .map(|(wire, peer, seen)| (wire, (peer, seen)))
        .unzip();
    let workers = vec![Worker::spawn("io0").unwrap(), Worker::spawn("io1").unwrap()];
    let (device, _) = Net::new(config(wires), workers).unwrap();
    let mut driver = Driver::new(device);
    let active = || -> Vec<bool> {
        let seen = peers_seen.iter().map(|(_, seen)| seen.lock().unwrap().active);
        seen.map(|active| active.unwrap()).collect()
    };
    driver.start(CTRL_VQ | MQ);
    assert_eq!(active(), [true, false, false]);
    let control = 6;
    let set_pairs = |driver: &mut Driver, pairs: u8| {
        driver.put(OUTGOING, &[4, 0, pairs, 0]);
        assert_eq!(
            driver.request(control, &[(OUTGOING, 4, false), (ANSWER, 1, true)]),
            1
        );
        driver.get(ANSWER, 1)[0]
    };
    assert_eq!(set_pairs(&mut driver, 4), 1);
    assert_eq!(set_pairs(&mut driver, 0), 1);
    assert_eq!(active(), [true, false, false]);
    assert_eq!(set_pairs(&mut driver, 3), 0);
    assert_eq!(active(), [true, true, true]);

    for (pair, (peer, _)) in peers_seen.iter().enumerate() {
        let (rx, tx) = (2 * pair as u16, 2 * pair as u16 + 1);
        let at = BUFFERS + 0x1_0000 * pair as u64;
        let head = driver.offer(rx, &[(at, 1526, true)]);
        driver.ring(rx);
        peer.send(&frame(40 + pair)).unwrap();
        assert_eq!(driver.wait(rx), (head, 52 + pair as u32));
        driver.put(OUTGOING, &frame(60));
        driver.request(tx, &[(OUTGOING, 72, false)]);
        assert_eq!(receive_from(peer), frame(60));
    }

    // Without MQ the control queue lies behind the first pair, and one pair receives.
    driver.start(CTRL_VQ | CTRL_MAC_ADDR);
    assert_eq!(active(), [true, false, false]);
    assert_eq!(command(&mut driver, &[1, 1, 2, 0, 0, 1, 2, 3]), 0);
}

#[test]
fn the_link_goes_down_and_up_and_the_driver_hears_of_it() {
    let (mut driver, peer, control) = started(STATUS);
    // What the device does with the link up it has done: what it looks at when it begins holds until it waits again.
    send(&mut driver, &frame(60));
    driver.told();
    driver.write(0x64, 3);
    control.set_link(false).unwrap();
    control.set_link(false).unwrap();
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.read(0x60), 2);
    assert_eq!(driver.read(0x104) >> 16, 0);

    give_buffers(&mut driver, 1, 1526);
    driver.ring(RX);
    peer.send(&frame(50)).unwrap();
    send(&mut driver, &frame(60));
    eventually("both frames are dropped", || {
        control.counters().unwrap().rx.dropped == 1 && control.counters().unwrap().tx.dropped == 1
    });
    assert_eq!(driver.used(RX), None);

    control.set_link(true).unwrap();
    assert_eq!(driver.read(0x104) >> 16, 1);
    peer.send(&frame(51)).unwrap();
    assert_eq!(driver.wait(RX).1, 63);
}

#[test]
fn after_a_move_the_network_hears_from_us_and_the_driver_is_asked_to_announce() {
    let (mut driver, peer, control) = started(STATUS | CTRL_VQ | GUEST_ANNOUNCE);
    driver.write(0x64, 3);
    control.announce().unwrap();
    assert_eq!(driver.read(0x60), 2);
    assert_eq!(driver.read(0x104) >> 16, 3);
    let rarp = receive_from(&peer);
    assert_eq!(rarp.len(), 12 + 60);
    assert_eq!(rarp[12..18], [0xff; 6]);
    assert_eq!(rarp[18..24], MAC_ADDRESS);
    assert_eq!(rarp[24..34], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);

    assert_eq!(command(&mut driver, &[3, 0]), 0);
    assert_eq!(driver.read(0x104) >> 16, 1);

    // A driver that cannot is not asked; the network hears from us all the same.
    driver.start(STATUS);
    control.announce().unwrap();
    assert_eq!(driver.read(0x104) >> 16, 1);
    assert_eq!(receive_from(&peer), rarp);
}

#[test]
fn a_change_while_the_device_is_paused_is_told_when_it_goes_on() {
    let (driver, _peer, control) = started(STATUS);
    driver.transport.registers().pause().unwrap();
    driver.write(0x64, 3);
    control.set_link(false).unwrap();
    assert_eq!(driver.read(0x60), 0);
    driver.transport.registers().resume().unwrap();
    assert_eq!(driver.read(0x60), 2);
}

/// A thread that sends numbered frames as long as the test wants.
fn flood(peer: &UnixDatagram) -> (std::thread::JoinHandle<u32>, Arc<std::sync::atomic::AtomicBool>) {
    let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let peer = peer.try_clone().unwrap();
    peer.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    let thread = std::thread::spawn({
        let ended = ended.clone();
        move || {
            let mut number = 0u32;
            while !ended.load(Ordering::Relaxed) {
                let mut frame = frame(60);
                frame[12..16].copy_from_slice(&number.to_le_bytes());
                if peer.send(&frame).is_ok() {
                    number += 1;
                }
            }
            number
        }
    });
    (thread, ended)
}

#[test]
fn a_device_stopped_and_started_amid_traffic_delivers_each_frame_once_and_in_order() {
    let (mut driver, peer, _) = started(MRG_RXBUF);
    let buffers = 128;
    give_buffers(&mut driver, buffers, 1024);
    driver.ring(RX);
    let (thread, ended) = flood(&peer);
    let mut next = 0u32;
    for round in 0..50 {
        for _ in 0..20 {
            let (head, len) = driver.wait(RX);
            assert_eq!(len, 72);
            let at = BUFFERS + u64::from(head) * 1024;
            let number: [u8; 4] = driver.get(at + 12, 4).try_into().unwrap();
            assert_eq!(u32::from_le_bytes(number), next, "round {round}");
            next += 1;
            driver.descriptor(RX, head, at, 1024, crate::driver::WRITE, 0);
            driver.make_available(RX, head);
            driver.ring(RX);
        }
        driver.transport.registers().pause().unwrap();
        driver.transport.registers().resume().unwrap();
    }
    ended.store(true, Ordering::Relaxed);
    assert!(thread.join().unwrap() >= next);
}

#[test]
fn a_device_restored_elsewhere_goes_on_with_its_buffers_its_address_and_its_announcement() {
    let (mut driver, peer, control) = started(STATUS | MRG_RXBUF | CTRL_VQ | CTRL_MAC_ADDR | GUEST_ANNOUNCE);
    let heads = give_buffers(&mut driver, 4, 1526);
    driver.ring(RX);
    peer.send(&frame(50)).unwrap();
    assert_eq!(driver.wait(RX), (heads[0], 62));
    assert_eq!(command(&mut driver, &[1, 1, 2, 0, 0, 1, 2, 3]), 0);
    control.announce().unwrap();
    receive_from(&peer);
    driver.transport.registers().pause().unwrap();
    let sent = frame(60);
    driver.put(OUTGOING, &sent);
    let sending = driver.offer(TX, &[(OUTGOING, 72, false)]);
    let state = driver.transport.save();
    let crate::state::TransportState::Mmio(registers) = &state else {
        panic!("{state:?}");
    };
    let DeviceState::Net(saved) = &registers.device else {
        panic!("{state:?}");
    };
    assert_eq!(saved.mac, Some([2, 0, 0, 1, 2, 3]));
    assert!(saved.announce);

    let (backend, peer, _) = wire();
    let (device, control) = net(config(vec![backend]));
    driver.move_to(device, state);

    assert_eq!(driver.wait(TX), (sending, 0));
    assert_eq!(receive_from(&peer), sent);
    peer.send(&frame(70)).unwrap();
    assert_eq!(driver.wait(RX), (heads[1], 82));
    assert_eq!(control.mac(), [2, 0, 0, 1, 2, 3]);
    assert_eq!(driver.read(0x60) & 2, 2, "the driver is reminded to announce");
    assert_eq!(driver.read(0x104) >> 16, 3);
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let fits = crate::state::NetState {
        mac: Some(MAC_ADDRESS),
        guest_offloads: Some(GUEST_CSUM),
        queue_pairs: 1,
        announce: false,
        link_down: true,
    };
    let restore = |state: crate::state::NetState| {
        let (mut device, control) = net(config(vec![wire().0]));
        device.restore(DeviceState::Net(state)).map(|()| control)
    };
    assert!(!restore(fits.clone()).unwrap().link_up());
    restore(crate::state::NetState::default()).unwrap();
    for state in [
        crate::state::NetState {
            mac: Some([0; 6]),
            ..fits.clone()
        },
        crate::state::NetState {
            queue_pairs: 2,
            ..fits.clone()
        },
        crate::state::NetState {
            guest_offloads: Some(1 << 40),
            ..fits
        },
    ] {
        assert!(restore(state.clone()).is_err(), "{state:?}");
    }
    let (mut device, _) = net(config(vec![wire().0]));
    assert!(device.restore(DeviceState::Stateless).is_err());
}

#[test]
fn a_rate_limit_holds_frames_back_each_way_until_it_is_lifted() {
    let two_then_hardly_any = || {
        let rate = Rate {
            per_second: 1,
            burst: 2,
        };
        let limits = Limits {
            bytes: None,
            operations: Some(rate),
        };
        RateLimiter::new(limits)
    };
    let (rx_limiter, tx_limiter) = (two_then_hardly_any(), two_then_hardly_any());
    let (backend, peer, _) = wire();
    let (device, control) = net(NetConfig {
        rx_limiter: Some(rx_limiter.clone()),
        tx_limiter: Some(tx_limiter.clone()),
        ..config(vec![backend])
    });
    let mut driver = Driver::new(device);
    driver.start(0);
    let passed = || {
        let counters = control.counters().unwrap();
        (counters.rx.packets, counters.tx.packets)
    };
    let count = 40;
    give_buffers(&mut driver, count, 1526);
    driver.put(OUTGOING, &frame(60));
    let sender = std::thread::spawn({
        let peer = peer.try_clone().unwrap();
        move || (0..count).for_each(|_| assert_eq!(peer.send(&frame(60)).unwrap(), 72))
    });
    for _ in 0..count {
        driver.offer(TX, &[(OUTGOING, 72, false)]);
    }
    driver.ring(RX);
    driver.ring(TX);
    eventually("the burst passes", || passed() >= (2, 2));
    std::thread::sleep(Duration::from_millis(50));
    assert!(passed().0 < count && passed().1 < count, "{:?}", passed());

    rx_limiter.set(Limits::default());
    for _ in 0..count {
        assert_eq!(driver.wait(RX).1, 72);
    }
    assert!(passed().1 < count, "the other way is still limited");
    tx_limiter.set(Limits::default());
    for _ in 0..count {
        assert_eq!(receive_from(&peer), frame(60));
    }
    sender.join().unwrap();
    let counters = control.counters().unwrap();
    assert_eq!((counters.rx.dropped, counters.tx.dropped), (0, 0));
}
