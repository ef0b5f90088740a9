//! Which thread may make which system calls: data, to be reviewed as such. What is not named here ends the machine.
//!
//! A thread begins under the filters of the one that made it, and adds its own: so a filter holds all that the
//! filters of the threads hold which its thread makes (`created_threads_need_no_more`). glibc and musl make
//! different calls for the same; those of both are here.

use libc::c_long;

/// What a thread may call. What names a call without arguments allows all of them.
#[derive(Debug)]
pub struct Filter {
    /// What else it holds.
    pub with: &'static [&'static Filter],
    /// Calls, with any arguments.
    pub calls: &'static [c_long],
    /// Calls with some arguments only.
    pub limited: &'static [Limit],
    /// Calls that fail with ENOSYS, where they are not allowed: libraries make them, and go on in another way.
    pub turned_away: &'static [c_long],
}

/// A call that is allowed when an argument, under the mask, is one of these values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limit {
    /// The call.
    pub call: c_long,
    /// Which of its arguments: 0 to 5.
    pub argument: u8,
    /// Bits of it that count, among the lower 32.
    pub mask: u64,
    /// What they may be.
    pub values: &'static [u64],
}

/// System calls by name.
macro_rules! calls {
    ($($call:ident)*) => { &[$(libc::$call),*] };
}

/// A request of a device: its type and its number, whatever its size.
const fn requests(values: &'static [u64]) -> Limit {
    Limit {
        call: libc::SYS_ioctl,
        argument: 1,
        mask: 0xffff,
        values,
    }
}

/// All requests of a type.
const fn requests_of(types: &'static [u64]) -> Limit {
    Limit {
        call: libc::SYS_ioctl,
        argument: 1,
        mask: 0xff00,
        values: types,
    }
}

const fn exactly(call: c_long, argument: u8, values: &'static [u64]) -> Limit {
    Limit {
        call,
        argument,
        mask: 0xffff_ffff,
        values,
    }
}

const PROT_EXEC: u64 = libc::PROT_EXEC as u64;

/// Memory of the calling process that holds no code.
const fn without_code(call: c_long) -> Limit {
    Limit {
        call,
        argument: 2,
        mask: PROT_EXEC,
        values: &[0],
    }
}

/// What every thread does: its memory, locks, signals, time, what it has open, a panic, its end.
pub static EVERY: Filter = Filter {
    with: &[],
    calls: calls! {
        SYS_read SYS_write SYS_readv SYS_writev SYS_close
        SYS_futex SYS_sched_yield SYS_sched_getaffinity SYS_membarrier
        SYS_munmap SYS_mremap SYS_madvise SYS_brk SYS_mincore
        SYS_rt_sigreturn SYS_rt_sigprocmask SYS_sigaltstack SYS_restart_syscall
        SYS_nanosleep SYS_clock_nanosleep SYS_clock_gettime SYS_gettimeofday
        SYS_getpid SYS_gettid SYS_getrandom
        SYS_set_robust_list SYS_rseq SYS_exit SYS_exit_group
    },
    limited: &[
        without_code(libc::SYS_mmap),
        without_code(libc::SYS_mprotect),
        exactly(
            libc::SYS_prctl,
            0,
            &[libc::PR_SET_NAME as u64, libc::PR_GET_NAME as u64, PR_SET_VMA],
        ),
        // To duplicate descriptors, to have them wait or not.
        exactly(
            libc::SYS_fcntl,
            1,
            &[
                libc::F_DUPFD_CLOEXEC as u64,
                libc::F_GETFD as u64,
                libc::F_SETFD as u64,
                libc::F_GETFL as u64,
                libc::F_SETFL as u64,
            ],
        ),
    ],
    // glibc's allocator asks so for the number of processors; a panic's trace wants names.
    turned_away: calls! { SYS_open SYS_openat SYS_stat SYS_access SYS_readlink SYS_readlinkat SYS_getcwd },
};

/// Names a mapping.
const PR_SET_VMA: u64 = 0x53564d41;

/// Descriptors of events, and waiting for them.
static EVENTS: Filter = Filter {
    with: &[],
    calls: calls! {
        SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_wait SYS_epoll_pwait SYS_poll SYS_ppoll
        SYS_eventfd2 SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime SYS_dup
    },
    limited: &[],
    turned_away: &[],
};

