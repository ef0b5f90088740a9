//! Taps in a network namespace of the test's own.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd};

use super::*;
use crate::net::testbed::{in_namespace, take_up};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

fn message(result: Result<Vec<Tap>>) -> String {
    match result {
        Ok(_) => panic!("it must be refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_tap_that_is_not_there_is_made_and_the_kernel_may_choose_its_name() {
    in_namespace(|| {
        let named = Tap::open("vm0", 1).unwrap();
        assert_eq!(named[0].name(), "vm0");
        assert!(exists("vm0"));

        let chosen = Tap::open("vmtap%d", 2).unwrap();
        assert_eq!(chosen[0].name(), "vmtap0");
        assert_eq!(chosen[1].name(), "vmtap0");

        drop(named);
        // A program that another test has just begun to start may have the descriptor for a moment.
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while exists("vm0") {
            assert!(std::time::Instant::now() < patience);
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
}

#[test]
fn every_offload_of_virtio_1_2_is_served() {
    in_namespace(|| {
        let tap = Tap::open("vm0", 1).unwrap().remove(0);
        let served = tap.offloads();
        let known =
            crate::virtio::net::features::GUEST_OFFLOADS | crate::virtio::net::features::HOST_OFFLOADS;
        assert_eq!(served & !known, 0);
        // Kernels 4.14 to 4.15 have no UFO.
        assert_eq!(served | GUEST_UFO | HOST_UFO, known);
        tap.set_offloads(served).unwrap();
        tap.set_offloads(0).unwrap();
    });
}

#[test]
fn a_tap_in_use_is_named_in_the_error() {
    in_namespace(|| {
        let _used = Tap::open("vm0", 1).unwrap();
        assert_eq!(
            message(Tap::open("vm0", 1)),
            "cannot attach to the tap device vm0 (another process uses it)"
        );
    });
}

#[test]
fn what_is_no_tap_and_what_is_no_name_is_refused_with_advice() {
    in_namespace(|| {
        assert_eq!(
            message(Tap::open("lo", 1)),
            "cannot attach to the tap device lo (there is such an interface, but it is no tap device: choose \
             another name, or make one with `ip tuntap add dev lo mode tap vnet_hdr user $UID`)"
        );
        let _single = Tap::open("vm0", 1).unwrap();
        assert_eq!(
            message(Tap::open("vm0", 2)),
            "cannot attach to the tap device vm0 (it is no tap device for several queues: make one with `ip \
             tuntap add dev vm0 mode tap vnet_hdr multi_queue user $UID`)"
        );
        for name in ["", "a/b", "sixteen-bytes-xx", "a b"] {
            assert!(
                message(Tap::open(name, 1)).contains("as the name of a network interface"),
                "{name}"
            );
        }
    });
}

#[test]
fn without_the_right_to_make_one_the_error_says_what_to_do() {
    in_namespace(|| {
        drop_net_admin();
        assert_eq!(
            message(Tap::open("vm0", 1)),
            "cannot attach to the tap device vm0 (it does not exist and making one needs CAP_NET_ADMIN: have \
             root run `ip tuntap add dev vm0 mode tap vnet_hdr user $UID`)"
        );
    });
}

/// Takes CAP_NET_ADMIN from this thread.
fn drop_net_admin() {
    const CAP_NET_ADMIN: u32 = 12;
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    // Effective, permitted, inheritable; the low capabilities, then the high ones.
    let mut sets = [0u32; 6];
    // SAFETY: capget fills two triples of 32 bits for version 3, capset reads them.
    unsafe {
        assert_eq!(
            libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()),
            0
        );
        sets[0] &= !(1 << CAP_NET_ADMIN);
        sets[1] &= !(1 << CAP_NET_ADMIN);
        assert_eq!(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()), 0);
    }
}

#[test]
fn a_multi_queue_tap_is_taken_by_one_queue_too() {
    in_namespace(|| {
        let _both = Tap::open("vm0", 2).unwrap();
        assert!(Tap::open("vm0", 1).unwrap()[0].multi_queue);
    });
}

#[test]
fn a_descriptor_that_somebody_else_attached_is_taken_and_another_refused() {
    in_namespace(|| {
        let tap = Tap::open("vm0", 1).unwrap().remove(0);
        // SAFETY: dup gives a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::dup(tap.as_fd().as_raw_fd())) };
        drop(tap);
        let taken = Tap::from_fd(fd).unwrap();
        assert_eq!(taken.name(), "vm0");
        take_up("vm0", HOST);

        let other = File::open("/dev/null").unwrap();
        assert!(Tap::from_fd(other.into()).is_err());
        let unattached = File::open(TUN_DEVICE).unwrap();
        assert!(Tap::from_fd(unattached.into()).is_err());
    });
}

#[test]
fn a_queue_may_be_left_and_entered_again_and_twice_is_once() {
    in_namespace(|| {
        let taps = Tap::open("vm0", 2).unwrap();
        for active in [true, false, false, true, true] {
            taps[1].set_active(active).unwrap();
        }
    });
}
