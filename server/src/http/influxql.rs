//! `/query`: the few InfluxQL statements that InfluxDB's clients send before they write. Queries
//! themselves are SQL, at `/v1/sql`. A database is a schema.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use shoal_engine::EngineError;
use shoal_types::Retry;

use super::error::ApiError;
use super::form;
use super::names;
use super::state::AppState;
use super::write::refuse_own_schema;
use crate::auth::url_pairs;

/// A statement that is understood.
#[derive(Debug, PartialEq, Eq)]
enum Statement {
    CreateDatabase(String),
    DropDatabase(String),
    ShowDatabases,
    /// Of the database named, or of the request's.
    ShowMeasurements(Option<String>),
    /// Retention is a table's TTL here; clients only look for the default policy.
    ShowRetentionPolicies,
}

/// Where statements go that name no schema.
const DEFAULT_SCHEMA: &str = "public";

/// Most statements of one request.
const STATEMENTS_MAX: usize = 100;

/// Runs the statements of `q`, from the query string or a form body.
pub async fn query(
    State(state): State<Arc<AppState>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match answer(&state, query.as_deref().unwrap_or(""), &headers, body).await {
        Ok(results) => Json(json!({ "results": results })).into_response(),
        Err(error) => error.influx_response(Map::new()),
    }
}

async fn answer(
    state: &AppState,
    query: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Vec<Value>, ApiError> {
    let body = state.intake.read(headers, body).await?;
    let form = form::fields(headers, body.bytes.clone()).await?;
    let pairs: Vec<(String, String)> = url_pairs(query).collect();
    let named = pairs.iter().map(|(k, _)| k.as_str());
    names::check_influx(named, names::INFLUX_QUERY)?;
    if form::is_form(headers) {
        let named = form.iter().map(|(k, _)| k.as_str());
        names::check_influx(named, names::INFLUX_QUERY)?;
    }
    let find = |name: &str| {
        let mut all = pairs.iter().chain(&form);
        all.find(|(k, _)| k == name).map(|(_, v)| v.clone())
    };
    let Some(text) = find("q").filter(|q| !q.trim().is_empty()) else {
        return Err(ApiError::invalid(
            "invalid_request",
            "missing required parameter \"q\"",
        ));
    };
    let database = find("db");
    let statements = parse(&text).map_err(|what| {
        ApiError::invalid("invalid_request", format!("error parsing query: {what}"))
    })?;
    let mut results = Vec::with_capacity(statements.len());
    for (id, statement) in statements.iter().enumerate() {
        let mut result = match run(state, statement, database.as_deref()).await {
            Ok(result) => result,
            // InfluxDB reports a statement's own failure inside a 200.
            Err(error) if error.retry() == Retry::Never => json!({ "error": error.to_string() }),
            Err(error) => return Err(error.into()),
        };
        result["statement_id"] = id.into();
        results.push(result);
    }
    Ok(results)
}

async fn run(
    state: &AppState,
    statement: &Statement,
    database: Option<&str>,
) -> Result<Value, EngineError> {
    Ok(match statement {
        Statement::CreateDatabase(name) => {
            if let Err(refused) = refuse_own_schema(name) {
                return Err(EngineError::Invalid(refused.message));
            }
            state.db.create_schema(name, true).await?;
            json!({})
        }
        Statement::DropDatabase(name) => {
            state.db.drop_schema(name, true, true).await?;
            if name == DEFAULT_SCHEMA {
                // SQL without a schema goes here: emptied, not gone.
                state.db.create_schema(name, true).await?;
            }
            json!({})
        }
        Statement::ShowDatabases => {
            let names = state.db.schema_names();
            series(
                "databases",
                &["name"],
                names.into_iter().map(|n| json!([n])),
            )
        }
        Statement::ShowMeasurements(on) => {
            let name = on.as_deref().or(database).unwrap_or(DEFAULT_SCHEMA);
            if !state.db.schema_names().iter().any(|n| n == name) {
                return Err(EngineError::Invalid(format!("database not found: {name}")));
            }
            let tables = state.db.tables(name);
            series(
                "measurements",
                &["name"],
                tables.into_iter().map(|t| json!([t.name])),
            )
        }
        Statement::ShowRetentionPolicies => series(
            "",
            &[
                "name",
                "duration",
                "shardGroupDuration",
                "replicaN",
                "default",
            ],
            std::iter::once(json!(["autogen", "0s", "168h0m0s", 1, true])),
        ),
    })
}

fn series(name: &str, columns: &[&str], values: impl Iterator<Item = Value>) -> Value {
    let mut series = Map::new();
    if !name.is_empty() {
        series.insert("name".into(), name.into());
    }
    series.insert("columns".into(), json!(columns));
    let values: Vec<Value> = values.collect();
    if values.is_empty() && name == "measurements" {
        // As InfluxDB: no measurements, no series.
        return json!({});
    }
    series.insert("values".into(), values.into());
    json!({ "series": [series] })
}

fn parse(text: &str) -> Result<Vec<Statement>, String> {
    let mut statements = Vec::new();
    for tokens in split(text)? {
        if statements.len() == STATEMENTS_MAX {
            return Err(format!("more than {STATEMENTS_MAX} statements"));
        }
        statements.push(statement(&tokens)?);
    }
    if statements.is_empty() {
        return Err("no statement".into());
    }
    Ok(statements)
}

#[derive(Debug, PartialEq)]
enum Token {
    /// As written.
    Word(String),
    /// Within double quotes.
    Quoted(String),
    /// Within single quotes: a text, never a name.
    Text(String),
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(w) if w.eq_ignore_ascii_case(word))
    }
    fn name(&self) -> &str {
        match self {
            Self::Word(text) | Self::Quoted(text) | Self::Text(text) => text,
        }
    }
}

