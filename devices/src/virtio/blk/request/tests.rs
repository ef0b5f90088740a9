use super::*;
use crate::driver::{NEXT, WRITE};

/// Descriptors: address, length, whether the device writes.
type Parts<'a> = &'a [(u64, u32, bool)];

/// Where a test's header, segment and data lie.
const HEAD: u64 = 0x1000;
const SEGMENT: u64 = 0x2000;
const DATA: u64 = 0x4000;
const STATUS: u64 = 0x3000;
const END: u64 = 0x1_0000;

const RULES: Rules = Rules {
    sectors: 100,
    read_only: false,
    durable: false,
    max_descriptors: 16,
    max_discard: 64,
    max_write_zeroes: 32,
};

fn memory(kind: u32, sector: u64, segment: (u64, u32, u32)) -> Memory {
    let memory = Memory::from_ranges(&[(GuestAddress(0), END as usize)]).unwrap();
    memory.write_obj(kind, GuestAddress(HEAD)).unwrap();
    memory.write_obj(sector, GuestAddress(HEAD + 8)).unwrap();
    memory.write_obj(segment.0, GuestAddress(SEGMENT)).unwrap();
    memory.write_obj(segment.1, GuestAddress(SEGMENT + 8)).unwrap();
    memory.write_obj(segment.2, GuestAddress(SEGMENT + 12)).unwrap();
    memory
}

/// A chain of `(address, length, device writes)`.
fn chain(parts: &[(u64, u32, bool)]) -> Vec<Descriptor> {
    let last = parts.len().saturating_sub(1);
    parts
        .iter()
        .enumerate()
        .map(|(i, &(address, len, write))| {
            let flags = if write { WRITE } else { 0 } | if i == last { 0 } else { NEXT };
            Descriptor::new(address, len, flags, 0)
        })
        .collect()
}

fn parse_io(kind: u32, sector: u64, parts: &[(u64, u32, bool)], rules: &Rules) -> Result<Request, Refusal> {
    parse(&memory(kind, sector, (0, 0, 0)), chain(parts).into_iter(), rules)
}

fn ioerr(used: u32) -> Refusal {
    Refusal::Status {
        code: IOERR,
        status: GuestAddress(STATUS),
        used,
    }
}

#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    let read = Work::Disk(DiskOp::Read { offset: 7 * 512 });
    let data = |ranges: &[(u64, usize)]| -> Vec<Range> {
        ranges.iter().map(|&(a, l)| (GuestAddress(a), l)).collect()
    };
    let table: &[(Parts, &[(u64, usize)])] = &[
        // As Linux does it.
        (
            &[(HEAD, 16, false), (DATA, 512, true), (STATUS, 1, true)],
            &[(DATA, 512)],
        ),
        // The header in three pieces.
        (
            &[
                (HEAD, 1, false),
                (HEAD + 1, 9, false),
                (HEAD + 10, 6, false),
                (DATA, 512, true),
                (STATUS, 1, true),
            ],
            &[(DATA, 512)],
        ),
        // The status is the last byte of the data's descriptor.
        (
            &[(HEAD, 16, false), (STATUS - 512, 513, true)],
            &[(STATUS - 512, 512)],
        ),
        // A sector over two descriptors, the second with the status in it.
        (
            &[(HEAD, 16, false), (DATA, 500, true), (STATUS - 12, 13, true)],
            &[(DATA, 500), (STATUS - 12, 12)],
        ),
        // Empty descriptors mean nothing.
        (
            &[
                (HEAD, 0, false),
                (HEAD, 16, false),
                (DATA, 0, true),
                (DATA, 512, true),
                (STATUS, 1, true),
                (DATA, 0, true),
            ],
            &[(DATA, 512)],
        ),
    ];
    for (row, (parts, expected)) in table.iter().enumerate() {
        let request = parse_io(VIRTIO_BLK_T_IN, 7, parts, &RULES).unwrap();
        let wanted = Request {
            work: read,
            data: data(expected),
            len: 512,
            status: GuestAddress(STATUS),
            writable: 512,
        };
        assert_eq!(request, wanted, "row {row}");
    }
}

