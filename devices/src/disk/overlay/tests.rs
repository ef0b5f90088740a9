use vm_memory::GuestAddress;
use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::memory::Memory;

const SIZE: u64 = 1 << 20;

/// A file whose byte at `i` is `i / 512`.
fn base() -> (TempFile, Vec<u8>) {
    let content: Vec<u8> = (0..SIZE).map(|i| (i / 512) as u8).collect();
    let file = TempFile::new().unwrap();
    std::io::Write::write_all(&mut file.as_file(), &content).unwrap();
    (file, content)
}

fn raw(file: &TempFile) -> Arc<Raw> {
    let file = File::open(file.as_path()).unwrap();
    Arc::new(Raw::new("base".into(), file, true, false, Lock::Never, false).unwrap())
}

fn overlay(base: &TempFile, upper: &TempFile, temporary: bool) -> Result<Overlay> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(upper.as_path())
        .unwrap();
    Overlay::new(
        raw(base),
        "upper".into(),
        file,
        temporary,
        false,
        Lock::Never,
        false,
    )
}

fn buffer(len: usize) -> GuestBuffer {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    GuestBuffer::new(Arc::new(memory), vec![(GuestAddress(8), len)]).unwrap()
}

fn write(disk: &Overlay, offset: u64, data: &[u8]) {
    let buffer = buffer(data.len());
    buffer.write(data).unwrap();
    let write = DiskOp::Write {
        offset,
        durable: false,
    };
    assert_eq!(disk.execute(write, &buffer).unwrap() as usize, data.len());
}

fn read(disk: &Overlay, offset: u64, len: usize) -> Vec<u8> {
    let buffer = buffer(len);
    buffer.fill(0xee).unwrap();
    assert_eq!(
        disk.execute(DiskOp::Read { offset }, &buffer).unwrap() as usize,
        len
    );
    let mut data = vec![0; len];
    buffer.read(&mut data).unwrap();
    data
}

fn zeroes(disk: &Overlay, offset: u64, len: u64) {
    let zeroes = DiskOp::WriteZeroes {
        offset,
        len,
        unmap: true,
        durable: false,
    };
    disk.execute(zeroes, &buffer(0)).unwrap();
}

#[test]
fn what_is_written_is_read_and_the_base_stays() {
    let ((lower, mut expected), upper) = (base(), TempFile::new().unwrap());
    let disk = overlay(&lower, &upper, true).unwrap();
    // Whole granules, parts of one, parts of two, the first and the last sector.
    let writes = [
        (8192, 8192),
        (512, 512),
        (20480 + 3584, 1024),
        (512, 1024),
        (0, 512),
        (SIZE - 512, 512),
        (100 * 512, 300 * 512),
    ];
    for (i, (offset, len)) in writes.into_iter().enumerate() {
        let data = vec![0x80 + i as u8; len];
        write(&disk, offset, &data);
        expected[offset as usize..offset as usize + len].copy_from_slice(&data);
        assert_eq!(read(&disk, 0, SIZE as usize), expected, "write {i}");
    }
    for (offset, len) in [(40960 + 512, 512), (49152, 4096), (57344 + 1024, 12288)] {
        zeroes(&disk, offset, len);
        expected[offset as usize..(offset + len) as usize].fill(0);
        assert_eq!(read(&disk, 0, SIZE as usize), expected, "{offset}");
    }
    assert_eq!(std::fs::read(lower.as_path()).unwrap(), base().1);
    assert_eq!(read(&disk, 5 * 512, 512), expected[5 * 512..6 * 512]);
}

#[test]
fn after_a_crash_what_was_flushed_is_there() {
    let ((lower, mut expected), upper) = (base(), TempFile::new().unwrap());
    let disk = overlay(&lower, &upper, false).unwrap();
    write(&disk, 4096, &[0xaa; 4096]);
    write(&disk, 512, &[0xbb; 512]);
    disk.execute(DiskOp::Flush, &buffer(0)).unwrap();
    write(&disk, 40960, &[0xcc; 4096]);
    expected[4096..8192].fill(0xaa);
    expected[512..1024].fill(0xbb);

    // The other one sees the file as a crash would leave it: nobody closed anything.
    let after = overlay(&lower, &upper, false).unwrap();
    assert_eq!(read(&after, 0, SIZE as usize), expected);

    disk.execute(DiskOp::Flush, &buffer(0)).unwrap();
    expected[40960..45056].fill(0xcc);
    let after = overlay(&lower, &upper, false).unwrap();
    assert_eq!(read(&after, 0, SIZE as usize), expected);
    let durable = DiskOp::WriteZeroes {
        offset: 0,
        len: SIZE,
        unmap: false,
        durable: true,
    };
    after.execute(durable, &buffer(0)).unwrap();
    let after = overlay(&lower, &upper, false).unwrap();
    assert_eq!(read(&after, 0, SIZE as usize), vec![0; SIZE as usize]);
}

