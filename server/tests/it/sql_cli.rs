//! `shoal sql`, run as a command.

use std::io::Write as _;
use std::process::{Output, Stdio};

use crate::server::{Server, shoal, stderr};

fn sql(server: &Server, args: &[&str], input: Option<&str>) -> Output {
    let mut command = shoal(&["sql", "--url", &server.url]);
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin
        .write_all(input.unwrap_or_default().as_bytes())
        .expect("input");
    drop(stdin);
    child.wait_with_output().expect("output")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

const FILL: &str = "CREATE TABLE cpu (ts TIMESTAMP(3) NOT NULL, host TEXT NOT NULL, usage DOUBLE PRECISION, PRIMARY KEY (host, ts));
INSERT INTO cpu VALUES ('2016-01-01 00:00:00', 'host;0', 1.5),
  ('2016-01-01 00:00:10', 'a \"b\"', NULL); -- two rows
";

#[tokio::test(flavor = "multi_thread")]
async fn scripts_run_from_everywhere_and_results_come_in_every_form() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    assert_eq!(
        text(&sql(&server, &[], Some(FILL))),
        "CREATE TABLE\nINSERT 0 2\n"
    );
    let query = "SELECT host, usage, ts FROM cpu ORDER BY ts";
    assert_eq!(
        text(&sql(&server, &["-c", query], None)),
        concat!(
            "  host  | usage |         ts\n",
            "--------+-------+---------------------\n",
            " host;0 |   1.5 | 2016-01-01 00:00:00\n",
            " a \"b\"  |  NULL | 2016-01-01 00:00:10\n",
            "2 rows\n"
        )
    );
    assert_eq!(
        text(&sql(&server, &["--format", "csv", "-c", query], None)),
        "host,usage,ts\nhost;0,1.5,2016-01-01T00:00:00Z\n\"a \"\"b\"\"\",,2016-01-01T00:00:10Z\n"
    );
    let json: serde_json::Value = serde_json::from_str(&text(&sql(
        &server,
        &["--format", "json", "-c", query],
        None,
    )))
    .expect("JSON");
    assert_eq!(json["rows"][1][0], "a \"b\"");
    let file = dir.path().join("q.sql");
    std::fs::write(&file, "\\x on\n\\d cpu\nSELECT 1 AS one").expect("file");
    let shown = text(&sql(&server, &["-f", file.to_str().expect("path")], None));
    assert!(
        shown.contains("| ts\n") && shown.contains("TIMESTAMP(3)"),
        "{shown}"
    );
    assert!(shown.ends_with("-[ row 1 ]\none | 1\n1 row\n"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_shows_its_place_and_ends_the_script() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    text(&sql(&server, &[], Some(FILL)));
    let failed = sql(
        &server,
        &[],
        Some("SELECT 1;\nSELECT host,\n  usge FROM cpu;\nDROP TABLE cpu;\n"),
    );
    assert_eq!(failed.status.code(), Some(1));
    let said = stderr(&failed);
    assert!(said.starts_with("ERROR: "), "{said}");
    assert!(
        said.contains("LINE 2:   usge FROM cpu\n          ^"),
        "{said}"
    );
    assert!(said.contains("HINT: ") && said.contains("usage"), "{said}");
    assert_eq!(server.number("SELECT count(*) FROM cpu").await, 2);
    let away = shoal(&["sql", "--url", "http://127.0.0.1:9", "-c", "SELECT 1"])
        .output()
        .expect("runs");
    assert_eq!(away.status.code(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_last_from_statement_to_statement() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let shown = sql(
        &server,
        &["--format", "csv"],
        Some(
            "CREATE SCHEMA mine; SET search_path = mine; CREATE TABLE t (a BIGINT NOT NULL, PRIMARY KEY (a)); INSERT INTO t VALUES (5); SELECT * FROM t; SELECT * FROM mine.t;",
        ),
    );
    assert_eq!(text(&shown), "a\n5\na\n5\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_kept_from_statement_to_statement() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    text(&sql(&server, &[], Some(FILL)));
    let csv = |script: &str| text(&sql(&server, &["--format", "csv"], Some(script)));
    let write = "INSERT INTO cpu VALUES ('2016-01-02 00:00:00', 'h', 1)";
    let shown = csv(&format!(
        "SET shoal.consistency = 'session'; {write}; SHOW consistency; SHOW commit_tokens;"
    ));
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines.contains(&"session"), "{shown}");
    let token = lines.last().expect("a token");
    assert_eq!(token.split('.').count(), 4, "{shown}");
    // What was seen elsewhere counts, and what cannot be met fails.
    let ahead = format!("{}.4000000000", token.rsplit_once('.').expect("token").0);
    let script = format!(
        "SET consistency TO session; SET statement_timeout = '1s'; SET commit_tokens = '{ahead}'; SELECT 1 FROM cpu;"
    );
    let failed = sql(&server, &[], Some(&script));
    assert!(
        stderr(&failed).contains("the session has seen"),
        "{}",
        stderr(&failed)
    );
    let back = csv("SET consistency = 'eventual'; RESET consistency; SHOW consistency");
    assert_eq!(back.lines().last(), Some("strong"));
    let back = csv("SET consistency = 'eventual'; SET consistency TO DEFAULT; SHOW consistency");
    assert_eq!(back.lines().last(), Some("strong"));
}
