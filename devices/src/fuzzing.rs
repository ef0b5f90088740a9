//! What the fuzz targets in `fuzz/` and the micro-benchmarks in `benches/micro` reach that is nobody else's: parsers of
//! what a guest says, and the two directions of a network queue.

pub use crate::virtio::blk::request::{
    Refusal as BlkRefusal, Request as BlkRequest, Rules as BlkRules, Work as BlkWork,
    parse as parse_blk_request,
};
pub use crate::virtio::console::control::{
    Agreement as ConsoleAgreement, MESSAGE as CONSOLE_MESSAGE, Request as ConsoleRequest,
};
pub use crate::virtio::net::ctrl::Command as NetCommand;
pub use crate::virtio::net::nic::Counter as NetCounter;
pub use crate::virtio::net::rx::Receiver;
pub use crate::virtio::net::tx::Transmitter;
pub use crate::virtio::vsock::packet::{
    Credit as VsockCredit, HEADER as VSOCK_HEADER, Header as VsockHeader,
};
