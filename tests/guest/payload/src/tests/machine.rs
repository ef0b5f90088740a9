//! The machine apart from its virtio devices.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::cpu::{self, Ring0};
use crate::memory::Window;
use crate::virtio::rng::{self, Rng};
use crate::virtio::{Device, Error, Result, Way};
use crate::{firmware, interrupts, memory, say};

pub fn hello() -> Result<()> {
    say!("ok hello {} bytes", firmware::memory_size());
    Ok(())
}

/// Reads the hardware clock: numbers are BCD.
pub fn clock() -> Result<()> {
    let read = |register: u8| {
        cpu::outb(0x70, register);
        let bcd = cpu::inb(0x71);
        u32::from(bcd >> 4) * 10 + u32::from(bcd & 15)
    };
    let seconds = read(0);
    let (minutes, hours, day, month) = (read(2), read(4), read(7), read(8));
    let year = read(0x32) * 100 + read(9);
    say!("ok clock {year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}");
    Ok(())
}

pub fn tables() -> Result<()> {
    firmware::each_table(|table| say!("ok table {} {} bytes", table.name(), table.bytes.len()))?;
    let fadt = firmware::find_table(b"FACP")?.bytes;
    // Reset register and value (§5.2.9), sleep control register.
    let (reset, value, sleep) = (fadt.get::<u64>(120), fadt.get::<u8>(128), fadt.get::<u64>(248));
    say!("ok registers reset {reset:#x} {value:#x} sleep {sleep:#x}");
    let mut ids = [0; 64];
    say!("ok processors {}", firmware::processors(&mut ids)?);
    let mut serial = [0; 64];
    let (uuid, len) = firmware::identity(&mut serial)?;
    let serial = serial
        .get(..len)
        .and_then(|serial| core::str::from_utf8(serial).ok());
    say!(
        "ok smbios {:032x} {}",
        u128::from_be_bytes(uuid),
        serial.unwrap_or("?")
    );
    Ok(())
}

/// Lets the event device interrupt, which tells of the power button; the vector by which it does.
pub fn power_button() -> u8 {
    const PIN: u32 = 9;
    interrupts::pin(PIN)
}

/// Waits for the event device's interrupt, and reads why.
pub fn button() -> Result<()> {
    // SAFETY: where the DSDT has the event device, beyond memory.
    let events = unsafe { Window::new(0xd800_0000, 4) };
    let vector = power_button();
    say!("ok button ready");
    cpu::wait(|| (cpu::interrupts(vector) > 0).then_some(()));
    let (first, second): (u32, u32) = (events.get(0), events.get(0));
    say!("ok button {first} then {second}");
    Ok(())
}

/// Says how things are at power-on, uses them, and resets the machine.
pub fn boot() -> Result<()> {
    // One of them has its number in the file, the other is among those that are zero at the start.
    static STARTS: AtomicU32 = AtomicU32::new(1);
    static BEFORE: AtomicU32 = AtomicU32::new(0);
    let starts = STARTS.fetch_add(1, Ordering::SeqCst) + BEFORE.fetch_add(1, Ordering::SeqCst);
    let device = Device::find(rng::DEVICE_ID)?;
    let status = device.status();
    let apic: u32 = cpu::local_apic().get(0x80);
    let unmasked = match &device.way {
        Way::Pci(function) => {
            let vectors = 0..function.msix.len();
            vectors.filter(|vector| !function.msix.is_masked(*vector)).count()
        }
        Way::Mmio(_) => 0,
    };
    let processors = cpu::started();
    say!("ok boot {starts} status {status} unmasked {unmasked} processors {processors} priority {apic}");
    if processors == 1 {
        smp()?;
    }
    cpu::local_apic().set(0x80, 0x10u32);
    let (device, vectors) = interrupts::open(rng::DEVICE_ID)?;
    let mut rng = Rng::new(device)?;
    let page = memory::take(64);
    rng.fill(&page)?;
    vectors.wait();
    say!("ok used {}", vectors.total());
    cpu::reset()
}

/// Page of the first instructions of the others.
const START_PAGE: u64 = 8;
/// Vector by which they report.
const ARRIVED: u8 = 0xf0;

unsafe extern "C" {
    static ap_start: [u8; 0];
    static ap_end: [u8; 0];
}

fn send(to: u32, command: u32) {
    let apic = cpu::local_apic();
    apic.set(0x310, to << 24);
    apic.set(0x300, command);
}

/// Starts all other processors by INIT and SIPI; each sends an interrupt back.
pub fn smp() -> Result<()> {
    let mut ids = [0; 64];
    let count = firmware::processors(&mut ids)?;
    let me: u32 = cpu::local_apic().get::<u32>(0x20) >> 24;
    // SAFETY: boot.s has both labels, the code between them is not written.
    let code = unsafe {
        let start = &raw const ap_start;
        let len = (&raw const ap_end) as usize - start as usize;
        core::slice::from_raw_parts(start.cast::<u8>(), len)
    };
    // SAFETY: memory below this program that nobody uses.
    unsafe { Window::new(START_PAGE << 12, memory::PAGE) }.write(0, code);
    for (before, &id) in (0..).zip(ids.iter().take(count).filter(|id| **id != me)) {
        send(id, 0x4500);
        send(id, 0x4600 | START_PAGE as u32);
        cpu::wait(|| (cpu::interrupts(ARRIVED) > before).then_some(()));
        say!("ok processor {id}");
    }
    say!("ok smp {count}");
    Ok(())
}

/// What the others do.
pub fn other_processor() -> ! {
    cpu::local_apic().set(0xf0, 0x1ffu32);
    send(0, u32::from(ARRIVED));
    cpu::stop()
}

/// Does what ring 0 cannot do here.
pub fn exception(which: u64) -> Result<()> {
    let (name, what) = match which {
        1 => ("int3", Ring0::Int3),
        2 => ("fwait", Ring0::Fwait),
        _ => ("triple-fault", Ring0::TripleFault),
    };
    say!("ok exception {name}");
    cpu::ask(what);
    Err(Error("it came back", which))
}