/// Statements at `;`, each as its tokens.
fn split(text: &str) -> Result<Vec<Vec<Token>>, String> {
    let mut all = vec![Vec::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let tokens = all.last_mut().expect("begins with one statement");
        match c {
            ';' => all.push(Vec::new()),
            c if c.is_whitespace() => {}
            quote @ ('"' | '\'') => {
                let mut name = String::new();
                loop {
                    match chars.next() {
                        None => return Err(format!("the quote {quote} is not closed")),
                        Some(c) if c == quote => break,
                        Some('\\') => name.extend(chars.next()),
                        Some(c) => name.push(c),
                    }
                }
                tokens.push(if quote == '"' {
                    Token::Quoted(name)
                } else {
                    Token::Text(name)
                });
            }
            c => {
                let mut word = String::from(c);
                while let Some(next) = chars.next_if(|n| !n.is_whitespace() && !";\"'".contains(*n))
                {
                    word.push(next);
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    all.retain(|tokens| !tokens.is_empty());
    Ok(all)
}

fn statement(tokens: &[Token]) -> Result<Statement, String> {
    let words = |words: &[&str]| {
        tokens.len() >= words.len() && words.iter().zip(tokens).all(|(w, t)| t.is(w))
    };
    let name_at = |at: usize| match tokens.get(at) {
        None => Err("a database name is missing".to_owned()),
        Some(Token::Text(text)) => Err(format!(
            "'{text}' is a text; a name stands alone or in double quotes: \"{text}\""
        )),
        Some(name) => Ok(name.name().to_owned()),
    };
    let ends_at = |at: usize| match tokens.get(at) {
        None => Ok(()),
        Some(more) => Err(format!("found {:?}, expected ; or the end", more.name())),
    };
    if words(&["CREATE", "DATABASE"]) {
        // A WITH clause (duration, replication) follows at will; retention is TTL here.
        let at = if words(&["CREATE", "DATABASE", "IF", "NOT", "EXISTS"]) {
            5
        } else {
            2
        };
        if !tokens.get(at + 1).is_some_and(|t| t.is("WITH")) {
            ends_at(at + 1)?;
        }
        return name_at(at).map(Statement::CreateDatabase);
    }
    if words(&["DROP", "DATABASE"]) {
        let at = if words(&["DROP", "DATABASE", "IF", "EXISTS"]) {
            4
        } else {
            2
        };
        ends_at(at + 1)?;
        return name_at(at).map(Statement::DropDatabase);
    }
    if words(&["SHOW", "DATABASES"]) {
        ends_at(2)?;
        return Ok(Statement::ShowDatabases);
    }
    if words(&["SHOW", "MEASUREMENTS"]) {
        return match tokens.get(2) {
            None => Ok(Statement::ShowMeasurements(None)),
            Some(on) if on.is("ON") && tokens.len() == 4 => {
                name_at(3).map(|n| Statement::ShowMeasurements(Some(n)))
            }
            Some(_) => Err("SHOW MEASUREMENTS takes ON and a database only".into()),
        };
    }
    if words(&["SHOW", "RETENTION", "POLICIES"]) {
        return Ok(Statement::ShowRetentionPolicies);
    }
    let shown: Vec<&str> = tokens.iter().take(4).map(Token::name).collect();
    Err(format!(
        "{:?} is not understood here; /query takes CREATE DATABASE, DROP DATABASE, SHOW DATABASES, SHOW MEASUREMENTS and SHOW RETENTION POLICIES. Queries are SQL: POST /v1/sql",
        shown.join(" ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statements_that_clients_send_are_understood() {
        assert_eq!(
            parse(r#"CREATE DATABASE "my \"db\"" WITH DURATION 1d; show databases;"#),
            Ok(vec![
                Statement::CreateDatabase("my \"db\"".into()),
                Statement::ShowDatabases
            ])
        );
        assert_eq!(
            parse("DROP DATABASE telegraf;SHOW MEASUREMENTS ON \"x\""),
            Ok(vec![
                Statement::DropDatabase("telegraf".into()),
                Statement::ShowMeasurements(Some("x".into()))
            ])
        );
        for bad in [
            "SELECT * FROM cpu",
            "CREATE DATABASE",
            ";",
            "DROP DATABASE \"x",
            "DROP DATABASE a b",
            "CREATE DATABASE my'db",
            "SHOW DATABASES x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let error = parse("CREATE DATABASE 'a'").expect_err("a text");
        assert!(error.contains("\"a\""), "{error}");
        assert_eq!(
            parse("SHOW DATABASES; ; show databases;").map(|s| s.len()),
            Ok(2)
        );
    }
}
