use super::*;
use crate::driver::pci::{BAR_SPACING, Machine, PciDevice, TestMsi, WINDOW};
use crate::driver::{BUFFERS, Driver, Over};
use crate::pci::msix::MAX_VECTORS;
use crate::virtio::rng::Rng;
use crate::virtio::{Activation, ActiveQueue};
use crate::worker::Worker;

fn rng() -> Rng {
    Rng::new(Worker::spawn("io0").unwrap())
}

fn driver() -> Driver {
    Driver::over(Over::Pci, rng())
}

/// A device of any type and any number of queues that does nothing; its configuration is 16 bytes.
struct Idle {
    device_id: u32,
    queue_sizes: Vec<u16>,
    config: [u8; 16],
}

impl Idle {
    fn new(device_id: u32, queues: usize) -> Self {
        Idle {
            device_id,
            queue_sizes: vec![64; queues],
            config: std::array::from_fn(|i| i as u8),
        }
    }
}

impl VirtioDevice for Idle {
    fn device_id(&self) -> u32 {
        self.device_id
    }
    fn name(&self) -> &'static str {
        "idle"
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::virtio::read_config_bytes(&self.config, offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (to, byte) in self.config.iter_mut().skip(offset as usize).zip(data) {
            *to = *byte;
        }
    }
    fn start(&mut self, _activation: Activation) -> Result<()> {
        Ok(())
    }
    fn stop(&mut self) -> Result<Vec<ActiveQueue>> {
        Ok(Vec::new())
    }
}

/// Moves the BAR as an operating system does, and gives the device as it is found there.
fn move_to(device: &PciDevice, base: u64) -> PciDevice {
    let (machine, slot) = (&device.machine, device.slot);
    machine.set_config(slot, 4, &[0, 0]);
    machine.set_config(slot, 0x10, &(base as u32).to_le_bytes());
    machine.set_config(slot, 0x14, &((base >> 32) as u32).to_le_bytes());
    machine.set_config(slot, 4, &[6, 0]);
    PciDevice::find(machine.clone(), slot)
}

#[test]
fn a_guest_finds_a_modern_virtio_device() {
    let driver = driver();
    let machine = &driver.pci().machine;
    assert_eq!(machine.config_u32(1, 0), 0x1044_1af4);
    assert_eq!(machine.config_u32(1, 8), 0x00ff_0001, "class and revision");
    assert_eq!(machine.config_u32(1, 0x2c), 0x1044_1af4);
    assert_eq!(machine.config_u8(1, 0x3d), 0, "no interrupt line");
    assert_eq!(driver.read(8), 4);
    assert_eq!(driver.offered() >> 32 & 1, 1);
}

#[test]
fn storage_looks_like_storage_and_network_like_network() {
    let machine = Machine::new();
    for (slot, (device_type, class)) in (1..).zip([
        (1, 0x020000),
        (2, 0x010000),
        (3, 0x078000),
        (5, 0x00ff00),
        (19, 0x078000),
    ]) {
        let device = Box::new(Idle::new(device_type, 1));
        let transport = PciTransport::new(
            device,
            memory(),
            &machine.msi,
            machine.doorbells.clone(),
            Machine::home(slot),
        );
        machine.attach(slot, Arc::new(transport.unwrap()));
        assert_eq!(machine.config_u32(slot, 8) >> 8, class);
        assert_eq!(u32::from(machine.config_u16(slot, 2)), 0x1040 + device_type);
    }
}

fn memory() -> SharedMemory {
    use vm_memory::GuestAddress;
    SharedMemory::new(crate::memory::Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap())
}

