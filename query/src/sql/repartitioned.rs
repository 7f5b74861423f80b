//! `ALTER TABLE … SPLIT PARTITION` and `MERGE PARTITIONS`.

use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::Ident;
use shoal_engine::TableHandle;
use shoal_types::{Column, ColumnId, CutPoint, Extent, TableSchema};

use super::names::{fold, position};
use super::partitions::Value;
use super::{Outcome, Run};
use crate::QueryError;
use crate::error::{Kind, Result, nearest};
use crate::table::encode_values as encode;

impl Run<'_> {
    /// Cuts a partition of a table in two.
    pub(super) async fn split_partition(
        &self,
        table: &TableHandle,
        name: Option<&Ident>,
        at: &[Value],
        right: Option<&Ident>,
    ) -> Result<Outcome> {
        let db = self.session.engine().database();
        let partition = match name {
            Some(name) => named_partition(table, name)?,
            None => sole_partition(table)?,
        };
        let at = match at {
            [] => None,
            at => Some(self.cut_point(&*db.table_schema(table)?, &partition, at)?),
        };
        let place = name.map(position).unwrap_or_default();
        db.split_partition(&partition, at, right.map(fold))
            .await
            .map_err(|error| QueryError::from(error).at(place))?;
        Ok(Outcome::done("ALTER TABLE"))
    }

    /// Makes one partition of two.
    pub(super) async fn merge_partitions(
        &self,
        table: &TableHandle,
        names: &[Ident; 2],
    ) -> Result<Outcome> {
        let db = self.session.engine().database();
        let [a, b] = names;
        let place = position(a);
        let (a, b) = (named_partition(table, a)?, named_partition(table, b)?);
        let is_left = |left: &TableHandle, right: &TableHandle| {
            let parts = left.part().zip(right.part());
            parts.is_some_and(|(left, right)| left.extent.join(&right.extent).is_some())
        };
        let (left, right) = match is_left(&b, &a) && !is_left(&a, &b) {
            true => (b, a),
            false => (a, b),
        };
        db.merge_partitions(&left, &right)
            .await
            .map_err(|error| QueryError::from(error).at(place))?;
        Ok(Outcome::done("ALTER TABLE"))
    }

    fn cut_point(
        &self,
        schema: &TableSchema,
        partition: &TableHandle,
        at: &[Value],
    ) -> Result<CutPoint> {
        let place = at[0].position;
        let invalid = |what: String| QueryError::new(Kind::INVALID_DEFINITION, what).at(place);
        let bounds = partition.bounds();
        let columns: &[ColumnId] = match bounds.as_ref().map(|bounds| &bounds.extent) {
            Some(Extent::Slots(slots)) => {
                let slot = match at {
                    [slot] => self.slot(slot)?,
                    _ => None,
                };
                return slot.map(CutPoint::Slot).ok_or_else(|| {
                    invalid(format!(
                        "a HASH partition is cut at one of its slots: a number from {} to {}",
                        slots.from + 1,
                        slots.to.saturating_sub(1)
                    ))
                });
            }
            Some(Extent::Values {
                within: Some(within),
                ..
            }) => &within.columns,
            Some(Extent::Keys(_)) => bounds.as_ref().map_or(&[], |bounds| &bounds.by.columns),
            // A LIST partition, or a table that is one partition: by the key.
            Some(Extent::Values { within: None, .. }) | None => &schema.key,
        };
        let columns: Vec<&Column> = columns
            .iter()
            .filter_map(|id| schema.column_by_id(*id))
            .collect();
        if at.len() > columns.len() {
            let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
            return Err(invalid(format!(
                "{} values to cut at for the columns ({}) that the partition is measured by",
                at.len(),
                names.join(", ")
            )));
        }
        let values = at.iter().zip(&columns);
        let values = values
            .map(|(value, column)| self.value(value, column))
            .collect::<Result<Vec<ScalarValue>>>()?;
        Ok(CutPoint::Key(encode(&columns[..at.len()], &values)?))
    }

    fn slot(&self, value: &Value) -> Result<Option<u32>> {
        let stored = super::constants::constant(
            &self.state,
            &value.expr,
            Some(&arrow_schema::DataType::Int64),
            self.params,
        )?;
        Ok(match stored {
            ScalarValue::Int64(Some(slot)) => u32::try_from(slot).ok(),
            _ => None,
        })
    }
}

fn named_partition(table: &TableHandle, name: &Ident) -> Result<TableHandle> {
    let wanted = fold(name);
    let partitions = table.partitions();
    let of = |p: &TableHandle| p.part().map(|part| part.name.clone());
    if let Some(found) = partitions.iter().find(|p| of(p).as_ref() == Some(&wanted)) {
        return Ok(found.clone());
    }
    let names: Vec<String> = partitions.iter().filter_map(of).collect();
    let error = QueryError::new(
        Kind::UNDEFINED_TABLE,
        format!(
            "partition {wanted:?} of table {:?} does not exist",
            table.name
        ),
    )
    .at(position(name));
    Err(match nearest(&wanted, names.iter().map(String::as_str)) {
        Some(near) => error.with_hint(format!("did you mean {near:?}?")),
        None => error,
    })
}

fn sole_partition(table: &TableHandle) -> Result<TableHandle> {
    let mut partitions = table.partitions();
    if partitions.len() > 1 {
        return Err(QueryError::new(
            Kind::INVALID_DEFINITION,
            format!(
                "table {:?} has {} partitions: SPLIT PARTITION and the name of one",
                table.name,
                partitions.len()
            ),
        ));
    }
    Ok(partitions.swap_remove(0))
}
