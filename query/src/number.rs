//! Numbers as they were written, digit by digit, and what they are as `DECIMAL`.

use std::fmt;

use arrow_buffer::i256;
use datafusion::common::ScalarValue;

/// Most digits of a decimal value while a statement is planned (Arrow's `Decimal256`).
const DIGITS_MAX: usize = 76;
/// Exponents beyond this are cut to it: such a number is 0 or larger than any type holds.
const EXPONENT_MAX: i64 = 100_000;

/// A decimal number of any length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Number {
    negative: bool,
    /// 0 to 9, no zeros at the start.
    digits: Vec<u8>,
    /// Digits after the point; negative: zeros before it that are not in `digits`.
    scale: i64,
}

impl Number {
    /// Reads `12`, `-1.50`, `.5`, `1_000`, `1.5e-3`; `None`: it is none of these.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = match rest.find(['e', 'E']) {
            Some(at) => (&rest[..at], exponent(&rest[at + 1..])?),
            None => (rest, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let mut digits = Vec::with_capacity(mantissa.len());
        let mut scale = -exponent;
        for (part, is_fraction) in [(whole, false), (fraction, true)] {
            for byte in part.bytes().filter(|byte| *byte != b'_') {
                digits.push((byte as char).to_digit(10)? as u8);
                scale += i64::from(is_fraction);
            }
        }
        if digits.is_empty() {
            return None;
        }
        let zeros = digits.iter().take_while(|digit| **digit == 0).count();
        digits.drain(..zeros);
        Some(Self {
            negative: negative && !digits.is_empty(),
            digits,
            scale,
        })
    }

    /// The shortest number that is read as this double; `None`: it is infinite or NaN. A number of
    /// up to 15 digits comes through a double whole.
    pub(crate) fn of_double(value: f64) -> Option<Self> {
        Self::parse(&format!("{value:e}"))
    }

    /// The number `value · 10^-scale`.
    pub(crate) fn of_decimal(value: &str, scale: i8) -> Option<Self> {
        let mut number = Self::parse(value)?;
        number.scale += i64::from(scale);
        Some(number)
    }

    /// The number with the opposite sign.
    pub(crate) fn negated(mut self) -> Self {
        self.negative = !self.negative && !self.digits.is_empty();
        self
    }

    /// Digits from the first to the last that is not 0.
    pub(crate) fn significant(&self) -> usize {
        self.digits.len() - self.zeros_at_end()
    }

    fn zeros_at_end(&self) -> usize {
        let zeros = self.digits.iter().rev().take_while(|digit| **digit == 0);
        zeros.count()
    }

    /// Digits before the point.
    fn whole_digits(&self) -> i64 {
        if self.digits.is_empty() {
            0
        } else {
            self.digits.len() as i64 - self.scale
        }
    }

    /// The nearest double.
    pub(crate) fn to_double(&self) -> f64 {
        // Rust reads any number of digits and rounds once.
        self.to_string().parse().unwrap_or(f64::NAN)
    }

    /// The number times 10 to the power of `scale`, rounded half away from zero as PostgreSQL does;
    /// `None`: more digits than any type has.
    fn rounded(&self, scale: i64) -> Option<i256> {
        let (value, rest) = self.cut(scale)?;
        let up = rest.first().is_some_and(|digit| *digit >= 5);
        let value = if up {
            value.checked_add(i256::ONE)?
        } else {
            value
        };
        Some(if self.negative { -value } else { value })
    }

    /// The digits up to `scale` as a whole number without sign, and those behind.
    fn cut(&self, scale: i64) -> Option<(i256, &[u8])> {
        let kept = self.whole_digits() + scale;
        if self.digits.is_empty() || kept < 0 {
            return Some((i256::ZERO, &[]));
        }
        let kept = usize::try_from(kept).ok().filter(|n| *n <= DIGITS_MAX)?;
        let (head, rest) = self.digits.split_at(kept.min(self.digits.len()));
        let mut text: String = head.iter().map(|digit| (b'0' + digit) as char).collect();
        text.extend(std::iter::repeat_n('0', kept - head.len()));
        if text.is_empty() {
            return Some((i256::ZERO, rest));
        }
        Some((i256::from_string(&text)?, rest))
    }

    /// The value of type `DECIMAL(precision, scale)`; `None`: it does not fit.
    pub(crate) fn to_decimal(&self, precision: u8, scale: i8) -> Option<ScalarValue> {
        let value = self.rounded(i64::from(scale))?;
        let bound = i256::from_i128(10).checked_pow(u32::from(precision))?;
        (value < bound && value > -bound).then(|| decimal(value, precision, scale))
    }

    /// The value in the smallest decimal type that holds it, rounded where none does; `None`: it
    /// is too large for any.
    pub(crate) fn to_own_decimal(&self) -> Option<ScalarValue> {
        let whole = self.whole_digits().max(0);
        let most = DIGITS_MAX as i64 - whole;
        if most < 0 {
            return None;
        }
        let scale = self.scale.clamp(0, most);
        // One digit more where rounding carries: 9.99 → 10.0.
        let carry = i64::from(scale < self.scale && whole + scale < DIGITS_MAX as i64);
        let precision = u8::try_from((whole + scale + carry).max(1)).ok()?;
        self.to_decimal(precision, i8::try_from(scale).ok()?)
    }