#[test]
fn every_capability_lies_in_the_bar_and_none_overlaps() {
    let driver = Driver::over(Over::Pci, Idle::new(1, 9));
    let machine = &driver.pci().machine;
    let mut places = Vec::new();
    let mut kinds = Vec::new();
    for (id, at) in machine.capabilities(1) {
        match id {
            0x09 => {
                let kind = machine.config_u8(1, at + 3);
                let expected = match kind {
                    2 | 5 => 20,
                    _ => 16,
                };
                assert_eq!(
                    machine.config_u8(1, at + 2),
                    expected,
                    "length of capability {kind}"
                );
                kinds.push(kind);
                if kind != 5 {
                    assert_eq!(machine.config_u8(1, at + 4), BAR);
                    places.push((machine.config_u32(1, at + 8), machine.config_u32(1, at + 12)));
                }
            }
            0x11 => {
                let vectors = u32::from(machine.config_u16(1, at + 2) & 0x7ff) + 1;
                assert_eq!(vectors, 10, "one for each queue, one for the configuration");
                places.push((machine.config_u32(1, at + 4), 16 * vectors));
                places.push((machine.config_u32(1, at + 8), 8));
            }
            other => panic!("capability {other:#x}"),
        }
    }
    kinds.sort_unstable();
    assert_eq!(kinds, [1, 2, 3, 4, 5]);
    places.sort_unstable();
    for pair in places.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{places:x?}");
        assert_ne!(pair[0].0 / 4096, pair[1].0 / 4096, "each on its own page");
    }
    let last = places.last().unwrap();
    assert!(u64::from(last.0 + last.1) <= BAR_SIZE);
}

#[test]
fn a_device_of_many_queues_shares_its_vectors() {
    let driver = Driver::over(Over::Pci, Idle::new(1, 600));
    assert_eq!(driver.pci().vectors, MAX_VECTORS);
    assert_eq!(driver.pci().common_u16(0x12), 600);
    driver.write(0x30, 599);
    assert_eq!(driver.read(0x34), 64);
    assert_eq!(driver.pci().common_u16(0x1e), 599, "queue_notify_off");
}

#[test]
fn requests_are_served_through_doorbells_and_interrupt_by_the_vector_of_the_queue() {
    let mut driver = driver();
    driver.start(0);
    assert_eq!(driver.request(0, &[(BUFFERS, 32, true)]), 32);
    let msi = &driver.pci().machine.msi;
    assert_eq!((msi.sent(0), msi.sent(1)), (0, 1));
    assert_eq!(
        driver.pci().machine.doorbells.addresses(),
        [driver.pci().doorbell(0)]
    );
}

#[test]
fn a_notification_that_arrives_on_the_bus_rings_too() {
    let mut driver = driver();
    driver.start(0);
    let head = driver.offer(0, &[(BUFFERS, 8, true)]);
    let device = driver.pci();
    device.machine.memory.write(device.doorbell(0), &[0, 0]);
    assert_eq!(driver.wait(0), (head, 8));
}

#[test]
fn doorbells_move_with_the_bar_and_go_while_decoding_is_off() {
    let driver = driver();
    let device = driver.pci();
    let machine = &device.machine;
    let there = WINDOW.end - BAR_SIZE;
    let moved = move_to(device, there);
    assert_eq!(moved.common, there + COMMON);
    assert_eq!(machine.doorbells.addresses(), [there + NOTIFY]);
    assert_eq!(moved.read(8), 4);
    assert_eq!(moved.common_u16(0x12), 1);

    machine.set_config(1, 4, &[0, 0]);
    assert!(machine.doorbells.addresses().is_empty());
    assert_eq!(moved.common_u16(0x12), 0xffff, "nobody is there");

    machine.set_config(1, 4, &[2, 0]);
    machine.root.detach(1).unwrap();
    assert!(machine.doorbells.addresses().is_empty());
}

#[test]
fn an_interrupt_of_a_masked_vector_waits() {
    let mut driver = driver();
    driver.start(0);
    driver.pci().mask(1, true);
    assert_eq!(driver.request(0, &[(BUFFERS, 8, true)]), 8);
    while driver.pci().pending_bits() == 0 {
        std::thread::yield_now();
    }
    assert_eq!(driver.pci().pending_bits(), 0b10);
    assert_eq!(driver.interrupts(), 0);

    driver.pci().mask(1, false);
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.pci().pending_bits(), 0);

    driver.pci().control(0xc000);
    driver.transport.registers().config_changed().unwrap();
    assert_eq!((driver.pci().pending_bits(), driver.interrupts()), (0b01, 0));
    driver.pci().control(0x8000);
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn a_reset_takes_back_vectors_and_what_waits() {
    let mut driver = driver();
    driver.start(0);
    driver.pci().control(0xc000);
    driver.transport.registers().config_changed().unwrap();
    driver.write(0x70, 0);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.pci().common_u16(0x10), NO_VECTOR);
    driver.write(0x30, 0);
    assert_eq!(driver.pci().common_u16(0x1a), NO_VECTOR);
    driver.pci().control(0x8000);
    assert_eq!(driver.interrupts(), 0);
}

