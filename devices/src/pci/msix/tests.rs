use super::*;
use crate::driver::pci::TestMsi;

const MESSAGE: MsiMessage = MsiMessage {
    address: 0x1_fee0_1000,
    data: 0x4021,
};

/// Three vectors, MSI-X enabled; vector 1 has a message and is unmasked.
fn msix() -> (Msix, TestMsi) {
    let controller = TestMsi::default();
    let msix = Msix::new(&controller, 3).unwrap();
    msix.set_control(ENABLE);
    msix.write_table(16, &(MESSAGE.address as u32).to_le_bytes());
    msix.write_table(20, &1_u32.to_le_bytes());
    msix.write_table(24, &MESSAGE.data.to_le_bytes());
    msix.write_table(28, &0_u32.to_le_bytes());
    (msix, controller)
}

fn pending(msix: &Msix) -> u64 {
    let mut data = [0xff; 8];
    msix.read_pending(0, &mut data);
    u64::from_le_bytes(data)
}

#[test]
fn an_unmasked_vector_is_routed_and_sends() {
    let (msix, controller) = msix();
    assert_eq!(controller.route(1), Some(MESSAGE));
    assert_eq!((controller.route(0), controller.route(2)), (None, None));
    msix.signal(1).unwrap();
    assert_eq!(controller.sent(1), 1);
    assert_eq!(pending(&msix), 0);
}

#[test]
fn a_masked_vector_keeps_the_interrupt_pending_and_sends_it_when_unmasked() {
    let (msix, controller) = msix();
    msix.write_table(28, &1_u32.to_le_bytes());
    assert_eq!(controller.route(1), None);
    msix.signal(1).unwrap();
    assert_eq!(pending(&msix), 0b10);
    assert_eq!(pending(&msix), 0b10, "looking does not take it");

    msix.write_table(28, &0_u32.to_le_bytes());
    assert_eq!(controller.sent(1), 1);
    assert_eq!(pending(&msix), 0);
}

#[test]
fn the_function_mask_masks_every_vector() {
    let (msix, controller) = msix();
    msix.set_control(ENABLE | FUNCTION_MASK);
    assert_eq!(controller.route(1), None);
    msix.signal(1).unwrap();
    // What is unmasked meanwhile stays masked by the function.
    msix.write_table(12, &0_u32.to_le_bytes());
    assert_eq!(controller.route(0), None);
    assert_eq!(pending(&msix), 0b10);

    msix.set_control(ENABLE);
    assert!(controller.route(0).is_some());
    assert_eq!(controller.sent(1), 1);
}

#[test]
fn what_was_signalled_before_msix_was_enabled_is_no_message() {
    let controller = TestMsi::default();
    let msix = Msix::new(&controller, 1).unwrap();
    msix.signal(0).unwrap();
    msix.write_table(12, &[0; 4]);
    msix.set_control(ENABLE);
    assert!(controller.route(0).is_some());
    assert_eq!(controller.sent(0), 0);
}

#[test]
fn the_table_is_written_in_whole_double_words_only() {
    let (msix, _controller) = msix();
    let mut before = [0; 48];
    msix.read_table(0, &mut before);
    assert_eq!(
        before[16..32],
        [0, 0x10, 0xe0, 0xfe, 1, 0, 0, 0, 0x21, 0x40, 0, 0, 0, 0, 0, 0]
    );
    for offset in 0..64 {
        for len in [0, 1, 2, 3, 5, 6, 7, 16] {
            msix.write_table(offset, &vec![0xff; len]);
        }
        if offset % 4 != 0 {
            msix.write_table(offset, &[0xff; 4]);
            msix.write_table(offset, &[0xff; 8]);
        }
    }
    msix.write_table(48, &[0xff; 8]);
    msix.write_table(u64::MAX - 3, &[0xff; 8]);
    let mut after = [0; 48];
    msix.read_table(0, &mut after);
    assert_eq!(before, after);

    msix.write_table(32, &[1, 2, 3, 4, 5, 6, 7, 8]);
    msix.read_table(32, &mut after[..9]);
    assert_eq!(after[..9], [1, 2, 3, 4, 5, 6, 7, 8, 0]);
}

#[test]
fn vectors_and_bits_that_are_not_there_read_as_zero() {
    let (msix, _controller) = msix();
    for offset in [48, 4096, u64::MAX - 8] {
        let mut data = [0xff; 8];
        msix.read_table(offset, &mut data);
        assert_eq!(data, [0; 8]);
        let mut data = [0xff; 8];
        msix.read_pending(offset, &mut data);
        assert_eq!(data, [0; 8]);
    }
    assert!(msix.eventfd(3).is_none());
    msix.signal(0xffff).unwrap();
}

#[test]
fn a_saved_table_sends_here_what_was_pending_there() {
    let (msix, _controller) = msix();
    msix.set_control(ENABLE | FUNCTION_MASK);
    msix.signal(1).unwrap();
    let state = msix.save();
    assert_eq!(pending(&msix), 0b10, "saving does not take it");

    let controller = TestMsi::default();
    let other = Msix::new(&controller, 3).unwrap();
    other.restore("rng", &state, ENABLE | FUNCTION_MASK).unwrap();
    assert_eq!(pending(&other), 0b10);
    assert_eq!(other.save(), state);
    other.set_control(ENABLE);
    assert_eq!(controller.route(1), Some(MESSAGE));
    assert_eq!(controller.sent(1), 1);
}

#[test]
fn a_table_of_another_size_is_refused() {
    let (msix, _controller) = msix();
    let error = msix.restore("rng", &[], ENABLE).unwrap_err();
    assert_eq!(
        error.to_string(),
        "rng: the saved state does not fit: 0 MSI-X vectors instead of 3"
    );
}

#[test]
fn a_reset_masks_and_forgets() {
    let (msix, controller) = msix();
    msix.set_control(ENABLE | FUNCTION_MASK);
    msix.signal(1).unwrap();
    msix.reset();
    assert!(!msix.enabled());
    assert_eq!((0..3).find_map(|n| controller.route(n)), None);
    assert_eq!(pending(&msix), 0);
    assert_eq!(msix.save(), Msix::new(&TestMsi::default(), 3).unwrap().save());
}
