//! The watchdog of Intel's 6300ESB, which guests drive as `i6300esb`: a function on the PCI bus that acts on a guest
//! that stopped feeding it (Intel 6300ESB I/O Controller Hub datasheet, "Watchdog Timer", device 29 function 4).
//!
//! It counts down twice. The end of the first stage would interrupt the guest; there is no interrupt line here, so
//! that only the second stage starts. Its end is the bite: the machine's owner is told.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::timerfd::TimerFd;

use crate::pci::PciFunction;
use crate::pci::bar::{Bar, BarRange};
use crate::pci::config::{ConfigSpace, Identity};
use crate::state::WatchdogState;
use crate::{Error, Result};

/// Bytes of memory behind its BAR: the smallest that a page of the host can hold; the registers are the first 16.
pub const BAR_SIZE: u64 = 4096;

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x25ab,
    revision: 0,
    class: [0x08, 0x80, 0x00],
    subsystem_vendor: 0x8086,
    subsystem: 0x25ab,
};

/// In configuration space: how it counts, and whether it bites.
const CONFIG: usize = 0x60;
const CONFIG_INTERRUPT: u16 = 0b11;
/// Counts in steps of about a microsecond, else of about a millisecond.
const CONFIG_FAST: u16 = 1 << 2;
/// The end of the second stage is only noted.
const CONFIG_NO_BITE: u16 = 1 << 5;

/// In configuration space: whether it counts.
const LOCK: usize = 0x68;
/// Until the next reset the other bits stay as they are.
const LOCK_LOCKED: u8 = 1 << 0;
const LOCK_ENABLE: u8 = 1 << 1;
/// After the second stage comes the first again.
const LOCK_FREE_RUN: u8 = 1 << 2;

/// In memory: how long the stages are.
const PRELOAD: [u64; 2] = [0x0, 0x4];
const PRELOAD_MASK: u32 = 0xf_ffff;
/// In memory: food, and what happened. Writes count after [`UNLOCK`] only.
const RELOAD: u64 = 0xc;
const RELOAD_FEED: u32 = 1 << 8;
const RELOAD_TIMED_OUT: u32 = 1 << 9;
const UNLOCK: [u32; 2] = [0x80, 0x86];

/// What it counts by: the PCI clock, divided.
const CLOCK_HZ: u64 = 33_000_000;
/// A guest may ask for stages that nobody notices; it gets none that would keep a thread of ours busy.
const SHORTEST: Duration = Duration::from_millis(1);

/// The watchdog, on the bus.
pub struct I6300Esb {
    registers: Mutex<Registers>,
}

/// The half of it that waits for the end of a stage: for an I/O thread.
pub struct Alarm {
    watchdog: Arc<I6300Esb>,
    bites: Box<dyn Fn() + Send>,
}

struct Registers {
    space: ConfigSpace,
    bar: Bar,
    preload: [u32; 2],
    /// How much of [`UNLOCK`] the guest has written.
    unlocked: usize,
    /// The second stage ended once, and the guest has not acknowledged it. A reset leaves it.
    timed_out: bool,
    /// The stage that runs.
    stage: Option<usize>,
    countdown: Countdown,
    timer: TimerFd,
}

/// How long a stage has still to go.
#[derive(Clone, Copy)]
enum Countdown {
    Until(Instant),
    /// The machine is paused.
    Left(Duration),
}

