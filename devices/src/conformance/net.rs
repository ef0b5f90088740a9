use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::Subject;
use crate::driver::{BUFFERS, Driver};
use crate::net::{HEADER_LEN, NetBackend};
use crate::virtio::net::features::{CTRL_MAC_ADDR, CTRL_VQ, MQ};
use crate::virtio::net::testbed::Wire;
use crate::virtio::net::{Net, NetConfig, NetControl};
use crate::worker::Worker;

const LOAD: u64 = 8;
const LEN: u32 = 72;
const OUTGOING: u64 = BUFFERS + 0x10_0000;
const ANSWER: u64 = BUFFERS + 0x20_0000;

/// A card of two queue pairs on a network that the test is at the other end of.
struct Card {
    worker: Worker,
    /// The device's end and the test's of each pair.
    ends: Vec<(UnixDatagram, UnixDatagram)>,
    frames: u64,
    provoked: bool,
    control: Option<NetControl>,
}

/// The pairs in use; each receives in queue 2 n.
fn pairs(driver: &Driver) -> u16 {
    if driver.features & MQ != 0 { 2 } else { 1 }
}

fn command(driver: &mut Driver, bytes: &[u8]) {
    driver.put(BUFFERS, bytes);
    driver.put(ANSWER, &[0xee]);
    let chain = [(BUFFERS, bytes.len() as u32, false), (ANSWER, 1, true)];
    assert_eq!(driver.request(2 * pairs(driver), &chain), 1);
    assert_eq!(driver.get(ANSWER, 1), [0], "{bytes:?}");
}

impl Card {
    /// A frame with its header, like no other.
    fn frame(&mut self) -> Vec<u8> {
        self.frames += 1;
        let mut frame = vec![0; HEADER_LEN];
        // As the device receives it, of one buffer.
        frame[10] = 1;
        frame.extend(self.frames.to_le_bytes());
        frame.resize(LEN as usize, 0xaa);
        frame
    }

    fn arrived(&self, pair: u16) -> Vec<u8> {
        let mut frame = vec![0; 2 * LEN as usize];
        let len = self.ends[usize::from(pair)].1.recv(&mut frame).unwrap();
        frame.truncate(len);
        frame
    }
}

/// A frame without its header.
fn payload(frame: &[u8]) -> &[u8] {
    &frame[HEADER_LEN..]
}

impl Subject for Card {
    type Device = Net;

    fn new() -> Self {
        let pair = || {
            let (device, peer) = UnixDatagram::pair().unwrap();
            device.set_nonblocking(true).unwrap();
            peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            (device, peer)
        };
        Card {
            worker: Worker::spawn("io0").unwrap(),
            ends: vec![pair(), pair()],
            frames: 0,
            provoked: false,
            control: None,
        }
    }

    fn worker(&self) -> &Worker {
        &self.worker
    }

    fn device(&mut self) -> Net {
        let wire = |(device, _): &(UnixDatagram, UnixDatagram)| -> Box<dyn NetBackend> {
            Box::new(Wire::new(device.try_clone().unwrap()))
        };
        let config = NetConfig {
            backends: self.ends.iter().map(wire).collect(),
            mac: [2, 0, 0, 0xaa, 0xbb, 0xcc],
            mtu: Some(1500),
            queue_size: 256,
            rx_limiter: None,
            tx_limiter: None,
        };
        let (net, control) = Net::new(config, vec![self.worker.clone()]).unwrap();
        self.control = Some(control);
        net
    }

    fn greet(&mut self, driver: &mut Driver) {
        // The link is the host's to take down, and stays so over a reset.
        self.control.as_ref().unwrap().set_link(true).unwrap();
        self.provoked = false;
        // Frames for the driver before, and of it.
        for (device, _) in &self.ends {
            while device.recv(&mut [0]).is_ok() {}
        }
        self.swallow();
        // Without a control queue there is no way to use several pairs.
        if driver.features & MQ != 0 && driver.features & CTRL_VQ != 0 {
            command(driver, &[4, 0, 2, 0]);
        }
    }

    fn work(&mut self, driver: &mut Driver) {
        for pair in 0..pairs(driver) {
            let sent = self.frame();
            driver.put(OUTGOING, &sent);
            let halves = [(OUTGOING, 12, false), (OUTGOING + 12, LEN - 12, false)];
            assert_eq!(driver.request(2 * pair + 1, &halves), 0);
            assert_eq!(payload(&self.arrived(pair)), payload(&sent));
            if pair > 0 && driver.features & CTRL_VQ == 0 {
                continue;
            }
            self.ends[usize::from(pair)].1.send(&sent).unwrap();
            loop {
                let len = driver.request(2 * pair, &[(BUFFERS, 2048, true)]);
                let frame = driver.get(BUFFERS, len as usize);
                if frame == sent {
                    break;
                }
                // What was sent to provoke the device comes first.
                assert!(self.provoked, "{frame:?}");
            }
        }
        if driver.features & CTRL_VQ != 0 && driver.features & CTRL_MAC_ADDR != 0 {
            command(driver, &[1, 1, 2, 0, 0, 1, 2, 3]);
            assert_eq!(driver.config_bytes(0, 6), [2, 0, 0, 1, 2, 3]);
        }
    }

    fn load(&mut self, driver: &mut Driver) {
        for pair in 0..pairs(driver) {
            for i in 0..LOAD {
                let frame = self.frame();
                let at = (u64::from(pair) * LOAD + i) * 2048;
                driver.put(OUTGOING + at, &frame);
                driver.offer(2 * pair + 1, &[(OUTGOING + at, LEN, false)]);
                driver.ring(2 * pair + 1);
                driver.offer(2 * pair, &[(BUFFERS + at, 2048, true)]);
                driver.ring(2 * pair);
                self.ends[usize::from(pair)].1.send(&frame).unwrap();
            }
        }
    }

    fn finish(&mut self, driver: &mut Driver) {
        for pair in 0..pairs(driver) {
            for i in 0..LOAD {
                let at = (u64::from(pair) * LOAD + i) * 2048;
                let sent = driver.get(OUTGOING + at, LEN as usize);
                assert_eq!(payload(&self.arrived(pair)), payload(&sent));
                assert_eq!(driver.wait(2 * pair + 1).1, 0);
                assert_eq!(driver.wait(2 * pair).1, LEN);
                assert_eq!(driver.get(BUFFERS + at, LEN as usize), sent);
            }
        }
    }

    fn provoke(&mut self, _driver: &mut Driver) {
        for (_, peer) in &self.ends {
            // A network that is full already will do.
            let _ = peer.set_nonblocking(true);
            let _ = peer.send(&[0xbb; LEN as usize]);
            peer.set_nonblocking(false).unwrap();
        }
        self.provoked = true;
    }

    fn swallow(&mut self) {
        for (_, peer) in &self.ends {
            peer.set_nonblocking(true).unwrap();
            while peer.recv(&mut [0]).is_ok() {}
            peer.set_nonblocking(false).unwrap();
        }
    }
}

super::suite!(Card);