/// Sockets that are open.
static STREAMS: Filter = Filter {
    with: &[],
    calls: calls! {
        SYS_recvfrom SYS_sendto SYS_recvmsg SYS_sendmsg SYS_shutdown SYS_accept4 SYS_accept
        SYS_getsockopt SYS_setsockopt SYS_getsockname SYS_getpeername
    },
    limited: &[requests(&[FIONBIO, FIONREAD])],
    turned_away: &[],
};

const FIONREAD: u64 = 0x541b;
const FIONBIO: u64 = 0x5421;

/// New sockets within the host.
static UNIX_SOCKETS: Filter = Filter {
    with: &[],
    calls: calls! { SYS_connect },
    limited: &[
        exactly(libc::SYS_socket, 0, &[libc::AF_UNIX as u64]),
        exactly(libc::SYS_socketpair, 0, &[libc::AF_UNIX as u64]),
    ],
    turned_away: &[],
};

/// Connections to other hosts.
static NETWORK: Filter = Filter {
    with: &[&STREAMS, &UNIX_SOCKETS],
    calls: &[],
    limited: &[exactly(
        libc::SYS_socket,
        0,
        &[libc::AF_UNIX as u64, libc::AF_INET as u64, libc::AF_INET6 as u64],
    )],
    turned_away: &[],
};

/// Files and block devices that are open.
static OPEN_FILES: Filter = Filter {
    with: &[],
    calls: calls! {
        SYS_pread64 SYS_pwrite64 SYS_preadv SYS_preadv2 SYS_pwritev SYS_pwritev2 SYS_lseek
        SYS_fsync SYS_fdatasync SYS_ftruncate SYS_fallocate SYS_fstat SYS_statx SYS_newfstatat SYS_fstatfs
    },
    limited: &[
        requests(&[
            BLKALIGNOFF,
            BLKDISCARD,
            BLKZEROOUT,
            BLKGETSIZE64,
            BLKSSZGET,
            BLKPBSZGET,
            BLKIOMIN,
            BLKIOOPT,
        ]),
        // Who closes a disk last lets go of its lock.
        exactly(libc::SYS_fcntl, 1, &[libc::F_OFD_SETLK as u64]),
    ],
    turned_away: &[],
};

const BLKSSZGET: u64 = 0x1268;
const BLKGETSIZE64: u64 = 0x1272;
const BLKDISCARD: u64 = 0x1277;
const BLKIOMIN: u64 = 0x1278;
const BLKIOOPT: u64 = 0x1279;
const BLKALIGNOFF: u64 = 0x127a;
const BLKPBSZGET: u64 = 0x127b;
const BLKZEROOUT: u64 = 0x127f;

/// Files by their names.
static FILES: Filter = Filter {
    with: &[&OPEN_FILES],
    calls: calls! {
        SYS_openat SYS_open SYS_stat SYS_lstat SYS_access SYS_faccessat SYS_faccessat2 SYS_statfs
        SYS_getcwd SYS_readlink SYS_readlinkat SYS_getdents64 SYS_fadvise64
        SYS_mkdir SYS_mkdirat SYS_rmdir SYS_unlink SYS_unlinkat SYS_rename SYS_renameat SYS_renameat2
        SYS_chmod SYS_fchmod SYS_fchmodat SYS_umask SYS_copy_file_range SYS_sendfile SYS_flock SYS_memfd_create
        SYS_uname
    },
    // Locks of disks.
    limited: &[exactly(
        libc::SYS_fcntl,
        1,
        &[
            libc::F_OFD_SETLK as u64,
            libc::F_OFD_SETLKW as u64,
            libc::F_OFD_GETLK as u64,
            libc::F_SETLK as u64,
            libc::F_GETLK as u64,
            F_ADD_SEALS,
            F_GET_SEALS,
        ],
    )],
    turned_away: &[],
};

const F_ADD_SEALS: u64 = 1033;
const F_GET_SEALS: u64 = 1034;

