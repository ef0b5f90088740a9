//! What the agent answers, read into checked values. Pure, and bounded: a guest may say anything.
//!
//! The values are kept, and shown by the machine's HTTP API, under KubeVirt's names; the agent's own are their aliases.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::{DeserializeOwned, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Most characters of a text that are kept.
const TEXT: usize = 256;

/// A text of the guest's: short, and without characters that do something to a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Text(String);

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        Text(text.chars().take(TEXT).map(shown).collect())
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(text.into())
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

/// A list of which no more than the first `MOST` are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Few<T, const MOST: usize>(Vec<T>);

impl<T, const MOST: usize> Default for Few<T, MOST> {
    fn default() -> Self {
        Few(Vec::new())
    }
}

impl<T, const MOST: usize> Deref for Few<T, MOST> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Few<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Reader<T, MOST> {
            type Value = Few<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut kept = Vec::new();
                while kept.len() < MOST {
                    match list.next_element()? {
                        Some(element) => kept.push(element),
                        None => return Ok(Few(kept)),
                    }
                }
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Few(kept))
            }
        }
        deserializer.deserialize_seq(Reader(PhantomData))
    }
}

/// All that is known of the guest by its agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Said {
    /// The agent answers; otherwise nothing else is known.
    pub connected: bool,
    /// The agent's version.
    #[serde(default)]
    pub guest_agent_version: Text,
    /// What it can be asked.
    #[serde(default)]
    pub supported_commands: Few<CommandInfo, 256>,
    /// The guest's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Text>,
    /// The operating system.
    #[serde(default)]
    pub os: Os,
    /// Its zone, and by how many seconds that is east of Greenwich.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Who is logged in.
    #[serde(default)]
    pub user_list: Few<User, 128>,
    /// What is mounted.
    #[serde(default)]
    pub fs_info: FsInfo,
    /// Whether the file systems are frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_freeze_status: Option<FreezeStatus>,
    /// Its interfaces.
    #[serde(default)]
    pub interfaces: Few<Interface, 32>,
}

/// A command of the agent's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandInfo {
    /// Its name.
    pub name: Text,
    /// The guest's administrator lets it be done.
    #[serde(default)]
    pub enabled: bool,
}

/// What `guest-info` answers.
#[derive(Debug, Deserialize)]
pub struct Info {
    /// The agent's version.
    pub version: Text,
    /// What it can be asked.
    #[serde(default)]
    pub supported_commands: Few<CommandInfo, 256>,
}

/// An operating system, as `/etc/os-release` and uname(2) say it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Os {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
    /// The kernel's release.
    #[serde(alias = "kernel-release", skip_serializing_if = "Option::is_none")]
    pub kernel_release: Option<Text>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Text>,
    /// Its name and version for people.
    #[serde(alias = "pretty-name", skip_serializing_if = "Option::is_none")]
    pub pretty_name: Option<Text>,
    /// Its version for programs.
    #[serde(alias = "version-id", skip_serializing_if = "Option::is_none")]
    pub version_id: Option<Text>,
    /// The kernel's version.
    #[serde(alias = "kernel-version", skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<Text>,
    /// The kind of processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<Text>,
    /// Its name for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Text>,
}

/// What `guest-get-host-name` answers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostName {
    /// The guest's name.
    pub host_name: Text,
}

/// What `guest-get-timezone` answers.
#[derive(Debug, Deserialize)]
pub struct Timezone {
    /// Its name.
    #[serde(default)]
    pub zone: Text,
    /// Seconds east of Greenwich.
    pub offset: i32,
}

impl fmt::Display for Timezone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.zone, self.offset)
    }
}

/// Somebody who is logged in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// The name.
    #[serde(alias = "user")]
    pub user_name: Text,
    /// The domain (Windows).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Text>,
    /// Since when, in seconds since 1970.
    #[serde(alias = "login-time", default)]
    pub login_time: f64,
}

/// What is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsInfo {
    /// File systems.
    pub disks: Few<Filesystem, 128>,
}

/// A file system that is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filesystem {
    /// The device's name.
    #[serde(alias = "name")]
    pub disk_name: Text,
    /// Where.
    #[serde(alias = "mountpoint")]
    pub mount_point: Text,
    /// Its kind.
    #[serde(alias = "type")]
    pub file_system_type: Text,
    /// Bytes in use.
    #[serde(alias = "used-bytes", default)]
    pub used_bytes: u64,
    /// Bytes in all.
    #[serde(alias = "total-bytes", default)]
    pub total_bytes: u64,
    /// What it is on.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub disk: Few<FilesystemDisk, 4>,
}

