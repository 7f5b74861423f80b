//! `SHOW` and `DESCRIBE`.

use arrow_schema::SchemaRef;
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{
    ObjectName, ShowCreateObject, ShowStatementFilter, ShowStatementFilterPosition,
    ShowStatementOptions, Statement as SqlStatement,
};
use shoal_engine::TableHandle;
use shoal_types::{ColumnDefault, TableMode, TableSchema};

use super::names::{fold, parts};
use super::rowset::{text_rows, text_schema};
use super::types::format_ttl;
use super::{Outcome, Run};
use crate::catalog::partition_clause;
use crate::error::Result;
use crate::{QueryError, Session};

const COLUMNS: [&str; 5] = [
    "column_name",
    "data_type",
    "is_nullable",
    "column_default",
    "key",
];

/// Columns of what such a statement answers.
pub(crate) fn schema_of(_session: &Session, body: &DfStatement) -> Option<SchemaRef> {
    let DfStatement::Statement(statement) = body else {
        return None;
    };
    match statement.as_ref() {
        SqlStatement::ShowVariable { variable } => {
            let name = variable_name(variable);
            Some(if name == "all" {
                text_schema(&["name", "setting"])
            } else {
                text_schema(&[&name])
            })
        }
        SqlStatement::ShowTables { .. } => Some(text_schema(&["table_schema", "table_name"])),
        SqlStatement::ShowSchemas { .. } => Some(text_schema(&["schema_name"])),
        SqlStatement::ShowDatabases { .. } => Some(text_schema(&["database_name"])),
        SqlStatement::ShowColumns { .. } | SqlStatement::ExplainTable { .. } => {
            Some(text_schema(&COLUMNS))
        }
        SqlStatement::ShowCreate { .. } => Some(text_schema(&["table_name", "statement"])),
        _ => None,
    }
}

fn variable_name(idents: &[datafusion::sql::sqlparser::ast::Ident]) -> String {
    let words: Vec<String> = idents.iter().map(fold).collect();
    words.join(" ")
}

impl Run<'_> {
    /// `SHOW name`, `SHOW ALL`.
    pub(super) fn show_variable(
        &self,
        variable: &[datafusion::sql::sqlparser::ast::Ident],
    ) -> Result<Outcome> {
        let name = variable_name(variable);
        if name == "all" {
            let rows = self
                .session
                .all_settings()
                .into_iter()
                .map(|(name, value)| vec![Some(name), Some(value)])
                .collect();
            return text_rows(&["name", "setting"], rows);
        }
        let value = self.session.setting(&name)?;
        text_rows(&[&name], vec![vec![Some(value)]])
    }

    /// `SHOW TABLES`.
    pub(super) fn show_tables(&self, options: &ShowStatementOptions) -> Result<Outcome> {
        let schema = match scope(options)? {
            Some(mut parts) => parts.pop().unwrap_or_default(),
            None => self.session.schema(),
        };
        let db = self.session.engine().database();
        let like = Pattern::of(options)?;
        let rows = db
            .tables(&schema)
            .into_iter()
            .filter(|table| like.matches(&table.name))
            .map(|table| vec![Some(table.schema_name), Some(table.name)])
            .collect();
        text_rows(&["table_schema", "table_name"], rows)
    }

    /// `SHOW SCHEMAS`, `SHOW DATABASES`.
    pub(super) fn show_schemas(
        &self,
        options: &ShowStatementOptions,
        column: &str,
    ) -> Result<Outcome> {
        let like = Pattern::of(options)?;
        let rows = self
            .session
            .engine()
            .database()
            .schema_names()
            .into_iter()
            .filter(|name| like.matches(name))
            .map(|name| vec![Some(name)])
            .collect();
        text_rows(&[column], rows)
    }

    /// `SHOW COLUMNS FROM t`.
    pub(super) fn show_columns(&self, options: &ShowStatementOptions) -> Result<Outcome> {
        let name = options
            .show_in
            .as_ref()
            .and_then(|scope| scope.parent_name.as_ref())
            .ok_or_else(|| QueryError::unsupported("SHOW COLUMNS needs FROM table"))?;
        self.describe(name, &Pattern::of(options)?)
    }

    /// `DESCRIBE t`.
    pub(super) fn describe_table(&self, name: &ObjectName) -> Result<Outcome> {
        self.describe(name, &Pattern(None))
    }

    fn describe(&self, name: &ObjectName, like: &Pattern) -> Result<Outcome> {
        let handle = self.table(name)?;
        let schema = self.session.engine().database().table_schema(&handle)?;
        let rows = schema
            .columns
            .iter()
            .filter(|column| like.matches(&column.name))
            .map(|column| {
                let default = column
                    .default
                    .as_ref()
                    .map(|ColumnDefault::Sql(sql)| sql.clone());
                let key = schema
                    .key
                    .iter()
                    .position(|id| *id == column.id)
                    .map(|i| (i + 1).to_string());
                vec![
                    Some(column.name.clone()),
                    Some(column.column_type.to_string()),
                    Some(if column.nullable { "YES" } else { "NO" }.to_owned()),
                    default,
                    key,
                ]
            })
            .collect();
        text_rows(&COLUMNS, rows)
    }

    /// `SHOW CREATE TABLE t`.
    pub(super) fn show_create(
        &self,
        object: &ShowCreateObject,
        name: &ObjectName,
    ) -> Result<Outcome> {
        if !matches!(object, ShowCreateObject::Table) {
            return Err(QueryError::unsupported(format!(
                "SHOW CREATE {object} is not supported"
            )));
        }
        let handle = self.table(name)?;
        let schema = self.session.engine().database().table_schema(&handle)?;
        let statement = create_statement(&handle, &schema);
        text_rows(
            &["table_name", "statement"],
            vec![vec![Some(handle.name), Some(statement)]],
        )
    }
}

