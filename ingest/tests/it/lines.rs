use shoal_ingest::{LineParser, ParseOptions, Precision};

use crate::support::{NOW_NS, Value, all_rows, options, parse};

/// The only error of a body: line, column, reason.
fn error(body: impl AsRef<[u8]>) -> (u32, u32, String) {
    let body = body.as_ref();
    let errors = parse(body).errors;
    assert_eq!(
        errors.total,
        1,
        "{:?}: {:?}",
        String::from_utf8_lossy(body),
        errors.first
    );
    let first = &errors.first[0];
    (first.line, first.column, first.reason.clone())
}

#[test]
fn each_kind_of_bad_line_has_its_own_error_at_its_place() {
    let cases = [
        ("cpu", 4, "no fields"),
        ("cpu,host=a", 11, "no fields"),
        ("cpu ", 5, "no fields"),
        (",host=a f=1", 1, "the measurement is empty"),
        ("cpu,=a f=1", 5, "a tag's name is empty"),
        ("cpu,host= f=1", 10, "a tag's value is empty"),
        ("cpu, f=1", 5, "a tag's name is empty"),
        ("cpu,host f=1", 5, "tag \"host\" has no value"),
        ("cpu,host=a,host=b f=1", 18, "tag \"host\" is given twice"),
        ("cpu,time=a f=1", 5, "a tag cannot be named \"time\""),
        ("cpu,__op=a f=1", 5, "reserved"),
        ("__shoal,host=a f=1", 1, "reserved"),
        ("__scalar_sq_1 f=1", 1, "reserved"),
        ("cpu,host=a\\ f=1", 16, "no fields"),
        ("cpu\\\\ f=1", 5, "the measurement ends with a backslash"),
        ("cpu,host=a =1", 12, "a field's name is empty"),
        ("cpu f", 5, "field \"f\" has no value"),
        ("cpu f=", 7, "the field has no value"),
        ("cpu f=1,", 9, "a field's name is empty"),
        ("cpu f=1, g=2", 9, "a field's name is empty"),
        ("cpu time=1i", 5, "a field cannot be named \"time\""),
        ("cpu __set=1i", 5, "reserved"),
        ("cpu,host=a host=1i", 11, "\"host\" is a tag and a field"),
        ("cpu f=tru", 7, "not a value"),
        ("cpu f=NaN", 7, "not a value"),
        ("cpu f=9223372036854775808i", 7, "beyond 64 bits"),
        ("cpu f=9223372036854775808u", 7, "above 9223372036854775807"),
        ("cpu f=1e400", 7, "beyond what a double holds"),
        ("cpu f=1e", 9, "the exponent has no digits"),
        ("cpu f=1x", 8, "unexpected text after the value"),
        ("cpu f=\"abc", 7, "no closing double quote"),
        ("cpu f=1i,f=2.0", 10, "given twice"),
        ("cpu f=1 12x", 11, "after the timestamp"),
        ("cpu f=1 1 2", 11, "after the timestamp"),
        ("cpu f=1 x", 9, "expected a timestamp"),
        ("cpu f=1 9223372036854775808", 9, "out of range"),
        ("cpu\tf=1 1", 4, "a tab"),
    ];
    for (line, column, reason) in cases {
        let found = error(line);
        assert!(found.2.contains(reason), "{line:?}: {found:?}");
        assert_eq!((found.0, found.1), (1, column), "{line:?}: {}", found.2);
        // Alone or among others: the good lines are stored, under their numbers.
        let body = format!("m,h=a ok=1i 1\n\n# a comment \"\n  {line}\r\nm,h=a ok=2i 2");
        let parsed = parse(&body);
        assert_eq!(parsed.rows, 2, "{line:?}");
        assert_eq!(parsed.tables.len(), 1, "{line:?} leaves no table");
        assert_eq!(parsed.tables[0].lines, [1, 5]);
        assert_eq!(parsed.errors.first[0].line, 4);
        assert_eq!(parsed.errors.first[0].column, column + 2);
    }
}

