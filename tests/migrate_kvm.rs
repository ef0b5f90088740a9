//! Live migration on /dev/kvm between two monitors in one process, the guest writing memory all the time.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::mpsc::channel;
use std::time::Duration;

use nacelle_vmm::config::{Base, CpuFeatures, Policy, Transport};
use nacelle_vmm::migrate::{Compression, OnTimeout, Phase};
use nacelle_vmm::vcpu::profile::Profile;
use nacelle_vmm::{Error, Vm, VmEvent};
use support::migration::{Route, Side, gave_up};
use support::payload::{Payload, config, over_both_transports, with};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

over_both_transports! {
    a_guest_that_writes_all_the_time_arrives_with_every_page
}

/// A guest with this much of its memory in use, writing.
fn writing(pages: u64) -> Payload {
    let mut guest = Payload::boot(config(&format!("dirty={pages}")));
    guest.ok("dirty");
    guest
}

fn same(pages: u64) -> nacelle_vmm::VmConfig {
    config(&format!("dirty={pages}"))
}

/// Its memory is what it wrote, and it goes on.
fn is_well(guest: &mut Payload) {
    guest.type_text("c");
    guest.ok("checked");
    guest.ok("written");
}

fn a_guest_that_writes_all_the_time_arrives_with_every_page(transport: Transport) {
    let machine = || with(transport, "dirty=2000", Vec::new());
    let mut guest = Payload::boot(machine());
    guest.ok("dirty");
    for streams in [1, 3] {
        for compression in [Compression::Auto, Compression::Never, Compression::Always] {
            let route = Route::with(|options| {
                options.streams = streams;
                options.compression = compression;
            });
            let report;
            (guest, report) = guest.moved(machine(), &route);
            println!("{streams} streams, {compression:?}: {report:?}");
            assert!(report.rounds >= 2 && report.pages > 0);
            is_well(&mut guest);
        }
    }
    guest.type_text("q");
    guest.end();
}

#[test]
fn an_idle_guest_is_sent_in_one_round_and_some_pages() {
    let mut guest = writing(500);
    guest.type_text("im");
    guest.ok("mark");
    let route = Route::verified();
    let (guest, report) = guest.moved(same(500), &route);
    println!("{report:?}");
    assert!(report.rounds <= 3, "{report:?}");
    // Most of its 64 MiB are zero and cost nothing.
    assert!(report.wire < 24 << 20, "{report:?}");
    guest.type_text("q");
    guest.end();
}

/// After a failure on the way: the guest runs here, and another attempt succeeds.
fn goes_on_here_and_moves_later(mut guest: Payload, what: &str, way: Way) -> Payload {
    println!("{what}");
    is_well(&mut guest);
    let (mut guest, _) = guest.moved(way.machine(), &way.route());
    is_well(&mut guest);
    guest
}

/// How a guest goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// With all of its memory.
    Copied,
    /// In the memory that it has.
    HandedOver,
    /// Before its memory.
    Ahead,
}

impl Way {
    fn machine(self) -> nacelle_vmm::VmConfig {
        let mut machine = same(200);
        machine.memory.shared = self == Way::HandedOver;
        machine
    }

    fn route(self) -> Route {
        let mut route = Route::with(|options| options.post_copy = self == Way::Ahead);
        route.handover = self == Way::HandedOver;
        let (line, recover) = (route.line.clone(), route.options.recover.clone());
        route.source.mend = Some(Box::new(move || {
            line.mend();
            recover.now();
        }));
        route
    }
}

/// Whether the source, or the target, of a guest that goes this way enters `phase`. A new phase must be told of here.
fn goes_through(way: Way, source: bool, phase: Phase) -> bool {
    use Phase::{
        Configure, Converge, Copy, Disks, Flush, Hello, Pause, Ready, Release, Resume, Running, Serve, State,
    };
    match phase {
        Hello | Configure | State | Ready | Resume | Running => true,
        Disks => !source || way != Way::HandedOver,
        Copy => !source || way == Way::Copied,
        Converge => source && way == Way::Copied,
        Pause | Release => source,
        Flush => source && way != Way::HandedOver,
        Serve => way == Way::Ahead,
    }
}

#[test]
fn whatever_the_phase_in_which_the_connection_breaks_the_guest_runs_at_one_side() {
    cut_in_every_phase(Way::Copied);
}

#[test]
fn a_guest_that_is_handed_over_runs_on_in_the_memory_that_it_has_whatever_breaks() {
    cut_in_every_phase(Way::HandedOver);
}

