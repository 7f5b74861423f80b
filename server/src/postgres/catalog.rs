//! `pg_catalog`: the tables and functions with which PostgreSQL clients look around, and the
//! rewriting that makes their queries fit DataFusion.
//!
//! Both come from the `datafusion-pg-catalog` crate, registered once in the context that all
//! sessions are copied from. Its tables are built when a query reads them, from the catalog alone:
//! a statement that names none of them pays nothing, however many tables there are.
//!
//! Before the crate's rewriting, what depends on the session (`current_setting`, `current_user`,
//! …) is put into the text as literals, since functions are shared by all sessions; then `rewrite`
//! puts what PostgreSQL has and DataFusion lacks into other words.

use std::sync::{Arc, LazyLock};

use arrow_schema::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::CatalogProvider;
use datafusion::datasource::TableType;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::{
    self, PG_CATALOG_TABLES, PgCatalogSchemaProvider, PgCatalogStaticTables, array_bounds_udf,
    catalog_info::CatalogInfo, context::EmptyContextProvider,
    generate_series_arg_coercion::CoerceIntArgsToBigInt, has_privilege_udf, oid_type_planner,
    quote_ident_udf,
};
use datafusion_postgres::datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use shoal_query::{QueryEngine, Session};

use super::indexes::{self, Known};
use super::reg::{self, Objects};
use super::rewrite::Rewriter;
use super::{arrays, completion, definitions, functions, lexer};

/// The one database that every connection is in, whatever name it asked for.
pub const DATABASE: &str = "shoal";

/// Schemas that hold no user tables; their tables are asked from the SQL catalog.
const VIRTUAL_SCHEMAS: &[&str] = &["information_schema", "system"];

/// Makes `pg_catalog` and its functions known to all later sessions of an engine.
///
/// # Errors
/// The catalog refuses the schema.
pub fn register(engine: &Arc<QueryEngine>) -> Result<(), DataFusionError> {
    let context = engine.base_context();
    let statics = Arc::new(PgCatalogStaticTables::try_new()?);
    let tables = Tables {
        engine: Arc::clone(engine),
    };
    let provider =
        PgCatalogSchemaProvider::try_new(tables, Arc::clone(&statics), EmptyContextProvider)?;
    let known = Known::new(engine);
    let objects = Objects::new(Arc::clone(&statics), Arc::clone(&known));
    let schema = indexes::Schema::new(provider, Arc::clone(&known));
    engine
        .catalog()
        .register_schema("pg_catalog", Arc::new(schema))?;
    for name in [
        "has_table_privilege",
        "has_schema_privilege",
        "has_database_privilege",
        "has_any_column_privilege",
    ] {
        context.register_udf(has_privilege_udf::create_has_privilege_udf(name));
    }
    for function in [
        pg_catalog::create_current_database_udf(DATABASE),
        pg_catalog::create_current_schema_udf(),
        pg_catalog::create_current_schemas_udf(),
        pg_catalog::create_pg_get_userbyid_udf(),
        pg_catalog::create_pg_table_is_visible(),
        pg_catalog::create_session_user_udf(),
        pg_catalog::create_pg_get_partkeydef_udf(),
        pg_catalog::create_pg_get_statisticsobjdef_columns_udf(),
        pg_catalog::create_pg_encoding_to_char_udf(),
        pg_catalog::create_pg_relation_size_udf(),
        pg_catalog::create_pg_total_relation_size_udf(),
        pg_catalog::create_pg_stat_get_numscans(),
        pg_catalog::create_pg_get_partition_ancestors_udf(),
        quote_ident_udf::create_quote_ident_udf(),
        quote_ident_udf::create_parse_ident_udf(),
        array_bounds_udf::create_array_upper_udf(),
        array_bounds_udf::create_array_lower_udf(),
    ]
    .into_iter()
    .chain(functions::all())
    .chain(definitions::all(&known))
    .chain(reg::functions(&objects))
    .chain(arrays::functions())
    {
        context.register_udf(function);
    }
    context.register_udtf("pg_get_keywords", Arc::clone(&statics.pg_get_keywords) as _);
    // Names of oid types (`regclass`, …) in casts; DataFusion refuses them without.
    let state = context.state_ref();
    let with_types = SessionStateBuilder::new_from_existing(state.read().clone())
        .with_type_planner(Arc::new(oid_type_planner::PgOidTypePlanner))
        .build();
    *state.write() = with_types;
    CoerceIntArgsToBigInt::widen(context);
    Ok(())
}

