//! Kubernetes quantities (`4Gi`, `500M`, `1e9`, `100m`) as numbers, exactly and without floating point.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Why a quantity has no value that we can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// It does not follow the grammar.
    #[error("'{0}' is not a quantity such as 4Gi, 500M, 1e9 or 100m")]
    Malformed(String),
    /// It is below zero.
    #[error("'{0}' is negative")]
    Negative(String),
    /// It is more than 2^63-1, the limit that Kubernetes sets.
    #[error("'{0}' is too large")]
    TooLarge(String),
}

/// No quantity that a person writes is longer; what is, is not worth the arithmetic.
const MAX_LENGTH: usize = 64;

/// The value in whole units (bytes, CPUs, ...); a fraction counts as one more, as Kubernetes rounds.
pub fn whole(quantity: &Quantity) -> Result<u64, QuantityError> {
    scaled(&quantity.0, 0)
}

/// The value in thousandths, the unit of CPU requests; a fraction counts as one more.
pub fn millis(quantity: &Quantity) -> Result<u64, QuantityError> {
    scaled(&quantity.0, 3)
}

/// The value times 10^`digits`, rounded up.
fn scaled(text: &str, digits: i32) -> Result<u64, QuantityError> {
    let malformed = || QuantityError::Malformed(text.chars().take(MAX_LENGTH).collect());
    let too_large = || QuantityError::TooLarge(text.to_owned());
    if text.len() > MAX_LENGTH {
        return Err(malformed());
    }
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (integer, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (integer.is_empty() && fraction.is_empty()) {
        return Err(malformed());
    }
    let (factor, exponent) = multiplier(suffix).ok_or_else(malformed)?;

    let mut mantissa: u128 = 0;
    for digit in integer.bytes().chain(fraction.bytes()) {
        mantissa = mantissa
            .checked_mul(10)
            .and_then(|value| value.checked_add(u128::from(digit - b'0')))
            .ok_or_else(too_large)?;
    }
    if mantissa == 0 {
        return Ok(0);
    }
    if negative {
        return Err(QuantityError::Negative(text.to_owned()));
    }
    mantissa = mantissa.checked_mul(factor).ok_or_else(too_large)?;
    let fraction_digits = i32::try_from(fraction.len()).map_err(|_| malformed())?;
    let power = exponent + digits - fraction_digits;
    let value = match 10u128.checked_pow(power.unsigned_abs()) {
        Some(tens) if power >= 0 => mantissa.checked_mul(tens).ok_or_else(too_large)?,
        Some(tens) => mantissa.div_ceil(tens),
        None if power >= 0 => return Err(too_large()),
        None => 1,
    };
    match u64::try_from(value) {
        Ok(value) if value <= i64::MAX as u64 => Ok(value),
        _ => Err(too_large()),
    }
}

/// What a suffix multiplies by: a power of two, and the exponent of ten.
fn multiplier(suffix: &str) -> Option<(u128, i32)> {
    Some(match suffix {
        "" => (1, 0),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i8>().ok()?;
            (1, i32::from(exponent))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Result<u64, QuantityError> {
        whole(&Quantity(text.to_owned()))
    }

    #[test]
    fn whole_units() {
        for (text, expected) in [
            ("0", 0),
            ("4096", 4096),
            ("+7", 7),
            ("4Gi", 4 << 30),
            ("1.5Gi", 3 << 29),
            (".5Ki", 512),
            ("2.", 2),
            ("500M", 500_000_000),
            ("1k", 1000),
            ("1e9", 1_000_000_000),
            ("1E3", 1000),
            ("1E", 1_000_000_000_000_000_000),
            ("128974848000m", 128_974_848),
            ("100m", 1),
            ("1n", 1),
            ("1e-100", 1),
            ("-0", 0),
            ("7Ei", 7 << 60),
        ] {
            assert_eq!(value(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn thousandths() {
        for (text, expected) in [
            ("100m", 100),
            ("2", 2000),
            ("0.5", 500),
            ("1n", 1),
            ("1.0001", 1001),
        ] {
            assert_eq!(millis(&Quantity(text.to_owned())), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in [
            "", ".", "Gi", "4GB", "4 Gi", "4gi", "1.2.3", "--1", "1e", "1e999", "0x10", "4\u{664}",
        ] {
            assert!(matches!(value(text), Err(QuantityError::Malformed(_))), "{text}");
        }
        assert!(matches!(value("-1Gi"), Err(QuantityError::Negative(_))));
        for text in ["8Ei", "9223372036854775808", "1e100", &"9".repeat(60)] {
            assert!(matches!(value(text), Err(QuantityError::TooLarge(_))), "{text}");
        }
        assert!(matches!(value(&"9".repeat(65)), Err(QuantityError::Malformed(_))));
    }
}
