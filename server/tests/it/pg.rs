//! The PostgreSQL protocol, spoken by `tokio-postgres`.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{SinkExt, TryStreamExt};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::server::Server;

/// Where a server speaks PostgreSQL.
pub fn address(server: &Server) -> std::net::SocketAddr {
    let text = std::fs::read_to_string(server.dir.join("data/addresses.json")).expect("addresses");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    json["postgres"]
        .as_str()
        .and_then(|a| a.parse().ok())
        .expect("PostgreSQL address")
}

pub fn config(server: &Server) -> Config {
    let address = address(server);
    let mut config = Config::new();
    config
        .host(address.ip().to_string())
        .port(address.port())
        .user("tester")
        .dbname("public");
    config
}

pub async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.expect("connect");
    tokio::spawn(connection);
    client
}

/// The data that client tests look at.
pub async fn fill(client: &Client) {
    client
        .batch_execute(
            "CREATE TABLE cpu (ts TIMESTAMP(3) NOT NULL, hostname TEXT NOT NULL, usage_user DOUBLE PRECISION, n BIGINT, PRIMARY KEY (hostname, ts)) WITH (time_column = 'ts');
             INSERT INTO cpu VALUES ('2016-01-01 00:00:00', 'host_0', 1.5, 1), ('2016-01-01 00:00:10', 'host_0', 2.5, 2), ('2016-01-01 00:01:00', 'host_1', NULL, 3)",
        )
        .await
        .expect("fill");
}

fn simple_rows(messages: &[SimpleQueryMessage]) -> Vec<Vec<Option<String>>> {
    messages
        .iter()
        .filter_map(|m| match m {
            SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|i| row.get(i).map(str::to_owned))
                    .collect(),
            ),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn values_of_every_type_travel_both_ways_in_binary_and_in_text() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let client = connect(&config(&server)).await;
    client
        .batch_execute(
            "CREATE TABLE kinds (id BIGINT NOT NULL, b BOOLEAN, s SMALLINT, i INTEGER, r REAL, d DOUBLE PRECISION, t TEXT, y BYTEA, ts TIMESTAMP(6), tz TIMESTAMPTZ(6), dec DECIMAL(20, 4), PRIMARY KEY (id))",
        )
        .await
        .expect("create");
    let when = SystemTime::UNIX_EPOCH + Duration::from_micros(1_451_606_400_123_456);
    let insert = client
        .prepare("INSERT INTO kinds (id, b, s, i, r, d, t, y, ts, tz) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)")
        .await
        .expect("prepare");
    assert_eq!(
        insert.params(),
        [
            Type::INT8,
            Type::BOOL,
            Type::INT2,
            Type::INT4,
            Type::FLOAT4,
            Type::FLOAT8,
            Type::TEXT,
            Type::BYTEA,
            Type::TIMESTAMP,
            Type::TIMESTAMPTZ
        ]
    );
    let inserted = client
        .execute(
            &insert,
            &[
                &7_i64,
                &true,
                &-3_i16,
                &70_000_i32,
                &1.25_f32,
                &-0.1_f64,
                &"grüß 'dich'",
                &&b"\x00\xff"[..],
                &when,
                &when,
            ],
        )
        .await
        .expect("insert");
    assert_eq!(inserted, 1);
    client
        .execute(
            "INSERT INTO kinds (id, dec) VALUES ($1, 12345.6789)",
            &[&8_i64],
        )
        .await
        .expect("insert nulls");
    let row = client
        .query_one("SELECT * FROM kinds WHERE id = $1", &[&7_i64])
        .await
        .expect("select");
    assert_eq!(row.get::<_, i64>("id"), 7);
    assert!(row.get::<_, bool>("b"));
    assert_eq!(row.get::<_, i16>("s"), -3);
    assert_eq!(row.get::<_, i32>("i"), 70_000);
    assert_eq!(row.get::<_, f32>("r"), 1.25);
    assert_eq!(row.get::<_, f64>("d"), -0.1);
    assert_eq!(row.get::<_, &str>("t"), "grüß 'dich'");
    assert_eq!(row.get::<_, &[u8]>("y"), b"\x00\xff");
    assert_eq!(row.get::<_, SystemTime>("ts"), when);
    assert_eq!(row.get::<_, SystemTime>("tz"), when);
    let text = client
        .simple_query("SELECT * FROM kinds ORDER BY id")
        .await
        .expect("text");
    let some = |v: &str| Some(v.to_owned());
    assert_eq!(
        simple_rows(&text),
        [
            vec![
                some("7"),
                some("t"),
                some("-3"),
                some("70000"),
                some("1.25"),
                some("-0.1"),
                some("grüß 'dich'"),
                some("\\x00ff"),
                some("2016-01-01 00:00:00.123456"),
                some("2016-01-01 00:00:00.123456+00"),
                None,
            ],
            vec![
                some("8"),
                None,
                None,
                None,
                None,
                None,
                None,
                None,
                None,
                None,
                some("12345.6789"),
            ],
        ]
    );
}