#[test]
fn a_write_may_share_its_descriptor_with_the_header() {
    let memory = memory(VIRTIO_BLK_T_OUT, 1, (0, 0, 0));
    let parts = chain(&[(HEAD, 16 + 1024, false), (STATUS, 1, true)]);

    let request = parse(&memory, parts.into_iter(), &RULES).unwrap();

    let work = Work::Disk(DiskOp::Write {
        offset: 512,
        durable: false,
    });
    assert_eq!(request.work, work);
    assert_eq!(request.data, vec![(GuestAddress(HEAD + 16), 1024)]);
}

#[test]
fn ranges_outside_the_disk_and_odd_lengths_are_errors() {
    // (sector, length, accepted)
    let table = [
        (0, 512, true),
        (99, 512, true),
        (0, 100 * 512, true),
        (99, 1024, false),
        (100, 512, false),
        (u64::MAX, 512, false),
        (u64::MAX / 512, 512, false),
        (1 << 55, 512, false),
        (0, 511, false),
        (0, 513, false),
        (0, 0, false),
    ];
    for (sector, len, accepted) in table {
        for (kind, write) in [(VIRTIO_BLK_T_IN, true), (VIRTIO_BLK_T_OUT, false)] {
            let parts = [(HEAD, 16, false), (DATA, len, write), (STATUS, 1, true)];
            let result = parse_io(kind, sector, &parts, &RULES);
            if accepted {
                assert_eq!(result.unwrap().len, len, "{sector} {len}");
            } else {
                let used = u32::from(!write || len == 0);
                assert_eq!(result.unwrap_err(), ioerr(used), "{sector} {len}");
            }
        }
    }
}

#[test]
fn a_chain_without_a_status_byte_cannot_be_answered() {
    let table: &[Parts] = &[
        &[],
        &[(HEAD, 16, false)],
        &[(HEAD, 16, false), (DATA, 512, false)],
        &[(HEAD, 16, false), (STATUS, 0, true)],
        &[(HEAD, 16, false), (END, 1, true)],
        &[(HEAD, 16, false), (u64::MAX, 2, true)],
    ];
    for parts in table {
        assert_eq!(
            parse_io(VIRTIO_BLK_T_IN, 0, parts, &RULES).unwrap_err(),
            Refusal::Unanswerable,
            "{parts:?}"
        );
    }
    // It breaks off: the last descriptor says that there is another.
    let broken = vec![
        Descriptor::new(HEAD, 16, NEXT, 1),
        Descriptor::new(STATUS, 1, WRITE | NEXT, 2),
    ];
    let memory = memory(VIRTIO_BLK_T_FLUSH, 0, (0, 0, 0));
    assert_eq!(
        parse(&memory, broken.into_iter(), &RULES).unwrap_err(),
        Refusal::Unanswerable
    );
    // Longer than any queue.
    let endless = std::iter::repeat_with(|| Descriptor::new(STATUS, 1, WRITE | NEXT, 0));
    assert_eq!(
        parse(&memory, endless, &RULES).unwrap_err(),
        Refusal::Unanswerable
    );
}

