use super::*;
use crate::driver::pci::{BAR_SPACING, ECAM, Machine, WINDOW};
use crate::pci::bar::Bar;

const SIZE: u64 = 0x4000;

/// A function whose memory reads as its number, and that remembers where it was put.
struct Marked {
    space: Mutex<ConfigSpace>,
    bar: Bar,
    mark: u8,
    mapped: Mutex<Vec<BarRange>>,
}

impl Marked {
    fn new(mark: u8) -> Arc<Self> {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1234,
            device: u16::from(mark),
            ..HOST_BRIDGE
        });
        let bar = Bar::add(&mut space, 0, SIZE, Machine::home(mark)).unwrap();
        Arc::new(Marked {
            space: Mutex::new(space),
            bar,
            mark,
            mapped: Mutex::default(),
        })
    }

    fn mapped_at(&self) -> Vec<u64> {
        self.mapped
            .lock()
            .unwrap()
            .iter()
            .map(|range| range.base)
            .collect()
    }
}

impl PciFunction for Marked {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.space.lock().unwrap().read(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) {
        self.space.lock().unwrap().write(offset, data);
    }
    fn bars(&self) -> Vec<BarRange> {
        self.bar.range(&self.space.lock().unwrap()).into_iter().collect()
    }
    fn read_bar(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(self.mark);
    }
    fn write_bar(&self, _bar: u8, _offset: u64, _data: &[u8]) {}
    fn mapped(&self, range: BarRange) {
        self.mapped.lock().unwrap().push(range);
    }
    fn unmapped(&self, range: BarRange) {
        let mut mapped = self.mapped.lock().unwrap();
        let before = mapped.len();
        mapped.retain(|other| *other != range);
        assert_eq!(mapped.len() + 1, before, "{range:x?} was not mapped");
    }
    fn reset(&self) {
        let mut space = self.space.lock().unwrap();
        space.reset();
        self.bar.reset(&mut space);
    }
}

/// A machine with functions 3 and 5 in the slots of these numbers, memory decoding on.
fn machine() -> (Machine, Arc<Marked>, Arc<Marked>) {
    let machine = Machine::new();
    let (three, five) = (Marked::new(3), Marked::new(5));
    machine.attach(3, three.clone());
    machine.attach(5, five.clone());
    machine.set_config(3, 4, &[2, 0]);
    machine.set_config(5, 4, &[2, 0]);
    (machine, three, five)
}

fn move_bar(machine: &Machine, slot: u8, base: u64) {
    machine.set_config(slot, 0x10, &(base as u32).to_le_bytes());
    machine.set_config(slot, 0x14, &((base >> 32) as u32).to_le_bytes());
}

fn who(machine: &Machine, address: u64) -> u8 {
    machine.read::<1>(address)[0]
}

#[test]
fn a_guest_finds_the_host_bridge_and_what_is_plugged_in() {
    let (machine, ..) = machine();
    let ids: Vec<u32> = (0..SLOTS).map(|slot| machine.config_u32(slot, 0)).collect();
    assert_eq!(ids[0], 0x0008_1b36);
    assert_eq!(machine.config_u16(0, 10), 0x0600);
    assert_eq!((ids[3], ids[5]), (0x0003_1234, 0x0005_1234));
    assert_eq!(ids.iter().filter(|id| **id == u32::MAX).count(), 29);
    // A function other than 0, and extended configuration space.
    assert_eq!(machine.read::<4>(ECAM + (3 << 15) + (1 << 12)), [0xff; 4]);
    assert_eq!(machine.config_u32(3, 0x100), 0);
}

