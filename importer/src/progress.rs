//! How far an import is: counted where bytes come in, told by lines that the controller reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes so far, of how many. Shared by the thread that counts and the one that tells.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    done: AtomicU64,
    of: AtomicU64,
}

impl Progress {
    /// How much there is, of which nothing is done yet; zero where it is not known.
    pub fn expect(&self, total: u64) {
        self.0.done.store(0, Ordering::Relaxed);
        self.0.of.store(total, Ordering::Relaxed);
    }

    /// So many bytes more are done.
    pub fn add(&self, count: u64) {
        self.0.done.fetch_add(count, Ordering::Relaxed);
    }

    /// As DataVolumes have it: `37.50%`, or `N/A`. All is not done before it is also written.
    pub fn text(&self) -> String {
        let (done, of) = (
            self.0.done.load(Ordering::Relaxed),
            self.0.of.load(Ordering::Relaxed),
        );
        if of == 0 {
            return "N/A".to_owned();
        }
        let hundredths = (u128::from(done) * 10_000 / u128::from(of)).min(9_999);
        format!("{}.{:02}%", hundredths / 100, hundredths % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_in_hundredths_and_never_complete() {
        let progress = Progress::default();
        assert_eq!(progress.text(), "N/A");
        progress.expect(8);
        progress.add(3);
        assert_eq!(progress.text(), "37.50%");
        progress.add(5);
        assert_eq!(progress.text(), "99.99%");
    }
}
