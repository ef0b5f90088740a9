//! Hot-plug by ACPI: registers by which the machine's ACPI code (AML) learns which slots have got a device and which
//! are to be emptied, and says that the guest has let go of one. Their layout is our own, as the AML that reads them is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::root::PciRoot;
use crate::bus::BusDevice;
use crate::state::HotPlugState;

/// Size of the register window.
pub const SIZE: u64 = 12;
/// Reading takes the slots, a bit each, that have got a device.
pub const INSERTED: u64 = 0;
/// Reading takes the slots that are to be emptied.
pub const REQUESTED: u64 = 4;
/// Writing a slot's bit says that the guest has let go of what is there.
pub const EJECT: u64 = 8;

/// The registers, and the bus whose slots they are about.
pub struct HotPlug {
    root: Arc<PciRoot>,
    state: Mutex<HotPlugState>,
    /// The last slot that this machine's own ACPI code describes.
    last_slot: u8,
    ejected: Box<dyn Fn(&str) + Send + Sync>,
}

impl HotPlug {
    /// No device comes or goes yet; the machine's ACPI code describes the slots up to `last_slot`. `ejected` hears the
    /// name of each device that has left the bus.
    pub fn new(root: Arc<PciRoot>, last_slot: u8, ejected: Box<dyn Fn(&str) + Send + Sync>) -> Self {
        HotPlug {
            root,
            state: Mutex::new(none(last_slot)),
            last_slot,
            ejected,
        }
    }

    fn state(&self) -> MutexGuard<'_, HotPlugState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last slot that devices come to.
    pub fn last_slot(&self) -> u8 {
        self.state().last_slot
    }

    /// `slot` has got a device; an event then has the guest read it.
    pub fn insert(&self, slot: u8) {
        self.state().inserted |= bit(slot);
    }

    /// Asks the guest to let go of what is in `slot`; an event then has it read that.
    pub fn request(&self, slot: u8) {
        let mut state = self.state();
        state.requested |= bit(slot);
        state.leaving |= bit(slot);
    }

    /// Takes the device out of `slot`, whatever the guest says, and brings it to rest.
    pub fn remove(&self, slot: u8) {
        {
            let mut state = self.state();
            let others = !bit(slot);
            state.inserted &= others;
            state.requested &= others;
            state.leaving &= others;
        }
        if let Some((_, function)) = self.root.detach(slot) {
            function.reset();
        }
    }

    /// The machine is switched off and on: what was to leave has left, and what is there the guest finds by itself.
    pub fn reset(&self) {
        let leaving = self.state().leaving;
        self.eject(leaving);
        *self.state() = none(self.last_slot);
    }

    /// Takes out what the guest has let go of. Only what was asked for goes: a guest that empties a slot by itself
    /// can fill it again.
    fn eject(&self, slots: u32) {
        let slots = {
            let mut state = self.state();
            let granted = slots & state.leaving;
            state.leaving &= !granted;
            granted
        };
        for slot in (0..32).filter(|&slot| slots & bit(slot) != 0) {
            if let Some((name, function)) = self.root.detach(slot) {
                function.reset();
                (self.ejected)(&name);
            }
        }
    }

    /// What the guest has not been told or has not done yet.
    pub fn save(&self) -> HotPlugState {
        self.state().clone()
    }

    /// Takes up a saved state.
    pub fn restore(&self, state: &HotPlugState) {
        *self.state() = state.clone();
    }
}

/// No device comes or goes.
fn none(last_slot: u8) -> HotPlugState {
    HotPlugState {
        last_slot,
        ..HotPlugState::default()
    }
}

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