#[test]
fn the_ports_show_what_ecam_shows() {
    let (machine, ..) = machine();
    let (address, data) = (CONFIG_PORTS, CONFIG_PORTS + 4);
    for slot in 0..SLOTS {
        for register in (0..256).step_by(4) {
            let selector = 0x8000_0000 | u32::from(slot) << 11 | register as u32;
            machine.ports.write(address, &selector.to_le_bytes());
            let mut back = [0; 4];
            machine.ports.read(address, &mut back);
            assert_eq!(u32::from_le_bytes(back), selector);
            machine.ports.read(data, &mut back);
            assert_eq!(back, machine.config::<4>(slot, register));
            let mut half = [0; 2];
            machine.ports.read(data + 2, &mut half);
            assert_eq!(half, back[2..]);
        }
    }
}

#[test]
fn the_ports_write_bytes_and_reach_bus_0_only() {
    let (machine, ..) = machine();
    let select = |selector: u32| machine.ports.write(CONFIG_PORTS, &selector.to_le_bytes());
    let first = |machine: &Machine| {
        let mut data = [0; 4];
        machine.ports.read(CONFIG_PORTS + 4, &mut data);
        u32::from_le_bytes(data)
    };
    select(0x8000_183c);
    machine.ports.write(CONFIG_PORTS + 4, &[11]);
    assert_eq!(machine.config_u8(3, 0x3c), 11);
    for elsewhere in [0x8001_1800, 0x0000_1800, 0x8000_1900] {
        select(elsewhere);
        assert_eq!(first(&machine), u32::MAX, "{elsewhere:#x}");
    }
    select(0x8000_1800);
    machine.ports.write(CONFIG_PORTS, &[0; 2]);
    machine.ports.write(CONFIG_PORTS + 1, &[6]);
    assert_eq!(first(&machine), 0x0003_1234, "0xcf9 is not part of the address");
}

#[test]
fn memory_answers_while_decoding_is_on() {
    let (machine, three, _) = machine();
    let home = Machine::home(3);
    assert_eq!(who(&machine, home), 3);
    assert_eq!(who(&machine, home + SIZE - 1), 3);
    assert_eq!(who(&machine, home + SIZE), 0xff);
    machine.set_config(3, 4, &[0, 0]);
    assert_eq!(who(&machine, home), 0xff);
    assert!(three.mapped_at().is_empty());
}

#[test]
fn sizing_with_decoding_on_takes_memory_away_and_brings_it_back() {
    let (machine, three, _) = machine();
    let home = Machine::home(3);
    let (low, high) = (machine.config::<4>(3, 0x10), machine.config::<4>(3, 0x14));
    machine.set_config(3, 0x10, &[0xff; 4]);
    machine.set_config(3, 0x14, &[0xff; 4]);
    assert_eq!(u64::from_le_bytes(machine.config(3, 0x10)) & !0xf, !(SIZE - 1));
    assert_eq!(who(&machine, home), 0xff);
    machine.set_config(3, 0x10, &low);
    machine.set_config(3, 0x14, &high);
    assert_eq!(who(&machine, home), 3);
    assert_eq!(three.mapped_at(), [home]);
}

#[test]
fn a_function_moves() {
    let (machine, three, _) = machine();
    let there = WINDOW.end - SIZE;
    move_bar(&machine, 3, there);
    assert_eq!(who(&machine, there), 3);
    assert_eq!(who(&machine, Machine::home(3)), 0xff);
    assert_eq!(three.mapped_at(), [there]);

    machine.root.reset();
    assert_eq!(who(&machine, there), 0xff);
    machine.set_config(3, 4, &[2, 0]);
    assert_eq!(who(&machine, Machine::home(3)), 3);
}

#[test]
fn a_function_outside_the_windows_is_kept_off_the_bus() {
    let (machine, three, _) = machine();
    for base in [
        0,
        0x10_0000,
        ECAM,
        WINDOW.start - SIZE,
        WINDOW.end,
        0xfee0_0000,
        u64::MAX - SIZE + 1,
    ] {
        move_bar(&machine, 3, base);
        assert!(three.mapped_at().is_empty(), "{base:#x}");
    }
    assert_eq!(machine.config_u16(3, 0), 0x1234, "ECAM is where it was");
    move_bar(&machine, 3, WINDOW.start);
    assert_eq!(three.mapped_at(), [WINDOW.start]);
}

