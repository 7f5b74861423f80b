//! Against the `influxdb-line-protocol` crate: the same lines accepted, with the same values.
//!
//! Where the two differ on purpose (the crate's behaviour first):
//! - accepts a tag twice; unsigned integers above the largest BIGINT; floats that overflow to
//!   infinity; names of more than 255 bytes, `time`, `__…` or with control characters; a name as tag and field: refused
//!   here;
//! - accepts unescaped commas in tag and field keys: refused here;
//! - accepts a field twice with two types, and a comma behind a line's only field: refused here;
//! - refuses `.5`, `5.`, spaces at a line's end without timestamp and `\r\n`: accepted here;
//! - joins lines at a backslash before a newline: not here.

use std::collections::{BTreeMap, BTreeSet};

use influxdb_line_protocol::{FieldValue, ParsedLine, parse_lines};
use proptest::prelude::*;
use shoal_types::NAME_BYTES_MAX;

use crate::support::{NOW_NS, Row, Value, all_rows, parse};

/// The crate's line as a row; `None` where it is refused here on purpose.
fn expected(line: &ParsedLine<'_>) -> Option<Row> {
    let mut tags = BTreeMap::new();
    for (name, value) in line.series.tag_set.iter().flatten() {
        if tags.insert(name.to_string(), value.to_string()).is_some() {
            return None;
        }
    }
    let mut fields = BTreeMap::new();
    for (name, value) in &line.field_set {
        let value = match value {
            FieldValue::I64(v) => Value::Int(*v),
            FieldValue::U64(v) => Value::Int(i64::try_from(*v).ok()?),
            FieldValue::F64(v) if v.is_finite() => Value::Float(*v),
            FieldValue::F64(_) => return None,
            FieldValue::String(v) => Value::Text(v.to_string()),
            FieldValue::Boolean(v) => Value::Bool(*v),
        };
        let kind = std::mem::discriminant(&value);
        let earlier = fields.insert(name.to_string(), value);
        if earlier.is_some_and(|e| std::mem::discriminant(&e) != kind) {
            return None;
        }
    }
    let measurement = line.series.measurement.to_string();
    let names: Vec<&String> = tags.keys().chain(fields.keys()).collect();
    let bad_name = |n: &&String| *n == "time" || n.starts_with("__");
    let control = |n: &String| n.chars().any(char::is_control);
    if names.iter().any(bad_name)
        || names.iter().any(|n| control(n))
        || control(&measurement)
        || names.iter().collect::<BTreeSet<_>>().len() < names.len()
    {
        return None;
    }
    Some(Row {
        table: measurement,
        tags,
        fields,
        time: line.timestamp.unwrap_or(NOW_NS),
    })
}

/// Whether a line that the crate refuses may be accepted here.
fn accepted_here_only(line: &str) -> bool {
    let bytes = line.as_bytes();
    let digit = |at: Option<usize>| {
        at.and_then(|at| bytes.get(at))
            .is_some_and(u8::is_ascii_digit)
    };
    line.ends_with([' ', '\r'])
        || bytes
            .iter()
            .enumerate()
            .any(|(at, b)| *b == b'.' && !(digit(at.checked_sub(1)) && digit(Some(at + 1))))
}

/// Checks one line, which holds no newline.
fn check(line: &str) {
    let theirs: Vec<_> = parse_lines(line).collect();
    let ours = parse(line);
    let found = all_rows(&ours);
    assert_eq!(
        ours.errors.total as usize + found.len(),
        theirs.len(),
        "{line:?} is one line or none"
    );
    match theirs.first() {
        None => {}
        Some(Ok(parsed)) => match expected(parsed) {
            Some(row) if found.is_empty() => {
                let mut names = row.tags.keys().chain(row.fields.keys());
                // Commas in keys: whether they were escaped is gone in the crate's result.
                let comma = names.clone().any(|n| n.contains(','));
                let long =
                    row.table.len() > NAME_BYTES_MAX || names.any(|n| n.len() > NAME_BYTES_MAX);
                // The crate takes a comma behind the only field for its end.
                let trailing = row.fields.len() == 1
                    && ours.errors.first[0].reason == "a field's name is empty";
                assert!(
                    comma || trailing || long,
                    "{line:?} is refused here: {:?}",
                    ours.errors.first
                );
            }
            Some(row) => assert_eq!(found, [row], "{line:?}"),
            None => assert!(found.is_empty(), "{line:?} is accepted here: {found:?}"),
        },
        Some(Err(e)) if !found.is_empty() => {
            assert!(
                accepted_here_only(line),
                "{line:?} is accepted here; crate: {e}"
            );
        }
        Some(Err(_)) => {}
    }
}

