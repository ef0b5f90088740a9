//! A way between two monitors in one process, with what may go wrong on it.

#![allow(clippy::unwrap_used)]

use std::fmt::Debug;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nacelle_vmm::migrate::{
    Arrived, Cancel, Limits, Options, Phase, Progress, Report, Stream, Watch, receive, send,
};
use nacelle_vmm::{Error, Result, Vm, VmConfig, VmEvent};

/// What a connection does beside carrying bytes.
#[derive(Default)]
pub struct Line {
    cut: AtomicBool,
    /// Bytes from the source after which it breaks or a bit changes; 0 for never.
    cut_after: AtomicU64,
    flip_after: AtomicU64,
    carried: AtomicU64,
}

impl Line {
    /// New connections are whole.
    pub fn mend(&self) {
        self.cut.store(false, Ordering::SeqCst);
    }

    /// Breaks the connection.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }
}

/// One side of a migration, as it is watched.
#[derive(Default)]
pub struct Side {
    pub cancel: Cancel,
    /// What is done at a phase.
    pub act: Option<(Phase, Box<dyn Fn() + Send + Sync>)>,
    /// What is done when a post-copy is broken.
    pub mend: Option<Box<dyn Fn() + Send + Sync>>,
    /// The phases that it went through, and how its rounds went.
    pub seen: Mutex<Vec<Phase>>,
    pub rounds: Mutex<Vec<Progress>>,
}

impl Side {
    /// Does `act` as soon as this side enters `phase`.
    pub fn at(phase: Phase, act: impl Fn() + Send + Sync + 'static) -> Side {
        Side {
            act: Some((phase, Box::new(act))),
            ..Side::default()
        }
    }
}

impl Watch for &Side {
    fn phase(&mut self, phase: Phase) {
        self.seen.lock().unwrap().push(phase);
        if let Some((at, act)) = &self.act
            && *at == phase
        {
            act();
        }
    }

    fn broken(&mut self, error: &nacelle_vmm::Error) {
        println!("broken: {error}");
        if let Some(mend) = &self.mend {
            mend();
        }
    }

    fn progress(&mut self, progress: &Progress) {
        self.rounds.lock().unwrap().push(*progress);
    }
}

/// A way, and how it is gone.
#[derive(Default)]
pub struct Route {
    pub options: Options,
    pub source: Side,
    pub target: Side,
    pub line: Arc<Line>,
    /// Disks that go along.
    pub copied: Vec<String>,
    /// All that is open at the source goes along, memory that is shared among it.
    pub handover: bool,
    /// Where all that the source sends is kept, if anywhere.
    pub record: Option<Arc<Mutex<Vec<u8>>>>,
}

/// It was given up at both sides for want of time: not at once, and before so many seconds were over.
pub fn gave_up<T: Debug, U: Debug>(sent: &Result<T>, received: &Result<U>, before: u64) {
    let in_time = matches!(sent, Err(Error::NotConverging { seconds, .. }) if (1..before).contains(seconds));
    assert!(in_time && received.is_err(), "{sent:?}, {received:?}");
}

impl Route {
    /// One on which both sides compare guest memory.
    pub fn verified() -> Route {
        Route::with(|_| {})
    }

    /// The same, with other options.
    pub fn with(change: impl FnOnce(&mut Options)) -> Route {
        let mut options = Options {
            verify: true,
            limits: Limits {
                // Software KVM on a busy machine; whether it converges is a test of its own.
                downtime: Duration::from_secs(2),
                ..Limits::default()
            },
            patience: Duration::from_secs(60),
            ..Options::default()
        };
        change(&mut options);
        Route {
            options,
            ..Route::default()
        }
    }

    /// The connection breaks as soon as the source, or the target, enters `phase`.
    pub fn cut_in(mut self, phase: Phase, source: bool) -> Route {
        let line = self.line.clone();
        let side = match source {
            true => &mut self.source,
            false => &mut self.target,
        };
        side.act = Some((phase, Box::new(move || line.cut())));
        self
    }

