//! Token buckets that hold a device to a number of bytes and operations per second.
//!
//! An operation may start while its bucket is above zero and may take it below: a large one is never refused
//! for ever, it only makes the next wait longer. Over time the rate holds exactly.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use crate::{Error, Result};

/// Waiting longer than this is done in pieces, so that a raised limit is noticed.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
const NANOS: i128 = 1_000_000_000;

/// A rate and how much may be used at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens per second; not zero.
    pub per_second: u64,
    /// Tokens that a rest saves up, at least one.
    pub burst: u64,
}

/// What a device may do; `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes moved.
    pub bytes: Option<Rate>,
    /// Operations.
    pub operations: Option<Rate>,
}

/// One bucket. Time is given, so that it can be any.
#[derive(Clone, Debug)]
struct Bucket {
    rate: Rate,
    /// Billionths of a token: exact at any rate.
    level: i128,
    filled_at: Instant,
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        let rate = Rate {
            per_second: rate.per_second.max(1),
            burst: rate.burst.max(1),
        };
        Bucket {
            rate,
            level: i128::from(rate.burst) * NANOS,
            filled_at: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled_at).as_nanos();
        let gained = i128::try_from(elapsed)
            .unwrap_or(i128::MAX)
            .saturating_mul(i128::from(self.rate.per_second));
        let full = i128::from(self.rate.burst) * NANOS;
        self.level = self.level.saturating_add(gained).min(full);
        self.filled_at = now;
    }

    /// How long until something may start; zero for now.
    fn wait(&self) -> Duration {
        if self.level > 0 {
            return Duration::ZERO;
        }
        // One billionth of a token above zero, rounded up to whole nanoseconds.
        let nanos = (1 - self.level) / i128::from(self.rate.per_second) + 1;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// The buckets of one device; the decision, without clock or timer.
#[derive(Clone, Debug)]
struct Buckets {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Buckets {
    fn new(limits: Limits, now: Instant) -> Self {
        Buckets {
            bytes: limits.bytes.map(|rate| Bucket::new(rate, now)),
            operations: limits.operations.map(|rate| Bucket::new(rate, now)),
        }
    }

    /// Takes one operation of `bytes` out, or says how long to wait.
    fn take(&mut self, bytes: u64, now: Instant) -> std::result::Result<(), Duration> {
        let mut wait = Duration::ZERO;
        for bucket in [&mut self.bytes, &mut self.operations].into_iter().flatten() {
            bucket.fill(now);
            wait = wait.max(bucket.wait());
        }
        if !wait.is_zero() {
            return Err(wait);
        }
        for (bucket, cost) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.level = bucket.level.saturating_sub(i128::from(cost) * NANOS);
            }
        }
        Ok(())
    }
}

/// Holds all queues of a device to its [`Limits`] together. Clones share the buckets.
#[derive(Clone, Debug)]
pub struct RateLimiter(Arc<Mutex<Buckets>>);

impl RateLimiter {
    /// A limiter with full buckets.
    pub fn new(limits: Limits) -> Self {
        RateLimiter(Arc::new(Mutex::new(Buckets::new(limits, Instant::now()))))
    }

    /// Sets other limits, with full buckets; who waits notices within a tenth of a second.
    pub fn set(&self, limits: Limits) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Buckets::new(limits, Instant::now());
    }

    fn take(&self, bytes: u64) -> std::result::Result<(), Duration> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.take(bytes, Instant::now())
    }
}

/// One queue's access to its device's limiter, with the timer that says when to try again.
pub struct Throttle {
    limiter: RateLimiter,
    timer: TimerFd,
}

impl Throttle {
    /// An unarmed timer for `limiter`.
    ///
    /// # Errors
    /// When the kernel has no timerfd left.
    pub fn new(limiter: RateLimiter) -> Result<Self> {
        let timer = TimerFd::new().map_err(|error| Error::Io {
            what: "make a timer for a rate limit".into(),
            source: error.into(),
        })?;
        Ok(Throttle { limiter, timer })
    }