#[test]
fn a_guest_that_goes_before_its_memory_gets_it_over_a_new_connection_where_one_breaks() {
    cut_in_every_phase(Way::Ahead);
}

fn cut_in_every_phase(way: Way) {
    let mut guest = Payload::boot(way.machine());
    guest.ok("dirty");
    for source in [true, false] {
        for &phase in Phase::ALL {
            let mut route = way.route().cut_in(phase, source);
            if phase == Phase::Converge && goes_through(way, source, phase) {
                // What it writes in the first round does not fit.
                route.options.limits.downtime = Duration::ZERO;
            }
            let what = format!(
                "cut in {phase:?} of the {}",
                if source { "source" } else { "target" }
            );
            let (sent, received);
            (guest, sent, received) = guest.migrate(way.machine(), &route);
            assert_eq!(
                route.entered(phase, source),
                goes_through(way, source, phase),
                "{what}: {sent:?}, {received:?}"
            );
            if !route.entered(phase, source) {
                assert!(sent.is_ok() && received.is_ok(), "{what}: {sent:?}, {received:?}");
                continue;
            }
            match (&sent, &received) {
                // It came, and the news of it may be lost.
                (Ok(_) | Err(Error::Unconfirmed { .. }), Ok(_)) => {
                    assert!(phase >= Phase::Resume, "{what}: {sent:?}");
                    is_well(&mut guest);
                }
                // The order to go on was lost: nobody runs it until somebody looks.
                (Err(Error::Unconfirmed { .. }), Err(_)) => {
                    // A source that sends no memory before is at that order in no time.
                    let first = if way == Way::Ahead {
                        Phase::Disks
                    } else {
                        Phase::State
                    };
                    assert!((first..=Phase::Resume).contains(&phase), "{what}");
                    guest.vm.resume().unwrap();
                    is_well(&mut guest);
                }
                (Err(_), Err(_)) => {
                    assert!(phase < Phase::Resume, "{what}: {sent:?}, {received:?}");
                    guest = goes_on_here_and_moves_later(guest, &what, way);
                }
                (Ok(_), Err(_)) | (Err(_), Ok(_)) => panic!("{what}: {sent:?}, {received:?}"),
            }
        }
    }
    guest.type_text("q");
    guest.end();
}

#[test]
fn whatever_the_phase_in_which_it_is_cancelled_the_guest_goes_on() {
    let mut guest = writing(200);
    for source in [true, false] {
        for &phase in Phase::ALL {
            let mut route = Route::verified();
            let side = if source {
                &mut route.source
            } else {
                &mut route.target
            };
            let cancel = side.cancel.clone();
            *side = Side {
                cancel: cancel.clone(),
                ..Side::at(phase, move || cancel.cancel())
            };
            let (sent, received);
            (guest, sent, received) = guest.migrate(same(200), &route);
            println!("{phase:?} source {source}: {sent:?}, {received:?}");
            // Where the source has told the target to go on it is too late.
            assert_eq!(sent.is_ok(), received.is_ok(), "{phase:?} {sent:?}, {received:?}");
            if route.entered(phase, source) && phase < Phase::Resume {
                assert!(matches!(
                    if source { sent.err() } else { received.err() },
                    Some(Error::Cancelled)
                ));
            }
            is_well(&mut guest);
        }
    }
    guest.type_text("q");
    guest.end();
}

#[test]
fn wherever_the_stream_breaks_or_a_bit_of_it_changes_the_guest_runs_at_one_side() {
    let mut guest = writing(100);
    guest.type_text("im");
    guest.ok("mark");
    let (moved, report) = guest.moved(same(100), &Route::verified());
    guest = moved;
    let mut random = 7u64;
    for i in 0..40 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // The begin and the end are where most frames are.
        let at = match i % 4 {
            0 => random >> 54,
            1 => report.wire - (random >> 54) % report.wire.min(40_000),
            _ => (random >> 20) % report.wire,
        };
        let flip = i % 2 == 0;
        let route = match flip {
            true => Route::verified().flip_after(at + 1),
            false => Route::verified().cut_after(at + 1),
        };
        let (sent, received);
        (guest, sent, received) = guest.migrate(same(100), &route);
        match (&sent, &received) {
            (Ok(_), Ok(_)) | (Err(_), Err(_)) => {}
            (Err(Error::Unconfirmed { .. }), Ok(_)) => {}
            _ => panic!("{at}: {sent:?}, {received:?}"),
        }
        if let Err(Error::Unconfirmed { .. }) = sent
            && received.is_err()
        {
            guest.vm.resume().unwrap();
        }
        guest.type_text("cm");
        guest.ok("checked");
    }
    guest.type_text("q");
    guest.end();
}

