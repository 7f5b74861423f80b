//! The one place where SQL text becomes statements: sqlparser's PostgreSQL dialect, DataFusion's
//! additions, and what both of them do not know.

use std::sync::Arc;

use datafusion::sql::parser::{DFParserBuilder, Statement as DfStatement};
use datafusion::sql::sqlparser::ast::helpers::attached_token::AttachedToken;
use datafusion::sql::sqlparser::ast::{AlterTable, Statement as SqlStatement};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use super::partitions::{self, PartitionClause, PartitionStatement};
use super::precedence;
use crate::error::{Kind, Result};
use crate::{QueryError, StatementKind, decimals};

/// Nesting of expressions and queries, at most.
const DEPTH_MAX: usize = 64;

/// Tokens between two commas, semicolons or ends of a text, at most. A chain of operators (`a = 1
/// OR a = 2 OR …`, `x::int::int…`, `… UNION ALL …`) is parsed without recursion but planned and
/// dropped with it, one level a link; lists of values are flat and have commas.
const CHAIN_TOKENS_MAX: usize = 4_000;

/// Refuses texts whose plans would nest so deeply that a thread's stack could not hold them.
///
/// # Errors
/// SQLSTATE 54001, with the place where the chain passes the limit.
fn refuse_chains(tokens: &[TokenWithSpan]) -> Result<()> {
    let mut length = 0;
    for token in tokens {
        match token.token {
            Token::Comma | Token::SemiColon => length = 0,
            // The branches of a CASE stand side by side, as what is between commas does.
            Token::Word(ref word) if word.keyword == Keyword::WHEN => length = 0,
            Token::Whitespace(_) => {}
            _ => length += 1,
        }
        if length > CHAIN_TOKENS_MAX {
            let at = token.span.start;
            return Err(QueryError::new(
                Kind::TOO_COMPLEX,
                format!(
                    "an expression or query of more than {CHAIN_TOKENS_MAX} words without a comma; use IN (…) or VALUES, or send several statements"
                ),
            )
            .at(Some((at.line, at.column))));
        }
    }
    Ok(())
}

/// Refuses a text that is too long a chain of operators to be planned; for whoever looks at SQL
/// before a [`crate::Session`] does.
///
/// # Errors
/// As [`parse_script`] would.
pub fn check_complexity(sql: &str) -> Result<()> {
    if sql.len() <= CHAIN_TOKENS_MAX {
        return Ok(());
    }
    match Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location() {
        Ok(tokens) => refuse_chains(&tokens),
        // Said with its place when it is parsed.
        Err(_) => Ok(()),
    }
}

/// A parsed statement.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    /// The whole text it came from.
    pub sql: Arc<str>,
    /// What was parsed.
    pub body: DfStatement,
    /// Its family.
    pub kind: StatementKind,
    /// What it says of partitions, which is not in `body`.
    pub partitions: Option<Arc<PartitionWords>>,
}

/// What a statement says of partitions.
#[derive(Clone, Debug)]
pub(crate) enum PartitionWords {
    /// `CREATE TABLE … PARTITION BY …`
    Clause(PartitionClause),
    /// `ALTER TABLE … ADD | DROP PARTITION …`; of its body only the table's name counts.
    Change(PartitionStatement),
}

/// Parses exactly one statement.
///
/// # Errors
/// Syntax, with its place; none or several statements.
pub(crate) fn parse_one(sql: &str) -> Result<Statement> {
    let mut statements = parse_script(sql)?;
    match (statements.pop(), statements.is_empty()) {
        (Some(statement), true) => Ok(statement),
        (Some(_), false) => Err(QueryError::new(
            Kind::SYNTAX,
            "several statements where one is expected; send them one by one",
        )),
        (None, _) => Err(QueryError::new(Kind::SYNTAX, "there is no statement")),
    }
}

/// Parses statements separated by `;`.
///
/// # Errors
/// Syntax, with its place.
pub(crate) fn parse_script(sql: &str) -> Result<Vec<Statement>> {
    let dialect = PostgreSqlDialect {};
    let tokens = Tokenizer::new(&dialect, sql)
        .tokenize_with_location()
        .map_err(|error| {
            let position = Some((error.location.line, error.location.column));
            QueryError::new(Kind::SYNTAX, error.message).at(position)
        })?;
    refuse_chains(&tokens)?;
    let text: Arc<str> = sql.into();
    let mut statements = Vec::new();
    for tokens in tokens.split(|token| token.token == Token::SemiColon) {
        let is_empty = |t: &TokenWithSpan| matches!(t.token, Token::Whitespace(_) | Token::EOF);
        if !tokens.iter().all(is_empty) {
            statements.push(parse_statement(tokens.to_vec(), &text)?);
        }
    }
    Ok(statements)
}

