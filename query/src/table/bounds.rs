//! What a statement's filters say about a table's key: bounds of the time column and prefixes of
//! the series. Only used to leave things out; the filters themselves are applied above.

use arrow_array::ArrayRef;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, Operator};
use shoal_rows::{Series, encode_series};
use shoal_sst::{SeriesIndex, SstFile};
use shoal_types::{ColumnId, TableMode, TableSchema};
use std::ops::Range;

/// Series prefixes kept; more values than this and the filter does not bound the series.
const PREFIXES_MAX: usize = 1024;

/// Bounds of a scan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bounds {
    /// Smallest and largest time wanted, both included, in the time column's unit.
    pub time: Option<(i64, i64)>,
    /// Encodings of the leading key columns wanted, sorted; `None`: any.
    pub prefixes: Option<Vec<Vec<u8>>>,
    /// The prefixes name whole series.
    pub whole_series: bool,
    /// Only the last row of each series is wanted.
    pub last_rows: bool,
}

impl Bounds {
    /// Reads the conjunction `filters`.
    pub(crate) fn of(schema: &TableSchema, filters: &[Expr]) -> Self {
        let time = match schema.time_column {
            // Below a merge only key columns may leave rows out: an older version of a row would
            // come to light where its newer one was skipped.
            Some(id) if schema.mode == TableMode::Append || schema.is_key(id) => {
                time_bounds(schema, id, filters)
            }
            _ => None,
        };
        let (prefixes, whole_series) = prefixes(schema, filters);
        Self {
            time,
            prefixes,
            whole_series,
            last_rows: false,
        }
    }

    /// Whether a source with these times can hold wanted rows.
    pub(crate) fn meets_times(&self, range: Option<(i64, i64)>) -> bool {
        match (self.time, range) {
            (Some(wanted), Some(has)) => has.0 <= wanted.1 && wanted.0 <= has.1,
            _ => true,
        }
    }

    /// Whether a file can hold wanted rows.
    pub(crate) fn meets_file(&self, file: &SstFile) -> bool {
        if !self.meets_times(file.time_range) {
            return false;
        }
        match &self.prefixes {
            None => true,
            Some(prefixes) => prefixes.iter().any(|prefix| {
                let after_min = prefix.as_slice() >= file.key_min.as_slice()
                    || file.key_min.starts_with(prefix);
                prefix.as_slice() <= file.key_max.as_slice() && after_min
            }),
        }
    }

    /// The last rows of a file's wanted series.
    pub(crate) fn last_of(&self, index: &SeriesIndex) -> Vec<Range<u64>> {
        let is_wanted = |key: &[u8]| {
            self.prefixes
                .as_ref()
                .is_none_or(|prefixes| prefixes.iter().any(|prefix| key.starts_with(prefix)))
        };
        index
            .ranges()
            .filter(|(key, range)| range.end > range.start && is_wanted(key))
            .map(|(_, range)| range.end - 1..range.end)
            .collect()
    }

    /// The rows of a file that belong to wanted series, ascending and disjoint; `None`: the
    /// filters do not bound the series.
    pub(crate) fn rows(&self, index: &SeriesIndex) -> Option<Vec<Range<u64>>> {
        let prefixes = self.prefixes.as_ref()?;
        let mut out: Vec<Range<u64>> = Vec::new();
        for prefix in prefixes {
            let mut at = index.first_at_or_after(prefix);
            while at < index.len() && index.key(at).starts_with(prefix) {
                let range = index.range(at);
                match out.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => out.push(range),
                }
                at += 1;
            }
        }
        Some(out)
    }
}

fn time_bounds(schema: &TableSchema, id: ColumnId, filters: &[Expr]) -> Option<(i64, i64)> {
    let name = &schema.column_by_id(id)?.name;
    let (mut low, mut high) = (i64::MIN, i64::MAX);
    let all = filters.iter().flat_map(|filter| comparisons(filter, name));
    for (op, value) in all {
        let Some(value) = time_of(value) else {
            continue;
        };
        match op {
            Operator::Eq => {
                low = low.max(value);
                high = high.min(value);
            }
            Operator::Gt => low = low.max(value.saturating_add(1)),
            Operator::GtEq => low = low.max(value),
            Operator::Lt => high = high.min(value.saturating_sub(1)),
            Operator::LtEq => high = high.min(value),
            _ => {}
        }
    }
    (low != i64::MIN || high != i64::MAX).then_some((low, high))
}

