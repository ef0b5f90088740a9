//! What the two sides say to each other before the first page: CBOR maps, to which fields may be added.

use serde::{Deserialize, Serialize};

use super::disks::DiskDescription;
use crate::config::{CpuConfig, DeviceConfig, DeviceKind, Transport};
use crate::device::places;
use crate::vcpu::profile::Profile;
use crate::{Error, Result};

/// Protocols that this build speaks.
pub const VERSIONS: std::ops::RangeInclusive<u16> = 1..=1;

/// The first frame of every stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    /// Oldest protocol that its sender speaks.
    pub oldest: u16,
    /// Newest protocol that its sender speaks.
    pub newest: u16,
    /// Version of its sender's program, for people.
    pub build: String,
    /// Number that all streams of one migration share.
    pub session: u64,
    /// Which of them this is; the first one leads.
    pub stream: u16,
}

impl Hello {
    /// That of this build.
    pub fn new(session: u64, stream: u16) -> Hello {
        Hello {
            oldest: *VERSIONS.start(),
            newest: *VERSIONS.end(),
            build: env!("CARGO_PKG_VERSION").into(),
            session,
            stream,
        }
    }

    /// The newest protocol that both speak.
    ///
    /// # Errors
    /// When there is none.
    pub fn version(&self) -> Result<u16> {
        let newest = self.newest.min(*VERSIONS.end());
        if newest < self.oldest.max(*VERSIONS.start()) {
            let ours = format!("{} to {}", VERSIONS.start(), VERSIONS.end());
            let build: String = self
                .build
                .chars()
                .filter(|c| c.is_ascii_graphic())
                .take(40)
                .collect();
            return Err(Error::Cannot(format!(
                "the other side ({build}) speaks migration protocols {} to {}, this one {ours}",
                self.oldest, self.newest
            )));
        }
        Ok(newest)
    }
}

/// What a machine is made of, as far as both sides must agree.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Description {
    /// Processors.
    pub cpus: CpuConfig,
    /// Bytes of memory.
    pub memory: u64,
    /// How the guest finds its devices.
    pub transport: Transport,
    /// Devices, in order.
    pub devices: Vec<DeviceDescription>,
    /// It has a watchdog.
    pub watchdog: bool,
    /// Processor features that the guest was shown.
    pub profile: Profile,
    /// Those that a guest that comes here may have been shown.
    #[serde(skip)]
    pub most: Profile,
    /// Streams that pages come over, the leading one among them.
    pub streams: u16,
    /// The target shall compare guest memory with the source's.
    pub verify: bool,
    /// The guest may go on before all of its memory is there. There is one more stream then, the last, over which the
    /// target asks for pages.
    pub post_copy: bool,
    /// Disks whose content comes; the target has the others.
    pub disks: Vec<DiskDescription>,
    /// Both sides are processes of one host and have the same memory: no page is sent.
    pub in_place: bool,
}

/// A device of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceDescription {
    /// Its name.
    pub id: String,
    /// What it is.
    pub kind: String,
    /// Where the guest knows it; 0: by its place in the list, from 1 on.
    pub slot: u8,
}

impl DeviceDescription {
    /// What `config` makes.
    pub fn of(config: &DeviceConfig) -> DeviceDescription {
        let kind = match &config.kind {
            DeviceKind::Rng => "rng",
            DeviceKind::Disk(_) => "disk",
            DeviceKind::Net(_) => "net",
            DeviceKind::Balloon(_) => "balloon",
            DeviceKind::Console(_) => "console",
            DeviceKind::Vsock(_) => "vsock",
        };
        DeviceDescription {
            id: config.id.clone(),
            kind: kind.into(),
            slot: config.slot.unwrap_or_default(),
        }
    }
}

/// Most streams of a migration.
pub const MOST_STREAMS: u16 = 16;

fn names(devices: &[(u8, &str, &str)]) -> String {
    let each: Vec<_> = devices
        .iter()
        .map(|(_, id, kind)| format!("{id} ({kind})"))
        .collect();
    if each.is_empty() {
        return "none".into();
    }
    each.join(", ")
}

impl Description {
    /// Where the guest knows the devices, by name.
    pub fn places(&self) -> Vec<(&str, u8)> {
        places(
            self.devices
                .iter()
                .map(|device| (device.id.as_str(), device.slot)),
        )
    }

