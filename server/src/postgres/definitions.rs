//! Functions that give definitions as text: `pg_get_indexdef`, `pg_get_constraintdef`,
//! `pg_get_expr`.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{Array, StringArray};
use arrow_schema::DataType;
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature,
    Volatility,
};

use super::indexes::Known;

/// All of them.
pub fn all(known: &Arc<Known>) -> impl Iterator<Item = ScalarUDF> {
    use DataType::{Boolean, Int16, Int32, Int64, Utf8};
    let one_of = |shapes: Vec<Vec<DataType>>| {
        let shapes = shapes.into_iter().map(TypeSignature::Exact).collect();
        Signature::one_of(shapes, Volatility::Stable)
    };
    [
        (
            "pg_get_indexdef",
            Of::Index,
            one_of(vec![
                vec![Int32],
                vec![Int32, Int32, Boolean],
                vec![Int32, Int64, Boolean],
            ]),
        ),
        (
            "pg_get_constraintdef",
            Of::Constraint,
            one_of(vec![vec![Int32], vec![Int32, Boolean]]),
        ),
        (
            "pg_get_expr",
            Of::Expression,
            one_of(vec![
                vec![Utf8, Int32],
                vec![Utf8, Int64],
                vec![Utf8, Int32, Boolean],
                vec![Utf8, Int64, Boolean],
            ]),
        ),
        (
            // Ours: a column's default, by the table's oid and the column's number.
            "shoal_column_default",
            Of::Default,
            one_of(vec![vec![Int32, Int16], vec![Int32, Int32]]),
        ),
    ]
    .map(|(name, of, signature)| {
        ScalarUDF::new_from_impl(Definition {
            name,
            of,
            signature,
            known: Arc::clone(known),
        })
    })
    .into_iter()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Of {
    Index,
    Constraint,
    /// Expressions are kept as their text.
    Expression,
    Default,
}

#[derive(Debug)]
struct Definition {
    name: &'static str,
    of: Of,
    signature: Signature,
    known: Arc<Known>,
}

impl PartialEq for Definition {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.known, &other.known)
    }
}

impl Eq for Definition {}

impl Hash for Definition {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Definition {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        if self.of == Of::Expression {
            return Ok(ColumnarValue::Array(Arc::clone(&arrays[0])));
        }
        let oids = arrays[0].as_primitive::<Int32Type>();
        let columns = match arrays.get(1) {
            Some(array) if array.data_type() != &DataType::Boolean => {
                Some(arrow_cast::cast(array, &DataType::Int32)?)
            }
            _ => None,
        };
        let column = |row: usize| {
            let columns = columns.as_ref()?.as_primitive::<Int32Type>();
            columns.is_valid(row).then(|| columns.value(row))
        };
        let texts: StringArray = oids
            .iter()
            .enumerate()
            .map(|(row, oid)| match self.of {
                Of::Index => self.known.index_definition(oid?, column(row).unwrap_or(0)),
                Of::Default => self.known.column_default(oid?, column(row)?),
                _ => self.known.constraint_definition(oid?),
            })
            .collect();
        Ok(ColumnarValue::Array(Arc::new(texts)))
    }
}
