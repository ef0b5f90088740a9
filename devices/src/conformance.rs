//! One suite that every virtio device passes, over virtio-mmio and virtio-pci: what a driver and the owner of
//! a machine may rely on whichever device it is. What one device does for its guest is in that device's own
//! tests, as is all that only one of them can do wrong.

mod balloon;
mod blk;
mod chains;
mod configuration;
mod console;
mod features;
mod lifecycle;
mod net;
mod queues;
mod rng;
mod state;
mod vsock;

use std::ops::Range;

use event_manager::{EventOps, Events, MutEventSubscriber};

use crate::driver::{Driver, Over};
use crate::virtio::VirtioDevice;
use crate::worker::Worker;

/// A device under test, with all that lies around it on the host.
pub trait Subject {
    /// The device.
    type Device: VirtioDevice + 'static;

    /// Bytes of the configuration space that the driver may change.
    const WRITABLE: &'static [Range<u64>] = &[];
    /// Queues that the device takes nothing from unless something happens that a test cannot bring about.
    const IDLE: &'static [u16] = &[];

    /// The host's side, without a device.
    fn new() -> Self;

    /// The I/O thread that serves its devices.
    fn worker(&self) -> &Worker;

    /// A device on this host. The one before may still be there, as the source of a migration is.
    fn device(&mut self) -> Self::Device;

    /// What a driver says once after it has started the device.
    fn greet(&mut self, _driver: &mut Driver) {}

    /// Uses the device for all that it is good for with the features accepted, and looks at what comes of it.
    fn work(&mut self, driver: &mut Driver);

    /// Offers much at once, and waits for nothing.
    fn load(&mut self, driver: &mut Driver);

    /// Sees that all of a load was done, once, in the end.
    fn finish(&mut self, driver: &mut Driver);

    /// Makes the device wish for a buffer of each queue that the guest offers buffers in.
    fn provoke(&mut self, _driver: &mut Driver) {}

    /// Takes what the device has handed to the host, whatever it is.
    fn swallow(&mut self) {}
}

/// A subject and its driver before it has started the device.
fn powered_on<S: Subject>(over: Over) -> (S, Driver) {
    let mut subject = S::new();
    let driver = Driver::over(over, subject.device());
    (subject, driver)
}

/// Starts the device, again perhaps, with these features.
fn start<S: Subject>(subject: &mut S, driver: &mut Driver, features: u64) {
    driver.start(features);
    subject.greet(driver);
}

/// A subject whose driver took all features and runs.
fn running<S: Subject>(over: Over) -> (S, Driver) {
    let (mut subject, mut driver) = powered_on::<S>(over);
    let offered = driver.offered();
    start(&mut subject, &mut driver, offered);
    (subject, driver)
}

/// Returns when the I/O thread has had its turn at all that happened before.
fn settle<S: Subject>(subject: &S) {
    let nothing = subject.worker().add(Nothing).unwrap();
    nothing.remove().unwrap();
}

struct Nothing;

impl MutEventSubscriber for Nothing {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}
    fn init(&mut self, _ops: &mut EventOps) {}
}

/// Every test of the suite for this subject, over both transports.
macro_rules! suite {
    ($subject:ident) => {
        mod mmio {
            crate::conformance::suite! { all of $subject Mmio }
        }
        mod pci {
            crate::conformance::suite! { all of $subject Pci }
        }
    };
    (all of $subject:ident $over:ident) => {
        crate::conformance::suite! { $subject $over:
            features {
                every_feature_offered_works_alone_and_all_work_together
                what_is_not_offered_is_refused_and_the_device_stays_usable
                a_driver_that_rings_only_when_asked_and_sleeps_otherwise_misses_nothing
            }
            configuration {
                the_configuration_space_reads_the_same_at_every_width
                only_what_is_the_drivers_to_write_can_be_written
            }
            queues {
                every_size_of_a_queue_works_and_other_sizes_are_not_taken
                a_queue_that_the_driver_leaves_out_is_no_trouble
                an_available_index_that_runs_ahead_costs_a_reset_on_every_queue
                doorbells_without_a_queue_are_no_trouble
            }
            chains {
                a_bad_chain_on_any_queue_is_answered_or_costs_a_reset
            }
            lifecycle {
                a_reset_in_the_middle_of_its_work_leaves_a_device_like_new
                stopping_while_busy_loses_nothing
                a_paused_device_leaves_memory_alone
                stopping_what_stands_still_gives_no_queues
                a_device_that_goes_leaves_its_worker_and_its_guests_memory_alone
            }
            state {
                a_busy_device_goes_on_elsewhere_where_it_stood
                a_device_can_be_moved_at_every_step_of_its_start
                a_device_that_asked_for_a_reset_still_asks_after_a_move
                the_state_of_another_device_or_transport_is_refused
                a_state_with_one_thing_changed_is_refused_or_leaves_a_device_that_a_reset_heals
            }
        }
    };
    ($subject:ident $over:ident: $($area:ident { $($test:ident)* })*) => {
        $($(
            #[test]
            fn $test() {
                crate::conformance::$area::$test::<super::$subject>(crate::driver::Over::$over);
            }
        )*)*
    };
}
use suite;
