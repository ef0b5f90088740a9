//! What the agent is asked, each command with what it answers and how long and how much that may be. Names are those of
//! the QEMU guest agent's protocol.

use std::marker::PhantomData;
use std::time::Duration;

use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::answers::{
    Begun, Ended, Few, Filesystem, FreezeStatus, HostName, Info, Interface, Os, Timezone, User,
};

/// A command whose answer is a `T`.
pub(super) struct Command<T> {
    pub name: &'static str,
    /// How long the guest may run until it has answered.
    pub patience: Duration,
    /// Most bytes of its answer.
    pub limit: usize,
    answer: PhantomData<fn() -> T>,
}

impl<T> Command<T> {
    const fn new(name: &'static str) -> Self {
        Command {
            name,
            patience: Duration::from_secs(10),
            limit: 64 << 10,
            answer: PhantomData,
        }
    }

    /// With a list in its answer that may be long.
    const fn of_many(self) -> Self {
        Command {
            limit: 1 << 20,
            ..self
        }
    }

    /// It may take this long.
    const fn slow(self, seconds: u64) -> Self {
        Command {
            patience: Duration::from_secs(seconds),
            ..self
        }
    }

    /// The line that asks it, with `arguments` where they are not null.
    pub fn line(&self, arguments: Value) -> Vec<u8> {
        let mut request = json!({ "execute": self.name });
        if let (false, Some(request)) = (arguments.is_null(), request.as_object_mut()) {
            request.insert("arguments".into(), arguments);
        }
        line(&request)
    }
}

pub(super) const INFO: Command<Info> = Command::new("guest-info");
pub(super) const OS: Command<Os> = Command::new("guest-get-osinfo");
pub(super) const HOST_NAME: Command<HostName> = Command::new("guest-get-host-name");
pub(super) const TIMEZONE: Command<Timezone> = Command::new("guest-get-timezone");
pub(super) const INTERFACES: Command<Few<Interface, 32>> =
    Command::new("guest-network-get-interfaces").of_many();
pub(super) const USERS: Command<Few<User, 128>> = Command::new("guest-get-users").of_many();
/// Slow where a file system is: each is asked how full it is.
pub(super) const FILESYSTEMS: Command<Few<Filesystem, 128>> =
    Command::new("guest-get-fsinfo").of_many().slow(60);
pub(super) const FREEZE_STATUS: Command<FreezeStatus> = Command::new("guest-fsfreeze-status");
/// All that waits to be written is written first.
pub(super) const FREEZE: Command<IgnoredAny> = Command::new("guest-fsfreeze-freeze").slow(120);
pub(super) const THAW: Command<IgnoredAny> = Command::new("guest-fsfreeze-thaw").slow(60);
pub(super) const PING: Command<IgnoredAny> = Command::new("guest-ping");
/// Answered by a reset, or by an error.
pub(super) const REBOOT: Command<IgnoredAny> = Command::new("guest-shutdown").slow(40);
pub(super) const AUTHORIZE: Command<IgnoredAny> = Command::new("guest-ssh-add-authorized-keys");
/// It runs a program of the guest.
pub(super) const SET_PASSWORD: Command<IgnoredAny> = Command::new("guest-set-user-password").slow(30);

pub(super) const EXEC: Command<Begun> = Command::new("guest-exec");
pub(super) const EXEC_STATUS: Command<Ended> = Command::new("guest-exec-status");

/// Begins the conversation anew: the first byte ends whatever the agent's parser was in, and the answer begins with the
/// same byte and gives `id` back.
pub(super) fn sync(id: u32) -> Vec<u8> {
    let request = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
    [&[DELIMITER][..], &line(&request)].concat()
}

/// A byte that is in no JSON.
pub(super) const DELIMITER: u8 = 0xff;

fn line(request: &Value) -> Vec<u8> {
    format!("{request}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_a_line_of_json() {
        assert_eq!(OS.line(Value::Null), b"{\"execute\":\"guest-get-osinfo\"}\n");
        let reboot: Value = serde_json::from_slice(&REBOOT.line(json!({"mode": "reboot"}))).unwrap();
        let expected = json!({"execute": "guest-shutdown", "arguments": {"mode": "reboot"}});
        assert_eq!(reboot, expected);
        let sync = sync(7);
        assert_eq!((sync[0], sync.last()), (0xff, Some(&b'\n')));
        let begin: Value = serde_json::from_slice(&sync[1..]).unwrap();
        assert_eq!(begin["arguments"]["id"], 7);
    }
}