/// More threads of this process, in no other namespaces, which then have filters of their own.
static THREADS: Filter = Filter {
    with: &[],
    calls: &[],
    limited: &[
        Limit {
            call: libc::SYS_clone,
            argument: 0,
            mask: CLONE_THREAD | NEW_NAMESPACES,
            values: &[CLONE_THREAD],
        },
        exactly(libc::SYS_seccomp, 0, &[libc::SECCOMP_SET_MODE_FILTER as u64]),
        exactly(libc::SYS_prctl, 0, &[libc::PR_SET_NO_NEW_PRIVS as u64]),
    ],
    // Its arguments lie in memory, where no filter looks: C libraries go on with clone.
    turned_away: calls! { SYS_clone3 },
};

const CLONE_THREAD: u64 = libc::CLONE_THREAD as u64;
const NEW_NAMESPACES: u64 = libc::CLONE_NEWNS as u64
    | libc::CLONE_NEWCGROUP as u64
    | libc::CLONE_NEWUTS as u64
    | libc::CLONE_NEWIPC as u64
    | libc::CLONE_NEWUSER as u64
    | libc::CLONE_NEWPID as u64
    | libc::CLONE_NEWNET as u64;

/// A device that its driver starts, or that goes on: interrupts, doorbells, queues of disks and taps.
static START_DEVICES: Filter = Filter {
    with: &[&EVENTS, &STREAMS, &OPEN_FILES],
    calls: calls! { SYS_io_uring_setup SYS_io_uring_register SYS_io_uring_enter },
    limited: &[
        requests(&[
            KVM_IRQFD,
            KVM_IOEVENTFD,
            KVM_SET_GSI_ROUTING,
            KVM_SIGNAL_MSI,
            TUNSETOFFLOAD,
            TUNSETVNETHDRSZ,
            TUNSETQUEUE,
            TUNGETIFF,
        ]),
        requests_of(&[VHOST]),
    ],
    turned_away: &[],
};

const KVM: u64 = 0xae00;
const VHOST: u64 = 0xaf00;
const KVM_SET_GSI_ROUTING: u64 = 0xae6a;
const KVM_IRQFD: u64 = 0xae76;
const KVM_IOEVENTFD: u64 = 0xae79;
const KVM_SIGNAL_MSI: u64 = 0xaea5;
const TUNSETIFF: u64 = 0x54ca;
const TUNSETPERSIST: u64 = 0x54cb;
const TUNSETOWNER: u64 = 0x54cc;
const TUNGETFEATURES: u64 = 0x54cf;
const TUNSETOFFLOAD: u64 = 0x54d0;
const TUNGETIFF: u64 = 0x54d2;
const TUNSETVNETHDRSZ: u64 = 0x54d8;
const TUNSETQUEUE: u64 = 0x54d9;

/// A virtual processor: the guest runs, and its accesses to devices are answered. Makes no thread, opens nothing.
pub(super) static VCPU: Filter = Filter {
    with: &[&EVERY, &START_DEVICES],
    calls: &[],
    limited: &[requests(&[
        KVM_RUN,
        KVM_GET_REGS,
        KVM_SET_REGS,
        KVM_GET_SREGS,
        KVM_SET_SREGS,
        KVM_TRANSLATE,
        KVM_GET_MSRS,
        KVM_SET_MSRS,
        KVM_GET_FPU,
        KVM_SET_FPU,
        KVM_GET_LAPIC,
        KVM_SET_LAPIC,
        KVM_SET_CPUID2,
        KVM_GET_CPUID2,
        KVM_GET_MP_STATE,
        KVM_SET_MP_STATE,
        KVM_GET_VCPU_EVENTS,
        KVM_SET_VCPU_EVENTS,
        KVM_GET_DEBUGREGS,
        KVM_SET_DEBUGREGS,
        KVM_SET_TSC_KHZ,
        KVM_GET_TSC_KHZ,
        KVM_GET_XSAVE,
        KVM_SET_XSAVE,
        KVM_GET_XCRS,
        KVM_SET_XCRS,
        KVM_KVMCLOCK_CTRL,
        KVM_GET_XSAVE2,
    ])],
    turned_away: &[],
};

