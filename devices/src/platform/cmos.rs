//! The clock of a PC (MC146818): a guest reads the date from it at boot, and sets nothing.

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::bus::BusDevice;

/// Ports: index and data.
pub const BASE: u64 = 0x70;
/// How many ports.
pub const SIZE: u64 = 2;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// 32.768 kHz base.
const A_DIVIDER: u8 = 0x20;
/// 24 hours; numbers are BCD, which PC systems take for granted whatever this register says.
const B_24H: u8 = 0x02;
const D_BATTERY: u8 = 0x80;

/// The clock and its 128 bytes.
pub struct Cmos {
    /// Seconds to add to the host's time.
    offset: i64,
    state: Mutex<State>,
}

struct State {
    index: u8,
    /// The second that is being read: a reading in parts does not change in between.
    at: i64,
    ram: [u8; 128],
}

impl Cmos {
    /// A clock that shows the host's time in UTC plus `offset` seconds.
    pub fn new(offset: i64) -> Self {
        Cmos {
            offset,
            state: Mutex::new(State {
                index: 0,
                at: 0,
                ram: [0; 128],
            }),
        }
    }

    fn now(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs())
            .unwrap_or(0)
            .saturating_add(self.offset)
    }
}

/// Year, month and day of a day counted from 1970-01-01 (the proleptic Gregorian calendar).
fn civil(days: i64) -> (i64, u8, u8) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as u8, day as u8)
}

/// Two decimal digits.
fn bcd(number: i64) -> u8 {
    (number / 10 % 10 * 16 + number % 10) as u8
}

impl State {
    fn read(&self, index: u8) -> u8 {
        let (days, second) = (self.at.div_euclid(86_400), self.at.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        match index {
            SECONDS => bcd(second % 60),
            MINUTES => bcd(second / 60 % 60),
            HOURS => bcd(second / 3600),
            // 1 is Sunday; 1970-01-01 was a Thursday.
            WEEKDAY => bcd((days + 4).rem_euclid(7) + 1),
            DAY => bcd(day.into()),
            MONTH => bcd(month.into()),
            YEAR => bcd(year.rem_euclid(100)),
            CENTURY => bcd(year / 100),
            STATUS_A => A_DIVIDER,
            STATUS_B => B_24H,
            STATUS_D => D_BATTERY,
            _ => self.ram.get(usize::from(index)).copied().unwrap_or(0),
        }
    }
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let now = self.now();
        let mut state = self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        data.fill(0xff);
        if let (1, [byte]) = (offset, data) {
            // Guests look at the update bit, then read the fields from seconds on.
            if matches!(state.index, SECONDS | STATUS_A) || state.at == 0 {
                state.at = now;
            }
            *byte = state.read(state.index);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match (offset, data) {
            (0, &[index]) => state.index = index & 0x7f,
            (1, &[value]) => {
                let index = usize::from(state.index);
                if let Some(byte) = state.ram.get_mut(index) {
                    *byte = value;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (10_956, (1999, 12, 31)),
            (11_016, (2000, 2, 29)),
            (20_454, (2026, 1, 1)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ];
        for (days, date) in cases {
            assert_eq!(civil(days), date);
        }
    }

    #[test]
    fn a_guest_reads_the_hosts_date_with_its_offset() {
        let read = |clock: &Cmos, index| {
            clock.write(0, &[index]);
            let mut data = [0];
            clock.read(1, &mut data);
            data[0]
        };
        let state = State {
            index: 0,
            at: 20_454 * 86_400 + 3661,
            ram: [0; 128],
        };
        let fields: Vec<u8> = [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS]
            .map(|i| state.read(i))
            .into();
        assert_eq!(fields, [0x20, 0x26, 1, 1, 5, 1, 1, 1]);
        let (clock, later) = (Cmos::new(0), Cmos::new(86_400 * 366));
        assert!(read(&clock, CENTURY) >= 0x20);
        assert_ne!(read(&clock, YEAR), read(&later, YEAR));
    }
}