/// What the crate asks about schemas and tables, answered without opening any of them.
#[derive(Clone)]
pub struct Tables {
    engine: Arc<QueryEngine>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tables")
    }
}

#[async_trait]
impl CatalogInfo for Tables {
    async fn catalog_names(&self) -> Result<Vec<String>, DataFusionError> {
        Ok(vec![DATABASE.to_owned()])
    }

    async fn schema_names(&self, _: &str) -> Result<Option<Vec<String>>, DataFusionError> {
        let mut names = self.engine.database().schema_names();
        for name in VIRTUAL_SCHEMAS.iter().chain(&["pg_catalog"]) {
            if !names.iter().any(|n| n == name) {
                names.push((*name).to_owned());
            }
        }
        Ok(Some(names))
    }

    async fn table_names(
        &self,
        _: &str,
        schema: &str,
    ) -> Result<Option<Vec<String>>, DataFusionError> {
        if schema == "pg_catalog" {
            let mut names: Vec<String> =
                PG_CATALOG_TABLES.iter().map(ToString::to_string).collect();
            let added = completion::table_names().map(str::to_owned);
            names.extend(added.filter(|name| !PG_CATALOG_TABLES.contains(&name.as_str())));
            return Ok(Some(names));
        }
        if VIRTUAL_SCHEMAS.contains(&schema) {
            return Ok(self
                .engine
                .catalog()
                .schema(schema)
                .map(|s| s.table_names()));
        }
        let tables = self.engine.database().tables(schema);
        Ok(Some(
            tables.into_iter().map(|t| t.name.to_string()).collect(),
        ))
    }

    async fn table_schema(
        &self,
        _: &str,
        schema: &str,
        table: &str,
    ) -> Result<Option<SchemaRef>, DataFusionError> {
        if schema == "pg_catalog" {
            // Known by name, for `'pg_class'::regclass`; their columns are of no use to clients.
            return Ok(Some(Arc::new(Schema::empty())));
        }
        if VIRTUAL_SCHEMAS.contains(&schema) {
            return match self.engine.catalog().schema(schema) {
                Some(provider) => Ok(provider.table(table).await?.map(|t| t.schema())),
                None => Ok(None),
            };
        }
        // A table dropped, or a shard closed, between the listing and this is left out.
        let database = self.engine.database();
        Ok(database
            .table(schema, table)
            .and_then(|handle| database.table_schema(&handle).ok())
            .map(|s| s.arrow()))
    }

    async fn table_type(
        &self,
        _: &str,
        schema: &str,
        _: &str,
    ) -> Result<Option<TableType>, DataFusionError> {
        Ok(Some(if VIRTUAL_SCHEMAS.contains(&schema) {
            TableType::View
        } else {
            TableType::Base
        }))
    }
}

/// Functions, besides those that begin with `pg_`, for which a query is rewritten.
const FUNCTIONS: &[&str] = &[
    "array_lower",
    "array_upper",
    "col_description",
    "current_database",
    "current_schemas",
    "current_setting",
    "format_type",
    "has_any_column_privilege",
    "has_database_privilege",
    "has_schema_privilege",
    "has_table_privilege",
    "obj_description",
    "parse_ident",
    "quote_ident",
    "set_config",
    "shobj_description",
    "to_regclass",
    "to_regtype",
    "version",
];

/// Words that stand for a value of the session without parentheses.
const VARIABLES: &[&str] = &[
    "current_catalog",
    "current_schema",
    "current_user",
    "session_user",
];

/// Whether a statement looks into `pg_catalog`, by its tables, its functions or oid casts.
#[must_use]
pub fn concerns(sql: &str) -> bool {
    if !matches!(
        lexer::words(sql, 8)
            .iter()
            .map(String::as_str)
            .find(|w| *w != "("),
        Some("select" | "with" | "table" | "values" | "explain")
    ) {
        return false;
    }
    let words = lexer::words(sql, usize::MAX);
    words.iter().enumerate().any(|(i, word)| {
        let next = words.get(i + 1).map(String::as_str);
        let word = word.trim_matches('"');
        (word.starts_with("pg_") && (next != Some(".") || word == "pg_catalog"))
            || (next == Some("(") && FUNCTIONS.contains(&word))
            || VARIABLES.contains(&word)
            || (i > 1
                && words[i - 1] == ":"
                && words[i - 2] == ":"
                && (word == "oid" || word.starts_with("reg")))
    })
}

