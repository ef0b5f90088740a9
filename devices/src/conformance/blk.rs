use std::io::Write;
use std::ops::Range;

use virtio_bindings::virtio_blk::*;
use vmm_sys_util::tempfile::TempFile;

use super::Subject;
use crate::disk::{DiskOptions, Lock, open};
use crate::driver::{BUFFERS, Driver};
use crate::virtio::blk::{Blk, BlkConfig};
use crate::worker::Worker;

const SECTORS: u64 = 2048;
const LOAD: u64 = 50;
const STATUS: u64 = BUFFERS + 0x100;
const SEGMENT: u64 = BUFFERS + 0x200;
const DATA: u64 = BUFFERS + 0x1000;
const HEADERS: u64 = BUFFERS + 0x10_0000;

/// A disk of two queues, whose sectors hold their numbers.
struct Disk {
    worker: Worker,
    image: TempFile,
}

fn sector(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(64)
}

fn put_header(driver: &Driver, at: u64, kind: u32, sector: u64) {
    driver.put(
        at,
        &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat(),
    );
}

fn request(driver: &mut Driver, queue: u16, kind: u32, sector: u64, data: &[(u64, u32, bool)]) {
    put_header(driver, HEADERS, kind, sector);
    driver.put(STATUS, &[0xee]);
    let chain = [&[(HEADERS, 16, false)], data, &[(STATUS, 1, true)]].concat();
    driver.request(queue, &chain);
    assert_eq!(driver.get(STATUS, 1), [0], "request {kind}");
}

fn read(driver: &mut Driver, queue: u16, sector: u64) -> Vec<u8> {
    driver.put(DATA, &[0xee; 512]);
    request(driver, queue, VIRTIO_BLK_T_IN, sector, &[(DATA, 512, true)]);
    driver.get(DATA, 512)
}

fn segment(driver: &mut Driver, queue: u16, kind: u32, sector: u64) {
    driver.put(
        SEGMENT,
        &[&sector.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 4]].concat(),
    );
    request(driver, queue, kind, 0, &[(SEGMENT, 16, false)]);
}

impl Subject for Disk {
    type Device = Blk;

    /// `writeback`
    const WRITABLE: &'static [Range<u64>] = &[Range { start: 32, end: 33 }];

    fn new() -> Self {
        let image = TempFile::new().unwrap();
        let all: Vec<u8> = (0..SECTORS).flat_map(sector).collect();
        image.as_file().write_all(&all).unwrap();
        Disk {
            worker: Worker::spawn("io0").unwrap(),
            image,
        }
    }

    fn worker(&self) -> &Worker {
        &self.worker
    }

    fn device(&mut self) -> Blk {
        let disk = open(DiskOptions {
            lock: Lock::Never,
            ..DiskOptions::raw(self.image.as_path())
        });
        let config = BlkConfig {
            queues: 2,
            ..BlkConfig::new(disk.unwrap())
        };
        Blk::new(config, vec![self.worker.clone()]).unwrap().0
    }

    fn work(&mut self, driver: &mut Driver) {
        for queue in 0..2 {
            assert_eq!(read(driver, queue, 100), sector(100));
            driver.put(DATA, &sector(77));
            request(driver, queue, VIRTIO_BLK_T_OUT, 2000, &[(DATA, 512, false)]);
            assert_eq!(read(driver, queue, 2000), sector(77));
            request(driver, queue, VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, true)]);
            if driver.features & (1 << VIRTIO_BLK_F_FLUSH) != 0 {
                request(driver, queue, VIRTIO_BLK_T_FLUSH, 0, &[]);
            }
            if driver.features & (1 << VIRTIO_BLK_F_DISCARD) != 0 {
                segment(driver, queue, VIRTIO_BLK_T_DISCARD, 1992);
            }
            if driver.features & (1 << VIRTIO_BLK_F_WRITE_ZEROES) != 0 {
                segment(driver, queue, VIRTIO_BLK_T_WRITE_ZEROES, 2000);
                assert_eq!(read(driver, queue, 2000), [0; 512]);
            }
        }
    }

    fn load(&mut self, driver: &mut Driver) {
        for i in 0..LOAD {
            for queue in 0..2 {
                let part = 0x1000 * (2 * i + u64::from(queue));
                let (header, data, status) = (HEADERS + part, DATA + part, HEADERS + part + 16);
                put_header(driver, header, VIRTIO_BLK_T_IN, i);
                driver.put(status, &[0xee]);
                driver.put(data, &[0xee; 512]);
                driver.offer(
                    queue,
                    &[(header, 16, false), (data, 512, true), (status, 1, true)],
                );
                driver.ring(queue);
            }
        }
    }

    fn finish(&mut self, driver: &mut Driver) {
        for queue in 0..2 {
            let mut heads: Vec<_> = (0..LOAD).map(|_| driver.wait(queue)).collect();
            assert_eq!(driver.used(queue), None);
            heads.sort_unstable();
            heads.dedup();
            assert_eq!(heads.len(), LOAD as usize);
            assert!(heads.iter().all(|(_, len)| *len == 513), "{heads:?}");
            for i in 0..LOAD {
                let part = 0x1000 * (2 * i + u64::from(queue));
                assert_eq!(driver.get(DATA + part, 512), sector(i));
                assert_eq!(driver.get(HEADERS + part + 16, 1), [0]);
            }
        }
    }
}

super::suite!(Disk);
