//! The PostgreSQL protocol, spoken by clients that mean no good or know no better.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::pg::address;
use crate::server::Server;

/// A message with its kind and length.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
    out
}

/// A connection that sent its startup message.
fn started(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(address(server)).expect("connect");
    let wait = Some(Duration::from_secs(20));
    stream.set_read_timeout(wait).expect("timeout");
    let startup = b"\x00\x03\x00\x00user\0it\0\0";
    let length = (startup.len() as u32 + 4).to_be_bytes();
    stream.write_all(&length).expect("send");
    stream.write_all(startup).expect("send");
    stream
}

/// What the server says until it closes the connection.
fn last_words(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the words is an end as well.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn malformed_and_overlong_messages_end_their_connection_with_a_reason_and_no_other() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    for bytes in [
        message(b'P', b"s\0SELECT $1\0\x00\x09"),
        message(b'B', b"\0s\0\x00\x00\xff\xff\x00\x00\x00\x01"),
        message(b'E', b"\0"),
        message(b'D', b""),
        message(b'Q', b"SELECT '\xff\xfe'\0"),
        message(b'P', b"s\0SELECT '\xff'\0\x00\x00"),
        b"Q\x7f\xff\xff\xff".to_vec(),
        b"Q\x00\x00\x00\x01".to_vec(),
    ] {
        let mut stream = started(&server);
        stream.write_all(&bytes).expect("send");
        let words = last_words(stream);
        assert!(
            words.contains("FATAL") && words.contains("08P01"),
            "{bytes:?}: {words}"
        );
    }
    // Not even the first message may be long.
    let mut stream = TcpStream::connect(address(&server)).expect("connect");
    stream
        .write_all(b"\x3f\xff\xff\xff\x00\x03\x00\x00")
        .expect("send");
    let began = Instant::now();
    last_words(stream);
    assert!(began.elapsed() < Duration::from_secs(10));
    let log = std::fs::read_to_string(dir.path().join("stderr.log")).expect("log");
    assert!(!log.contains("panicked"), "{log}");
    let mut stream = started(&server);
    stream.write_all(&message(b'X', b"")).expect("send");
    assert!(last_words(stream).contains("server_version"));
}

#[test]
fn before_the_password_messages_are_short() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::start(dir.path(), &[], &[("SHOAL_AUTH_TOKEN", "sesame")]);
    let mut stream = started(&server);
    stream.write_all(b"p\x00\x10\x00\x00").expect("send");
    assert!(last_words(stream).contains("08P01"));
}

#[tokio::test]
async fn texts_hold_no_nul_and_prepared_statements_have_an_end() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let text = format!("postgresql://it@{}/public", address(&server));
    let (client, connection) = tokio_postgres::connect(&text, NoTls)
        .await
        .expect("connect");
    tokio::spawn(connection);
    let refused = client.query("SELECT $1::text", &[&"a\0b"]).await;
    let refused = refused.expect_err("NUL");
    assert_eq!(refused.code(), Some(&SqlState::CHARACTER_NOT_IN_REPERTOIRE));
    let long = format!("SELECT '{}'", "x".repeat(10 << 20));
    let mut kept = Vec::new();
    let full = loop {
        match client.prepare(&long).await {
            Ok(statement) => kept.push(statement),
            Err(full) => break full,
        }
        assert!(kept.len() < 20, "statements without end");
    };
    assert_eq!(full.code(), Some(&SqlState::PROGRAM_LIMIT_EXCEEDED));
    assert!(!kept.is_empty());
    drop(kept);
    client.prepare("SELECT 1").await.expect("there is room");
}

#[tokio::test]
async fn a_client_that_takes_no_rows_is_stopped_by_the_time_limit() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let mut stream = started(&server);
    let sql = b"SET statement_timeout = '2s'; SELECT value, 'nobody reads this' FROM generate_series(1, 100000000)\0";
    stream.write_all(&message(b'Q', sql)).expect("send");
    let running = "SELECT count(*) FROM system.queries WHERE sql LIKE '%nobody%' AND sql NOT LIKE '%system.queries%'";
    let began = Instant::now();
    for wanted in [1, 0] {
        while server.number(running).await != wanted {
            assert!(began.elapsed() < Duration::from_secs(30), "{wanted}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_keep_no_one_out() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::start(
        dir.path(),
        &[
            "--http-connections-max",
            "20",
            "--postgres-connections-max",
            "3",
        ],
        &[],
    );
    let text = format!("postgresql://it@{}/public", address(&server));
    let connect = async || {
        let began = Instant::now();
        let connected = tokio_postgres::connect(&text, NoTls).await;
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}",
            began.elapsed()
        );
        connected.map(|(client, connection)| {
            tokio::spawn(connection);
            client
        })
    };
    let silent: Vec<TcpStream> = (0..400)
        .map(|_| TcpStream::connect(address(&server)).expect("connect"))
        .collect();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let client = connect().await.expect("let in");
        client.simple_query("SELECT 1").await.expect("served");
        clients.push(client);
    }
    let full = connect().await.expect_err("three are allowed");
    assert_eq!(full.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
    // The oldest had to go, the newest are waited for.
    let is_closed = |stream: &TcpStream| {
        let wait = Some(Duration::from_millis(200));
        stream.set_read_timeout(wait).expect("timeout");
        matches!((&*stream).read(&mut [0]), Ok(0))
    };
    assert!(is_closed(&silent[0]) && !is_closed(&silent[399]));
    let http = server.url.trim_start_matches("http://");
    let silent: Vec<TcpStream> = (0..200)
        .map(|_| TcpStream::connect(http).expect("connect"))
        .collect();
    let mut half = TcpStream::connect(http).expect("connect");
    half.write_all(b"GET /ping HTTP/1.1\r\n")
        .expect("half a head");
    for _ in 0..30 {
        let fresh = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("client");
        let asked = fresh
            .get(format!("{}/health", server.url))
            .header("Connection", "close")
            .timeout(Duration::from_secs(10));
        let answer = asked.send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
    }
    // It had said something, others had not.
    half.write_all(b"Host: x\r\nConnection: close\r\n\r\n")
        .expect("the other half");
    let answer = last_words(half);
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    drop(silent);
    drop(clients);
}