#[test]
fn an_overlay_is_not_taken_for_another_bases() {
    let (lower, upper) = (base().0, TempFile::new().unwrap());
    drop(overlay(&lower, &upper, false).unwrap());
    lower.as_file().set_len(SIZE + 4096).unwrap();
    assert!(matches!(
        overlay(&lower, &upper, false),
        Err(Error::DiskRefused { .. })
    ));
    let other = TempFile::new().unwrap();
    other.as_file().set_len(SIZE).unwrap();
    assert!(matches!(
        overlay(&lower, &other, false),
        Err(Error::DiskRefused { .. })
    ));
}

#[test]
fn a_grown_overlay_reads_zeroes_beyond_its_base() {
    let ((lower, _), upper) = (base(), TempFile::new().unwrap());
    lower.as_file().set_len(SIZE + 512).unwrap();
    let disk = overlay(&lower, &upper, false).unwrap();
    assert_eq!(disk.resize(Some(SIZE + 16384)).unwrap(), SIZE + 16384);
    assert!(disk.resize(Some(SIZE)).is_err());
    assert_eq!(read(&disk, SIZE - 512, 16384 + 512)[512..], vec![0; 16384]);
    write(&disk, SIZE + 8192 + 512, &[1; 512]);
    disk.execute(DiskOp::Flush, &buffer(0)).unwrap();

    let disk = overlay(&lower, &upper, false).unwrap();
    assert_eq!(disk.size(), SIZE + 16384);
    assert_eq!(read(&disk, SIZE + 8192, 1536)[512..1024], [1; 512]);
}

#[test]
fn concurrent_writes_to_parts_of_one_granule_lose_nothing() {
    let ((lower, _), upper) = (base(), TempFile::new().unwrap());
    let disk = overlay(&lower, &upper, true).unwrap();
    std::thread::scope(|threads| {
        for part in 0..8u64 {
            let disk = &disk;
            threads.spawn(move || {
                for granule in 0..SIZE / GRANULE {
                    write(disk, granule * GRANULE + part * 512, &[part as u8 + 1; 512]);
                }
            });
        }
    });
    let expected: Vec<u8> = (0..SIZE).map(|i| (i / 512 % 8) as u8 + 1).collect();
    assert_eq!(read(&disk, 0, SIZE as usize), expected);
}

#[test]
fn bits_are_set_and_runs_found_across_words() {
    let mut map = Map::new(1 << 30);
    map.set(3, 3);
    map.set(60, 200);
    map.set(262_143, 262_144);
    for granule in [59, 60, 63, 64, 127, 128, 199, 200, 262_142, 262_143] {
        let expected = (60..200).contains(&granule) || granule == 262_143;
        assert_eq!(map.has(granule), expected, "{granule}");
    }
    let g = GRANULE;
    // (offset, length) -> (above, run)
    let table = [
        ((0, 512), (false, 512)),
        ((0, g * 100), (false, g * 60)),
        ((59 * g + 512, g), (false, g - 512)),
        ((60 * g + 512, 300 * g), (true, 140 * g - 512)),
        ((200 * g, 4 * g), (false, 4 * g)),
    ];
    for ((offset, len), expected) in table {
        assert_eq!(map.run(offset, len), expected, "{offset} {len}");
    }
    let pages: Vec<u64> = map.take_dirty().into_iter().map(|(page, _)| page).collect();
    assert_eq!(pages, [0, 7]);
    assert!(map.take_dirty().is_empty());
}

#[test]
fn another_process_goes_on_with_the_layer_as_it_was_left() {
    let (base, content) = base();
    let upper = TempFile::new().unwrap();
    let ours = overlay(&base, &upper, true).unwrap();
    write(&ours, 8192, &[1; 4096]);
    let [_, layer] = &ours.files().unwrap()[..] else {
        panic!("an image and a layer");
    };
    let name = "theirs".to_owned();
    let layer = layer.try_clone().unwrap();
    let theirs = Overlay::new(raw(&base), name, layer, true, false, Lock::Never, true).unwrap();
    // Until it is theirs, it is ours to write.
    write(&ours, 16384, &[2; 4096]);
    ours.hand_over().unwrap();
    theirs.lock().unwrap();
    drop(ours);
    assert_eq!(read(&theirs, 8192, 4096), [1; 4096]);
    assert_eq!(read(&theirs, 16384, 4096), [2; 4096]);
    assert_eq!(read(&theirs, 0, 8192), content[..8192]);
}