#[test]
fn a_guest_under_a_random_load_cancelled_at_random_times_loses_nothing() {
    let mut guest = writing(3000);
    let mut random = 3u64;
    let mut moves = 0;
    for _ in 0..12 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        guest.type_text(["w", "s", "i"][(random >> 33) as usize % 3]);
        let mut route = Route::with(|options| {
            options.streams = 1 + (random >> 40) as u16 % 3;
            options.limits.downtime = Duration::from_millis(500);
        });
        let cancel = route.source.cancel.clone();
        let after = Duration::from_micros((random >> 44) % 200_000);
        let timer = std::thread::spawn(move || {
            std::thread::sleep(after);
            cancel.cancel();
        });
        route.options.limits.auto_converge = false;
        let (sent, received);
        (guest, sent, received) = guest.migrate(same(3000), &route);
        timer.join().unwrap();
        assert_eq!(sent.is_ok(), received.is_ok(), "{sent:?}, {received:?}");
        moves += u32::from(sent.is_ok());
        guest.type_text("wcm");
        guest.ok("checked");
    }
    println!("{moves} of 12 moved before they were cancelled");
    guest.type_text("q");
    guest.end();
}

#[test]
fn a_guest_that_writes_faster_than_the_link_is_slowed_down_until_it_fits() {
    let guest = writing(4000);
    let route = Route::with(|options| {
        options.bandwidth = Some(20 << 20);
        options.compression = Compression::Never;
        options.limits.downtime = Duration::from_millis(100);
    });
    let (mut guest, report) = guest.moved(same(4000), &route);
    println!("{report:?}");
    assert!(report.throttle > 0, "{report:?}");
    // The processors are not held any more.
    is_well(&mut guest);
    guest.type_text("q");
    guest.end();
}

/// A way of so many MiB a second, on which a guest that writes more does not come in time.
fn too_slow(mebibytes: u64, seconds: u64, end: OnTimeout) -> Route {
    Route::with(|options| {
        options.bandwidth = Some(mebibytes << 20);
        options.compression = Compression::Never;
        options.limits.downtime = Duration::from_millis(10);
        options.limits.timeout = Duration::from_secs(seconds);
        options.limits.on_timeout = end;
        options.limits.auto_converge = false;
    })
}

#[test]
fn what_does_not_converge_in_time_ends_as_was_chosen() {
    let mut guest = writing(4000);
    let route = |end| too_slow(20, 2, end);
    let (sent, received);
    (guest, sent, received) = guest.migrate(same(4000), &route(OnTimeout::Cancel));
    let error = sent.unwrap_err().to_string();
    assert!(
        error.starts_with("after 2 s the guest would still stand still for "),
        "{error}"
    );
    let refused = received.err().unwrap().to_string();
    assert!(
        refused.starts_with("the other side refuses: after 2 s"),
        "{refused}"
    );
    is_well(&mut guest);
    let (mut guest, report) = guest.moved(same(4000), &route(OnTimeout::Finish));
    println!("{report:?}");
    is_well(&mut guest);
    guest.type_text("q");
    guest.end();
}

#[test]
fn a_guest_that_does_not_converge_in_time_goes_on_there_and_its_memory_follows() {
    let guest = writing(4000);
    let route = too_slow(20, 1, OnTimeout::PostCopy);
    let (mut guest, report) = guest.moved(same(4000), &route);
    println!("{report:?}");
    assert!(route.source.seen.lock().unwrap().contains(&Phase::Serve));
    is_well(&mut guest);
    // It has all of its memory, and can move again.
    let (mut guest, _) = guest.moved(same(4000), &Route::verified());
    is_well(&mut guest);
    guest.type_text("q");
    guest.end();
}

#[test]
fn a_round_that_takes_longer_than_all_may_ends_in_its_midst_as_was_chosen() {
    let mut guest = writing(4000);
    // The first round alone would take so many seconds.
    const WHOLE: u64 = 15;
    let route = |end| too_slow(1, 1, end);
    let (sent, received);
    (guest, sent, received) = guest.migrate(same(4000), &route(OnTimeout::Cancel));
    gave_up(&sent, &received, WHOLE);
    is_well(&mut guest);
    for end in [OnTimeout::Finish, OnTimeout::PostCopy] {
        let route = route(end);
        let report;
        (guest, report) = guest.moved(same(4000), &route);
        println!("{end:?}: {report:?}");
        let first = *route.source.rounds.lock().unwrap().first().unwrap();
        assert!(first.elapsed < Duration::from_secs(WHOLE), "{end:?}: {first:?}");
        assert_eq!(
            route.entered(Phase::Serve, true),
            end == OnTimeout::PostCopy,
            "{end:?}"
        );
        is_well(&mut guest);
    }
    guest.type_text("q");
    guest.end();
}

