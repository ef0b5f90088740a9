use super::Subject;
use crate::driver::{BUFFERS, Driver};
use crate::virtio::rng::Rng;
use crate::worker::Worker;

const LOAD: u64 = 40;

struct Entropy {
    worker: Worker,
    offered: Vec<u16>,
}

impl Subject for Entropy {
    type Device = Rng;

    fn new() -> Self {
        Entropy {
            worker: Worker::spawn("io0").unwrap(),
            offered: Vec::new(),
        }
    }

    fn worker(&self) -> &Worker {
        &self.worker
    }

    fn device(&mut self) -> Rng {
        Rng::new(self.worker.clone())
    }

    fn work(&mut self, driver: &mut Driver) {
        driver.put(BUFFERS, &[0; 64]);
        assert_eq!(
            driver.request(0, &[(BUFFERS, 20, true), (BUFFERS + 20, 44, true)]),
            64
        );
        assert_ne!(driver.get(BUFFERS, 64), [0; 64]);
    }

    fn load(&mut self, driver: &mut Driver) {
        driver.put(BUFFERS, &[0; LOAD as usize * 32]);
        self.offered = (0..LOAD)
            .map(|i| driver.offer(0, &[(BUFFERS + 32 * i, 32, true)]))
            .collect();
        driver.ring(0);
    }

    fn finish(&mut self, driver: &mut Driver) {
        for (i, head) in (0..LOAD).zip(&self.offered) {
            assert_eq!(driver.wait(0), (*head, 32));
            assert_ne!(driver.get(BUFFERS + 32 * i, 32), [0; 32]);
        }
        assert_eq!(driver.used(0), None);
    }
}

super::suite!(Entropy);
