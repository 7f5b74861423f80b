//! Timestamps compared with a moment that lies between two that their column can hold.
//!
//! `TIMESTAMP(3)` holds milliseconds; `ts = '… 00:00:00.0015'` is true of no row, and
//! `ts < '… 00:00:00.0015'` of those at `.001` too. The literal cannot be cut to the column's
//! unit, neither by reading it as the column's type nor by the optimizer, which takes a cast off
//! the column by putting one on the literal. So such comparisons are put in terms of the moment
//! before, ahead of both.

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array};
use arrow_schema::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{Between, BinaryExpr, Expr, ExprSchemable, Operator, lit};

use crate::text::read_text;

/// Rewrites all such comparisons in an expression whose types were coerced. `zone` is the
/// session's.
pub(crate) fn compared_exactly(
    expr: Expr,
    schema: &DFSchema,
    zone: Option<&str>,
) -> Result<Transformed<Expr>> {
    expr.transform_up(|expr| {
        let exact = match &expr {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                match Compared::of(left, right, schema, zone) {
                    Some(compared) => compared.exactly(*op),
                    None => Compared::of(right, left, schema, zone)
                        .and_then(|compared| compared.exactly(op.swap()?)),
                }
            }
            Expr::Between(Between {
                expr,
                negated,
                low,
                high,
            }) => {
                let low_is = Compared::of(expr, low, schema, zone);
                let high_is = Compared::of(expr, high, schema, zone);
                if low_is.is_none() && high_is.is_none() {
                    None
                } else {
                    let plain = |op, bound: &Expr| binary((**expr).clone(), op, bound.clone());
                    let low = low_is
                        .and_then(|low| low.exactly(Operator::GtEq))
                        .unwrap_or_else(|| plain(Operator::GtEq, low));
                    let high = high_is
                        .and_then(|high| high.exactly(Operator::LtEq))
                        .unwrap_or_else(|| plain(Operator::LtEq, high));
                    let within = binary(low, Operator::And, high);
                    Some(if *negated { !within } else { within })
                }
            }
            Expr::InList(InList {
                expr,
                list,
                negated,
            }) => {
                let (equal, joined) = if *negated {
                    (Operator::NotEq, Operator::And)
                } else {
                    (Operator::Eq, Operator::Or)
                };
                let mut kept = Vec::with_capacity(list.len());
                let mut never = None;
                let mut apart = Vec::new();
                for one in list {
                    match Compared::of(expr, one, schema, zone) {
                        None => kept.push(one.clone()),
                        Some(between) if matches!(between.with, With::After(_)) => {
                            never = Some(between);
                        }
                        Some(at) => apart.extend(at.exactly(equal)),
                    }
                }
                if kept.len() == list.len() {
                    None
                } else if kept.is_empty() && apart.is_empty() {
                    never.and_then(|never| never.exactly(equal))
                } else {
                    let kept = (!kept.is_empty()).then(|| {
                        Expr::InList(InList {
                            expr: expr.clone(),
                            list: kept,
                            negated: *negated,
                        })
                    });
                    let all = kept.into_iter().chain(apart);
                    all.reduce(|left, right| binary(left, joined, right))
                }
            }
            _ => None,
        };
        Ok(match exact {
            Some(exact) => Transformed::yes(exact),
            None => Transformed::no(expr),
        })
    })
}

fn binary(left: Expr, op: Operator, right: Expr) -> Expr {
    Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right)))
}

/// A timestamp and what it is compared with.
struct Compared {
    subject: Expr,
    with: With,
}

/// A moment in terms of the timestamp's unit.
enum With {
    /// Between this moment and the next.
    After(Expr),
    /// This one, which is too far from 1970 for the unit that coercion chose.
    At(Expr),
}

impl Compared {
    /// `None`: the literal is a moment of the subject's unit, or this is something else.
    fn of(subject: &Expr, literal: &Expr, schema: &DFSchema, zone: Option<&str>) -> Option<Self> {
        let far = far_text(literal, zone);
        let nanos = match far {
            Some(_) => 0,
            None => nanos_of(literal, zone)?,
        };
        // Where the literal was the finer one, coercion has put a cast on the subject.
        let subject = match subject {
            Expr::Cast(cast) if matches!(cast.field.data_type(), DataType::Timestamp(..)) => {
                match cast.expr.get_type(schema).ok()? {
                    DataType::Timestamp(..) => &cast.expr,
                    _ => subject,
                }
            }
            _ => subject,
        };
        let DataType::Timestamp(unit, to_zone) = subject.get_type(schema).ok()? else {
            return None;
        };
        if let Some(text) = far {
            let at = read_text(text, &DataType::Timestamp(unit, to_zone), zone)?;
            return Some(Self {
                subject: subject.clone(),
                with: With::At(Expr::Literal(at, None)),
            });
        }
        let tick = per_second(TimeUnit::Nanosecond) / per_second(unit);
        if nanos.rem_euclid(tick) == 0 {
            return None;
        }
        let before = ScalarValue::Int64(Some(nanos.div_euclid(tick)));
        let before = before.cast_to(&DataType::Timestamp(unit, to_zone)).ok()?;
        Some(Self {
            subject: subject.clone(),
            with: With::After(Expr::Literal(before, None)),
        })
    }