/// A disk of a file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemDisk {
    /// Its serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Text>,
    /// How it is attached.
    #[serde(alias = "bus-type")]
    pub bus_type: Text,
}

fn is_empty<T, const MOST: usize>(list: &Few<T, MOST>) -> bool {
    list.0.is_empty()
}

/// Whether file systems take writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FreezeStatus {
    /// They do.
    Thawed,
    /// They do not.
    Frozen,
}

/// An interface as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name in the guest.
    #[serde(alias = "name")]
    pub interface_name: Text,
    /// Its MAC address.
    #[serde(alias = "hardware-address", default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Text>,
    /// Its addresses.
    #[serde(alias = "ip-addresses", default)]
    pub ip_addresses: Few<Address, 16>,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// The address.
    #[serde(alias = "ip-address")]
    pub ip_address: Text,
    /// Bits of its network.
    #[serde(default)]
    pub prefix: u8,
}

/// Why an answer is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Nonsense(pub String);

/// A command that runs in the guest.
#[derive(Debug, Deserialize)]
pub(super) struct Begun {
    pub pid: i64,
}

/// What became of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ended {
    pub exited: bool,
    exitcode: Option<i64>,
    signal: Option<i64>,
}

impl Ended {
    /// Whether it ended well.
    pub fn well(&self) -> Result<(), Declined> {
        match (self.exitcode, self.signal) {
            (Some(0), _) => Ok(()),
            (Some(status), _) => Err(Declined(
                format!("the command ended with status {status}").as_str().into(),
            )),
            (None, Some(signal)) => Err(Declined(
                format!("the command was ended by signal {signal}")
                    .as_str()
                    .into(),
            )),
            (None, None) => Err(Declined("nobody knows how the command ended".into())),
        }
    }
}

/// What the agent says to a command that it does not do, or in words that do not fit the command.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Declined(pub Text);

#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
struct Envelope<T> {
    #[serde(rename = "return")]
    value: Option<T>,
    error: Option<Complaint>,
}

#[derive(Deserialize)]
struct Complaint {
    #[serde(default)]
    desc: Text,
}

