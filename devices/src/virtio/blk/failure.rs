//! What follows when the disk fails a request: who is told, and what is held.
//!
//! A request that is held is not answered. Its driver waits as for a slow disk, and the descriptors stay ours; when
//! the device is started again, the chain is read from guest memory again and its request tried once more.

use std::collections::VecDeque;
use std::io;

use super::counters::Kind;
use super::request::{IOERR, OK};

/// What happens when the disk fails an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorPolicy {
    /// The driver is told.
    #[default]
    Report,
    /// The driver is told that all is well.
    Ignore,
    /// The owner is told, who stops the machine; the request is held until it goes on.
    Stop,
    /// As `Stop` where the storage is full, as `Report` for all other errors.
    StopWhenFull,
}

/// What is done with a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The status that the driver is told; without one the request is held.
    pub answer: Option<u8>,
    /// The owner is told, too.
    pub stops: bool,
}

impl ErrorPolicy {
    /// What is done with an operation of this kind that ended with this error.
    ///
    /// A flush is never held: after one that failed the kernel may have forgotten what it could not write, and
    /// the next one would call lost data safe.
    pub(super) fn verdict(self, kind: Kind, error: io::ErrorKind) -> Verdict {
        let full = matches!(error, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let stops = self == ErrorPolicy::Stop || self == ErrorPolicy::StopWhenFull && full;
        let answer = match self {
            ErrorPolicy::Ignore => Some(OK),
            _ if stops && kind != Kind::Flush => None,
            _ => Some(IOERR),
        };
        Verdict { answer, stops }
    }
}

/// Requests of one queue that are held, by the heads of their chains. With those in flight they are never more than
/// can be in flight: while one has failed, nothing is taken in.
#[derive(Default)]
pub(super) struct Held {
    /// Failed since the queue was started.
    failed: VecDeque<u16>,
    /// To be tried again, before anything new.
    again: VecDeque<u16>,
}

impl Held {
    /// Holds a request that has just failed.
    pub fn keep(&mut self, head: u16) {
        self.failed.push_back(head);
    }

    /// Whether something failed since the queue was started: nothing is begun before it is started again.
    pub fn waits(&self) -> bool {
        !self.failed.is_empty()
    }

    /// The queue is started: all that is held is tried again.
    pub fn start(&mut self) {
        self.failed.append(&mut self.again);
        std::mem::swap(&mut self.failed, &mut self.again);
    }

    /// The next one to be tried again.
    pub fn next(&mut self) -> Option<u16> {
        self.again.pop_front()
    }

    /// Puts back what [`Held::next`] gave last.
    pub fn undo_next(&mut self, head: u16) {
        self.again.push_front(head);
    }

    /// All of them, in the order in which they are tried again.
    pub fn heads(&self) -> Vec<u16> {
        self.failed.iter().chain(&self.again).copied().collect()
    }
}

impl From<Vec<u16>> for Held {
    fn from(heads: Vec<u16>) -> Self {
        Held {
            failed: heads.into(),
            again: VecDeque::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind::{Other, QuotaExceeded, StorageFull};

    use super::*;

    #[test]
    fn every_policy_for_every_error() {
        let told = |answer| Verdict {
            answer: Some(answer),
            stops: false,
        };
        let held = Verdict {
            answer: None,
            stops: true,
        };
        let stopped_and_told = Verdict {
            answer: Some(IOERR),
            stops: true,
        };
        // Columns: a write and a full disk, a write and another error, a flush and a full disk, a flush and another.
        let table = [
            (ErrorPolicy::Report, [told(IOERR); 4]),
            (ErrorPolicy::Ignore, [told(OK); 4]),
            (
                ErrorPolicy::Stop,
                [held, held, stopped_and_told, stopped_and_told],
            ),
            (
                ErrorPolicy::StopWhenFull,
                [held, told(IOERR), stopped_and_told, told(IOERR)],
            ),
        ];
        for (policy, verdicts) in table {
            let cases = [
                (Kind::Write, StorageFull),
                (Kind::Write, Other),
                (Kind::Flush, StorageFull),
                (Kind::Flush, Other),
            ];
            for ((kind, error), verdict) in cases.into_iter().zip(verdicts) {
                assert_eq!(
                    policy.verdict(kind, error),
                    verdict,
                    "{policy:?} {kind:?} {error:?}"
                );
            }
        }
        assert_eq!(
            ErrorPolicy::StopWhenFull.verdict(Kind::Write, QuotaExceeded),
            held
        );
    }

    #[test]
    fn what_failed_is_tried_again_in_order_and_what_was_not_reached_stays() {
        let mut held = Held::default();
        held.keep(3);
        held.keep(1);
        assert!(held.waits());
        held.start();
        assert!(!held.waits());
        assert_eq!(held.next(), Some(3));
        held.keep(3);
        assert_eq!(held.heads(), [3, 1]);
        held.start();
        assert_eq!((held.next(), held.next(), held.next()), (Some(3), Some(1), None));
        held.undo_next(1);
        assert_eq!(Held::from(held.heads()).heads(), [1]);
    }
}
