use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::Subject;
use crate::driver::{BUFFERS, Driver};
use crate::virtio::console::{Console, ConsoleConfig, PortConfig};
use crate::worker::Worker;

const MULTIPORT: u64 = 1 << 1;
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;
const LOAD: usize = 30;
const LINE: usize = 8;
const RECEIVED: u64 = BUFFERS + 0x10_0000;

/// A terminal and a channel with a name.
struct Ports {
    worker: Worker,
    /// The device's end and the host program's of each.
    ends: Vec<(UnixStream, UnixStream)>,
    lines: usize,
    provoked: bool,
}

/// Which ports are there, and the queue that each receives in; the next one it transmits in.
fn queues(driver: &Driver) -> &'static [(usize, u16)] {
    match driver.features & MULTIPORT != 0 {
        true => &[(0, 0), (1, 4)],
        false => &[(0, 0)],
    }
}

fn say(driver: &mut Driver, id: u32, event: u16) {
    let message = [&id.to_le_bytes()[..], &event.to_le_bytes(), &[1, 0]].concat();
    driver.put(BUFFERS, &message);
    assert_eq!(driver.request(CONTROL_TRANSMIT, &[(BUFFERS, 8, false)]), 0);
}

fn hear(driver: &mut Driver) -> (u32, u16) {
    let len = driver.request(CONTROL_RECEIVE, &[(RECEIVED, 64, true)]);
    let message = driver.get(RECEIVED, len as usize);
    (
        u32::from_le_bytes(message[..4].try_into().unwrap()),
        u16::from_le_bytes([message[4], message[5]]),
    )
}

impl Ports {
    fn line(&mut self) -> Vec<u8> {
        self.lines += 1;
        format!("{:07}\n", self.lines).into_bytes()
    }

    fn heard(&mut self, port: usize, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ends[port].1.read_exact(&mut data).unwrap();
        data
    }
}

impl Subject for Ports {
    type Device = Console;

    fn new() -> Self {
        let pair = || {
            let (device, host) = UnixStream::pair().unwrap();
            host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            (device, host)
        };
        Ports {
            worker: Worker::spawn("io0").unwrap(),
            ends: vec![pair(), pair()],
            lines: 0,
            provoked: false,
        }
    }

    fn worker(&self) -> &Worker {
        &self.worker
    }

    fn device(&mut self) -> Console {
        let port = |(name, console), (device, _): &(UnixStream, UnixStream)| PortConfig {
            name: String::from(name),
            console,
            host: device.try_clone().unwrap(),
        };
        let ports = [("", true), ("agent", false)].into_iter().zip(&self.ends);
        let config = ConsoleConfig {
            ports: ports.map(|(kind, ends)| port(kind, ends)).collect(),
        };
        Console::new(config, self.worker.clone()).unwrap()
    }

    fn greet(&mut self, driver: &mut Driver) {
        self.provoked = false;
        // What was said to the driver before, and by it.
        for (device, _) in &mut self.ends {
            while device.read(&mut [0; 4096]).is_ok() {}
        }
        self.swallow();
        if driver.features & MULTIPORT == 0 {
            return;
        }
        say(driver, 0, 0);
        assert_eq!((hear(driver), hear(driver)), ((0, 1), (1, 1)));
        for (port, about) in [(0, 4), (1, 7)] {
            say(driver, port, 3);
            assert_eq!((hear(driver), hear(driver)), ((port, about), (port, 6)));
            say(driver, port, 6);
        }
    }

    fn work(&mut self, driver: &mut Driver) {
        for &(port, receive) in queues(driver) {
            let line = self.line();
            driver.put(BUFFERS, &line);
            let halves = [(BUFFERS, 3, false), (BUFFERS + 3, LINE as u32 - 3, false)];
            assert_eq!(driver.request(receive + 1, &halves), 0);
            assert_eq!(self.heard(port, LINE), line);

            self.ends[port].1.write_all(&line).unwrap();
            let mut heard = Vec::new();
            while !heard.ends_with(&line) {
                let len = driver.request(receive, &[(RECEIVED, 64, true)]);
                heard.extend(driver.get(RECEIVED, len as usize));
            }
            // What was said to provoke the device comes first.
            assert!(heard == line || self.provoked, "{heard:?}");
        }
    }

    fn load(&mut self, driver: &mut Driver) {
        for &(port, receive) in queues(driver) {
            for i in 0..LOAD {
                let line = self.line();
                let at = BUFFERS + ((port * LOAD + i) * LINE) as u64;
                driver.put(at, &line);
                driver.offer(receive + 1, &[(at, LINE as u32, false)]);
                driver.ring(receive + 1);
                let at = RECEIVED + ((port * LOAD + i) * LINE) as u64;
                driver.offer(receive, &[(at, LINE as u32, true)]);
                driver.ring(receive);
                self.ends[port].1.write_all(&line).unwrap();
            }
        }
    }

    fn finish(&mut self, driver: &mut Driver) {
        for &(port, receive) in queues(driver) {
            let sent = driver.get(BUFFERS + (port * LOAD * LINE) as u64, LOAD * LINE);
            assert_eq!(self.heard(port, sent.len()), sent);
            for _ in 0..LOAD {
                assert_eq!(driver.wait(receive + 1).1, 0);
            }
            let mut heard = Vec::new();
            for i in 0..LOAD {
                let (_, len) = driver.wait(receive);
                let at = RECEIVED + ((port * LOAD + i) * LINE) as u64;
                heard.extend(driver.get(at, len as usize));
                if heard.len() == sent.len() {
                    break;
                }
            }
            assert_eq!(heard, sent);
        }
    }

    fn provoke(&mut self, driver: &mut Driver) {
        for (_, host) in &mut self.ends {
            host.write_all(b"x").unwrap();
        }
        // Both ports are to be announced again.
        say(driver, 0, 0);
        self.provoked = true;
    }

    fn swallow(&mut self) {
        for (_, host) in &mut self.ends {
            host.set_nonblocking(true).unwrap();
            while host.read(&mut [0; 4096]).is_ok() {}
            host.set_nonblocking(false).unwrap();
        }
    }
}

super::suite!(Ports);
