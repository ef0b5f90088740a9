//! Holds vCPUs still for part of their time, so that they write less memory while a migration catches up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::kick::Kicker;
use crate::sandbox::{Role, Sandbox};

/// How often a vCPU is held.
const PERIOD: Duration = Duration::from_millis(10);

/// The share of time, as vCPU threads read it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Share(Arc<AtomicU8>);

impl Share {
    /// How long to wait in this period.
    pub fn pause(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            percent => Some(PERIOD * u32::from(percent) / 100),
        }
    }
}

/// Sets the share. Dropping it lets the vCPUs run.
pub(crate) struct Throttle {
    share: Share,
    vcpus: Vec<Kicker>,
    ticker: Option<JoinHandle<()>>,
    sandbox: Sandbox,
}

impl Throttle {
    pub fn new(share: Share, vcpus: Vec<Kicker>, sandbox: Sandbox) -> Throttle {
        Throttle {
            share,
            vcpus,
            ticker: None,
            sandbox,
        }
    }

    /// Percent of their time that the vCPUs are held still at present.
    pub fn get(&self) -> u8 {
        self.share.0.load(Ordering::Relaxed)
    }

    /// Holds the vCPUs still for `percent` of their time, 99 at most.
    pub fn set(&mut self, percent: u8) {
        self.share.0.store(percent.min(99), Ordering::Relaxed);
        if percent > 0 && self.ticker.is_none() {
            let (share, vcpus, sandbox) = (self.share.clone(), self.vcpus.clone(), self.sandbox.clone());
            let tick = move || {
                if let Err(error) = sandbox.enter(Role::Throttle) {
                    return log::warn!("the guest is not slowed down: {error}");
                }
                while share.pause().is_some() {
                    std::thread::sleep(PERIOD);
                    vcpus.iter().for_each(Kicker::now);
                }
            };
            match std::thread::Builder::new().name("throttle".into()).spawn(tick) {
                Ok(thread) => self.ticker = Some(thread),
                Err(error) => log::warn!("the guest is not slowed down: {error}"),
            }
        }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.set(0);
        if let Some(thread) = self.ticker.take() {
            let _ = thread.join();
        }
    }
}
