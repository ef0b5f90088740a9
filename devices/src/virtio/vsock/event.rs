//! The queue of events for the driver (virtio 1.2, §5.10.6.7). There is one event.

use std::io::Write;
use std::sync::Arc;

use virtio_queue::QueueT;

use crate::irq::Interrupt;
use crate::memory::Memory;
use crate::virtio::{ActiveQueue, Served};

/// All streams are gone.
const TRANSPORT_RESET: u32 = 0;

/// Tells the guest that its streams are gone when that is `due`, once it has a buffer for it.
///
/// # Errors
/// When the queue is malformed.
pub(crate) fn tell_of_reset(
    queue: &mut ActiveQueue,
    memory: &Arc<Memory>,
    interrupt: &dyn Interrupt,
    due: &mut bool,
) -> Served {
    let mut left = queue.queue.size();
    while *due && left > 0 {
        left -= 1;
        let Some(chain) = queue.pop(memory)? else {
            if queue.queue.enable_notification(&**memory)? {
                continue;
            }
            return Ok(());
        };
        let head = chain.head_index();
        let event = TRANSPORT_RESET.to_le_bytes();
        let told = chain
            .writer(memory)
            .is_ok_and(|mut writer| writer.write_all(&event).is_ok());
        queue.complete(memory, head, if told { event.len() as u32 } else { 0 })?;
        queue.notify(memory, interrupt)?;
        *due = !told;
    }
    Ok(())
}
