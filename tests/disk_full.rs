//! Disks that are full on the host: a real guest on a real file system without room is held still, and what it wrote
//! is on the disk once there is room.

#![allow(clippy::unwrap_used)]

mod support;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nacelle_launcher::admit::{Command, State};
use nacelle_launcher::driver::{self, Answer, End, Options, Refused, Started};
use nacelle_vmm::config::{DeviceConfig, DeviceKind, ErrorPolicy, Transport};
use nacelle_vmm::{VmConfig, VmEvent};
use support::payload::{Payload, over_both_transports, pattern, with};
use support::{device, disk, eventually};
use vmm_sys_util::tempdir::TempDir;

/// What the guest writes.
const WRITTEN: u64 = 8 << 20;

/// A file system that is smaller than the disk on it, in a mount namespace of this thread's own, which ends with it.
struct Storage {
    directory: TempDir,
}

impl Storage {
    fn new() -> Storage {
        // SAFETY: it changes the namespace of this thread and touches no memory.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNS) };
        assert_eq!(done, 0, "a mount namespace of the test's own needs root");
        mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE, c"");
        let storage = Storage {
            directory: TempDir::new().unwrap(),
        };
        mount(c"tmpfs", &storage.path(), c"tmpfs", 0, c"size=4m");
        let file = File::create_new(storage.image()).unwrap();
        file.set_len(WRITTEN + (1 << 20)).unwrap();
        storage
    }

    fn path(&self) -> CString {
        CString::new(self.directory.as_path().as_os_str().as_bytes()).unwrap()
    }

    fn image(&self) -> PathBuf {
        self.directory.as_path().join("disk.img")
    }

    fn make_room(&self) {
        mount(c"tmpfs", &self.path(), c"tmpfs", libc::MS_REMOUNT, c"size=64m");
    }

    fn holds_what_was_written(&self) {
        let mut written = vec![0; WRITTEN as usize];
        let file = File::open(self.image()).unwrap();
        file.read_exact_at(&mut written, 0).unwrap();
        assert!(written == pattern(0, WRITTEN, 0));
    }

    fn disk(&self, policy: ErrorPolicy) -> DeviceConfig {
        let DeviceKind::Disk(mut config) = disk(self.image()) else {
            panic!("it is a disk");
        };
        config.on_error = policy;
        device("data", DeviceKind::Disk(config))
    }

    fn machine(&self, transport: Transport, policy: ErrorPolicy) -> VmConfig {
        with(transport, "blk", vec![self.disk(policy)])
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // SAFETY: the path is a string that lives as long as the call.
        unsafe { libc::umount2(self.path().as_ptr(), libc::MNT_DETACH) };
    }
}

fn mount(what: &CStr, path: &CStr, kind: &CStr, flags: libc::c_ulong, options: &CStr) {
    // SAFETY: all of them are strings that live as long as the call.
    let done = unsafe {
        libc::mount(
            what.as_ptr(),
            path.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    let error = std::io::Error::last_os_error();
    assert_eq!(done, 0, "mount {path:?}: {error}");
}

/// Runs `test` on a thread of its own: the namespace that it makes is that thread's alone.
fn apart(test: impl FnOnce() + Send + 'static) {
    if let Err(panic) = std::thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}

over_both_transports! {
    a_guest_on_a_full_disk_stands_still_and_goes_on_elsewhere_when_there_is_room
}

fn a_guest_on_a_full_disk_stands_still_and_goes_on_elsewhere_when_there_is_room(transport: Transport) {
    apart(move || {
        let storage = Storage::new();
        let machine = || storage.machine(transport, ErrorPolicy::StopWhenFull);
        let mut guest = Payload::boot(machine());
        // Twice: tried again without room it fails again.
        for _ in 0..2 {
            let event = guest.event();
            let VmEvent::DiskFailed { id, error } = event else {
                panic!("{event:?}");
            };
            assert_eq!((id.as_str(), error.kind()), ("data", ErrorKind::StorageFull));
            guest.vm.pause().unwrap();
            guest.vm.resume().unwrap();
        }
        guest.event();
        guest.vm.pause().unwrap();
        storage.make_room();
        let mut guest = guest.move_to(machine());
        guest.ok("blk");
        guest.end();
        storage.holds_what_was_written();
    });
}

fn ask(started: &Started, command: Command) -> Result<Answer, Refused> {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(started.driver.ask(command))
}

#[test]
fn a_machine_is_paused_for_its_full_disk_says_so_and_tries_again_when_it_is_resumed() {
    apart(|| {
        let storage = Storage::new();
        let machine = storage.machine(Transport::Pci, ErrorPolicy::Stop);
        let started = driver::start(machine, Options::default()).unwrap();
        let stopped = || {
            let status = started.driver.status();
            let error = status.disk_error.unwrap_or_default();
            status.state == State::Paused && error.starts_with("disk data: ")
        };
        eventually("the machine is paused", stopped);
        ask(&started, Command::Resume).unwrap();
        eventually("the machine is paused again", stopped);
        storage.make_room();
        ask(&started, Command::Resume).unwrap();
        let end = started.ended.blocking_recv().unwrap();
        assert!(matches!(end, End::PoweredOff), "{end:?}");
        assert_eq!(started.driver.status().disk_error, None);
        storage.holds_what_was_written();
    });
}
