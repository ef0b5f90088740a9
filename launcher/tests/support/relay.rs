//! The way between two hosts, which breaks where it is told to.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use nacelle_vmm::migrate::wire::{self, Kind};
use rustix::net::{Shutdown, shutdown};

use super::Bed;

/// Where it breaks, once.
#[derive(Clone, Copy, Debug)]
pub enum Break {
    /// After so many bytes from the source.
    After(u64),
    /// Where the first frame of this kind comes from the source, which is lost.
    Before(Kind),
    /// When that has passed.
    Behind(Kind),
}

#[derive(Default)]
struct Way {
    at: Option<Break>,
    /// Both ends of every connection.
    ends: Vec<OwnedFd>,
    bytes: u64,
    /// The kinds of frames that came from the source, where they can be read.
    kinds: Vec<Kind>,
}

impl Way {
    fn cut(&mut self) {
        self.at = None;
        for end in self.ends.drain(..) {
            let _ = shutdown(&end, Shutdown::Both);
        }
    }
}

/// A way to a target: connections go there as they come, until it breaks; later ones are whole.
pub struct Relay {
    /// Where the source is to connect.
    pub at: String,
    way: Arc<Mutex<Way>>,
}

impl Relay {
    /// To `target`: `unix:PATH`, of which the frames can be seen, or `HOST:PORT`, which is this host.
    pub fn to(target: &str, bed: &Bed) -> Relay {
        let way = Arc::<Mutex<Way>>::default();
        let target = target.to_owned();
        let shared = Arc::clone(&way);
        let at = if let Some(path) = target.strip_prefix("unix:") {
            let (path, here) = (path.to_owned(), bed.path("relay"));
            let _ = std::fs::remove_file(&here);
            let listener = UnixListener::bind(&here).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let on = UnixStream::connect(&path).map(OwnedFd::from);
                    carry(&shared, stream.unwrap().into(), on, true);
                }
            });
            format!("unix:{}", here.display())
        } else {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let on = TcpStream::connect(&target).map(OwnedFd::from);
                    carry(&shared, stream.unwrap().into(), on, false);
                }
            });
            format!("localhost:{port}")
        };
        Relay { at, way }
    }

    /// It breaks there, the next time.
    pub fn breaks(&self, at: Break) {
        let mut way = self.way.lock().unwrap();
        way.at = Some(at);
        way.bytes = 0;
    }

    /// Whether the source has sent such a frame.
    pub fn has_seen(&self, kind: Kind) -> bool {
        self.way.lock().unwrap().kinds.contains(&kind)
    }
}

/// Carries what comes on a new connection, on threads of its own. Where nobody takes it, it ends.
fn carry(way: &Arc<Mutex<Way>>, source: OwnedFd, target: io::Result<OwnedFd>, frames: bool) {
    let Ok(target) = target else {
        return;
    };
    let again = |end: &OwnedFd| end.try_clone().unwrap();
    way.lock().unwrap().ends.extend([again(&source), again(&target)]);
    let (mut back, mut to_source) = (File::from(again(&target)), File::from(again(&source)));
    std::thread::spawn(move || {
        let _ = io::copy(&mut back, &mut to_source);
        let _ = shutdown(&to_source, Shutdown::Write);
    });
    let way = Arc::clone(way);
    std::thread::spawn(move || {
        let (mut from, mut to) = (File::from(source), File::from(target));
        let _ = match frames {
            true => pass_frames(&way, &mut from, &mut to),
            false => pass_bytes(&way, &mut from, &mut to),
        };
        let _ = shutdown(&to, Shutdown::Write);
    });
}

fn pass_frames(way: &Mutex<Way>, from: &mut File, to: &mut File) -> Option<()> {
    let mut payload = Vec::new();
    loop {
        let frame = wire::read(from, &mut payload).ok()??;
        let at = {
            let mut way = way.lock().unwrap();
            way.kinds.push(frame.kind);
            if matches!(way.at, Some(Break::Before(kind)) if kind == frame.kind) {
                way.cut();
                return None;
            }
            way.at
        };
        let last = matches!(at, Some(Break::Behind(kind)) if kind == frame.kind);
        if last {
            // Its answer is lost, however soon it comes.
            let _ = shutdown(&*from, Shutdown::Both);
        }
        wire::write(to, frame.kind, frame.flags, &[&payload]).ok()?;
        if last {
            way.lock().unwrap().cut();
        }
    }
}

fn pass_bytes(way: &Mutex<Way>, from: &mut File, to: &mut File) -> Option<()> {
    let mut bytes = vec![0; 32 << 10];
    loop {
        let count = from.read(&mut bytes).ok().filter(|count| *count > 0)?;
        to.write_all(&bytes[..count]).ok()?;
        let mut way = way.lock().unwrap();
        way.bytes += count as u64;
        if matches!(way.at, Some(Break::After(most)) if way.bytes >= most) {
            way.cut();
        }
    }
}
