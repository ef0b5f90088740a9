//! The guest's wish for a reset or the end, told to the machine's owner once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use crate::VmEvent;

/// Guests write reset registers again and again until something happens: only the first wish counts, until
/// the owner has acted on it.
pub(crate) struct Power {
    asked: AtomicBool,
    tell: Box<dyn Fn(VmEvent) + Send + Sync>,
}

impl Power {
    /// `owner` may hear of other things on the same channel.
    pub fn new<M: From<VmEvent> + Send + 'static>(owner: Sender<M>) -> Self {
        Power {
            asked: AtomicBool::new(false),
            // Nobody listens any more: then nobody wants to know.
            tell: Box::new(move |event| drop(owner.send(event.into()))),
        }
    }

    /// Tells the owner, unless it has been told of something before.
    pub fn ask(&self, event: VmEvent) {
        if !self.asked.swap(true, Ordering::AcqRel) {
            (self.tell)(event);
        }
    }

    /// The owner has been told and has not acted yet.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// The owner has acted.
    pub fn settled(&self) {
        self.asked.store(false, Ordering::Release);
    }

    /// Tells the owner of something that asks for nothing.
    pub fn tell(&self, event: VmEvent) {
        (self.tell)(event);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn only_the_first_wish_counts_until_it_is_settled() {
        let (sender, events) = channel::<VmEvent>();
        let power = Power::new(sender);
        power.ask(VmEvent::Reset);
        power.ask(VmEvent::Shutdown);
        assert!(power.asked());
        assert!(matches!(
            events.try_iter().collect::<Vec<_>>()[..],
            [VmEvent::Reset]
        ));
        power.settled();
        power.ask(VmEvent::Shutdown);
        assert!(matches!(
            events.try_iter().collect::<Vec<_>>()[..],
            [VmEvent::Shutdown]
        ));
    }
}
