//! What a source of a migration sends of disks, to a file and to a layer over one: all of it is written where it says, or
//! refused.
#![no_main]

use std::io::{Seek, Write};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use nacelle_devices::disk::{Copier, Disk, DiskOptions, Lock, OverlayFile, Pool, Source, open};
use nacelle_vmm::migrate::fuzzing::Disks;
use nacelle_vmm::migrate::wire::ZEROES;
use vmm_sys_util::tempfile::TempFile;

/// Of each disk.
const LEN: usize = 160 << 10;

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Raw { flags: u8, payload: &'a [u8] },
    Data { disk: u8, sector: u16, sectors: u8, byte: u8, odd: i8 },
    Zeroes { disk: u8, offset: u32, len: u32 },
}

impl Piece<'_> {
    /// Flags and payload.
    fn frame(&self) -> (u16, Vec<u8>) {
        let header = |disk: u8, offset: u64| {
            let place = u128::from(disk % 3) | u128::from(offset) << 64;
            place.to_le_bytes().to_vec()
        };
        match *self {
            Piece::Raw { flags, payload } => (u16::from(flags), payload.to_vec()),
            Piece::Data { disk, sector, sectors, byte, odd } => {
                let mut frame = header(disk, u64::from(sector % 512) * 512);
                let len = (usize::from(sectors) * 512).saturating_add_signed(odd.into());
                frame.extend((0..len).map(|at| byte.wrapping_add(at as u8)));
                (0, frame)
            }
            Piece::Zeroes { disk, offset, len } => {
                let mut frame = header(disk, offset.into());
                frame.extend(u64::from(len).to_le_bytes());
                (ZEROES, frame)
            }
        }
    }
}

/// What must be on a disk, `None` where a write failed halfway.
type Content = Vec<Option<u8>>;

/// Does to `disks` what a frame that was taken, or was not, says.
fn apply(disks: &mut [Content], flags: u16, payload: &[u8], taken: bool) {
    let Some((header, rest)) = payload.split_first_chunk::<16>() else {
        return assert!(!taken);
    };
    let place = u128::from_le_bytes(*header);
    let (number, offset) = (place as u32 as usize, (place >> 64) as u64);
    let zeroes = (flags & ZEROES != 0).then(|| rest.first_chunk().map(|len| u64::from_le_bytes(*len)));
    let len = match zeroes {
        None => rest.len() as u64,
        Some(Some(len)) => len,
        Some(None) => return assert!(!taken),
    };
    let end = offset.checked_add(len).filter(|end| *end <= LEN as u64);
    let (Some(content), Some(end)) = (disks.get_mut(number), end) else {
        return assert!(!taken);
    };
    for (at, byte) in content[offset as usize..end as usize].iter_mut().enumerate() {
        *byte = taken.then(|| if zeroes.is_some() { 0 } else { rest[at] });
    }
}

static POOL: LazyLock<Pool> = LazyLock::new(Pool::new);
static FILES: LazyLock<[TempFile; 2]> =
    LazyLock::new(|| [(); 2].map(|()| TempFile::new_in("/dev/shm".as_ref()).unwrap()));

fn fresh(number: usize, overlay: Option<OverlayFile>) -> Arc<dyn Disk> {
    let mut file = FILES[number].as_file().try_clone().unwrap();
    file.rewind().unwrap();
    file.write_all(&[number as u8; LEN]).unwrap();
    let options = DiskOptions {
        source: Source::File {
            name: "image".into(),
            file,
        },
        overlay,
        lock: Lock::Never,
        pool: POOL.clone(),
        ..DiskOptions::raw("")
    };
    open(options).unwrap()
}

fuzz_target!(|pieces: Vec<Piece>| {
    let disks = [
        fresh(0, None),
        fresh(1, Some(OverlayFile::Temporary("/dev/shm".into()))),
    ];
    let mut expected: Vec<Content> = vec![vec![Some(0); LEN], vec![Some(1); LEN]];
    let mut coming = Disks::default();
    disks.iter().for_each(|disk| coming.add(&**disk).unwrap());
    for piece in pieces.iter().take(32) {
        let (flags, payload) = piece.frame();
        let taken = coming.take(flags, &payload);
        apply(&mut expected, flags, &payload, taken.is_ok());
    }
    for (disk, expected) in disks.iter().zip(&expected) {
        let mut content = vec![0; LEN];
        Copier::new(&**disk).unwrap().read(0, &mut content).unwrap();
        let same = |(byte, expected): (&u8, &Option<u8>)| expected.is_none_or(|expected| *byte == expected);
        assert!(content.iter().zip(expected).all(same));
    }
});
