//! The answer to a statement as a stream of bytes: JSON, CSV or Arrow IPC, one batch in memory at
//! a time. Dropping the body (the client went away) drops the statement's stream: it is cancelled.
//!
//! The first rows are awaited before the status line is sent, so most failures get a status of
//! their own. A failure after that cannot: JSON says so in a closing `error` member, and in every
//! format the connection is then broken off, so that no client takes a part for the whole.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use futures::stream::Fuse;
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_engine::Commit;
use shoal_query::{Output, QueryError, QueryStats};
use shoal_types::ColumnType;

use super::cells::{push_csv_rows, push_csv_text, push_json_rows};
use super::error::ApiError;

/// Form of the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `{"columns":[{"name","type"}],"rows":[[…]],"stats":{…}}`
    #[default]
    Json,
    /// RFC 4180 with a header line.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
}

/// Rows that are read before an answer begins.
const AHEAD_ROWS: usize = 8192;
/// How long the first rows wait for more.
const AHEAD_WAIT: Duration = Duration::from_millis(20);
/// Rows encoded at a time: bounds what one batch takes as text.
const ROWS_PER_PIECE: usize = 8192;
/// How long the last bytes of a failed result get to leave before the connection is broken off.
const FLUSH_PAUSE: Duration = Duration::from_millis(200);
/// Shards named in `Shoal-Read-Position`.
const POSITIONS_MAX: usize = 64;

/// The answer to a statement.
///
/// # Errors
/// A failure among the first rows.
pub async fn answer(output: Output, format: Format, began: Instant) -> Result<Response, ApiError> {
    match output {
        Output::Rows {
            schema,
            stream,
            stats,
        } => {
            let mut stream = stream.fuse();
            let ahead = read_ahead(&mut stream).await?;
            let position = read_position(&stats);
            let served = served_by(&stats);
            let rows = Rows {
                stream: Some(stream),
                ahead,
                encoder: Encoder::new(format, &schema)?,
                schema,
                stats,
                began,
                begun: false,
                broken: None,
            };
            let body = Body::from_stream(futures::stream::unfold(rows, Rows::next));
            let content = match format {
                Format::Json => "application/json",
                Format::Csv => "text/csv; charset=utf-8; header=present",
                Format::Arrow => "application/vnd.apache.arrow.stream",
            };
            let mut response = Response::new(body);
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
            if let Some(value) = position.and_then(|p| HeaderValue::from_str(&p).ok()) {
                headers.insert("Shoal-Read-Position", value);
            }
            if let Some(value) = served.and_then(|s| HeaderValue::from_str(&s).ok()) {
                headers.insert("Shoal-Served-By", value);
            }
            Ok(response)
        }
        Output::Affected { tag, rows, commit } => {
            let duplicate = commit.as_ref().is_some_and(|c| c.duplicate);
            // Sent again, a change finds other rows than it found at first.
            let known = !duplicate || tag.starts_with("INSERT");
            let body = json!({
                "columns": [],
                "rows": [],
                "affected": known.then_some(rows),
                "tag": known.then_some(&tag),
                "stats": { "elapsed_ms": elapsed_ms(began), "rows": 0 },
            });
            let mut response = Response::new(match format {
                Format::Json => Body::from(body.to_string()),
                Format::Csv => Body::empty(),
                Format::Arrow => {
                    Body::from(Encoder::new(format, &Arc::new(Schema::empty()))?.finish_empty()?)
                }
            });
            let content = match format {
                Format::Json => "application/json",
                Format::Csv => "text/csv; charset=utf-8",
                Format::Arrow => "application/vnd.apache.arrow.stream",
            };
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
            if known && let Ok(value) = HeaderValue::from_str(&tag) {
                headers.insert("Shoal-Tag", value);
            }
            if let Some(value) = commit.as_ref().and_then(commit_token) {
                headers.insert("Shoal-Commit-Token", value);
            }
            if duplicate {
                headers.insert("Shoal-Duplicate", HeaderValue::from_static("true"));
            }
            *response.status_mut() = StatusCode::OK;
            Ok(response)
        }
    }
}

/// The opaque token of a commit, for `Shoal-Commit-Token`: `shard.term.claim.offset`, joined by
/// commas.
#[must_use]
pub fn commit_token(commit: &Commit) -> Option<HeaderValue> {
    if commit.tokens.is_empty() {
        return None;
    }
    let text = commit
        .tokens
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>();
    HeaderValue::from_str(&text.join(",")).ok()
}

