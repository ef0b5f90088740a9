use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Condvar;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempdir::TempDir;
use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::disk::{Backend, DiskOp, DiskOptions, Engine as DiskEngine, Pool, Topology, open, over};
use crate::disk::{Format, Lock, OverlayFile};
use crate::driver::{BUFFERS, Driver, MEMORY, NEXT, Over, WRITE, over_both_transports};
use crate::memory::GuestBuffer;
use crate::ratelimit::Rate;
use crate::state::TransportState;

/// Descriptors: address, length, whether the device writes.
type Parts<'a> = &'a [(u64, u32, bool)];

const HEADER: u64 = BUFFERS;
const SEGMENT: u64 = BUFFERS + 0x100;
const STATUS: u64 = BUFFERS + 0x200;
const DATA: u64 = BUFFERS + 0x1000;
const SIZE: usize = 4 << 20;
const ALL: u64 = 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_CONFIG_WCE
    | 1 << VIRTIO_BLK_F_DISCARD
    | 1 << VIRTIO_BLK_F_WRITE_ZEROES;

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i / 512 + seed) * 7 + i) as u8).collect()
}

/// A file of `SIZE` bytes of the pattern 0.
fn image() -> TempFile {
    let image = TempFile::new().unwrap();
    image.as_file().write_all(&pattern(0, SIZE)).unwrap();
    image
}

fn options(image: &TempFile) -> DiskOptions {
    DiskOptions::raw(image.as_path())
}

fn device(config: BlkConfig) -> (Driver, BlkControl) {
    let (blk, control) = Blk::new(config, vec![Worker::spawn("io0").unwrap()]).unwrap();
    (Driver::new(blk), control)
}

fn started(image: &TempFile) -> Driver {
    let (mut driver, _) = device(BlkConfig::new(open(options(image)).unwrap()));
    driver.start(ALL);
    driver
}

fn put_header(driver: &Driver, address: u64, kind: u32, sector: u64) {
    driver.put(address, &kind.to_le_bytes());
    driver.put(address + 4, &[0; 4]);
    driver.put(address + 8, &sector.to_le_bytes());
}

/// One request with this data; gives status and used length.
fn request(driver: &mut Driver, queue: u16, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32) {
    put_header(driver, HEADER, kind, sector);
    driver.put(STATUS, &[0xee]);
    let mut chain = vec![(HEADER, 16, false)];
    chain.extend(data);
    chain.push((STATUS, 1, true));
    let used = driver.request(queue, &chain);
    (driver.get(STATUS, 1)[0], used)
}

fn read(driver: &mut Driver, sector: u64, len: u32) -> Vec<u8> {
    driver.put(DATA, &vec![0xaa; len as usize]);
    assert_eq!(
        request(driver, 0, VIRTIO_BLK_T_IN, sector, &[(DATA, len, true)]),
        (0, len + 1)
    );
    driver.get(DATA, len as usize)
}

fn write(driver: &mut Driver, sector: u64, data: &[u8]) {
    driver.put(DATA, data);
    let part = [(DATA, data.len() as u32, false)];
    assert_eq!(request(driver, 0, VIRTIO_BLK_T_OUT, sector, &part), (0, 1));
}

fn segment(driver: &mut Driver, kind: u32, sector: u64, count: u32, flags: u32) -> (u8, u32) {
    driver.put(SEGMENT, &sector.to_le_bytes());
    driver.put(SEGMENT + 8, &count.to_le_bytes());
    driver.put(SEGMENT + 12, &flags.to_le_bytes());
    request(driver, 0, kind, 0, &[(SEGMENT, 16, false)])
}

fn set_writeback(driver: &Driver, mode: u8) {
    driver.transport.registers().write_config(WRITEBACK, &[mode]);
}

/// How far the device has taken chains in.
fn taken(driver: &Driver) -> u16 {
    match driver.transport.save() {
        TransportState::Mmio(state) => state.queues[0].next_avail,
        TransportState::Pci(state) => state.virtio.queues[0].next_avail,
    }
}

/// What is in the image from `sector` on.
fn in_file(image: &TempFile, sector: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    File::open(image.as_path())
        .unwrap()
        .read_exact_at(&mut data, sector * 512)
        .unwrap();
    data
}

