//! Which request is about what. Pure.

use axum::http::Method;

use super::{Refusal, verb};

/// What requests are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    Vm,
    Vmi,
}

impl Resource {
    pub fn as_str(self) -> &'static str {
        match self {
            Resource::Vm => "virtualmachines",
            Resource::Vmi => "virtualmachineinstances",
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Start,
    Stop,
    Restart,
    Pause,
    Unpause,
    Reset,
    SoftReboot,
    Console,
    PortForward {
        port: u16,
    },
    ExpandSpec,
    /// What the guest agent says.
    Agent(Said),
    Freeze,
    Unfreeze,
    AddVolume,
    RemoveVolume,
    Migrate,
    CancelEvacuation,
    /// Known, and not there in this version; with what to say.
    NotEnabled(&'static str),
}

/// What people ask of a guest agent's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    GuestOsInfo,
    UserList,
    FilesystemList,
}

/// An object and what is to be done to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub namespace: String,
    pub resource: Resource,
    pub name: String,
    /// As RBAC knows it.
    pub subresource: String,
    pub verb: &'static str,
    pub operation: Operation,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    ExpandSpec { namespace: String },
    Object(Target),
}

use Resource::{Vm, Vmi};

const GRAPHICS: &str = "No graphics devices are present.";
const DUMP: &str =
    "HotplugVolumes feature gate not enabled: memory cannot be dumped by this version of Nacelle";
const SEV: &str = "WorkloadEncryptionSEV feature gate is not enabled";
const BACKUP: &str = "IncrementalBackup feature gate is not enabled";

/// Every subresource: of what, by which method, its name, what it does.
#[rustfmt::skip]
pub(super) const SUBRESOURCES: &[(Resource, &str, &str, Operation)] = &[
    (Vm, "PUT", "start", Operation::Start),
    (Vm, "PUT", "stop", Operation::Stop),
    (Vm, "PUT", "restart", Operation::Restart),
    (Vm, "GET", "expand-spec", Operation::ExpandSpec),
    (Vm, "GET", "portforward", Operation::PortForward { port: 0 }),
    (Vm, "PUT", "migrate", Operation::Migrate),
    (Vm, "PUT", "addvolume", Operation::AddVolume),
    (Vm, "PUT", "removevolume", Operation::RemoveVolume),
    (Vm, "PUT", "memorydump", Operation::NotEnabled(DUMP)),
    (Vm, "PUT", "removememorydump", Operation::NotEnabled(DUMP)),
    (Vm, "PUT", "evacuate", Operation::CancelEvacuation),
    (Vm, "GET", "objectgraph", Operation::NotEnabled("ObjectGraph feature gate is not enabled")),
    (Vmi, "PUT", "pause", Operation::Pause),
    (Vmi, "PUT", "unpause", Operation::Unpause),
    (Vmi, "PUT", "reset", Operation::Reset),
    (Vmi, "GET", "console", Operation::Console),
    (Vmi, "GET", "portforward", Operation::PortForward { port: 0 }),
    (Vmi, "PUT", "softreboot", Operation::SoftReboot),
    (Vmi, "PUT", "freeze", Operation::Freeze),
    (Vmi, "PUT", "unfreeze", Operation::Unfreeze),
    (Vmi, "PUT", "addvolume", Operation::AddVolume),
    (Vmi, "PUT", "removevolume", Operation::RemoveVolume),
    (Vmi, "PUT", "evacuate", Operation::CancelEvacuation),
    (Vmi, "PUT", "backup", Operation::NotEnabled(BACKUP)),
    (Vmi, "PUT", "redefine-checkpoint", Operation::NotEnabled(BACKUP)),
    (Vmi, "PUT", "sev", Operation::NotEnabled(SEV)),
    (Vmi, "GET", "sev", Operation::NotEnabled(SEV)),
    (Vmi, "GET", "vnc", Operation::NotEnabled(GRAPHICS)),
    (Vmi, "GET", "usbredir", Operation::NotEnabled("Not configured with USB Redirection")),
    (Vmi, "GET", "vsock", Operation::NotEnabled("VSOCK feature gate is not enabled")),
    (Vmi, "GET", "guestosinfo", Operation::Agent(Said::GuestOsInfo)),
    (Vmi, "GET", "userlist", Operation::Agent(Said::UserList)),
    (Vmi, "GET", "filesystemlist", Operation::Agent(Said::FilesystemList)),
    (Vmi, "GET", "objectgraph", Operation::NotEnabled("ObjectGraph feature gate is not enabled")),
];

