use std::sync::Arc;

use arrow_array::Array;
use shoal_ingest::{LineParser, NewColumn, extend_schema};
use shoal_rows::{block_to_batch, decode_blocks, encode_blocks};
use shoal_types::{
    Column, ColumnId, ColumnType, Incarnation, SchemaError, TableId, TableMode, TableOrigin,
    TableSchema, TimePrecision,
};

use crate::support::{cpu_lines, options, parse};

fn table_id() -> TableId {
    TableId::from_bytes([9; 16])
}

fn names(schema: &TableSchema) -> Vec<&str> {
    schema.columns.iter().map(|c| c.name.as_str()).collect()
}

fn key(schema: &TableSchema) -> Vec<&str> {
    schema
        .key
        .iter()
        .map(|id| {
            schema
                .column_by_id(*id)
                .expect("a key column")
                .name
                .as_str()
        })
        .collect()
}

#[test]
fn a_line_that_contradicts_its_table_does_not_have_the_right_ones_refused() {
    let made = parse("m,h=a v=1.5,n=1i 1");
    let schema = Arc::new(made.tables[0].new_schema(table_id()).expect("a schema"));
    let schema_of = |name: &str| (name == "m").then(|| Arc::clone(&schema));
    let parsed = LineParser::new(options()).parse_for(
        b"m,h=a v=\"x\" 2\nm,v=a n=1i 3\nm h=1i 4\nm,h=a n=2i,v=2 5\nm,h=b v=3 6\nother v=\"x\" 7",
        &schema_of,
    );
    let refused: Vec<_> = parsed
        .errors
        .first
        .iter()
        .map(|e| (e.line, e.column))
        .collect();
    assert_eq!(refused, [(1, 7), (2, 3), (3, 3)], "{:?}", parsed.errors);
    let stored: Vec<_> = parsed
        .tables
        .iter()
        .map(|t| (t.name.as_str(), &t.lines[..]))
        .collect();
    assert_eq!(stored, [("m", &[4, 5][..]), ("other", &[6][..])]);
    let resolved = parsed.tables[0].resolve(&schema);
    assert!(resolved.errors.is_empty(), "{:?}", resolved.errors);
}

#[test]
fn a_table_made_on_the_fly_has_tags_and_time_as_key_and_grows_in_order() {
    let first = parse("cpu,host=a,region=eu usage=1.5,n=1i,s=\"x\",b=t 1");
    let schema = first.tables[0].new_schema(table_id()).expect("a schema");
    assert_eq!(
        names(&schema),
        ["host", "region", "time", "usage", "n", "s", "b"]
    );
    assert_eq!(key(&schema), ["host", "region", "time"]);
    assert_eq!(schema.mode, TableMode::Upsert);
    assert_eq!(schema.origin, TableOrigin::LineProtocol);
    assert!(first.tables[0].missing(&schema).is_empty());

    let second = parse("cpu,rack=7,host=a z=1i,usage=2 2");
    let missing = second.tables[0].missing(&schema);
    let column = |name: &str, tag, column_type| NewColumn {
        name: name.into(),
        tag,
        column_type,
    };
    assert_eq!(
        missing,
        [
            column("rack", true, ColumnType::Text),
            column("z", false, ColumnType::Int64)
        ]
    );
    let next = extend_schema(&schema, &missing).expect("a schema");
    assert_eq!(next.version, 2);
    assert_eq!(
        names(&next),
        [
            "host", "region", "rack", "time", "usage", "n", "s", "b", "z"
        ]
    );
    assert_eq!(key(&next), ["host", "region", "rack", "time"]);
    assert_eq!(next.column("rack").map(|c| c.id), Some(ColumnId(7)));

    // Rows parsed before the change fit the schema after it.
    let block = first.tables[0].resolve(&next).block;
    assert_eq!(block.check(), Ok(()));
    assert_eq!(block.series.values[2].null_count(), 1);
    assert!(matches!(
        extend_schema(&next, &missing),
        Err(SchemaError::DuplicateColumn(_))
    ));

    // The first tag of a table without any goes before the time.
    let bare = parse("m f=1 1");
    let schema = bare.tables[0].new_schema(table_id()).expect("a schema");
    let next = extend_schema(&schema, &missing).expect("a schema");
    assert_eq!(key(&next), ["rack", "time"]);
    assert_eq!(names(&next), ["rack", "time", "f", "z"]);
    assert_eq!(bare.tables[0].resolve(&schema).block.series.len, 1);
}

