use super::*;
use datafusion::sql::sqlparser::tokenizer::Tokenizer;

fn tokens(sql: &str) -> Vec<TokenWithSpan> {
    Tokenizer::new(&PostgreSqlDialect {}, sql)
        .tokenize_with_location()
        .expect("tokens")
}

/// The clause of a statement, and the statement without it.
fn taken(sql: &str) -> (PartitionClause, String) {
    let mut tokens = tokens(sql);
    let clause = take_clause(&mut tokens).expect("a good clause");
    let rest = tokens.iter().map(ToString::to_string).collect();
    (clause.expect("a clause"), rest)
}

fn refused(sql: &str) -> (String, Position) {
    let mut tokens = tokens(sql);
    let error = match partition_statement(&tokens) {
        Ok(None) => take_clause(&mut tokens).map(|_| ()),
        other => other.map(|_| ()),
    };
    let error = error.expect_err(sql);
    assert_eq!(error.code, "syntax_error");
    (error.message, error.position)
}

fn names(idents: &[Ident]) -> Vec<String> {
    idents.iter().map(fold).collect()
}

/// A part as text: its name and its values.
fn shown(part: &Part) -> String {
    let values = match &part.values {
        PartValues::LessThan(bounds) => bounds
            .iter()
            .map(|bound| match bound {
                Bound::Value(value) => value.expr.to_string(),
                Bound::MaxValue(_) => "MAX".into(),
            })
            .collect::<Vec<_>>(),
        PartValues::In(tuples) => tuples
            .iter()
            .map(|tuple| {
                let values = tuple.iter().map(|v| v.expr.to_string());
                values.collect::<Vec<_>>().join("+")
            })
            .collect(),
    };
    format!("{}: {}", fold(&part.name), values.join(" "))
}

fn parts(clause: &PartitionClause) -> Vec<String> {
    match &clause.parts {
        Parts::Named(parts) => parts.iter().map(shown).collect(),
        Parts::Count(count) => vec![count.to_string()],
    }
}

#[test]
fn hash_is_taken_out_before_and_after_with() {
    let table = "CREATE TABLE IF NOT EXISTS s.t (a INT, \"B\" TEXT)";
    let with = "WITH (mode = 'append')";
    let hash = "PARTITION BY HASH (a, \"B\") PARTITIONS 4";
    for (sql, rest) in [
        (
            format!("{table} {hash} {with};"),
            format!("{table}  {with};"),
        ),
        (format!("{table} {with} {hash}"), format!("{table} {with} ")),
        (
            format!("{table} partition/* */by\nKey(A,\"B\")partitions 4 AS SELECT 1"),
            format!("{table}  AS SELECT 1"),
        ),
    ] {
        let (clause, found) = taken(&sql);
        assert_eq!(found, rest);
        assert_eq!(clause.method, PartitionMethod::Hash);
        assert_eq!(names(&clause.columns), ["a", "B"]);
        assert_eq!(clause.parts, Parts::Count(4));
    }
    let (clause, _) = taken("CREATE TABLE t (a INT)\n  PARTITION BY HASH (a) PARTITIONS 1024");
    assert_eq!(clause.position, Some((2, 3)));
    assert_eq!(clause.columns[0].span.start.column, 22);
}

#[test]
fn range_bounds_are_expressions_and_maxvalue() {
    let (clause, rest) = taken(
        "CREATE TABLE t (k INT, n INT) PARTITION BY RANGE (k, n) (
  PARTITION p0 VALUES LESS THAN (100, f(1, 2)), -- a comment, of course
  PARTITION \"P1\" VALUES LESS THAN (-200, MAXVALUE),
  PARTITION px VALUES LESS THAN (maxvalue, MAXVALUE))",
    );
    assert_eq!(rest, "CREATE TABLE t (k INT, n INT) ");
    assert_eq!(clause.method, PartitionMethod::Range);
    assert_eq!(
        parts(&clause),
        ["p0: 100 f(1, 2)", "P1: -200 MAX", "px: MAX MAX"]
    );
    let Parts::Named(named) = &clause.parts else {
        panic!("named");
    };
    let PartValues::LessThan(bounds) = &named[1].values else {
        panic!("bounds");
    };
    assert_eq!(bounds[0].position(), Some((3, 36)));
    assert_eq!(bounds[1].position(), Some((3, 42)));

    let (clause, _) = taken(
        "CREATE TABLE t (ts TIMESTAMP) PARTITION BY RANGE COLUMNS (ts) (PARTITION a VALUES LESS THAN (TIMESTAMP '2026-01-01'), PARTITION b VALUES LESS THAN MAXVALUE)",
    );
    assert_eq!(parts(&clause), ["a: TIMESTAMP '2026-01-01'", "b: MAX"]);
}

