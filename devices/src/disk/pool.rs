//! A disk queue on a few threads that make blocking calls.
//!
//! The threads are shared by all disks that were given the same [`Pool`], started when there is work and ended
//! when there has been none for a while: an idle machine has none.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::{Backend, Completion, DiskOp, DiskQueue};
use crate::memory::GuestBuffer;

/// More would not help one disk, and a stack each is memory.
const MAX_THREADS: usize = 4;
const IDLE: Duration = Duration::from_secs(10);
/// Decompressing a cluster and walking qcow2 tables needs more than a worker does.
const STACK: usize = 512 * 1024;

/// A few threads for blocking calls. Clones share them.
#[derive(Clone, Default)]
pub struct Pool(Arc<Shared>);

/// What each of its threads runs first.
type Enter = dyn Fn() -> io::Result<()> + Send + Sync;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    enter: Option<Box<Enter>>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// An operation and where its result goes.
struct Job {
    backend: Arc<dyn Backend>,
    tag: u16,
    op: DiskOp,
    buffer: GuestBuffer,
    done: Sender<Completion>,
    completion: Arc<EventFd>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    /// A pool without threads as yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same; each thread first runs `enter` (which may confine it); where that fails, so do operations.
    pub fn with(enter: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Self {
        Pool(Arc::new(Shared {
            enter: Some(Box::new(enter)),
            ..Shared::default()
        }))
    }

    fn submit(&self, job: Job) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.idle <= state.jobs.len() && state.threads < MAX_THREADS {
            let shared = Arc::clone(&self.0);
            let started = std::thread::Builder::new()
                .name("disk".into())
                .stack_size(STACK)
                .spawn(move || shared.run());
            match started {
                Ok(_) => state.threads += 1,
                // Those that run already will come to it.
                Err(error) if state.threads > 0 => log::warn!("the disk pool cannot grow: {error}"),
                Err(error) => return Err(error),
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.0.work.notify_one();
        Ok(())
    }
}

impl Shared {
    /// No code that can panic runs under the lock, so what a poisoned one holds is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        if let Some(Err(error)) = self.enter.as_ref().map(|enter| enter()) {
            log::error!("a thread for disks does not start: {error}");
            let mut state = self.lock();
            state.threads -= 1;
            if state.threads == 0 {
                state.jobs.drain(..).for_each(|job| job.fail(&error));
            }
            return;
        }
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job.run();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let (woken, wait) = self
                .work
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if wait.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

impl Job {
    fn run(self) {
        // A format library that panics over a damaged image must not leave the guest waiting for ever.
        let result = catch_unwind(AssertUnwindSafe(|| self.backend.execute(self.op, &self.buffer)))
            .unwrap_or_else(|_| Err(io::Error::other("the image format's code panicked")));
        self.answer(result);
    }

    fn fail(self, error: &io::Error) {
        self.answer(Err(io::Error::new(error.kind(), error.to_string())));
    }

    fn answer(self, result: io::Result<u32>) {
        // Before anybody hears of it: the queue waits for all that it submitted before it goes, and whoever drops the disk then
        // has let go of its lock.
        drop(self.backend);
        let _ = self.done.send(Completion {
            tag: self.tag,
            buffer: self.buffer,
            result,
        });
        let _ = self.completion.write(1);
    }
}

/// A queue of a disk on a [`Pool`].
pub(super) struct PoolQueue {
    pool: Pool,
    backend: Arc<dyn Backend>,
    in_flight: usize,
    done: (Sender<Completion>, Receiver<Completion>),
    completion: Arc<EventFd>,
}

impl PoolQueue {
    /// A queue that signals `completion`.
    pub(super) fn new(backend: Arc<dyn Backend>, pool: Pool, completion: Arc<EventFd>) -> Self {
        PoolQueue {
            pool,
            backend,
            in_flight: 0,
            done: channel(),
            completion,
        }
    }
}

impl DiskQueue for PoolQueue {
    fn submit(&mut self, tag: u16, op: DiskOp, buffer: GuestBuffer) -> io::Result<()> {
        self.pool.submit(Job {
            backend: Arc::clone(&self.backend),
            tag,
            op,
            buffer,
            done: self.done.0.clone(),
            completion: Arc::clone(&self.completion),
        })?;
        self.in_flight += 1;
        Ok(())
    }

    fn commit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reap(&mut self) -> Option<Completion> {
        let completion = self.done.1.try_recv().ok()?;
        self.in_flight -= 1;
        Some(completion)
    }

    fn completion(&self) -> &EventFd {
        &self.completion
    }
}

impl Drop for PoolQueue {
    fn drop(&mut self) {
        while self.in_flight > 0 && self.done.1.recv().is_ok() {
            self.in_flight -= 1;
        }
    }
}