static PARSER: LazyLock<PostgresCompatibilityParser> =
    LazyLock::new(PostgresCompatibilityParser::new);

/// Rewrites a statement that [`concerns`] `pg_catalog` into one that DataFusion runs. One that
/// cannot be parsed comes back as it was, so that the error shows the client's own text.
#[must_use]
pub fn rewrite(sql: &str, session: &Session, pid: i32) -> String {
    if shoal_query::check_complexity(sql).is_err() {
        // The rewriter walks by recursion; the session refuses the text with its place.
        return sql.to_owned();
    }
    let replaced = substitute(sql, session, pid);
    let settings = || {
        let mut all = session.all_settings();
        for (name, value) in functions::SETTINGS {
            if !all.iter().any(|(known, _)| known == name) {
                all.push(((*name).to_owned(), (*value).to_owned()));
            }
        }
        all.sort_unstable();
        all
    };
    let mut rewriter = Rewriter {
        settings: &settings,
        expands: lexer::words(sql, usize::MAX).contains(&"_pg_expandarray".to_owned()),
    };
    let replaced = rewriter.rewrite(&replaced).unwrap_or(replaced);
    match PARSER.parse(&replaced).as_deref() {
        Ok([statement]) => statement.to_string(),
        _ => sql.to_owned(),
    }
}

/// How Grafana asks for the schemas of the search path. The crate answers it with no schema, and
/// then Grafana shows no tables.
const GRAFANA_SEARCH_PATH: &str = r#"SELECT CASE WHEN trim(s[i]) = '"$user"' THEN user ELSE trim(s[i]) END
 FROM generate_series(
 array_lower(string_to_array(current_setting('search_path'),','),1),
 array_upper(string_to_array(current_setting('search_path'),','),1)) as i,
 string_to_array(current_setting('search_path'),',') s"#;

static GRAFANA_WORDS: LazyLock<Vec<String>> =
    LazyLock::new(|| lexer::words(GRAFANA_SEARCH_PATH, usize::MAX));

/// Queries within psql's queries that neither DataFusion nor the crate answers (or wrongly: a query
/// in the select list that names the outer row becomes NULL), and what takes their place.
const PSQL_PARTS: [(&str, &str); 5] = [
    (
        "(SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid, true)
 FROM pg_catalog.pg_attrdef d
 WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.atthasdef)",
        "shoal_column_default(a.attrelid, a.attnum)",
    ),
    // No constraint can be deferred.
    (
        "EXISTS (SELECT 1 FROM pg_catalog.pg_constraint WHERE conrelid = i.indrelid AND conindid = i.indexrelid AND contype IN ('p','u','x') AND condeferrable)",
        "false",
    ),
    (
        "EXISTS (SELECT 1 FROM pg_catalog.pg_constraint WHERE conrelid = i.indrelid AND conindid = i.indexrelid AND contype IN ('p','u','x') AND condeferred)",
        "false",
    ),
    // There are no composite types and no types of arrays.
    (
        "(SELECT c.relkind = 'c' FROM pg_catalog.pg_class c WHERE c.oid = t.typrelid)",
        "false",
    ),
    (
        "NOT EXISTS(SELECT 1 FROM pg_catalog.pg_type el WHERE el.oid = t.typelem AND el.typarray = t.oid)",
        "true",
    ),
];

static PSQL_WORDS: LazyLock<Vec<(Vec<String>, &str)>> = LazyLock::new(|| {
    let words = |(part, instead)| (lexer::words(part, usize::MAX), instead);
    PSQL_PARTS.map(words).into()
});

