//! Durations as Go writes them: `30s`, `1m30.5s`, `250ms`, `-1s`, `0`.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DurationError {
    #[error("a negative duration")]
    Negative,
    #[error("a duration needs a unit: 30s, 1m30s, 250ms")]
    NoUnit,
    #[error("not a duration; it looks like 30s, 1m30s or 250ms")]
    NotDuration,
    #[error("longer than 290 years")]
    TooLong,
    #[error("unknown unit; there are ns, us, ms, s, m and h")]
    UnknownUnit,
}

/// Reads Go's syntax (`time.ParseDuration`). The only bare number is `0`.
pub(crate) fn parse(text: &str) -> Result<Duration, DurationError> {
    read(text, false)
}

/// The same, with `d` for 24 hours, as adit's own sections know it.
pub(crate) fn parse_with_days(text: &str) -> Result<Duration, DurationError> {
    read(text, true)
}

fn read(text: &str, days: bool) -> Result<Duration, DurationError> {
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        Some(_) => (false, text),
        None => return Err(DurationError::NotDuration),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let number = leading(rest, |byte| byte.is_ascii_digit() || byte == b'.');
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(DurationError::NotDuration);
        }
        rest = &rest[number.len()..];
        let unit = leading(rest, |byte| !byte.is_ascii_digit() && byte != b'.');
        rest = &rest[unit.len()..];
        let scale: u128 = match unit {
            "" => return Err(DurationError::NoUnit),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" if days => 86_400_000_000_000,
            _ => return Err(DurationError::UnknownUnit),
        };
        let whole: u128 = match whole {
            "" => 0,
            digits if digits.len() > 20 => return Err(DurationError::TooLong),
            digits => digits.parse().map_err(|_| DurationError::NotDuration)?,
        };
        nanos += whole * scale + fraction_of(fraction, scale);
        if nanos > i64::MAX as u128 {
            return Err(DurationError::TooLong);
        }
    }
    if negative && nanos > 0 {
        return Err(DurationError::Negative);
    }
    let nanos = u64::try_from(nanos).map_err(|_| DurationError::TooLong)?;
    Ok(Duration::from_nanos(nanos))
}

/// Seconds as JSON shows them: a whole number where it is one (protocol.md section 5.5).
pub(crate) fn seconds(duration: Duration) -> serde_json::Value {
    if duration.subsec_nanos() == 0 { duration.as_secs().into() } else { duration.as_secs_f64().into() }
}

/// The shortest text that [`parse`] reads back.
pub(crate) fn text(duration: Duration) -> String {
    match duration.as_nanos() {
        nanos if nanos % 1_000_000_000 == 0 => format!("{}s", duration.as_secs()),
        nanos if nanos % 1_000_000 == 0 => format!("{}ms", duration.as_millis()),
        nanos => format!("{nanos}ns"),
    }
}

fn leading(text: &str, wanted: impl Fn(u8) -> bool) -> &str {
    // Cutting between bytes is safe: both predicates treat all bytes of one character alike.
    let end = text.bytes().position(|byte| !wanted(byte)).unwrap_or(text.len());
    &text[..end]
}

/// Digits below the unit are cut, as in Go.
fn fraction_of(digits: &str, scale: u128) -> u128 {
    let mut place = scale;
    digits.bytes().take(18).fold(0, |sum, digit| {
        place /= 10;
        sum + u128::from(digit - b'0') * place
    })
}
