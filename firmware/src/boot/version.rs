//! Which of two versions is newer (UAPI.10 Version Format Specification).

use core::cmp::Ordering;

/// Compares two versions: `6.1.0-9` is less than `6.1.0-10`, `6.1~rc1` less than `6.1`.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        a = skip(a);
        b = skip(b);
        // From the last to the first: what ends a comparison.
        for (sign, order) in [
            (b'~', Ordering::Less),
            (b'-', Ordering::Less),
            (b'^', Ordering::Less),
            (b'.', Ordering::Less),
        ] {
            match (a.first() == Some(&sign), b.first() == Some(&sign)) {
                (true, true) => {
                    a = a.get(1..).unwrap_or_default();
                    b = b.get(1..).unwrap_or_default();
                    break;
                }
                // A pre-release is less than the end of the other; all else is more than the end.
                (true, false) if sign != b'~' && b.is_empty() => return Ordering::Greater,
                (false, true) if sign != b'~' && a.is_empty() => return Ordering::Less,
                (true, false) => return order,
                (false, true) => return order.reverse(),
                (false, false) => {}
            }
        }
        match (a.is_empty(), b.is_empty()) {
            (true, true) => return Ordering::Equal,
            (true, false) if !b.starts_with(b"~") => return Ordering::Less,
            (false, true) if !a.starts_with(b"~") => return Ordering::Greater,
            _ => {}
        }
        let digits = a.first().is_some_and(u8::is_ascii_digit) || b.first().is_some_and(u8::is_ascii_digit);
        let same = |byte: &u8| {
            if digits {
                byte.is_ascii_digit()
            } else {
                byte.is_ascii_alphabetic()
            }
        };
        let (first, rest_a) = split(a, same);
        let (second, rest_b) = split(b, same);
        let order = match digits {
            true => {
                let (first, second) = (without_zeros(first), without_zeros(second));
                first.len().cmp(&second.len()).then_with(|| first.cmp(second))
            }
            false => letters(first, second),
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// Small letters come before capital ones.
fn letters(a: &[u8], b: &[u8]) -> Ordering {
    let key = |byte: &u8| {
        if byte.is_ascii_uppercase() {
            u16::from(*byte) + 256
        } else {
            u16::from(*byte)
        }
    };
    a.iter().map(key).cmp(b.iter().map(key))
}

/// Without what is neither part of a version nor a separator in front.
fn skip(text: &[u8]) -> &[u8] {
    let part = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    let start = text.iter().position(part).unwrap_or(text.len());
    text.get(start..).unwrap_or_default()
}

fn split(text: &[u8], inside: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !inside(byte)).unwrap_or(text.len());
    text.split_at(end)
}

fn without_zeros(digits: &[u8]) -> &[u8] {
    let start = digits
        .iter()
        .position(|digit| *digit != b'0')
        .unwrap_or(digits.len());
    digits.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_the_specification_says() {
        // The specification's own examples, and kernels as distributions name them.
        for (less, more) in [
            ("122.1", "123~rc1-1"),
            ("123~rc1-1", "123"),
            ("123", "123-a"),
            ("123-a", "123-a.1"),
            ("123-a.1", "123-1"),
            ("123-1", "123-1.1"),
            ("123-1.1", "123^post1"),
            ("123^post1", "123.a-1"),
            ("123.a-1", "123.1-1"),
            ("123.1-1", "123a-1"),
            ("123a-1", "124-1"),
            ("6.1.0-9-amd64", "6.1.0-10-amd64"),
            ("5.14.0-9.el9.x86_64", "5.14.0-70.13.1.el9_0.x86_64"),
            ("6.8.0-45-generic", "6.8.0-101-generic"),
            ("0-rescue-abc", "6.1"),
        ] {
            assert_eq!(compare(less, more), Ordering::Less, "{less} {more}");
            assert_eq!(compare(more, less), Ordering::Greater, "{more} {less}");
        }
        for (a, b) in [
            ("11", "11"),
            ("11α", "11β"),
            ("1_2", "1_2"),
            ("bar-123", "bar-123"),
            ("", ""),
        ] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} {b}");
        }
    }
}
