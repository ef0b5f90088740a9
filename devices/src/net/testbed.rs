//! A network of the test's own: a namespace that one thread is in, with the kernel's stack at the other end
//! of a tap. Needs root, as everything here that makes interfaces does.
#![expect(unsafe_code, reason = "system calls that the standard library lacks")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use super::HEADER_LEN;
use super::tap::{checked, interface_request};
use crate::driver::{BUFFERS, Driver};

/// Runs `test` on a thread that is alone in a new network namespace.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: it changes the namespace of this thread and touches no memory.
        checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })
            .expect("a network namespace of the test's own needs root");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Gives the interface `name` the address `address`/24 and takes it up.
pub fn take_up(name: &str, address: Ipv4Addr) {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let set = |request: u64, fill: &dyn Fn(&mut libc::ifreq)| {
        let mut ifreq = interface_request(name).unwrap();
        fill(&mut ifreq);
        // SAFETY: these requests read one ifreq.
        checked(unsafe { vmm_sys_util::ioctl::ioctl_with_ref(&socket, request, &ifreq) }).unwrap();
    };
    let inet = |ip: Ipv4Addr| {
        let [a, b, c, d] = ip.octets().map(|byte| byte as libc::c_char);
        libc::sockaddr {
            sa_family: libc::AF_INET as u16,
            sa_data: [0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0],
        }
    };
    set(libc::SIOCSIFADDR, &|ifreq| {
        ifreq.ifr_ifru.ifru_addr = inet(address)
    });
    set(libc::SIOCSIFNETMASK, &|ifreq| {
        ifreq.ifr_ifru.ifru_addr = inet(Ipv4Addr::new(255, 255, 255, 0));
    });
    set(libc::SIOCSIFFLAGS, &|ifreq| {
        ifreq.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    });
}

/// One's complement sum of the Internet protocols (RFC 1071), not yet inverted.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let total: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    let folded = (total & 0xffff) + (total >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}

/// The guest's end: what it takes to speak to the kernel's stack at the other.
pub struct Station {
    pub mac: [u8; 6],
    pub ip: Ipv4Addr,
    pub peer_mac: [u8; 6],
    pub peer_ip: Ipv4Addr,
}

impl Station {
    pub fn arp_request(&self) -> Vec<u8> {
        let mut frame = [0xff; 6].to_vec();
        frame.extend(self.mac);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(self.mac);
        frame.extend(self.ip.octets());
        frame.extend([0; 6]);
        frame.extend(self.peer_ip.octets());
        frame
    }

    /// Whether `frame` answers [`Station::arp_request`]; notes the answer.
    pub fn learn(&mut self, frame: &[u8]) -> bool {
        let answers = frame.get(12..14) == Some(&[8, 6])
            && frame.get(20..22) == Some(&[0, 2])
            && frame.get(28..32) == Some(&self.peer_ip.octets()[..]);
        if answers {
            self.peer_mac.copy_from_slice(&frame[22..28]);
        }
        answers
    }

    fn ipv4(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.peer_mac.to_vec();
        frame.extend(self.mac);
        frame.extend([8, 0]);
        let mut header = vec![0x45, 0];
        header.extend(((20 + payload.len()) as u16).to_be_bytes());
        header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        header.extend(self.ip.octets());
        header.extend(self.peer_ip.octets());
        let checksum = !sum(&[&header]);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(header);
        frame.extend(payload);
        frame
    }

    pub fn ping(&self, sequence: u16) -> Vec<u8> {
        let mut echo = vec![8, 0, 0, 0, 0x12, 0x34];
        echo.extend(sequence.to_be_bytes());
        echo.extend(b"nacelle");
        let checksum = !sum(&[&echo]);
        echo[2..4].copy_from_slice(&checksum.to_be_bytes());
        self.ipv4(1, &echo)
    }

    /// Whether `frame` is the echo of [`Station::ping`].
    pub fn is_pong(&self, frame: &[u8], sequence: u16) -> bool {
        frame.get(12..14) == Some(&[8, 0])
            && frame.get(23) == Some(&1)
            && frame.get(34) == Some(&0)
            && frame.get(40..42) == Some(&sequence.to_be_bytes()[..])
            && frame.get(42..49) == Some(b"nacelle")
    }

    /// A TCP segment whose checksum is left to whoever takes it: only the pseudo header is summed.
    pub fn tcp(
        &self,
        ports: (u16, u16),
        sequence: u32,
        acknowledged: u32,
        flags: u8,
        data: &[u8],
    ) -> Vec<u8> {
        let mut segment = ports.0.to_be_bytes().to_vec();
        segment.extend(ports.1.to_be_bytes());
        segment.extend(sequence.to_be_bytes());
        segment.extend(acknowledged.to_be_bytes());
        // A SYN says which segments its sender takes.
        let options: &[u8] = if flags & SYN != 0 { &[2, 4, 5, 180] } else { &[] };
        let header = 20 + options.len();
        segment.extend([(header as u8 / 4) << 4, flags, 0xff, 0xff]);
        let len = (header + data.len()) as u16;
        let pseudo = sum(&[
            &self.ip.octets(),
            &self.peer_ip.octets(),
            &[0, 6],
            &len.to_be_bytes(),
        ]);
        segment.extend(pseudo.to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(options);
        segment.extend(data);
        self.ipv4(6, &segment)
    }
}

/// Addresses of the two ends in every test.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
pub const GUEST_MAC: [u8; 6] = [2, 0, 0, 0xaa, 0xbb, 0xcc];

const RX: u16 = 0;
const TX: u16 = 1;
const RX_BUFFERS: u64 = 128;
const RX_BUFFER: u32 = 2048;
const OUTGOING: u64 = BUFFERS + RX_BUFFERS * RX_BUFFER as u64;
const SYN: u8 = 2;
const ACK: u8 = 0x10;
const PLAIN: [u8; HEADER_LEN] = [0; HEADER_LEN];

/// A guest in the test with a network card: it answers and asks as an operating system would.
pub struct Guest {
    pub driver: Driver,
    pub station: Station,
}

impl Guest {
    /// A guest whose card is started and has receive buffers.
    pub fn new(driver: Driver) -> Guest {
        let station = Station {
            mac: GUEST_MAC,
            ip: GUEST,
            peer_mac: [0xff; 6],
            peer_ip: HOST,
        };
        let mut guest = Guest { driver, station };
        guest.give_buffers();
        guest
    }