#[tokio::test]
async fn errors_carry_their_sqlstate_and_the_character_they_are_at() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let client = connect(&config(&server)).await;
    fill(&client).await;
    let failed = |e: tokio_postgres::Error| {
        let e = e.as_db_error().expect("an error of the server").clone();
        let position = match e.position() {
            Some(tokio_postgres::error::ErrorPosition::Original(at)) => Some(*at as usize),
            _ => None,
        };
        (e.code().clone(), position, e.hint().map(str::to_owned))
    };
    let text = "SELECT 'é'; SELECT usage_usr FROM cpu";
    let (code, position, hint) = failed(client.simple_query(text).await.expect_err("no column"));
    assert_eq!(code, SqlState::UNDEFINED_COLUMN);
    let at = text.chars().position(|c| c == 'u').expect("u");
    assert_eq!(position, Some(at + 1));
    assert!(hint.expect("a hint").contains("usage_user"));
    let (code, position, _) = failed(
        client
            .prepare("SELECT (1\n FROM cpu")
            .await
            .expect_err("syntax"),
    );
    assert_eq!(code, SqlState::SYNTAX_ERROR);
    assert!(position.is_some());
    let (code, ..) = failed(
        client
            .simple_query("SELECT * FROM cpi")
            .await
            .expect_err("no table"),
    );
    assert_eq!(code, SqlState::UNDEFINED_TABLE);
    let (code, ..) = failed(
        client
            .simple_query("SELECT 1 / (n - n) FROM cpu")
            .await
            .expect_err("zero"),
    );
    assert_eq!(code, SqlState::DIVISION_BY_ZERO);
    // The connection goes on.
    assert_eq!(
        client
            .query_one("SELECT 1", &[])
            .await
            .expect("goes on")
            .len(),
        1
    );
}

/// Takes far longer than any test.
const ENDLESS: &str = "SELECT count(*) FROM generate_series(1, 100000) a CROSS JOIN generate_series(1, 100000) b CROSS JOIN generate_series(1, 1000) c";

async fn wait_until_running(server: &Server, wanted: bool) {
    for _ in 0..500 {
        let running = server
            .number("SELECT count(*) FROM system.queries WHERE sql LIKE '%CROSS JOIN%' AND sql NOT LIKE '%system.queries%'")
            .await;
        if (running > 0) == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!(
        "the statement is {}running",
        if wanted { "not " } else { "still " }
    );
}

#[tokio::test]
async fn a_cancel_request_stops_the_running_statement_and_the_connection_goes_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let client = connect(&config(&server)).await;
    let token = client.cancel_token();
    let cancelling = async {
        wait_until_running(&server, true).await;
        token.cancel_query(NoTls).await.expect("cancel");
    };
    let (ran, ()) = tokio::join!(client.simple_query(ENDLESS), cancelling);
    let error = ran.expect_err("cancelled");
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    wait_until_running(&server, false).await;
    client.simple_query("SELECT 1").await.expect("goes on");
}

#[tokio::test]
async fn a_client_that_goes_away_stops_its_statement() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let (client, connection) = config(&server).connect(NoTls).await.expect("connect");
    let connection = tokio::spawn(connection);
    let query = tokio::spawn(async move { client.simple_query(ENDLESS).await.map(|_| ()) });
    wait_until_running(&server, true).await;
    connection.abort();
    query.abort();
    wait_until_running(&server, false).await;
}