#[test]
fn of_two_that_overlap_the_first_stays_and_the_other_follows_when_it_leaves() {
    let (machine, three, five) = machine();
    let home = Machine::home(3);
    move_bar(&machine, 5, home);
    assert_eq!(who(&machine, home), 3);
    assert!(five.mapped_at().is_empty());

    move_bar(&machine, 3, home + BAR_SPACING);
    assert_eq!(who(&machine, home), 5);
    assert_eq!(three.mapped_at(), [home + BAR_SPACING]);
}

#[test]
fn functions_come_and_go() {
    let (machine, three, five) = machine();
    move_bar(&machine, 5, Machine::home(3));
    let (name, gone) = machine.root.detach(3).unwrap();
    assert_eq!(name, "device");
    assert!(three.mapped_at().is_empty());
    assert_eq!(machine.config_u32(3, 0), u32::MAX);
    assert_eq!(who(&machine, Machine::home(3)), 5, "the place is free");
    assert_eq!(five.mapped_at(), [Machine::home(3)]);
    assert!(machine.root.detach(3).is_none());

    machine.root.attach(7, "again", gone).unwrap();
    assert_eq!(machine.config_u32(7, 0), 0x0003_1234);
    move_bar(&machine, 7, Machine::home(7));
    assert_eq!(who(&machine, Machine::home(7)), 3);
}

#[test]
fn a_slot_takes_one_function_and_there_are_32() {
    let (machine, three, _) = machine();
    let error = machine.root.attach(5, "x", three.clone()).unwrap_err();
    assert_eq!(error.to_string(), "PCI slot 5 cannot be used: device is there");
    let error = machine.root.attach(0, "x", three.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "PCI slot 0 cannot be used: host bridge is there"
    );
    let error = machine.root.attach(32, "x", three).unwrap_err();
    assert_eq!(error.to_string(), "PCI slot 32 cannot be used: there are 32");
    assert!(machine.root.detach(200).is_none());
}

#[test]
fn a_restored_bus_is_where_it_was() {
    let (there, ..) = machine();
    there.ports.write(CONFIG_PORTS, &0x8000_1800_u32.to_le_bytes());
    there.set_config(0, 0x3c, &[9]);
    let state = there.root.save();

    let here = Machine::new();
    here.root.restore(&state).unwrap();
    assert_eq!(here.root.save(), state);
    assert_eq!(here.config_u8(0, 0x3c), 9);
    assert!(here.root.restore(&PciRootState::default()).is_err());
}

#[test]
fn whatever_a_guest_does_to_configuration_space_the_bus_holds() {
    let (machine, three, five) = machine();
    // A small linear congruential generator: the same guest every time.
    let mut seed = 1_u64;
    let mut next = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed >> 33
    };
    for _ in 0..20_000 {
        // Mostly the headers of what is there.
        let slot = [0, 3, 5, 7][(next() % 4) as usize];
        let register = [next() % 0x40, next() % 0x1000][(next() % 2) as usize];
        let data = (next() << 32 | next()).to_le_bytes();
        let data = &data[..(next() % 9) as usize];
        if next() % 2 == 0 {
            machine.memory.write(ECAM + (slot << 15) + register, data);
        } else {
            let selector = 0x8000_0000 | slot << 11 | register & 0xfc;
            machine
                .ports
                .write(CONFIG_PORTS, &(selector as u32).to_le_bytes());
            machine.ports.write(CONFIG_PORTS + next() % 8, data);
        }
        for function in [&three, &five] {
            assert!(function.mapped_at().len() <= 1);
        }
    }
    machine.root.reset();
    assert!(three.mapped_at().is_empty() && five.mapped_at().is_empty());
    assert_eq!(machine.config_u32(3, 0), 0x0003_1234);
}

#[test]
fn a_machine_that_is_dropped_takes_its_bus_along() {
    let (machine, three, _) = machine();
    drop(machine);
    assert_eq!(Arc::strong_count(&three), 1);
}
