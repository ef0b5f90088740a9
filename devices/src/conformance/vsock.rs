use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use vmm_sys_util::tempdir::TempDir;

use super::Subject;
use crate::driver::{BUFFERS, Driver};
use crate::virtio::vsock::packet::{HEADER, Header, Op};
use crate::virtio::vsock::{Vsock, VsockConfig};
use crate::worker::Worker;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;
const CID: u64 = 42;
const PORT: u32 = 80;
const LOAD: u32 = 30;
const INCOMING: u64 = BUFFERS + 0x10_0000;

/// A host where a program listens at [`PORT`].
struct Sockets {
    worker: Worker,
    directory: TempDir,
    devices: usize,
    streams: u32,
    callers: Vec<UnixStream>,
}

fn header(guest_port: u32, host_port: u32, op: Op, len: usize) -> Vec<u8> {
    Header {
        src_cid: CID,
        dst_cid: 2,
        src_port: guest_port,
        dst_port: host_port,
        len: len as u32,
        kind: 1,
        op: Some(op),
        flags: 0,
        buf_alloc: 1 << 20,
        fwd_cnt: 0,
    }
    .bytes()
}

fn send(driver: &mut Driver, guest_port: u32, op: Op, data: &[u8]) {
    driver.put(
        BUFFERS,
        &[&header(guest_port, PORT, op, data.len()), data].concat(),
    );
    let parts = [
        (BUFFERS, HEADER as u32, false),
        (BUFFERS + HEADER as u64, data.len() as u32, false),
    ];
    let parts = if data.is_empty() { &parts[..1] } else { &parts };
    assert_eq!(driver.request(TRANSMIT, parts), 0);
}

fn packet(driver: &Driver, at: u64, len: u32) -> (Header, Vec<u8>) {
    let bytes = driver.get(at, len as usize);
    let (header, data) = bytes.split_first_chunk().unwrap();
    (Header::parse(header), data.to_vec())
}

/// The next packet of a stream, and what is in it.
fn hear(driver: &mut Driver, guest_port: u32, op: Op) -> Vec<u8> {
    loop {
        let len = driver.request(RECEIVE, &[(INCOMING, 4096, true)]);
        let (header, data) = packet(driver, INCOMING, len);
        if header.dst_port == guest_port && header.op != Some(Op::CreditUpdate) {
            assert_eq!(header.op, Some(op));
            return data;
        }
    }
}

impl Sockets {
    fn path(&self) -> PathBuf {
        self.directory.as_path().join(format!("{}.sock", self.devices))
    }
}

impl Subject for Sockets {
    type Device = Vsock;

    /// There is an event for a guest that has been moved, and no other.
    const IDLE: &'static [u16] = &[EVENT];

    fn new() -> Self {
        Sockets {
            worker: Worker::spawn("io0").unwrap(),
            directory: TempDir::new().unwrap(),
            devices: 0,
            streams: 1000,
            callers: Vec::new(),
        }
    }

    fn worker(&self) -> &Worker {
        &self.worker
    }

    fn device(&mut self) -> Vsock {
        self.devices += 1;
        let config = VsockConfig {
            guest_cid: CID,
            uds_path: self.path(),
        };
        Vsock::new(config, self.worker.clone()).unwrap()
    }

    fn work(&mut self, driver: &mut Driver) {
        self.streams += 1;
        let port = self.streams;
        let mut path = self.path().into_os_string();
        path.push(format!("_{PORT}"));
        let listener = UnixListener::bind(&path).unwrap();

        send(driver, port, Op::Request, &[]);
        hear(driver, port, Op::Response);
        let (mut program, _) = listener.accept().unwrap();
        program.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        send(driver, port, Op::Rw, b"question");
        let mut data = [0; 8];
        program.read_exact(&mut data).unwrap();
        assert_eq!(&data, b"question");
        program.write_all(b"answer").unwrap();
        assert_eq!(hear(driver, port, Op::Rw), b"answer");
        send(driver, port, Op::Rst, &[]);
        assert_eq!(program.read(&mut data).unwrap(), 0);
        std::fs::remove_file(path).unwrap();
    }

    fn load(&mut self, driver: &mut Driver) {
        for i in 0..LOAD {
            driver.offer(RECEIVE, &[(INCOMING + u64::from(i) * 0x100, 0x100, true)]);
        }
        driver.ring(RECEIVE);
        // Packets of no stream, each to be refused.
        for i in 0..LOAD {
            let at = BUFFERS + u64::from(i) * 0x100;
            driver.put(at, &header(i, i + 1, Op::Rw, 0));
            driver.offer(TRANSMIT, &[(at, HEADER as u32, false)]);
            driver.ring(TRANSMIT);
        }
    }

    fn finish(&mut self, driver: &mut Driver) {
        for i in 0..LOAD {
            assert_eq!(driver.wait(TRANSMIT).1, 0);
            let (_, len) = driver.wait(RECEIVE);
            let (header, _) = packet(driver, INCOMING + u64::from(i) * 0x100, len);
            let refused = (header.dst_port, header.src_port, header.op);
            assert_eq!(refused, (i, i + 1, Some(Op::Rst)));
        }
    }

    fn provoke(&mut self, _driver: &mut Driver) {
        let mut caller = UnixStream::connect(self.path()).unwrap();
        caller.write_all(b"CONNECT 5\n").unwrap();
        self.callers = vec![caller];
    }
}

super::suite!(Sockets);
