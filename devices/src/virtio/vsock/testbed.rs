//! A guest in the test that speaks packets: the same for streams served here and in the kernel.

use std::collections::VecDeque;

use super::packet::{HEADER, Header, Op};
use crate::driver::{BUFFERS, Driver, eventually};

pub use crate::driver::EVENT_IDX;
pub const CID: u64 = 42;
pub const RECEIVE: u16 = 0;
pub const TRANSMIT: u16 = 1;
pub const EVENT: u16 = 2;
pub const BUFFER_LEN: u64 = 4096 + HEADER as u64;
pub const BUFFER_COUNT: u64 = 16;
/// Where packets to send are put.
pub const SEND_FROM: u64 = BUFFERS + 0x20_0000;

/// A guest with receive buffers.
pub struct Guest {
    pub driver: Driver,
    pub cid: u64,
    /// Where each buffer on offer lies, in order.
    pub buffers: VecDeque<u64>,
    /// What this guest says of its own buffer.
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Guest {
    /// The guest with this context behind a driver that runs, without buffers.
    pub fn new(driver: Driver, cid: u64) -> Guest {
        Guest {
            driver,
            cid,
            buffers: VecDeque::new(),
            buf_alloc: 1 << 20,
            fwd_cnt: 0,
        }
    }

    /// Offers all receive buffers.
    pub fn offer_all(&mut self) {
        for i in 0..BUFFER_COUNT {
            self.offer(BUFFERS + i * 0x2000);
        }
    }

    pub fn offer(&mut self, address: u64) {
        // A header of its own and data apart, as older drivers do.
        let buffers = [
            (address, HEADER as u32, true),
            (address + HEADER as u64, (BUFFER_LEN - HEADER as u64) as u32, true),
        ];
        self.driver.offer(RECEIVE, &buffers);
        self.driver.ring(RECEIVE);
        self.buffers.push_back(address);
    }

    pub fn header(&self, guest_port: u32, host_port: u32, op: Op, len: u32) -> Header {
        Header {
            src_cid: self.cid,
            dst_cid: 2,
            src_port: guest_port,
            dst_port: host_port,
            len,
            kind: 1,
            op: Some(op),
            flags: 0,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    pub fn send_raw(&mut self, header: &[u8], data: &[u8]) {
        self.driver.put(SEND_FROM, &[header, data].concat());
        let len = (header.len() + data.len()) as u32;
        assert_eq!(self.driver.request(TRANSMIT, &[(SEND_FROM, len, false)]), 0);
    }

    pub fn send(&mut self, guest_port: u32, host_port: u32, op: Op) {
        let header = self.header(guest_port, host_port, op, 0);
        self.send_raw(&header.bytes(), &[]);
    }

    pub fn shutdown(&mut self, guest_port: u32, host_port: u32, flags: u32) {
        let header = Header {
            flags,
            ..self.header(guest_port, host_port, Op::Shutdown, 0)
        };
        self.send_raw(&header.bytes(), &[]);
    }

    pub fn write(&mut self, guest_port: u32, host_port: u32, data: &[u8]) {
        let header = self.header(guest_port, host_port, Op::Rw, data.len() as u32);
        self.send_raw(&header.bytes(), data);
    }

    /// A packet that has arrived, if any.
    pub fn poll(&mut self) -> Option<(Header, Vec<u8>)> {
        let (_, len) = self.driver.used(RECEIVE)?;
        let address = self.buffers.pop_front().unwrap();
        let bytes = self.driver.get(address, len as usize);
        self.offer(address);
        let (header, data) = bytes.split_first_chunk::<HEADER>().unwrap();
        let header = Header::parse(header);
        assert_eq!((header.src_cid, header.dst_cid), (2, self.cid));
        assert_eq!(header.len as usize, data.len());
        Some((header, data.to_vec()))
    }

    pub fn wait(&mut self) -> (Header, Vec<u8>) {
        let mut packet = None;
        eventually("a packet arrives", || {
            packet = self.poll();
            packet.is_some()
        });
        packet.unwrap()
    }

    /// The next packet is this operation on this stream.
    pub fn expect(&mut self, guest_port: u32, host_port: u32, op: Op) -> Header {
        let (header, _) = self.wait();
        assert_eq!(
            (header.dst_port, header.src_port, header.op),
            (guest_port, host_port, Some(op)),
            "{header:?}"
        );
        header
    }

    /// Reads this many bytes that the host sent.
    pub fn read(&mut self, len: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < len {
            let (header, part) = self.wait();
            assert!(matches!(header.op, Some(Op::Rw | Op::CreditUpdate)), "{header:?}");
            self.fwd_cnt += part.len() as u32;
            data.extend(part);
        }
        data
    }

    /// Nothing arrives: shown by a packet of no stream, whose answer is the next thing to come.
    pub fn expect_nothing(&mut self) {
        self.send(9999, 9999, Op::Rw);
        self.expect(9999, 9999, Op::Rst);
    }
}
