use std::ops::Range;
use std::time::Duration;

use super::Subject;
use crate::driver::{BUFFERS, Driver, eventually};
use crate::virtio::balloon::{Balloon, BalloonConfig, BalloonControl};
use crate::worker::Worker;

const STATS_VQ: u64 = 1 << 1;
const PAGE_REPORTING: u64 = 1 << 5;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const PAGE: u64 = 4096;
/// What the guest gives.
const PAGES: u64 = BUFFERS + 0x80_0000;
const LOAD: u64 = 60;

/// A balloon of all features, whose statistics are asked for as often as can be.
struct Ballast {
    worker: Worker,
    control: Option<BalloonControl>,
    said: u64,
}

fn put_pfn(driver: &Driver, at: u64, page: u64) {
    driver.put(at, &((page / PAGE) as u32).to_le_bytes());
}

impl Subject for Ballast {
    type Device = Balloon;

    /// `actual` and `poison_val`
    const WRITABLE: &'static [Range<u64>] = &[4..8, 12..16];

    fn new() -> Self {
        Ballast {
            worker: Worker::spawn("io0").unwrap(),
            control: None,
            said: 0,
        }
    }

    fn worker(&self) -> &Worker {
        &self.worker
    }

    fn device(&mut self) -> Balloon {
        let config = BalloonConfig {
            deflate_on_oom: true,
            free_page_reporting: true,
        };
        let (balloon, control) = Balloon::new(config, self.worker.clone()).unwrap();
        control.set_interval(Duration::from_millis(1)).unwrap();
        self.control = Some(control);
        balloon
    }

    fn work(&mut self, driver: &mut Driver) {
        driver.put(PAGES, &[7; 2 * PAGE as usize]);
        put_pfn(driver, BUFFERS, PAGES);
        assert_eq!(driver.request(INFLATE, &[(BUFFERS, 4, false)]), 0);
        assert_eq!(driver.get(PAGES, 1), [0]);
        assert_eq!(driver.request(DEFLATE, &[(BUFFERS, 4, false)]), 0);

        let mut reporting = 2;
        if driver.features & STATS_VQ != 0 {
            self.said += 1;
            driver.put(
                BUFFERS,
                &[&2u16.to_le_bytes()[..], &self.said.to_le_bytes()].concat(),
            );
            assert_eq!(driver.request(2, &[(BUFFERS, 10, false)]), 0);
            let control = self.control.as_ref().unwrap();
            eventually("the statistics", || {
                control.statistics().major_faults == Some(self.said)
            });
            reporting = 3;
        }
        if driver.features & PAGE_REPORTING != 0 {
            assert_eq!(driver.request(reporting, &[(PAGES + PAGE, PAGE as u32, true)]), 0);
            assert_eq!(driver.get(PAGES + PAGE, 1), [0]);
        }
    }

    fn load(&mut self, driver: &mut Driver) {
        for i in 0..LOAD {
            let page = PAGES + i * PAGE;
            driver.put(page, &[7]);
            put_pfn(driver, BUFFERS + 4 * i, page);
            driver.offer(INFLATE, &[(BUFFERS + 4 * i, 4, false)]);
            driver.ring(INFLATE);
        }
    }

    fn finish(&mut self, driver: &mut Driver) {
        for i in 0..LOAD {
            assert_eq!(driver.wait(INFLATE).1, 0);
            assert_eq!(driver.get(PAGES + i * PAGE, 1), [0]);
        }
        assert_eq!(driver.used(INFLATE), None);
    }
}

super::suite!(Ballast);
