//! DataFusion's errors, made into ours: the innermost cause decides the kind, a diagnostic's span
//! or the parser's "Line: …, Column: …" the place, the nearest known name the hint.

use arrow_schema::ArrowError;
use datafusion::common::{Diagnostic, SchemaError};
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;

use super::{Kind, QueryError, nearest};

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        from_ref(&error)
    }
}

impl From<ParserError> for QueryError {
    fn from(error: ParserError) -> Self {
        from_parser(&error)
    }
}

fn from_ref(error: &DataFusionError) -> QueryError {
    match error {
        DataFusionError::Context(_, inner) => from_ref(inner),
        DataFusionError::Shared(inner) => from_ref(inner),
        DataFusionError::Collection(all) => match all.first() {
            Some(first) => from_ref(first),
            None => QueryError::new(Kind::INTERNAL, "an empty collection of errors"),
        },
        DataFusionError::Diagnostic(diagnostic, inner) => {
            with_diagnostic(from_ref(inner), diagnostic)
        }
        DataFusionError::SQL(parser, _) => from_parser(parser),
        DataFusionError::ArrowError(arrow, _) => from_arrow(arrow),
        DataFusionError::ParquetError(parquet) => from_parquet(parquet),
        DataFusionError::ObjectStore(store) => QueryError::new(Kind::IO, store.to_string()),
        DataFusionError::IoError(io) => QueryError::new(Kind::IO, io.to_string()),
        DataFusionError::NotImplemented(what) => QueryError::new(Kind::UNSUPPORTED, tidy(what)),
        DataFusionError::Plan(what) => from_plan(&tidy(what)),
        DataFusionError::Configuration(what) => QueryError::new(Kind::INVALID_VALUE, tidy(what)),
        DataFusionError::SchemaError(schema, _) => from_schema(schema),
        DataFusionError::Execution(what) => from_execution(&tidy(what)),
        DataFusionError::ResourcesExhausted(what) => {
            QueryError::new(Kind::OUT_OF_MEMORY, tidy(what)).with_hint(
                "the statement needs more than the memory and spill limits allow; narrow it, or raise query.memory_bytes_max",
            )
        }
        DataFusionError::External(source) => from_external(source.as_ref()),
        other => QueryError::new(Kind::INTERNAL, tidy(&other.to_string())),
    }
}

fn from_external(source: &(dyn std::error::Error + Send + Sync + 'static)) -> QueryError {
    if let Some(ours) = source.downcast_ref::<QueryError>() {
        return ours.clone();
    }
    if let Some(inner) = source.downcast_ref::<DataFusionError>() {
        return from_ref(inner);
    }
    if let Some(arrow) = source.downcast_ref::<ArrowError>() {
        return from_arrow(arrow);
    }
    from_sources(source)
}

/// Looks for one of our errors below foreign wrappers (Parquet wraps what its reader returned).
fn from_sources(error: &(dyn std::error::Error + 'static)) -> QueryError {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(ours) = current.downcast_ref::<QueryError>() {
            return ours.clone();
        }
        if let Some(sst) = current.downcast_ref::<shoal_sst::SstError>() {
            return sst.into();
        }
        next = current.source();
    }
    QueryError::new(Kind::INTERNAL, error.to_string())
}

fn from_parquet(error: &datafusion::parquet::errors::ParquetError) -> QueryError {
    use datafusion::parquet::errors::ParquetError;
    match error {
        ParquetError::External(source) => from_external(source.as_ref()),
        other => QueryError::new(Kind::DAMAGED, other.to_string()),
    }
}

/// What went wrong in a filter on a file: its reader keeps only the text of it.
fn from_filter(what: &str) -> Option<QueryError> {
    let inner = what.strip_prefix("Error evaluating filter predicate: ")?;
    if inner.contains("DivideByZero") {
        return Some(QueryError::new(Kind::DIVISION_BY_ZERO, "division by zero"));
    }
    let (_, rest) = inner.split_once("code: \"out_of_range\", message: \"")?;
    let (message, _) = rest.split_once("\", retry")?;
    Some(QueryError::new(Kind::OUT_OF_RANGE, message))
}