    /// Whether the source, or the target, has entered `phase`.
    pub fn entered(&self, phase: Phase, source: bool) -> bool {
        let side = if source { &self.source } else { &self.target };
        side.seen.lock().unwrap().contains(&phase)
    }

    /// The connection breaks after this many bytes from the source.
    pub fn cut_after(self, bytes: u64) -> Route {
        self.line.cut_after.store(bytes, Ordering::SeqCst);
        self
    }

    /// One bit after this many bytes from the source arrives as another.
    pub fn flip_after(self, bytes: u64) -> Route {
        self.line.flip_after.store(bytes, Ordering::SeqCst);
        self
    }

    /// Moves `vm` into a machine of `config`: how it went at either side, and what came with what it tells.
    pub fn travel(
        &self,
        vm: &mut Vm,
        mut config: VmConfig,
    ) -> (Result<Report>, Result<(Arrived, Receiver<VmEvent>)>) {
        let (sender, events) = channel();
        let (streams, accepted) = channel();
        let mut accept = move || accepted.recv().map_err(io::Error::other);
        let mut connect = move |_| {
            let (ours, theirs) = self.pair();
            let refused = |_| io::Error::from(ErrorKind::ConnectionRefused);
            streams.send(theirs).map_err(refused)?;
            Ok(ours)
        };
        let options = &self.options;
        let port = match self.handover {
            true => {
                let (port, opened) = vm.handover().unwrap();
                config.opened = opened;
                port
            }
            false => vm.moving(&self.copied).unwrap(),
        };
        std::thread::scope(|scope| {
            // What it does not accept is closed with it.
            let target = scope.spawn(move || {
                let cancel = self.target.cancel.clone();
                let mut arrived = receive(config, sender, &mut accept, options, &cancel, &mut &self.target)?;
                if let Some(rest) = arrived.rest.take() {
                    rest.take(&mut accept, &Cancel::new())?;
                }
                Ok((arrived, events))
            });
            let cancel = self.source.cancel.clone();
            let sent = send(port, vm, &mut connect, options, &cancel, &mut &self.source);
            drop(connect);
            (sent, target.join().unwrap())
        })
    }

    /// Both ends of a connection.
    pub fn pair(&self) -> (Box<dyn Stream>, Box<dyn Stream>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        for end in [&ours, &theirs] {
            let moment = Some(Duration::from_millis(50));
            end.set_read_timeout(moment).unwrap();
            end.set_write_timeout(moment).unwrap();
        }
        let ours = Watched {
            stream: ours,
            line: self.line.clone(),
            record: self.record.clone(),
        };
        (Box::new(ours), Box::new(theirs))
    }
}

struct Watched {
    stream: UnixStream,
    line: Arc<Line>,
    record: Option<Arc<Mutex<Vec<u8>>>>,
}

impl Watched {
    fn check(&self) -> io::Result<()> {
        if self.line.cut.load(Ordering::SeqCst) {
            let _ = self.stream.shutdown(Shutdown::Both);
            return Err(ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl Read for Watched {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.stream.read(bytes)
    }
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check()?;
        let before = self.line.carried.load(Ordering::SeqCst);
        let mut bytes = bytes.to_vec();
        let left = |limit: &AtomicU64| match limit.load(Ordering::SeqCst) {
            0 => None,
            limit => limit.checked_sub(before).map(|left| left as usize),
        };
        if let Some(byte) = left(&self.line.flip_after).and_then(|at| bytes.get_mut(at)) {
            *byte ^= 4;
        }
        if let Some(at) = left(&self.line.cut_after)
            && at < bytes.len()
        {
            bytes.truncate(at);
            self.stream.write_all(&bytes)?;
            self.line.cut();
            return self.check().map(|()| 0);
        }
        let written = self.stream.write(&bytes)?;
        self.line.carried.fetch_add(written as u64, Ordering::SeqCst);
        if let Some(record) = &self.record {
            record.lock().unwrap().extend(bytes.get(..written).unwrap());
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