/// Read, write, flush, zeroes, discard, as every way of driving a disk must do them.
fn works_as_a_disk(mut driver: Driver, image: &TempFile) {
    driver.start(ALL);
    assert_eq!(
        read(&mut driver, 3, 4096),
        pattern(0, SIZE)[3 * 512..3 * 512 + 4096]
    );

    write(&mut driver, 9, &pattern(5, 1024));
    assert_eq!(request(&mut driver, 0, VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1));
    assert_eq!(read(&mut driver, 9, 1024), pattern(5, 1024));
    assert_eq!(in_file(image, 9, 1024), pattern(5, 1024));
    assert_eq!(in_file(image, 8, 512), pattern(0, SIZE)[8 * 512..9 * 512]);
    assert_eq!(in_file(image, 11, 512), pattern(0, SIZE)[11 * 512..12 * 512]);

    for (sector, flags) in [(9, 0), (33, 1)] {
        let zeroes = segment(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, sector, 17, flags);
        assert_eq!(zeroes, (0, 1));
        assert_eq!(in_file(image, sector, 17 * 512), vec![0; 17 * 512]);
        let after = sector as usize + 17;
        assert_eq!(
            read(&mut driver, after as u64, 512),
            pattern(0, SIZE)[after * 512..(after + 1) * 512]
        );
    }

    assert_eq!(segment(&mut driver, VIRTIO_BLK_T_DISCARD, 1024, 1024, 0), (0, 1));
    assert_eq!(
        in_file(image, 2048, 512),
        pattern(0, SIZE)[2048 * 512..2049 * 512]
    );
}

#[test]
fn a_disk_in_each_way_of_driving_it_reads_writes_and_forgets() {
    for engine in [DiskEngine::Uring, DiskEngine::Inline, DiskEngine::Pool] {
        let image = image();
        let disk = open(DiskOptions {
            engine,
            ..options(&image)
        })
        .unwrap();
        works_as_a_disk(device(BlkConfig::new(disk)).0, &image);
    }
}

/// What the guest should see after [`writes_all_over`].
fn all_over() -> Vec<u8> {
    let mut expected = pattern(0, SIZE);
    for (i, at) in (0..SIZE - 40960).step_by(123 * 512).enumerate() {
        expected[at..at + 512 * (i % 9 + 1)].copy_from_slice(&pattern(i, 512 * (i % 9 + 1)));
    }
    expected[1 << 20..(1 << 20) + 100 * 512].fill(0);
    expected[(3 << 20) + 512..(3 << 20) + 1024].fill(0);
    expected
}

/// Writes and zeroes on many places of a disk that begins as pattern 0, then flushes.
fn writes_all_over(driver: &mut Driver) {
    for (i, at) in (0..SIZE - 40960).step_by(123 * 512).enumerate() {
        write(driver, at as u64 / 512, &pattern(i, 512 * (i % 9 + 1)));
    }
    for (sector, count, flags) in [(2048, 100, 1), (6145, 1, 0)] {
        let zeroes = segment(driver, VIRTIO_BLK_T_WRITE_ZEROES, sector, count, flags);
        assert_eq!(zeroes, (0, 1));
    }
    assert_eq!(request(driver, 0, VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1));
}

fn reads_all(driver: &mut Driver) -> Vec<u8> {
    let half = SIZE as u64 / 2 / 512;
    let mut all = read(driver, 0, SIZE as u32 / 2);
    all.extend(read(driver, half, SIZE as u32 / 2));
    all
}

fn qemu_img(arguments: &[&str]) {
    let run = std::process::Command::new("qemu-img")
        .args(arguments)
        .output()
        .expect("qemu-img is installed");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "qemu-img {arguments:?}: {said}");
}

#[test]
fn a_qcow2_disk_holds_what_the_guest_wrote_as_qemu_reads_it() {
    let directory = TempDir::new().unwrap();
    let path = |name| directory.as_path().join(name).to_str().unwrap().to_owned();
    let raw = image();
    let raw = raw.as_path().to_str().unwrap();
    // As most are made, compressed, with small and with large clusters; the last through O_DIRECT.
    let table: [(&[&str], bool); 5] = [
        (&[], false),
        (&["-c"], false),
        (&["-o", "cluster_size=512"], false),
        (&["-o", "cluster_size=2M"], false),
        (&["-o", "compat=0.10"], true),
    ];
    for (arguments, direct) in table {
        let qcow2 = path("disk.qcow2");
        let mut convert = vec!["convert", "-f", "raw", "-O", "qcow2"];
        convert.extend(arguments);
        qemu_img(&[&convert[..], &[raw, &qcow2]].concat());
        let disk = open(DiskOptions {
            format: Format::Qcow2 { backing: false },
            direct,
            ..DiskOptions::raw(&qcow2)
        })
        .unwrap();
        let (mut driver, _) = device(BlkConfig::new(disk));
        driver.start(ALL);
        writes_all_over(&mut driver);
        assert_eq!(reads_all(&mut driver), all_over(), "{arguments:?}");
        let discard = segment(&mut driver, VIRTIO_BLK_T_DISCARD, 0, 1024, 0);
        assert_eq!(discard, (0, 1));
        driver.transport.pause().unwrap();
        drop(driver);

        qemu_img(&["check", "-f", "qcow2", &qcow2]);
        let back = path("back.raw");
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &qcow2, &back]);
        let back = std::fs::read(back).unwrap();
        assert_eq!(back[512 * 1024..], all_over()[512 * 1024..], "{arguments:?}");
    }
}

