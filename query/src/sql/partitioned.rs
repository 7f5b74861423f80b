//! Partition clauses with values: what each partition of a table owns.

use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::{Expr, Ident};
use shoal_engine::{EngineError, NewPartition, NewPartitions, TableHandle};
use shoal_types::{Column, Extent, KeyRange, PartitionBy, PartitionMethod, TableSchema};

use super::constants::constant;
use super::names::{fold, position, position_of};
use super::partitions::{
    Bound, Part, PartValues, PartitionClause, PartitionStatement, Parts, Value,
};
use super::{Outcome, Run};
use crate::QueryError;
use crate::error::{Kind, Result, nearest};
use crate::table::encode_values as encode;

/// Above every encoding of a further column: values and NULL begin with smaller bytes.
const ABOVE_ALL: u8 = 0xFF;

impl Run<'_> {
    /// The partitions that a table is made with.
    pub(super) fn new_partitions(
        &self,
        clause: &PartitionClause,
        schema: &TableSchema,
    ) -> Result<NewPartitions> {
        let columns = clause
            .columns
            .iter()
            .map(|ident| column_of(schema, ident))
            .collect::<Result<Vec<_>>>()?;
        let by = PartitionBy {
            method: clause.method,
            columns: columns.iter().map(|column| column.id).collect(),
        };
        let partitions = match &clause.parts {
            Parts::Count(count) => return Ok(NewPartitions::hash(by.columns, *count)),
            Parts::Named(parts) => {
                let mut made: Vec<NewPartition> = Vec::with_capacity(parts.len());
                for part in parts {
                    let before = made.last().map(|before| &before.extent);
                    let extent = match before {
                        Some(Extent::Keys(KeyRange { to: None, .. })) => {
                            return Err(not_rising(&part.name, "MAXVALUE"));
                        }
                        Some(Extent::Keys(KeyRange { to: Some(to), .. })) => {
                            let extent = self.extent(part, &columns, to.clone())?;
                            let Extent::Keys(range) = &extent else {
                                return Err(mixed(&part.name));
                            };
                            if range.to.as_ref().is_some_and(|end| *end <= range.from) {
                                return Err(not_rising(&part.name, "that of the one before"));
                            }
                            extent
                        }
                        _ => self.extent(part, &columns, Vec::new())?,
                    };
                    made.push(NewPartition {
                        name: fold(&part.name),
                        extent,
                    });
                }
                made
            }
        };
        Ok(NewPartitions { by, partitions })
    }

    /// What a partition by name owns; `from`: where a range begins.
    fn extent(&self, part: &Part, columns: &[&Column], from: Vec<u8>) -> Result<Extent> {
        match &part.values {
            PartValues::LessThan(bounds) => Ok(Extent::Keys(KeyRange {
                from,
                to: self.upper_bound(bounds, columns)?,
            })),
            PartValues::In(tuples) => {
                let mut values = tuples
                    .iter()
                    .map(|tuple| {
                        let values = tuple.iter().zip(columns);
                        let values = values
                            .map(|(value, column)| self.value(value, column))
                            .collect::<Result<Vec<_>>>()?;
                        Ok(encode(columns, &values)?)
                    })
                    .collect::<Result<Vec<_>>>()?;
                values.sort_unstable();
                values.dedup();
                Ok(Extent::Values {
                    values,
                    within: None,
                })
            }
        }
    }

    fn upper_bound(&self, bounds: &[Bound], columns: &[&Column]) -> Result<Option<Vec<u8>>> {
        let mut values = Vec::with_capacity(bounds.len());
        for (bound, column) in bounds.iter().zip(columns) {
            let Bound::Value(value) = bound else {
                if values.is_empty() {
                    return Ok(None);
                }
                let mut end = encode(&columns[..values.len()], &values)?;
                end.push(ABOVE_ALL);
                return Ok(Some(end));
            };
            let place = value.position;
            let value = self.value(value, column)?;
            if value.is_null() {
                return Err(QueryError::new(
                    Kind::INVALID_DEFINITION,
                    "NULL cannot be a bound: rows with NULL are in the first partition",
                )
                .at(place));
            }
            values.push(value);
        }
        Ok(Some(encode(columns, &values)?))
    }

    pub(super) fn value(&self, value: &Value, column: &Column) -> Result<ScalarValue> {
        if !is_constant(&value.expr) {
            return Err(QueryError::new(
                Kind::INVALID_DEFINITION,
                format!(
                    "column {:?}: {} is no constant; write a value",
                    column.name, value.expr
                ),
            )
            .at(value.position));
        }
        let to = column.column_type.arrow();
        let placed = |error: QueryError| {
            let message = format!("column {:?}: {}", column.name, error.message);
            QueryError { message, ..error }.at(value.position)
        };
        let stored = constant(&self.state, &value.expr, Some(&to), self.params).map_err(placed)?;
        // A number that the column rounds would move rows to the next partition unseen.
        let written = constant(&self.state, &value.expr, None, self.params).map_err(placed)?;
        let written_type = written.data_type();
        if written_type.is_numeric()
            && !written.is_null()
            && stored.cast_to(&written_type).ok().as_ref() != Some(&written)
        {
            return Err(placed(QueryError::new(
                Kind::INVALID_DEFINITION,
                format!("{written} is no {}", column.column_type),
            )));
        }
        Ok(stored)
    }

    /// `ALTER TABLE … ADD | DROP | SPLIT | MERGE PARTITION`.
    pub(super) async fn alter_partitions(&self, change: &PartitionStatement) -> Result<Outcome> {
        let (name, if_table_exists) = change.table();
        let db = self.session.engine().database();
        let (schema_name, table_name) = self.qualified(name)?;
        if if_table_exists && db.table(&schema_name, &table_name).is_none() {
            return Ok(Outcome::done("ALTER TABLE"));
        }
        let table = self.table(name)?;
        let place = position_of(name);
        let placed = |error: EngineError| QueryError::from(error).at(place);
        match change {
            PartitionStatement::Split {
                name, at, right, ..
            } => {
                let done = self.split_partition(&table, name.as_ref(), at, right.as_ref());
                return done.await;
            }
            PartitionStatement::Merge { names, .. } => {
                return self.merge_partitions(&table, names).await;
            }
            PartitionStatement::Add { .. } | PartitionStatement::Drop { .. } => {}
        }
        let Some(layout) = &table.layout else {
            return Err(QueryError::new(
                Kind::INVALID_DEFINITION,
                format!(
                    "table {:?} is not partitioned; make it with PARTITION BY",
                    table.name
                ),
            )
            .at(place));
        };
        if layout.by.method == PartitionMethod::Hash {
            return Err(QueryError::new(
                Kind::INVALID_DEFINITION,
                format!(
                    "the partitions of table {:?} are hash slots, which all belong to one: they are split and merged, not added and dropped",
                    table.name
                ),
            )
            .at(place));
        }
        match change {
            PartitionStatement::Add {
                if_not_exists,
                parts,
                ..
            } => {
                let partitions = self.added(&table, parts)?;
                db.add_partitions(&table, partitions, *if_not_exists)
                    .await
                    .map_err(placed)?;
            }
            PartitionStatement::Drop {
                if_exists, names, ..
            } => {
                let names = names.iter().map(fold).collect();
                db.drop_partitions(&table, names, *if_exists)
                    .await
                    .map_err(placed)?;
            }
            PartitionStatement::Split { .. } | PartitionStatement::Merge { .. } => {}
        }
        Ok(Outcome::done("ALTER TABLE"))
    }

    /// Partitions to be added. A range begins where the highest one below it ends.
    fn added(&self, table: &TableHandle, parts: &[Part]) -> Result<Vec<NewPartition>> {
        let db = self.session.engine().database();
        let schema = db.table_schema(table)?;
        let layout = table.layout.as_ref();
        let by = layout.map(|layout| layout.by.columns.as_slice());
        let columns: Vec<&Column> = by
            .unwrap_or_default()
            .iter()
            .filter_map(|id| schema.column_by_id(*id))
            .collect();
        let known = layout.into_iter().flat_map(|layout| &layout.parts);
        let mut ends: Vec<Vec<u8>> = known
            .filter_map(|part| match &part.extent {
                Extent::Keys(range) => range.to.clone(),
                _ => None,
            })
            .collect();
        let mut made = Vec::with_capacity(parts.len());
        for part in parts {
            let mut extent = self.extent(part, &columns, Vec::new())?;
            let method = layout.map(|layout| layout.by.method);
            let fits = match &extent {
                Extent::Keys(_) => method == Some(PartitionMethod::Range),
                _ => method == Some(PartitionMethod::List),
            };
            if !fits {
                let wanted = match method {
                    Some(PartitionMethod::Range) => "RANGE: VALUES LESS THAN (…)",
                    _ => "LIST: VALUES IN (…)",
                };
                return Err(QueryError::new(
                    Kind::INVALID_DEFINITION,
                    format!(
                        "partition {:?} is of another kind than the table, which is partitioned by {wanted}",
                        fold(&part.name)
                    ),
                )
                .at(position(&part.name)));
            }
            if let Extent::Keys(range) = &mut extent {
                let below = |end: &&Vec<u8>| range.to.as_ref().is_none_or(|to| *end < to);
                range.from = ends.iter().filter(below).max().cloned().unwrap_or_default();
                ends.extend(range.to.clone());
            }
            made.push(NewPartition {
                name: fold(&part.name),
                extent,
            });
        }
        Ok(made)
    }
}

