//! The small pieces of a line: where it ends, names, values.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use crate::error::Bad;

/// A field's value; text still has its escapes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Int(i64),
    Float(f64),
    Bool(bool),
    /// The bytes between the quotes, and whether a backslash is among them.
    Text(&'a [u8], bool),
}

/// The end of the line that begins at `start`: its newline, or the body's end. A newline within
/// the quotes of a field's string does not end the line, unless the quote is never closed or the
/// line grows beyond `line_bytes_max`: then one broken line must not swallow the good ones.
pub(crate) fn line_end(body: &[u8], start: usize, line_bytes_max: usize) -> usize {
    match memchr2(b'\n', b'"', &body[start..]) {
        None => body.len(),
        Some(at) if body[start + at] == b'\n' => start + at,
        Some(_) => quoted_line_end(body, start, line_bytes_max),
    }
}

#[cold]
fn plain_line_end(body: &[u8], start: usize) -> usize {
    memchr(b'\n', &body[start..]).map_or(body.len(), |at| start + at)
}

/// Quotes count only where a field's value begins or goes on: after the first space that is not
/// escaped, with more `=` than `,` before (the rule of InfluxDB's own scanner).
fn quoted_line_end(body: &[u8], start: usize, line_bytes_max: usize) -> usize {
    let (mut in_fields, mut quoted) = (false, false);
    let (mut equals, mut commas) = (0_u32, 0_u32);
    let limit = body.len().min(start.saturating_add(line_bytes_max));
    let begin = body[start..]
        .iter()
        .position(|b| !matches!(b, b' ' | b'\t'))
        .map_or(start, |skip| start + skip);
    if body.get(begin) == Some(&b'#') {
        return plain_line_end(body, start);
    }
    let mut at = begin;
    while at < limit {
        match body[at] {
            b'\\' if quoted || body.get(at + 1) != Some(&b'\n') => at += 1,
            b' ' => in_fields = true,
            b'=' if in_fields && !quoted => equals += 1,
            b',' if in_fields && !quoted => commas += 1,
            b'"' if in_fields && equals > commas => quoted = !quoted,
            b'\n' if !quoted => return at,
            _ => {}
        }
        at += 1;
    }
    if at >= body.len() && !quoted {
        return body.len();
    }
    plain_line_end(body, start)
}

/// The length of `measurement,tagset`: up to the first space that is not escaped.
pub(crate) fn series_length(line: &[u8]) -> Option<usize> {
    let at = memchr(b' ', line)?;
    if at == 0 || line[at - 1] != b'\\' {
        return Some(at);
    }
    let mut at = 0;
    while at < line.len() {
        match line[at] {
            b'\\' => at += 1,
            b' ' => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The first byte from `at` that is one of `stops` or a tab and is not escaped.
pub(crate) fn name_end(line: &[u8], mut at: usize, stops: &[u8]) -> usize {
    while at < line.len() {
        match line[at] {
            b'\\' => at += 1,
            b'\t' => return at,
            byte if stops.contains(&byte) => return at,
            _ => {}
        }
        at += 1;
    }
    line.len()
}

/// A name or tag value without its escapes: a backslash before one of `escaped` goes away, any
/// other stays.
///
/// # Errors
/// [`Bad`] if it is empty or ends with a backslash (as in InfluxDB, whose readers could not tell
/// that from an escape).
pub(crate) fn unescape<'a>(
    raw: &'a [u8],
    at: usize,
    escaped: &[u8],
    what: &'static str,
) -> Result<Cow<'a, [u8]>, Bad> {
    if raw.is_empty() {
        return Err(Bad::new(at, format!("{what} is empty")));
    }
    let value = if memchr(b'\\', raw).is_some() {
        Cow::Owned(without_backslashes(raw, escaped))
    } else {
        Cow::Borrowed(raw)
    };
    if value.ends_with(b"\\") {
        return Err(Bad::new(
            at + raw.len() - 1,
            format!("{what} ends with a backslash"),
        ));
    }
    Ok(value)
}

/// Removes each backslash that stands before one of `escaped`.
pub(crate) fn without_backslashes(raw: &[u8], escaped: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match bytes.peek() {
            Some(next) if byte == b'\\' && escaped.contains(next) => {
                out.push(*next);
                bytes.next();
            }
            _ => out.push(byte),
        }
    }
    out
}

/// Parses the field value at `at`; returns it with the place after it.
#[inline]
pub(crate) fn value(line: &[u8], at: usize) -> Result<(Value<'_>, usize), Bad> {
    match line.get(at) {
        Some(b'0'..=b'9' | b'-' | b'.') => number(line, at),
        Some(b'"') => text(line, at),
        Some(b't' | b'T' | b'f' | b'F') => boolean(line, at),
        Some(b',' | b' ') | None => Err(Bad::new(at, "the field has no value")),
        Some(_) => Err(Bad::new(at, NO_VALUE)),
    }
}

const NO_VALUE: &str =
    "not a value: expected a number, an integer (1i, 1u), a boolean or a string in double quotes";

