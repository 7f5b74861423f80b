//! Health, metrics, and what a misconfigured process says.

use shoal_tests::{Server, shoal_command};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_metrics_answer_and_count_what_was_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(&folder.path().join("data"), &[]).await;
    let client = server.client();
    client
        .write("metered,host=a v=1i 1\nmetered,host=b v=1i 1\n".into())
        .await
        .expect("write");
    for path in [
        "/health/live",
        "/health/ready",
        "/health",
        "/v1/openapi.json",
    ] {
        client
            .get(path)
            .await
            .unwrap_or_else(|e| panic!("{path}: {e:?}"));
    }
    let metrics = client.get("/metrics").await.expect("metrics");
    assert!(
        metrics.lines().any(|l| l.starts_with("# TYPE shoal_")),
        "{metrics}"
    );
    let samples: Vec<&str> = metrics
        .lines()
        .filter(|l| l.starts_with("shoal_"))
        .collect();
    assert!(
        samples.len() >= 20,
        "only {} samples:\n{metrics}",
        samples.len()
    );
    for sample in &samples {
        let value = sample.rsplit(' ').next().expect("a value");
        assert!(value.parse::<f64>().is_ok(), "no number: {sample}");
    }
    // Some counter of written rows knows of both.
    assert!(
        samples
            .iter()
            .any(|s| s.contains("rows") && s.ends_with(" 2")),
        "no metric counts the two rows:\n{metrics}"
    );
}

#[test]
fn an_open_address_without_a_token_and_an_unknown_key_are_refused_with_the_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = shoal_command(&["standalone", "--data-dir"])
            .arg(folder.path().join("data"))
            .args(["--postgres-addr", "off"])
            .args(arguments)
            .envs(variables.iter().copied())
            .output()
            .expect("run shoal");
        assert!(
            !output.status.success(),
            "{arguments:?} {variables:?} started"
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = run(&["--http-addr", "0.0.0.0:0"], &[]);
    assert!(
        said.contains("0.0.0.0") && said.contains("--insecure"),
        "{said}"
    );
    let config = folder.path().join("shoal.toml");
    std::fs::write(&config, "[http]\nbody_byte_max = '1MiB'\n").expect("write a file");
    let said = run(&["--config", &config.display().to_string()], &[]);
    assert!(
        said.contains("http.body_bytes_max"),
        "no nearest name: {said}"
    );
}