/// Whether an expression means the same value at any time.
fn is_constant(expr: &Expr) -> bool {
    match expr {
        Expr::Value(_) | Expr::TypedString(_) => true,
        Expr::UnaryOp { expr, .. } | Expr::Nested(expr) | Expr::Cast { expr, .. } => {
            is_constant(expr)
        }
        _ => false,
    }
}

fn column_of<'a>(schema: &'a TableSchema, ident: &Ident) -> Result<&'a Column> {
    let name = fold(ident);
    schema.column(&name).ok_or_else(|| {
        let error = QueryError::new(
            Kind::UNDEFINED_COLUMN,
            format!("column {name:?} does not exist"),
        )
        .at(position(ident));
        match nearest(&name, schema.columns.iter().map(|c| c.name.as_str())) {
            Some(near) => error.with_hint(format!("did you mean {near:?}?")),
            None => error,
        }
    })
}

fn not_rising(name: &Ident, before: &str) -> QueryError {
    QueryError::new(
        Kind::INVALID_DEFINITION,
        format!(
            "the bound of partition {:?} is not above {before}: name partitions in ascending order",
            fold(name)
        ),
    )
    .at(position(name))
}

fn mixed(name: &Ident) -> QueryError {
    QueryError::new(
        Kind::INVALID_DEFINITION,
        format!(
            "partition {:?} is of another kind than those before it",
            fold(name)
        ),
    )
    .at(position(name))
}
