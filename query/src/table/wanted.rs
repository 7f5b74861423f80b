//! What a statement's filters want of one column, as encodings: by it partitions are left out.

use std::ops::Bound;

use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, Operator};
use shoal_rows::{Series, Wanted, encode_series};
use shoal_types::{Column, ColumnId, TableSchema};

use super::bounds::{comparisons, values_of};

/// More values than this do not bound a column.
const VALUES_MAX: usize = 1024;
/// The encoding of NULL: below all values.
const NULL: [u8; 1] = [0];

/// What the conjunction `filters` wants of a column. Literals have the column's type, as the planner
/// casts them; a filter that says anything else wants any value.
pub(crate) fn wanted(schema: &TableSchema, id: ColumnId, filters: &[Expr]) -> Wanted {
    let Some(column) = schema.column_by_id(id) else {
        return Wanted::Any;
    };
    if !column.column_type.may_be_key() {
        return Wanted::Any;
    }
    let lists = filters.iter().filter_map(|filter| {
        if is_null(filter, &column.name) {
            return Some(vec![NULL.to_vec()]);
        }
        let values = values_of(filter, &column.name)?;
        let encoded: Option<Vec<_>> = values.iter().map(|value| encode(column, value)).collect();
        encoded.filter(|values| values.len() <= VALUES_MAX)
    });
    match lists.min_by_key(Vec::len) {
        Some(values) => Wanted::Values(values),
        None => range(column, filters),
    }
}

fn is_null(filter: &Expr, column: &str) -> bool {
    let Expr::IsNull(inner) = filter else {
        return false;
    };
    matches!(inner.as_ref(), Expr::Column(named) if named.name == column)
}

fn range(column: &Column, filters: &[Expr]) -> Wanted {
    let (mut low, mut high) = (Bound::Unbounded, Bound::Unbounded);
    for filter in filters {
        let (from, to) = ends(column, filter);
        low = tighter(low, from, |new, old| new > old);
        high = tighter(high, to, |new, old| new < old);
    }
    match (&low, &high) {
        (Bound::Unbounded, Bound::Unbounded) => Wanted::Any,
        // No comparison is true of NULL.
        (Bound::Unbounded, _) => Wanted::Range(Bound::Excluded(NULL.to_vec()), high),
        _ => Wanted::Range(low, high),
    }
}

type End = Bound<Vec<u8>>;

fn tighter(known: End, new: End, is_tighter: impl Fn(&Vec<u8>, &Vec<u8>) -> bool) -> End {
    let value = |end: &End| match end {
        Bound::Included(value) | Bound::Excluded(value) => Some(value.clone()),
        Bound::Unbounded => None,
    };
    match (value(&known), value(&new)) {
        (_, None) => known,
        (Some(old), Some(at)) if old == at => match known {
            Bound::Excluded(_) => known,
            _ => new,
        },
        (Some(old), Some(at)) if !is_tighter(&at, &old) => known,
        _ => new,
    }
}

/// The ends that one filter sets.
fn ends(column: &Column, filter: &Expr) -> (End, End) {
    let (mut low, mut high) = (Bound::Unbounded, Bound::Unbounded);
    for (op, value) in comparisons(filter, &column.name) {
        let Some(at) = comparable(column, value) else {
            continue;
        };
        match op {
            Operator::Gt => low = Bound::Excluded(at),
            Operator::GtEq => low = Bound::Included(at),
            Operator::Lt => high = Bound::Excluded(at),
            Operator::LtEq => high = Bound::Included(at),
            _ => {}
        }
    }
    (low, high)
}

/// The encoding of a value that is of the column's own type: one that was cast to it may not
/// compare as it did before.
fn comparable(column: &Column, value: &ScalarValue) -> Option<Vec<u8>> {
    let same = value.data_type() == column.column_type.arrow() && !value.is_null();
    same.then(|| encode(column, value)).flatten()
}

fn encode(column: &Column, value: &ScalarValue) -> Option<Vec<u8>> {
    let value = value.cast_to(&column.column_type.arrow()).ok()?;
    encode_values(&[column], &[value]).ok()
}

/// The encoding of values, each of its column's type.
pub(crate) fn encode_values(
    columns: &[&Column],
    values: &[ScalarValue],
) -> Result<Vec<u8>, DataFusionError> {
    let arrays: Result<Vec<_>, _> = values.iter().map(ScalarValue::to_array).collect();
    let series = Series {
        columns: columns.iter().map(|column| column.id).collect(),
        values: arrays?,
        len: 1,
    };
    let mut bytes = Vec::new();
    encode_series(&series, 0, &mut bytes);
    Ok(bytes)
}