/// Puts the session's values in for the functions and words that ask for them.
fn substitute(sql: &str, session: &Session, pid: i32) -> String {
    let tokens: Vec<_> = lexer::tokens(sql)
        .filter(lexer::Token::is_significant)
        .collect();
    let words = lexer::words(sql, usize::MAX);
    let literal = |value: &str| format!("'{}'", value.replace('\'', "''"));
    let mut out = String::with_capacity(sql.len());
    let mut copied = 0;
    let mut at = 0;
    while at < words.len() {
        let rest: Vec<&str> = words[at..].iter().take(9).map(String::as_str).collect();
        let qualified = at > 1 && words[at - 1] == "." && words[at - 2] == "pg_catalog";
        let plain = at == 0 || !matches!(words[at - 1].as_str(), "." | "as");
        let found = if words[at..].starts_with(&GRAFANA_WORDS) {
            Some((GRAFANA_WORDS.len(), literal(&session.schema())))
        } else if let Some((part, instead)) = PSQL_WORDS
            .iter()
            .find(|(part, _)| words[at..].starts_with(part))
        {
            Some((part.len(), (*instead).to_owned()))
        } else if rest.starts_with(&["array", "(", "select"]) {
            // DataFusion makes no arrays of queries; what clients gather so (the roles that a
            // role is in) is nothing here.
            Some((closing(&words[at + 1..]) + 2, "'{}'".to_owned()))
        } else if plain || qualified {
            value_for(&rest, session, pid, &literal)
        } else {
            None
        };
        let Some((len, text)) = found else {
            at += 1;
            continue;
        };
        let start = if qualified {
            tokens[at - 2].range.start
        } else {
            tokens[at].range.start
        };
        out.push_str(&sql[copied..start]);
        out.push_str(&text);
        copied = tokens[at + len - 1].range.end;
        at += len;
    }
    out.push_str(&sql[copied..]);
    out
}

/// The place of the parenthesis that closes the one at the start, or of the last word.
fn closing(words: &[String]) -> usize {
    let mut depth = 0_usize;
    for (i, word) in words.iter().enumerate() {
        match word.as_str() {
            "(" => depth += 1,
            ")" if depth <= 1 => return i,
            ")" => depth -= 1,
            _ => {}
        }
    }
    words.len().saturating_sub(1)
}

/// The value that the words at the start ask for, and how many words do.
fn value_for(
    rest: &[&str],
    session: &Session,
    pid: i32,
    literal: &dyn Fn(&str) -> String,
) -> Option<(usize, String)> {
    let setting = |quoted: &str, missing_ok: bool| {
        let name = lexer::value_of(quoted);
        match functions::setting(&name)
            .map(str::to_owned)
            .or_else(|| session.setting(&name).ok())
        {
            Some(value) => Some(literal(&value)),
            None if missing_ok => Some("NULL".to_owned()),
            None => None,
        }
    };
    let is_text = |word: &str| word.starts_with('\'');
    match rest {
        ["current_setting", "(", name, ")", ..] if is_text(name) => {
            Some((4, setting(name, false)?))
        }
        ["current_setting", "(", name, ",", missing, ")", ..] if is_text(name) => {
            Some((6, setting(name, *missing == "true")?))
        }
        ["set_config", "(", name, ",", value, ",", _, ")", ..]
            if is_text(name) && is_text(value) =>
        {
            // As PostgreSQL: the call sets, and gives the new value.
            session
                .set(&lexer::value_of(name), &lexer::value_of(value))
                .ok()?;
            Some((8, (*value).to_owned()))
        }
        ["pg_backend_pid", "(", ")", ..] => Some((3, pid.to_string())),
        // Visible is what can be named without its schema.
        ["pg_table_is_visible", "(", relation, ".", "oid", ")", ..] => Some((
            6,
            format!(
                "({relation}.relnamespace IN (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname IN ({}, 'pg_catalog')))",
                literal(&session.schema())
            ),
        )),
        ["current_schema", "(", ")", ..] => Some((3, literal(&session.schema()))),
        ["current_schema", ..] => Some((1, literal(&session.schema()))),
        ["current_user" | "session_user", ..] => Some((1, literal(session.user()))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_queries_that_look_into_the_catalog_are_rewritten() {
        for sql in [
            "SELECT c.relname FROM pg_catalog.pg_class c",
            "select version()",
            "SELECT 'cpu'::regclass",
            "select current_user",
            "WITH x AS (SELECT oid FROM pg_type) SELECT * FROM x",
        ] {
            assert!(concerns(sql), "{sql}");
        }
        for sql in [
            "SELECT version FROM builds",
            "SELECT 'pg_class' FROM cpu -- pg_class",
            "INSERT INTO t SELECT 'pg_class'",
            "SELECT a::text FROM t",
        ] {
            assert!(!concerns(sql), "{sql}");
        }
    }
}