/// A table made by SQL: `(ts TIMESTAMP(3), host TEXT, n BIGINT, v DOUBLE)`.
fn sql_table(key: &[u32], time_column: u32) -> TableSchema {
    let column = |id, name: &str, column_type, nullable| Column {
        id: ColumnId(id),
        name: name.into(),
        column_type,
        nullable,
        default: None,
    };
    TableSchema {
        table: table_id(),
        version: 1,
        incarnation: Incarnation(0),
        columns: vec![
            column(
                0,
                "ts",
                ColumnType::Timestamp {
                    precision: TimePrecision::Millisecond,
                    utc: true,
                },
                false,
            ),
            column(1, "host", ColumnType::Text, false),
            column(2, "n", ColumnType::Int64, true),
            column(3, "v", ColumnType::Float64, true),
        ],
        key: key.iter().map(|id| ColumnId(*id)).collect(),
        time_column: Some(ColumnId(time_column)),
        mode: TableMode::Upsert,
        ttl_ms: None,
        origin: TableOrigin::Sql,
        next_column_id: ColumnId(4),
        part_of: None,
    }
}

#[test]
fn lines_that_an_existing_table_cannot_take_are_refused_and_the_others_kept() {
    let body = concat!(
        "t,host=a v=1.5 1999999\n",
        "t,host=a v2=1 1\n",
        "t,host=b n=7i -1\n",
        "t,n=x v=1.0 1\n",
        "t,host=b host2=1i 1\n",
        "t f=2i 1\n",
        "t,host=c v=2.5,n=1i 3000000\n",
    );
    for schema in [
        sql_table(&[1, 0], 0),
        sql_table(&[0, 1], 0),
        sql_table(&[1], 0),
    ] {
        let parsed = parse(body);
        // "n" is a field on line 3, so line 4 is refused by the parser already.
        assert_eq!(parsed.errors.first[0].line, 4);
        let table = &parsed.tables[0];
        let resolved = table.resolve(&schema);
        let block = &resolved.block;
        assert_eq!(block.check(), Ok(()));
        assert_eq!(block.rows(), 3, "{:?}", resolved.errors);
        let lines: Vec<_> = resolved.errors.first.iter().map(|e| e.line).collect();
        assert_eq!(lines, [2, 5, 6]);
        let batch = block_to_batch(&schema, block).expect("a batch");
        let text = format!("{:?}", batch.column(0));
        assert!(text.contains("1970-01-01T00:00:00.001"), "{text}");
        assert!(
            text.contains("1969-12-31T23:59:59.999"),
            "rounded down: {text}"
        );
        let set: Vec<_> = block
            .columns
            .iter()
            .filter(|c| c.id.0 >= 2)
            .map(|c| c.set.as_ref().map(|s| s.iter().collect::<Vec<_>>()))
            .collect();
        assert_eq!(
            set,
            [Some(vec![false, true, true]), Some(vec![true, false, true])]
        );
        assert!(matches!(
            extend_schema(&schema, &table.missing(&schema)),
            Err(SchemaError::Invalid(_))
        ));
    }
}

#[test]
fn conflicts_of_type_and_role_name_both_sides() {
    let schema = sql_table(&[1, 0], 0);
    let reason = |line: &str| {
        let resolved = parse(line).tables[0].resolve(&schema);
        assert_eq!((resolved.block.rows(), resolved.block.check()), (0, Ok(())));
        assert_eq!(resolved.errors.total, 1);
        resolved.errors.first[0].reason.clone()
    };
    assert_eq!(
        reason("t,host=a v=1i"),
        "field \"v\" is of type BIGINT here and DOUBLE PRECISION in the table"
    );
    assert_eq!(
        reason("t,host=a,v=x n=1i"),
        "\"v\" is a field of the table, here a tag"
    );
    assert_eq!(
        reason("t host=\"a\""),
        "\"host\" is a tag of the table, here a field"
    );
    assert_eq!(
        reason("t,ts=a n=1i"),
        "\"ts\" is the table's time column, here a tag"
    );
    assert_eq!(
        reason("t n=1i"),
        "column \"host\" is NOT NULL and the line does not set it"
    );
    assert_eq!(
        reason("t,host=a x=1i"),
        "the table has no column for field \"x\""
    );
}

#[test]
fn parsed_rows_survive_the_way_through_the_log() {
    let parsed = parse(cpu_lines(20, 500));
    assert!(parsed.errors.is_empty());
    let schema = parsed.tables[0].new_schema(table_id()).expect("a schema");
    let block = parsed.tables[0].resolve(&schema).block;
    assert_eq!(
        (block.rows(), block.series.len, block.columns.len()),
        (500, 20, 10)
    );
    let body = encode_blocks(std::slice::from_ref(&block));
    let decoded = decode_blocks(&body.into()).expect("ours");
    assert_eq!(
        block_to_batch(&schema, &decoded[0]),
        block_to_batch(&schema, &block)
    );
}