    /// Slots, names and kinds, as the guest finds them.
    fn by_place(&self) -> Vec<(u8, &str, &str)> {
        let devices = self.devices.iter().zip(self.places());
        let mut devices: Vec<_> = devices
            .map(|(device, (id, slot))| (slot, id, device.kind.as_str()))
            .collect();
        devices.sort_unstable();
        devices
    }

    /// Whether the machine `here` can take this one up.
    ///
    /// # Errors
    /// What differs, the first thing first.
    pub fn fits(&self, here: &Description) -> Result<()> {
        let differ = |what: &str, theirs: String, ours: String| {
            Err(Error::Cannot(format!(
                "the machine has {what} {theirs}, the one prepared here {ours}"
            )))
        };
        if self.memory != here.memory {
            let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
            return differ("memory of", mib(self.memory), mib(here.memory));
        }
        if self.cpus != here.cpus {
            let cpus = |c: CpuConfig| format!("{} × {} × {}", c.sockets, c.cores, c.threads);
            return differ("processors", cpus(self.cpus), cpus(here.cpus));
        }
        if self.transport != here.transport {
            let bus = |t: Transport| format!("{t:?}");
            return differ("devices on", bus(self.transport), bus(here.transport));
        }
        if self.watchdog != here.watchdog {
            let watchdog = |there: bool| String::from(if there { "one" } else { "none" });
            return differ(
                "as its watchdog",
                watchdog(self.watchdog),
                watchdog(here.watchdog),
            );
        }
        let (theirs, ours) = (self.by_place(), here.by_place());
        if theirs != ours {
            return differ("the devices", names(&theirs), names(&ours));
        }
        if self.streams == 0 || self.streams > MOST_STREAMS {
            return Err(Error::Cannot(format!(
                "{} streams, 1 to {MOST_STREAMS} can be",
                self.streams
            )));
        }
        self.profile.check(&here.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_said_before_a_page_is_sent() {
        let machine = || Description {
            memory: 1 << 30,
            devices: vec![DeviceDescription {
                id: "root".into(),
                kind: "disk".into(),
                slot: 1,
            }],
            profile: ["sse2", "avx2", "avx512f"].into_iter().collect(),
            most: ["sse2", "avx2", "avx512f"].into_iter().collect(),
            streams: 1,
            ..Description::default()
        };
        machine().fits(&machine()).unwrap();
        type Change = fn(&mut Description);
        let cases: [(Change, &str); 6] = [
            (
                |m| m.memory = 1 << 20,
                "the machine has memory of 1024 MiB, the one prepared here 1 MiB",
            ),
            (
                |m| m.cpus.cores = 2,
                "the machine has processors 1 × 1 × 1, the one prepared here 1 × 2 × 1",
            ),
            (
                |m| m.transport = Transport::Mmio,
                "the machine has devices on Pci, the one prepared here Mmio",
            ),
            (
                |m| m.devices.clear(),
                "the machine has the devices root (disk), the one prepared here none",
            ),
            (
                |m| m.devices[0].kind = "net".into(),
                "the machine has the devices root (disk), the one prepared here root (net)",
            ),
            (
                |m| m.most = ["sse2"].into_iter().collect(),
                "this host's processor lacks what the guest was shown: avx2, avx512f",
            ),
        ];
        for (change, message) in cases {
            let mut here = machine();
            change(&mut here);
            assert_eq!(machine().fits(&here).unwrap_err().to_string(), message);
        }
        for streams in [0, MOST_STREAMS + 1] {
            let odd = Description { streams, ..machine() };
            assert!(odd.fits(&machine()).is_err());
        }
    }

    #[test]
    fn more_devices_than_a_bus_has_places_fit_nowhere() {
        let machine = |count| Description {
            devices: vec![DeviceDescription::default(); count],
            streams: 1,
            ..Description::default()
        };
        assert!(machine(1000).fits(&machine(31)).is_err());
    }

    #[test]
    fn the_newest_protocol_that_both_speak_is_spoken() {
        let hello = |oldest, newest| Hello {
            oldest,
            newest,
            build: "1.2".into(),
            ..Hello::default()
        };
        assert_eq!(hello(1, 1).version().unwrap(), 1);
        assert_eq!(hello(0, 7).version().unwrap(), 1);
        assert_eq!(
            hello(2, 7).version().unwrap_err().to_string(),
            "the other side (1.2) speaks migration protocols 2 to 7, this one 1 to 1"
        );
        assert!(hello(0, 0).version().is_err());
    }
}