#[test]
fn lists_hold_values_and_tuples() {
    let (clause, _) = taken(
        "CREATE TABLE t (r TEXT) PARTITION BY LIST (r) (PARTITION eu VALUES IN ('eu-west-1', 'eu)central,1', NULL), PARTITION us VALUES IN ('us'))",
    );
    assert_eq!(clause.method, PartitionMethod::List);
    assert_eq!(
        parts(&clause),
        ["eu: 'eu-west-1' 'eu)central,1' NULL", "us: 'us'"]
    );
    let (clause, _) = taken(
        "CREATE TABLE t (r TEXT, n INT) PARTITION BY LIST (r, n) (PARTITION a VALUES IN (('x', 1), ('y', NULL)))",
    );
    assert_eq!(parts(&clause), ["a: 'x'+1 'y'+NULL"]);
}

#[test]
fn other_statements_are_left_alone() {
    for sql in [
        "CREATE TABLE t AS SELECT row_number() OVER (PARTITION BY a) FROM u WINDOW w AS (PARTITION BY b)",
        "CREATE TABLE t (partition INT, by INT)",
        "CREATE TABLE partition (a INT)",
        "CREATE TABLE t PARTITION OF u FOR VALUES IN (1)",
        "CREATE VIEW v AS SELECT 1",
        "SELECT a, sum(b) OVER (PARTITION BY a) FROM t",
        "ALTER TABLE t ADD COLUMN partition INT",
        "ALTER TABLE t DROP COLUMN partition",
        "ALTER TABLE t RENAME TO u",
        "ALTER TABLE",
        "",
    ] {
        let mut found = tokens(sql);
        assert_eq!(take_clause(&mut found).expect(sql), None, "{sql}");
        assert_eq!(found, tokens(sql));
        assert_eq!(partition_statement(&found).expect(sql), None, "{sql}");
    }
}

#[test]
fn partitions_are_added_with_and_without_parentheses() {
    let all = ["p3: 400", "p4: MAX"];
    for sql in [
        "ALTER TABLE s.\"T\" ADD PARTITION (PARTITION p3 VALUES LESS THAN (400), PARTITION p4 VALUES LESS THAN (MAXVALUE));",
        "alter table s.\"T\" add partition P3 values less than (400), p4 VALUES LESS THAN MAXVALUE",
        "ALTER TABLE s.\"T\" ADD PARTITION p3 VALUES LESS THAN (400), PARTITION p4 VALUES LESS THAN (MAXVALUE)",
    ] {
        let found = partition_statement(&tokens(sql)).expect(sql);
        let Some(PartitionStatement::Add {
            table,
            if_table_exists: false,
            if_not_exists: false,
            parts,
        }) = found
        else {
            panic!("{sql}: {found:?}");
        };
        assert_eq!(table.to_string(), "s.\"T\"");
        assert_eq!(parts.iter().map(shown).collect::<Vec<_>>(), all);
    }
    let sql = "ALTER TABLE IF EXISTS t ADD PARTITION IF NOT EXISTS p VALUES IN ((1, 2), 3)";
    let found = partition_statement(&tokens(sql)).expect(sql);
    assert!(
        matches!(&found, Some(PartitionStatement::Add { if_table_exists: true, if_not_exists: true, parts, .. }) if shown(&parts[0]) == "p: 1+2 3"),
        "{found:?}"
    );
}

#[test]
fn partitions_are_dropped_by_name() {
    let sql = "ALTER TABLE t DROP PARTITION IF EXISTS p0, \"P1\" ;";
    let found = partition_statement(&tokens(sql)).expect(sql);
    let Some(PartitionStatement::Drop {
        table,
        if_table_exists: false,
        if_exists: true,
        names: dropped,
    }) = found
    else {
        panic!("{found:?}");
    };
    assert_eq!(table.to_string(), "t");
    assert_eq!(names(&dropped), ["p0", "P1"]);
}

/// The statement is refused where `^` stands, which is left out of it.
fn assert_refused(marked: &str, message: &str) {
    let at = marked.find('^').expect("a mark");
    let sql = marked.replace('^', "");
    let before = &sql[..at];
    let line = before.matches('\n').count() as u64 + 1;
    let column = before.rsplit('\n').next().map_or(0, str::len) as u64 + 1;
    let (found, position) = refused(&sql);
    assert_eq!(position, Some((line, column)), "{sql}: {found}");
    assert!(found.contains(message), "{sql}: {found}");
}

