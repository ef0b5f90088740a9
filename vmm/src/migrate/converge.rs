//! When the guest is stopped to send the rest: a decision after each round, from figures alone.

use std::time::Duration;

/// What follows when a migration takes too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTimeout {
    /// It is given up; the guest goes on here.
    #[default]
    Cancel,
    /// The guest is stopped for as long as the rest takes.
    Finish,
    /// The guest goes on there, and the rest follows as it needs it.
    PostCopy,
}

/// What somebody wants of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long the guest may stand still.
    pub downtime: Duration,
    /// How long the whole may take.
    pub timeout: Duration,
    /// What follows then.
    pub on_timeout: OnTimeout,
    /// The guest may be slowed down when it writes faster than can be sent.
    pub auto_converge: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            downtime: Duration::from_millis(50),
            timeout: Duration::from_secs(300),
            on_timeout: OnTimeout::Cancel,
            auto_converge: true,
        }
    }
}

/// A round that has ended: all that it sent has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Its number; the first one sends all of memory.
    pub number: u32,
    /// Bytes of guest memory that it sent.
    pub sent: u64,
    /// How long that took.
    pub took: Duration,
    /// Bytes of guest memory that are to be sent: written meanwhile, or not sent as time was over.
    pub dirty: u64,
    /// Bytes of guest memory that this connection moves in a second, as measured so far.
    pub rate: u64,
    /// Percent of their time that the guest's processors were held still.
    pub throttle: u8,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Another round.
    Again,
    /// Another round, the guest's processors held still for this percentage of their time.
    Throttle(u8),
    /// The guest is stopped and the rest sent.
    Switch,
    /// The guest goes on there without the rest, which follows.
    PostCopy,
    /// It has no end in time.
    GiveUp,
}

/// What is needed beside pages while the guest stands still: stopping, saving and restoring, some round trips.
const FIXED: Duration = Duration::from_millis(5);
/// The first step of slowing down, the next ones, and the last.
const THROTTLE: (u8, u8, u8) = (20, 10, 99);

/// How long the guest would stand still for `bytes` of its memory.
pub fn downtime(bytes: u64, rate: u64) -> Duration {
    let pages = bytes as f64 / rate.max(1) as f64;
    FIXED + Duration::try_from_secs_f64(pages).unwrap_or(Duration::MAX / 2)
}

/// What comes after `round`, `elapsed` after the migration began.
pub fn decide(round: &Round, limits: &Limits, elapsed: Duration) -> Decision {
    let still = downtime(round.dirty, round.rate);
    let late = elapsed >= limits.timeout;
    // Less than half of what this round sent was written meanwhile, and so it will be in the next one.
    let halves = round.dirty < round.sent / 2;
    if round.dirty == 0 || still <= limits.downtime {
        // It would do, and is still better after a round that takes no longer than the guest would stand still.
        return match halves && !late && still > 2 * FIXED {
            true => Decision::Again,
            false => Decision::Switch,
        };
    }
    if late {
        return match limits.on_timeout {
            OnTimeout::Cancel => Decision::GiveUp,
            OnTimeout::Finish => Decision::Switch,
            OnTimeout::PostCopy => Decision::PostCopy,
        };
    }
    // The first round says little: what is written while all of memory is sent is mostly not written again.
    if round.number == 0 || halves || !limits.auto_converge || round.throttle >= THROTTLE.2 {
        return Decision::Again;
    }
    let (first, step, last) = THROTTLE;
    let next = if round.throttle == 0 {
        first
    } else {
        round.throttle + step
    };
    Decision::Throttle(next.min(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SECOND: Duration = Duration::from_secs(1);

    /// A gigabit link: 119 MiB a second.
    fn round(number: u32, sent: u64, dirty: u64) -> Round {
        Round {
            number,
            sent: sent * MIB,
            took: SECOND,
            dirty: dirty * MIB,
            rate: 119 * MIB,
            throttle: 0,
        }
    }

    #[test]
    fn every_case() {
        let limits = Limits::default();
        let finish = Limits {
            on_timeout: OnTimeout::Finish,
            ..limits
        };
        let post_copy = Limits {
            on_timeout: OnTimeout::PostCopy,
            ..limits
        };
        let gentle = Limits {
            auto_converge: false,
            ..limits
        };
        let slowed = |throttle| Round {
            throttle,
            ..round(3, 100, 90)
        };
        let (soon, late) = (SECOND, Duration::from_secs(300));
        let cases = [
            (
                "nothing is left",
                round(0, 1024, 0),
                limits,
                soon,
                Decision::Switch,
            ),
            (
                "the rest fits the budget, and does not become less",
                round(1, 10, 5),
                limits,
                soon,
                Decision::Switch,
            ),
            (
                "the rest fits the budget, and becomes less",
                round(1, 11, 5),
                limits,
                soon,
                Decision::Again,
            ),
            (
                "it is next to nothing",
                Round {
                    dirty: MIB / 2,
                    ..round(1, 100, 0)
                },
                limits,
                soon,
                Decision::Switch,
            ),
            (
                "it would become less, but it is late",
                round(1, 11, 5),
                limits,
                late,
                Decision::Switch,
            ),
            (
                "it does not quite fit",
                round(1, 100, 6),
                limits,
                soon,
                Decision::Again,
            ),
            (
                "rounds become smaller",
                round(2, 100, 49),
                limits,
                soon,
                Decision::Again,
            ),
            (
                "the first round never slows",
                round(0, 100, 99),
                limits,
                soon,
                Decision::Again,
            ),
            (
                "rounds stay as large",
                round(1, 100, 90),
                limits,
                soon,
                Decision::Throttle(20),
            ),
            ("still", slowed(20), limits, soon, Decision::Throttle(30)),
            ("more is not to be had", slowed(99), limits, soon, Decision::Again),
            ("almost", slowed(95), limits, soon, Decision::Throttle(99)),
            (
                "the guest is not to be slowed",
                round(1, 100, 90),
                gentle,
                soon,
                Decision::Again,
            ),
            ("too late", round(9, 100, 90), limits, late, Decision::GiveUp),
            (
                "too late, at any price",
                round(9, 100, 90),
                finish,
                late,
                Decision::Switch,
            ),
            (
                "too late, and the rest may follow",
                round(9, 100, 90),
                post_copy,
                late,
                Decision::PostCopy,
            ),
            (
                "too late in the midst of the first round",
                round(0, 10, 1014),
                finish,
                late,
                Decision::Switch,
            ),
            (
                "the same, and the rest may follow",
                round(0, 10, 1014),
                post_copy,
                late,
                Decision::PostCopy,
            ),
            (
                "late, but it fits",
                round(9, 100, 1),
                limits,
                late,
                Decision::Switch,
            ),
        ];
        for (what, round, limits, elapsed, decision) in cases {
            assert_eq!(decide(&round, &limits, elapsed), decision, "{what}");
        }
    }

    #[test]
    fn a_budget_that_is_too_small_for_anything_ends_by_its_timeout() {
        let limits = Limits {
            downtime: Duration::ZERO,
            ..Limits::default()
        };
        assert_eq!(decide(&round(5, 1, 1), &limits, SECOND), Decision::Throttle(20));
        assert_eq!(decide(&round(5, 1, 1), &limits, limits.timeout), Decision::GiveUp);
        assert_eq!(decide(&round(5, 1, 0), &limits, SECOND), Decision::Switch);
    }

    #[test]
    fn a_rate_of_nothing_is_no_division_by_zero() {
        assert!(downtime(u64::MAX, 0) > Duration::from_secs(1 << 40));
        assert_eq!(downtime(0, 0), FIXED);
    }
}
