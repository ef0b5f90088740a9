//! Machines' files, made in a directory of the test's own: images in a layout, volumes, seeds.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::layout::hex;
use super::*;
use crate::Status;
use crate::convert::{KernelFiles, PullPolicy};

const NAME: &str = "nacelle.local/test:1";

/// The paths that a registry was asked for.
type Asked = Arc<Mutex<Vec<String>>>;

/// How a layer is packed.
#[derive(Clone, Copy)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A test's own directory, and in it a layout that images are put into.
struct Bed {
    root: TempDir,
}

impl Bed {
    fn new() -> Bed {
        Bed {
            root: tempfile::tempdir().unwrap(),
        }
    }

    fn places(&self) -> Places {
        Places {
            images: self.path("images"),
            cache: self.path("cache"),
            scratch: self.path("scratch"),
            puller: Puller::Here,
            volumes: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn blob(&self, content: &[u8]) -> serde_json::Value {
        let digest = hex(&Sha256::digest(content));
        let directory = self.path("images/blobs/sha256");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(&digest), content).unwrap();
        json!({ "digest": format!("sha256:{digest}"), "size": content.len() })
    }

    /// An image of these layers in the layout.
    fn image(&self, layers: &[(Packing, Vec<u8>)]) {
        let kind = |packing| match packing {
            Packing::Plain => "application/vnd.oci.image.layer.v1.tar",
            Packing::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Packing::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        let descriptor = |kind: &str, content: &[u8]| {
            let mut descriptor = self.blob(content);
            descriptor["mediaType"] = kind.into();
            descriptor
        };
        let layers: Vec<_> = layers
            .iter()
            .map(|(packing, archive)| descriptor(kind(*packing), &packed(*packing, archive)))
            .collect();
        let config = descriptor("application/vnd.oci.image.config.v1+json", b"{}");
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let mut entry = descriptor(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        );
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": NAME });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        fs::write(self.path("images/index.json"), index.to_string()).unwrap();
    }

    fn disk(&self) -> Result<DiskConfig> {
        self.backing(Source::Image {
            image: NAME.into(),
            pull: PullPolicy::Never,
            path: None,
        })
    }

    fn backing(&self, source: Source) -> Result<DiskConfig> {
        let mut disks = self.storage(vec![source], Vec::new())?.disks;
        Ok(disks.remove(0))
    }

    fn storage(&self, sources: Vec<Source>, volumes: Vec<VolumeMapping>) -> Result<Storage> {
        let places = Places {
            volumes,
            ..self.places()
        };
        prepare(&plan(sources), &places)
    }
}

fn packed(packing: Packing, archive: &[u8]) -> Vec<u8> {
    match packing {
        Packing::Plain => archive.to_vec(),
        Packing::Gzip => {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(archive).unwrap();
            gzip.finish().unwrap()
        }
        Packing::Zstd => compress_to_vec(archive, CompressionLevel::Fastest),
    }
}

/// A tar archive of files; the names go in as they are, however hostile.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, content) in files {
        append(&mut builder, name, EntryType::Regular, content);
    }
    builder.into_inner().unwrap()
}

fn append(builder: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, content: &[u8]) {
    let mut header = Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

/// A machine with a kernel of the host and these disks.
fn plan(sources: Vec<Source>) -> Plan {
    let yaml = "{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, metadata: {name: a}, spec: {domain: \
                {memory: {guest: 128Mi}, devices: {}}}}";
    let arguments = crate::cli::run_arguments(&["vm.yaml", "--kernel", "/boot/k"]);
    let mut plan = crate::run::read("vm.yaml", yaml, &arguments).unwrap();
    plan.disks = (sources.into_iter().enumerate())
        .map(|(index, source)| Disk {
            name: format!("disk{index}"),
            source,
            read_only: false,
            serial: String::new(),
            boot_order: None,
            cache: Some(CacheMode::WriteBack),
            queues: 1,
            block_size: BlockSize::Usual,
            discard_granularity: None,
            io: Default::default(),
            shared: false,
            on_error: Default::default(),
        })
        .collect();
    plan
}

fn content(disk: &DiskConfig) -> Vec<u8> {
    fs::read(&disk.path).unwrap()
}

fn refusal(result: Result<DiskConfig>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.status(), Status::NotFound);
    error.to_string()
}

