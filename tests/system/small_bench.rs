//! `benches/run` at a small scale: that it works, and that all answers equal DuckDB's.

use shoal_tests::{python, shoal_bin};

#[test]
fn the_fifteen_queries_answer_as_duckdb_does_on_the_same_rows() {
    let binary = shoal_bin().display().to_string();
    let said = python(
        "../../benches/run",
        &[
            "--bin",
            &binary,
            "--only",
            "ingest,queries",
            "--hosts",
            "12",
            "--span",
            "14h",
            "--interval",
            "20s",
            "--samples",
            "3",
            "--no-bars",
            "--results",
            "-",
        ],
    );
    let checked = "{\"name\": \"query.checked_answers\", \"value\": 45.0";
    let wrong = "{\"name\": \"query.wrong_answers\", \"value\": 0.0";
    assert!(said.contains(checked) && said.contains(wrong), "{said}");
}

#[test]
fn the_comparison_with_duckdb_notices_wrong_answers() {
    python("compare_notices.py", &[]);
}
