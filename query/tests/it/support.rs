//! A database in a temporary folder, and scripts of statements with their answers.

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use shoal_engine::{Database, EngineConfig};
use shoal_query::datafusion;
use shoal_query::{
    Output, QueryConfig, QueryEngine, QueryError, Session, SessionOptions, SqlPredicate,
};
use shoal_types::SystemClock;

pub struct Fixture {
    pub engine: Arc<QueryEngine>,
    pub session: Session,
    pub dir: tempfile::TempDir,
}

pub async fn open_in(dir: &Path) -> Arc<Database> {
    let config = EngineConfig {
        shards: 2,
        flush_age_max_s: 3600,
        gc_interval_s: 0,
        compaction_runs_min: 1000,
        ..EngineConfig::default()
    };
    Database::open_embedded(
        dir,
        config,
        Arc::new(SystemClock),
        Some(Arc::new(SqlPredicate::new())),
    )
    .await
    .expect("open")
}

pub fn config(dir: &Path) -> QueryConfig {
    QueryConfig {
        spill_dir: dir.join("spill"),
        copy_files: true,
        ..QueryConfig::default()
    }
}

impl Fixture {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut QueryConfig)) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let db = open_in(dir.path()).await;
        let mut config = config(dir.path());
        change(&mut config);
        let engine = QueryEngine::new(db, config).expect("engine");
        let session = engine.session(SessionOptions::default());
        Self {
            engine,
            session,
            dir,
        }
    }

    pub async fn flush(&self) {
        self.engine.database().flush(None).await.expect("flush");
    }

    pub async fn run(&self, sql: &str) -> Result<Vec<String>, QueryError> {
        run(&self.session, sql).await
    }

    pub async fn ok(&self, sql: &str) -> Vec<String> {
        self.run(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub async fn err(&self, sql: &str) -> QueryError {
        match self.run(sql).await {
            Ok(rows) => panic!("{sql} gave {rows:?}"),
            Err(error) => error,
        }
    }

    /// Runs a script: lines that begin with `> ` are statements (`>> ` goes on with the one
    /// before), `! code` the error the statement must give, `FLUSH` flushes; all other lines are
    /// the rows it must give, cells joined by `|`.
    pub async fn script(&self, text: &str) {
        let mut statement: Option<String> = None;
        let mut expected: Vec<String> = Vec::new();
        for line in text.lines().map(str::trim).chain(["FLUSH"]) {
            let next = line.strip_prefix("> ");
            if let Some(more) = line.strip_prefix(">> ") {
                statement
                    .as_mut()
                    .expect("a statement")
                    .push_str(&format!("\n{more}"));
            } else if next.is_some() || line == "FLUSH" {
                if let Some(sql) = statement.take() {
                    self.check(&sql, &expected).await;
                }
                expected.clear();
                statement = next.map(str::to_owned);
                if line == "FLUSH" {
                    self.flush().await;
                }
            } else if !line.is_empty() && !line.starts_with("--") {
                expected.push(line.to_owned());
            }
        }
    }

    async fn check(&self, sql: &str, expected: &[String]) {
        let found = match self.run(sql).await {
            Ok(rows) => rows,
            Err(error) => vec![format!("! {}", error.code)],
        };
        if found != expected {
            let detail = self.run(sql).await.err();
            panic!("{sql}\nexpected {expected:#?}\nfound    {found:#?}\n{detail:?}");
        }
    }
}

pub async fn run(session: &Session, sql: &str) -> Result<Vec<String>, QueryError> {
    rows_of(session.execute(sql, &[]).await?).await
}

pub async fn rows_of(output: Output) -> Result<Vec<String>, QueryError> {
    match output {
        Output::Affected { tag, .. } => Ok(vec![tag]),
        Output::Rows { stream, .. } => {
            let batches: Vec<RecordBatch> = stream.try_collect().await?;
            Ok(batches.iter().flat_map(text_of).collect())
        }
    }
}

fn text_of(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let columns: Vec<_> = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options).expect("formatter"))
        .collect();
    (0..batch.num_rows())
        .map(|row| {
            let cells: Vec<String> = columns.iter().map(|c| c.value(row).to_string()).collect();
            cells.join("|")
        })
        .collect()
}