pub(super) fn from_arrow(error: &ArrowError) -> QueryError {
    match error {
        ArrowError::DivideByZero => QueryError::new(Kind::DIVISION_BY_ZERO, "division by zero"),
        ArrowError::ArithmeticOverflow(what) => QueryError::new(Kind::OUT_OF_RANGE, what.clone()),
        ArrowError::CastError(what) if what.starts_with("Can't cast value") => {
            QueryError::new(Kind::OUT_OF_RANGE, what.clone())
        }
        ArrowError::CastError(what) | ArrowError::ParseError(what) => {
            QueryError::new(Kind::INVALID_TEXT, what.clone())
        }
        // What DataFusion says of a NULL in VALUES for a column that takes none.
        ArrowError::InvalidArgumentError(what) if what.contains("declared as non-nullable") => {
            let column = what.split('\'').nth(1).unwrap_or_default();
            QueryError::new(
                Kind::NOT_NULL,
                format!("null value in column {column:?}, which is NOT NULL"),
            )
        }
        ArrowError::ComputeError(what) | ArrowError::InvalidArgumentError(what) => {
            from_filter(what).unwrap_or_else(|| QueryError::new(Kind::DATA_EXCEPTION, what.clone()))
        }
        ArrowError::NotYetImplemented(what) => QueryError::new(Kind::UNSUPPORTED, what.clone()),
        ArrowError::MemoryError(what) => QueryError::new(Kind::OUT_OF_MEMORY, what.clone()),
        ArrowError::IoError(what, _) => QueryError::new(Kind::IO, what.clone()),
        ArrowError::ExternalError(source) => from_external(source.as_ref()),
        other => QueryError::new(Kind::DATA_EXCEPTION, other.to_string()),
    }
}

fn from_parser(error: &ParserError) -> QueryError {
    match error {
        ParserError::TokenizerError(what) | ParserError::ParserError(what) => {
            let (message, position) = split_position(what);
            QueryError::new(Kind::SYNTAX, message).at(position)
        }
        ParserError::RecursionLimitExceeded => {
            QueryError::new(Kind::SYNTAX, "the statement is nested too deeply")
        }
    }
}

/// Takes "… at Line: 1, Column: 8" off a parser's message.
fn split_position(what: &str) -> (String, Option<(u64, u64)>) {
    let what = tidy(what);
    let Some((message, place)) = what.rsplit_once(" at Line: ") else {
        return (what, None);
    };
    let position = place.split_once(", Column: ").and_then(|(line, column)| {
        let digits: String = column.chars().take_while(char::is_ascii_digit).collect();
        Some((line.parse().ok()?, digits.parse().ok()?))
    });
    match position {
        Some(position) => (message.to_owned(), Some(position)),
        None => (what, None),
    }
}

fn with_diagnostic(mut error: QueryError, diagnostic: &Diagnostic) -> QueryError {
    error = error.at(diagnostic
        .span
        .map(|span| (span.start.line, span.start.column)));
    if error.hint.is_none() {
        error.hint = diagnostic
            .helps
            .first()
            .map(|help| help.message.clone())
            // DataFusion's nearest function, which may be nothing like it: see `near_function`.
            .filter(|help| !help.starts_with("Possible function"))
            .or_else(|| diagnostic.notes.first().map(|note| note.message.clone()));
    }
    error
}

fn from_schema(error: &SchemaError) -> QueryError {
    match error {
        SchemaError::FieldNotFound {
            field,
            valid_fields,
        } => {
            let mut out = QueryError::new(
                Kind::UNDEFINED_COLUMN,
                format!("column {:?} does not exist", field.name),
            );
            let names = valid_fields.iter().map(|f| f.name.as_str());
            if let Some(near) = nearest(&field.name, names.clone()) {
                out = out.with_hint(format!("did you mean {near:?}?"));
            } else if !valid_fields.is_empty() {
                let shown: Vec<&str> = names.take(12).collect();
                out = out.with_hint(format!("there are {}", shown.join(", ")));
            }
            out.at(field
                .spans()
                .first()
                .map(|span| (span.start.line, span.start.column)))
        }
        SchemaError::AmbiguousReference { field } => QueryError::new(
            Kind::AMBIGUOUS_COLUMN,
            format!("column reference {:?} is ambiguous", field.name),
        )
        .at(field
            .spans()
            .first()
            .map(|span| (span.start.line, span.start.column))),
        other => QueryError::new(Kind::DUPLICATE_COLUMN, other.to_string()),
    }
}