fn parse_statement(mut tokens: Vec<TokenWithSpan>, text: &Arc<str>) -> Result<Statement> {
    if let Some(change) = partitions::partition_statement(&tokens)? {
        return Ok(Statement {
            sql: Arc::clone(text),
            kind: StatementKind::Definition,
            body: DfStatement::Statement(Box::new(altered(&change))),
            partitions: Some(Arc::new(PartitionWords::Change(change))),
        });
    }
    let clause = partitions::take_clause(&mut tokens)?;
    let dialect = PostgreSqlDialect {};
    let mut parser = DFParserBuilder::new(decimals::mark(tokens))
        .with_dialect(&dialect)
        .with_recursion_limit(DEPTH_MAX)
        .build()?;
    // DataFusion's own COPY writes to any store; ours has PostgreSQL's grammar and only files that
    // the configuration allows.
    let next = parser.parser.peek_token();
    let mut body = if matches!(&next.token, Token::Word(w) if w.keyword == Keyword::COPY) {
        DfStatement::Statement(Box::new(parser.parser.parse_statement()?))
    } else {
        parser.parse_statement()?
    };
    let after = parser.parser.peek_token();
    if after.token != Token::EOF {
        return Err(QueryError::new(
            Kind::SYNTAX,
            format!("Expected: end of statement, found: {after}"),
        )
        .at(Some((after.span.start.line, after.span.start.column))));
    }
    mend(&mut body);
    Ok(Statement {
        sql: Arc::clone(text),
        kind: kind(&body),
        body,
        partitions: clause.map(|clause| Arc::new(PartitionWords::Clause(clause))),
    })
}

/// A statement that names the table and changes nothing of it.
fn altered(change: &PartitionStatement) -> SqlStatement {
    let (table, if_table_exists) = change.table();
    SqlStatement::AlterTable(AlterTable {
        name: table.clone(),
        if_exists: if_table_exists,
        only: false,
        operations: Vec::new(),
        location: None,
        on_cluster: None,
        table_type: None,
        end_token: AttachedToken::empty(),
    })
}

fn mend(body: &mut DfStatement) {
    match body {
        DfStatement::Statement(statement) => precedence::mend(statement),
        DfStatement::Explain(explain) => mend(&mut explain.statement),
        _ => {}
    }
}

/// Whether a write id can be given with it: its rows are one write.
pub(crate) fn takes_write_id(body: &DfStatement) -> bool {
    let DfStatement::Statement(statement) = body else {
        return false;
    };
    matches!(
        statement.as_ref(),
        SqlStatement::Insert(_) | SqlStatement::Update(_) | SqlStatement::Delete(_)
    )
}

fn kind(body: &DfStatement) -> StatementKind {
    match body {
        DfStatement::Statement(statement) => match statement.as_ref() {
            SqlStatement::Insert(_)
            | SqlStatement::Update(_)
            | SqlStatement::Delete(_)
            | SqlStatement::Truncate(_)
            | SqlStatement::Merge(_) => StatementKind::Write,
            // COPY TO a file changes the server's disk, so that a read-only session may not.
            SqlStatement::Copy { .. } => StatementKind::Write,
            SqlStatement::CreateTable(_)
            | SqlStatement::CreateSchema { .. }
            | SqlStatement::CreateDatabase { .. }
            | SqlStatement::CreateView(_)
            | SqlStatement::CreateIndex(_)
            | SqlStatement::AlterTable(_)
            | SqlStatement::Drop { .. } => StatementKind::Definition,
            SqlStatement::Set(_)
            | SqlStatement::Use(_)
            | SqlStatement::StartTransaction { .. }
            | SqlStatement::Commit { .. }
            | SqlStatement::Rollback { .. }
            | SqlStatement::Savepoint { .. }
            | SqlStatement::ReleaseSavepoint { .. }
            | SqlStatement::Discard { .. }
            | SqlStatement::Prepare { .. }
            | SqlStatement::Deallocate { .. }
            | SqlStatement::LISTEN { .. }
            | SqlStatement::UNLISTEN { .. } => StatementKind::Session,
            _ => StatementKind::Query,
        },
        DfStatement::CreateExternalTable(_) => StatementKind::Definition,
        DfStatement::CopyTo(_) => StatementKind::Write,
        DfStatement::Explain(_) => StatementKind::Query,
        DfStatement::Reset(_) => StatementKind::Session,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_clauses_are_read_beside_the_statement_they_stand_in() {
        let statements = parse_script(
            "CREATE TABLE t (a INT, PRIMARY KEY (a))\n  PARTITION BY HASH (a) PARTITIONS 4 WITH (ttl = '1d');
             ALTER TABLE s.t DROP PARTITION p; CREATE TABLE u AS SELECT row_number() OVER (PARTITION BY a) FROM t",
        )
        .expect("three statements");
        let [created, altered, from_query] = &statements[..] else {
            panic!("{statements:?}");
        };
        let Some(PartitionWords::Clause(clause)) = created.partitions.as_deref() else {
            panic!("{created:?}");
        };
        assert_eq!(clause.position, Some((2, 3)));
        assert!(
            format!("{}", created.body).contains("ttl"),
            "{}",
            created.body
        );
        assert!(matches!(
            altered.partitions.as_deref(),
            Some(PartitionWords::Change(PartitionStatement::Drop { .. }))
        ));
        assert_eq!(altered.kind, StatementKind::Definition);
        assert!(from_query.partitions.is_none(), "a window is no clause");
    }

    #[test]
    fn syntax_errors_point_at_the_place() {
        let error = parse_one("SELECT a,\n  FROM WHERE").expect_err("syntax");
        assert_eq!(
            (error.code, error.position.map(|p| p.0)),
            ("syntax_error", Some(2))
        );
        let error = parse_one("SELECT 1; SELECT 2").expect_err("two");
        assert_eq!(error.code, "syntax_error");
        assert_eq!(
            parse_script("SELECT 1;; SELECT 'a;b';").expect("two").len(),
            2
        );
    }
}