#[tokio::test]
async fn portals_hand_out_rows_in_parts() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let mut client = connect(&config(&server)).await;
    let transaction = client.transaction().await.expect("begin");
    let portal = transaction
        .bind(
            "SELECT value FROM generate_series(1, 2500) ORDER BY value",
            &[],
        )
        .await
        .expect("bind");
    let mut sizes = Vec::new();
    let mut sum = 0;
    loop {
        let rows = transaction.query_portal(&portal, 1000).await.expect("part");
        sum += rows.iter().map(|r| r.get::<_, i64>(0)).sum::<i64>();
        sizes.push(rows.len());
        if rows.len() < 1000 {
            break;
        }
    }
    assert_eq!((sizes, sum), (vec![1000, 1000, 500], 2500 * 2501 / 2));
    transaction.commit().await.expect("commit");
    // Cursors of SQL, as psycopg's named ones.
    client
        .batch_execute(
            "BEGIN; DECLARE c NO SCROLL CURSOR FOR SELECT value FROM generate_series(1, 5)",
        )
        .await
        .expect("declare");
    let rows = client
        .simple_query("FETCH FORWARD 3 FROM c")
        .await
        .expect("fetch");
    assert_eq!(simple_rows(&rows).len(), 3);
    let rows = client.query("FETCH ALL FROM c", &[]).await.expect("fetch");
    assert_eq!(rows.len(), 2);
    client
        .batch_execute("CLOSE c; COMMIT")
        .await
        .expect("close");
}

#[tokio::test]
async fn transactions_keep_the_books_that_drivers_read() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let client = connect(&config(&server)).await;
    fill(&client).await;
    client.batch_execute("BEGIN").await.expect("begin");
    client.batch_execute("SELEC").await.expect_err("syntax");
    let aborted = client.batch_execute("SELECT 1").await.expect_err("aborted");
    assert_eq!(aborted.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    client
        .batch_execute("ROLLBACK; SELECT 1")
        .await
        .expect("rolled back");
    client
        .batch_execute("BEGIN READ ONLY")
        .await
        .expect("begin");
    let refused = client
        .batch_execute("DELETE FROM cpu")
        .await
        .expect_err("read only");
    assert_eq!(refused.code(), Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
    client.batch_execute("ROLLBACK").await.expect("rollback");
    client
        .batch_execute("DISCARD ALL; UNLISTEN *; CLOSE ALL; RESET ALL")
        .await
        .expect("reset");
    assert_eq!(server.number("SELECT count(*) FROM cpu").await, 3);
}

#[tokio::test]
async fn settings_are_kept_shown_and_reported() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let mut asked = config(&server);
    asked
        .application_name("it")
        .options("-c statement_timeout=5s");
    let client = connect(&asked).await;
    let show = async |name: &str| {
        let shown = client
            .simple_query(&format!("SHOW {name}"))
            .await
            .expect("show");
        simple_rows(&shown)[0][0].clone().expect("a value")
    };
    assert_eq!(show("application_name").await, "it");
    assert_eq!(show("statement_timeout").await, "5s");
    assert_eq!(show("server_version").await, "16.6");
    assert_eq!(show("standard_conforming_strings").await, "on");
    assert_eq!(show("transaction_isolation").await, "read committed");
    client
        .batch_execute("SET statement_timeout = '50ms'")
        .await
        .expect("set");
    let slow = client.batch_execute(ENDLESS).await.expect_err("timeout");
    assert_eq!(slow.code(), Some(&SqlState::QUERY_CANCELED));
}

#[tokio::test]
async fn the_password_is_the_token_and_the_user_is_anyone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::start(dir.path(), &[], &[("SHOAL_AUTH_TOKEN", "s3cret")]);
    let mut config = config(&server);
    config.password("wrong");
    let refused = config.connect(NoTls).await.err().expect("refused");
    assert_eq!(refused.code(), Some(&SqlState::INVALID_PASSWORD));
    config.password("s3cret").user("whoever");
    connect(&config)
        .await
        .simple_query("SELECT 1")
        .await
        .expect("let in");
}

