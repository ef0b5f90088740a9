use super::*;

/// Who makes whom. A thread begins under its maker's filters.
const MAKES: [(Role, &[Role]); 4] = [
    (Role::Process, &ROLES),
    (Role::Owner, &[Role::Migration, Role::Throttle]),
    (Role::Io, &[Role::Disk]),
    (Role::Migration, &[Role::Faults, Role::Throttle]),
];

#[test]
fn created_threads_need_no_more() {
    for (maker, made) in MAKES {
        let Whole { calls, limits, .. } = Whole::of(maker.filter());
        for role in made {
            let needed = Whole::of(role.filter());
            for call in needed.calls {
                assert!(
                    calls.contains(&call),
                    "{maker:?} may not {}, {role:?} may",
                    names::name(call)
                );
            }
            for limit in needed.limits.iter().filter(|limit| !calls.contains(&limit.call)) {
                for value in limit.values {
                    let covers = |other: &&Limit| {
                        (other.call, other.argument) == (limit.call, limit.argument)
                            && other.mask & limit.mask == other.mask
                            && other.values.contains(&(value & other.mask))
                    };
                    assert!(
                        limits.iter().any(|other| covers(&other)),
                        "{maker:?} may not {} with {value:#x}, {role:?} may",
                        names::name(limit.call)
                    );
                }
            }
        }
    }
}

#[test]
fn every_call_has_a_name_and_every_limit_can_be_met() {
    for role in ROLES {
        let Whole { calls, limits, .. } = Whole::of(role.filter());
        for call in calls.into_iter().chain(limits.iter().map(|limit| limit.call)) {
            assert_ne!(names::name(call), "of no known name", "{call}");
        }
        for limit in limits {
            assert!(
                limit.values.iter().all(|value| value & !limit.mask == 0),
                "{limit:x?}"
            );
        }
    }
}

#[test]
fn threads_that_a_guest_reaches_can_neither_run_programs_nor_open_files_nor_reach_a_network() {
    for role in [Role::Vcpu, Role::Io, Role::Disk] {
        let Whole { calls, limits, .. } = Whole::of(role.filter());
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_creat,
            libc::SYS_socket,
            libc::SYS_bind,
            libc::SYS_ptrace,
            libc::SYS_ioctl,
            libc::SYS_process_vm_writev,
            libc::SYS_userfaultfd,
            libc::SYS_bpf,
            libc::SYS_mmap,
            libc::SYS_kill,
        ] {
            assert!(!calls.contains(&call), "{role:?} may {}", names::name(call));
        }
        let socket = limits.iter().filter(|limit| limit.call == libc::SYS_socket);
        assert!(
            socket
                .flat_map(|limit| limit.values)
                .all(|domain| *domain == libc::AF_UNIX as u64)
        );
    }
}

#[test]
fn all_filters_compile_and_are_small() {
    for role in ROLES {
        for program in role.programs().unwrap() {
            // BPF_MAXINSNS.
            assert!(program.len() <= 4096, "{role:?}: {}", program.len());
        }
    }
}

#[test]
fn an_embedder_may_bring_its_own_or_none() {
    Sandbox::none().enter(Role::Vcpu).unwrap();
    let own = Sandbox::own(|role| match role {
        Role::Vcpu => Err(io::Error::other("not here")),
        _ => Ok(()),
    });
    own.enter(Role::Io).unwrap();
    assert_eq!(own.enter(Role::Vcpu).unwrap_err().to_string(), "not here");
}