    /// Whether one operation of `bytes` may start; it is counted then. If not, the timer will fire when it is
    /// worth trying again.
    pub fn admit(&mut self, bytes: u64) -> bool {
        let Err(wait) = self.limiter.take(bytes) else {
            return true;
        };
        match self.timer.reset(wait.min(LONGEST_WAIT), None) {
            Ok(()) => false,
            Err(error) => {
                // Without a timer nothing would ever go on: better too fast than stuck.
                log::error!("a rate limit is not held, its timer fails: {error}");
                true
            }
        }
    }

    /// The timer, to be watched for reading.
    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// Takes note that the timer fired, if it did.
    pub fn acknowledge(&mut self) {
        // Reading a timer that has not fired would block; disarming clears it either way.
        let _ = self.timer.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn a_burst_then_the_rate() {
        let start = Instant::now();
        let rate = Rate {
            per_second: 10,
            burst: 3,
        };
        let mut buckets = Buckets::new(
            Limits {
                bytes: None,
                operations: Some(rate),
            },
            start,
        );
        // (milliseconds, admitted)
        let table = [
            (0, true),
            (0, true),
            (0, true),
            (0, false),
            (99, true),
            (99, false),
            (150, true),
            (199, false),
            (1000, true),
            (1000, true),
            (1000, true),
            (1000, false),
        ];
        for (i, (millis, admitted)) in table.into_iter().enumerate() {
            assert_eq!(
                buckets.take(1 << 20, at(start, millis)).is_ok(),
                admitted,
                "row {i}"
            );
        }
    }

    #[test]
    fn an_operation_larger_than_the_bucket_goes_and_is_paid_for_afterwards() {
        let start = Instant::now();
        let rate = Rate {
            per_second: 1000,
            burst: 100,
        };
        let mut buckets = Buckets::new(
            Limits {
                bytes: Some(rate),
                operations: None,
            },
            start,
        );

        assert!(buckets.take(2100, start).is_ok());

        let wait = buckets.take(1, start).unwrap_err();
        assert!(wait > Duration::from_millis(1999) && wait <= Duration::from_millis(2001));
        assert!(buckets.take(1, start + wait - Duration::from_millis(2)).is_err());
        assert!(buckets.take(1, start + wait).is_ok());
    }

    #[test]
    fn what_one_bucket_refuses_the_other_does_not_pay_for() {
        let start = Instant::now();
        let limits = Limits {
            bytes: Some(Rate {
                per_second: 1000,
                burst: 1000,
            }),
            operations: Some(Rate {
                per_second: 1,
                burst: 1,
            }),
        };
        let mut buckets = Buckets::new(limits, start);
        assert!(buckets.take(400, start).is_ok());
        for _ in 0..100 {
            assert!(buckets.take(600, start).is_err());
        }
        // A second later the one operation may move all of the refilled bytes: no refusal was charged.
        assert!(buckets.take(1000, at(start, 1001)).is_ok());
        let level = buckets.bytes.as_ref().unwrap().level;
        assert!(level >= 0, "{level}");
    }

    #[test]
    fn extreme_rates_neither_overflow_nor_stall() {
        let start = Instant::now();
        for per_second in [0, 1, u64::MAX] {
            let rate = Rate { per_second, burst: 0 };
            let mut bucket = Bucket::new(rate, start);
            bucket.level = bucket.level.saturating_sub(i128::from(u64::MAX) * NANOS);
            let wait = bucket.wait();
            bucket.fill(start + wait.min(Duration::from_secs(1 << 30)));
            assert!(bucket.level <= NANOS);
            bucket.fill(start + Duration::from_secs(1 << 33));
        }
    }

    #[test]
    fn the_timer_fires_when_a_refused_operation_may_start() {
        let limiter = RateLimiter::new(Limits {
            bytes: None,
            operations: Some(Rate {
                per_second: 100,
                burst: 1,
            }),
        });
        let mut throttle = Throttle::new(limiter.clone()).unwrap();
        assert!(throttle.admit(0));
        if !throttle.admit(0) {
            throttle.timer.wait().unwrap();
        }
        limiter.set(Limits::default());
        assert!(throttle.admit(u64::MAX));
    }
}
