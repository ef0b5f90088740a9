//! Feature bits (virtio 1.2, §2.2, §6).

use super::{Subject, powered_on, running, start};
use crate::driver::{EVENT_IDX, Manners, Over};

const VERSION_1: u64 = 1 << 32;
const INDIRECT_DESC: u64 = 1 << 28;

fn bits(features: u64) -> impl Iterator<Item = u64> {
    (0..64).map(|bit| 1 << bit).filter(move |bit| features & bit != 0)
}

pub fn every_feature_offered_works_alone_and_all_work_together<S: Subject>(over: Over) {
    let (mut subject, mut driver) = powered_on::<S>(over);
    let offered = driver.offered();
    assert_eq!(
        offered & (VERSION_1 | EVENT_IDX | INDIRECT_DESC),
        VERSION_1 | EVENT_IDX | INDIRECT_DESC
    );
    for features in bits(offered).chain([0, offered]) {
        start(&mut subject, &mut driver, features);
        subject.work(&mut driver);
        assert_eq!(driver.status(), 15, "{features:#x}");
    }
}

pub fn what_is_not_offered_is_refused_and_the_device_stays_usable<S: Subject>(over: Over) {
    let (mut subject, mut driver) = powered_on::<S>(over);
    let offered = driver.offered();
    for feature in bits(!offered) {
        assert!(!driver.negotiate(VERSION_1 | feature), "{feature:#x}");
        // Without FEATURES_OK there is no DRIVER_OK.
        driver.write(0x70, 15);
        assert_eq!(driver.status(), 3, "{feature:#x}");
    }
    assert!(!driver.negotiate(offered & !VERSION_1), "a legacy driver");
    start(&mut subject, &mut driver, offered);
    subject.work(&mut driver);
}

pub fn a_driver_that_rings_only_when_asked_and_sleeps_otherwise_misses_nothing<S: Subject>(over: Over) {
    let (mut subject, mut driver) = running::<S>(over);
    let offered = driver.features;
    for indirect in [false, true] {
        for features in [offered, offered & !EVENT_IDX] {
            driver.manners = Manners {
                indirect,
                polite: true,
            };
            start(&mut subject, &mut driver, features);
            for _ in 0..10 {
                subject.work(&mut driver);
            }
            subject.load(&mut driver);
            subject.finish(&mut driver);
        }
    }
}
