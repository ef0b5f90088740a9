//! What the words of the command line stand for.

mod dirty;
mod disk;
mod hostile;
mod machine;
mod message;
mod serve;
mod shell;

pub use machine::other_processor;

use crate::virtio::rng::{self, Rng};
use crate::virtio::{Error, Result, Way};
use crate::{interrupts, memory, say};

/// Does what `word` says: `NAME` or `NAME=NUMBER`.
pub fn run(word: &str) -> Result<()> {
    let (name, number) = word.split_once('=').unwrap_or((word, "0"));
    let number: u64 = number.parse().unwrap_or(0);
    match name {
        "hello" => machine::hello(),
        "clock" => machine::clock(),
        "tables" => machine::tables(),
        "button" => machine::button(),
        "boot" => machine::boot(),
        "smp" => machine::smp(),
        "exception" => machine::exception(number),
        "blk" => disk::write_and_read_back(),
        "blk-stream" => disk::stream(number),
        "blk-hostile" => disk::hostile(),
        "blk-discard" => disk::discard(),
        "rng" => entropy(number.max(1)),
        "msix" => message::masked(),
        "hostile" => hostile::hostile(number),
        "sweep" => hostile::sweep::sweep(number),
        "serve" => serve::serve(),
        "shell" => shell::shell(),
        "dirty" => dirty::dirty(number),
        _ => Err(Error("there is no such test", 0)),
    }
}

/// Fills a page `rounds` times, always with something else.
fn entropy(rounds: u64) -> Result<()> {
    let (device, vectors) = interrupts::open(rng::DEVICE_ID)?;
    let mut rng = Rng::new(device)?;
    let page = memory::take(256);
    let mut before = 0;
    for round in 1..=rounds {
        page.fill(0);
        let len = rng.fill(&page.part(0, 256))?;
        let now = page.get::<u64>(0);
        if len == 0 || now == before || now == 0 {
            return Err(Error("no entropy", len.into()));
        }
        before = now;
        say!("ok rng {round} len {len}");
    }
    vectors.wait();
    let mmio = matches!(rng.device.way, Way::Mmio(_));
    let (why, then) = (rng.device.acknowledge(), rng.device.acknowledge());
    match mmio && (why, then) != (1, 0) {
        true => Err(Error("the interrupt has another reason", why.into())),
        false => Ok(()),
    }
}