/// Reads the answer to a command.
pub(super) fn read<T: DeserializeOwned>(line: &[u8]) -> Result<Result<T, Declined>, Nonsense> {
    let nonsense = |reason: String| Err(Nonsense(reason));
    match serde_json::from_slice::<Envelope<T>>(line) {
        Ok(Envelope {
            value: Some(value), ..
        }) => Ok(Ok(value)),
        Ok(Envelope {
            error: Some(complaint),
            ..
        }) => Ok(Err(Declined(complaint.desc))),
        Ok(_) => nonsense("neither an answer nor an error".into()),
        // An answer, to which the command has another shape: the conversation is in order.
        Err(error)
            if serde_json::from_slice::<Envelope<IgnoredAny>>(line).is_ok_and(|it| it.value.is_some()) =>
        {
            Ok(Err(Declined(error.to_string().as_str().into())))
        }
        Err(error) => nonsense(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told<T: DeserializeOwned>(line: &str) -> T {
        read(line.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn answers_of_a_real_agent_are_read() {
        let os: Os = told(
            r#"{"return": {"name": "Debian GNU/Linux", "kernel-release": "6.1.0", "version": "12 (bookworm)",
            "pretty-name": "Debian GNU/Linux 12 (bookworm)", "version-id": "12", "kernel-version": "SMP 1",
            "machine": "x86_64", "id": "debian"}}"#,
        );
        assert_eq!(os.pretty_name.as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
        let shown = serde_json::to_value(&os).unwrap();
        assert_eq!(shown["kernelRelease"], "6.1.0");
        assert_eq!(shown["versionId"], "12");

        let info: Info = told(
            r#"{"return": {"version": "7.2.22", "supported_commands":
            [{"enabled": true, "name": "guest-ping", "success-response": true}]}}"#,
        );
        assert_eq!((&*info.version, info.supported_commands.len()), ("7.2.22", 1));

        let list: Few<Interface, 32> = told(
            r#"{"return": [{"name": "lo", "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "127.0.0.1",
            "prefix": 8}], "statistics": {"tx-packets": 0}, "hardware-address": "00:00:00:00:00:00"}, {"name": "sit0"}]}"#,
        );
        assert_eq!(
            (&*list[0].interface_name, list[0].ip_addresses[0].prefix),
            ("lo", 8)
        );
        assert_eq!(list[1].mac, None);

        let users: Few<User, 128> = told(r#"{"return": [{"login-time": 1700000000.5, "user": "root"}]}"#);
        assert_eq!(
            (&*users[0].user_name, users[0].login_time),
            ("root", 1_700_000_000.5)
        );

        let mounted: Few<Filesystem, 128> = told(
            r#"{"return": [{"name": "vda", "total-bytes": 100, "used-bytes": 7, "mountpoint": "/", "type": "ext4",
            "disk": [{"serial": "S1", "bus-type": "virtio", "bus": 0, "unit": 0, "target": 0,
            "pci-controller": {"bus": 0, "slot": 1, "domain": 0, "function": 0}, "dev": "/dev/vda"}]}]}"#,
        );
        let shown = serde_json::to_value(&mounted).unwrap();
        let expected = serde_json::json!([{"diskName": "vda", "mountPoint": "/", "fileSystemType": "ext4",
            "usedBytes": 7, "totalBytes": 100, "disk": [{"serial": "S1", "busType": "virtio"}]}]);
        assert_eq!(shown, expected);

        let zone: Timezone = told(r#"{"return": {"zone": "CET", "offset": 3600}}"#);
        assert_eq!(zone.to_string(), "CET, 3600");
        let name: HostName = told(r#"{"return": {"host-name": "ledger"}}"#);
        assert_eq!(&*name.host_name, "ledger");
        assert_eq!(
            told::<FreezeStatus>(r#"{"return": "frozen"}"#),
            FreezeStatus::Frozen
        );
        told::<IgnoredAny>(r#"{"return": {}}"#);
        told::<IgnoredAny>(r#"{"return": 3}"#);
    }

    #[test]
    fn what_is_declined_is_told_apart_from_nonsense() {
        let declined = |line: &str| {
            read::<HostName>(line.as_bytes())
                .unwrap()
                .unwrap_err()
                .0
                .to_string()
        };
        let off = r#"{"error": {"class": "CommandNotFound", "desc": "Command guest-x has been disabled"}}"#;
        assert_eq!(declined(off), "Command guest-x has been disabled");
        assert_eq!(declined(r#"{"error": {}}"#), "");
        assert!(declined(r#"{"return": {"host-name": 7}}"#).contains("invalid type"));
        assert!(declined(r#"{"return": {}}"#).contains("host-name"));
        let long = "[".repeat(100_000);
        for line in [
            "",
            "x",
            "{",
            "{}",
            "[]",
            "null",
            r#"{"return": null}"#,
            "\u{0}",
            "{\"return\": \u{fffd}",
            &long,
        ] {
            assert!(read::<HostName>(line.as_bytes()).is_err(), "{line:.20}");
        }
        // (Which is not UTF-8.)
        assert!(
            read::<HostName>(b"{\"return\": {\"host-name\": \"\xff\"}}")
                .unwrap()
                .is_err()
        );
    }

    #[test]
    fn no_more_is_kept_than_is_sensible() {
        let long = format!(r#"{{"return": {{"host-name": "{}"}}}}"#, "ä".repeat(5000));
        assert_eq!(told::<HostName>(&long).host_name.chars().count(), TEXT);
        let user = r#"{"user": "a"}"#;
        let many = format!(r#"{{"return": [{}]}}"#, vec![user; 10_000].join(","));
        assert_eq!(told::<Few<User, 128>>(&many).len(), 128);
        let colours: HostName = told(r#"{"return": {"host-name": "a\u001b[31mb\u0000\n"}}"#);
        assert_eq!(&*colours.host_name, "a\u{fffd}[31mb\u{fffd}\u{fffd}");
    }

    #[test]
    fn what_is_shown_is_read_again() {
        let os: Os = told(r#"{"return": {"pretty-name": "Debian"}}"#);
        let said = Said {
            connected: true,
            os,
            interfaces: told(
                r#"{"return": [{"name": "eth0", "hardware-address": "02:00:00:00:00:01",
                "ip-addresses": [{"ip-address": "10.0.2.2", "prefix": 24}]}]}"#,
            ),
            fs_freeze_status: Some(FreezeStatus::Thawed),
            ..Said::default()
        };
        let text = serde_json::to_string(&said).unwrap();
        assert_eq!(serde_json::from_str::<Said>(&text).unwrap(), said);
        let nothing: Said = serde_json::from_str(r#"{"connected": false}"#).unwrap();
        assert_eq!(nothing, Said::default());
    }
}
