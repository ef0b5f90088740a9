use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use vm_memory::GuestAddress;
use vmm_sys_util::tempdir::TempDir;
use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::Error;
use crate::memory::{GuestBuffer, Memory};

fn image(len: usize) -> TempFile {
    let image = TempFile::new().unwrap();
    image.as_file().write_all(&vec![7; len]).unwrap();
    image
}

#[test]
fn a_disk_that_is_written_has_one_user_and_one_that_is_read_has_many() {
    let image = image(4096);
    let options = || DiskOptions::raw(image.as_path());
    let reader = || DiskOptions {
        read_only: true,
        ..options()
    };
    let locked = |result: Result<()>| {
        let path = image.as_path().display().to_string();
        matches!(result, Err(Error::DiskLocked { disk }) if disk == path)
    };
    let writer = open(options()).unwrap();
    assert!(locked(open(options()).map(drop)));
    assert!(locked(open(reader()).map(drop)));

    writer.unlock().unwrap();
    let (first, second) = (open(reader()).unwrap(), open(reader()).unwrap());
    assert!(locked(writer.lock()));
    assert!(locked(open(options()).map(drop)));

    first.unlock().unwrap();
    drop(second);
    writer.lock().unwrap();
    assert!(locked(first.lock()));
    drop(writer);
    first.lock().unwrap();
    // Whoever locks elsewhere does not ask for one.
    open(DiskOptions {
        lock: Lock::Never,
        ..options()
    })
    .unwrap();
}

#[test]
fn who_has_heard_of_the_last_operation_may_give_the_disk_to_the_next() {
    let image = image(4096);
    let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap());
    for time in 0..500 {
        let disk = open(DiskOptions {
            engine: Engine::Pool,
            ..DiskOptions::raw(image.as_path())
        });
        let disk = disk.unwrap_or_else(|error| panic!("time {time}: {error}"));
        let mut queue = disk.open_queue(1).unwrap();
        let buffer = GuestBuffer::new(Arc::clone(&memory), Vec::new()).unwrap();
        queue.submit(0, DiskOp::Flush, buffer).unwrap();
        queue.commit().unwrap();
        while queue.reap().is_none() {}
    }
}

#[test]
fn only_whole_sectors_are_a_disk() {
    for (len, disk) in [(0, 0), (511, 0), (512, 512), (1025, 1024)] {
        let image = image(len);
        assert_eq!(open(DiskOptions::raw(image.as_path())).unwrap().len(), disk);
    }
}

#[test]
fn what_is_no_image_is_refused_with_its_name() {
    let missing = open(DiskOptions::raw("/nowhere/disk.img")).map(drop).unwrap_err();
    assert_eq!(missing.to_string(), "cannot open disk /nowhere/disk.img");
    let null = open(DiskOptions::raw("/dev/null")).map(drop).unwrap_err();
    assert_eq!(
        null.to_string(),
        "disk /dev/null: neither a file nor a block device"
    );
}

#[test]
fn a_disk_may_come_as_an_open_file() {
    let image = image(4096);
    let file = File::options()
        .read(true)
        .write(true)
        .open(image.as_path())
        .unwrap();
    let disk = open(DiskOptions {
        source: Source::File {
            name: "handed over".into(),
            file,
        },
        ..DiskOptions::raw("")
    })
    .unwrap();
    assert_eq!((disk.name(), disk.len()), ("handed over", 4096));
}

/// Runs qemu-img (Debian: qemu-utils), whose images and whose verdict are not ours.
fn qemu_img(arguments: &[&str]) {
    let run = std::process::Command::new("qemu-img")
        .args(arguments)
        .output()
        .expect("qemu-img is installed");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "qemu-img {arguments:?}: {said}");
}

fn path(directory: &TempDir, name: &str) -> String {
    directory.as_path().join(name).to_str().unwrap().to_owned()
}

fn refusal(options: DiskOptions) -> String {
    let error = open(options).map(drop).unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string);
    format!("{error}: {}", source.unwrap_or_default())
}

#[test]
fn other_files_of_an_image_are_not_opened_unasked() {
    let directory = TempDir::new().unwrap();
    let (base, over) = (path(&directory, "base.qcow2"), path(&directory, "over.qcow2"));
    qemu_img(&["create", "-f", "qcow2", &base, "1M"]);
    qemu_img(&["create", "-f", "qcow2", "-F", "qcow2", "-b", &base, &over]);
    let options = |backing| DiskOptions {
        format: Format::Qcow2 { backing },
        ..DiskOptions::raw(&over)
    };
    assert!(refusal(options(false)).contains("has a backing file"));
    assert_eq!(open(options(true)).unwrap().len(), 1 << 20);

    let (external, data) = (path(&directory, "external.qcow2"), path(&directory, "data"));
    qemu_img(&[
        "create",
        "-f",
        "qcow2",
        "-o",
        &format!("data_file={data}"),
        &external,
        "1M",
    ]);
    let options = |backing| DiskOptions {
        format: Format::Qcow2 { backing },
        ..DiskOptions::raw(&external)
    };
    assert!(refusal(options(true)).contains("in another file"));
    // Nor of an image behind it.
    qemu_img(&[
        "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &external, &over,
    ]);
    let options = DiskOptions {
        format: Format::Qcow2 { backing: true },
        ..DiskOptions::raw(&over)
    };
    assert!(refusal(options).contains("open qcow2 disk"));
}

