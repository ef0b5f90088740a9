//! The network of a guest that moves: two taps on a bridge, as two hosts on one network have them, and between the hosts
//! a link of so many bits a second. Both are this host: the link is its loopback in a namespace of the run's own, with a
//! network's packet size and a token bucket, which counts what is sent.

use std::fs;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::network::{GUEST, HOST, namespace};

/// Taps of the two hosts.
pub const TAPS: [&str; 2] = ["bench0", "bench1"];
/// Bytes in the bucket: some packets as the kernel joins them.
const BURST: u64 = 128 << 10;
const LISTENING: &str = "0A";

/// The link, which ends with this process.
pub struct Link {
    /// Bytes a second.
    pub rate: u64,
}

impl Link {
    /// Puts this thread, and what it starts, into a network namespace with a link of so many Mbit/s.
    ///
    /// # Errors
    /// When we are not root, or the kernel lacks something.
    pub fn make(megabits: u32) -> Result<Link> {
        let mut commands = vec![
            "ip link set lo up mtu 1500".to_owned(),
            format!("tc qdisc add dev lo root tbf rate {megabits}mbit burst {BURST} latency 50ms"),
            "ip link add bench type bridge".to_owned(),
            format!("ip address add {HOST}/24 dev bench"),
            "ip link set bench up".to_owned(),
        ];
        for tap in TAPS {
            commands.push(format!("ip tuntap add dev {tap} mode tap vnet_hdr"));
            commands.push(format!("ip link set {tap} master bench up"));
        }
        namespace(&commands)?;
        Ok(Link {
            rate: u64::from(megabits) * 1_000_000 / 8,
        })
    }

    /// Bytes that have gone over it, both ways.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn carried(&self) -> Result<u64> {
        let text = read("/proc/thread-self/net/dev")?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:"));
        let bytes = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        bytes.ok_or_else(|| Error::Other("the kernel does not say what the link carried".into()))
    }

    /// Waits until somebody listens at a port.
    ///
    /// # Errors
    /// When nobody does within `limit`.
    pub fn listens(&self, port: u16, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        let place = format!("0100007F:{port:04X}");
        loop {
            let text = read("/proc/thread-self/net/tcp")?;
            let mut sockets = text.lines().map(|line| line.split_whitespace().skip(1));
            if sockets
                .any(|mut words| words.next() == Some(place.as_str()) && words.nth(1) == Some(LISTENING))
            {
                return Ok(());
            }
            if begun.elapsed() >= limit {
                return Err(Error::Late {
                    awaited: format!("the target, which is to listen at port {port},"),
                    limit,
                    said: String::new(),
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io(format!("read {path}")))
}

/// What the guest says of itself when it is asked from outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// When that came.
    pub at: Instant,
    /// Bytes that it has written.
    pub written: u64,
    /// The longest time that passed on its own clock between two looks at it, since it was asked before.
    pub longest: Duration,
}

/// Somebody on the guest's network who asks it again and again, by datagrams, and tells it how fast it is to write.
pub struct Pinger {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    end: AtomicBool,
    rate: AtomicU64,
    /// When it asked.
    questions: Mutex<Vec<Instant>>,
    answers: Mutex<Vec<Answer>>,
}

impl Pinger {
    /// Begins to ask this often.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn start(interval: Duration) -> Result<Pinger> {
        let open = || {
            let socket = UdpSocket::bind((HOST, 0))?;
            socket.connect((GUEST, 7))?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            Ok((socket.try_clone()?, socket))
        };
        let (asking, hearing) = open().map_err(Error::io("make a socket to the guest"))?;
        let shared = Arc::new(Shared::default());
        let (asker, hearer) = (shared.clone(), shared.clone());
        let threads = vec![
            std::thread::spawn(move || {
                let mut number = 0u64;
                while !asker.end.load(Ordering::Relaxed) {
                    let rate = asker.rate.load(Ordering::Relaxed);
                    let datagram = [number.to_le_bytes(), rate.to_le_bytes()].concat();
                    let mut questions = asker.questions.lock().unwrap_or_else(PoisonError::into_inner);
                    questions.push(Instant::now());
                    drop(questions);
                    // One that is lost is one that has no answer.
                    let _ = asking.send(&datagram);
                    number += 1;
                    std::thread::sleep(interval);
                }
            }),
            std::thread::spawn(move || {
                let mut words = [0; 32];
                while !hearer.end.load(Ordering::Relaxed) {
                    if let Ok(32) = hearing.recv(&mut words) {
                        let answer = answer(Instant::now(), &words);
                        let mut answers = hearer.answers.lock().unwrap_or_else(PoisonError::into_inner);
                        answers.push(answer);
                    }
                }
            }),
        ];
        Ok(Pinger { shared, threads })
    }

    /// How many bytes a second the guest is to write from now on.
    pub fn write(&self, rate: u64) {
        self.shared.rate.store(rate, Ordering::Relaxed);
    }

    /// When it asked, since that was asked for last: who is held up himself sees gaps that are none of the guest's.
    pub fn questions(&self) -> Vec<Instant> {
        let mut questions = self
            .shared
            .questions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut questions)
    }

    /// The answers since they were asked for last.
    pub fn answers(&self) -> Vec<Answer> {
        let mut answers = self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut answers)
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Four numbers of the guest's: the question's, its clock, and what an [`Answer`] has.
fn answer(at: Instant, words: &[u8; 32]) -> Answer {
    let mut numbers = words
        .chunks_exact(8)
        .map(|word| {
            word.iter()
                .rev()
                .fold(0, |number, byte| number << 8 | u64::from(*byte))
        })
        .skip(2);
    let mut next = || numbers.next().unwrap_or(0);
    Answer {
        at,
        written: next(),
        longest: Duration::from_nanos(next()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_what_the_guest_wrote() {
        let at = Instant::now();
        let words: Vec<u8> = [7u64, 8, 4096, 1_500_000]
            .into_iter()
            .flat_map(u64::to_le_bytes)
            .collect();
        let expected = Answer {
            at,
            written: 4096,
            longest: Duration::from_micros(1500),
        };
        assert_eq!(answer(at, &words.try_into().unwrap()), expected);
    }
}