#[tokio::test]
async fn connections_beyond_the_bound_are_refused_and_come_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::start(dir.path(), &["--postgres-connections-max", "1"], &[]);
    let first = connect(&config(&server)).await;
    let refused = config(&server).connect(NoTls).await.err().expect("refused");
    assert_eq!(refused.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
    drop(first);
    for _ in 0..200 {
        if config(&server).connect(NoTls).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("a closed connection still counts");
}

#[tokio::test]
async fn copy_takes_and_gives_rows_over_the_connection() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let client = connect(&config(&server)).await;
    fill(&client).await;
    let sink = client
        .copy_in("COPY cpu (ts, hostname, usage_user, n) FROM STDIN WITH (FORMAT csv, HEADER)")
        .await
        .expect("copy in");
    futures::pin_mut!(sink);
    let mut sent = String::from("ts,hostname,usage_user,n\n");
    for i in 0..2_500 {
        sent.push_str(&format!(
            "2016-01-02 00:{:02}:{:02},\"a,b\",{i}.5,\n",
            i / 60,
            i % 60
        ));
    }
    // In pieces that end in the middle of lines.
    for piece in sent.as_bytes().chunks(1000) {
        sink.send(Bytes::copy_from_slice(piece))
            .await
            .expect("send");
    }
    assert_eq!(sink.finish().await.expect("finish"), 2_500);
    assert_eq!(
        server
            .number("SELECT count(*) FROM cpu WHERE hostname = 'a,b' AND n IS NULL")
            .await,
        2_500
    );
    let out = client
        .copy_out("COPY (SELECT hostname, usage_user FROM cpu WHERE hostname LIKE 'host%' ORDER BY ts) TO STDOUT")
        .await
        .expect("copy out");
    let lines: Vec<Bytes> = out.try_collect().await.expect("lines");
    assert_eq!(lines.concat(), b"host_0\t1.5\nhost_0\t2.5\nhost_1\t\\N\n");
    let sink = client
        .copy_in::<_, Bytes>("COPY cpu FROM STDIN")
        .await
        .expect("copy in");
    futures::pin_mut!(sink);
    sink.send(Bytes::from_static(b"2016-01-03\tx\n"))
        .await
        .expect("send");
    let wrong = sink.finish().await.expect_err("too few columns");
    assert_eq!(wrong.code(), Some(&SqlState::BAD_COPY_FILE_FORMAT));
    client.simple_query("SELECT 1").await.expect("goes on");
}

#[tokio::test]
async fn statements_that_were_prepared_by_name_can_be_dropped() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let client = connect(&config(&server)).await;
    for (drop, value) in [
        ("DEALLOCATE one", "1"),
        ("DEALLOCATE ALL", "2"),
        ("DISCARD ALL", "3"),
    ] {
        let prepare = format!("PREPARE one AS SELECT {value}");
        client.simple_query(&prepare).await.expect("prepare");
        let messages = client.simple_query("EXECUTE one").await.expect("execute");
        assert_eq!(simple_rows(&messages), [[Some(value.to_owned())]]);
        client.simple_query(drop).await.expect(drop);
        assert!(client.simple_query("EXECUTE one").await.is_err(), "{drop}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_a_level_that_does_not_exist_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    for (options, wrong) in [
        ("-c shoal.consistency=sesion", "sesion"),
        ("-c shoal.read_from=leder", "leder"),
        ("-c commit_tokens=oops", "oops"),
        ("-c shoal.consistncy=strong", "consistncy"),
    ] {
        let refused = config(&server).options(options).connect(NoTls).await;
        let refused = refused.err().expect("refused");
        let text = refused.as_db_error().map(|e| e.message().to_owned());
        assert!(
            text.as_ref().is_some_and(|t| t.contains(wrong)),
            "{options}: {text:?}"
        );
    }
    let client =
        connect(config(&server).options("-c shoal.consistency=eventual -c foo.bar=1")).await;
    let row = client
        .query_one("SHOW consistency", &[])
        .await
        .expect("show");
    assert_eq!(row.get::<_, String>(0), "eventual");
}

#[tokio::test(flavor = "multi_thread")]
async fn set_local_ends_with_its_transaction() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let client = connect(&config(&server)).await;
    let level = async || {
        let row = client
            .query_one("SHOW consistency", &[])
            .await
            .expect("show");
        row.get::<_, String>(0)
    };
    for end in ["COMMIT", "ROLLBACK"] {
        client
            .batch_execute(
                "BEGIN; SET LOCAL consistency = 'eventual'; SET LOCAL consistency = 'session'",
            )
            .await
            .expect("set");
        assert_eq!(level().await, "session");
        client.batch_execute(end).await.expect("end");
        assert_eq!(level().await, "strong");
    }
    client
        .batch_execute("SET LOCAL consistency = 'eventual'")
        .await
        .expect("set");
    assert_eq!(level().await, "strong", "there is no transaction");
    client
        .batch_execute("SET consistency = 'eventual'")
        .await
        .expect("set");
    assert_eq!(level().await, "eventual");
}