#[test]
fn whoever_takes_an_unlocked_disk_over_sees_what_was_never_flushed() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("disk.qcow2");
    qemu_img(&["create", "-f", "qcow2", path.to_str().unwrap(), "4M"]);
    let open = || {
        open(DiskOptions {
            format: Format::Qcow2 { backing: false },
            ..DiskOptions::raw(&path)
        })
    };
    let (mut here, control) = device(BlkConfig::new(open().unwrap()));
    here.start(ALL);
    write(&mut here, 100, &pattern(1, 4096));
    assert!(matches!(open(), Err(Error::DiskLocked { .. })));

    here.transport.pause().unwrap();
    control.disk().unlock().unwrap();

    let (mut there, _) = device(BlkConfig::new(open().unwrap()));
    there.start(ALL);
    assert_eq!(read(&mut there, 100, 4096), pattern(1, 4096));
    assert!(control.disk().lock().is_err());
}

#[test]
fn an_overlay_takes_all_writes_and_its_base_none() {
    let directory = TempDir::new().unwrap();
    let base = image();
    let qcow2 = directory.as_path().join("base.qcow2");
    let qcow2 = qcow2.to_str().unwrap();
    let raw = base.as_path().to_str().unwrap();
    qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", raw, qcow2]);
    for direct in [false, true] {
        for (path, format) in [(raw, Format::Raw), (qcow2, Format::Qcow2 { backing: false })] {
            let before = std::fs::read(path).unwrap();
            let disk = open(DiskOptions {
                format,
                direct,
                overlay: Some(OverlayFile::Temporary(directory.as_path().into())),
                ..DiskOptions::raw(path)
            })
            .unwrap();
            let (mut driver, _) = device(BlkConfig::new(disk));
            driver.start(ALL);
            writes_all_over(&mut driver);
            assert_eq!(reads_all(&mut driver), all_over(), "{path} {direct}");
            assert!(before == std::fs::read(path).unwrap(), "{path} has changed");
        }
    }
}

#[test]
fn with_o_direct_the_guest_may_still_use_any_memory_and_any_sector() {
    for engine in [DiskEngine::Uring, DiskEngine::Inline, DiskEngine::Pool] {
        let image = image();
        image.as_file().sync_all().unwrap();
        let disk = open(DiskOptions {
            engine,
            direct: true,
            ..options(&image)
        })
        .unwrap();
        let (mut driver, _) = device(BlkConfig::new(disk));
        works_as_a_disk(
            {
                driver.start(ALL);
                // Odd addresses, odd pieces, and more than goes through the bounce buffer at once.
                let data = pattern(9, 700 * 1024);
                driver.put(DATA + 1, &data[..1111]);
                driver.put(DATA + 0x10_0003, &data[1111..]);
                let parts = [
                    (DATA + 1, 1111, false),
                    (DATA + 0x10_0003, data.len() as u32 - 1111, false),
                ];
                assert_eq!(request(&mut driver, 0, VIRTIO_BLK_T_OUT, 5001, &parts), (0, 1));
                assert_eq!(in_file(&image, 5001, data.len()), data);
                for (sector, near) in [(5000, 5000), (5001 + 1400, 6401)] {
                    assert_eq!(
                        in_file(&image, sector, 512),
                        pattern(0, SIZE)[near * 512..(near + 1) * 512]
                    );
                }
                let parts = [
                    (DATA + 0x20_0007, 2223, true),
                    (DATA + 0x30_0001, data.len() as u32 - 2223, true),
                ];
                let used = data.len() as u32 + 1;
                assert_eq!(request(&mut driver, 0, VIRTIO_BLK_T_IN, 5001, &parts), (0, used));
                assert_eq!(driver.get(DATA + 0x20_0007, 2223), data[..2223]);
                assert_eq!(driver.get(DATA + 0x30_0001, data.len() - 2223), data[2223..]);
                driver
            },
            &image,
        );
    }
}

