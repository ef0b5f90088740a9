//! Saved states: to another place and on, or refused.

use std::cell::RefCell;

use serde_json::{Value, json};

use super::{Subject, powered_on, running, settle, start};
use crate::driver::{Driver, EVENT_IDX, Over};
use crate::state::{
    BalloonState, BlkState, ConsoleState, DeviceState, NetState, TransportState, VirtioState, VsockState,
};
use crate::virtio::VirtioDevice;

/// The state as it arrives on another host.
fn save(driver: &Driver) -> TransportState {
    driver.transport.pause().unwrap();
    let state = driver.transport.save();
    let text = serde_json::to_string(&state).unwrap();
    let arrived = serde_json::from_str(&text).unwrap();
    assert_eq!(state, arrived);
    arrived
}

pub fn a_busy_device_goes_on_elsewhere_where_it_stood<S: Subject>(over: Over) {
    let (mut subject, mut driver) = running::<S>(over);
    let offered = driver.features;
    for features in [offered, offered & !EVENT_IDX] {
        start(&mut subject, &mut driver, features);
        subject.work(&mut driver);
        for _ in 0..5 {
            subject.load(&mut driver);
            let state = save(&driver);
            driver.move_to(subject.device(), state);
            subject.finish(&mut driver);
            subject.work(&mut driver);
        }
    }
}

pub fn a_device_can_be_moved_at_every_step_of_its_start<S: Subject>(over: Over) {
    let (mut subject, mut driver) = powered_on::<S>(over);
    let offered = driver.offered();
    driver.log = Some(RefCell::default());
    driver.start(offered);
    let steps = driver.log.take().unwrap().into_inner();
    for step in 0..=steps.len() {
        let (before, after) = steps.split_at(step);
        for &(register, value) in before {
            driver.write(register, value);
        }
        let state = save(&driver);
        driver.move_to(subject.device(), state);
        for &(register, value) in after {
            driver.write(register, value);
        }
        assert_eq!(driver.status(), 15, "moved after step {step}");
    }
    start(&mut subject, &mut driver, offered);
    subject.work(&mut driver);
}

pub fn a_device_that_asked_for_a_reset_still_asks_after_a_move<S: Subject>(over: Over) {
    let (mut subject, mut driver) = running::<S>(over);
    let offered = driver.features;
    driver.set_avail_index(1, 0x8000);
    subject.provoke(&mut driver);
    driver.set_avail_index(0, 0x8000);
    driver.ring(0);
    driver.wait_needs_reset();
    let state = save(&driver);
    driver.move_to(subject.device(), state);
    assert_eq!(driver.status(), 0x4f);

    start(&mut subject, &mut driver, offered);
    subject.work(&mut driver);
    assert_eq!(driver.status(), 15);
}

fn virtio(state: &mut TransportState) -> &mut VirtioState {
    match state {
        TransportState::Mmio(virtio) => virtio,
        TransportState::Pci(state) => &mut state.virtio,
    }
}

pub fn the_state_of_another_device_or_transport_is_refused<S: Subject>(over: Over) {
    let (mut subject, driver) = running::<S>(over);
    let state = save(&driver);
    let own = subject.device().save();
    for other in [
        DeviceState::Stateless,
        DeviceState::Blk(BlkState::default()),
        DeviceState::Net(NetState::default()),
        DeviceState::Balloon(BalloonState::default()),
        DeviceState::Console(ConsoleState::default()),
        DeviceState::Vsock(VsockState::default()),
    ] {
        if std::mem::discriminant(&other) != std::mem::discriminant(&own) {
            assert!(subject.device().restore(other.clone()).is_err(), "{other:?}");
        }
    }
    let mut refused = |what: &str, change: &dyn Fn(&mut VirtioState)| {
        let mut state = state.clone();
        change(virtio(&mut state));
        let elsewhere = Driver::over(over, subject.device());
        assert!(elsewhere.transport.restore(state).is_err(), "{what}");
    };
    refused("another type", &|state| state.device_id += 1);
    refused("a queue less", &|state| {
        state.queues.truncate(state.queues.len() - 1)
    });
    refused("a queue more", &|state| state.queues.push(state.queues[0]));
    refused("a queue too large", &|state| state.queues[0].size *= 2);
    refused("a size that is none", &|state| state.queues[0].size = 3);
    refused("a misaligned queue", &|state| state.queues[0].desc_table += 1);
    refused("features that are not offered", &|state| {
        state.driver_features |= 1 << 63
    });
    refused("a legacy driver", &|state| state.driver_features &= !(1 << 32));
    refused("a start without features", &|state| state.status &= !8);

    driver.transport.resume().unwrap();
    assert!(driver.transport.restore(state.clone()).is_err(), "while it runs");

    let other = match over {
        Over::Mmio => Over::Pci,
        Over::Pci => Over::Mmio,
    };
    let elsewhere = Driver::over(other, subject.device());
    assert!(elsewhere.transport.restore(state).is_err());
}

/// All texts that differ from `value` in one place, and where.
fn variations(value: &Value) -> Vec<(String, Value)> {
    let mut places = Vec::new();
    collect(value, String::new(), &mut places);
    let mut varied = Vec::new();
    for place in places {
        let old = value.pointer(&place).unwrap();
        let mut replace = |new: Value| {
            if new != *old {
                let mut whole = value.clone();
                *whole.pointer_mut(&place).unwrap() = new.clone();
                varied.push((format!("{place} = {new}"), whole));
            }
        };
        match old {
            // Configuration space has many bytes, and each reads as the guest left it.
            Value::Number(byte) if place.starts_with("/config/") => {
                replace(json!(byte.as_u64().unwrap() ^ 0xff));
            }
            Value::Number(_) => {
                for number in [0, 1, 0xff, 0xffff, 0xffff_ffff, u64::MAX] {
                    replace(json!(number));
                }
                replace(json!(-1));
            }
            Value::Bool(old) => replace(json!(!old)),
            _ => replace(Value::Null),
        }
        if let Some((parent, key)) = place.rsplit_once('/') {
            let mut whole = value.clone();
            if let Some(Value::Object(parent)) = whole.pointer_mut(parent) {
                parent.remove(key);
                varied.push((format!("without {place}"), whole));
            }
        }
    }
    varied
}

/// Where in `value` there is something.
fn collect(value: &Value, at: String, places: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                collect(value, format!("{at}/{key}"), places);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                collect(value, format!("{at}/{index}"), places);
            }
        }
        _ => {}
    }
    places.push(at);
}

pub fn a_state_with_one_thing_changed_is_refused_or_leaves_a_device_that_a_reset_heals<S: Subject>(
    over: Over,
) {
    let (mut subject, mut driver) = running::<S>(over);
    let offered = driver.features;
    subject.work(&mut driver);
    let state = serde_json::to_value(save(&driver)).unwrap();
    let mut taken = 0;
    for (what, varied) in variations(&state) {
        let Ok(varied) = serde_json::from_value::<TransportState>(varied) else {
            continue;
        };
        driver.plug(subject.device());
        if driver.transport.restore(varied).is_err() {
            continue;
        }
        taken += 1;
        // Whether it can go on or not.
        let _ = driver.transport.resume();
        for queue in 0..driver.queue_count() {
            driver.transport.registers().ring(queue);
        }
        settle(&subject);
        let _ = driver.transport.pause();
        let _ = driver.transport.save();

        driver.power_cycle();
        driver.transport.resume().unwrap();
        assert_eq!(driver.status(), 0, "{what}");
        start(&mut subject, &mut driver, offered);
        subject.work(&mut driver);
    }
    assert!(taken > 0);
}