/// The replicas that were read, as `node/role`, joined by commas; `None`: no table was read.
fn served_by(stats: &QueryStats) -> Option<String> {
    let served = stats.served_by.lock();
    let texts: Vec<String> = served.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| texts.join(","))
}

fn read_position(stats: &QueryStats) -> Option<String> {
    let positions = stats.positions.lock();
    if positions.is_empty() {
        return None;
    }
    let mut shown: Vec<String> = positions
        .iter()
        .map(|(shard, offset)| format!("{shard}:{offset}"))
        .collect();
    shown.sort();
    shown.dedup();
    shown.truncate(POSITIONS_MAX);
    Some(shown.join(","))
}

fn elapsed_ms(began: Instant) -> f64 {
    (began.elapsed().as_secs_f64() * 1e6).round() / 1e3
}

/// The first rows, all of them if they are few and come at once: a failure among these is answered as
/// one, with its status.
async fn read_ahead(
    stream: &mut Fuse<SendableRecordBatchStream>,
) -> Result<VecDeque<RecordBatch>, QueryError> {
    let mut ahead = VecDeque::new();
    let mut rows = 0;
    let mut patience = None;
    while rows < AHEAD_ROWS {
        let next = match patience {
            None => stream.next().await,
            Some(until) => match tokio::time::timeout_at(until, stream.next()).await {
                Ok(next) => next,
                Err(_) => break,
            },
        };
        let Some(batch) = next.transpose()? else {
            break;
        };
        rows += batch.num_rows();
        ahead.push_back(batch);
        patience.get_or_insert_with(|| tokio::time::Instant::now() + AHEAD_WAIT);
    }
    Ok(ahead)
}

/// A result under way.
struct Rows {
    /// `None`: all rows were sent.
    stream: Option<Fuse<SendableRecordBatchStream>>,
    /// What was read before the answer began.
    ahead: VecDeque<RecordBatch>,
    encoder: Encoder,
    schema: SchemaRef,
    stats: Arc<QueryStats>,
    began: Instant,
    begun: bool,
    /// The failure that ends the body on the next poll.
    broken: Option<String>,
}

impl Rows {
    async fn next(mut self) -> Option<(Result<Bytes, std::io::Error>, Self)> {
        if let Some(message) = self.broken.take() {
            // Breaks the connection off: see the module's head. What hyper has not sent by then it
            // drops, and that would be the very member that tells the reason.
            tokio::time::sleep(FLUSH_PAUSE).await;
            return Some((Err(std::io::Error::other(message)), self));
        }
        let mut out = Vec::new();
        if !self.begun {
            self.begun = true;
            if let Err(error) = self.encoder.begin(&mut out, &self.schema) {
                return self.fail(out, &QueryError::from(error));
            }
        }
        loop {
            let stream = self.stream.as_mut()?;
            let batch = match self.ahead.pop_front() {
                Some(batch) => Some(Ok(batch)),
                None => stream.next().await,
            };
            match batch {
                Some(Ok(batch)) if batch.num_rows() == 0 => {}
                Some(Ok(batch)) => {
                    if let Err(error) = self.encoder.rows(&mut out, &batch) {
                        return self.fail(out, &QueryError::from(error));
                    }
                    return Some((Ok(out.into()), self));
                }
                Some(Err(error)) => return self.fail(out, &QueryError::from(error)),
                None => {
                    self.stream = None;
                    let stats = stats_json(&self.stats, self.began, self.encoder.rows);
                    return match self.encoder.end(&mut out, &stats) {
                        Ok(()) => Some((Ok(out.into()), self)),
                        Err(error) => self.fail(out, &QueryError::from(error)),
                    };
                }
            }
        }
    }

    fn fail(
        mut self,
        mut out: Vec<u8>,
        error: &QueryError,
    ) -> Option<(Result<Bytes, std::io::Error>, Self)> {
        self.stream = None;
        tracing::warn!(code = error.code, %error, "a statement failed after its first rows were sent");
        self.encoder.fail(&mut out, error);
        self.broken = Some(error.to_string());
        Some((Ok(out.into()), self))
    }
}

fn stats_json(stats: &QueryStats, began: Instant, rows: u64) -> Value {
    let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    json!({
        "elapsed_ms": elapsed_ms(began),
        "planning_ms": get(&stats.planning_us) as f64 / 1e3,
        "rows": rows,
        "bytes_read": get(&stats.bytes_read),
        "bytes_cached": get(&stats.bytes_cached),
        "bytes_total": get(&stats.bytes_total),
        "files_read": get(&stats.files_read),
        "files_total": get(&stats.files_total),
    })
}

