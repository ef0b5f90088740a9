//! Takes a thread out of `KVM_RUN`: a signal whose handler makes the run end at once.
//!
//! The handler runs on the vCPU's own thread and sets `immediate_exit` in its run page, so a signal that
//! arrives between the last look at the commands and `KVM_RUN` is not lost.
#![expect(unsafe_code, reason = "signal handlers and the run page are raw")]

use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Once};
use std::thread::JoinHandle;

use crate::{Error, Result};

thread_local! {
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The end of a vCPU thread that notices kicks: the thread arms it with its run page.
pub struct Stop(());

impl Stop {
    /// From now on a kick sets the byte at `immediate_exit`. The page must stay mapped until [`Stop::disarm`].
    pub fn arm(&self, immediate_exit: *mut u8) {
        IMMEDIATE_EXIT.with(|byte| byte.set(immediate_exit));
    }

    /// From now on a kick only interrupts what blocks.
    pub fn disarm(&self) {
        IMMEDIATE_EXIT.with(|byte| byte.set(ptr::null_mut()));
    }
}

/// A thread that can be kicked.
pub struct Kick {
    thread: Option<JoinHandle<()>>,
    kicker: Kicker,
}

/// Kicks a thread as long as it lives.
#[derive(Clone)]
pub struct Kicker(Arc<AtomicI32>);

impl Kicker {
    /// Ends the `KVM_RUN` that the thread is in, or the next one.
    pub fn now(&self) {
        let thread = self.0.load(Ordering::Acquire);
        if thread > 0 {
            // SAFETY: plain numbers. Should the thread have ended just now and its number belong to another of
            // this process already, that one only has what blocks it interrupted.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
    }
}

impl Kick {
    /// Starts the thread.
    pub fn spawn(name: &str, body: impl FnOnce(Stop) + Send + 'static) -> Result<Self> {
        install_handler();
        let kicker = Kicker(Arc::default());
        let own = kicker.clone();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(256 * 1024)
            .spawn(move || {
                // SAFETY: the call has no requirement.
                own.0.store(unsafe { libc::gettid() }, Ordering::Release);
                body(Stop(()));
                own.0.store(0, Ordering::Release);
            })
            .map_err(Error::io("start a vCPU's thread"))?;
        Ok(Kick {
            thread: Some(thread),
            kicker,
        })
    }

    /// Kicks the thread for others.
    pub fn kicker(&self) -> Kicker {
        self.kicker.clone()
    }

    /// Ends the `KVM_RUN` that the thread is in, or the next one.
    pub fn now(&self) {
        if let Some(thread) = &self.thread {
            // SAFETY: the thread has not been joined, so its id is valid; the signal has a handler.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), signal()) };
        }
    }

    /// Waits until the thread has ended.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a vCPU's thread has panicked");
        }
    }
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn handle(_signal: libc::c_int) {
    let byte = IMMEDIATE_EXIT.with(Cell::get);
    if !byte.is_null() {
        // SAFETY: the thread armed it with its own run page, which it keeps mapped until it disarms; the
        // handler runs on that thread, so neither happens meanwhile.
        unsafe { byte.write_volatile(1) };
    }
}

/// One handler serves all machines of the process: what it does is per thread.
fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is valid; the handler only writes one byte of the thread's own page.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            libc::sigaction(signal(), &action, ptr::null_mut());
        }
    });
}