#[test]
fn the_serial_number_is_told() {
    let image = image();
    let (mut driver, _) = device(BlkConfig {
        serial: "ledger-root".into(),
        ..BlkConfig::new(open(options(&image)).unwrap())
    });
    driver.start(0);
    for (room, used) in [(20, 21), (4, 5), (64, 20)] {
        driver.put(DATA, &[0xaa; 64]);
        let answer = request(&mut driver, 0, VIRTIO_BLK_T_GET_ID, 0, &[(DATA, room, true)]);
        assert_eq!(answer, (0, used));
        let mut expected = b"ledger-root\0\0\0\0\0\0\0\0\0".to_vec();
        expected.truncate(room as usize);
        assert_eq!(driver.get(DATA, expected.len()), expected);
    }
}

#[test]
fn a_driver_is_told_what_to_discard_at_once() {
    let image = image();
    let disk = open(options(&image)).unwrap();
    let told = |granularity| {
        let config = BlkConfig {
            block_size: Some((512, 4096)),
            discard_granularity: granularity,
            ..BlkConfig::new(Arc::clone(&disk))
        };
        let (blk, _) = Blk::new(config, vec![Worker::spawn("io0").unwrap()]).unwrap();
        // discard_sector_alignment (§5.2.4), in sectors.
        let mut sectors = [0; 4];
        blk.read_config(44, &mut sectors);
        u32::from_le_bytes(sectors)
    };
    assert_eq!(told(None), 8);
    assert_eq!(told(Some(1 << 20)), 2048);
}

#[test]
fn a_configuration_that_cannot_be_is_refused() {
    let image = image();
    let disk = open(options(&image)).unwrap();
    let workers = vec![Worker::spawn("io0").unwrap()];
    let config = || BlkConfig::new(Arc::clone(&disk));
    let table = [
        BlkConfig {
            serial: "a".repeat(21),
            ..config()
        },
        BlkConfig {
            serial: "größe".into(),
            ..config()
        },
        BlkConfig {
            queues: 0,
            ..config()
        },
        BlkConfig {
            queues: 65,
            ..config()
        },
        BlkConfig {
            block_size: Some((1000, 4096)),
            ..config()
        },
        BlkConfig {
            block_size: Some((8192, 8192)),
            ..config()
        },
        BlkConfig {
            discard_granularity: Some(1000),
            ..config()
        },
        BlkConfig {
            block_size: Some((4096, 4096)),
            discard_granularity: Some(512),
            ..config()
        },
    ];
    for config in table {
        assert!(matches!(
            Blk::new(config, workers.clone()),
            Err(Error::DiskRefused { .. })
        ));
    }
    assert!(Blk::new(config(), Vec::new()).is_err());
}

#[test]
fn the_configuration_space_says_what_the_disk_is() {
    let image = image();
    let (driver, _) = device(BlkConfig {
        queues: 3,
        ..BlkConfig::new(open(options(&image)).unwrap())
    });
    let number = |at, len| {
        let bytes = driver.config_bytes(at, len);
        bytes
            .iter()
            .rev()
            .fold(0u64, |value, &byte| value << 8 | u64::from(byte))
    };
    assert_eq!(number(0, 8), SIZE as u64 / 512);
    assert_eq!(number(8, 4) * number(12, 4), (4 * 254) << 20);
    assert_eq!(number(20, 4), 512);
    assert_eq!(512 << number(24, 1), 4096);
    assert_eq!(number(32, 1), 1);
    assert_eq!(number(34, 2), 3);
    assert_eq!((number(36, 4), number(40, 4), number(44, 4)), (1 << 21, 1, 8));
    assert_eq!((number(48, 4), number(52, 4), number(56, 1)), (1 << 16, 1, 1));
    assert_ne!(driver.offered() & 1 << VIRTIO_BLK_F_MQ, 0);
}