    fn exactly(self, op: Operator) -> Option<Expr> {
        let Self { subject, with } = self;
        let before = match with {
            With::After(before) => before,
            With::At(at) => return Some(binary(subject, op, at)),
        };
        Some(match op {
            Operator::Lt | Operator::LtEq => binary(subject, Operator::LtEq, before),
            Operator::Gt | Operator::GtEq => binary(subject, Operator::Gt, before),
            // Of no row, and not known where the timestamp is NULL.
            Operator::Eq => {
                let at = binary(subject.clone(), Operator::Eq, before.clone());
                binary(at, Operator::And, binary(subject, Operator::NotEq, before))
            }
            Operator::NotEq => {
                let at = binary(subject.clone(), Operator::Eq, before.clone());
                binary(at, Operator::Or, binary(subject, Operator::NotEq, before))
            }
            Operator::IsDistinctFrom => lit(true),
            Operator::IsNotDistinctFrom => lit(false),
            _ => return None,
        })
    }
}

/// A timestamp as type `wanted`; at its own unit where that is finer and has digits that `wanted`
/// cannot hold: what it is compared with must see them. Stored, it is cut by the cast to the column.
///
/// # Errors
/// A moment that `wanted` cannot hold.
pub(crate) fn uncut(value: &ScalarValue, wanted: &DataType) -> Result<ScalarValue> {
    let cut = value.cast_to(wanted)?;
    let (DataType::Timestamp(unit, _), DataType::Timestamp(_, zone)) = (value.data_type(), wanted)
    else {
        return Ok(cut);
    };
    let own = value.cast_to(&DataType::Timestamp(unit, zone.clone()))?;
    Ok(match cut.cast_to(&own.data_type()) {
        Ok(again) if again == own => cut,
        // Too far from 1970 for the finer unit: then the value had no more digits than `wanted`.
        Err(_) => cut,
        Ok(_) => own,
    })
}

/// Timestamps in the coarser unit of `to`, with digits left out as in text: Arrow's cast would go
/// towards 1970 from both sides, and so give moments before it to the next tick. `None`: there is
/// nothing to leave out.
pub(crate) fn floored(column: &ArrayRef, to: &DataType) -> Result<Option<ArrayRef>> {
    let (DataType::Timestamp(from, zone), DataType::Timestamp(unit, _)) = (column.data_type(), to)
    else {
        return Ok(None);
    };
    let ticks = per_second(*from) / per_second(*unit);
    if ticks <= 1 {
        return Ok(None);
    }
    let fine = arrow_cast::cast(column, &DataType::Int64)?;
    let coarse: Int64Array = fine
        .as_primitive::<Int64Type>()
        .unary(|fine| fine.div_euclid(ticks));
    let coarse_type = DataType::Timestamp(*unit, zone.clone());
    Ok(Some(arrow_cast::cast(&coarse, &coarse_type)?))
}

/// [`floored`] for one value, as type `wanted`.
pub(crate) fn floored_scalar(
    value: &ScalarValue,
    wanted: &DataType,
) -> Result<Option<ScalarValue>> {
    if value.is_null() || !matches!(value.data_type(), DataType::Timestamp(..)) {
        return Ok(None);
    }
    let Some(coarse) = floored(&value.to_array()?, wanted)? else {
        return Ok(None);
    };
    ScalarValue::try_from_array(&coarse, 0)?
        .cast_to(wanted)
        .map(Some)
}

/// Ticks of a unit in a second.
fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

/// The text of a timestamp that nanoseconds cannot tell (before 1677, after 2262) but others can.
fn far_text<'a>(literal: &'a Expr, zone: Option<&str>) -> Option<&'a str> {
    let Expr::Cast(cast) = literal else {
        return None;
    };
    let (DataType::Timestamp(_, to_zone), Expr::Literal(text, _)) =
        (cast.field.data_type(), &*cast.expr)
    else {
        return None;
    };
    let text = text.try_as_str()??;
    let read = |unit| read_text(text, &DataType::Timestamp(unit, to_zone.clone()), zone);
    (read(TimeUnit::Nanosecond).is_none() && read(TimeUnit::Second).is_some()).then_some(text)
}

/// A literal's moment in nanoseconds since 1970, where it is a timestamp or text to be read as one.
fn nanos_of(literal: &Expr, zone: Option<&str>) -> Option<i64> {
    match literal {
        Expr::Literal(ScalarValue::TimestampNanosecond(Some(nanos), _), _) => Some(*nanos),
        Expr::Literal(ScalarValue::TimestampMicrosecond(Some(micros), _), _) => {
            micros.checked_mul(1_000)
        }
        Expr::Literal(ScalarValue::TimestampMillisecond(Some(millis), _), _) => {
            millis.checked_mul(1_000_000)
        }
        Expr::Cast(cast) => {
            let DataType::Timestamp(_, to_zone) = cast.field.data_type() else {
                return None;
            };
            match cast.expr.as_ref() {
                Expr::Literal(text, _) if text.try_as_str().is_some() => {
                    let fine = DataType::Timestamp(TimeUnit::Nanosecond, to_zone.clone());
                    match read_text(text.try_as_str()??, &fine, zone)? {
                        ScalarValue::TimestampNanosecond(nanos, _) => nanos,
                        _ => None,
                    }
                }
                inner => nanos_of(inner, zone),
            }
        }
        _ => None,
    }
}
