//! `COPY … FROM` and `COPY … TO` files of the server, in Parquet or CSV; only where the
//! configuration allows it.

use std::sync::Arc;

use datafusion::common::ScalarValue;
use datafusion::config::CsvOptions;
use datafusion::dataframe::{DataFrame, DataFrameWriteOptions};
use datafusion::logical_expr::{Expr, LogicalPlan, col};
use datafusion::prelude::{CsvReadOptions, ParquetReadOptions, SessionContext};
use datafusion::sql::sqlparser::ast::{
    CopyLegacyOption, CopyOption, CopySource, CopyTarget, Ident, Query,
};
use shoal_types::TableSchema;

use super::insert::Writer;
use super::names::{fold, position};
use super::{Outcome, Run};
use crate::QueryError;
use crate::error::{Kind, Result};

/// File formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Parquet,
    Csv,
}

/// `WITH (…)` of a `COPY`.
#[derive(Debug)]
struct CopyOptions {
    format: Format,
    header: bool,
    delimiter: u8,
    quote: u8,
    null: Option<String>,
}

impl CopyOptions {
    fn parse(options: &[CopyOption], legacy: &[CopyLegacyOption], filename: &str) -> Result<Self> {
        let mut out = Self {
            format: if filename.to_lowercase().ends_with(".parquet") {
                Format::Parquet
            } else {
                Format::Csv
            },
            header: false,
            delimiter: b',',
            quote: b'"',
            null: None,
        };
        let byte = |c: char| {
            u8::try_from(c).map_err(|_| {
                QueryError::new(Kind::INVALID_VALUE, format!("{c:?} is not a single byte"))
            })
        };
        for option in options {
            match option {
                CopyOption::Format(name) => {
                    out.format = match fold(name).as_str() {
                        "parquet" => Format::Parquet,
                        "csv" => Format::Csv,
                        other => {
                            return Err(QueryError::unsupported(format!(
                                "COPY knows the formats csv and parquet, not {other:?}"
                            ))
                            .at(position(name)));
                        }
                    };
                }
                CopyOption::Header(header) => out.header = *header,
                CopyOption::Delimiter(c) => out.delimiter = byte(*c)?,
                CopyOption::Quote(c) => out.quote = byte(*c)?,
                CopyOption::Null(text) => out.null = Some(text.clone()),
                other => {
                    return Err(QueryError::unsupported(format!(
                        "COPY option {other} is not supported"
                    )));
                }
            }
        }
        if let Some(option) = legacy.first() {
            return Err(QueryError::unsupported(format!(
                "COPY option {option} is not supported; write WITH (FORMAT csv, …)"
            )));
        }
        Ok(out)
    }
}