#[test]
fn what_the_specification_allows_is_stored() {
    let body = concat!(
        r#"my\ table\,x,ta\=g=a\ b\,c\=d fi\ eld="say \"hi\" \\ \n" 1"#,
        "\r\n\n   # comment, with=things \"\n",
        "\tm b1=t,b2=T,b3=true,b4=True,b5=TRUE,b6=f,b7=F,b8=false,b9=False,b10=FALSE\n",
        "m i=-5i,u=18u,f=1,g=-2.5e-3,h=.5,k=5. -7  \n",
        "m s=\"two\nlines, really\",e=\"\" 9\n",
        "m i=7i,i=8i 10",
    );
    let parsed = parse(body);
    assert_eq!(parsed.errors.first, []);
    let rows = all_rows(&parsed);
    assert_eq!(rows.len(), 5);
    assert_eq!(rows[0].table, "my table,x");
    assert_eq!(rows[0].tags["ta=g"], "a b,c=d");
    assert_eq!(
        rows[0].fields["fi eld"],
        Value::Text(r#"say "hi" \ \n"#.into())
    );
    assert_eq!(rows[1].time, NOW_NS);
    for (name, value) in &rows[1].fields {
        let truth = name[1..].parse::<u32>().is_ok_and(|n| n <= 5);
        assert_eq!(*value, Value::Bool(truth), "{name}");
    }
    assert_eq!(rows[2].time, -7);
    let fields = &rows[2].fields;
    assert_eq!(fields["i"], Value::Int(-5));
    assert_eq!(fields["u"], Value::Int(18));
    assert_eq!(fields["f"], Value::Float(1.0));
    assert_eq!(fields["g"], Value::Float(-0.0025));
    assert_eq!(fields["h"], Value::Float(0.5));
    assert_eq!(fields["k"], Value::Float(5.0));
    assert_eq!(
        rows[3].fields["s"],
        Value::Text("two\nlines, really".into())
    );
    assert_eq!(rows[3].fields["e"], Value::Text(String::new()));
    // The later of a field given twice; and the line number counts the quoted newline.
    assert_eq!(rows[4].fields["i"], Value::Int(8));
    assert_eq!(parsed.tables[1].lines, [4, 5, 6, 8]);
}

#[test]
fn all_spellings_of_a_tag_set_are_one_series() {
    let parsed = parse(
        "m,a=1,b=2 f=1 1\nm,b=2,a=1 f=1 2\nm,\\a=1,b=2 f=1 3\nm,a=1 f=1 4\nm,a=1,b=\\2 f=1 5\nm f=1 6",
    );
    // A backslash before an ordinary letter is part of the name.
    let table = &parsed.tables[0];
    assert_eq!(table.tags, ["a", "b", "\\a"]);
    assert_eq!(&table.series_of[..], [0, 0, 1, 2, 3, 4]);
    let parsed = parse("m,a=x\\ y,b\\,=2 f=1 1\nm,b\\,=2,a=x\\ y f=1 2");
    assert_eq!((parsed.tables[0].series, parsed.rows), (1, 2));
}

#[test]
fn precisions_scale_to_nanoseconds_or_are_out_of_range() {
    for (names, scale) in [
        (&["ns", "n"][..], 1),
        (&["us", "u", "µs"], 1_000),
        (&["ms"], 1_000_000),
        (&["s"], 1_000_000_000),
    ] {
        for name in names {
            let precision: Precision = name.parse().expect("a precision");
            let parser = LineParser::new(ParseOptions::new(precision, 5));
            let parsed = parser.parse(b"m f=1 1234\nm f=1\nm f=1 9223372036854775807");
            assert_eq!(parsed.tables[0].times[..2], [1234 * scale, 5]);
            assert_eq!(parsed.errors.total, u64::from(scale > 1), "{name}");
        }
    }
    assert!("minutes".parse::<Precision>().is_err());
}

#[test]
fn a_type_once_written_holds_for_the_request() {
    let parsed = parse("m f=1i 1\nm f=2.0 2\nm f=3i,g=1 3\nm,f=x g=2 4\nm,h=x g=2 5\nm h=1i 6");
    assert_eq!(parsed.tables[0].lines, [1, 3, 5]);
    let found: Vec<_> = parsed
        .errors
        .first
        .iter()
        .map(|e| (e.line, e.column, e.reason.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (
                2,
                3,
                "field \"f\" is of type DOUBLE PRECISION here and BIGINT on an earlier line"
            ),
            (4, 3, "\"f\" is a field on an earlier line, here a tag"),
            (6, 3, "\"h\" is a tag, here a field"),
        ]
    );
}

#[test]
fn bytes_that_are_not_utf_8_cost_only_their_line() {
    let parsed = parse(b"m f=1i 1\nm,h=\xff\xfe f=2i 2\nm s=\"\xc3\xa9\" 3\n");
    assert_eq!(parsed.rows, 2);
    let bad = &parsed.errors.first[0];
    assert_eq!(
        (bad.line, bad.column, bad.reason.as_str()),
        (2, 5, "not UTF-8")
    );
}

#[test]
fn an_unclosed_quote_costs_only_its_line() {
    let parsed = parse("m f=1i 1\nm s=\"oops 2\nm f=3i 3\nm f=4i 4\n");
    assert_eq!(parsed.tables[0].lines, [1, 3, 4]);
    assert_eq!(parsed.errors.first[0].line, 2);
}

#[test]
fn limits_refuse_the_line_that_crosses_them() {
    let mut limited = options();
    limited.columns_max = 4;
    let parsed = LineParser::new(limited.clone())
        .parse(b"m,a=1,b=2 f=1\nm,a=1 g=1\nm,a=1,b=2 f=2\nm,c=1 f=1\nn,a=1 f=1,g=1,h=1");
    assert_eq!(parsed.rows, 2);
    assert_eq!(
        parsed
            .errors
            .first
            .iter()
            .map(|e| e.line)
            .collect::<Vec<_>>(),
        [2, 4, 5]
    );
    assert!(parsed.errors.first[0].reason.contains("at most 4 columns"));

    let mut limited = options();
    limited.cells_max = 5;
    let parsed = LineParser::new(limited).parse(b"m a=1\nm b=1\nm a=1");
    assert_eq!(parsed.rows, 2);
    assert!(parsed.errors.first[0].reason.contains("send it in parts"));

    let mut limited = options();
    limited.line_bytes_max = 10;
    let parsed = LineParser::new(limited).parse(b"m abcdefg=1\nm b=1");
    assert_eq!(parsed.rows, 1);
    assert!(
        parsed.errors.first[0]
            .reason
            .contains("longer than 10 bytes")
    );
}

#[test]
fn a_hundred_errors_are_kept_and_all_counted() {
    let body = "bad\n".repeat(250) + "m f=1\n";
    let parsed = parse(&body);
    assert_eq!(
        (parsed.errors.total, parsed.errors.first.len(), parsed.rows),
        (250, 100, 1)
    );
}
