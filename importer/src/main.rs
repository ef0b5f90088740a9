//! `nacelle-importer`: see `--help`.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use nacelle_importer::progress::Progress;
use nacelle_importer::source::{Checksum, Source, http, registry, s3, upload};
use nacelle_importer::{archive, import, target::Target};

/// How often it says how far it is.
const EVERY: Duration = Duration::from_secs(1);

/// Fills a volume with a disk
#[derive(Clone, Parser)]
#[command(
    version,
    after_help = "Examples:\n  nacelle-importer --to /data/disk.img --size 10737418240 https://example.org/disk.qcow2.xz\n  nacelle-importer --to /dev/volume --checksum sha256:HASH https://example.org/disk.iso\n\nSecrets come by the environment: NACELLE_USER, NACELLE_PASSWORD. Who may upload, too: NACELLE_CLIENTS, authorities in PEM."
)]
struct Args {
    /// Where the disk comes from: an address by http or https, docker://IMAGE,
    /// s3:ADDRESS (https://ENDPOINT/BUCKET/OBJECT, of a server that speaks S3),
    /// file:PATH, copy:PATH (a disk that is raw whatever is in it),
    /// blank, or upload (what is sent to --port)
    from: String,
    /// The volume: a file that is made, or a block device
    #[arg(long)]
    to: PathBuf,
    /// Bytes that the disk may have, in a file system
    #[arg(long, default_value_t = u64::MAX)]
    size: u64,
    /// Checksum of what is fetched, ALGORITHM:HASH
    #[arg(long)]
    checksum: Option<Checksum>,
    /// Header to send, "NAME: VALUE"
    #[arg(long)]
    header: Vec<String>,
    /// Directory whose files are headers to send
    #[arg(long)]
    headers: Vec<PathBuf>,
    /// Directory whose files are authorities in PEM to trust as well
    #[arg(long)]
    authorities: Option<PathBuf>,
    /// Look at nobody's certificate
    #[arg(long)]
    insecure: bool,
    /// Connections at once to a server that gives ranges
    #[arg(long)]
    connections: Option<usize>,
    /// Which image of one for several architectures
    #[arg(long, default_value = "amd64")]
    architecture: String,
    /// It is an archive, and --to the directory that its files are for
    #[arg(long)]
    archive: bool,
    /// Allocate all space
    #[arg(long)]
    preallocate: bool,
    /// Port at which an upload is waited for
    #[arg(long, default_value_t = 8443)]
    port: u16,
    /// Directory for an image whose tables lie anywhere
    #[arg(long, default_value = "/tmp")]
    scratch: PathBuf,
    /// File that the kubelet reads of why it ended
    #[arg(long, default_value = "/dev/termination-log")]
    termination_log: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    // There is only one, and nothing else chose.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let progress = Progress::default();
    let told = progress.clone();
    thread::spawn(move || {
        let mut last = String::new();
        loop {
            let text = told.text();
            if text != last {
                println!("progress {text}");
                last = text;
            }
            thread::sleep(EVERY);
        }
    });
    let done = run(&args, &progress);
    if let Err(error) = &done {
        // Nobody may be there to read it.
        let _ = fs::write(&args.termination_log, format!("{error:#}"));
    } else {
        println!("progress 100.0%");
    }
    done
}

fn run(args: &Args, progress: &Progress) -> Result<()> {
    if args.from == "upload" {
        let options = upload::Options {
            // Where there is no IPv6, there is IPv4.
            listen: vec![
                (Ipv6Addr::UNSPECIFIED, args.port).into(),
                (Ipv4Addr::UNSPECIFIED, args.port).into(),
            ],
            clients: std::env::var("NACELLE_CLIENTS").context("NACELLE_CLIENTS says who may upload")?,
        };
        let args = args.clone();
        let fill = move |stream: &mut dyn Read| {
            if args.archive {
                return archive::extract(stream, &args.to, args.size);
            }
            let mut target = Target::open(&args.to, args.size, args.preallocate)?;
            import::import(stream, &mut target, &args.scratch)
        };
        return Ok(upload::serve(&options, progress, Arc::new(fill))?);
    }
    if args.archive {
        let mut source = source(args, progress)?;
        archive::extract(&mut source, &args.to, args.size)?;
        return Ok(source.finish()?);
    }
    let mut target = Target::open(&args.to, args.size, args.preallocate)?;
    if args.from == "blank" {
        return Ok(target.finish(0)?);
    }
    if let Some(image) = args.from.strip_prefix("docker://") {
        let options = registry::Options {
            image: image.to_owned(),
            user: user(),
            authorities: authorities(args)?,
            architecture: args.architecture.clone(),
        };
        let mut fill = |stream: &mut dyn Read| import::import(stream, &mut target, &args.scratch);
        return Ok(registry::open(&options, progress, &mut fill)?);
    }
    let mut source = source(args, progress)?;
    if args.from.starts_with("copy:") {
        import::copy(&mut source, &mut target)?;
    } else {
        import::import(&mut source, &mut target, &args.scratch)?;
    }
    Ok(source.finish()?)
}

/// Authorities that are trusted beside the known ones.
fn authorities(args: &Args) -> Result<Vec<Vec<u8>>> {
    args.authorities.as_deref().map_or_else(|| Ok(Vec::new()), files)
}

/// A file on the web or here.
fn source(args: &Args, progress: &Progress) -> Result<Source> {
    let stream: Box<dyn Read> = match args.from.split_once(':') {
        Some((scheme @ ("http" | "https" | "s3"), object)) => http::open(
            &http::Options {
                url: match scheme {
                    "s3" => s3::signed(object, user().as_ref())?,
                    _ => args.from.clone(),
                },
                // The address of an object says it.
                user: user().filter(|_| scheme != "s3"),
                headers: headers(args)?,
                authorities: authorities(args)?,
                insecure: args.insecure,
                connections: args.connections,
            },
            progress,
        )?,
        Some(("file" | "copy", path)) => {
            let mut file = fs::File::open(path).with_context(|| format!("opening {path}"))?;
            // A block device has no length that a file's metadata tells.
            progress.expect(file.seek(SeekFrom::End(0))?);
            file.rewind()?;
            Box::new(file)
        }
        _ => bail!("{} is no address that this program knows", args.from),
    };
    Ok(Source::new(stream, progress.clone(), args.checksum.clone()))
}

fn user() -> Option<(String, String)> {
    Some((
        std::env::var("NACELLE_USER").ok()?,
        std::env::var("NACELLE_PASSWORD").ok()?,
    ))
}

fn headers(args: &Args) -> Result<Vec<String>> {
    let mut headers = args.header.clone();
    for directory in &args.headers {
        for header in files(directory)? {
            headers.push(String::from_utf8(header).context("a secret header is no text")?);
        }
    }
    Ok(headers)
}

/// Contents of a directory's files, as ConfigMaps and Secrets are mounted.
fn files(directory: &Path) -> Result<Vec<Vec<u8>>> {
    let what = || format!("reading {}", directory.display());
    let mut names: Vec<_> = fs::read_dir(directory)
        .with_context(what)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .with_context(what)?;
    names.sort();
    names.retain(|path| path.is_file());
    names
        .iter()
        .map(|path| fs::read(path).with_context(what))
        .collect()
}