/// The statement that makes such a table.
fn create_statement(handle: &TableHandle, schema: &TableSchema) -> String {
    let (schema_name, name) = (&handle.schema_name, &handle.name);
    let mut lines: Vec<String> = schema
        .columns
        .iter()
        .map(|column| {
            let null = if column.nullable { "" } else { " NOT NULL" };
            let default = match &column.default {
                Some(ColumnDefault::Sql(sql)) => format!(" DEFAULT {sql}"),
                None => String::new(),
            };
            format!(
                "  {} {}{null}{default}",
                quoted(&column.name),
                column.column_type
            )
        })
        .collect();
    let name_of = |id| schema.column_by_id(id).map(|c| c.name.clone());
    let key: Vec<String> = schema
        .key
        .iter()
        .filter_map(|id| name_of(*id).map(|name| quoted(&name)))
        .collect();
    if !key.is_empty() {
        lines.push(format!("  PRIMARY KEY ({})", key.join(", ")));
    }
    let mut options = Vec::new();
    if let Some(time) = schema.time_column.and_then(name_of) {
        options.push(format!("time_column = '{}'", time.replace('\'', "''")));
    }
    if let Some(ttl) = schema.ttl_ms {
        options.push(format!("ttl = '{}'", format_ttl(ttl)));
    }
    options.push(
        match schema.mode {
            TableMode::Upsert => "mode = 'upsert'",
            TableMode::Append => "mode = 'append'",
        }
        .to_owned(),
    );
    let clause = partition_clause(handle, schema, quoted);
    format!(
        "CREATE TABLE {}.{} (\n{}\n){} WITH ({})",
        quoted(schema_name),
        quoted(name),
        lines.join(",\n"),
        clause.map_or_else(String::new, |clause| format!(" {clause}")),
        options.join(", ")
    )
}

/// A name as SQL reads it back.
fn quoted(name: &str) -> String {
    let plain = name
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_lowercase() || c == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain && !is_keyword(name) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

fn is_keyword(name: &str) -> bool {
    use datafusion::sql::sqlparser::keywords::ALL_KEYWORDS;
    ALL_KEYWORDS
        .binary_search(&name.to_uppercase().as_str())
        .is_ok()
}

fn scope(options: &ShowStatementOptions) -> Result<Option<Vec<String>>> {
    options
        .show_in
        .as_ref()
        .and_then(|scope| scope.parent_name.as_ref())
        .map(parts)
        .transpose()
}

/// A `LIKE` pattern; `None` takes all.
struct Pattern(Option<(String, bool)>);

impl Pattern {
    fn of(options: &ShowStatementOptions) -> Result<Self> {
        let filter = match &options.filter_position {
            None => return Ok(Self(None)),
            Some(
                ShowStatementFilterPosition::Infix(filter)
                | ShowStatementFilterPosition::Suffix(filter),
            ) => filter,
        };
        Ok(Self(Some(match filter {
            ShowStatementFilter::Like(pattern) | ShowStatementFilter::NoKeyword(pattern) => {
                (pattern.clone(), false)
            }
            ShowStatementFilter::ILike(pattern) => (pattern.to_lowercase(), true),
            ShowStatementFilter::Where(_) => {
                return Err(QueryError::unsupported(
                    "SHOW … WHERE is not supported; query information_schema",
                ));
            }
        })))
    }

    fn matches(&self, name: &str) -> bool {
        match &self.0 {
            None => true,
            Some((pattern, true)) => like(pattern.as_bytes(), name.to_lowercase().as_bytes()),
            Some((pattern, false)) => like(pattern.as_bytes(), name.as_bytes()),
        }
    }
}

/// `LIKE` over bytes: `%` any run, `_` any one byte.
fn like(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'%') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(b'_') => {
                p += 1;
                t += 1;
            }
            Some(c) if *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    star = Some((after, from + 1));
                    p = after;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'%')
}
