//! The PostgreSQL protocol, spoken by the clients that people use: psql, psycopg, JDBC, and the
//! queries that Grafana's data source sends.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::pg::{address, fill};
use crate::server::Server;

/// This crate's folder, in the checkout that the tests run for.
fn crate_folder() -> PathBuf {
    let built_in = env!("CARGO_MANIFEST_DIR").into();
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(built_in))
}

fn installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success())
}

/// Where drivers are kept between runs.
fn cache() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    let cache = home.join(".cache/shoal/pg-clients");
    std::fs::create_dir_all(&cache).expect("cache folder");
    cache
}

fn succeed(what: &str, output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {out}\n{err}");
    out
}

async fn filled(dir: &Path) -> Server {
    let server = Server::plain(dir);
    let text = format!("postgresql://it@{}/public", address(&server));
    let (client, connection) = tokio_postgres::connect(&text, NoTls)
        .await
        .expect("connect");
    tokio::spawn(connection);
    fill(&client).await;
    server
}

/// psql's informational commands (`\?`), each with the modifiers that it takes: S (with system
/// objects) and + (more of each).
const INFORMATIONAL: &[(&str, &str)] = &[
    ("d", "S+"),
    ("da", "S"),
    ("dA", "+"),
    ("dAc", "+"),
    ("dAf", "+"),
    ("dAo", "+"),
    ("dAp", "+"),
    ("db", "+"),
    ("dc", "S+"),
    ("dconfig", "+"),
    ("dC", "+"),
    ("dd", "S"),
    ("dD", "S+"),
    ("ddp", ""),
    ("dE", "S+"),
    ("des", "+"),
    ("det", "+"),
    ("deu", "+"),
    ("dew", "+"),
    ("df", "S+"),
    ("dfa", "S+"),
    ("dfn", "S+"),
    ("dfp", "S+"),
    ("dft", "S+"),
    ("dfw", "S+"),
    ("dF", "+"),
    ("dFd", "+"),
    ("dFp", "+"),
    ("dFt", "+"),
    ("dg", "S+"),
    ("di", "S+"),
    ("dl", "+"),
    ("dL", "S+"),
    ("dm", "S+"),
    ("dn", "S+"),
    ("do", "S+"),
    ("dO", "S+"),
    ("dp", ""),
    ("dP", "+"),
    ("dPi", "+"),
    ("dPt", "+"),
    ("dPn", "+"),
    ("dPin", "+"),
    ("drds", ""),
    ("dRp", "+"),
    ("dRs", "+"),
    ("ds", "S+"),
    ("dt", "S+"),
    ("dtvi", "S+"),
    ("dT", "S+"),
    ("du", "S+"),
    ("dv", "S+"),
    ("dx", "+"),
    ("dX", ""),
    ("dy", "+"),
    ("l", "+"),
    ("lo_list", "+"),
    ("z", ""),
];

/// More of them, with arguments of their own.
const WITH_ARGUMENTS: &[&str] = &[
    "\\d cpu",
    "\\d+ cpu",
    "\\d cpu_pkey",
    "\\d+ cpu_pkey",
    "\\d system.queries",
    "\\d pg_class",
    "\\d *.*",
    "\\dt *.*",
    "\\dp *.*",
    "\\dO pg_catalog.*",
    "\\dAc btree int*",
    "\\dAf btree int*",
    "\\dAo+ btree *",
    "\\dAp+ btree *",
    "\\df abs int4",
    "\\df+ version",
    "\\do + int4 int4",
    "\\dconfig server_version",
    "\\dC int4",
    "\\drds it shoal",
    "\\dFp+ default",
    "\\sf version",
    "\\sf+ version",
    "\\sv+ system.queries",
    "\\conninfo",
    "\\encoding",
];

