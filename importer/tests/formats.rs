//! Images as QEMU's tools make them become the disk that QEMU's tools see in them; what is hostile is refused.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "clippy's leave for tests does not reach helpers of integration tests"
)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nacelle_importer::import::{copy, import};
use nacelle_importer::target::Target;

/// Room of the volumes here.
const ROOM: u64 = 64 << 20;

/// A folder with a disk in it: data, holes, things that compress and things that do not, to an odd end.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create(dir.path().join("disk.raw")).unwrap();
        let mut noise = 1_u32;
        let mut random = vec![0; 3 << 20];
        for byte in &mut random {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (noise >> 24) as u8;
        }
        file.write_all(&random).unwrap();
        file.write_all_at(&[0x5a; 300_000], 7 << 20).unwrap();
        for at in 0..40 {
            file.write_all_at(b"here", (9 << 20) + at * 70_001).unwrap();
        }
        file.write_all_at(&random[..1 << 20], 20 << 20).unwrap();
        file.set_len((24 << 20) + 512).unwrap();
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Has `qemu-img convert` make an image.
    fn made(&self, format: &str, options: &[&str]) -> PathBuf {
        let image = self.path("image");
        let _ = fs::remove_file(&image);
        run(Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", format])
            .args(options)
            .args([self.path("disk.raw"), image.clone()]));
        image
    }

    /// What `qemu-img convert` sees in it.
    fn seen(&self, image: &Path, format: &str) -> Vec<u8> {
        let raw = self.path("seen.raw");
        run(Command::new("qemu-img")
            .args(["convert", "-f", format, "-O", "raw"])
            .args([image, &raw]));
        fs::read(raw).unwrap()
    }

    fn import(&self, image: &Path) -> Result<Vec<u8>, String> {
        self.import_into(image, ROOM)
    }

    fn import_into(&self, image: &Path, room: u64) -> Result<Vec<u8>, String> {
        let disk = self.path("disk.img");
        let mut target = Target::open(&disk, room, false).unwrap();
        let mut stream = File::open(image).unwrap();
        import(&mut stream, &mut target, self.dir.path()).map_err(|error| error.to_string())?;
        Ok(fs::read(disk).unwrap())
    }

    /// It is refused, and this is said of it.
    fn refuses(&self, image: &Path, why: &str) {
        let error = self.import(image).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The same disk, and nothing but zeros after it.
fn same(found: &[u8], wanted: &[u8], what: &str) {
    assert_eq!(found.len() as u64, ROOM, "{what}");
    let (disk, rest) = found.split_at(wanted.len());
    let differs = disk
        .iter()
        .zip(wanted)
        .position(|(found, wanted)| found != wanted);
    assert_eq!(differs, None, "{what}: where the disk differs");
    assert!(
        rest.iter().all(|byte| *byte == 0),
        "{what}: what follows the disk"
    );
}

#[test]
fn every_format_becomes_the_disk_that_qemu_sees_in_it() {
    let place = Place::new();
    #[rustfmt::skip]
    let formats: &[(&str, &[&str])] = &[
        ("raw", &[]),
        ("qcow2", &[]),
        ("qcow2", &["-c"]),
        ("qcow2", &["-c", "-o", "compression_type=zstd"]),
        ("qcow2", &["-o", "cluster_size=512"]),
        ("qcow2", &["-o", "cluster_size=2M,compat=0.10"]),
        ("vmdk", &["-o", "subformat=monolithicSparse"]),
        ("vmdk", &["-o", "subformat=monolithicSparse,zeroed_grain=on"]),
        ("vmdk", &["-o", "subformat=streamOptimized"]),
        ("vdi", &[]),
        ("vdi", &["-o", "static=on"]),
        ("vpc", &[]),
        ("vpc", &["-o", "force_size=on"]),
        ("vpc", &["-o", "subformat=fixed"]),
        ("vhdx", &[]),
        ("vhdx", &["-o", "block_size=1M"]),
        ("vhdx", &["-o", "subformat=fixed"]),
    ];
    for (format, options) in formats {
        let image = place.made(format, options);
        let found = place
            .import(&image)
            .unwrap_or_else(|error| panic!("{format} {options:?}: {error}"));
        same(
            &found,
            &place.seen(&image, format),
            &format!("{format} {options:?}"),
        );
    }
}

#[test]
fn compression_and_archives_are_taken_off_whatever_the_name_says() {
    let place = Place::new();
    let wanted = fs::read(place.path("disk.raw")).unwrap();
    let image = place.made("qcow2", &[]);
    let bytes = fs::read(&image).unwrap();
    fs::write(place.path("disk.ovf"), "<Envelope/>").unwrap();
    let disk = image.display();
    let shell = |command: &str| {
        run(Command::new("sh")
            .args(["-c", command])
            .current_dir(place.dir.path()));
    };
    shell(&format!("gzip -1 -c {disk} >packed.txt"));
    same(&place.import(&place.path("packed.txt")).unwrap(), &wanted, "gz");
    shell("cat disk.raw | xz -0 -T2 >packed.txt");
    same(
        &place.import(&place.path("packed.txt")).unwrap(),
        &wanted,
        "xz of several blocks",
    );
    shell("tar -cf packed.txt disk.ovf image");
    same(
        &place.import(&place.path("packed.txt")).unwrap(),
        &wanted,
        "tar with a description",
    );
    shell("tar -cf - disk.ovf disk.raw | gzip -1 >packed.txt");
    same(
        &place.import(&place.path("packed.txt")).unwrap(),
        &wanted,
        "raw in tar.gz",
    );
    // Frames one after the other, as parallel compressors make them.
    let frames: Vec<u8> = bytes
        .chunks(1 << 20)
        .flat_map(|part| zstd::encode_all(part, 1).unwrap())
        .collect();
    fs::write(place.path("packed.txt"), frames).unwrap();
    same(
        &place.import(&place.path("packed.txt")).unwrap(),
        &wanted,
        "zst of several frames",
    );
    let cut = fs::read(place.path("packed.txt")).unwrap();
    fs::write(place.path("cut"), &cut[..cut.len() / 2]).unwrap();
    assert!(place.import(&place.path("cut")).is_err());
}

#[test]
fn an_archive_with_holes_in_its_files_is_read_and_one_with_endless_names_is_not() {
    let place = Place::new();
    let wanted = fs::read(place.path("disk.raw")).unwrap();
    let shell = |command: &str| {
        run(Command::new("sh")
            .args(["-c", command])
            .current_dir(place.dir.path()));
    };
    // As Google's images are.
    shell("tar --format=oldgnu -Sczf packed disk.raw");
    same(
        &place.import(&place.path("packed")).unwrap(),
        &wanted,
        "sparse tar.gz",
    );
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    fs::write(place.path("head"), header.as_bytes()).unwrap();
    shell("(cat head; head -c 50000000 /dev/zero) >packed");
    place.refuses(&place.path("packed"), "too much between two of its files");
}

#[test]
fn a_copy_is_the_disk_whatever_its_guest_wrote_to_it() {
    let place = Place::new();
    let image = place.made("qcow2", &[]);
    let disk = place.path("disk.img");
    let mut target = Target::open(&disk, ROOM, false).unwrap();
    copy(&mut File::open(&image).unwrap(), &mut target).unwrap();
    same(
        &fs::read(disk).unwrap(),
        &fs::read(image).unwrap(),
        "a guest's own qcow2",
    );
}

#[test]
fn an_image_that_refers_to_another_file_is_refused() {
    let place = Place::new();
    let image = place.path("child");
    let base = place.made("qcow2", &[]);
    run(Command::new("qemu-img")
        .args(["create", "-f", "qcow2", "-F", "qcow2", "-b"])
        .args([&base, &image]));
    place.refuses(&image, "invalid backing file");
    run(Command::new("qemu-img")
        .args(["create", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd"])
        .arg(&image)
        .arg("1M"));
    place.refuses(&image, "invalid backing file");
    let external = format!("data_file={}", place.path("data").display());
    run(Command::new("qemu-img")
        .args(["create", "-f", "qcow2", "-o", &external])
        .arg(&image)
        .arg("1M"));
    place.refuses(&image, "features that are not supported");
    let base = place.made("vmdk", &[]);
    run(Command::new("qemu-img")
        .args(["create", "-f", "vmdk", "-F", "vmdk", "-b"])
        .args([&base, &image]));
    place.refuses(&image, "invalid backing file");
    let base = place.path("flat.vmdk");
    run(Command::new("qemu-img")
        .args(["create", "-f", "vmdk", "-o", "subformat=monolithicFlat"])
        .arg(&base)
        .arg("1M"));
    place.refuses(&base, "description without its extents");
}

#[test]
fn an_image_of_an_exbibyte_is_refused_by_its_size() {
    let place = Place::new();
    for (format, at, size) in [
        ("qcow2", 24, (1_u64 << 60).to_be_bytes()),
        ("vmdk", 12, (1_u64 << 51).to_le_bytes()),
    ] {
        let image = place.made(format, &[]);
        File::options()
            .write(true)
            .open(&image)
            .unwrap()
            .write_all_at(&size, at)
            .unwrap();
        place.refuses(&image, "virtual image size 1152921504606846976 is larger than");
    }
    let image = place.made("qcow2", &[]);
    let error = place.import_into(&image, 1 << 20).unwrap_err();
    assert!(error.contains("A larger PVC is required"), "{error}");
}

#[test]
fn tables_that_lead_in_circles_or_nowhere_end() {
    let place = Place::new();
    let image = place.made("qcow2", &[]);
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let mut first = [0; 8];
    file.read_exact_at(&mut first, 40).unwrap();
    let table = u64::from_be_bytes(first);
    // The first table is its own second, whose entries are itself.
    file.write_all_at(&(table | 1 << 63).to_be_bytes(), table)
        .unwrap();
    assert_eq!(place.import(&image).unwrap().len() as u64, ROOM);
    file.write_all_at(&(1_u64 << 55).to_be_bytes(), table).unwrap();
    place.refuses(&image, "it ends before its table");
}

#[test]
fn a_bomb_ends_where_the_room_ends() {
    let place = Place::new();
    for command in ["gzip -9", "xz -0", "gzip -1 | gzip -9"] {
        let command = format!("head -c 300000000 /dev/zero | {command} >bomb");
        run(Command::new("sh")
            .args(["-c", &command])
            .current_dir(place.dir.path()));
        place.refuses(&place.path("bomb"), "A larger PVC is required");
    }
    let mut stream = vec![0; 512];
    for _ in 0..5 {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&stream).unwrap();
        stream = gz.finish().unwrap();
    }
    fs::write(place.path("bomb"), stream).unwrap();
    place.refuses(&place.path("bomb"), "packed more than");
}

#[test]
fn a_damaged_image_is_an_error_or_a_disk_and_never_more() {
    let place = Place::new();
    let small = place.path("disk.raw");
    fs::write(&small, [7; 70_000]).unwrap();
    let mut noise = 7_u32;
    let mut random = |below: usize| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 8) as usize % below
    };
    let (mut refused, mut taken) = (0, 0);
    for (format, options) in [
        ("qcow2", "cluster_size=512"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=streamOptimized"),
        ("vdi", "static=off"),
        ("vpc", "subformat=dynamic"),
        ("vhdx", "block_size=1M"),
    ] {
        let image = place.made(format, &["-o", options]);
        let whole = fs::read(&image).unwrap();
        for _ in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..4 {
                // Where headers and tables are.
                let at = random(bytes.len().min(8192));
                bytes[at] = [0, 0xff, 0x80, 1][random(4)];
            }
            if random(4) == 0 {
                bytes.truncate(random(whole.len()));
            }
            fs::write(&image, &bytes).unwrap();
            match place.import_into(&image, 1 << 20) {
                Ok(disk) => {
                    assert_eq!(disk.len(), 1 << 20);
                    taken += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 50 && taken > 50, "{refused} refused, {taken} taken");
}
