//! Live migration: a running machine goes on in another monitor, over any stream.
//!
//! ```text
//!   source                                         target
//!   Hello ────────────────────────────────────────▶ Hello         which protocol
//!   Configure ────────────────────────────────────▶ Accept        what the machine is; may it come?
//!   Disks: Disk ──────────────────────────────────▶               what the target does not share
//!   Copy, Converge: Pages, Zero, Round ───────────▶ RoundDone     the guest runs here
//!   Pause, Flush: the last round ─────────────────▶ RoundDone     the guest stands still
//!   State ────────────────────────────────────────▶ Ready         all of it is there and fits
//!   Release: the disks are let go
//!   Resume ═══════════════════════════════════════▶ Running       the guest runs there
//! ```
//! Everything before `Resume` can fail and leaves the guest running at the source, with its disks; what was sent
//! counts for nothing then, and another attempt begins with all pages. Once the source begins to send `Resume` it
//! never runs the guest again. The target never runs it before it has `Resume`.
//!
//! In post-copy the last round is a list of what is missing at the target, which runs the guest nevertheless, asks for
//! what it needs over a stream of its own ([`Rest`]), and gets the rest meanwhile.
//!
//! [`send`] runs on a thread of its own while the machine's [`Owner`] goes on serving.

pub mod connection;
pub mod converge;
mod disks;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod lazy;
pub mod message;
mod packing;
pub mod pages;
mod receive;
mod send;
mod serve;
mod userfault;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use nacelle_devices::memory::SharedMemory;

pub use self::connection::{Cancel, Connection, Stream};
pub use self::converge::{Limits, OnTimeout};
pub use self::disks::DiskDescription;
pub(crate) use self::disks::Local;
pub use self::lazy::Rest;
use self::message::Description;
pub use self::packing::Compression;
pub use self::receive::{Arrived, receive};
pub use self::send::{Report, send};
pub use self::serve::Recover;
use crate::device::KernelWrites;
use crate::hypervisor::Partition;
use crate::sandbox::Sandbox;
use crate::vcpu::throttle::Throttle;
use crate::{Error, Result, Vm, VmState};

/// The phases and a list of them, so that tests cannot forget one.
macro_rules! phases {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// How far a migration is, on either side.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Phase {
            $($(#[$doc])* $name,)*
        }

        impl Phase {
            /// All of them, in order.
            pub const ALL: &'static [Phase] = &[$(Phase::$name,)*];
        }
    };
}

phases! {
    /// The two sides find out which protocol both speak.
    Hello,
    /// The target hears what the machine is made of and prepares one.
    Configure,
    /// Disks that the target does not share are sent.
    Disks,
    /// All of memory is sent.
    Copy,
    /// What was written meanwhile is sent, again and again.
    Converge,
    /// The guest is brought to rest and its state saved.
    Pause,
    /// The last of memory is sent.
    Flush,
    /// The rest of the machine is sent and taken up.
    State,
    /// The target says that it could go on.
    Ready,
    /// The source lets go of the disks.
    Release,
    /// The target is told to go on. From here the source never does.
    Resume,
    /// The target goes on.
    Running,
    /// The rest of memory follows (post-copy).
    Serve,
}

/// What is wanted of a migration.
#[derive(Clone, Debug)]
pub struct Options {
    /// When the guest is stopped, and when all is given up.
    pub limits: Limits,
    /// Streams that carry pages, 1 to [`message::MOST_STREAMS`].
    pub streams: u16,
    /// Most bytes a second while the guest runs here.
    pub bandwidth: Option<u64>,
    /// Whether pages are compressed.
    pub compression: Compression,
    /// The guest goes on there at once, and its memory follows as it needs it.
    pub post_copy: bool,
    /// How long the other side may be silent.
    pub patience: Duration,
    /// Somebody's wish that a broken post-copy go on.
    pub recover: Recover,
    /// Have the target compare guest memory with the source's, which takes downtime. For tests.
    pub verify: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            limits: Limits::default(),
            streams: 1,
            bandwidth: None,
            compression: Compression::default(),
            post_copy: false,
            patience: Duration::from_secs(30),
            recover: Recover::default(),
            verify: false,
        }
    }
}

/// How far a migration is, after each round.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// The round that has ended.
    pub round: converge::Round,
    /// Bytes sent on all streams so far.
    pub wire: u64,
    /// Bytes of guest memory.
    pub memory: u64,
    /// Bytes of guest memory that the guest writes in a second.
    pub dirty_rate: u64,
    /// How long the guest would stand still now.
    pub downtime: Duration,
    /// Since the migration began.
    pub elapsed: Duration,
}

/// Who watches a migration.
pub trait Watch: Send {
    /// It has come this far.
    fn phase(&mut self, _phase: Phase) {}
    /// So many bytes of the guest memory that this round is about are on their way.
    fn sending(&mut self, _done: u64, _of: u64) {}
    /// The rest of memory cannot follow, the connection is broken: the guest waits for [`Recover::now`].
    fn broken(&mut self, _error: &Error) {}
    /// A round has ended.
    fn progress(&mut self, _progress: &Progress) {}
}

/// Nobody watches.
impl Watch for () {}

/// The owner of a machine that is sent, on whichever thread it works.
pub trait Owner: Send {
    /// Brings the guest to rest and saves all but its memory.
    ///
    /// # Errors
    /// When it cannot; it is then run on.
    fn pause(&mut self) -> Result<VmState>;

    /// Lets another monitor have the disks.
    ///
    /// # Errors
    /// When what was written cannot be brought to the disks.
    fn release(&mut self) -> Result<()>;

    /// Leaves the disks to the process of this host that has their files, with their locks.
    ///
    /// # Errors
    /// When a disk fails.
    fn hand_over(&mut self) -> Result<()>;

    /// Takes the disks back, where they were let go, and lets the guest go on: it was not moved.
    ///
    /// # Errors
    /// When it cannot; it stays paused.
    fn go_on(&mut self) -> Result<()>;

    /// The guest runs there, or may; the rest of its memory follows from here, and it is not run here any more.
    fn follows(&mut self) {}
}

impl Owner for Vm {
    fn pause(&mut self) -> Result<VmState> {
        Vm::pause(self)?;
        self.save()
    }

    fn release(&mut self) -> Result<()> {
        self.unlock_disks()
    }

    fn hand_over(&mut self) -> Result<()> {
        Vm::hand_over(self)
    }

    fn go_on(&mut self) -> Result<()> {
        self.resume()
    }
}

/// What a migration needs of a machine beside its owner: [`Vm::migration`] gives it.
pub struct MigrationPort {
    pub(crate) memory: SharedMemory,
    pub(crate) partition: Arc<dyn Partition>,
    pub(crate) kernel: Arc<KernelWrites>,
    pub(crate) throttle: Throttle,
    pub(crate) sandbox: Sandbox,
    pub(crate) description: Description,
    /// Disks that go along.
    pub(crate) disks: Vec<Local>,
    /// It goes to another process of this host, which has all that is open here.
    pub(crate) handover: bool,
}
