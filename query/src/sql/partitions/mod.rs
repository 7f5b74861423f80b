//! Partition clauses, which sqlparser does not know: MySQL's grammar with the columns' own names.
//!
//! ```text
//! CREATE TABLE … PARTITION BY HASH (a, …) PARTITIONS 4
//!              | PARTITION BY RANGE (a, …) (PARTITION p VALUES LESS THAN (1, … | MAXVALUE), …)
//!              | PARTITION BY LIST (a, …) (PARTITION p VALUES IN (1, NULL, …), …)
//! ALTER TABLE t ADD PARTITION [IF NOT EXISTS] p VALUES …, …      with or without parentheses
//! ALTER TABLE t DROP PARTITION [IF EXISTS] p, …
//! ALTER TABLE t SPLIT [PARTITION p] [AT (1, …)] [AS q]           without AT: in the middle
//! ALTER TABLE t MERGE PARTITIONS p, q
//! ```
//! With several columns a value of LIST is a tuple: `IN ((1, 'a'), (2, 'b'))`. `KEY` is read as
//! `HASH`, `RANGE COLUMNS` and `LIST COLUMNS` as without the second word.
//!
//! The clause is taken out of the tokens of `CREATE TABLE` and sqlparser reads the rest, so that
//! all other places in the statement stay as they are; `ALTER TABLE` is read here alone.

mod cursor;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use datafusion::sql::sqlparser::ast::{Expr, Ident, ObjectName};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use shoal_types::PartitionMethod;

use super::names::{fold, position};
use crate::QueryError;
use crate::error::Result;
use cursor::{Cursor, Item, Position, is_keyword, place, syntax};

/// Partitions of a table when it is made, at most.
pub(super) const PARTITIONS_MAX: u32 = 1024;

/// Nesting of a value's expression, at most.
const VALUE_DEPTH_MAX: usize = 16;

/// `PARTITION BY …` of a `CREATE TABLE`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PartitionClause {
    /// The method.
    pub method: PartitionMethod,
    /// The columns as written, at least one, none of them twice.
    pub columns: Vec<Ident>,
    /// The partitions.
    pub parts: Parts,
    /// Where `PARTITION` stands.
    pub position: Position,
}

/// The partitions of a clause.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Parts {
    /// HASH: how many, 1 to [`PARTITIONS_MAX`].
    Count(u32),
    /// RANGE and LIST: as many, with different names, and as many values each as there are
    /// columns.
    Named(Vec<Part>),
}

/// A partition by name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    /// Its name as written.
    pub name: Ident,
    /// What it owns.
    pub values: PartValues,
}

/// What a partition owns.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PartValues {
    /// RANGE: rows below this and not below another partition's; not empty.
    LessThan(Vec<Bound>),
    /// LIST: rows with one of these tuples, which have one value a column; neither is empty.
    In(Vec<Vec<Value>>),
}

/// A bound in one column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Bound {
    /// A value.
    Value(Box<Value>),
    /// Above all values.
    MaxValue(Position),
}

/// A value as written. It may be any expression: whether it is a constant of the column's type is
/// for whoever knows the column to find out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Value {
    /// The expression; its numbers are not marked (`crate::decimals`).
    pub expr: Expr,
    /// Where it begins.
    pub position: Position,
}

/// `ALTER TABLE … ADD | DROP | SPLIT | MERGE PARTITION`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PartitionStatement {
    /// New partitions of a RANGE or LIST table.
    Add {
        /// The table.
        table: ObjectName,
        /// `ALTER TABLE IF EXISTS`: a table that is not there is no error.
        if_table_exists: bool,
        /// A partition of such a name is left as it is.
        if_not_exists: bool,
        /// The partitions, with different names.
        parts: Vec<Part>,
    },
    /// Partitions that go with all their rows.
    Drop {
        /// The table.
        table: ObjectName,
        /// `ALTER TABLE IF EXISTS`: a table that is not there is no error.
        if_table_exists: bool,
        /// A partition that is not there is no error.
        if_exists: bool,
        /// The partitions, all different.
        names: Vec<Ident>,
    },
    /// One becomes two.
    Split {
        /// The table.
        table: ObjectName,
        /// `ALTER TABLE IF EXISTS`: a table that is not there is no error.
        if_table_exists: bool,
        /// The partition; `None`: the only one.
        name: Option<Ident>,
        /// Where; empty: in the middle.
        at: Vec<Value>,
        /// The name of the upper part; `None`: a free one.
        right: Option<Ident>,
    },
    /// Two become one.
    Merge {
        /// The table.
        table: ObjectName,
        /// `ALTER TABLE IF EXISTS`: a table that is not there is no error.
        if_table_exists: bool,
        /// The partitions, two different ones.
        names: [Ident; 2],
    },
}

