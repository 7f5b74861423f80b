//! One connection or request: its settings, and the way of a statement from text to rows.

use std::sync::Arc;
use std::time::Duration;

use arrow_schema::DataType;
use datafusion::common::ScalarValue;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::session_state::SessionState;
use datafusion::physical_plan::EmptyRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionContext;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use shoal_engine::{CommitToken, Read, ReadLevel};
use shoal_types::{Retry, WriteId};

use crate::error::{Kind, Result};
use crate::freshness::{self, Seen};
use crate::running::StatementGuard;
use crate::settings::Settings;
use crate::sql::{self, NamedStatements, Outcome, Run, Statement};
use crate::table::StatementViews;
use crate::{Output, Prepared, QueryEngine, QueryError, QueryStats, SessionOptions, StatementKind};

/// How often a statement is planned anew because a table was altered while it was planned.
const REPLANS_MAX: usize = 12;
/// Half of the pause before the first of them; each is twice as long, up to a quarter of a second.
const REPLAN_PAUSE: Duration = Duration::from_millis(1);
/// How often a query is planned anew because a file of its view was gone.
const RENEWALS_MAX: u32 = 6;
/// Pause before the first of them; it doubles.
const RENEWAL_PAUSE: Duration = Duration::from_millis(20);

/// A session: settings, and statements that run one at a time or side by side. Clones share them.
#[derive(Clone)]
pub struct Session {
    engine: Arc<QueryEngine>,
    ctx: SessionContext,
    user: String,
    settings: Arc<Mutex<Settings>>,
    original: Settings,
    write_id: Option<WriteId>,
    named: Arc<Mutex<NamedStatements>>,
    seen: Seen,
    /// What `SET LOCAL` has changed, as it was.
    before_local: Arc<Mutex<Vec<(String, String)>>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("user", &self.user)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(engine: Arc<QueryEngine>, options: SessionOptions) -> Self {
        let settings = Settings::new(&options, engine.config().statement_timeout_ms);
        let state = engine.base_context().state();
        let session_id = next_session_id();
        let state = SessionStateBuilder::from(state)
            .with_session_id(session_id)
            .build();
        let session = Self {
            ctx: SessionContext::new_with_state(state),
            user: options.user,
            original: settings.clone(),
            settings: Arc::new(Mutex::new(settings)),
            write_id: None,
            named: Arc::default(),
            seen: Seen::default(),
            before_local: Arc::default(),
            engine,
        };
        session.apply_settings();
        session
    }

    /// A session whose statement, an INSERT, UPDATE or DELETE, takes effect once however often it is
    /// sent with this id. Its rows must fit one record: of several, a retry that reads newer rows
    /// could not tell which are done.
    #[must_use]
    pub fn with_write_id(self, id: WriteId) -> Self {
        Self {
            write_id: Some(id),
            ..self
        }
    }

    /// Statements of `PREPARE`.
    pub(crate) fn named(&self) -> &Mutex<NamedStatements> {
        &self.named
    }

    pub(crate) fn write_id(&self) -> Option<WriteId> {
        self.write_id
    }

    /// Runs exactly one statement. `params` stand for `$1`, `$2`, ….
    ///
    /// # Errors
    /// [`QueryError`]; with rows, later failures come from the stream.
    pub async fn execute(&self, sql: &str, params: &[ScalarValue]) -> Result<Output> {
        let statement = sql::parse_one(sql)?;
        self.run(Arc::new(statement), params).await
    }

    /// Runs several statements, separated by `;`, one after another. The rows of each are read
    /// before the next one runs only if the caller reads them: each result keeps the position it
    /// was planned at. Ends at the first statement that fails; those before it took effect.
    ///
    /// # Errors
    /// [`QueryError`] of the first statement that failed.
    pub async fn execute_script(&self, sql: &str) -> Result<Vec<Output>> {
        let statements = sql::parse_script(sql)?;
        let mut outputs = Vec::with_capacity(statements.len());
        for statement in statements {
            outputs.push(self.run(Arc::new(statement), &[]).await?);
        }
        Ok(outputs)
    }

