//! Complaints about the guest: logged, but never as often as the guest likes.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// The log is left alone for this long after a complaint.
const QUIET: Duration = Duration::from_secs(10);

/// Logs trouble that a guest causes, once in ten seconds for each device.
pub struct Complaint {
    device: &'static str,
    last: Option<Instant>,
    held_back: u64,
}

impl Complaint {
    /// Complaints in the name of `device`.
    pub fn new(device: &'static str) -> Self {
        Complaint {
            device,
            last: None,
            held_back: 0,
        }
    }

    /// Logs `what`, unless something was logged a moment ago: then it is counted only.
    pub fn log(&mut self, what: impl Display) {
        if self.due(Instant::now()) {
            let held_back = std::mem::take(&mut self.held_back);
            log::warn!("{}: {what} ({held_back} like it not shown)", self.device);
        }
    }

    fn due(&mut self, now: Instant) -> bool {
        let due = self
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= QUIET);
        match due {
            true => self.last = Some(now),
            false => self.held_back += 1,
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_complaint_is_shown_and_the_next_ones_are_counted_until_the_quiet_ends() {
        let mut complaint = Complaint::new("rng");
        let start = Instant::now();
        assert!(complaint.due(start));
        assert!(!complaint.due(start + Duration::from_secs(1)));
        assert!(!complaint.due(start + Duration::from_secs(9)));
        assert_eq!(complaint.held_back, 2);
        assert!(complaint.due(start + Duration::from_secs(10)));
    }
}