#[test]
fn what_lasts_goes_past_the_page_cache_where_its_file_system_can() {
    let here = tempfile::NamedTempFile::new().unwrap();
    let host = |path: &Path| Source::Host {
        path: path.display().to_string(),
        create: None,
    };
    // No file of /proc can be read so.
    let there = Path::new("/proc/version");
    for (source, path, said, chosen) in [
        (host(here.path()), here.path(), None, CacheMode::None),
        (host(there), there, None, CacheMode::WriteThrough),
        (host(there), there, Some(CacheMode::None), CacheMode::None),
        (
            Source::Empty { capacity: 512 },
            here.path(),
            None,
            CacheMode::WriteBack,
        ),
        // That it is not there is told when it is opened.
        (
            host(Path::new("/gone")),
            Path::new("/gone"),
            None,
            CacheMode::None,
        ),
    ] {
        let mut disk = plan(vec![source]).disks.remove(0);
        disk.cache = said;
        assert_eq!(cache(&disk, path), chosen, "{disk:?}");
    }
}

#[test]
fn what_only_a_cluster_has_is_refused() {
    let bed = Bed::new();
    let files = Source::Files {
        kind: FilesKind::ConfigMap,
        label: "cfgdata".into(),
    };
    let seed = |user_data, keys: &[&str]| {
        Source::Seed(Seed {
            kind: crate::convert::SeedKind::NoCloud,
            instance_id: "a.default".into(),
            hostname: "a".into(),
            user_data,
            network_data: None,
            keys: keys.iter().map(|key| key.to_string()).collect(),
        })
    };
    for (source, reason) in [
        (files, "a configMap is the cluster's; nacelle run has none"),
        (
            seed(Some(SeedData::Secret), &[]),
            "give userData or userDataBase64 instead",
        ),
        (
            seed(None, &["ann"]),
            "secret ann is the cluster's; nacelle run has none",
        ),
    ] {
        let error = bed.backing(source).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn a_container_disk_is_the_file_in_disk_however_its_layer_is_packed() {
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let bed = Bed::new();
        bed.image(&[(
            packing,
            archive(&[("./etc/passwd", b"root"), ("./disk/vm.img", b"the disk")]),
        )]);
        let disk = bed.disk().unwrap();
        assert_eq!(content(&disk), b"the disk");
        assert!(disk.ephemeral && disk.format == DiskFormat::Raw);
    }
}

#[test]
fn a_qcow2_image_is_known_by_its_first_bytes() {
    let bed = Bed::new();
    bed.image(&[(Packing::Gzip, archive(&[("disk/vm.qcow2", b"QFI\xfb\0\0\0\x03")]))]);
    assert_eq!(bed.disk().unwrap().format, DiskFormat::Qcow2);
}

#[test]
fn higher_layers_replace_and_delete() {
    let old = (Packing::Gzip, archive(&[("disk/old.img", b"old")]));
    type Files<'a> = &'a [(&'a str, &'a [u8])];
    let cases: [(Files, &str); 4] = [
        (&[("disk/old.img", b"new")], "new"),
        (&[("disk/.wh.old.img", b""), ("disk/new.img", b"new")], "new"),
        (&[("disk/.wh..wh..opq", b""), ("disk/new.img", b"new")], "new"),
        (&[(".wh.other", b"")], "old"),
    ];
    for (upper, expected) in cases {
        let bed = Bed::new();
        bed.image(&[old.clone(), (Packing::Zstd, archive(upper))]);
        assert_eq!(content(&bed.disk().unwrap()), expected.as_bytes(), "{upper:?}");
    }
    let bed = Bed::new();
    bed.image(&[old.clone(), (Packing::Gzip, archive(&[(".wh.disk", b"")]))]);
    assert!(refusal(bed.disk()).contains("no file in /disk"));
    let bed = Bed::new();
    bed.image(&[old, (Packing::Gzip, archive(&[("disk/new.img", b"new")]))]);
    assert!(refusal(bed.disk()).contains("several files in /disk"));
}

#[test]
fn zeroes_take_no_room_and_an_image_is_unpacked_once() {
    let bed = Bed::new();
    let mut image = vec![0; 8 << 20];
    image.extend(b"end");
    bed.image(&[(Packing::Gzip, archive(&[("disk/vm.img", &image)]))]);
    let path = bed.disk().unwrap().path;
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), image.len() as u64);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    assert_eq!(fs::read(&path).unwrap(), image);
    let inode = metadata.ino();
    assert_eq!(fs::metadata(bed.disk().unwrap().path).unwrap().ino(), inode);
}