    /// A value that every `DECIMAL(precision, scale)` compares with as it does with this number:
    /// the number itself where it is of that type, else something between the two values of the
    /// type that are next to it.
    pub(crate) fn to_compared(&self, precision: u8, scale: i8) -> Option<ScalarValue> {
        let wider = precision
            .checked_add(1)
            .filter(|p| *p <= DIGITS_MAX as u8)?;
        if self.whole_digits() > i64::from(precision) - i64::from(scale) {
            let bound = i256::from_i128(10).checked_pow(u32::from(precision))?;
            let bound = if self.negative { -bound } else { bound };
            return Some(decimal(bound, wider, scale));
        }
        if self.scale - self.zeros_at_end() as i64 <= i64::from(scale) {
            return self.to_decimal(precision, scale);
        }
        let (value, _) = self.cut(i64::from(scale))?;
        let value = value * i256::from_i128(10) + i256::from_i128(5);
        let value = if self.negative { -value } else { value };
        Some(decimal(value, wider, scale + 1))
    }
}

fn exponent(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value = digits.parse().unwrap_or(EXPONENT_MAX).min(EXPONENT_MAX);
    Some(sign * value)
}

fn decimal(value: i256, precision: u8, scale: i8) -> ScalarValue {
    match value.to_i128() {
        Some(value) if precision <= 38 => ScalarValue::Decimal128(Some(value), precision, scale),
        _ => ScalarValue::Decimal256(Some(value), precision, scale),
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.negative {
            f.write_str("-")?;
        }
        let whole = self.whole_digits();
        if whole > DIGITS_MAX as i64 || whole < -(DIGITS_MAX as i64) {
            f.write_str("0.")?;
            self.digits.iter().try_for_each(|d| write!(f, "{d}"))?;
            return write!(f, "e{whole}");
        }
        if whole <= 0 {
            f.write_str("0")?;
        }
        for place in 0..whole {
            let digit = usize::try_from(place)
                .ok()
                .and_then(|at| self.digits.get(at));
            write!(f, "{}", digit.copied().unwrap_or(0))?;
        }
        if self.scale > 0 && !self.digits.is_empty() {
            f.write_str(".")?;
            for _ in whole..0 {
                f.write_str("0")?;
            }
            let from = usize::try_from(whole).unwrap_or(0);
            self.digits[from..]
                .iter()
                .try_for_each(|d| write!(f, "{d}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Number {
        Number::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn numbers_are_read_in_every_spelling_and_shown_plainly() {
        for (text, shown) in [
            ("0", "0"),
            ("-0.00", "0"),
            ("007", "7"),
            (".5", "0.5"),
            ("1_000.25", "1000.25"),
            ("-1.50", "-1.50"),
            ("1.5e3", "1500"),
            ("1.5E-3", "0.0015"),
            ("12e+1", "120"),
            ("1e400", "0.1e401"),
        ] {
            assert_eq!(number(text).to_string(), shown, "{text}");
        }
        for text in [
            "", "-", ".", "1e", "1.2.3", "0x1", "NaN", " 1", "e5", "1e5x",
        ] {
            assert_eq!(Number::parse(text), None, "{text}");
        }
        assert_eq!(number("1e400").to_double(), f64::INFINITY);
        assert_eq!(number("0.30000000000000004").to_double(), 0.1 + 0.2);
        assert_eq!(Number::of_double(-0.1), Some(number("-0.1")));
        assert_eq!(Number::of_double(f64::NAN), None);
    }

    #[test]
    fn decimals_are_rounded_half_away_from_zero_and_must_fit() {
        let as_decimal =
            |text: &str, precision, scale| match number(text).to_decimal(precision, scale) {
                Some(ScalarValue::Decimal128(value, ..)) => value,
                Some(other) => panic!("{other:?}"),
                None => None,
            };
        assert_eq!(as_decimal("1.005", 10, 2), Some(101));
        assert_eq!(as_decimal("-1.005", 10, 2), Some(-101));
        assert_eq!(as_decimal("1.0049999", 10, 2), Some(100));
        assert_eq!(as_decimal("0.004", 10, 2), Some(0));
        assert_eq!(as_decimal("0.05", 10, 1), Some(1));
        assert_eq!(as_decimal("1e-300", 10, 2), Some(0));
        assert_eq!(as_decimal("99.99", 4, 2), Some(9999));
        assert_eq!(as_decimal("99.995", 4, 2), None);
        assert_eq!(as_decimal("1e400", 38, 0), None);
        let nines = "9999999999999999999999999999.9999999999";
        assert_eq!(as_decimal(nines, 38, 10), Some(10_i128.pow(38) - 1));
    }

    #[test]
    fn a_number_finer_than_a_type_lies_between_two_of_its_values() {
        let compared = |text: &str| match number(text).to_compared(4, 2) {
            Some(ScalarValue::Decimal128(Some(value), _, scale)) => (value, scale),
            other => panic!("{other:?}"),
        };
        assert_eq!(compared("1.25"), (125, 2));
        assert_eq!(compared("1.2500"), (125, 2));
        assert_eq!(compared("1.2501"), (1255, 3));
        assert_eq!(compared("-1.2599"), (-1255, 3));
        assert_eq!(compared("1e-99"), (5, 3));
        assert_eq!(compared("1e9"), (10_000, 2));
        assert_eq!(compared("-100"), (-10_000, 2));
    }
}
