//! A bus: address ranges, each answered by one device. One type serves ports and memory.
//!
//! Look-ups take no lock: the table is replaced as a whole when a device comes or goes, which is rare.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::{Error, Result};

/// A device that answers reads and writes of its range.
///
/// Several vCPUs may call at once, so it takes `&self`: a device locks what they share, nothing else.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes at `offset` into its range; a register that is not there reads as the device
    /// says, `data` arrives filled with ones.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` at `offset` into its range.
    fn write(&self, offset: u64, data: &[u8]);
}

#[derive(Clone)]
struct Entry {
    base: u64,
    size: u64,
    name: String,
    device: Arc<dyn BusDevice>,
}

/// Address ranges and who answers them.
#[derive(Default)]
pub struct Bus {
    /// Sorted by base, without overlaps.
    entries: ArcSwap<Vec<Entry>>,
    /// Held by who replaces the table: two vCPUs may move ranges at once.
    changing: Mutex<()>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives `size` addresses from `base` to `device`; `name` is for messages.
    ///
    /// # Errors
    /// When the range is empty, wraps around or overlaps another; nothing has changed then.
    pub fn insert(&self, name: &str, base: u64, size: u64, device: Arc<dyn BusDevice>) -> Result<()> {
        let refused = |other: &str| Error::Range {
            base,
            end: base.saturating_add(size),
            other: other.into(),
        };
        let end = base
            .checked_add(size)
            .filter(|_| size > 0)
            .ok_or_else(|| refused("the end of the bus"))?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = self.entries.load().as_ref().clone();
        if let Some(other) = entries
            .iter()
            .find(|e| e.base < end && base < e.base.saturating_add(e.size))
        {
            return Err(refused(&other.name));
        }
        let at = entries.partition_point(|e| e.base < base);
        entries.insert(
            at,
            Entry {
                base,
                size,
                name: name.to_owned(),
                device,
            },
        );
        self.entries.store(Arc::new(entries));
        Ok(())
    }

    /// Takes the range that begins at `base` away again; `true` when there was one.
    pub fn remove(&self, base: u64) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = self.entries.load().as_ref().clone();
        let before = entries.len();
        entries.retain(|e| e.base != base);
        let removed = entries.len() != before;
        self.entries.store(Arc::new(entries));
        removed
    }

    /// Reads from whoever has `address`; ones where nobody has, as on an idle bus.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        self.find(address, data.len(), |device, offset| device.read(offset, data))
    }

    /// Writes to whoever has `address`; ignored where nobody has.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        self.find(address, data.len(), |device, offset| device.write(offset, data))
    }

    fn find(&self, address: u64, len: usize, act: impl FnOnce(&dyn BusDevice, u64)) -> bool {
        let entries = self.entries.load();
        let after = entries.partition_point(|e| e.base <= address);
        let Some(entry) = after.checked_sub(1).and_then(|i| entries.get(i)) else {
            return false;
        };
        let offset = address - entry.base;
        // An access that reaches beyond its device belongs to nobody.
        if offset.checked_add(len as u64).is_none_or(|end| end > entry.size) {
            return false;
        }
        act(entry.device.as_ref(), offset);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_the_device_whose_range_holds_it() {
        let (bus, a, b) = (
            Bus::new(),
            Arc::new(Recorder::default()),
            Arc::new(Recorder::default()),
        );
        bus.insert("b", 0x2000, 0x100, b.clone()).unwrap();
        bus.insert("a", 0x1000, 0x100, a.clone()).unwrap();

        assert!(bus.write(0x2004, &[1, 2]));

        assert_eq!(*b.0.lock().unwrap(), vec![(4, vec![1, 2])]);
        assert!(a.0.lock().unwrap().is_empty());
        let mut data = [0; 2];
        assert!(bus.read(0x1003, &mut data));
        assert_eq!(data, [3, 3]);
    }

    #[test]
    fn nobody_answers_with_ones() {
        let bus = Bus::new();
        bus.insert("a", 0x1000, 0x10, Arc::new(Recorder::default()))
            .unwrap();
        for address in [0, 0xfff, 0x100d, 0x1010, u64::MAX] {
            let mut data = [0; 4];
            assert!(!bus.read(address, &mut data), "{address:#x}");
            assert_eq!(data, [0xff; 4]);
        }
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let bus = Bus::new();
        let device: Arc<dyn BusDevice> = Arc::new(Recorder::default());
        bus.insert("first", 0x1000, 0x100, device.clone()).unwrap();
        for (base, size) in [
            (0x1000, 0x100),
            (0xfff, 2),
            (0x10ff, 1),
            (0, 0x2000),
            (0x5000, 0),
            (u64::MAX, 2),
        ] {
            assert!(
                bus.insert("x", base, size, device.clone()).is_err(),
                "{base:#x}+{size:#x}"
            );
        }
        assert!(bus.remove(0x1000));
        bus.insert("x", 0xfff, 2, device).unwrap();
    }
}