#[test]
fn a_hostile_image_reaches_nothing_outside_the_cache() {
    for name in ["../outside", "disk/../../outside", "/../outside"] {
        let bed = Bed::new();
        bed.image(&[(Packing::Gzip, archive(&[(name, b"evil"), ("disk/vm.img", b"x")]))]);
        assert!(
            refusal(bed.disk()).contains("a path in it leads out of it"),
            "{name}"
        );
        assert!(!bed.path("outside").exists());
    }
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Char,
        EntryType::Fifo,
    ] {
        let bed = Bed::new();
        let mut builder = Builder::new(Vec::new());
        append(&mut builder, "disk/vm.img", kind, b"");
        bed.image(&[(Packing::Gzip, builder.into_inner().unwrap())]);
        assert!(
            refusal(bed.disk()).contains("is a link or a device, no file"),
            "{kind:?}"
        );
    }
    // An absolute path is one of the image, not of the host.
    let bed = Bed::new();
    bed.image(&[(Packing::Gzip, archive(&[("/disk/vm.img", b"x")]))]);
    assert_eq!(content(&bed.disk().unwrap()), b"x");
}

#[test]
fn damage_is_found_and_nothing_damaged_is_kept() {
    let bed = Bed::new();
    let layer = packed(Packing::Plain, &archive(&[("disk/vm.img", b"good")]));
    bed.image(&[(Packing::Plain, layer.clone())]);
    let blob = bed.path("images/blobs/sha256").join(hex(&Sha256::digest(&layer)));
    let mut damaged = layer.clone();
    damaged[512] = b'b';
    fs::write(&blob, damaged).unwrap();
    assert!(refusal(bed.disk()).contains("does not have the digest"));
    // Cut short, and longer than said.
    fs::write(&blob, &layer[..700]).unwrap();
    refusal(bed.disk());
    fs::write(&blob, &layer).unwrap();
    assert_eq!(content(&bed.disk().unwrap()), b"good");
    let left: Vec<_> = walk(&bed.path("cache"));
    assert_eq!(left.len(), 1, "{left:?}");
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path))
        } else {
            files.push(path)
        }
    }
    files
}

#[test]
fn a_missing_image_says_where_it_was_looked_for() {
    let bed = Bed::new();
    let text = refusal(bed.disk());
    assert!(
        text.contains(NAME) && text.contains("images") && text.contains("--images"),
        "{text}"
    );
}

#[test]
fn claims_are_mapped_by_name() {
    let bed = Bed::new();
    let mapping = |name: &str, path: &str| VolumeMapping {
        name: name.into(),
        path: bed.path(path),
        format: DiskFormat::Raw,
    };
    let claim = |ephemeral| Source::Claim {
        name: "data".into(),
        ephemeral,
    };
    fs::write(bed.path("data.img"), b"x").unwrap();
    fs::create_dir(bed.path("claim")).unwrap();
    fs::write(bed.path("claim/disk.img"), b"y").unwrap();

    let disks = |path: &str| {
        bed.storage(vec![claim(false), claim(true)], vec![mapping("data", path)])
            .unwrap()
            .disks
    };
    assert_eq!(disks("data.img")[0].path, bed.path("data.img"));
    assert_eq!(disks("claim")[0].path, bed.path("claim/disk.img"));
    assert_eq!(
        disks("claim")
            .iter()
            .map(|disk| disk.ephemeral)
            .collect::<Vec<_>>(),
        [false, true]
    );

    let error = bed.storage(vec![claim(false)], Vec::new()).unwrap_err();
    assert!(error.to_string().contains("--volume data=PATH"), "{error}");
    let error = bed
        .storage(
            vec![claim(false)],
            vec![mapping("data", "data.img"), mapping("dtaa", "x")],
        )
        .unwrap_err();
    assert!(
        error.to_string().contains("--volume dtaa: the manifest has no"),
        "{error}"
    );
    assert_eq!(error.status(), Status::Usage);
    let error = bed
        .storage(vec![claim(false)], vec![mapping("data", "absent")])
        .unwrap_err();
    assert_eq!(error.status(), Status::NotFound);
}

#[test]
fn a_host_disk_is_made_once() {
    let bed = Bed::new();
    let path = bed.path("host.img");
    let host = |create| Source::Host {
        path: path.display().to_string(),
        create,
    };
    assert_eq!(bed.backing(host(None)).unwrap_err().status(), Status::NotFound);
    bed.backing(host(Some(1 << 30))).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 30);
    fs::write(&path, b"kept").unwrap();
    bed.backing(host(Some(1 << 30))).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"kept");
}

#[test]
fn what_ends_with_the_machine_has_no_name_while_it_lives() {
    let bed = Bed::new();
    let storage = bed
        .storage(vec![Source::Empty { capacity: 1 << 30 }], Vec::new())
        .unwrap();
    let metadata = fs::metadata(&storage.disks[0].path).unwrap();
    assert_eq!(
        (metadata.len(), metadata.blocks(), metadata.nlink()),
        (1 << 30, 0, 0)
    );
    assert_eq!(fs::read_dir(bed.path("scratch")).unwrap().count(), 0);
    let path = storage.disks[0].path.clone();
    drop(storage);
    assert!(fs::metadata(path).is_err());
}