/// What a filter compares a column with, as if the column stood on the left; all of it holds where
/// the filter is true. Empty: it says something else.
pub(super) fn comparisons<'a>(filter: &'a Expr, column: &str) -> Vec<(Operator, &'a ScalarValue)> {
    let is_it = |expr: &Expr| matches!(expr, Expr::Column(named) if named.name == column);
    match filter {
        Expr::BinaryExpr(binary) => match (binary.left.as_ref(), binary.right.as_ref()) {
            (left, Expr::Literal(value, _)) if is_it(left) => vec![(binary.op, value)],
            (Expr::Literal(value, _), right) if is_it(right) => {
                let op = binary.op.swap();
                op.map(|op| (op, value)).into_iter().collect()
            }
            _ => Vec::new(),
        },
        Expr::Between(between) if !between.negated && is_it(&between.expr) => {
            match (between.low.as_ref(), between.high.as_ref()) {
                (Expr::Literal(from, _), Expr::Literal(to, _)) => {
                    vec![(Operator::GtEq, from), (Operator::LtEq, to)]
                }
                _ => Vec::new(),
            }
        }
        _ => Vec::new(),
    }
}

/// The planner has cast literals to the column's unit already.
fn time_of(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::TimestampSecond(value, _)
        | ScalarValue::TimestampMillisecond(value, _)
        | ScalarValue::TimestampMicrosecond(value, _)
        | ScalarValue::TimestampNanosecond(value, _) => *value,
        _ => None,
    }
}

/// Encodings of the leading series columns that the filters fix, and whether those are all.
fn prefixes(schema: &TableSchema, filters: &[Expr]) -> (Option<Vec<Vec<u8>>>, bool) {
    // Tuples of values of the first columns, column by column.
    let mut tuples: Vec<Vec<ScalarValue>> = vec![Vec::new()];
    let mut columns = Vec::new();
    for id in schema.series_columns() {
        let Some(column) = schema.column_by_id(*id) else {
            break;
        };
        let Some(values) = filters
            .iter()
            .filter_map(|filter| values_of(filter, &column.name))
            .min_by_key(Vec::len)
        else {
            break;
        };
        let data_type = column.column_type.arrow();
        let Ok(values) = values
            .iter()
            .map(|value| value.cast_to(&data_type))
            .collect::<Result<Vec<_>, _>>()
        else {
            break;
        };
        if tuples.len().saturating_mul(values.len()) > PREFIXES_MAX {
            break;
        }
        tuples = tuples
            .iter()
            .flat_map(|tuple| {
                values.iter().map(|value| {
                    let mut longer = tuple.clone();
                    longer.push(value.clone());
                    longer
                })
            })
            .collect();
        columns.push(*id);
    }
    if columns.is_empty() {
        return (None, false);
    }
    let whole = columns.len() == schema.series_columns().len();
    let arrays: Result<Vec<ArrayRef>, _> = (0..columns.len())
        .map(|i| ScalarValue::iter_to_array(tuples.iter().map(|tuple| tuple[i].clone())))
        .collect();
    if tuples.is_empty() {
        return (Some(Vec::new()), whole);
    }
    let Ok(values) = arrays else {
        return (None, false);
    };
    let series = Series {
        columns,
        values,
        len: tuples.len(),
    };
    let mut out: Vec<Vec<u8>> = (0..series.len)
        .map(|i| {
            let mut bytes = Vec::new();
            encode_series(&series, i, &mut bytes);
            bytes
        })
        .collect();
    out.sort_unstable();
    out.dedup();
    (Some(out), whole)
}

/// The only values that `column` may have for `filter` to be true; NULL never is one.
pub(super) fn values_of(filter: &Expr, column: &str) -> Option<Vec<ScalarValue>> {
    match filter {
        Expr::BinaryExpr(binary) => {
            match (binary.left.as_ref(), binary.op, binary.right.as_ref()) {
                (Expr::Column(named), Operator::Eq, Expr::Literal(value, _))
                | (Expr::Literal(value, _), Operator::Eq, Expr::Column(named))
                    if named.name == column =>
                {
                    Some(not_null([value]))
                }
                (left, Operator::Or, right) => {
                    let mut values = values_of(left, column)?;
                    values.extend(values_of(right, column)?);
                    Some(values)
                }
                (left, Operator::And, right) => {
                    values_of(left, column).or_else(|| values_of(right, column))
                }
                _ => None,
            }
        }
        Expr::InList(list) if !list.negated => {
            let Expr::Column(named) = list.expr.as_ref() else {
                return None;
            };
            if named.name != column {
                return None;
            }
            let values: Option<Vec<&ScalarValue>> = list
                .list
                .iter()
                .map(|item| match item {
                    Expr::Literal(value, _) => Some(value),
                    _ => None,
                })
                .collect();
            Some(not_null(values?))
        }
        _ => None,
    }
}

fn not_null<'a>(values: impl IntoIterator<Item = &'a ScalarValue>) -> Vec<ScalarValue> {
    values
        .into_iter()
        .filter(|value| !value.is_null())
        .cloned()
        .collect()
}
