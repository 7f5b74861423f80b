//! `COPY … FROM STDIN` over the PostgreSQL protocol: batches, types, defaults, and what is left of
//! a copy that fails.

use bytes::Bytes;
use futures::{SinkExt, TryStreamExt};
use tokio_postgres::Client;
use tokio_postgres::error::{DbError, SqlState};

use crate::pg::{config, connect};
use crate::server::Server;

async fn connected(server: &Server) -> Client {
    connect(&config(server)).await
}

/// Copies a text in pieces; the rows, or why not.
async fn copy(client: &Client, statement: &str, text: &str) -> Result<u64, DbError> {
    let failed = |e: tokio_postgres::Error| match e.as_db_error() {
        Some(refused) => refused.clone(),
        None => panic!("{statement}: no answer of the server's: {e:?}"),
    };
    let sink = client
        .copy_in::<_, Bytes>(statement)
        .await
        .map_err(failed)?;
    futures::pin_mut!(sink);
    for piece in text.as_bytes().chunks(60_000) {
        // A refused copy shows at the end.
        if sink.send(Bytes::copy_from_slice(piece)).await.is_err() {
            break;
        }
    }
    sink.finish().await.map_err(failed)
}

/// Lines of a table (host, ts, v), `count` of them.
fn lines(count: usize) -> String {
    (0..count)
        .map(|i| format!("host_{}\t2026-01-01 00:00:00.{:06}\t{i}\n", i % 7, i))
        .collect()
}

#[tokio::test]
async fn a_copy_of_several_batches_is_stored_whole_and_later_lines_win() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let client = connected(&server).await;
    client
        .batch_execute("CREATE TABLE m (host TEXT NOT NULL, ts TIMESTAMP(6) NOT NULL, v BIGINT, PRIMARY KEY (host, ts)) WITH (time_column = 'ts')")
        .await
        .expect("create");
    // Three batches of 65,536 rows; the last line says again what the first one said.
    let mut text = lines(150_000);
    text.push_str("host_0\t2026-01-01 00:00:00.000000\t-1\n");
    let copied = copy(&client, "COPY m FROM STDIN", &text).await;
    assert_eq!(copied.expect("copied"), 150_001);
    let counted = server.number("SELECT count(*) FROM m").await;
    assert_eq!(counted, 150_000);
    let first = "SELECT v FROM m WHERE host = 'host_0' ORDER BY ts LIMIT 1";
    assert_eq!(server.number(first).await, -1);
    let sum = server.number("SELECT sum(v) FROM m").await;
    assert_eq!(sum, (0..150_000).sum::<i64>() - 1);
}

#[tokio::test]
async fn a_bad_line_is_named_and_whole_batches_before_it_stay() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let client = connected(&server).await;
    client
        .batch_execute("CREATE TABLE m (host TEXT NOT NULL, ts TIMESTAMP(6) NOT NULL, v BIGINT, PRIMARY KEY (host, ts)) WITH (time_column = 'ts')")
        .await
        .expect("create");
    let mut text = lines(70_000);
    text.push_str("host_0\t2026-01-02\tmany\n");
    let failed = copy(&client, "COPY m FROM STDIN", &text)
        .await
        .expect_err("a bad line");
    assert_eq!(failed.code(), &SqlState::INVALID_TEXT_REPRESENTATION);
    assert_eq!(failed.where_(), Some("COPY m, line 70001, column v"));
    assert!(
        failed.message().contains("\"many\"") && failed.message().contains("65536 rows"),
        "{}",
        failed.message()
    );
    assert_eq!(server.number("SELECT count(*) FROM m").await, 65_536);
    for (line, code) in [
        ("\\N\t2026-01-03\t1\n", SqlState::NOT_NULL_VIOLATION),
        ("h\t2026-01-03\n", SqlState::BAD_COPY_FILE_FORMAT),
        (
            "h\t2026-01-03\t99999999999999999999\n",
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
        ),
        ("h\t2026-02-30\t1\n", SqlState::INVALID_TEXT_REPRESENTATION),
    ] {
        let failed = copy(&client, "COPY m FROM STDIN", line).await;
        assert_eq!(failed.expect_err(line).code(), &code, "{line}");
    }
    assert_eq!(server.number("SELECT count(*) FROM m").await, 65_536);
    client.simple_query("SELECT 1").await.expect("goes on");
}