#[test]
fn wrong_directions_short_headers_and_unreadable_memory_are_errors() {
    let table: &[(u32, Parts, u32)] = &[
        // Data that the device should write is not writable, and the other way round.
        (
            VIRTIO_BLK_T_IN,
            &[(HEAD, 16, false), (DATA, 512, false), (STATUS, 1, true)],
            1,
        ),
        (
            VIRTIO_BLK_T_OUT,
            &[(HEAD, 16, false), (DATA, 512, true), (STATUS, 1, true)],
            0,
        ),
        // Both at once.
        (
            VIRTIO_BLK_T_IN,
            &[
                (HEAD, 16, false),
                (DATA, 512, false),
                (DATA, 512, true),
                (STATUS, 1, true),
            ],
            0,
        ),
        // What is read lies behind what is written.
        (
            VIRTIO_BLK_T_OUT,
            &[(HEAD, 16, false), (STATUS, 1, true), (DATA, 512, false)],
            1,
        ),
        // No header, half a header, a header nowhere.
        (VIRTIO_BLK_T_FLUSH, &[(STATUS, 1, true)], 1),
        (VIRTIO_BLK_T_FLUSH, &[(HEAD, 15, false), (STATUS, 1, true)], 1),
        (VIRTIO_BLK_T_FLUSH, &[(END - 8, 16, false), (STATUS, 1, true)], 1),
        (
            VIRTIO_BLK_T_FLUSH,
            &[(u64::MAX - 3, 16, false), (STATUS, 1, true)],
            1,
        ),
        // No segment, half a segment, two segments.
        (VIRTIO_BLK_T_DISCARD, &[(HEAD, 16, false), (STATUS, 1, true)], 1),
        (
            VIRTIO_BLK_T_DISCARD,
            &[(HEAD, 16, false), (SEGMENT, 8, false), (STATUS, 1, true)],
            1,
        ),
        (
            VIRTIO_BLK_T_WRITE_ZEROES,
            &[(HEAD, 16, false), (SEGMENT, 32, false), (STATUS, 1, true)],
            1,
        ),
        // More than the kernel moves at once.
        (
            VIRTIO_BLK_T_OUT,
            &[(HEAD, 16, false), (DATA, u32::MAX, false), (STATUS, 1, true)],
            1,
        ),
    ];
    for (row, (kind, parts, used)) in table.iter().enumerate() {
        assert_eq!(
            parse_io(*kind, 0, parts, &RULES).unwrap_err(),
            ioerr(*used),
            "row {row}"
        );
    }
}

#[test]
fn discard_and_write_zeroes_are_held_to_their_limits() {
    let discard = |offset, len| Ok(Work::Disk(DiskOp::Discard { offset, len }));
    let zeroes = |offset, len, unmap| {
        Ok(Work::Disk(DiskOp::WriteZeroes {
            offset,
            len,
            unmap,
            durable: false,
        }))
    };
    let (d, z) = (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES);
    let table = [
        (d, (8, 64, 0), discard(4096, 32768)),
        (d, (0, 0, 0), Ok(Work::Nothing)),
        (d, (8, 65, 0), Err(IOERR)),
        (d, (90, 11, 0), Err(IOERR)),
        (d, (u64::MAX, 2, 0), Err(IOERR)),
        (d, (8, 1, 1), Err(UNSUPP)),
        (d, (8, 1, 2), Err(UNSUPP)),
        (z, (8, 32, 0), zeroes(4096, 16384, false)),
        (z, (8, 32, 1), zeroes(4096, 16384, true)),
        (z, (8, 33, 0), Err(IOERR)),
        (z, (8, 1, 3), Err(UNSUPP)),
        (z, (100, 0, 0), Ok(Work::Nothing)),
        (z, (101, 0, 0), Err(IOERR)),
    ];
    for (kind, segment, expected) in table {
        let memory = memory(kind, 0, segment);
        let parts = chain(&[(HEAD, 16, false), (SEGMENT, 16, false), (STATUS, 1, true)]);
        let result = match parse(&memory, parts.into_iter(), &RULES) {
            Ok(request) => Ok(request.work),
            Err(Refusal::Status { code, used: 1, .. }) => Err(code),
            Err(other) => unreachable!("{other:?}"),
        };
        assert_eq!(result, expected, "{kind} {segment:?}");
    }
}

#[test]
fn a_read_only_disk_refuses_what_would_change_it() {
    let rules = Rules {
        read_only: true,
        ..RULES
    };
    let write = [(HEAD, 16, false), (DATA, 512, false), (STATUS, 1, true)];
    assert_eq!(
        parse_io(VIRTIO_BLK_T_OUT, 0, &write, &rules).unwrap_err(),
        ioerr(1)
    );
    let segment = [(HEAD, 16, false), (SEGMENT, 16, false), (STATUS, 1, true)];
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert!(matches!(
            parse_io(kind, 0, &segment, &rules),
            Err(Refusal::Status { code: UNSUPP, .. })
        ));
    }
}