#[test]
fn a_vector_that_does_not_exist_reads_back_as_none() {
    let driver = driver();
    let device = driver.pci();
    device.set_common_u16(0x16, 0);
    for (field, number, reads) in [
        (0x10, 1, 1),
        (0x10, 2, NO_VECTOR),
        (0x1a, 1, 1),
        (0x1a, 300, NO_VECTOR),
    ] {
        device.set_common_u16(field, number);
        assert_eq!(device.common_u16(field), reads, "{field:#x}");
    }
    device.set_common_u16(0x16, 77);
    device.set_common_u16(0x1a, 0);
    assert_eq!(device.common_u16(0x1a), NO_VECTOR, "there is no queue 77");
}

#[test]
fn without_a_vector_nothing_interrupts() {
    let mut driver = driver();
    driver.start(0);
    driver.pci().set_common_u16(0x10, NO_VECTOR);
    driver.transport.registers().config_changed().unwrap();
    assert_eq!(driver.interrupts(), 0);
    assert_eq!(driver.read(0x60), 0, "the ISR status is for those without MSI-X");
}

#[test]
fn without_msix_the_isr_status_says_why_and_reading_clears_it() {
    let mut driver = driver();
    driver.start(0);
    driver.pci().control(0);
    driver.transport.registers().config_changed().unwrap();
    assert_eq!(driver.read(0x60), 2);
    assert_eq!(driver.read(0x60), 0);
    driver.pci().control(0x8000);
    assert_eq!(driver.interrupts(), 0);
}

#[test]
fn a_queue_is_enabled_by_one_and_disabled_by_nothing_but_a_reset() {
    let mut driver = driver();
    assert!(driver.negotiate(1 << 32));
    let device = driver.pci();
    device.set_common_u16(0x16, 0);
    for (value, enabled) in [(0, 0), (2, 0), (1, 1), (0, 1)] {
        device.set_common_u16(0x1c, value);
        assert_eq!(device.common_u16(0x1c), enabled);
    }
    driver.write(0x70, 0);
    driver.write(0x30, 0);
    assert_eq!(driver.read(0x44), 0);
}

#[test]
fn the_configuration_capability_reaches_every_window_with_decoding_off() {
    let driver = Driver::over(Over::Pci, Idle::new(5, 2));
    let machine = &driver.pci().machine;
    driver.write(0x70, 3);
    machine.set_config(1, 4, &[0, 0]);
    let (_, cap) = machine
        .capabilities(1)
        .into_iter()
        .find(|(id, at)| *id == 9 && machine.config_u8(1, at + 3) == 5)
        .unwrap();
    let choose = |offset: u64, len: u32| {
        machine.set_config(1, cap + 4, &[BAR]);
        machine.set_config(1, cap + 8, &(offset as u32).to_le_bytes());
        machine.set_config(1, cap + 12, &len.to_le_bytes());
    };
    choose(COMMON + 0x14, 1);
    assert_eq!(machine.config_u8(1, cap + 16), 3, "status");
    choose(COMMON + 0x12, 2);
    assert_eq!(machine.config_u16(1, cap + 16), 2, "queues");
    choose(DEVICE + 4, 4);
    assert_eq!(machine.config_u32(1, cap + 16), 0x0706_0504);
    machine.set_config(1, cap + 16, &[9, 8, 7, 6]);
    assert_eq!(machine.config_u32(1, cap + 16), 0x0607_0809);

    // What cannot be is not tried: the data stay as they were.
    for (bar, offset, len) in [
        (1, 0, 4),
        (0, 0, 3),
        (0, 0x13, 2),
        (0, BAR_SIZE, 4),
        (0, 0xffff_fffc, 4),
        (0, 0, 0),
    ] {
        choose(offset, len);
        machine.set_config(1, cap + 4, &[bar]);
        machine.set_config(1, cap + 16, &[1, 2, 3, 4]);
        assert_eq!(machine.config::<4>(1, cap + 16), [1, 2, 3, 4]);
    }
}

#[test]
fn the_devices_configuration_is_read_and_written_at_any_width() {
    let driver = Driver::over(Over::Pci, Idle::new(5, 1));
    let device = driver.pci();
    driver.write(0x70, 3);
    assert_eq!(
        device.machine.read::<8>(device.device + 1),
        [1, 2, 3, 4, 5, 6, 7, 8]
    );
    device.machine.write(device.device + 14, &[0xaa; 4]);
    assert_eq!(device.machine.read::<4>(device.device + 13), [13, 0xaa, 0xaa, 0]);
}