#[test]
fn every_queue_serves_and_a_disabled_one_is_no_trouble() {
    let image = image();
    let config = BlkConfig {
        queues: 4,
        ..BlkConfig::new(open(options(&image)).unwrap())
    };
    let workers = vec![Worker::spawn("io0").unwrap(), Worker::spawn("io1").unwrap()];
    let (blk, control) = Blk::new(config, workers).unwrap();
    let mut driver = Driver::new(blk);
    driver.start(1 << VIRTIO_BLK_F_MQ);
    for queue in 0..4u16 {
        let sector = u64::from(queue);
        let answer = request(&mut driver, queue, VIRTIO_BLK_T_IN, sector, &[(DATA, 512, true)]);
        assert_eq!(answer, (0, 513));
        let at = usize::from(queue) * 512;
        assert_eq!(driver.get(DATA, 512), pattern(0, SIZE)[at..at + 512]);
    }
    assert_eq!(control.counters().read.operations.load(Ordering::Relaxed), 4);
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let image = image();
    let disk = open(DiskOptions {
        read_only: true,
        ..options(&image)
    })
    .unwrap();
    let (mut driver, control) = device(BlkConfig::new(disk));
    assert_ne!(driver.offered() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(driver.offered() & 1 << VIRTIO_BLK_F_DISCARD, 0);
    driver.start(1 << VIRTIO_BLK_F_RO | 1 << VIRTIO_BLK_F_FLUSH);
    let write = [(DATA, 512, false)];
    assert_eq!(request(&mut driver, 0, VIRTIO_BLK_T_OUT, 0, &write), (1, 1));
    assert_eq!(segment(&mut driver, VIRTIO_BLK_T_DISCARD, 0, 8, 0), (2, 1));
    assert_eq!(in_file(&image, 0, 4096), pattern(0, SIZE)[..4096]);
    assert_eq!(control.counters().refused.load(Ordering::Relaxed), 2);
}

#[test]
fn a_hostile_chain_is_answered_and_the_next_request_works() {
    let image = image();
    let mut driver = started(&image);
    put_header(&driver, HEADER, VIRTIO_BLK_T_IN, 0);
    let outside = MEMORY;
    let table: &[(Parts, Option<u8>, u32)] = &[
        // No status byte at all, or none in memory.
        (&[(HEADER, 16, false)], None, 0),
        (&[(HEADER, 16, false), (outside, 1, true)], None, 0),
        (&[(HEADER, 0, false), (STATUS, 0, true)], None, 0),
        // Data outside memory, or half outside.
        (
            &[(HEADER, 16, false), (outside, 512, true), (STATUS, 1, true)],
            Some(1),
            0,
        ),
        (
            &[(HEADER, 16, false), (MEMORY - 256, 512, true), (STATUS, 1, true)],
            Some(1),
            0,
        ),
        // Wrong direction, no data.
        (
            &[(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)],
            Some(1),
            1,
        ),
        (&[(HEADER, 16, false), (STATUS, 1, true)], Some(1), 1),
    ];
    for (row, (chain, status, used)) in table.iter().enumerate() {
        driver.put(STATUS, &[0xee]);
        assert_eq!(driver.request(0, chain), *used, "row {row}");
        assert_eq!(driver.get(STATUS, 1)[0], status.unwrap_or(0xee), "row {row}");
    }
    // A chain that bites its tail, wholly writable.
    driver.descriptor(0, 200, DATA, 16, WRITE | NEXT, 201);
    driver.descriptor(0, 201, DATA, 16, WRITE | NEXT, 200);
    driver.make_available(0, 200);
    driver.ring(0);
    assert_eq!(driver.wait(0), (200, 0));

    assert_eq!(read(&mut driver, 1, 512), pattern(0, SIZE)[512..1024]);
    assert_eq!(driver.status() & 0x40, 0);
}

#[test]
fn an_indirect_table_is_a_chain() {
    const INDIRECT: u16 = 4;
    let image = image();
    let mut driver = started(&image);
    put_header(&driver, HEADER, VIRTIO_BLK_T_IN, 2);
    let mut table = Vec::new();
    for (address, len, flags, next) in [
        (HEADER, 16u32, NEXT, 1u16),
        (DATA, 512, WRITE | NEXT, 2),
        (STATUS, 1, WRITE, 0),
    ] {
        table.extend(address.to_le_bytes());
        table.extend(len.to_le_bytes());
        table.extend(flags.to_le_bytes());
        table.extend(next.to_le_bytes());
    }
    driver.put(DATA + 0x8000, &table);
    driver.descriptor(0, 77, DATA + 0x8000, 48, INDIRECT, 0);
    driver.make_available(0, 77);
    driver.ring(0);
    assert_eq!(driver.wait(0), (77, 513));
    assert_eq!(driver.get(DATA, 512), pattern(0, SIZE)[1024..1536]);
    // A table that is cut off in the middle, and one that points nowhere.
    for (address, len) in [(DATA + 0x8000, 32), (u64::MAX - 15, 48), (DATA + 0x8000, 47)] {
        driver.descriptor(0, 77, address, len, INDIRECT, 0);
        driver.make_available(0, 77);
        driver.ring(0);
        assert_eq!(driver.wait(0), (77, 0), "{address:#x} {len}");
    }
}

#[test]
fn a_batch_costs_one_interrupt() {
    let image = image();
    let disk = open(DiskOptions {
        engine: DiskEngine::Pool,
        ..options(&image)
    })
    .unwrap();
    let (mut driver, control) = device(BlkConfig::new(disk));
    driver.start(0);
    // Otherwise the worker, which looks at its queue when it starts, may find a part of them.
    driver.transport.pause().unwrap();
    put_header(&driver, HEADER, VIRTIO_BLK_T_GET_ID, 0);
    for i in 0..50 {
        let status = STATUS + i;
        driver.offer(0, &[(HEADER, 16, false), (DATA, 20, true), (status, 1, true)]);
    }
    driver.transport.resume().unwrap();
    for _ in 0..50 {
        driver.wait(0);
    }
    // Stopping waits until the worker is done with the batch.
    driver.transport.pause().unwrap();
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(control.counters().refused.load(Ordering::Relaxed), 0);
}

/// A disk whose reads wait until they are let go, and fail if told to.
struct Held {
    state: Mutex<HeldState>,
    changed: Condvar,
}

#[derive(Default)]
struct HeldState {
    waiting: usize,
    open: bool,
    answer: Option<std::io::ErrorKind>,
    short: bool,
    durable: Vec<bool>,
}

impl Held {
    fn new() -> Arc<Held> {
        Arc::new(Held {
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn change(&self, act: impl FnOnce(&mut HeldState)) {
        act(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    fn wait_for(&self, waiting: usize) {
        let state = self.state.lock().unwrap();
        let _state = self.changed.wait_while(state, |s| s.waiting < waiting).unwrap();
    }
}

impl Backend for Held {
    fn name(&self) -> &str {
        "held"
    }
    fn size(&self) -> u64 {
        1 << 20
    }
    fn read_only(&self) -> bool {
        false
    }
    fn topology(&self) -> Topology {
        Topology {
            physical: 512,
            alignment: 0,
            minimum: 0,
            optimal: 0,
        }
    }
    fn execute(&self, op: DiskOp, buffer: &GuestBuffer) -> std::io::Result<u32> {
        if let DiskOp::Write { durable, .. } = op {
            self.state.lock().unwrap().durable.push(durable);
        }
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.changed.notify_all();
        state = self.changed.wait_while(state, |s| !s.open).unwrap();
        if let Some(kind) = state.answer {
            return Err(kind.into());
        }
        Ok(buffer.len() as u32 - u32::from(state.short))
    }
    fn read_bytes(&self, _offset: u64, _data: &mut [u8]) -> std::io::Result<()> {
        Ok(())
    }
    fn resize(&self, len: Option<u64>) -> Result<u64> {
        Ok(len.unwrap_or(1 << 20))
    }
    fn lock(&self) -> Result<()> {
        Ok(())
    }
    fn unlock(&self) -> Result<()> {
        Ok(())
    }
    fn files(&self) -> Result<Vec<std::fs::File>> {
        Ok(Vec::new())
    }
    fn hand_over(&self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn stopping_a_busy_device_waits_for_the_disk_and_answers_all_that_was_taken_in() {
    let held = Held::new();
    let (mut driver, _) = device(BlkConfig::new(over(held.clone(), Pool::new())));
    driver.start(ALL);
    put_header(&driver, HEADER, VIRTIO_BLK_T_IN, 0);
    let mut heads = Vec::new();
    for i in 0..20 {
        driver.put(STATUS + i, &[0xee]);
        heads.push(driver.offer(
            0,
            &[(HEADER, 16, false), (DATA, 512, true), (STATUS + i, 1, true)],
        ));
    }
    driver.ring(0);
    held.wait_for(1);
    assert_eq!(driver.used(0), None);
    let transport = Arc::clone(&driver.transport);
    let stopping = std::thread::spawn(move || transport.pause().unwrap());

    held.change(|s| s.open = true);
    stopping.join().unwrap();

    let mut answered: Vec<u16> = std::iter::from_fn(|| driver.used(0))
        .map(|(head, _)| head)
        .collect();
    answered.sort_unstable();
    heads.sort_unstable();
    let taken = taken(&driver);
    assert_eq!(answered.len(), usize::from(taken));
    // What was not taken in is served after going on.
    driver.transport.resume().unwrap();
    while answered.len() < heads.len() {
        answered.push(driver.wait(0).0);
    }
    answered.sort_unstable();
    assert_eq!(answered, heads);
    assert_eq!(driver.get(STATUS, 20), vec![0; 20]);
}

#[test]
fn a_device_that_goes_lets_its_disk_go() {
    let image = image();
    let worker = Worker::spawn("io0").unwrap();
    for _ in 0..2 {
        let disk = open(options(&image)).unwrap();
        let (blk, control) = Blk::new(BlkConfig::new(disk), vec![worker.clone()]).unwrap();
        let mut driver = Driver::new(blk);
        driver.start(ALL);
        assert_eq!(read(&mut driver, 0, 512), pattern(0, 512));
        drop((driver, control));
    }
}

#[test]
fn a_failing_and_a_short_disk_are_reported() {
    let held = Held::new();
    held.change(|s| {
        s.open = true;
        s.answer = Some(std::io::ErrorKind::StorageFull);
    });
    let (mut driver, control) = device(BlkConfig::new(over(held.clone(), Pool::new())));
    driver.start(ALL);
    let data = [(DATA, 512, false)];
    assert_eq!(request(&mut driver, 0, VIRTIO_BLK_T_OUT, 0, &data), (1, 1));
    held.change(|s| {
        s.answer = None;
        s.short = true;
    });
    let data = [(DATA, 512, true)];
    assert_eq!(request(&mut driver, 0, VIRTIO_BLK_T_IN, 0, &data), (1, 0));
    let counters = control.counters();
    assert_eq!(counters.write.errors.load(Ordering::Relaxed), 1);
    assert_eq!(counters.read.errors.load(Ordering::Relaxed), 1);
    assert_eq!(counters.read.operations.load(Ordering::Relaxed), 0);
}

#[test]
fn a_write_is_durable_unless_the_driver_can_flush_and_chose_write_back() {
    // (cache, features accepted, what the driver writes to `writeback`, durable)
    let flush = 1 << VIRTIO_BLK_F_FLUSH;
    let choose = flush | 1 << VIRTIO_BLK_F_CONFIG_WCE;
    let table = [
        (Cache::WriteBack, 0, None, true),
        (Cache::WriteBack, flush, None, false),
        (Cache::WriteBack, choose, None, false),
        (Cache::WriteBack, choose, Some(0), true),
        (Cache::WriteThrough, flush, None, true),
        (Cache::WriteThrough, choose, None, true),
        (Cache::WriteThrough, choose, Some(1), false),
    ];
    for (row, (cache, features, chosen, durable)) in table.into_iter().enumerate() {
        let held = Held::new();
        held.change(|s| s.open = true);
        let (mut driver, _) = device(BlkConfig {
            cache,
            ..BlkConfig::new(over(held.clone(), Pool::new()))
        });
        driver.start(features);
        if let Some(mode) = chosen {
            set_writeback(&driver, mode);
            assert_eq!(driver.config_bytes(WRITEBACK, 1), [mode]);
        }
        request(&mut driver, 0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, false)]);
        assert_eq!(held.state.lock().unwrap().durable, [durable], "row {row}");
        driver.write(0x70, 0);
        let initial = u8::from(cache == Cache::WriteBack);
        assert_eq!(driver.config_bytes(WRITEBACK, 1), [initial], "row {row}");
    }
}

#[test]
fn a_rate_limit_delays_and_loses_nothing() {
    let image = image();
    let (mut driver, control) = device(BlkConfig {
        limits: Limits {
            bytes: None,
            operations: Some(Rate {
                per_second: 1,
                burst: 3,
            }),
        },
        ..BlkConfig::new(open(options(&image)).unwrap())
    });
    driver.start(ALL);
    put_header(&driver, HEADER, VIRTIO_BLK_T_IN, 0);
    for i in 0..80 {
        driver.offer(
            0,
            &[(HEADER, 16, false), (DATA, 512, true), (STATUS + i, 1, true)],
        );
    }
    driver.ring(0);
    for _ in 0..3 {
        driver.wait(0);
    }
    // Held back, yet not taken in: it can stop and go on.
    driver.transport.pause().unwrap();
    let taken = taken(&driver);
    assert!(taken < 80, "{taken}");
    driver.transport.resume().unwrap();

    control.set_limits(Limits::default());
    for _ in 3..80 {
        driver.wait(0);
    }
    assert_eq!(control.counters().read.operations.load(Ordering::Relaxed), 80);
}

#[test]
fn a_disk_grows_while_the_guest_runs() {
    let image = image();
    let (mut driver, control) = device(BlkConfig::new(open(options(&image)).unwrap()));
    driver.start(ALL);
    let sectors = SIZE as u64 / 512;
    let data = [(DATA, 512, true)];
    assert_eq!(request(&mut driver, 0, VIRTIO_BLK_T_IN, sectors, &data), (1, 0));
    let before = driver.read(0xfc);
    driver.interrupts();

    assert_eq!(
        control.resize(Some(SIZE as u64 + 4096)).unwrap(),
        SIZE as u64 + 4096
    );

    assert_ne!(driver.read(0xfc), before);
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.read(0x60) & 2, 2);
    assert_eq!(driver.config_bytes(0, 8), (sectors + 8).to_le_bytes());
    write(&mut driver, sectors + 7, &pattern(3, 512));
    assert_eq!(in_file(&image, sectors + 7, 512), pattern(3, 512));
    assert!(control.resize(Some(SIZE as u64)).is_err());

    // Grown from outside while paused: the driver hears of it when it goes on.
    driver.transport.pause().unwrap();
    image.as_file().set_len(SIZE as u64 + 8192).unwrap();
    driver.interrupts();
    assert_eq!(control.resize(None).unwrap(), SIZE as u64 + 8192);
    assert_eq!(driver.interrupts(), 0);
    driver.transport.resume().unwrap();
    assert_eq!(driver.interrupts(), 1);
}

fn a_saved_device_goes_on_elsewhere_where_it_stood(over: Over) {
    let image = image();
    let unlocked = || {
        let disk = open(DiskOptions {
            lock: Lock::Never,
            ..options(&image)
        });
        Blk::new(BlkConfig::new(disk.unwrap()), vec![Worker::spawn("io0").unwrap()]).unwrap()
    };
    let mut driver = Driver::over(over, unlocked().0);
    driver.start(ALL);
    set_writeback(&driver, 0);
    write(&mut driver, 0, &pattern(1, 512));
    driver.transport.pause().unwrap();
    // Offered while nobody serves: it must not be lost.
    put_header(&driver, HEADER, VIRTIO_BLK_T_IN, 0);
    driver.put(STATUS, &[0xee]);
    let head = driver.offer(0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    let json = serde_json::to_string(&driver.transport.save()).unwrap();
    assert!(json.contains(r#""writeback":false"#), "{json}");

    driver.move_to(unlocked().0, serde_json::from_str(&json).unwrap());

    assert_eq!(driver.wait(0), (head, 513));
    assert_eq!(driver.get(DATA, 512), pattern(1, 512));
    assert_eq!(driver.config_bytes(WRITEBACK, 1), [0]);
    assert!(unlocked().0.restore(DeviceState::Stateless).is_err());
}

fn a_disk_reads_and_writes(over: Over) {
    let image = image();
    let disk = open(options(&image)).unwrap();
    let (blk, _) = Blk::new(BlkConfig::new(disk), vec![Worker::spawn("io0").unwrap()]).unwrap();
    works_as_a_disk(Driver::over(over, blk), &image);
}

over_both_transports! {
    a_saved_device_goes_on_elsewhere_where_it_stood
    a_disk_reads_and_writes
}

#[test]
fn what_a_read_brought_is_marked_dirty() {
    use vm_memory::bitmap::Bitmap;
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let image = image();
    let mut driver = started(&image);
    let far = DATA + 0x10_0000;
    let dirty = |driver: &Driver| {
        let (region, offset) = driver.memory.to_region_addr(GuestAddress(far)).unwrap();
        region.bitmap().dirty_at(offset.0 as usize)
    };
    assert!(!dirty(&driver));
    request(&mut driver, 0, VIRTIO_BLK_T_IN, 0, &[(far, 512, true)]);
    assert!(dirty(&driver));
    assert_eq!(
        driver.memory.read_obj::<u8>(GuestAddress(far)).unwrap(),
        pattern(0, 1)[0]
    );
}

mod failing;