#[test]
fn what_is_wrong_with_a_clause_is_said_at_its_place() {
    for (clause, message) in [
        ("^", "HASH, RANGE or LIST, found: end of statement"),
        ("^ROUND (a)", "HASH, RANGE or LIST, found: ROUND"),
        ("HASH ^PARTITIONS 4", "the columns in parentheses"),
        ("HASH (^) PARTITIONS 4", "a column, found: )"),
        ("HASH (a,^) PARTITIONS 4", "a column"),
        ("HASH (a ^+ 1) PARTITIONS 4", "not expressions"),
        (
            "HASH (a, b, ^A) PARTITIONS 4",
            "partition column \"a\" is named twice",
        ),
        ("HASH (a)^", "PARTITIONS 4, found: end of statement"),
        (
            "HASH (a) ^(PARTITION p VALUES IN (1))",
            "HASH partitions are not listed",
        ),
        ("HASH (a) PARTITIONS ^0", "from 1 to 1024, found: 0"),
        ("HASH (a) PARTITIONS ^1025", "from 1 to 1024"),
        ("HASH (a) PARTITIONS ^-1", "from 1 to 1024"),
        ("HASH (a) PARTITIONS ^4.5", "from 1 to 1024"),
        ("HASH (a) PARTITIONS ^WITH (ttl = '1d')", "from 1 to 1024"),
        (
            "RANGE (a) ^PARTITIONS 4",
            "(PARTITION p0 VALUES LESS THAN (…), …)",
        ),
        ("LIST (a)^", "(PARTITION p0 VALUES IN (…), …)"),
        ("RANGE (a) (^)", "Expected: PARTITION, found: )"),
        (
            "RANGE (a) (^p0 VALUES LESS THAN (1))",
            "Expected: PARTITION",
        ),
        (
            "RANGE (a) (PARTITION ^VALUES LESS THAN (1))",
            "the name of a partition",
        ),
        (
            "RANGE (a) (PARTITION ^'p' VALUES LESS THAN (1))",
            "the name of a partition",
        ),
        (
            "RANGE (a) (PARTITION p ^LESS THAN (1))",
            "VALUES LESS THAN (…) or VALUES IN",
        ),
        (
            "RANGE (a) (PARTITION p VALUES ^(1))",
            "LESS THAN (…) or IN (…)",
        ),
        (
            "RANGE (a) (PARTITION p VALUES LESS THAN ^1)",
            "\"(\", found: 1",
        ),
        ("RANGE (a) (PARTITION p VALUES LESS THAN (^))", "a value"),
        (
            "RANGE (a) (PARTITION p VALUES LESS THAN (1 ^2))",
            "after a value, found: 2",
        ),
        (
            "RANGE (a) (PARTITION p VALUES LESS THAN (^1 +))",
            "an expression",
        ),
        (
            "RANGE (a) (PARTITION p VALUES LESS THAN (1)^",
            "after a partition",
        ),
        (
            "RANGE (a) (PARTITION p VALUES LESS THAN (1^",
            "\")\", found: end of statement",
        ),
        (
            "RANGE (a) (PARTITION p VALUES LESS THAN (^1, 2))",
            "2 values for the table's column",
        ),
        (
            "RANGE (a, b) (PARTITION p VALUES LESS THAN (^MAXVALUE))",
            "1 value for the table's 2 columns",
        ),
        ("RANGE (a) (PARTITION ^p VALUES IN (1))", "VALUES LESS THAN"),
        ("LIST (a) (PARTITION ^p VALUES LESS THAN (1))", "VALUES IN"),
        ("LIST (a) (PARTITION p VALUES IN (1,^))", "a value"),
        (
            "LIST (a, b) (PARTITION p VALUES IN ((1, 2),\n ^3))",
            "1 value for the table's 2 columns",
        ),
        (
            "LIST (a) (PARTITION p VALUES IN (1), PARTITION ^P VALUES IN (2))",
            "partition \"p\" is named twice",
        ),
        (
            "HASH (a) PARTITIONS 4 ^PARTITION BY HASH (a) PARTITIONS 4",
            "PARTITION BY is there already",
        ),
    ] {
        assert_refused(
            &format!("CREATE TABLE t (a INT)\nPARTITION BY {clause}"),
            message,
        );
    }
    let many: Vec<_> = (0..=PARTITIONS_MAX)
        .map(|i| format!("PARTITION p{i} VALUES IN ({i})"))
        .collect();
    let many = many.join(", ");
    assert_refused(
        &format!("CREATE TABLE t (a INT) PARTITION BY LIST (a) ^({many})"),
        "1025 partitions",
    );
    let deep = format!("{}1{}", "(".repeat(1000), ")".repeat(1000));
    assert_refused(
        &format!("CREATE TABLE t (a INT) PARTITION BY LIST (a) (PARTITION p VALUES IN (^{deep}))"),
        "nested too deeply",
    );
}

#[test]
fn what_is_wrong_with_a_change_is_said_at_its_place() {
    for (change, message) in [
        ("ADD PARTITION^", "the name of a partition"),
        ("ADD PARTITION ^PARTITIONS 4", "split"),
        ("ADD PARTITION p ^INT", "VALUES LESS THAN"),
        ("ADD PARTITION (^p VALUES IN (1))", "Expected: PARTITION"),
        (
            "ADD PARTITION p VALUES IN (1), ^P VALUES IN (2)",
            "named twice",
        ),
        (
            "ADD PARTITION p VALUES IN (1) ^DROP PARTITION q",
            "or end of statement, found: DROP",
        ),
        (
            "ADD PARTITION (PARTITION p VALUES IN (1))^, q VALUES IN (2)",
            "end of statement",
        ),
        ("DROP PARTITION^", "the name of a partition"),
        ("DROP PARTITION p, ^p", "named twice"),
        ("DROP PARTITION p ^CASCADE", "end of statement"),
    ] {
        assert_refused(&format!("ALTER TABLE t {change}"), message);
    }
}