/// What psql can be asked about a database. Not all of it is there to be told; none of it may fail
/// in the server.
fn backslash() -> Vec<String> {
    let mut commands: Vec<String> = WITH_ARGUMENTS.iter().map(ToString::to_string).collect();
    for (name, modifiers) in INFORMATIONAL {
        let mut variants = vec![""];
        variants.extend(["S", "+"].iter().filter(|m| modifiers.contains(**m)));
        if *modifiers == "S+" {
            variants.push("S+");
        }
        for modifier in variants {
            commands.push(format!("\\{name}{modifier}"));
            if !matches!(*name, "dl" | "lo_list") {
                commands.push(format!("\\{name}{modifier} c?u*"));
            }
        }
    }
    commands
}

fn run_script(address: &std::net::SocketAddr, path: &Path) -> Output {
    let mut command = Command::new("psql");
    command.args(["-X", "-h", "127.0.0.1", "-U", "it", "-d", "public", "-p"]);
    command.arg(address.port().to_string());
    command.arg("-f").arg(path);
    command.output().expect("psql runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_looks_around_and_queries() {
    if !installed("psql") {
        eprintln!("SKIPPED: psql is not installed");
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let server = filled(dir.path()).await;
    let address = address(&server);
    let run = |commands: &[&str]| {
        let mut command = Command::new("psql");
        command.args(["-X", "-h", "127.0.0.1", "-U", "it", "-d", "public", "-p"]);
        command.arg(address.port().to_string());
        for text in commands {
            command.args(["-c", text]);
        }
        command.output().expect("psql runs")
    };
    let psql = |commands: &[&str]| succeed(&commands.join("; "), &run(commands));
    let tables = psql(&["\\d"]);
    assert!(
        tables.contains("| cpu ") && tables.contains("table"),
        "{tables}"
    );
    assert!(psql(&["\\dt"]).contains("| cpu "));
    let columns = psql(&["\\d cpu"]);
    for line in [
        "ts         | timestamp(3) without time zone |           | not null |",
        "hostname   | text                           |           | not null |",
        "usage_user | double precision               |           |          |",
        "n          | bigint                         |           |          |",
        "Indexes:\n    \"cpu_pkey\" PRIMARY KEY, btree (hostname, ts)\n",
    ] {
        assert!(columns.contains(line), "{columns}");
    }
    let rates = "CREATE TABLE rates (id BIGINT NOT NULL, rate DECIMAL(12, 3) DEFAULT 2 * 1.5, \"Key\" TEXT, PRIMARY KEY (\"Key\", id))";
    let defaults = psql(&[rates, "\\d rates"]);
    for line in [
        "| numeric(12,3) |           |          | 2 * 1.5",
        "\"rates_pkey\" PRIMARY KEY, btree (\"Key\", id)",
    ] {
        assert!(defaults.contains(line), "{defaults}");
    }
    let index = psql(&["\\d rates_pkey"]);
    for line in [
        "Key    | text",
        "id     | bigint",
        "primary key, btree, for table \"public.rates\"",
    ] {
        assert!(index.contains(line), "{index}");
    }
    let listed = psql(&["\\di"]);
    assert!(
        listed.contains("| cpu_pkey   | index |") && listed.contains("| rates_pkey | index |"),
        "{listed}"
    );
    assert!(!psql(&["\\dt"]).contains("pkey"));
    assert!(psql(&["\\l"]).contains("shoal"));
    assert!(psql(&["\\dn"]).contains("public"));
    // What is there in part, and what has nothing to show.
    for (command, part) in [
        ("\\db", "pg_default"),
        ("\\dconfig server_version", "| 16."),
        ("\\dAp+ btree", "btarraycmp"),
        ("\\dC int4", "integer"),
        ("\\dFp+", "prsd_start"),
        ("\\df abs int4", "| abs  | integer"),
        ("\\dT int4", "-2 billion to 2 billion"),
        ("\\dx", "(0 rows)"),
        ("\\dL", "(0 rows)"),
        ("\\dd", "(0 rows)"),
        ("\\deu+", "(0 rows)"),
        ("\\dP+", "(0 rows)"),
        ("\\dO+", "(0 rows)"),
    ] {
        let listed = psql(&[command]);
        let said = if listed.is_empty() {
            "(0 rows)"
        } else {
            &listed
        };
        assert!(said.contains(part), "{command}: {listed}");
    }
    let script: String = backslash()
        .iter()
        .map(|command| format!("\\warn == {}\n{command}\n", command.replace('\\', "")))
        .collect();
    let path = dir.path().join("backslash.psql");
    std::fs::write(&path, script).expect("script");
    let output = run_script(&address, &path);
    let errors = String::from_utf8_lossy(&output.stderr);
    let failed: Vec<&str> = errors
        .split("== ")
        .filter(|part| part.contains("ERROR") || part.contains("FATAL"))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(errors.contains("== encoding"), "{errors}");
    let looked = psql(&[
        "SELECT usename, indexname FROM pg_user, pg_indexes WHERE tablename = 'cpu'",
        "SELECT c.oid::regclass, conkey[1], 23::regtype FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid WHERE c.relname = 'cpu'",
    ]);
    assert!(
        looked.contains("postgres | cpu_pkey") && looked.contains("cpu |      2 | integer"),
        "{looked}"
    );
    let rows = psql(&["SELECT hostname, usage_user FROM cpu ORDER BY ts"]);
    assert!(
        rows.contains(" host_0   |        1.5\n") && rows.contains("(3 rows)"),
        "{rows}"
    );
    let copied = psql(&["\\copy (SELECT n FROM cpu ORDER BY n) TO STDOUT CSV HEADER"]);
    assert_eq!(copied, "n\n1\n2\n3\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg_reads_writes_copies_and_pipelines() {
    if !installed("python3") {
        eprintln!("SKIPPED: python3 is not installed");
        return;
    }
    let python = cache().join("venv/bin/python");
    if !python.exists() {
        let venv = cache().join("venv");
        let made = Command::new("python3")
            .args(["-m", "venv"])
            .arg(&venv)
            .output();
        succeed("venv", &made.expect("python runs"));
        let pip = Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "psycopg[binary]==3.2.13"])
            .output();
        succeed("pip", &pip.expect("pip runs"));
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let server = filled(dir.path()).await;
    let script = crate_folder().join("tests/it/clients/psycopg_check.py");
    let ran = Command::new(python)
        .arg(script)
        .arg(address(&server).port().to_string())
        .output();
    assert!(succeed("psycopg", &ran.expect("runs")).contains("psycopg ok"));
}

#[tokio::test(flavor = "multi_thread")]
async fn jdbc_prepares_fetches_in_parts_and_reads_the_catalog() {
    let jar = cache().join("postgresql-42.7.4.jar");
    if !installed("java") || !(jar.exists() || installed("mvn")) {
        eprintln!("SKIPPED: java or mvn is not installed");
        return;
    }
    if !jar.exists() {
        let fetched = Command::new("mvn")
            .args(["-q", "-B", "dependency:copy", "-Dmdep.useBaseVersion=true"])
            .arg("-Dartifact=org.postgresql:postgresql:42.7.4")
            .arg(format!("-DoutputDirectory={}", cache().display()))
            .output();
        succeed("mvn", &fetched.expect("mvn runs"));
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let server = filled(dir.path()).await;
    let source = crate_folder().join("tests/it/clients/JdbcCheck.java");
    let ran = Command::new("java")
        .arg("-cp")
        .arg(&jar)
        .arg("-Duser.timezone=Europe/Berlin")
        .arg(source)
        .arg(address(&server).port().to_string())
        .output();
    assert!(succeed("JDBC", &ran.expect("java runs")).contains("jdbc ok"));
}

/// What Grafana's data source asks while a panel is edited, with the schema constraint that it
/// repeats in each.
fn grafana_queries() -> Vec<(String, &'static str)> {
    let path = r#"quote_ident(table_schema) IN (
          SELECT
            CASE WHEN trim(s[i]) = '"$user"' THEN user ELSE trim(s[i]) END
          FROM
            generate_series(
              array_lower(string_to_array(current_setting('search_path'),','),1),
              array_upper(string_to_array(current_setting('search_path'),','),1)
            ) as i,
            string_to_array(current_setting('search_path'),',') s
          )"#;
    let columns = format!(
        "SELECT quote_ident(column_name) AS \"column\", data_type AS \"type\"
         FROM information_schema.columns
         WHERE CASE WHEN array_length(parse_ident('cpu'),1) = 2
           THEN quote_ident(table_schema) = (parse_ident('cpu'))[1] AND quote_ident(table_name) = (parse_ident('cpu'))[2]
           ELSE quote_ident(table_name) = 'cpu' AND {path} END"
    );
    let tables = format!(
        "SELECT CASE WHEN {path} THEN quote_ident(table_name)
           ELSE quote_ident(table_schema) || '.' || quote_ident(table_name) END AS \"table\"
         FROM information_schema.tables
         WHERE quote_ident(table_schema) NOT IN ('information_schema', 'pg_catalog', '_timescaledb_cache')
         ORDER BY CASE WHEN {path} THEN 0 ELSE 1 END, 1"
    );
    vec![
        ("SELECT current_setting('server_version_num')::int/100 as version".into(), "1600"),
        ("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'".into(), ""),
        (tables, "cpu"),
        (columns, "hostname"),
        (
            "SELECT schema_name AS \"name\" FROM information_schema.schemata WHERE schema_name NOT IN ('information_schema', 'pg_catalog') ORDER BY schema_name".into(),
            "public",
        ),
        // $__timeGroupAlias(ts, 1m), $__timeFilter(ts), $__unixEpochGroup
        (
            "SELECT floor(extract(epoch from ts)/60)*60 AS \"time\", avg(usage_user) AS \"usage\" FROM cpu WHERE ts BETWEEN '2016-01-01T00:00:00Z' AND '2016-01-01T01:00:00Z' GROUP BY 1 ORDER BY 1".into(),
            "1451606400",
        ),
        (
            "SELECT date_bin('60s', ts, TIMESTAMP '2000-01-01 00:00:00') AS \"time\", hostname AS metric, max(n) FROM cpu GROUP BY 1, 2 ORDER BY 1, 2".into(),
            "2016-01-01 00:00:00",
        ),
        (
            "SELECT extract(epoch from ts) AS \"time\", usage_user FROM cpu WHERE extract(epoch from ts) >= 1451606400 ORDER BY 1 LIMIT 1".into(),
            "1451606400",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn grafanas_queries_find_tables_columns_and_series() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = filled(dir.path()).await;
    let text = format!("postgresql://it@{}/public", address(&server));
    let (client, connection) = tokio_postgres::connect(&text, NoTls)
        .await
        .expect("connect");
    tokio::spawn(connection);
    for (sql, expected) in grafana_queries() {
        let answer = client.simple_query(&sql).await;
        let messages = answer.unwrap_or_else(|e| panic!("{sql}: {e} {:?}", e.as_db_error()));
        let cells: Vec<String> = messages
            .iter()
            .filter_map(|m| match m {
                SimpleQueryMessage::Row(row) => Some((0..row.len()).filter_map(|i| row.get(i))),
                _ => None,
            })
            .flatten()
            .map(str::to_owned)
            .collect();
        let found = cells.iter().any(|c| c.starts_with(expected)) || expected.is_empty();
        assert!(found, "{sql}: {cells:?}");
        // pgx prepares before it asks.
        client
            .prepare(&sql)
            .await
            .unwrap_or_else(|e| panic!("prepare {sql}: {e} {:?}", e.as_db_error()));
    }
}