    /// Parses and plans a statement once. `param_types` are the types the client announced.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn prepare(&self, sql: &str, param_types: &[Option<DataType>]) -> Result<Prepared> {
        let statement = Arc::new(sql::parse_one(sql)?);
        let state = self.statement_state(&Arc::new(QueryStats::default()), Read::default());
        let db = self.engine.database();
        freshness::learn_names(db, &state, &self.schema(), &statement).await?;
        let named = self.named.lock().named(&statement)?;
        let (session, param_types) = (self.clone(), param_types.to_vec());
        let planned = Arc::clone(named.as_ref().unwrap_or(&statement));
        let prepared = self
            .engine
            .threads()
            .run(async move { sql::prepare(&session, &state, planned, &param_types).await })
            .await?;
        Ok(match named {
            None => prepared,
            // Its values stand in the text of EXECUTE.
            Some(_) => Prepared {
                parameter_types: Vec::new(),
                statement,
                ..prepared
            },
        })
    }

    /// Runs what [`Self::prepare`] made.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn execute_prepared(
        &self,
        prepared: &Prepared,
        params: &[ScalarValue],
    ) -> Result<Output> {
        if params.len() != prepared.parameter_types.len() {
            return Err(QueryError::new(
                Kind::UNDEFINED_PARAMETER,
                format!(
                    "the statement has {} parameters, {} values were given",
                    prepared.parameter_types.len(),
                    params.len()
                ),
            ));
        }
        self.run(Arc::clone(&prepared.statement), params).await
    }

    /// The context that statements of this session are planned in.
    #[must_use]
    pub fn context(&self) -> &SessionContext {
        &self.ctx
    }

    /// The engine it belongs to.
    #[must_use]
    pub fn engine(&self) -> &Arc<QueryEngine> {
        &self.engine
    }

    /// Who asks.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The schema in which unqualified names are looked up.
    #[must_use]
    pub fn schema(&self) -> String {
        self.settings.lock().schema.clone()
    }

    /// The value of a setting as `SHOW` gives it.
    ///
    /// # Errors
    /// No such setting.
    pub fn setting(&self, name: &str) -> Result<String> {
        if is_commit_tokens(name) {
            return Ok(self.seen.text());
        }
        self.settings.lock().get(name)
    }

    /// The longest that a statement may run; `None`: no limit.
    #[must_use]
    pub fn statement_timeout(&self) -> Option<Duration> {
        let ms = self.settings.lock().timeout_ms;
        (ms > 0).then(|| Duration::from_millis(ms))
    }

    /// Sets a setting as `SET` does.
    ///
    /// # Errors
    /// No such setting, or not a value of it.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        self.set_values(name, &[value.to_owned()])
    }

    /// From now on reads of level `session` see these commits.
    pub fn has_seen(&self, tokens: &[CommitToken]) {
        self.seen.add(tokens);
    }

    /// Notes what a setting is, for [`Self::end_transaction`] to put it back.
    pub(crate) fn keep_until_transaction_ends(&self, name: &str) -> Result<()> {
        let value = self.setting(name)?;
        let mut kept = self.before_local.lock();
        // Of several within a transaction the first knows how it was before; bounded by the number
        // of settings.
        if kept.iter().all(|(known, _)| known != name) {
            kept.push((name.to_owned(), value));
        }
        Ok(())
    }

    /// Undoes what `SET LOCAL` did; for the protocol that knows where a transaction ends.
    pub fn end_transaction(&self) {
        let kept = std::mem::take(&mut *self.before_local.lock());
        for (name, value) in kept {
            if is_commit_tokens(&name) {
                self.seen.clear();
            }
            if let Err(error) = self.set(&name, &value) {
                tracing::error!(name, value, error = %error.message, "a setting is not put back");
            }
        }
    }

    pub(crate) fn set_values(&self, name: &str, values: &[String]) -> Result<()> {
        if is_commit_tokens(name) {
            let tokens = freshness::commit_tokens(&values.join(","))?;
            if tokens.is_empty() {
                self.seen.clear();
            }
            self.seen.add(&tokens);
            return Ok(());
        }
        self.settings.lock().set(name, values)?;
        self.apply_settings();
        Ok(())
    }

    pub(crate) fn reset(&self, name: &str) -> Result<()> {
        if is_commit_tokens(name) {
            self.seen.clear();
            return Ok(());
        }
        self.settings.lock().reset(name, &self.original)?;
        self.apply_settings();
        Ok(())
    }

    /// All settings with their values, as `SHOW ALL` gives them.
    #[must_use]
    pub fn all_settings(&self) -> Vec<(String, String)> {
        let mut all = self.settings.lock().all();
        let at = all.partition_point(|(name, _)| name.as_str() < COMMIT_TOKENS);
        all.insert(at, (COMMIT_TOKENS.to_owned(), self.seen.text()));
        all
    }

    /// Copies what DataFusion must know of the settings into its own.
    fn apply_settings(&self) {
        let settings = self.settings.lock().clone();
        let state = self.ctx.state_ref();
        let mut state = state.write();
        let options = state.config_mut().options_mut();
        options.catalog.default_schema = settings.schema;
        options.execution.time_zone = Some(settings.timezone);
    }

    /// A state for one statement: its views, its counters.
    pub(crate) fn statement_state(&self, stats: &Arc<QueryStats>, read: Read) -> SessionState {
        let views =
            StatementViews::new(Arc::clone(self.engine.database()), Arc::clone(stats), read);
        self.state_with(views)
    }

    /// A state for a statement, or a step of it, with these views.
    pub(crate) fn state_with(&self, views: StatementViews) -> SessionState {
        let mut state = self.ctx.state();
        state.config_mut().set_extension(Arc::new(views));
        state
    }

    async fn run(&self, statement: Arc<Statement>, params: &[ScalarValue]) -> Result<Output> {
        let executed = self
            .named
            .lock()
            .executed(&statement, &self.ctx.state(), params)?;
        match executed {
            None => self.run_one(statement, params).await,
            Some((named, values)) => {
                let outcome = self.run_one(named, &values).await;
                // A place in the text of PREPARE would be looked for in that of EXECUTE.
                outcome.map_err(|error| QueryError {
                    position: None,
                    ..error
                })
            }
        }
    }

    async fn run_one(&self, statement: Arc<Statement>, params: &[ScalarValue]) -> Result<Output> {
        let settings = self.settings.lock().clone();
        if settings.read_only
            && matches!(
                statement.kind,
                StatementKind::Write | StatementKind::Definition
            )
        {
            return Err(QueryError::new(
                Kind::READ_ONLY,
                "this session is read-only: it may not change data or tables",
            ));
        }
        if self.write_id.is_some() && !sql::takes_write_id(&statement.body) {
            return Err(QueryError::new(
                Kind::INVALID_VALUE,
                "a write id is for INSERT, UPDATE and DELETE only",
            ));
        }
        let timeout = (settings.timeout_ms > 0).then(|| Duration::from_millis(settings.timeout_ms));
        let guard = self
            .engine
            .admit(&self.user, &settings.schema, &statement.sql, timeout)
            .await?;
        let guard = Arc::new(guard);
        let work = {
            let (session, guard) = (self.clone(), Arc::clone(&guard));
            let (statement, params) = (Arc::clone(&statement), params.to_vec());
            async move { session.attempt(&guard, &statement, &params).await }
        };
        let outcome = guard
            .bound(self.engine.threads().run(work))
            .await
            .map_err(|error| {
                crate::literals::locate(after_write(statement.kind, error), &statement.sql)
            })?;
        Ok(match outcome {
            Outcome::Rows(stream) => {
                let stats = Arc::clone(&guard.stats);
                Output::Rows {
                    schema: stream.schema(),
                    stream: guard.wrap(stream, self.engine.threads()),
                    stats,
                }
            }
            Outcome::Affected { tag, rows, commit } => {
                if let Some(commit) = &commit {
                    self.seen.add(&commit.tokens);
                }
                Output::Affected { tag, rows, commit }
            }
        })
    }

    /// Runs a statement; again when a table was altered between planning and reading it, or when
    /// files of its view were gone before its first rows.
    async fn attempt(
        &self,
        guard: &StatementGuard,
        statement: &Statement,
        params: &[ScalarValue],
    ) -> Result<Outcome> {
        let mut replans = 0;
        let mut renewals = 0;
        let mut learned = false;
        let db = self.engine.database();
        let schema = self.schema();
        loop {
            let read = self.read_of(statement.kind, guard)?;
            if let ReadLevel::Session(tokens) = &read.level {
                self.check_tokens(tokens).await?;
            }
            let waits = read.level != ReadLevel::Eventual;
            let state = self.statement_state(&guard.stats, read);
            let mut named = Vec::new();
            if replans == 0 && !learned {
                named = freshness::learn_names(db, &state, &schema, statement).await?;
            }
            let run = Run {
                session: self,
                guard,
                state,
                params,
            };
            let _taken = if statement.kind == StatementKind::Query && waits {
                run.views()?.begin(named)
            } else {
                Vec::new()
            };
            let outcome = match run.statement(statement).await {
                Ok(Outcome::Rows(stream)) => begun(stream).await.map(Outcome::Rows),
                other => other,
            };
            match outcome {
                Err(error) if error.is_too_old() && statement.kind == StatementKind::Query => {
                    if !run.views()?.renew().await {
                        return Err(error.lost());
                    }
                    if renewals == RENEWALS_MAX {
                        return Err(error);
                    }
                    tokio::time::sleep(RENEWAL_PAUSE * 2_u32.pow(renewals)).await;
                    renewals += 1;
                    guard.stats.restart();
                }
                Err(error) if error.is_schema_change() && replans < REPLANS_MAX => {
                    replans += 1;
                    // A change of partitions is in the log a moment before it is in meta.
                    let doublings = u32::try_from(replans).unwrap_or(u32::MAX).min(8);
                    tokio::time::sleep(REPLAN_PAUSE * 2_u32.pow(doublings)).await;
                }
                Err(error) if !learned => {
                    learned = true;
                    let state = &run.state;
                    if !freshness::learned_after(&error, db, state, &schema, statement).await {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }

    /// How a statement of this session reads, as its settings say.
    pub(crate) fn read_of(&self, kind: StatementKind, guard: &StatementGuard) -> Result<Read> {
        let settings = self.settings.lock().clone();
        // From the statement's beginning: it may look several times.
        let from_beginning = self.wait_max().saturating_sub(guard.elapsed());
        let patience = self.patience(guard).min(from_beginning.max(PATIENCE_MIN));
        freshness::read_of(&settings, &self.seen, kind, Some(patience))
    }

    fn wait_max(&self) -> Duration {
        Duration::from_millis(self.engine.database().config().write_timeout_ms)
    }

    /// How long a statement waits for a shard. A little less than it may run: what the shard has
    /// to say is to be told before the statement is ended for its time.
    pub(crate) fn patience(&self, guard: &StatementGuard) -> Duration {
        let limit = self.wait_max();
        guard.time_left().map_or(limit, |left| {
            let margin = (left / 10).min(TELL_MARGIN_MAX);
            left.saturating_sub(margin).min(limit)
        })
    }

    /// Tokens of shards that this database has not would be met by anything; and one of a shard that
    /// was split off must not find the statement planned by what was before.
    /// Boxed: few statements come with tokens, and their futures are deep.
    fn check_tokens<'a>(&'a self, tokens: &'a [CommitToken]) -> BoxFuture<'a, Result<()>> {
        let db = self.engine.database();
        async move {
            for token in tokens {
                if !db.learn_shard(token.shard).await? {
                    return Err(QueryError::new(
                        Kind::INVALID_VALUE,
                        format!(
                            "the commit token {token} is of a shard that this cluster does not have"
                        ),
                    )
                    .with_hint(
                        "send only tokens that this cluster gave, or read with consistency = 'strong'",
                    ));
                }
            }
            Ok(())
        }
        .boxed()
    }
}

/// The same rows, once the first of them are there.
async fn begun(mut stream: SendableRecordBatchStream) -> Result<SendableRecordBatchStream> {
    let schema = stream.schema();
    let Some(first) = stream.try_next().await? else {
        return Ok(Box::pin(EmptyRecordBatchStream::new(schema)));
    };
    let rows = futures::stream::iter([Ok(first)]).chain(stream);
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
}

/// A write that was cut off may have reached the log.
fn after_write(kind: StatementKind, mut error: QueryError) -> QueryError {
    let is_write = matches!(kind, StatementKind::Write | StatementKind::Definition);
    if is_write && matches!(error.code, "timeout" | "cancelled") {
        error.retry = Retry::Unknown;
        error.message.push_str("; it may have taken effect");
    }
    error
}

/// How long a statement that has run for long already waits for a shard.
const PATIENCE_MIN: Duration = Duration::from_secs(1);
/// What a statement's time limit leaves, at most, for telling why a shard was not ready.
const TELL_MARGIN_MAX: Duration = Duration::from_millis(500);

/// The setting that holds what the session has seen; not among the others, for clones of a session
/// share it.
const COMMIT_TOKENS: &str = "commit_tokens";

fn is_commit_tokens(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == COMMIT_TOKENS || name.strip_prefix("shoal.") == Some(COMMIT_TOKENS)
}

fn next_session_id() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("s{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