impl PartitionStatement {
    /// The table, and whether its absence is no error.
    pub(crate) fn table(&self) -> (&ObjectName, bool) {
        match self {
            Self::Add {
                table,
                if_table_exists,
                ..
            }
            | Self::Drop {
                table,
                if_table_exists,
                ..
            }
            | Self::Split {
                table,
                if_table_exists,
                ..
            }
            | Self::Merge {
                table,
                if_table_exists,
                ..
            } => (table, *if_table_exists),
        }
    }
}

/// Takes `PARTITION BY …` out of the tokens of one statement, if that is a `CREATE TABLE` with
/// such a clause.
///
/// # Errors
/// Syntax, with its place.
pub(super) fn take_clause(tokens: &mut Vec<TokenWithSpan>) -> Result<Option<PartitionClause>> {
    let Some((clause, range)) = find_clause(tokens)? else {
        return Ok(None);
    };
    tokens.drain(range);
    match find_clause(tokens)? {
        None => Ok(Some(clause)),
        Some((again, _)) => {
            Err(syntax("PARTITION BY is there already; leave one out").at(again.position))
        }
    }
}

fn find_clause(
    tokens: &[TokenWithSpan],
) -> Result<Option<(PartitionClause, std::ops::Range<usize>)>> {
    let mut cursor = Cursor::new(tokens);
    if !cursor.keyword("CREATE") {
        return Ok(None);
    }
    let before = [
        "OR",
        "REPLACE",
        "GLOBAL",
        "LOCAL",
        "TEMPORARY",
        "TEMP",
        "UNLOGGED",
    ];
    while before.iter().any(|word| cursor.keyword(word)) {}
    if !cursor.keyword("TABLE") {
        return Ok(None);
    }
    let mut depth = 0_usize;
    while let Some(token) = cursor.peek() {
        match &token.token {
            Token::LParen => depth += 1,
            Token::RParen => depth = depth.saturating_sub(1),
            // A query follows, which may partition its windows as it likes.
            _ if depth == 0 && is_keyword(token, "AS") => return Ok(None),
            _ if depth == 0 && is_keyword(token, "PARTITION") => {
                let from = cursor.at;
                let position = place(token);
                cursor.advance();
                if cursor.keyword("BY") {
                    let clause = clause(&mut cursor, position)?;
                    return Ok(Some((clause, from..cursor.at)));
                }
                continue;
            }
            _ => {}
        }
        cursor.advance();
    }
    Ok(None)
}

/// Reads `ALTER TABLE … ADD | DROP | SPLIT | MERGE PARTITION …`; `None` for any other statement.
///
/// # Errors
/// Syntax, with its place.
pub(super) fn partition_statement(tokens: &[TokenWithSpan]) -> Result<Option<PartitionStatement>> {
    let mut cursor = Cursor::new(tokens);
    if !(cursor.keyword("ALTER") && cursor.keyword("TABLE")) {
        return Ok(None);
    }
    let if_table_exists = cursor.keywords(&["IF", "EXISTS"]);
    cursor.keyword("ONLY");
    // What is wrong with a name is said by sqlparser.
    let Ok(table) = cursor.table() else {
        return Ok(None);
    };
    let statement = if cursor.keywords(&["ADD", "PARTITION"]) {
        let if_not_exists = cursor.keywords(&["IF", "NOT", "EXISTS"]);
        PartitionStatement::Add {
            table,
            if_table_exists,
            if_not_exists,
            parts: added_parts(&mut cursor)?,
        }
    } else if cursor.keywords(&["DROP", "PARTITION"]) {
        let if_exists = cursor.keywords(&["IF", "EXISTS"]);
        let mut names = vec![cursor.part_name()?];
        while cursor.symbol(&Token::Comma) {
            names.push(cursor.part_name()?);
        }
        refuse_repeated("partition", &names)?;
        PartitionStatement::Drop {
            table,
            if_table_exists,
            if_exists,
            names,
        }
    } else if cursor.keyword("SPLIT") {
        let name = match cursor.keyword("PARTITION") {
            true => Some(cursor.part_name()?),
            false => None,
        };
        let at = match cursor.keyword("AT") {
            true if !cursor.peeks_symbol(&Token::LParen) => {
                return Err(cursor.expected("the values to cut at, as in AT (1, …)"));
            }
            true => {
                let items = cursor.items()?.into_iter();
                items.map(value).collect::<Result<_>>()?
            }
            false => Vec::new(),
        };
        let right = match cursor.keyword("AS") {
            true => Some(cursor.part_name()?),
            false => None,
        };
        if cursor.found().is_some() {
            return Err(cursor.expected("AT (…), AS or end of statement"));
        }
        PartitionStatement::Split {
            table,
            if_table_exists,
            name,
            at,
            right,
        }
    } else if cursor.keywords(&["MERGE", "PARTITIONS"]) {
        let left = cursor.part_name()?;
        if !cursor.symbol(&Token::Comma) {
            return Err(cursor.expected("\",\" and a second partition"));
        }
        let right = cursor.part_name()?;
        refuse_repeated("partition", [&left, &right])?;
        PartitionStatement::Merge {
            table,
            if_table_exists,
            names: [left, right],
        }
    } else {
        return Ok(None);
    };
    match cursor.found() {
        None => Ok(Some(statement)),
        Some(_) => Err(cursor.expected("\",\" or end of statement")),
    }
}

