//! A running Linux moves to another monitor in every way there is: the small kernel on this machine's KVM, Debian's own
//! kernel in the lab (`NACELLE_KERNEL=debian`).

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;

use support::migration::Route;
use support::network::{Host, in_namespace};
use support::{Guest, config, device, disk, empty_disk};
use vmm_sys_util::tempfile::TempFile;

/// The guest checks all that it has.
fn unverified() -> Route {
    Route::with(|options| options.verify = false)
}

#[test]
fn a_linux_moves_in_every_way_with_what_it_counts_its_connection_and_a_disk_that_it_writes() {
    in_namespace(|| {
        let host = Host::new();
        let (file, other) = (empty_disk(8), empty_disk(8));
        let machine = |file: &TempFile, shared: bool| {
            let mut config = config();
            config.memory.shared = shared;
            config.devices = vec![
                device("root", disk(file.as_path())),
                device("net", host.interface()),
            ];
            config
        };
        let mut guest = Guest::boot(machine(&file, false));
        guest.run("ifconfig eth0 10.9.0.2 netmask 255.255.255.0");
        let listener = TcpListener::bind("10.9.0.1:4242").unwrap();
        guest.run(
            "{ (i=0; while [ ! -e /tmp/end ]; do i=$((i+1)); echo $i; done) 2>/dev/null | nc 10.9.0.1 4242 & }",
        );
        let (stream, _) = listener.accept().unwrap();
        let counting = std::thread::spawn(move || {
            let lines = BufReader::new(stream).lines();
            let numbers = lines
                .map_while(Result::ok)
                .map(|line| line.parse::<u64>().unwrap());
            numbers.fold(0, |last, number| {
                assert_eq!(number, last + 1);
                number
            })
        });
        guest.run(
            "{ (i=0; while [ ! -e /tmp/end ]; do i=$(((i+1)%64)); head -c 65536 /dev/urandom >/tmp/block; \
             dd if=/tmp/block of=/dev/vda bs=64k seek=$i conv=notrunc,fsync; md5sum </tmp/block >/tmp/sum.$i; done) \
             >/dev/null 2>&1 & }",
        );
        guest.run("until [ -e /tmp/sum.1 ]; do sleep 0.1; done");
        let ways = [
            ("copied", unverified(), &file, false),
            (
                "with its disk",
                Route {
                    copied: vec!["root".into()],
                    ..unverified()
                },
                &other,
                true,
            ),
            (
                "handed over",
                Route {
                    handover: true,
                    ..unverified()
                },
                &other,
                true,
            ),
            (
                "before its memory",
                Route::with(|options| {
                    options.verify = false;
                    options.post_copy = true;
                }),
                &other,
                false,
            ),
        ];
        for (way, route, file, shared) in ways {
            let (sent, received) = route.travel(&mut guest.vm, machine(file, shared));
            println!("{way}: {sent:?}");
            let (arrived, events) = received.unwrap();
            sent.unwrap();
            guest = Guest::of(arrived.vm, events);
            guest.run("echo alive");
        }
        guest.run("touch /tmp/end; wait");
        assert!(counting.join().unwrap() > 0);
        guest.run(
            "for sum in /tmp/sum.*; do dd if=/dev/vda bs=64k skip=${sum##*.} count=1 iflag=direct 2>/dev/null | md5sum | \
             cmp - $sum || exit 1; done",
        );
    });
}