    pub fn give_buffers(&mut self) {
        for i in 0..RX_BUFFERS {
            let at = BUFFERS + i * u64::from(RX_BUFFER);
            self.driver.offer(RX, &[(at, RX_BUFFER, true)]);
        }
        self.driver.ring(RX);
    }

    pub fn send(&mut self, header: &[u8; HEADER_LEN], frame: &[u8]) {
        self.driver.put(OUTGOING, header);
        self.driver.put(OUTGOING + HEADER_LEN as u64, frame);
        let len = (HEADER_LEN + frame.len()) as u32;
        assert_eq!(self.driver.request(TX, &[(OUTGOING, len, false)]), 0);
    }

    /// The next frame with its header; its buffers are offered again.
    pub fn receive(&mut self) -> Vec<u8> {
        let mut frame = Vec::new();
        let mut left = 1;
        while left > 0 {
            let (head, len) = self.driver.wait(RX);
            let at = BUFFERS + u64::from(head) * u64::from(RX_BUFFER);
            frame.extend(self.driver.get(at, len as usize));
            if frame.len() == len as usize {
                left = u16::from_le_bytes([frame[10], frame[11]]).max(1);
            }
            left -= 1;
            self.driver.make_available(RX, head);
        }
        self.driver.ring(RX);
        frame
    }

    /// Receives until there is a frame like this; the stack sends others unasked.
    pub fn receive_until(&mut self, mut like: impl FnMut(&Station, &[u8]) -> bool) -> Vec<u8> {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let frame = self.receive();
            if like(&self.station, &frame[HEADER_LEN..]) {
                return frame;
            }
            assert!(Instant::now() < until, "the frame does not come");
        }
    }

    /// Finds the host by ARP and pings it.
    pub fn ping_host(&mut self) {
        self.send(&PLAIN, &self.station.arp_request());
        let answer = self.receive_until(|station, frame| {
            frame.get(12..14) == Some(&[8, 6]) && frame.get(38..42) == Some(&station.ip.octets()[..])
        });
        assert!(self.station.learn(&answer[HEADER_LEN..]));
        for sequence in 1..4 {
            let ping = self.station.ping(sequence);
            self.send(&PLAIN, &ping);
            self.receive_until(|station, frame| station.is_pong(frame, sequence));
        }
    }

    /// Speaks TCP with a program of the host, each side sending `len` bytes that are never cut up on the way
    /// to and from the guest. Gives the longest frame received.
    pub fn exchange_large_segments(&mut self, len: usize) -> usize {
        let listener = TcpListener::bind((HOST, 4000)).unwrap();
        let data: Vec<u8> = (0..len).map(|i| (i * 31 + i / 509) as u8).collect();
        let host = std::thread::spawn({
            let data = data.clone();
            move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut heard = vec![0; data.len()];
                stream.read_exact(&mut heard).unwrap();
                assert_eq!(heard, data);
                stream.write_all(&data).unwrap();
            }
        });
        const PORTS: (u16, u16) = (40_000, 4000);
        // The checksum is left to the network: it begins at 34, its field is at 16 from there.
        let csum = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
        // The same, to be cut up into segments of 1448 bytes of TCP over IPv4.
        let tso = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
        let number = |frame: &[u8], at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
        let is_tcp = |frame: &[u8]| frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&6);

        self.send(&csum, &self.station.tcp(PORTS, 100, 0, SYN, &[]));
        let answer = self.receive_until(|_, frame| is_tcp(frame) && frame[47] == SYN | ACK);
        let mut next = number(&answer[HEADER_LEN..], 38).wrapping_add(1);
        self.send(&csum, &self.station.tcp(PORTS, 101, next, ACK, &[]));
        self.send(&tso, &self.station.tcp(PORTS, 101, next, ACK, &data));

        let (mut heard, mut longest) = (Vec::<u8>::new(), 0);
        while heard.len() < len {
            let frame = self.receive_until(|_, frame| is_tcp(frame));
            let frame = &frame[HEADER_LEN..];
            let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            let start = 34 + 4 * usize::from(frame[46] >> 4);
            if number(frame, 38) == next && end > start {
                heard.extend(&frame[start..end]);
                next = next.wrapping_add((end - start) as u32);
                longest = longest.max(frame.len());
                let acknowledgement = self.station.tcp(PORTS, 101 + len as u32, next, ACK, &[]);
                self.send(&csum, &acknowledgement);
            }
        }
        assert_eq!(heard, data);
        host.join().unwrap();
        longest
    }
}