impl BusDevice for HotPlug {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        let mut state = self.state();
        *data = match offset {
            INSERTED => std::mem::take(&mut state.inserted),
            REQUESTED => std::mem::take(&mut state.requested),
            _ => 0,
        }
        .to_le_bytes();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (EJECT, Ok(&slots)) = (offset, <&[u8; 4]>::try_from(data)) {
            self.eject(u32::from_le_bytes(slots));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::bus::Bus;
    use crate::pci::PciFunction;
    use crate::pci::bar::BarRange;

    /// A function that says when it is reset.
    struct Card(std::sync::mpsc::Sender<String>);

    impl PciFunction for Card {
        fn read_config(&self, _offset: u16, data: &mut [u8]) {
            data.fill(0x11);
        }
        fn write_config(&self, _offset: u16, _data: &[u8]) {}
        fn bars(&self) -> Vec<BarRange> {
            Vec::new()
        }
        fn read_bar(&self, _bar: u8, _offset: u64, _data: &mut [u8]) {}
        fn write_bar(&self, _bar: u8, _offset: u64, _data: &[u8]) {}
        fn reset(&self) {
            self.0.send("reset".into()).unwrap();
        }
    }

    struct Machine {
        hot_plug: HotPlug,
        root: Arc<PciRoot>,
        told: Receiver<String>,
    }

    fn machine() -> Machine {
        let (tell, told) = channel();
        let root = PciRoot::new(&Arc::new(Bus::new()), Vec::new());
        for slot in [1, 2, 31] {
            let card = Card(tell.clone());
            root.attach(slot, &format!("card {slot}"), Arc::new(card))
                .unwrap();
        }
        let ejected = Box::new(move |name: &str| tell.send(name.into()).unwrap());
        let hot_plug = HotPlug::new(root.clone(), 31, ejected);
        Machine { hot_plug, root, told }
    }

    impl Machine {
        fn read(&self, offset: u64) -> u32 {
            let mut data = [0xff; 4];
            self.hot_plug.read(offset, &mut data);
            u32::from_le_bytes(data)
        }

        fn eject(&self, slots: u32) {
            self.hot_plug.write(EJECT, &slots.to_le_bytes());
        }

        fn told(&self) -> Vec<String> {
            self.told.try_iter().collect()
        }

        fn is_there(&self, slot: u64) -> bool {
            let mut data = [0; 4];
            self.root.ecam().read(slot << 15, &mut data);
            data == [0x11; 4]
        }
    }

    #[test]
    fn a_guest_is_told_once_of_what_came() {
        let machine = machine();
        machine.hot_plug.insert(2);
        machine.hot_plug.insert(31);
        assert_eq!(machine.read(INSERTED), 1 << 31 | 1 << 2);
        assert_eq!(machine.read(INSERTED), 0);
    }

    #[test]
    fn a_device_leaves_when_it_was_asked_for_and_the_guest_let_go() {
        let machine = machine();
        machine.eject(!0);
        assert!(machine.told().is_empty() && machine.is_there(1), "nobody asked");

        machine.hot_plug.request(2);
        assert_eq!(machine.read(REQUESTED), 1 << 2);
        assert!(machine.is_there(2), "the guest still uses it");
        machine.eject(!0);
        assert_eq!(machine.told(), ["reset", "card 2"]);
        assert!(!machine.is_there(2) && machine.is_there(1));
        machine.eject(!0);
        assert!(machine.told().is_empty());
    }

    #[test]
    fn what_was_to_leave_is_gone_after_a_reset() {
        let machine = machine();
        machine.hot_plug.insert(1);
        machine.hot_plug.request(31);
        machine.hot_plug.reset();
        assert_eq!(machine.told(), ["reset", "card 31"]);
        assert_eq!(machine.hot_plug.save(), HotPlugState::default());
    }

    #[test]
    fn what_is_taken_out_is_asked_for_no_more() {
        let machine = machine();
        machine.hot_plug.request(1);
        machine.hot_plug.remove(1);
        assert_eq!(machine.told(), ["reset"]);
        assert_eq!(machine.read(REQUESTED), 0);
    }

    #[test]
    fn a_restored_machine_knows_what_was_asked_for() {
        let before = machine();
        before.hot_plug.request(2);
        let after = machine();
        after.hot_plug.restore(&before.hot_plug.save());
        after.eject(1 << 2);
        assert_eq!(after.told(), ["reset", "card 2"]);
    }

    #[test]
    fn accesses_of_other_widths_do_nothing() {
        let machine = machine();
        machine.hot_plug.insert(1);
        machine.hot_plug.request(1);
        for len in [0, 1, 2, 3, 8] {
            let mut data = vec![0xff; len];
            machine.hot_plug.read(INSERTED, &mut data);
            assert_eq!(data, vec![0; len]);
            machine.hot_plug.write(EJECT, &vec![0xff; len]);
        }
        assert!(machine.told().is_empty());
        assert_eq!(machine.read(INSERTED), 1 << 1);
    }

    #[test]
    fn slots_that_another_monitors_guest_knows_count_until_it_starts_anew() {
        let machine = machine();
        let elsewhere = HotPlugState {
            last_slot: 9,
            ..HotPlugState::default()
        };
        machine.hot_plug.restore(&elsewhere);
        assert_eq!(machine.hot_plug.last_slot(), 9);
        machine.hot_plug.reset();
        assert_eq!(machine.hot_plug.last_slot(), 31);
    }
}
