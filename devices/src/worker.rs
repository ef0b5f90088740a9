//! An I/O thread: one event loop that owns the handlers moved into it.
//!
//! Nothing is shared: [`Worker::add`] moves a handler in, [`Placed::remove`] moves it out again, so whoever
//! holds it owns it. One worker may serve every device of a machine, or each queue may have its own.

use std::any::Any;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use event_manager::{EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId};

use crate::{Error, Result};

/// What a worker can own: it reacts to events of descriptors.
pub trait Handler: MutEventSubscriber + Send + Any {}
impl<T: MutEventSubscriber + Send + Any> Handler for T {}

type AnyHandler = Box<dyn Handler>;

/// A running I/O thread. Dropping the last clone ends it.
#[derive(Clone)]
pub struct Worker {
    endpoint: RemoteEndpoint<AnyHandler>,
    _thread: Arc<Thread>,
}

impl Worker {
    /// Starts a thread with this name (the kernel shows 15 bytes of it).
    ///
    /// # Errors
    /// When the kernel gives no thread or no epoll descriptor.
    pub fn spawn(name: &str) -> Result<Worker> {
        Self::spawn_with(name, || Ok(()))
    }

    /// Like [`Worker::spawn`]; the thread first runs `enter` (which may confine it) and ends if that fails.
    ///
    /// # Errors
    /// When the kernel gives no thread or no epoll descriptor.
    pub fn spawn_with(
        name: &str,
        enter: impl FnOnce() -> std::io::Result<()> + Send + 'static,
    ) -> Result<Worker> {
        let mut events = EventManager::<AnyHandler>::new()?;
        let endpoint = events.remote_endpoint();
        let ended = Arc::new(AtomicBool::new(false));
        let handle = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(256 * 1024)
            .spawn({
                let ended = Arc::clone(&ended);
                move || {
                    if let Err(error) = enter() {
                        log::error!("I/O thread does not start: {error}");
                        return;
                    }
                    while !ended.load(Ordering::Acquire) {
                        match events.run() {
                            Ok(_) => {}
                            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
                            Err(error) => {
                                log::error!("I/O thread stops: {error:?}");
                                return;
                            }
                        }
                    }
                }
            })
            .map_err(|source| Error::Spawn {
                name: name.to_owned(),
                source,
            })?;
        let thread = Thread {
            ended,
            endpoint: endpoint.clone(),
            handle: Some(handle),
        };
        Ok(Worker {
            endpoint,
            _thread: Arc::new(thread),
        })
    }

    /// Moves a handler into the thread.
    ///
    /// # Errors
    /// When the thread has ended.
    pub fn add<H: Handler>(&self, handler: H) -> Result<Placed<H>> {
        let handler: AnyHandler = Box::new(handler);
        let id = self
            .endpoint
            .call_blocking(move |ops| -> event_manager::Result<_> { Ok(ops.add_subscriber(handler)) })?;
        Ok(Placed {
            worker: self.clone(),
            id,
            kind: PhantomData,
        })
    }
}

/// A handler that a worker owns at present.
pub struct Placed<H> {
    worker: Worker,
    id: SubscriberId,
    kind: PhantomData<fn() -> H>,
}

impl<H: Handler> Placed<H> {
    /// Moves the handler out again, between two of its events.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn remove(self) -> Result<H> {
        let id = self.id;
        let handler: Box<dyn Any> = self
            .worker
            .endpoint
            .call_blocking(move |ops| ops.remove_subscriber(id))?;
        match handler.downcast::<H>() {
            Ok(handler) => Ok(*handler),
            Err(_) => Err(Error::Loop(event_manager::Error::InvalidId)),
        }
    }
}

struct Thread {
    ended: Arc<AtomicBool>,
    endpoint: RemoteEndpoint<AnyHandler>,
    handle: Option<JoinHandle<()>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        let woken = self.endpoint.kick();
        if let (Ok(()), Some(handle)) = (woken, self.handle.take()) {
            // The last clone may be dropped by a handler, on this very thread: it then ends by itself.
            if handle.thread().id() != std::thread::current().id() {
                let _ = handle.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use event_manager::{EventOps, EventSet, Events};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    struct Counter {
        bell: EventFd,
        heard: EventFd,
        count: u32,
    }

    impl MutEventSubscriber for Counter {
        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.bell, EventSet::IN)).unwrap();
        }
        fn process(&mut self, _events: Events, _ops: &mut EventOps) {
            self.count += self.bell.read().unwrap() as u32;
            self.heard.write(1).unwrap();
        }
    }

    #[test]
    fn a_handler_comes_back_with_what_it_did() {
        let bell = EventFd::new(EFD_NONBLOCK).unwrap();
        let heard = EventFd::new(0).unwrap();
        let worker = Worker::spawn("io0").unwrap();
        let counter = Counter {
            bell: bell.try_clone().unwrap(),
            heard: heard.try_clone().unwrap(),
            count: 0,
        };
        let placed = worker.add(counter).unwrap();

        bell.write(3).unwrap();
        heard.read().unwrap();

        assert_eq!(placed.remove().unwrap().count, 3);
    }
}