#[test]
fn a_backing_chain_that_bites_its_tail_ends() {
    let directory = TempDir::new().unwrap();
    let (a, b) = (path(&directory, "a"), path(&directory, "b"));
    qemu_img(&["create", "-f", "qcow2", &a, "1M"]);
    qemu_img(&["create", "-f", "qcow2", "-F", "qcow2", "-b", &a, &b]);
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &b, &a]);
    let options = DiskOptions {
        format: Format::Qcow2 { backing: true },
        read_only: true,
        ..DiskOptions::raw(&a)
    };
    refusal(options);
}

#[test]
fn detection_is_asked_for_and_never_believed_of_a_raw_disk_that_is_written() {
    let directory = TempDir::new().unwrap();
    let qcow2 = path(&directory, "disk.qcow2");
    qemu_img(&["create", "-f", "qcow2", &qcow2, "1M"]);
    let raw = image(8192);
    let detect = |path: &str, read_only| DiskOptions {
        format: Format::Detect,
        read_only,
        ..DiskOptions::raw(path)
    };
    let raw = raw.as_path().to_str().unwrap();
    assert_eq!(open(detect(&qcow2, false)).unwrap().len(), 1 << 20);
    assert_eq!(open(detect(raw, true)).unwrap().len(), 8192);
    assert!(refusal(detect(raw, false)).contains("raw must be said"));
    // Said to be raw, a qcow2 image is its own bytes.
    assert_ne!(open(DiskOptions::raw(&qcow2)).unwrap().len(), 1 << 20);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let directory = TempDir::new().unwrap();
    let image = image(8192);
    let temporary = Some(OverlayFile::Temporary(directory.as_path().into()));
    let options = DiskOptions {
        overlay: temporary.clone(),
        read_only: true,
        ..DiskOptions::raw(image.as_path())
    };
    assert!(refusal(options).contains("an overlay is for writing"));
    let options = DiskOptions {
        overlay: temporary,
        engine: Engine::Uring,
        ..DiskOptions::raw(image.as_path())
    };
    assert!(refusal(options).contains("io_uring and inline serve raw disks"));
}

#[test]
fn a_shared_disk_has_users_who_share_it_and_no_others() {
    let image = image(4096);
    let shared = || DiskOptions {
        shared: true,
        ..DiskOptions::raw(image.as_path())
    };
    let alone = || open(DiskOptions::raw(image.as_path()));
    let (first, second) = (open(shared()).unwrap(), open(shared()).unwrap());
    assert!(!first.read_only() && !second.read_only());
    assert!(matches!(alone(), Err(Error::DiskLocked { .. })));
    drop((first, second));
    let alone = alone().unwrap();
    assert!(matches!(open(shared()), Err(Error::DiskLocked { .. })));
    drop(alone);
    let directory = TempDir::new().unwrap();
    let layered = DiskOptions {
        overlay: Some(OverlayFile::Temporary(directory.as_path().into())),
        ..shared()
    };
    let Err(Error::DiskRefused { reason, .. }) = open(layered) else {
        panic!("a layer was shared");
    };
    assert_eq!(reason, "only a raw disk without an overlay can be shared");
}

#[test]
fn many_disks_share_a_base_and_a_temporary_overlay_leaves_nothing_behind() {
    let directory = TempDir::new().unwrap();
    let image = image(8192);
    let options = || DiskOptions {
        overlay: Some(OverlayFile::Temporary(directory.as_path().into())),
        ..DiskOptions::raw(image.as_path())
    };
    let (_first, _second) = (open(options()).unwrap(), open(options()).unwrap());
    assert!(matches!(
        open(DiskOptions::raw(image.as_path())),
        Err(Error::DiskLocked { .. })
    ));
    assert_eq!(std::fs::read_dir(directory.as_path()).unwrap().count(), 0);

    let named = path(&directory, "overlay");
    let options = || DiskOptions {
        overlay: Some(OverlayFile::Named(named.clone().into())),
        ..DiskOptions::raw(image.as_path())
    };
    let _third = open(options()).unwrap();
    assert!(matches!(open(options()), Err(Error::DiskLocked { disk }) if disk == named));
}

#[test]
fn a_disk_that_is_handed_over_is_locked_throughout_and_stays_so_when_the_giver_goes() {
    let directory = TempDir::new().unwrap();
    let (raw, qcow2) = (path(&directory, "raw"), path(&directory, "qcow2"));
    std::fs::write(&raw, vec![0; 4096]).unwrap();
    qemu_img(&["create", "-f", "qcow2", &qcow2, "1M"]);
    for (image, format) in [(&raw, Format::Raw), (&qcow2, Format::Qcow2 { backing: false })] {
        let options = || DiskOptions {
            format,
            ..DiskOptions::raw(image)
        };
        let in_use = || matches!(open(options()), Err(Error::DiskLocked { .. }));
        let succeed = |disk: &Arc<dyn Disk>| {
            let file = disk.files().unwrap().remove(0);
            let (name, lock) = (image.clone(), Lock::Later);
            let source = Source::File { name, file };
            open(DiskOptions {
                source,
                lock,
                ..options()
            })
            .unwrap()
        };
        let first = open(options()).unwrap();
        // One that does not come to it, and goes.
        let second = succeed(&first);
        first.hand_over().unwrap();
        first.lock().unwrap();
        second.hand_over().unwrap();
        drop(second);
        assert!(in_use());
        let third = succeed(&first);
        first.hand_over().unwrap();
        third.lock().unwrap();
        drop(first);
        assert!(in_use());
        drop(third);
        assert!(!in_use());
    }
}
