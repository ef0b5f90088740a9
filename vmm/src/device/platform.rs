//! What a PC has besides: serial line, clock, reset and sleep registers, events.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nacelle_devices::bus::Bus;
use nacelle_devices::platform::cmos::{self, Cmos};
use nacelle_devices::platform::ged::{self, EventDevice};
use nacelle_devices::platform::i8042::{self, I8042};
use nacelle_devices::platform::pvpanic::{self, PvPanic};
use nacelle_devices::platform::serial::{self, Serial, SerialIo};
use nacelle_devices::platform::sleep::{self, SleepRegisters};
use nacelle_devices::state::SerialState;
use nacelle_devices::worker::{Placed, Worker};
use serde::{Deserialize, Serialize};

use super::device_error;
use crate::boot::acpi;
use crate::hypervisor::Partition;
use crate::irq;
use crate::memory::GED_BASE;
use crate::power::Power;
use crate::{Error, Result, VmEvent};

/// First port of the sleep registers; no PC has anything there.
const SLEEP_PORT: u16 = 0x600;
/// Interrupt of the event device: where a PC has its power management.
const GED_GSI: u32 = 9;

/// Where the tables say that these devices are.
pub(crate) const LAYOUT: acpi::Platform = acpi::Platform {
    sleep_port: SLEEP_PORT,
    reset: i8042::RESET,
    ged_gsi: GED_GSI,
    pvpanic_port: pvpanic::PORT,
    vmgenid: VMGENID_ADDRESS,
};
/// Where the generation id lies: in the part of the first MiB that the guest leaves alone.
pub(crate) const VMGENID_ADDRESS: u64 = 0xe_f000;

/// The platform devices of a machine.
pub(crate) struct Platform {
    serial: Arc<Serial>,
    _serial_io: Placed<SerialIo>,
    events: Arc<EventDevice>,
}

/// What the platform devices save.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PlatformState {
    /// The serial line.
    pub serial: SerialState,
    /// Events that the guest has not taken.
    pub events: u32,
}

impl Platform {
    /// Puts the devices on the buses; `console` is the host's end of the serial line.
    pub fn new(
        partition: &dyn Partition,
        ports: &Bus,
        memory: &Bus,
        worker: &Worker,
        power: &Arc<Power>,
        console: UnixStream,
        clock_offset: i64,
    ) -> Result<Self> {
        let (uart, serial_io) =
            Serial::new(irq::line(partition, serial::GSI)?, console).map_err(device_error("serial"))?;
        let events = Arc::new(EventDevice::new(irq::line(partition, GED_GSI)?));
        let ask = |event: fn() -> VmEvent| {
            let power = Arc::clone(power);
            Box::new(move || power.ask(event()))
        };
        let teller = Arc::clone(power);
        let panicked = Box::new(move || teller.tell(VmEvent::Panicked));
        let off = Arc::new(SleepRegisters::new(
            acpi::SLEEP_TYPE_OFF,
            ask(|| VmEvent::Shutdown),
        ));
        let reset = Arc::new(I8042::new(ask(|| VmEvent::Reset)));
        let put = |bus: &Bus, name: &str, base: u64, size: u64, device| {
            bus.insert(name, base, size, device).map_err(device_error(name))
        };
        put(ports, "serial", serial::BASE, serial::SIZE, uart.clone())?;
        put(
            ports,
            "clock",
            cmos::BASE,
            cmos::SIZE,
            Arc::new(Cmos::new(clock_offset)),
        )?;
        put(ports, "keyboard controller", i8042::BASE, i8042::SIZE, reset)?;
        put(ports, "sleep registers", SLEEP_PORT.into(), sleep::SIZE, off)?;
        put(
            ports,
            "pvpanic",
            pvpanic::PORT.into(),
            1,
            Arc::new(PvPanic::new(panicked)),
        )?;
        put(memory, "event device", GED_BASE, ged::SIZE, events.clone())?;
        let _serial_io = worker.add(serial_io).map_err(device_error("serial"))?;
        Ok(Platform {
            serial: uart,
            _serial_io,
            events,
        })
    }

    /// Tells the guest of an event of the event device.
    pub fn notify(&self, event: u32) -> Result<()> {
        self.events
            .notify(event)
            .map_err(Error::io("interrupt the guest"))
    }

    pub fn save(&self) -> PlatformState {
        PlatformState {
            serial: self.serial.save(),
            events: self.events.pending(),
        }
    }

    pub fn restore(&self, state: &PlatformState) -> Result<()> {
        self.serial
            .restore(&state.serial)
            .map_err(device_error("serial"))?;
        self.events.restore(state.events);
        Ok(())
    }
}