#[test]
fn lines_that_once_differed_are_judged_as_documented() {
    for line in [
        "a c=-5,",
        "a c=1, 5",
        "a c=1,d=2,",
        "a\\\\ c=1",
        "a c=.5 ",
        "a,b=c,b=d c=1",
    ] {
        check(line);
    }
    check(&format!("a {}=1", "c".repeat(NAME_BYTES_MAX + 1)));
    check(&format!("{} c=1", "a".repeat(NAME_BYTES_MAX + 1)));
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-c]{1,2}",
        1 => "[a-cé\u{1F41F}]{1,3}",
        1 => r"[ab](\\[, =\\x])?[bc]",
    ]
}

fn field_value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|v| format!("{v}i")),
        (-200_i64..200).prop_map(|v| format!("{v}i")),
        any::<u64>().prop_map(|v| format!("{v}u")),
        any::<f64>().prop_map(|v| format!("{v}")),
        any::<f64>().prop_map(|v| format!("{v:e}")),
        (-1e6..1e6_f64).prop_map(|v| format!("{v:.3}")),
        any::<i64>().prop_map(|v| format!("{v}")),
        "t|T|true|True|TRUE|f|F|false|False|FALSE",
        r#""([a-z ,=é]|\\"|\\\\|\\n){0,14}""#,
    ]
}

fn line() -> impl Strategy<Value = String> {
    let tags = prop::collection::vec((name(), name()), 0..4);
    let fields = prop::collection::vec((name(), field_value()), 1..4);
    let time = prop::option::of(any::<i64>());
    (name(), tags, fields, time).prop_map(|(measurement, tags, fields, time)| {
        let mut line = measurement;
        for (name, value) in tags {
            line += &format!(",{name}={value}");
        }
        for (n, (name, value)) in fields.into_iter().enumerate() {
            line += if n == 0 { " " } else { "," };
            line += &format!("{name}={value}");
        }
        time.map_or(line.clone(), |t| format!("{line} {t}"))
    })
}

/// Replaces, inserts or removes characters that matter to the syntax.
fn mutate(line: &str, changes: &[(prop::sample::Index, u8, char)]) -> String {
    let mut chars: Vec<char> = line.chars().collect();
    for (at, kind, to) in changes {
        let at = at.index(chars.len() + 1);
        match kind % 3 {
            0 if at < chars.len() => chars[at] = *to,
            1 if at < chars.len() => {
                chars.remove(at);
            }
            _ => chars.insert(at, *to),
        }
    }
    chars.into_iter().collect()
}

fn syntax_char() -> impl Strategy<Value = char> {
    prop::sample::select(
        r#"\\,,==   ""iuet.-+019ab#_éT"#.chars().chain(['\t', '\0']).collect::<Vec<_>>(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn valid_lines_mean_the_same(line in line()) {
        check(&line);
    }

    #[test]
    fn mutated_lines_are_accepted_or_refused_alike(
        line in line(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), syntax_char()), 1..5),
    ) {
        check(&mutate(&line, &changes));
    }

    #[test]
    fn lines_of_syntax_alone_are_accepted_or_refused_alike(
        chars in prop::collection::vec(syntax_char(), 0..24),
    ) {
        check(&chars.into_iter().collect::<String>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn many_lines_are_stored_as_each_alone(lines in prop::collection::vec(line(), 0..40)) {
        // Roles and types of names are a matter of the whole request.
        let mut roles: BTreeMap<(String, String), Option<std::mem::Discriminant<Value>>> = BTreeMap::new();
        let mut wanted = Vec::new();
        let mut body = String::new();
        for line in &lines {
            body += line;
            body.push('\n');
            let alone = all_rows(&parse(line));
            let Some(row) = alone.into_iter().next() else { continue };
            let columns: Vec<_> = row.tags.keys().map(|n| (n.clone(), None))
                .chain(row.fields.iter().map(|(n, v)| (n.clone(), Some(std::mem::discriminant(v)))))
                .map(|(n, kind)| ((row.table.clone(), n), kind))
                .collect();
            if columns.iter().all(|(n, kind)| roles.get(n).is_none_or(|k| k == kind)) {
                roles.extend(columns);
                wanted.push(row);
            }
        }
        let parsed = parse(&body);
        prop_assert_eq!(parsed.errors.total as usize, lines.len() - wanted.len());
        prop_assert_eq!(all_rows(&parsed), wanted);
        // Equal tag sets are one series.
        for table in &parsed.tables {
            let rows = crate::support::rows(table);
            let distinct: BTreeSet<_> = rows.iter().map(|r| &r.1.tags).collect();
            prop_assert_eq!(table.series, distinct.len());
        }
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn no_syntax_makes_the_parser_panic(
        chars in prop::collection::vec(prop_oneof![syntax_char(), Just('\n'), Just('\r')], 0..200),
    ) {
        let body: String = chars.into_iter().collect();
        let parsed = parse(&body);
        for table in &parsed.tables {
            prop_assert!(table.rows() > 0);
            let schema = table.new_schema(shoal_types::TableId::from_bytes([1; 16])).expect("a schema");
            let resolved = table.resolve(&schema);
            prop_assert_eq!(resolved.block.check(), Ok(()));
            prop_assert_eq!(resolved.block.rows(), table.rows());
        }
    }
}
