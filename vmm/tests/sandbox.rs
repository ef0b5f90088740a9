//! What each kind of thread tries and is denied. A violation ends the process, so each attempt has one of its own: this
//! program again, told by its environment what to try.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use nacelle_vmm::sandbox::{ROLES, Role, STATUS, Sandbox};

const WHAT: &str = "NACELLE_ATTEMPT";

/// What is tried: a name, and a call with its first arguments.
const ATTEMPTS: [(&str, libc::c_long, [usize; 3]); 24] = [
    ("ptrace", libc::SYS_ptrace, [16, 1, 0]),
    ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0]),
    ("process_vm_writev", libc::SYS_process_vm_writev, [1, 0, 0]),
    ("bpf", libc::SYS_bpf, [0, 0, 0]),
    ("keyctl", libc::SYS_keyctl, [0, 0, 0]),
    ("mount", libc::SYS_mount, [0, 0, 0]),
    ("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER as usize, 0, 0]),
    ("setns", libc::SYS_setns, [0, 0, 0]),
    ("init_module", libc::SYS_init_module, [0, 0, 0]),
    ("kexec_load", libc::SYS_kexec_load, [0, 0, 0]),
    ("setuid", libc::SYS_setuid, [0, 0, 0]),
    ("chroot", libc::SYS_chroot, [0, 0, 0]),
    ("perf_event_open", libc::SYS_perf_event_open, [0, 0, 0]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [0, 0, 0]),
    ("ioctl", libc::SYS_ioctl, [0, 0x5412, 0]),
    // What only some may.
    ("execve", libc::SYS_execve, [0, 0, 0]),
    ("openat", libc::SYS_openat, [0, 0, 0]),
    (
        "socket",
        libc::SYS_socket,
        [libc::AF_INET as usize, libc::SOCK_STREAM as usize, 0],
    ),
    (
        "clone",
        libc::SYS_clone,
        [(libc::CLONE_NEWUSER | libc::CLONE_FS) as usize, 0, 0],
    ),
    ("mprotect", libc::SYS_mprotect, [0, 0, libc::PROT_EXEC as usize]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [0, 0, 0]),
    ("userfaultfd", libc::SYS_userfaultfd, [0, 0, 0]),
    ("kill", libc::SYS_kill, [1, 0, 0]),
    ("bind", libc::SYS_bind, [0, 0, 0]),
];

/// Which of those a role may call: they fail, or do nothing here.
fn may(role: Role) -> &'static [&'static str] {
    match role {
        Role::Process => &[
            "execve",
            "openat",
            "socket",
            "clone",
            "mprotect",
            "io_uring_setup",
            "userfaultfd",
            "kill",
            "bind",
        ],
        Role::Owner => &["openat", "socket", "io_uring_setup"],
        Role::Migration => &["openat", "socket", "io_uring_setup"],
        Role::Memory => &["socket"],
        Role::Vcpu => &["io_uring_setup"],
        Role::Io | Role::Disk | Role::Faults | Role::Throttle => &[],
    }
}

/// Not a test of its own: what [`attempt`] starts.
#[test]
fn try_what_the_environment_says() {
    let Ok(what) = std::env::var(WHAT) else { return };
    let (role, name) = what.split_once(' ').unwrap();
    let role = ROLES
        .into_iter()
        .find(|known| format!("{known:?}") == role)
        .unwrap();
    let (_, call, arguments) = ATTEMPTS.into_iter().find(|attempt| attempt.0 == name).unwrap();
    std::thread::Builder::new()
        .name("culprit".into())
        .spawn(move || {
            Sandbox::default().enter(role).unwrap();
            let [a, b, c] = arguments;
            // SAFETY: each of them is denied, or refuses its null pointers and closed descriptors.
            if unsafe { libc::syscall(call, a, b, c, 0, 0, 0) } != 0 {
                eprintln!("{}", std::io::Error::last_os_error());
            }
        })
        .unwrap()
        .join()
        .unwrap();
}

fn attempt(role: Role, name: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "try_what_the_environment_says", "--nocapture"])
        .env(WHAT, format!("{role:?} {name}"))
        .output()
        .unwrap()
}

#[test]
fn each_kind_of_thread_is_denied_what_it_has_no_need_of_and_the_call_is_named() {
    for role in ROLES {
        for (name, number, _) in ATTEMPTS {
            let output = attempt(role, name);
            let said = String::from_utf8_lossy(&output.stderr);
            if name == "openat" && !may(role).contains(&name) {
                // Libraries try it: it fails, and nothing is opened.
                assert!(
                    output.status.success(),
                    "{role:?} {name}: {} {said}",
                    output.status
                );
                assert!(said.contains("Function not implemented"), "{role:?}: {said}");
                continue;
            }
            if may(role).contains(&name) {
                assert!(
                    output.status.success(),
                    "{role:?} {name}: {} {said}",
                    output.status
                );
                continue;
            }
            assert_eq!(
                output.status.code(),
                Some(STATUS),
                "{role:?} {name}: {said} {:?}",
                output.status.signal()
            );
            let line = format!(
                "nacelle: the machine ends: thread culprit made system call {name} ({number}, second argument "
            );
            assert!(said.contains(&line), "{role:?}: {said}");
        }
    }
}
