//! What the guide says is what happens.

use shoal_tests::{Server, root, shoal_command};

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The fenced blocks of a language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(fence.as_str())
        .skip(1)
        .map(|rest| {
            rest.split("\n```")
                .next()
                .expect("split gives one part at least")
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sql_example_of_the_guide_does_what_the_page_says() {
    does_what_it_says("docs/sql.md", 25).await;
    does_what_it_says("docs/partitioning.md", 5).await;
}

async fn does_what_it_says(name: &str, statements_min: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(&folder.path().join("data"), &[]).await;
    let client = server.client();
    let text = page(name);
    let mut statements = 0;
    for block in blocks(&text, "sql") {
        let refused = block.starts_with("-- refused");
        if block.starts_with("PREPARE") {
            // Of one session, which a request over HTTP is not.
            let url = format!("postgresql://shoal@{}/public", server.postgres());
            let ran = std::process::Command::new("psql")
                .args(["-X", "-v", "ON_ERROR_STOP=1", "-d", &url])
                .args(["-c", block])
                .output()
                .expect("psql, which scripts/setup --tests installs");
            assert!(ran.status.success(), "{block}: {ran:?}");
            continue;
        }
        for statement in block.split(';').map(str::trim).filter(|s| !s.is_empty()) {
            let result = client.sql(statement).await;
            assert_eq!(result.is_err(), refused, "{statement}: {result:?}");
            statements += 1;
        }
    }
    assert!(
        statements > statements_min,
        "{name}: only {statements} statements were found on the page"
    );
}

#[test]
fn the_guide_lists_every_configuration_key_as_the_program_prints_it() {
    let output = shoal_command(&["config", "--defaults"])
        .output()
        .expect("run shoal");
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).expect("text");
    let text = page("docs/configuration.md");
    if std::env::var_os("SHOAL_UPDATE_DOCS").is_some() {
        let listed = blocks(&text, "toml").pop().expect("a block to replace");
        let updated = text.replace(listed, printed.trim_end());
        std::fs::write(root().join("docs/configuration.md"), updated).expect("write the page");
        return;
    }
    let listed = blocks(&text, "toml");
    assert!(
        listed.iter().any(|block| block.trim() == printed.trim()),
        "docs/configuration.md is not what `shoal config --defaults` prints; run this test with SHOAL_UPDATE_DOCS=1"
    );
}

#[test]
fn the_configuration_of_the_composition_is_good() {
    let compose = page("deploy/compose/compose.yaml");
    let keys: Vec<&str> = compose
        .lines()
        .filter_map(|line| line.trim().split_once(": "))
        .map(|(key, _)| key)
        .filter(|key| key.starts_with("SHOAL_"))
        .collect();
    assert!(keys.len() >= 5, "only {keys:?} were found");
    let file = root().join("deploy/compose/shoal.toml");
    let output = shoal_command(&["config", "--config", file.to_str().expect("a path")])
        .envs(keys.iter().map(|key| (key, "a-name")))
        .output()
        .expect("run shoal");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    for key in keys {
        assert!(!said.contains(&format!("{key} is no key")), "{said}");
    }
}