const KVM_RUN: u64 = 0xae80;
const KVM_GET_REGS: u64 = 0xae81;
const KVM_SET_REGS: u64 = 0xae82;
const KVM_GET_SREGS: u64 = 0xae83;
const KVM_SET_SREGS: u64 = 0xae84;
const KVM_TRANSLATE: u64 = 0xae85;
const KVM_GET_MSRS: u64 = 0xae88;
const KVM_SET_MSRS: u64 = 0xae89;
const KVM_GET_FPU: u64 = 0xae8c;
const KVM_SET_FPU: u64 = 0xae8d;
const KVM_GET_LAPIC: u64 = 0xae8e;
const KVM_SET_LAPIC: u64 = 0xae8f;
const KVM_SET_CPUID2: u64 = 0xae90;
const KVM_GET_CPUID2: u64 = 0xae91;
const KVM_GET_MP_STATE: u64 = 0xae98;
const KVM_SET_MP_STATE: u64 = 0xae99;
const KVM_GET_VCPU_EVENTS: u64 = 0xae9f;
const KVM_SET_VCPU_EVENTS: u64 = 0xaea0;
const KVM_GET_DEBUGREGS: u64 = 0xaea1;
const KVM_SET_DEBUGREGS: u64 = 0xaea2;
/// The same number as `KVM_SET_DEBUGREGS`; the kernel tells them apart by their sizes.
const KVM_SET_TSC_KHZ: u64 = 0xaea2;
const KVM_GET_TSC_KHZ: u64 = 0xaea3;
const KVM_GET_XSAVE: u64 = 0xaea4;
const KVM_SET_XSAVE: u64 = 0xaea5;
const KVM_GET_XCRS: u64 = 0xaea6;
const KVM_SET_XCRS: u64 = 0xaea7;
const KVM_KVMCLOCK_CTRL: u64 = 0xaead;
const KVM_GET_XSAVE2: u64 = 0xaecf;

/// Rings, disks, taps, the host's ends of consoles and sockets. Opens no file, makes no ring of io_uring, reaches no
/// network.
pub(super) static IO: Filter = Filter {
    with: &[
        &EVERY,
        &EVENTS,
        &STREAMS,
        &UNIX_SOCKETS,
        &OPEN_FILES,
        // Those of `DISK`, when there is work for them.
        &THREADS,
    ],
    calls: calls! { SYS_io_uring_enter },
    limited: &[requests(&[KVM_SIGNAL_MSI, TUNSETQUEUE])],
    turned_away: &[],
};

/// Blocking calls for disks, qcow2 among them.
pub(super) static DISK: Filter = Filter {
    with: &[&EVERY, &OPEN_FILES],
    calls: &[],
    limited: &[],
    turned_away: &[],
};

/// Who calls what a `Vm` can do: it starts threads, opens the disks and taps of devices that come while the guest runs,
/// and writes nothing that a guest gave it.
pub(super) static OWNER: Filter = Filter {
    with: &[&EVERY, &START_DEVICES, &FILES, &MIGRATION, &THREADS],
    calls: calls! { SYS_tgkill SYS_tkill },
    limited: &[
        requests(&[TUNSETIFF, TUNGETFEATURES, TUNSETOWNER, TUNSETPERSIST]),
        requests_of(&[KVM]),
    ],
    turned_away: &[],
};

/// Sends a machine with what its disks have, or writes its snapshot.
pub(super) static MIGRATION: Filter = Filter {
    with: &[&EVERY, &EVENTS, &NETWORK, &FILES, &THREADS],
    calls: calls! { SYS_tgkill SYS_tkill SYS_io_uring_setup SYS_io_uring_register SYS_io_uring_enter },
    limited: &[requests(&[KVM_SET_USER_MEMORY_REGION, KVM_GET_DIRTY_LOG])],
    turned_away: &[],
};

const KVM_GET_DIRTY_LOG: u64 = 0xae42;
const KVM_SET_USER_MEMORY_REGION: u64 = 0xae46;

/// Takes the memory that follows a machine, and serves its page faults. The socket by which it came goes with it.
pub(super) static MEMORY: Filter = Filter {
    with: &[&EVERY, &EVENTS, &NETWORK, &THREADS],
    calls: calls! { SYS_unlink SYS_unlinkat },
    limited: &[
        requests_of(&[USERFAULTFD]),
        requests(&[KVM_SET_USER_MEMORY_REGION, KVM_GET_DIRTY_LOG]),
    ],
    turned_away: &[],
};