fn boolean(line: &[u8], at: usize) -> Result<(Value<'_>, usize), Bad> {
    let rest = &line[at..];
    let end = rest
        .iter()
        .position(|b| matches!(b, b',' | b' '))
        .unwrap_or(rest.len());
    let value = match &rest[..end] {
        b"t" | b"T" | b"true" | b"True" | b"TRUE" => true,
        b"f" | b"F" | b"false" | b"False" | b"FALSE" => false,
        _ => return Err(Bad::new(at, NO_VALUE)),
    };
    Ok((Value::Bool(value), at + end))
}

fn text(line: &[u8], at: usize) -> Result<(Value<'_>, usize), Bad> {
    let begin = at + 1;
    let mut end = begin;
    let mut escaped = false;
    loop {
        let Some(step) = memchr2(b'"', b'\\', line.get(end..).unwrap_or_default()) else {
            return Err(Bad::new(at, "the string has no closing double quote"));
        };
        end += step;
        if line[end] == b'"' {
            return Ok((Value::Text(&line[begin..end], escaped), end + 1));
        }
        escaped = true;
        end += 2;
    }
}

/// Digits from `at`: their value modulo 2^64 and the place after them.
#[inline]
fn digits(line: &[u8], mut at: usize) -> (u64, usize) {
    let mut value = 0_u64;
    while let Some(byte) = line.get(at)
        && byte.is_ascii_digit()
    {
        value = value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
        at += 1;
    }
    (value, at)
}

/// The longest run of digits whose value is surely below 2^64.
const EXACT_DIGITS: usize = 19;

#[inline]
fn number(line: &[u8], at: usize) -> Result<(Value<'_>, usize), Bad> {
    let negative = line[at] == b'-';
    let begin = at + usize::from(negative);
    let (magnitude, end) = digits(line, begin);
    match line.get(end) {
        Some(b'i') if end > begin => {
            let value = signed(&line[at..end], end - begin, magnitude, negative)
                .ok_or_else(|| Bad::new(at, "the integer is beyond 64 bits"))?;
            Ok((Value::Int(value), end + 1))
        }
        Some(b'u') if end > begin && !negative => {
            let value = signed(&line[at..end], end - begin, magnitude, false).ok_or_else(|| {
                Bad::new(
                    at,
                    "the unsigned integer is above 9223372036854775807, the largest BIGINT",
                )
            })?;
            Ok((Value::Int(value), end + 1))
        }
        // Whole numbers below 10^15 are exact in a double.
        Some(b',' | b' ') | None if (1..=15).contains(&(end - begin)) => {
            let value = magnitude as f64;
            Ok((Value::Float(if negative { -value } else { value }), end))
        }
        _ => float(line, at, begin, end),
    }
}

fn signed(raw: &[u8], digits: usize, magnitude: u64, negative: bool) -> Option<i64> {
    if digits > EXACT_DIGITS {
        // Leading zeros, or out of range.
        return std::str::from_utf8(raw).ok()?.parse().ok();
    }
    if negative {
        0_i64.checked_sub_unsigned(magnitude)
    } else {
        i64::try_from(magnitude).ok()
    }
}

fn float(
    line: &[u8],
    at: usize,
    begin: usize,
    whole_end: usize,
) -> Result<(Value<'_>, usize), Bad> {
    let mut end = whole_end;
    let mut count = whole_end - begin;
    if line.get(end) == Some(&b'.') {
        let fraction = end + 1;
        (_, end) = digits(line, fraction);
        count += end - fraction;
    }
    if count == 0 {
        return Err(Bad::new(at, NO_VALUE));
    }
    if let Some(b'e' | b'E') = line.get(end) {
        let sign = usize::from(matches!(line.get(end + 1), Some(b'-' | b'+')));
        let exponent = end + 1 + sign;
        (_, end) = digits(line, exponent);
        if end == exponent {
            return Err(Bad::new(end, "the exponent has no digits"));
        }
    }
    match fast_float2::parse::<f64, _>(&line[at..end]) {
        Ok(value) if value.is_finite() => Ok((Value::Float(value), end)),
        _ => Err(Bad::new(at, "the number is beyond what a double holds")),
    }
}

/// Parses the timestamp at `at`, which is the rest of the line but for spaces, in steps of
/// `nanoseconds`.
#[inline]
pub(crate) fn timestamp(line: &[u8], at: usize, nanoseconds: i64) -> Result<i64, Bad> {
    let negative = line[at] == b'-';
    let begin = at + usize::from(negative);
    let (magnitude, end) = digits(line, begin);
    if end == begin {
        return Err(Bad::new(at, "expected a timestamp: a whole number"));
    }
    if let Some(extra) = line[end..].iter().position(|b| *b != b' ') {
        return Err(Bad::new(
            end + extra,
            "unexpected text after the timestamp, which ends the line",
        ));
    }
    signed(&line[at..end], end - begin, magnitude, negative)
        .and_then(|t| t.checked_mul(nanoseconds))
        .ok_or_else(|| {
            Bad::new(
                at,
                "the timestamp is out of range (years 1677 to 2262); is its precision the request's?",
            )
        })
}