impl I6300Esb {
    /// A watchdog whose registers lie at `home` at power-on; `bites` is called when the guest did not feed it.
    ///
    /// # Errors
    /// When `home` is no place for a BAR, or the kernel has no timer left.
    pub fn new(home: u64, bites: Box<dyn Fn() + Send>) -> Result<(Arc<Self>, Alarm)> {
        let mut space = ConfigSpace::new(IDENTITY);
        let bar = Bar::add(&mut space, 0, BAR_SIZE, home)?;
        let config = CONFIG_INTERRUPT | CONFIG_FAST | CONFIG_NO_BITE;
        space.allow(CONFIG, &config.to_le_bytes());
        space.allow(LOCK, &[LOCK_LOCKED | LOCK_ENABLE | LOCK_FREE_RUN]);
        let timer = TimerFd::new().map_err(|error| Error::io("make the watchdog's timer")(error.into()))?;
        let watchdog = Arc::new(I6300Esb {
            registers: Mutex::new(Registers {
                space,
                bar,
                preload: [PRELOAD_MASK; 2],
                unlocked: 0,
                timed_out: false,
                stage: None,
                countdown: Countdown::Until(Instant::now()),
                timer,
            }),
        });
        let alarm = Alarm {
            watchdog: Arc::clone(&watchdog),
            bites,
        };
        Ok((watchdog, alarm))
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time stands still.
    pub fn pause(&self) {
        let mut registers = self.registers();
        registers.countdown = Countdown::Left(registers.countdown.left());
        registers.arm();
    }

    /// Time goes on.
    pub fn resume(&self) {
        let mut registers = self.registers();
        registers.countdown = Countdown::Until(Instant::now() + registers.countdown.left());
        registers.arm();
    }

    /// What it keeps. Only right while paused.
    pub fn save(&self) -> WatchdogState {
        let registers = self.registers();
        WatchdogState {
            config: registers.space.save(),
            preload: registers.preload,
            unlocked: registers.unlocked as u8,
            timed_out: registers.timed_out,
            stage: registers.stage.map_or(0, |stage| stage as u8 + 1),
            left_ns: u64::try_from(registers.countdown.left().as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Takes up a saved state; it stays paused.
    ///
    /// # Errors
    /// When it is no watchdog's.
    pub fn restore(&self, state: &WatchdogState) -> Result<()> {
        let refuse = |reason: String| Error::State {
            device: "watchdog",
            reason,
        };
        if usize::from(state.unlocked) > UNLOCK.len() || state.stage > 2 {
            return Err(refuse(format!("{state:?}")));
        }
        let mut registers = self.registers();
        registers.space.restore("watchdog", &state.config)?;
        registers.preload = state.preload.map(|preload| preload & PRELOAD_MASK);
        registers.unlocked = state.unlocked.into();
        registers.timed_out = state.timed_out;
        registers.stage = state.stage.checked_sub(1).map(usize::from);
        registers.countdown = Countdown::Left(Duration::from_nanos(state.left_ns));
        registers.arm();
        Ok(())
    }
}

impl Countdown {
    fn left(self) -> Duration {
        match self {
            Countdown::Until(end) => end.saturating_duration_since(Instant::now()),
            Countdown::Left(left) => left,
        }
    }
}

impl Registers {
    /// How long `stage` is.
    fn length(&self, stage: usize) -> Duration {
        let fast = self.space.u16(CONFIG) & CONFIG_FAST != 0;
        let preload = self.preload.get(stage).copied().unwrap_or(PRELOAD_MASK);
        let clocks = u64::from(preload) << if fast { 5 } else { 15 };
        // At most 2³⁵ clocks: microseconds of them fit.
        Duration::from_micros(clocks * 1_000_000 / CLOCK_HZ).max(SHORTEST)
    }

    fn enter(&mut self, stage: Option<usize>) {
        self.stage = stage;
        let length = stage.map_or(Duration::ZERO, |stage| self.length(stage));
        self.countdown = match self.countdown {
            Countdown::Until(_) => Countdown::Until(Instant::now() + length),
            Countdown::Left(_) => Countdown::Left(length),
        };
        self.arm();
    }

    /// Sets the timer to when the stage ends. What it had to say before is not said any more.
    fn arm(&mut self) {
        let set = match (self.stage, self.countdown) {
            // A timer of no time would be off.
            (Some(_), Countdown::Until(_)) => {
                let left = self.countdown.left().max(Duration::from_nanos(1));
                self.timer.reset(left, None)
            }
            _ => self.timer.clear(),
        };
        if let Err(error) = set {
            log::error!("watchdog: its timer cannot be set: {error}");
        }
    }

    /// A stage may have ended: whether it bites.
    fn expire(&mut self) -> bool {
        let over = matches!(self.countdown, Countdown::Until(end) if end <= Instant::now());
        match self.stage {
            Some(0) if over => self.enter(Some(1)),
            Some(_) if over => {
                self.timed_out = true;
                let free = self.space.get::<1>(LOCK)[0] & LOCK_FREE_RUN != 0;
                self.enter(free.then_some(0));
                return self.space.u16(CONFIG) & CONFIG_NO_BITE == 0;
            }
            // Fed meanwhile, or paused.
            _ => self.arm(),
        }
        false
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        let before = self.space.get::<1>(LOCK)[0];
        self.space.write(offset, data);
        if before & LOCK_LOCKED != 0 {
            self.space.set(LOCK, &[before]);
            return;
        }
        let after = self.space.get::<1>(LOCK)[0];
        match (before & LOCK_ENABLE != 0, after & LOCK_ENABLE != 0) {
            (false, true) => self.enter(Some(0)),
            (true, false) => self.enter(None),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        let unlocked = std::mem::take(&mut self.unlocked);
        if let Some(next) = UNLOCK.get(unlocked) {
            if offset == RELOAD && value == *next {
                self.unlocked = unlocked + 1;
            }
            return;
        }
        let mut lengths = PRELOAD.iter().zip(&mut self.preload);
        if let Some((_, length)) = lengths.find(|(register, _)| **register == offset) {
            *length = value & PRELOAD_MASK;
        } else if offset == RELOAD {
            if value & RELOAD_TIMED_OUT != 0 {
                self.timed_out = false;
            }
            if value & RELOAD_FEED != 0 && self.stage.is_some() {
                self.enter(Some(0));
            }
        }
    }

    fn read(&self, offset: u64) -> u32 {
        match offset {
            RELOAD if self.timed_out => RELOAD_TIMED_OUT,
            _ => PRELOAD
                .iter()
                .zip(self.preload)
                .find(|(register, _)| **register == offset)
                .map_or(0, |(_, length)| length),
        }
    }
}

impl PciFunction for I6300Esb {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.registers().space.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.registers().write_config(offset, data);
    }

    fn bars(&self) -> Vec<BarRange> {
        let registers = self.registers();
        registers.bar.range(&registers.space).into_iter().collect()
    }

    fn read_bar(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        let value = self.registers().read(offset).to_le_bytes();
        for (to, byte) in data.iter_mut().zip(value.into_iter().chain(std::iter::repeat(0))) {
            *to = byte;
        }
    }

    fn write_bar(&self, _bar: u8, offset: u64, data: &[u8]) {
        let mut value = [0; 4];
        for (to, byte) in value.iter_mut().zip(data) {
            *to = *byte;
        }
        self.registers().write(offset, u32::from_le_bytes(value));
    }

    fn reset(&self) {
        let mut registers = self.registers();
        registers.space.reset();
        let Registers { space, bar, .. } = &mut *registers;
        bar.reset(space);
        registers.preload = [PRELOAD_MASK; 2];
        registers.unlocked = 0;
        registers.enter(None);
    }
}

impl MutEventSubscriber for Alarm {
    fn init(&mut self, ops: &mut EventOps) {
        let added = ops.add(Events::new(&self.watchdog.registers().timer, EventSet::IN));
        if let Err(error) = added {
            log::error!("watchdog: its timer is not heard: {error:?}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        if self.watchdog.registers().expire() {
            (self.bites)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::worker::{Placed, Worker};

    struct Dog {
        watchdog: Arc<I6300Esb>,
        bitten: Receiver<()>,
        _alarm: Placed<Alarm>,
    }

    impl Dog {
        fn new() -> Dog {
            let (tell, bitten) = channel();
            let (watchdog, alarm) =
                I6300Esb::new(0x1000_0000, Box::new(move || tell.send(()).unwrap())).unwrap();
            let _alarm = Worker::spawn("io0").unwrap().add(alarm).unwrap();
            Dog {
                watchdog,
                bitten,
                _alarm,
            }
        }

        fn unlocked(&self, offset: u64, value: u32) {
            self.watchdog.write_bar(0, RELOAD, &[0x80, 0]);
            self.watchdog.write_bar(0, RELOAD, &[0x86, 0]);
            self.watchdog.write_bar(0, offset, &value.to_le_bytes());
        }

        /// Both stages take so many steps of about a millisecond.
        fn start(&self, steps: u32) {
            self.unlocked(PRELOAD[0], steps);
            self.unlocked(PRELOAD[1], steps);
            self.watchdog.write_config(LOCK as u16, &[LOCK_ENABLE]);
        }

        fn read(&self, offset: u64) -> u32 {
            let mut data = [0; 4];
            self.watchdog.read_bar(0, offset, &mut data);
            u32::from_le_bytes(data)
        }

        fn stage(&self) -> u8 {
            self.watchdog.save().stage
        }
    }

    #[test]
    fn a_guest_that_stops_feeding_it_is_bitten_once_and_finds_why_after_its_reset() {
        let dog = Dog::new();
        dog.start(2);
        dog.bitten.recv().unwrap();
        assert_eq!(dog.stage(), 0);
        dog.watchdog.reset();
        assert_eq!(dog.read(RELOAD), RELOAD_TIMED_OUT);
        dog.unlocked(RELOAD, RELOAD_TIMED_OUT);
        assert_eq!(dog.read(RELOAD), 0);
        assert!(dog.bitten.try_recv().is_err());
    }

    #[test]
    fn food_starts_the_first_stage_again() {
        let dog = Dog::new();
        dog.start(PRELOAD_MASK);
        dog.watchdog.pause();
        let state = WatchdogState {
            stage: 2,
            left_ns: 5_000_000_000_000,
            ..dog.watchdog.save()
        };
        dog.watchdog.restore(&state).unwrap();
        assert_eq!(dog.watchdog.save(), state);
        dog.watchdog.write_bar(0, RELOAD, &RELOAD_FEED.to_le_bytes());
        assert_eq!(dog.stage(), 2, "not unlocked");
        dog.unlocked(RELOAD, RELOAD_FEED);
        assert_eq!(dog.stage(), 1);
    }

    #[test]
    fn one_that_is_not_to_bite_only_notes_it() {
        let dog = Dog::new();
        let config = CONFIG_NO_BITE | CONFIG_FAST;
        dog.watchdog.write_config(CONFIG as u16, &config.to_le_bytes());
        dog.start(2);
        while dog.read(RELOAD) != RELOAD_TIMED_OUT {
            std::thread::yield_now();
        }
        assert!(dog.bitten.try_recv().is_err());
    }

    #[test]
    fn a_locked_one_cannot_be_called_off() {
        let dog = Dog::new();
        dog.watchdog
            .write_config(LOCK as u16, &[LOCK_ENABLE | LOCK_LOCKED]);
        dog.watchdog.write_config(LOCK as u16, &[0]);
        assert_eq!(dog.stage(), 1);
        dog.watchdog.reset();
        assert_eq!(dog.stage(), 0);
    }

    #[test]
    fn time_stands_still_over_a_pause() {
        let dog = Dog::new();
        dog.start(PRELOAD_MASK);
        dog.watchdog.pause();
        let left = dog.watchdog.save().left_ns;
        assert!(left > 0);
        assert_eq!(dog.watchdog.save().left_ns, left);
    }

    #[test]
    fn stages_are_as_long_as_the_clock_says() {
        let dog = Dog::new();
        let length = |config: u16, preload| {
            dog.watchdog.write_config(CONFIG as u16, &config.to_le_bytes());
            let mut registers = dog.watchdog.registers();
            registers.preload[0] = preload;
            registers.length(0)
        };
        // Linux sets half of what its user wants, in steps of 1/1024 s.
        assert_eq!(length(0, 15 << 10).as_millis(), 15_252);
        assert_eq!(length(0, PRELOAD_MASK).as_millis(), 1_041_203);
        assert_eq!(length(CONFIG_FAST, PRELOAD_MASK).as_millis(), 1016);
        assert_eq!(length(CONFIG_FAST, 0), SHORTEST);
    }

    #[test]
    fn a_state_that_is_none_is_refused() {
        let dog = Dog::new();
        let state = dog.watchdog.save();
        for state in [
            WatchdogState {
                stage: 3,
                ..state.clone()
            },
            WatchdogState {
                unlocked: 3,
                ..state.clone()
            },
            WatchdogState {
                config: vec![],
                ..state
            },
        ] {
            assert!(dog.watchdog.restore(&state).is_err());
        }
    }
}