const USERFAULTFD: u64 = 0xaa00;

/// Sends pages that a machine elsewhere waits for.
pub(super) static FAULTS: Filter = Filter {
    with: &[&EVERY, &EVENTS, &STREAMS],
    calls: &[],
    limited: &[],
    turned_away: &[],
};

/// Interrupts vCPUs again and again.
pub(super) static THROTTLE: Filter = Filter {
    with: &[&EVERY],
    calls: calls! { SYS_tgkill },
    limited: &[],
    turned_away: &[],
};

/// The whole process of an embedder: all that its threads may, and what a server needs.
pub(super) static PROCESS: Filter = Filter {
    with: &[&OWNER, &VCPU, &IO, &DISK, &MIGRATION, &MEMORY, &FAULTS, &THROTTLE],
    calls: calls! {
        // A server: sockets, signals, children.
        SYS_bind SYS_listen SYS_pipe2 SYS_rt_sigaction SYS_rt_sigtimedwait SYS_signalfd4 SYS_kill SYS_wait4
        SYS_waitid SYS_pidfd_open SYS_pidfd_send_signal SYS_getppid SYS_getuid SYS_geteuid SYS_getgid SYS_getegid
        SYS_getpgrp SYS_setpgid SYS_getsid SYS_sysinfo SYS_prlimit64 SYS_getrusage SYS_clock_getres SYS_times
        // Post-copy.
        SYS_userfaultfd
        // Files as people name them.
        SYS_chdir SYS_fchdir SYS_link SYS_linkat SYS_symlinkat SYS_utimensat SYS_chown SYS_fchown SYS_fchownat
        SYS_truncate SYS_fsetxattr SYS_fgetxattr SYS_flistxattr SYS_splice SYS_sync_file_range SYS_tee
        SYS_dup2 SYS_dup3 SYS_close_range SYS_getcpu SYS_sched_getparam SYS_sched_getscheduler SYS_set_tid_address
        SYS_arch_prctl SYS_capget SYS_capset SYS_seccomp SYS_landlock_create_ruleset SYS_landlock_add_rule
        SYS_landlock_restrict_self SYS_mlock SYS_munlock SYS_mbind SYS_get_mempolicy SYS_prctl SYS_setrlimit SYS_getrlimit
        SYS_pselect6 SYS_select SYS_epoll_create SYS_epoll_pwait2 SYS_eventfd SYS_pipe SYS_inotify_init1
        SYS_inotify_add_watch SYS_sendmmsg SYS_recvmmsg SYS_sched_setaffinity SYS_get_robust_list SYS_getdents
        // Programs: another nacelle takes over, nft takes rules away.
        SYS_execve SYS_vfork SYS_clone SYS_fork SYS_fcntl SYS_mmap SYS_mprotect SYS_getgroups SYS_setsid SYS_getpgid
    },
    limited: &[
        exactly(
            libc::SYS_socket,
            0,
            &[
                libc::AF_NETLINK as u64,
                libc::AF_PACKET as u64,
                libc::AF_VSOCK as u64,
            ],
        ),
        // A terminal's modes and size; not what types into it (TIOCSTI).
        requests(&[
            TCGETS, TCSETS, TCSETSW, TCSETSF, TIOCGPGRP, TIOCGWINSZ, TCGETS2, TCSETS2, TCSETSW2, TCSETSF2,
        ]),
        // Interfaces and their addresses; the seconds of a socket's last packet.
        requests_of(&[SOCKET_REQUESTS]),
    ],
    turned_away: &[],
};

const TCGETS: u64 = 0x5401;
const TCSETS: u64 = 0x5402;
const TCSETSW: u64 = 0x5403;
const TCSETSF: u64 = 0x5404;
const TIOCGPGRP: u64 = 0x540f;
const TIOCGWINSZ: u64 = 0x5413;
const TCGETS2: u64 = 0x542a;
const TCSETS2: u64 = 0x542b;
const TCSETSW2: u64 = 0x542c;
const TCSETSF2: u64 = 0x542d;
const SOCKET_REQUESTS: u64 = 0x8900;