/// Reads a request. What is not there is 404, as the API server says it.
pub(super) fn parse(method: &Method, path: &str) -> Result<Route, Refusal> {
    let nothing = || {
        Refusal::new(
            axum::http::StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        )
    };
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let [
        "apis",
        "subresources.kubevirt.io",
        "v1" | "v1alpha3",
        "namespaces",
        namespace,
        rest @ ..,
    ] = parts.as_slice()
    else {
        return Err(nothing());
    };
    let verb = verb(method).ok_or_else(nothing)?;
    let namespace = (*namespace).to_owned();
    let (resource, name, subresource, more) = match rest {
        ["expand-vm-spec"] if method == Method::PUT => return Ok(Route::ExpandSpec { namespace }),
        ["virtualmachines", name, subresource, more @ ..] => (Vm, name, subresource, more),
        ["virtualmachineinstances", name, subresource, more @ ..] => (Vmi, name, subresource, more),
        _ => return Err(nothing()),
    };
    let (_, _, _, operation) = SUBRESOURCES
        .iter()
        .find(|(of, by, called, _)| *of == resource && *by == method.as_str() && called == subresource)
        .ok_or_else(nothing)?;
    // Only ports are not part of what RBAC knows.
    let (subresource, operation) = match (operation, more) {
        (Operation::PortForward { .. }, [port] | [port, "tcp"]) => {
            let port = port.parse().ok().filter(|port| *port > 0);
            let port =
                port.ok_or_else(|| Refusal::bad_request("the port is not a number from 1 to 65535"))?;
            ((*subresource).to_owned(), Operation::PortForward { port })
        }
        (Operation::PortForward { .. }, [_, "udp"]) => {
            return Err(Refusal::bad_request(
                "UDP ports cannot be forwarded by this version of Nacelle",
            ));
        }
        (Operation::PortForward { .. }, _) => return Err(nothing()),
        (Operation::CancelEvacuation, ["cancel"]) => (format!("{subresource}/cancel"), *operation),
        (Operation::CancelEvacuation, _) => return Err(nothing()),
        (operation, []) => ((*subresource).to_owned(), *operation),
        (operation @ Operation::NotEnabled(_), more) => {
            (format!("{subresource}/{}", more.join("/")), *operation)
        }
        _ => return Err(nothing()),
    };
    Ok(Route::Object(Target {
        namespace,
        resource,
        name: (*name).to_owned(),
        subresource,
        verb,
        operation,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(method: Method, path: &str) -> Option<(&'static str, String, &'static str, Operation)> {
        let path = format!("/apis/subresources.kubevirt.io/v1/namespaces/n/{path}");
        match parse(&method, &path).ok()? {
            Route::Object(target) => Some((
                target.resource.as_str(),
                target.subresource,
                target.verb,
                target.operation,
            )),
            Route::ExpandSpec { .. } => None,
        }
    }

    #[test]
    fn a_path_is_an_object_a_subresource_and_a_verb() {
        let start = target(Method::PUT, "virtualmachines/a/start");
        assert_eq!(
            start,
            Some(("virtualmachines", "start".into(), "update", Operation::Start))
        );
        let forward = |path| target(Method::GET, path);
        let expected = Some((
            "virtualmachineinstances",
            "portforward".to_owned(),
            "get",
            Operation::PortForward { port: 22 },
        ));
        assert_eq!(forward("virtualmachineinstances/a/portforward/22"), expected);
        assert_eq!(forward("virtualmachineinstances/a/portforward/22/tcp"), expected);
        assert_eq!(forward("virtualmachineinstances/a/portforward/0"), None);
        assert_eq!(forward("virtualmachineinstances/a/portforward"), None);
        let users = target(Method::GET, "virtualmachineinstances/a/userlist").unwrap();
        assert_eq!(
            (users.1.as_str(), users.3),
            ("userlist", Operation::Agent(Said::UserList))
        );
        let screenshot = target(Method::GET, "virtualmachineinstances/a/vnc/screenshot").unwrap();
        assert_eq!(screenshot.1, "vnc/screenshot");
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        for (method, path) in [
            (Method::GET, "virtualmachines/a/guestosinfo"),
            (Method::GET, "virtualmachineinstances/a/guestosinfo/os"),
            (Method::GET, "virtualmachines/a/start"),
            (Method::PUT, "virtualmachines/a/pause"),
            (Method::PUT, "virtualmachines/a/start/now"),
            (Method::PUT, "virtualmachines/a/evacuate"),
            (Method::PUT, "virtualmachines/a/evacuate/now"),
            (Method::PUT, "pods/a/start"),
            (Method::PATCH, "virtualmachines/a/start"),
            (Method::PUT, "virtualmachines/a"),
        ] {
            assert_eq!(target(method, path), None, "{path}");
        }
    }
}