#[test]
fn the_kernel_comes_out_of_its_image() {
    let bed = Bed::new();
    bed.image(&[(
        Packing::Gzip,
        archive(&[("./boot/vmlinuz", b"kernel"), ("./boot/initrd", b"initrd")]),
    )]);
    let mut plan = plan(Vec::new());
    plan.boot = Boot::Image {
        image: NAME.into(),
        pull: PullPolicy::Never,
        kernel: "/boot/vmlinuz".into(),
        initrd: Some("boot/initrd".into()),
        cmdline: "quiet".into(),
    };
    let boot = prepare(&plan, &bed.places()).unwrap().boot;
    assert_eq!(fs::read(boot.kernel).unwrap(), b"kernel");
    assert_eq!(fs::read(boot.initrd.unwrap()).unwrap(), b"initrd");
    assert_eq!(boot.cmdline, "quiet");
    if let Boot::Image { kernel, .. } = &mut plan.boot {
        *kernel = "/boot/absent".into();
    }
    let error = prepare(&plan, &bed.places()).unwrap_err();
    assert!(
        error.to_string().contains("there is no /boot/absent in it"),
        "{error}"
    );
    plan.boot = Boot::Files(KernelFiles {
        kernel: "/k".into(),
        initrd: None,
        cmdline: String::new(),
    });
    assert_eq!(
        prepare(&plan, &bed.places()).unwrap().boot.kernel,
        Path::new("/k")
    );
}

/// A registry that knows one image, by the paths of the distribution specification, for as long as the process
/// lives. What it was asked for is counted.
fn registry(bed: &Bed, damaged: bool) -> (String, Asked) {
    let mut answers: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(bed.path("images/index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    for blob in walk(&bed.path("images/blobs")) {
        let name = blob.file_name().unwrap().to_str().unwrap().to_owned();
        let mut content = fs::read(&blob).unwrap();
        if format!("sha256:{name}") == digest {
            answers.insert("/v2/disks/test/manifests/1".into(), content);
            continue;
        }
        if damaged {
            content[0] ^= 1;
        }
        answers.insert(format!("/v2/disks/test/blobs/sha256:{name}"), content);
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let (status, body) = match answers.get(&path) {
                Some(body) => ("200 OK", body.clone()),
                None if path == "/v2/" => ("200 OK", Vec::new()),
                None => ("404 Not Found", b"{\"errors\":[]}".to_vec()),
            };
            let kind = "application/vnd.oci.image.manifest.v1+json";
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            let _ = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(&body));
            log.lock().unwrap().push(path);
        }
    });
    (format!("{address}/disks/test:1"), asked)
}

#[test]
fn an_image_is_pulled_from_its_registry_when_it_is_not_there() {
    let source = Bed::new();
    source.image(&[(Packing::Gzip, archive(&[("disk/vm.img", b"pulled")]))]);
    let (image, asked) = registry(&source, false);
    let bed = Bed::new();
    let disk = |pull| {
        bed.backing(Source::Image {
            image: image.clone(),
            pull,
            path: None,
        })
    };
    assert_eq!(content(&disk(PullPolicy::IfNotPresent).unwrap()), b"pulled");
    let count = asked.lock().unwrap().len();
    // It is there now, for whoever does not insist.
    disk(PullPolicy::IfNotPresent).unwrap();
    disk(PullPolicy::Never).unwrap();
    assert_eq!(asked.lock().unwrap().len(), count);
    disk(PullPolicy::Always).unwrap();
    let asked = asked.lock().unwrap();
    assert!(
        asked.len() > count && asked[count..].iter().all(|path| !path.contains("/blobs/")),
        "{asked:?}"
    );
}

#[test]
fn a_registry_that_lies_or_is_silent_gives_nothing() {
    let source = Bed::new();
    source.image(&[(Packing::Gzip, archive(&[("disk/vm.img", b"pulled")]))]);
    let (image, _) = registry(&source, true);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for image in [image, format!("{nobody}/disks/test:1")] {
        let bed = Bed::new();
        let pulled = bed.backing(Source::Image {
            image: image.clone(),
            pull: PullPolicy::IfNotPresent,
            path: None,
        });
        let text = refusal(pulled);
        assert!(text.contains("no registry gives it"), "{text}");
        assert!(!bed.path("images/index.json").exists());
    }
}