fn added_parts(cursor: &mut Cursor) -> Result<Vec<Part>> {
    if cursor.peeks("PARTITIONS") {
        return Err(syntax(
            "partitions are added to RANGE and LIST tables, by name; those of a HASH table are split instead",
        )
        .at(cursor.position()));
    }
    if cursor.peeks_symbol(&Token::LParen) {
        return named_parts(cursor);
    }
    let mut parts = vec![part(cursor)?];
    while cursor.symbol(&Token::Comma) {
        cursor.keyword("PARTITION");
        parts.push(part(cursor)?);
    }
    refuse_repeated("partition", parts.iter().map(|part| &part.name))?;
    Ok(parts)
}

/// What follows `PARTITION BY`.
fn clause(cursor: &mut Cursor, position: Position) -> Result<PartitionClause> {
    let method = if cursor.keyword("HASH") || cursor.keyword("KEY") {
        PartitionMethod::Hash
    } else if cursor.keyword("RANGE") {
        cursor.keyword("COLUMNS");
        PartitionMethod::Range
    } else if cursor.keyword("LIST") {
        cursor.keyword("COLUMNS");
        PartitionMethod::List
    } else {
        return Err(cursor.expected("HASH, RANGE or LIST"));
    };
    let columns = columns(cursor)?;
    let parts = match method {
        PartitionMethod::Hash => Parts::Count(count(cursor)?),
        PartitionMethod::Range | PartitionMethod::List => {
            if !cursor.peeks_symbol(&Token::LParen) {
                let example = match method {
                    PartitionMethod::Range => "VALUES LESS THAN (…)",
                    _ => "VALUES IN (…)",
                };
                return Err(cursor.expected(&format!(
                    "the list of partitions, as in (PARTITION p0 {example}, …)"
                )));
            }
            let parts = named_parts(cursor)?;
            for part in &parts {
                check_part(part, method, columns.len())?;
            }
            Parts::Named(parts)
        }
    };
    Ok(PartitionClause {
        method,
        columns,
        parts,
        position,
    })
}

fn columns(cursor: &mut Cursor) -> Result<Vec<Ident>> {
    if !cursor.symbol(&Token::LParen) {
        return Err(cursor.expected("the columns in parentheses"));
    }
    let mut columns = Vec::new();
    loop {
        columns.push(cursor.ident("a column")?);
        if cursor.symbol(&Token::RParen) {
            break;
        }
        if !cursor.symbol(&Token::Comma) {
            return Err(cursor
                .expected("\",\" or \")\" (tables are partitioned by columns, not expressions)"));
        }
    }
    refuse_repeated("partition column", &columns)?;
    Ok(columns)
}

fn count(cursor: &mut Cursor) -> Result<u32> {
    if !cursor.keyword("PARTITIONS") {
        let what = "PARTITIONS and how many, as in PARTITION BY HASH (…) PARTITIONS 4";
        return Err(match cursor.peeks_symbol(&Token::LParen) {
            true => cursor.expected(&format!("{what} (HASH partitions are not listed)")),
            false => cursor.expected(what),
        });
    }
    let range = format!("a number of partitions from 1 to {PARTITIONS_MAX}");
    let count = match cursor.found().map(|token| &token.token) {
        Some(Token::Number(text, false)) => text.parse().ok(),
        _ => None,
    };
    match count {
        Some(count) if (1..=PARTITIONS_MAX).contains(&count) => {
            cursor.advance();
            Ok(count)
        }
        _ => Err(cursor.expected(&range)),
    }
}

/// `(PARTITION p VALUES …, …)`.
fn named_parts(cursor: &mut Cursor) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let opening = cursor.position();
    cursor.symbol(&Token::LParen);
    loop {
        if !cursor.keyword("PARTITION") {
            return Err(cursor.expected("PARTITION"));
        }
        parts.push(part(cursor)?);
        if cursor.symbol(&Token::RParen) {
            break;
        }
        if !cursor.symbol(&Token::Comma) {
            return Err(cursor.expected("\",\" or \")\" after a partition"));
        }
    }
    refuse_repeated("partition", parts.iter().map(|part| &part.name))?;
    if parts.len() > PARTITIONS_MAX as usize {
        return Err(syntax(format!(
            "{} partitions; a statement makes {PARTITIONS_MAX} at most",
            parts.len()
        ))
        .at(opening));
    }
    Ok(parts)
}