impl Run<'_> {
    /// `COPY`.
    pub(super) async fn copy(
        &self,
        source: &CopySource,
        to: bool,
        target: &CopyTarget,
        options: &[CopyOption],
        legacy: &[CopyLegacyOption],
    ) -> Result<Outcome> {
        let CopyTarget::File { filename } = target else {
            return Err(QueryError::unsupported(format!(
                "COPY with {target} is not supported; use a file, or `shoal import`"
            )));
        };
        if !self.session.engine().config().copy_files {
            return Err(QueryError::new(
                Kind::NOT_ALLOWED,
                "COPY may not use files of the server: query.copy_files is off; use `shoal import`, or /v1/sql with format=csv",
            ));
        }
        let options = CopyOptions::parse(options, legacy, filename)?;
        match (source, to) {
            (
                CopySource::Table {
                    table_name,
                    columns,
                },
                false,
            ) => {
                let table = self.table(table_name)?;
                let schema = self.session.engine().database().table_schema(&table)?;
                self.copy_from(schema, columns, filename, &options).await
            }
            (
                CopySource::Table {
                    table_name,
                    columns,
                },
                true,
            ) => {
                // Names are looked up first, so that a missing one is reported with its place.
                self.table(table_name)?;
                let list = match columns[..] {
                    [] => "*".to_owned(),
                    _ => {
                        let names: Vec<String> = columns.iter().map(ToString::to_string).collect();
                        names.join(", ")
                    }
                };
                let sql = format!("SELECT {list} FROM {table_name}");
                let plan = self.state.create_logical_plan(&sql).await?;
                self.copy_to(plan, filename, &options).await
            }
            (CopySource::Query(query), true) => {
                let plan = self.plan_query(Query::clone(query)).await?;
                self.copy_to(plan, filename, &options).await
            }
            (CopySource::Query(_), false) => Err(QueryError::new(
                Kind::SYNTAX,
                "COPY (query) FROM: only a table can be copied into",
            )),
        }
    }

    async fn copy_to(
        &self,
        plan: LogicalPlan,
        filename: &str,
        options: &CopyOptions,
    ) -> Result<Outcome> {
        let frame = DataFrame::new(self.state.clone(), plan);
        let write = DataFrameWriteOptions::new().with_single_file_output(true);
        let written = match options.format {
            Format::Parquet => frame.write_parquet(filename, write, None).await?,
            Format::Csv => {
                let csv = CsvOptions {
                    has_header: Some(options.header),
                    delimiter: options.delimiter,
                    quote: options.quote,
                    null_value: options.null.clone(),
                    ..CsvOptions::default()
                };
                frame.write_csv(filename, write, Some(csv)).await?
            }
        };
        let rows = written
            .iter()
            .filter_map(|batch| batch.columns().first())
            .filter_map(|column| ScalarValue::try_from_array(column, 0).ok())
            .map(|count| match count {
                ScalarValue::UInt64(Some(rows)) => rows,
                _ => 0,
            })
            .sum();
        Ok(Outcome::Affected {
            tag: format!("COPY {rows}"),
            rows,
            commit: None,
        })
    }

    async fn copy_from(
        &self,
        schema: Arc<TableSchema>,
        columns: &[Ident],
        filename: &str,
        options: &CopyOptions,
    ) -> Result<Outcome> {
        let wanted = wanted_columns(&schema, columns)?;
        let context = SessionContext::new_with_state(self.state.clone());
        let frame = match options.format {
            Format::Parquet => {
                let read = ParquetReadOptions {
                    file_extension: extension(filename),
                    ..Default::default()
                };
                context.read_parquet(filename, read).await?
            }
            Format::Csv => {
                let arrow = schema.arrow();
                let fields: Vec<_> = wanted
                    .iter()
                    .map(|i| arrow.field(*i).clone().with_nullable(true))
                    .collect();
                let csv_schema = arrow_schema::Schema::new(fields);
                let mut read = CsvReadOptions::new();
                read.has_header = options.header;
                read.delimiter = options.delimiter;
                read.quote = options.quote;
                read.file_extension = extension(filename);
                read.null_regex = options.null.as_ref().map(|text| regex_of(text));
                // With a header, columns are found by name and may stand in any order.
                if !options.header {
                    read.schema = Some(&csv_schema);
                }
                context.read_csv(filename, read.clone()).await?
            }
        };
        let arrow = schema.arrow();
        let mut exprs: Vec<Expr> = Vec::new();
        let mut ids = Vec::new();
        for i in wanted {
            let field = arrow.field(i);
            let is_there = frame
                .schema()
                .fields()
                .iter()
                .any(|f| f.name() == field.name());
            if is_there {
                let column = col(datafusion::common::Column::new_unqualified(field.name()));
                // The writer casts, and names the column where that fails.
                exprs.push(column.alias(field.name()));
                ids.push(schema.columns[i].id);
            } else if !columns.is_empty() {
                return Err(QueryError::new(
                    Kind::UNDEFINED_COLUMN,
                    format!("the file has no column {:?}", field.name()),
                ));
            }
        }
        if exprs.is_empty() {
            return Err(QueryError::new(
                Kind::UNDEFINED_COLUMN,
                "the file has none of the table's columns; a CSV file without a header needs HEADER false",
            ));
        }
        let plan = frame.select(exprs)?.into_unoptimized_plan();
        let stream = self.stream(plan).await?;
        let (rows, commit) = Writer::new(self, schema, ids).write_all(stream).await?;
        Ok(Outcome::Affected {
            tag: format!("COPY {rows}"),
            rows,
            commit,
        })
    }
}

/// DataFusion reads only files whose name ends as told.
fn extension(filename: &str) -> &str {
    let name = filename.rsplit('/').next().unwrap_or(filename);
    name.find('.').map_or("", |at| &name[at..])
}

fn regex_of(text: &str) -> String {
    let mut out = String::from("^");
    for c in text.chars() {
        if !c.is_alphanumeric() {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('$');
    out
}

fn wanted_columns(schema: &TableSchema, columns: &[Ident]) -> Result<Vec<usize>> {
    if columns.is_empty() {
        return Ok((0..schema.columns.len()).collect());
    }
    columns
        .iter()
        .map(|ident| {
            let name = fold(ident);
            schema
                .columns
                .iter()
                .position(|c| c.name == name)
                .ok_or_else(|| {
                    QueryError::new(
                        Kind::UNDEFINED_COLUMN,
                        format!("column {name:?} does not exist"),
                    )
                    .at(position(ident))
                })
        })
        .collect()
}