#[test]
fn what_the_device_does_not_know_is_unsupported() {
    for kind in [2, 3, 7, 14, 15, 0x8000_0000, u32::MAX] {
        let parts = [(HEAD, 16, false), (DATA, 512, true), (STATUS, 1, true)];
        let refusal = Refusal::Status {
            code: UNSUPP,
            status: GuestAddress(STATUS),
            used: 0,
        };
        assert_eq!(parse_io(kind, 0, &parts, &RULES).unwrap_err(), refusal, "{kind}");
    }
}

#[test]
fn write_through_makes_each_write_durable() {
    let rules = Rules {
        durable: true,
        ..RULES
    };
    let parts = [(HEAD, 16, false), (DATA, 512, false), (STATUS, 1, true)];
    let work = parse_io(VIRTIO_BLK_T_OUT, 0, &parts, &rules).unwrap().work;
    let expected = DiskOp::Write {
        offset: 0,
        durable: true,
    };
    assert_eq!(work, Work::Disk(expected));
}

#[test]
fn no_chain_whatsoever_leads_outside_the_disk_or_the_rules() {
    // Linear congruence: any row can be had again.
    let mut state = 1u64;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let memory = memory(0, 0, (0, 0, 0));
    let (mut executed, mut refused) = (0, 0);
    for row in 0..200_000 {
        let kind = [0u32, 1, 4, 8, 11, 13, 2][random(7) as usize];
        memory.write_obj(kind, GuestAddress(HEAD)).unwrap();
        let sector = [random(110), u64::MAX - random(4)][usize::from(random(8) == 0)];
        memory.write_obj(sector, GuestAddress(HEAD + 8)).unwrap();
        memory.write_obj(sector, GuestAddress(SEGMENT)).unwrap();
        memory
            .write_obj(random(70) as u32, GuestAddress(SEGMENT + 8))
            .unwrap();
        memory
            .write_obj(random(3) as u32, GuestAddress(SEGMENT + 12))
            .unwrap();
        let count = random(6) + 1;
        let chain: Vec<Descriptor> = (0..count)
            .map(|i| {
                let at = [HEAD, SEGMENT, DATA, END - random(600), u64::MAX - random(20)][random(5) as usize];
                let at = if i == 0 && random(4) != 0 { HEAD } else { at };
                let len = [16, 512, 1, 0, 513, u32::MAX][random(6) as usize];
                let len = if i == 0 && random(4) != 0 { 16 } else { len };
                let write = i > 0 && random(3) != 0;
                let next = i + 1 < count || random(10) == 0;
                let flags = if write { WRITE } else { 0 } | if next { NEXT } else { 0 };
                Descriptor::new(at, len, flags, 0)
            })
            .collect();
        let Ok(request) = parse(&memory, chain.into_iter(), &RULES) else {
            refused += 1;
            continue;
        };
        executed += 1;
        assert!(request.status.0 < END, "row {row}: {request:?}");
        let len: usize = request.data.iter().map(|&(_, len)| len).sum();
        assert_eq!(len, request.len as usize, "row {row}: {request:?}");
        let end = match request.work {
            Work::Disk(DiskOp::Read { offset } | DiskOp::Write { offset, .. }) => offset + len as u64,
            Work::Disk(DiskOp::Discard { offset, len } | DiskOp::WriteZeroes { offset, len, .. }) => {
                offset + len
            }
            Work::Disk(DiskOp::Flush) | Work::Id | Work::Nothing => 0,
        };
        assert!(end <= RULES.sectors * SECTOR, "row {row}: {request:?}");
    }
    assert!(executed > 1000 && refused > 1000, "{executed} {refused}");
}