#[test]
fn a_machine_that_is_made_of_something_else_is_refused_before_a_page_is_sent() {
    let guest = writing(100);
    let mut other = same(100);
    other.cpus.cores = 2;
    let (mut guest, sent, received) = guest.migrate(other, &Route::verified());
    let reason = "the machine has processors 1 × 1 × 1, the one prepared here 1 × 2 × 1";
    assert_eq!(received.unwrap_err().to_string(), reason);
    assert_eq!(
        sent.unwrap_err().to_string(),
        format!("the other side refuses: {reason}")
    );
    is_well(&mut guest);
    guest.type_text("q");
    guest.end();
}

fn generation(guest: &Payload) -> u128 {
    let memory = guest.vm.memory();
    let memory = memory.memory();
    memory.read_obj(GuestAddress(0xe_f000)).unwrap()
}

#[test]
fn the_generation_id_changes_with_a_snapshot_and_not_with_a_migration() {
    let guest = writing(100);
    let before = generation(&guest);
    let (guest, _) = guest.moved(same(100), &Route::verified());
    assert_eq!(generation(&guest), before);
    let guest = guest.move_to(same(100));
    assert_ne!(generation(&guest), before);
    guest.type_text("q");
    guest.end();
}

/// What the least of all processors has.
const V1: &str = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 syscall nx lm";

#[test]
fn a_guest_is_shown_what_it_is_to_see() {
    let shown = |policies: &[(&str, Policy)], base| {
        let policies = policies
            .iter()
            .map(|(name, policy)| ((*name).to_owned(), *policy));
        let mut machine = same(10);
        machine.cpu_features = CpuFeatures {
            base,
            policies: policies.collect(),
        };
        let mut vm = Vm::build(machine, channel::<VmEvent>().0)?;
        vm.start()?;
        vm.pause()?;
        // As the hypervisor has it.
        Ok::<_, Error>(Profile::of(&vm.save()?.vcpus[0].cpuid))
    };
    let whole = shown(&[], Base::Host).unwrap();
    let named = shown(&[("cx16", Policy::Disable)], Base::Named).unwrap();
    assert!(whole.has("cx16") && !named.has("cx16") && named.has("sse2"));
    assert!(named.names().all(|name| whole.has(name) && Profile::knows(name)));
    let base = || Base::Only(V1.split_whitespace().collect());
    let more = shown(&[("cx16", Policy::Require), ("gfni", Policy::Optional)], base()).unwrap();
    assert!(more.has("cx16") && more.has("gfni") == whole.has("gfni"));
    assert!(shown(&[("cx16", Policy::Forbid)], base()).is_err());
}

#[test]
fn a_guest_goes_on_seeing_the_processor_that_it_was_shown() {
    let modest = || {
        let mut machine = same(100);
        // All that software KVM has, but for cx16.
        machine.cpu_features = CpuFeatures {
            base: Base::Only(V1.split_whitespace().collect()),
            ..CpuFeatures::default()
        };
        machine
    };
    let mut guest = Payload::boot(modest());
    guest.ok("dirty");
    let shown = |guest: &mut Payload| {
        guest.vm.pause().unwrap();
        let state = guest.vm.save().unwrap();
        guest.vm.resume().unwrap();
        Profile::of(&state.vcpus[0].cpuid)
    };
    let before = shown(&mut guest);
    assert!(before.has("sse2") && !before.has("cx16"));
    // To a host that could show more, and back to one that shows no more.
    (guest, _) = guest.moved(same(100), &Route::verified());
    assert_eq!(shown(&mut guest), before);
    (guest, _) = guest.moved(modest(), &Route::verified());
    assert_eq!(shown(&mut guest), before);
    guest.type_text("q");
    guest.end();

    let whole = writing(100);
    let (mut whole, sent, received) = whole.migrate(modest(), &Route::verified());
    let reason = received.unwrap_err().to_string();
    assert!(
        reason.starts_with("this host's processor lacks what the guest was shown: "),
        "{reason}"
    );
    assert!(sent.is_err());
    is_well(&mut whole);
    whole.type_text("q");
    whole.end();
}