/// Columns as the JSON result names them.
#[must_use]
pub fn columns_json(schema: &Schema) -> Value {
    schema
        .fields()
        .iter()
        .map(|field| json!({ "name": field.name(), "type": type_name(field.data_type()) }))
        .collect()
}

fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::UInt64 => "DECIMAL(20, 0)".into(),
        DataType::List(item) => format!("{}[]", type_name(item.data_type())),
        other => {
            ColumnType::from_arrow(other).map_or_else(|_| other.to_string(), |t| t.to_string())
        }
    }
}

/// Writes one format.
struct Encoder {
    kind: Kind,
    /// Rows written.
    rows: u64,
}

enum Kind {
    Json,
    Csv,
    /// With the schema that is sent: views become plain arrays.
    Arrow(Box<StreamWriter<Vec<u8>>>, SchemaRef),
}

impl Encoder {
    fn new(format: Format, schema: &SchemaRef) -> Result<Self, ApiError> {
        let kind = match format {
            Format::Json => Kind::Json,
            Format::Csv => Kind::Csv,
            Format::Arrow => {
                let plain = plain_schema(schema);
                let writer = StreamWriter::try_new(Vec::new(), &plain).map_err(|e| {
                    ApiError::internal(format!("cannot begin an Arrow stream: {e}"))
                })?;
                Kind::Arrow(Box::new(writer), plain)
            }
        };
        Ok(Self { kind, rows: 0 })
    }

    fn begin(&mut self, out: &mut Vec<u8>, schema: &Schema) -> Result<(), ArrowError> {
        match &mut self.kind {
            Kind::Json => {
                out.extend_from_slice(b"{\"columns\":");
                out.extend_from_slice(columns_json(schema).to_string().as_bytes());
                out.extend_from_slice(b",\"rows\":[");
            }
            Kind::Csv => {
                for (i, field) in schema.fields().iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    push_csv_text(out, field.name());
                }
                out.extend_from_slice(b"\r\n");
            }
            // The schema message waits in the writer.
            Kind::Arrow(writer, _) => out.append(writer.get_mut()),
        }
        Ok(())
    }

    fn rows(&mut self, out: &mut Vec<u8>, batch: &RecordBatch) -> Result<(), ArrowError> {
        let mut at = 0;
        while at < batch.num_rows() {
            let piece = batch.slice(at, ROWS_PER_PIECE.min(batch.num_rows() - at));
            at += piece.num_rows();
            match &mut self.kind {
                Kind::Json => {
                    if self.rows > 0 {
                        out.push(b',');
                    }
                    push_json_rows(out, &piece)?;
                }
                Kind::Csv => push_csv_rows(out, &piece)?,
                Kind::Arrow(writer, schema) => {
                    writer.write(&plain_batch(&piece, schema)?)?;
                    out.append(writer.get_mut());
                }
            }
            self.rows += piece.num_rows() as u64;
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<u8>, stats: &Value) -> Result<(), ArrowError> {
        match &mut self.kind {
            Kind::Json => {
                out.extend_from_slice(b"],\"stats\":");
                out.extend_from_slice(stats.to_string().as_bytes());
                out.push(b'}');
            }
            Kind::Csv => {}
            Kind::Arrow(writer, _) => {
                writer.finish()?;
                out.append(writer.get_mut());
            }
        }
        Ok(())
    }

    fn fail(&mut self, out: &mut Vec<u8>, error: &QueryError) {
        if matches!(self.kind, Kind::Json) {
            out.extend_from_slice(b"],\"error\":");
            let error = ApiError::from(error.clone()).json();
            out.extend_from_slice(error.to_string().as_bytes());
            out.push(b'}');
        }
    }

    fn finish_empty(mut self) -> Result<Vec<u8>, ApiError> {
        let mut out = Vec::new();
        self.begin(&mut out, &Schema::empty())
            .and_then(|()| self.end(&mut out, &Value::Null))
            .map_err(|e| ApiError::internal(format!("cannot end an Arrow stream: {e}")))?;
        Ok(out)
    }
}

/// View arrays as plain ones: many Arrow readers (JavaScript, older pyarrow) know no views.
fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        other => other.clone(),
    }
}

fn plain_schema(schema: &Schema) -> SchemaRef {
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|f| Field::new(f.name(), plain_type(f.data_type()), f.is_nullable()))
        .collect();
    Arc::new(Schema::new(fields))
}

fn plain_batch(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| arrow_cast::cast(column, field.data_type()))
        .collect::<Result<Vec<_>, _>>()?;
    let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}