#[tokio::test]
async fn columns_that_are_not_copied_take_their_defaults_or_stay_as_they_were() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let client = connected(&server).await;
    client
        .batch_execute(
            "CREATE TABLE \"Kinds\" (id BIGINT NOT NULL, kind TEXT DEFAULT 'usual', n INTEGER DEFAULT 6 * 7, note TEXT, PRIMARY KEY (id));
             INSERT INTO \"Kinds\" (id, note) VALUES (1, 'kept')",
        )
        .await
        .expect("create");
    let csv = "n,id\n1,1\n,2\n";
    let statement = "COPY \"Kinds\" (n, id) FROM STDIN WITH (FORMAT csv, HEADER match)";
    assert_eq!(copy(&client, statement, csv).await.expect("copied"), 2);
    let rows = server
        .rows("SELECT id, kind, n, note FROM \"Kinds\" ORDER BY id")
        .await;
    assert_eq!(
        rows,
        serde_json::json!([[1, "usual", 1, "kept"], [2, "usual", null, null]])
    );
    let statement = "COPY \"Kinds\" (id) FROM STDIN";
    assert_eq!(copy(&client, statement, "3\n4").await.expect("copied"), 2);
    let sum = "SELECT sum(n) FROM \"Kinds\" WHERE id > 2";
    assert_eq!(server.number(sum).await, 84);
    let wrong = copy(
        &client,
        "COPY \"Kinds\" FROM STDIN WITH (FORMAT csv, HEADER match)",
        csv,
    );
    let wrong = wrong.await.expect_err("another header");
    assert_eq!(wrong.code(), &SqlState::BAD_COPY_FILE_FORMAT);
    for (statement, code) in [
        (
            "COPY \"Kinds\" (kind) FROM STDIN",
            SqlState::NOT_NULL_VIOLATION,
        ),
        (
            "COPY \"Kinds\" (id, id) FROM STDIN",
            SqlState::DUPLICATE_COLUMN,
        ),
        (
            "COPY \"Kinds\" (what) FROM STDIN",
            SqlState::UNDEFINED_COLUMN,
        ),
        ("COPY nothing FROM STDIN", SqlState::UNDEFINED_TABLE),
        (
            "COPY system.queries FROM STDIN",
            SqlState::INSUFFICIENT_PRIVILEGE,
        ),
        (
            "COPY \"Kinds\" FROM STDIN BINARY",
            SqlState::FEATURE_NOT_SUPPORTED,
        ),
    ] {
        // tokio-postgres answers an error before the first data with one Sync too many.
        let client = connected(&server).await;
        let refused = copy(&client, statement, "").await.expect_err(statement);
        assert_eq!(refused.code(), &code, "{statement}: {}", refused.message());
    }
}

#[tokio::test]
async fn options_that_are_not_known_are_refused_with_the_nearest_one() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let client = connected(&server).await;
    client
        .batch_execute("CREATE TABLE m (id BIGINT NOT NULL, t TEXT, PRIMARY KEY (id)); INSERT INTO m VALUES (1, 'a'), (2, NULL)")
        .await
        .expect("create");
    for (options, name, near) in [
        ("(FORMAT csv, HAEDER true)", "haeder", "header"),
        ("WITH (FROMAT csv)", "fromat", "format"),
        ("WITH CSV DELIMTER ';'", "delimter", "delimiter"),
    ] {
        for direction in ["FROM STDIN", "TO STDOUT"] {
            // tokio-postgres answers an error before the first data with one Sync too many.
            let client = connected(&server).await;
            let statement = format!("COPY m {direction} {options}");
            let refused = match direction {
                "FROM STDIN" => copy(&client, &statement, "").await.expect_err("refused"),
                _ => match client.copy_out(&statement).await {
                    Ok(_) => panic!("{statement}: taken"),
                    Err(e) => e.as_db_error().expect("of the server").clone(),
                },
            };
            assert_eq!(refused.code(), &SqlState::SYNTAX_ERROR, "{statement}");
            assert!(refused.message().contains(name), "{refused:?}");
            assert!(
                refused.hint().is_some_and(|h| h.contains(near)),
                "{refused:?}"
            );
        }
    }
    let quoted = client
        .copy_out("COPY (SELECT id, t FROM m ORDER BY id) TO STDOUT (FORMAT csv, FORCE_QUOTE (id))")
        .await
        .expect("begins");
    let parts: Vec<Bytes> = quoted.try_collect().await.expect("rows");
    assert_eq!(parts.concat(), b"\"1\",a\n\"2\",\n");
}

#[tokio::test]
async fn a_quote_that_is_never_closed_is_refused_with_the_line_where_it_began() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let client = connected(&server).await;
    client
        .batch_execute("CREATE TABLE m (id BIGINT NOT NULL, t TEXT, PRIMARY KEY (id))")
        .await
        .expect("create");
    for (csv, line) in [
        ("1,\"a\nb\"\n2,\"open\n3,c\n", 3),
        ("1,\"a\"\"b\"\n2,\"a\nb\nc\"\"d\n", 2),
        ("id,t\n1,\"", 2),
    ] {
        let statement = if csv.starts_with('i') {
            "COPY m FROM STDIN (FORMAT csv, HEADER)"
        } else {
            "COPY m FROM STDIN CSV"
        };
        let open = copy(&client, statement, csv).await.expect_err(csv);
        assert_eq!(open.code(), &SqlState::BAD_COPY_FILE_FORMAT);
        assert_eq!(open.message(), "unterminated CSV quoted field");
        assert_eq!(open.where_(), Some(format!("COPY m, line {line}").as_str()));
        assert_eq!(server.number("SELECT count(*) FROM m").await, 0);
    }
    let closed = copy(&client, "COPY m FROM STDIN CSV", "1,\"a\nb\"").await;
    assert_eq!(closed.expect("copied"), 1);
}