#[test]
fn every_offset_of_the_bar_takes_every_access() {
    let mut driver = driver();
    driver.start(0);
    let device = driver.pci();
    for offset in 0..BAR_SIZE {
        for len in [1, 2, 3, 4, 5, 7, 8] {
            let mut data = vec![0xaa; len];
            device.machine.memory.read(device.bar + offset, &mut data);
            device.machine.memory.write(device.bar + offset, &data);
            device.machine.memory.write(device.bar + offset, &vec![0xff; len]);
        }
    }
    // It is still there.
    driver.write(0x70, 0);
    driver.find_again();
    driver.start(0);
    assert_eq!(driver.request(0, &[(BUFFERS, 8, true)]), 8);
}

#[test]
fn random_configuration_writes_leave_a_device_that_can_be_reset() {
    let mut driver = driver();
    let machine = driver.pci().machine.clone();
    let mut seed = 7_u64;
    let mut next = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed >> 33
    };
    for _ in 0..20_000 {
        let data = (next() << 32 | next()).to_le_bytes();
        let len = (next() % 9) as usize;
        machine.set_config(1, next() % 260, &data[..len]);
        let _: [u8; 8] = machine.config(1, next() % 260);
    }
    machine.root.reset();
    assert!(machine.doorbells.addresses().is_empty());
    assert_eq!(machine.config_u32(1, 0), 0x1044_1af4);
    assert_eq!(machine.capabilities(1).len(), 6);
    driver.find_again();
    assert_eq!(driver.pci().bar, Machine::home(1));
    driver.start(0);
    assert_eq!(driver.request(0, &[(BUFFERS, 8, true)]), 8);
}

#[test]
fn a_restored_device_goes_on_at_the_place_and_with_the_vectors_it_had() {
    let mut driver = driver();
    let there = Machine::home(1) + 8 * BAR_SPACING;
    move_to(driver.pci(), there);
    driver.find_again();
    driver.start(0);
    assert_eq!(driver.request(0, &[(BUFFERS, 8, true)]), 8);
    driver.pci().mask(1, true);
    driver.transport.pause().unwrap();
    let state = driver.transport.save();
    let head = driver.offer(0, &[(BUFFERS, 24, true)]);
    let TransportState::Pci(state) = state else {
        panic!("{state:?}");
    };
    assert_eq!((state.config_vector, state.virtio.queues[0].vector), (0, 1));
    assert!(state.msix[1].masked);

    let machine = Arc::new(Machine::new());
    let shared = SharedMemory::new(driver.memory.as_ref().clone());
    let bells = machine.doorbells.clone();
    let transport = PciTransport::new(Box::new(rng()), shared, &machine.msi, bells, Machine::home(1));
    let transport = Arc::new(transport.unwrap());
    transport.restore(state.clone()).unwrap();
    assert_eq!(transport.save(), state);
    machine.attach(1, transport.clone());
    assert_eq!(machine.doorbells.addresses(), [there + NOTIFY]);
    Transport::resume(&*transport).unwrap();

    assert_eq!(driver.wait(0), (head, 24));
    assert_eq!(machine.msi.sent(1), 0);
    machine.write(there + MSIX_TABLE + 28, &[0; 4]);
    while machine.msi.sent(1) == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn another_transports_state_and_another_layout_are_refused() {
    let (mmio, pci) = (Driver::over(Over::Mmio, rng()), driver());
    assert!(pci.transport.restore(mmio.transport.save()).is_err());
    assert!(mmio.transport.restore(pci.transport.save()).is_err());
    let other = Driver::over(Over::Pci, Idle::new(4, 2));
    assert!(
        other.transport.restore(pci.transport.save()).is_err(),
        "one vector less"
    );
}

#[test]
fn a_bar_that_is_not_aligned_is_refused() {
    let bells = Arc::new(crate::irq::NoDoorbells);
    let error = PciTransport::new(Box::new(rng()), memory(), &TestMsi::default(), bells, 0x1000).err();
    assert_eq!(
        error.unwrap().to_string(),
        "BAR 0 of 0x8000 bytes cannot lie at 0x1000"
    );
}
