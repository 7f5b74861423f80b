//! `shoal import`: the shared sample files, and an interrupted import that resumes.

use std::process::{Command, Stdio};
use std::time::Duration;

use shoal_tests::{Client, Server, shared_data, shoal_bin, shoal_command};

fn run_to_end(mut command: Command) {
    let output = command.output().expect("run shoal import");
    assert!(
        output.status.success(),
        "shoal import ended with {}:\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn rows_of_all_tables(client: &Client, tables: &[&str]) -> u64 {
    let mut rows = 0;
    for table in tables {
        rows += client
            .count(&format!("SELECT count(*) FROM \"{table}\""))
            .await;
    }
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shared_files_give_their_rows_and_series_and_twice_gives_no_more() {
    let Some(data) = shared_data("import of the shared files") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(&folder.path().join("data"), &[]).await;
    let client = server.client();
    let measurements = [
        "cpu",
        "disk",
        "diskio",
        "kernel",
        "mem",
        "net",
        "nginx",
        "postgresl",
        "redis",
    ];
    for _ in 0..2 {
        let url = server.url();
        let mut command = shoal_command(&["import", "--url", &url]);
        command.arg(data.join("tsbs-cpu-100hosts-6h.lp.zst"));
        command.arg(data.join("tsbs-devops-20hosts-1h.lp.zst"));
        run_to_end(command);
        assert_eq!(rows_of_all_tables(&client, &measurements).await, 280_800);
        assert_eq!(client.count("SELECT count(*) FROM cpu").await, 223_200);
        let series = "SELECT count(*) FROM (SELECT DISTINCT hostname, region, datacenter, rack, os, arch, team, service, service_version, service_environment FROM cpu)";
        assert_eq!(client.count(series).await, 120);
    }
}

/// An append table would show every doubled row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_killed_halfway_resumes_without_doubling_rows() {
    const ROWS: u64 = 400_000;
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = Server::start(&folder.path().join("data"), &[]).await;
    server
        .client()
        .sql("CREATE TABLE counted (ts TIMESTAMP(3) NOT NULL, n BIGINT, note TEXT) WITH (time_column = 'ts', mode = 'append')")
        .await
        .expect("create");
    let file = folder.path().join("counted.csv");
    let mut text = String::from("ts,n,note\n");
    for n in 0..ROWS {
        text.push_str(&format!(
            "2026-01-01T00:00:{:02}.{:03}Z,{n},note number {n}\n",
            n / 1000 % 60,
            n % 1000
        ));
    }
    std::fs::write(&file, text).expect("a CSV file");
    let import = |url: &str| {
        let mut command = Command::new(shoal_bin());
        command
            .args(["import", "--url", url, "--table", "counted"])
            .arg(&file);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    };
    // Killed when some rows, but not all, have arrived: first the importer, then the server.
    for kill_server in [false, true] {
        let before = server.client().count("SELECT count(*) FROM counted").await;
        let mut importer = import(&server.url()).spawn().expect("start an import");
        while importer.try_wait().expect("look").is_none()
            && server.client().count("SELECT count(*) FROM counted").await == before
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if kill_server {
            server.kill();
        }
        let _ = importer.kill();
        importer.wait().expect("collect");
        if kill_server {
            server.restart().await;
        }
        let rows = server.client().count("SELECT count(*) FROM counted").await;
        println!("interrupted at {rows} of {ROWS} rows");
        assert!(rows > before, "nothing arrived");
    }
    let mut last = import(&server.url());
    last.stdout(Stdio::piped()).stderr(Stdio::piped());
    run_to_end(last);
    let client = server.client();
    assert_eq!(client.count("SELECT count(*) FROM counted").await, ROWS);
    assert_eq!(
        client.count("SELECT count(DISTINCT n) FROM counted").await,
        ROWS
    );
}