/// `p VALUES LESS THAN (…)` or `p VALUES IN (…)`.
fn part(cursor: &mut Cursor) -> Result<Part> {
    let name = cursor.part_name()?;
    if !cursor.keyword("VALUES") {
        return Err(cursor.expected("VALUES LESS THAN (…) or VALUES IN (…)"));
    }
    let values = if cursor.keyword("IN") {
        let mut tuples = Vec::new();
        for item in cursor.items()? {
            let tuple = match tuple_items(item) {
                Some(items) => items.into_iter().map(value).collect::<Result<_>>()?,
                None => vec![value(item)?],
            };
            tuples.push(tuple);
        }
        PartValues::In(tuples)
    } else if cursor.keywords(&["LESS", "THAN"]) {
        let position = cursor.position();
        // MySQL writes it without parentheses too.
        if cursor.keyword("MAXVALUE") {
            PartValues::LessThan(vec![Bound::MaxValue(position)])
        } else {
            let items = cursor.items()?.into_iter();
            PartValues::LessThan(items.map(bound).collect::<Result<_>>()?)
        }
    } else {
        return Err(cursor.expected("LESS THAN (…) or IN (…)"));
    };
    Ok(Part { name, values })
}

fn check_part(part: &Part, method: PartitionMethod, columns: usize) -> Result<()> {
    let fits = |count: usize, at: Position| {
        if count == columns {
            return Ok(());
        }
        let values = if count == 1 { "value" } else { "values" };
        let columns = match columns {
            1 => "column".to_owned(),
            n => format!("{n} columns"),
        };
        Err(syntax(format!(
            "partition {:?}: {count} {values} for the table's {columns} of PARTITION BY",
            fold(&part.name)
        ))
        .at(at))
    };
    match (&part.values, method) {
        (PartValues::LessThan(bound), PartitionMethod::Range) => {
            fits(bound.len(), bound.first().and_then(Bound::position))
        }
        (PartValues::In(tuples), PartitionMethod::List) => tuples
            .iter()
            .try_for_each(|tuple| fits(tuple.len(), tuple.first().and_then(|v| v.position))),
        (PartValues::LessThan(_), _) => Err(syntax(format!(
            "partition {:?} of a LIST table is written VALUES IN (…)",
            fold(&part.name)
        ))
        .at(position(&part.name))),
        (PartValues::In(_), _) => Err(syntax(format!(
            "partition {:?} of a RANGE table is written VALUES LESS THAN (…)",
            fold(&part.name)
        ))
        .at(position(&part.name))),
    }
}

impl Bound {
    fn position(&self) -> Position {
        match self {
            Self::Value(value) => value.position,
            Self::MaxValue(position) => *position,
        }
    }
}

fn bound(item: Item) -> Result<Bound> {
    let mut cursor = Cursor::new(item.tokens);
    let position = cursor.position();
    if cursor.keyword("MAXVALUE") && cursor.found().is_none() {
        return Ok(Bound::MaxValue(position));
    }
    Ok(Bound::Value(Box::new(value(item)?)))
}

fn value(item: Item) -> Result<Value> {
    let cursor = Cursor::new(item.tokens);
    let Some(first) = cursor.found() else {
        return Err(syntax("Expected: a value").at(item.end));
    };
    let position = place(first);
    let dialect = PostgreSqlDialect {};
    let mut parser = Parser::new(&dialect)
        .with_recursion_limit(VALUE_DEPTH_MAX)
        .with_tokens_with_locations(item.tokens.to_vec());
    let expr = parser
        .parse_expr()
        .map_err(|error| QueryError::from(error).at(position))?;
    let after = parser.peek_token();
    if after.token != Token::EOF {
        return Err(syntax(format!(
            "Expected: \",\" or \")\" after a value, found: {after}"
        ))
        .at(place(&after)));
    }
    Ok(Value { expr, position })
}

/// The items of `(1, 'a')`; `None` for what is no tuple of several.
fn tuple_items(item: Item) -> Option<Vec<Item>> {
    let mut cursor = Cursor::new(item.tokens);
    if !cursor.peeks_symbol(&Token::LParen) {
        return None;
    }
    let items = cursor.items().ok()?;
    (items.len() > 1 && cursor.found().is_none()).then_some(items)
}

fn refuse_repeated<'a>(what: &str, names: impl IntoIterator<Item = &'a Ident>) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        let folded = fold(name);
        if seen.contains(&folded) {
            return Err(syntax(format!("{what} {folded:?} is named twice")).at(position(name)));
        }
        seen.insert(folded);
    }
    Ok(())
}