fn from_plan(what: &str) -> QueryError {
    if let Some(rest) = what.strip_prefix("table '")
        && let Some((name, _)) = rest.split_once("' not found")
    {
        let name = name.rsplit('.').next().unwrap_or(name);
        return QueryError::new(
            Kind::UNDEFINED_TABLE,
            format!("table {name:?} does not exist"),
        );
    }
    let lower = what.to_lowercase();
    if lower.starts_with("invalid function") {
        let (message, hint) = match what.split_once(".\nDid you mean") {
            Some((message, near)) => (message.to_owned(), near_function(message, near)),
            None => (what.to_owned(), None),
        };
        let mut out = QueryError::new(Kind::UNDEFINED_FUNCTION, message);
        out.hint = hint;
        return out;
    }
    let kind = if lower.contains("no function matches") || lower.contains("failed to coerce") {
        Kind::UNDEFINED_FUNCTION
    } else if lower.contains("placeholder") {
        Kind::UNDEFINED_PARAMETER
    } else if lower.contains("cannot coerce")
        || lower.contains("cannot infer common")
        || lower.contains("incompatible")
        || lower.contains("type mismatch")
    {
        Kind::TYPE_MISMATCH
    } else {
        Kind::INVALID_QUERY
    };
    QueryError::new(kind, what)
}

/// DataFusion names the nearest of its functions however far it is; only a slip is worth a hint.
fn near_function(message: &str, near: &str) -> Option<String> {
    let quoted = |text: &str| text.split('\'').nth(1).map(str::to_lowercase);
    let (asked, near) = (quoted(message)?, quoted(near)?);
    let slips = (asked.chars().count() / 3).max(1);
    (strsim::osa_distance(&asked, &near) <= slips).then(|| format!("did you mean {near:?}?"))
}

fn from_execution(what: &str) -> QueryError {
    let lower = what.to_lowercase();
    let kind = if lower.contains("divide by zero") {
        Kind::DIVISION_BY_ZERO
    } else if lower.contains("overflow") {
        Kind::OUT_OF_RANGE
    } else if lower.contains("placeholder") {
        Kind::UNDEFINED_PARAMETER
    } else if lower.contains("cast") || lower.contains("error parsing") {
        Kind::INVALID_TEXT
    } else {
        Kind::DATA_EXCEPTION
    };
    QueryError::new(kind, what)
}

/// Schema and name of the table that a plan did not find.
pub(crate) fn missing_table(error: &DataFusionError) -> Option<(String, String)> {
    let DataFusionError::Plan(what) = error.find_root() else {
        return None;
    };
    let name = what.split("table '").nth(1)?.split("' not found").next()?;
    let mut parts = name.splitn(3, '.').skip(1);
    Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
}

/// DataFusion appends a backtrace and labels meant for its own developers.
fn tidy(what: &str) -> String {
    let what = what.split("\n\nbacktrace: ").next().unwrap_or(what);
    what.split("\nThis issue was likely caused by a bug")
        .next()
        .unwrap_or(what)
        .trim_start_matches("Error during planning: ")
        .trim_start_matches("sql parser error: ")
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parser_message_gives_up_its_position() {
        let error: QueryError = ParserError::ParserError(
            "Expected: an expression, found: FROM at Line: 2, Column: 8".into(),
        )
        .into();
        assert_eq!(error.position, Some((2, 8)));
        assert_eq!(error.message, "Expected: an expression, found: FROM");
        assert_eq!(error.sqlstate, "42601");
    }

    #[test]
    fn only_functions_of_nearly_that_name_are_suggested() {
        let hint = |asked: &str, near: &str| {
            let what = format!("Invalid function '{asked}'.\nDid you mean '{near}'?");
            QueryError::from(DataFusionError::Plan(what)).hint
        };
        assert_eq!(hint("foo", "cot"), None);
        assert_eq!(hint("inet_server_addr", "list_reverse"), None);
        assert_eq!(
            hint("date_bim", "date_bin").as_deref(),
            Some("did you mean \"date_bin\"?")
        );
    }

    #[test]
    fn a_missing_table_is_named_without_its_catalog() {
        let error: QueryError =
            DataFusionError::Plan("table 'shoal.public.cpi' not found".into()).into();
        assert_eq!(error.code, "undefined_table");
        assert_eq!(error.message, "table \"cpi\" does not exist");
    }
}
