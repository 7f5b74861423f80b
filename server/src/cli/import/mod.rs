//! `shoal import`: loads files in numbered chunks.
//!
//! The import's id is a hash of what is imported where: content, form, options, target, and the
//! cutting of chunks. The server keeps, per import, which chunks each shard has, in the same log
//! records as the rows. So an interrupted import goes on where it stopped, however it stopped and
//! however long ago, and a finished one that is repeated changes nothing.

mod chunk;
mod csv_rows;
mod notes;
mod parquet_rows;
mod progress;
mod rows;
mod sender;
mod source;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use xxhash_rust::xxh3::Xxh3;

use self::chunk::{BAD_SHOWN_MAX, BadLine, CUTTING_VERSION, Chunk, Chunks, LineChunks};
use self::notes::{Notes, Place};
use self::progress::Progress;
use self::rows::Mapping;
use self::sender::{Sender, Sent, patiently};
use self::source::{InputFormat, Source};
use self::table::{InputColumn, NewTable, Target, path_part};
use super::client::{Client, ClientArgs};
use super::{CliError, CliResult, counted};

/// Chunks sent at a time. The fold tells 32 chunks beyond the oldest unacknowledged one apart
/// (`shoal_wal::record::CHUNKS_AHEAD_MAX`); answers are awaited in order, so this is the most that
/// a chunk can be ahead.
const CHUNKS_IN_FLIGHT: usize = 8;
/// Load line protocol, CSV or Parquet.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// Files to load, `.gz` and `.zst` as they are; `-` is standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Form of the input; by default the file name's ending tells.
    #[arg(long, value_enum)]
    format: Option<InputFormat>,
    /// The table that CSV or Parquet rows go to; by default named like the file.
    #[arg(long)]
    table: Option<String>,
    /// The schema (database) of the table or of the line protocol's measurements.
    #[arg(long, visible_alias = "db", default_value = "public")]
    schema: String,
    /// Unit of line-protocol timestamps: ns, us, ms, s, m or h.
    #[arg(long, default_value = "ns")]
    precision: String,
    /// Primary key of a table that is made: rows of one key replace each other. Without it the
    /// table appends.
    #[arg(long, value_delimiter = ',', value_name = "COLUMN,…")]
    key: Vec<String>,
    /// Time column of a table that is made; by default the only timestamp column.
    #[arg(long, value_name = "COLUMN")]
    time_column: Option<String>,
    /// Name of the import, for standard input that shall be resumable. The input must be the same
    /// on every run.
    #[arg(long, value_name = "NAME")]
    import_id: Option<String>,
    /// Load again what was loaded before (into tables dropped since, say).
    #[arg(long)]
    again: bool,
    /// How long to wait for a server that is away or overloaded, in seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    patience_s: u64,
    /// Print no progress.
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Figures of all inputs together.
#[derive(Debug, Default)]
struct Totals {
    rows: u64,
    bad: u64,
    bad_shown: usize,
}

/// Loads the inputs one after another.
///
/// # Errors
/// An input cannot be read, or the server refuses it.
pub async fn run(args: ImportArgs) -> CliResult {
    if args.import_id.is_some() && args.files.len() > 1 {
        return Err(CliError::usage(
            "--import-id names one input; give one file",
        ));
    }
    let client = Client::new(&args.client)?;
    // A server that is not there at all is told at once; one that goes away later is waited for.
    client.get_json("/health/live").await?;
    let mut totals = Totals::default();
    for file in &args.files {
        import(&args, &client, &Source::new(file), &mut totals).await?;
    }
    if totals.bad > 0 {
        if totals.bad > totals.bad_shown as u64 {
            eprintln!("… and {} more", totals.bad - totals.bad_shown as u64);
        }
        return Err(CliError::failed(format!(
            "{} left out; {} stored",
            counted(totals.bad, "bad line"),
            counted(totals.rows, "row")
        )));
    }
    Ok(ExitCode::SUCCESS)
}

async fn import(
    args: &ImportArgs,
    client: &Client,
    source: &Source,
    totals: &mut Totals,
) -> Result<(), CliError> {
    let name = source.name();
    let format = args.format.or(source.format()).ok_or_else(|| {
        CliError::usage(format!(
            "{name}: the form is not clear from the name; pass --format lp|csv|parquet"
        ))
    })?;
    let stored_bytes = source.stored_bytes()?;
    let (chunks, path, content_type, target) = open(args, client, source, format).await?;
    let import = import_id(args, source, format, target.as_ref())?;
    let patience = Duration::from_secs(args.patience_s);
    let mark = patiently(patience, || progress_mark(client, &import)).await?;
    let from = mark.unwrap_or(0);
    tell_change(
        args,
        client,
        source,
        format,
        target.as_ref(),
        (&import, mark),
    )
    .await?;
    let sender = Sender {
        client: client.clone(),
        path,
        content_type,
        import,
        patience,
    };
    let mut progress = Progress::new(&name, stored_bytes, args.quiet);
    let (mut rows, mut fresh) = (0, false);
    let mut results = Box::pin(
        cut_in_background(chunks)
            .map(|chunk| send_or_skip(&sender, chunk, from))
            .buffered(CHUNKS_IN_FLIGHT),
    );
    while let Some(result) = results.next().await {
        let (chunk, sent) = result?;
        if mark.is_some() && chunk.number == from && !args.quiet {
            progress.say(&format!(
                "{name}: an earlier run got to chunk {from}; going on from there"
            ));
        }
        rows += sent.rows;
        fresh |= sent.rows > 0;
        totals.rows += sent.rows;
        totals.bad += sent.bad_count;
        for bad in &sent.bad {
            if totals.bad_shown < BAD_SHOWN_MAX {
                totals.bad_shown += 1;
                progress.say(&shown(&name, bad));
            }
        }
        progress.advance(chunk.consumed, sent.rows, chunk.input_bytes);
    }
    progress.finish();
    if !args.quiet {
        if mark.is_some() && !fresh {
            eprintln!("{name}: was loaded before; nothing to do (--again loads it again)");
        } else {
            eprintln!(
                "{name}: {} stored ({})",
                counted(rows, "row"),
                progress.figures()
            );
        }
    }
    Ok(())
}

fn shown(name: &str, bad: &BadLine) -> String {
    if bad.column == 0 {
        format!("{name}:{}: {}", bad.line, bad.reason)
    } else {
        format!("{name}:{}:{}: {}", bad.line, bad.column, bad.reason)
    }
}

type Opened = (Box<dyn Chunks>, String, &'static str, Option<Target>);

/// Opens the input and says where its chunks go.
async fn open(
    args: &ImportArgs,
    client: &Client,
    source: &Source,
    format: InputFormat,
) -> Result<Opened, CliError> {
    const ARROW: &str = "application/vnd.apache.arrow.stream";
    if format == InputFormat::Lp {
        let path = format!(
            "/write?db={}&precision={}",
            path_part(&args.schema),
            path_part(&args.precision)
        );
        return Ok((
            Box::new(LineChunks::open(source)?),
            path,
            "text/plain; charset=utf-8",
            None,
        ));
    }
    let table = match &args.table {
        Some(table) => table.clone(),
        None if source.stem().is_empty() => {
            return Err(CliError::usage("--table is needed for standard input"));
        }
        None => source.stem().to_owned(),
    };
    let new = NewTable {
        key: args.key.clone(),
        time_column: args.time_column.clone(),
    };
    let patience = Duration::from_secs(args.patience_s);
    let made = |columns: Vec<InputColumn>| {
        let (table, new) = (&table, &new);
        async move {
            let make = || Target::find_or_create(client, &args.schema, table, &columns, new);
            patiently(patience, make).await
        }
    };
    let (target, chunks): (Target, Box<dyn Chunks>) = match format {
        InputFormat::Csv => {
            let input = csv_rows::CsvInput::open(source)?;
            let target = made(input.columns.clone()).await?;
            let mapping = Mapping::by_name(&input.names, &target.columns)?;
            (target, Box::new(input.chunks(mapping)))
        }
        _ => {
            let input = parquet_rows::ParquetInput::open(source)?;
            let target = made(input.columns.clone()).await?;
            let mapping = Mapping::by_name(&input.names, &target.columns)?;
            (target, Box::new(input.chunks(mapping)?))
        }
    };
    let path = format!(
        "/v1/ingest/{}?schema={}",
        path_part(&table),
        path_part(&args.schema)
    );
    Ok((chunks, path, ARROW, Some(target)))
}

/// 32 hexadecimal digits that name what is imported where.
fn import_id(
    args: &ImportArgs,
    source: &Source,
    format: InputFormat,
    target: Option<&Target>,
) -> Result<String, CliError> {
    let mut hash = Xxh3::new();
    let mut add = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    add(&format!("{CUTTING_VERSION} {format:?}"));
    add(&args.schema);
    match target {
        Some(target) => {
            add(&target.table);
            add(&target.id);
            add(&target.incarnation.to_string());
        }
        None => add(&args.precision),
    }
    match &args.import_id {
        Some(name) => add(name),
        None if source.is_stdin() || args.again => add(&ulid::Ulid::new().to_string()),
        None => source.fingerprint(&mut hash)?,
    }
    Ok(format!("{:032x}", hash.digest128()))
}

/// Says so if the file was loaded before with other content; notes what is loaded now.
async fn tell_change(
    args: &ImportArgs,
    client: &Client,
    source: &Source,
    format: InputFormat,
    target: Option<&Target>,
    (import, mark): (&str, Option<u64>),
) -> Result<(), CliError> {
    let (Some(path), None) = (source.path(), &args.import_id) else {
        return Ok(());
    };
    let form = format!("{format:?}");
    // A table that was emptied since holds nothing of the file.
    let table = target.map_or_else(String::new, |t| format!("{} {}", t.id, t.incarnation));
    let place = Place::new(path, &[&form, &args.schema, &table])?;
    let notes = Notes::of_user();
    let last = notes.last(&place);
    if last.as_deref() == Some(import) {
        return Ok(());
    }
    if let (Some(last), None, false) = (&last, mark, args.again)
        && patiently(Duration::from_secs(args.patience_s), || {
            progress_mark(client, last)
        })
        .await?
        .is_some()
    {
        let name = source.name();
        match target {
            Some(target) if target.appends => eprintln!(
                "{name}: WARNING: it was loaded into table {:?} before and has changed since. All of it is loaded now, and the table keeps every row (mode 'append'): rows that were in the file then and still are will be there twice. TRUNCATE the table first if the file shall replace them",
                target.table
            ),
            _ if !args.quiet => eprintln!(
                "{name}: it was loaded before and has changed since; all of it is loaded now, and rows replace those of the same key"
            ),
            _ => {}
        }
    }
    notes.note(&place, import);
    Ok(())
}

/// The chunk to go on with: every shard has all below it. `None`: the server never saw the import.
async fn progress_mark(client: &Client, import: &str) -> Result<Option<u64>, CliError> {
    let body = client.get_json(&format!("/v1/import/{import}")).await?;
    Ok(body["progress"].as_u64())
}

/// Cuts on a thread of its own, at most two chunks ahead of the sending.
fn cut_in_background(mut chunks: Box<dyn Chunks>) -> ReceiverStream<Result<Chunk, CliError>> {
    let (sender, receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        while let Some(chunk) = chunks.next().transpose() {
            let failed = chunk.is_err();
            // Nobody listens any more once sending has failed.
            if sender.blocking_send(chunk).is_err() || failed {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

async fn send_or_skip(
    sender: &Sender,
    chunk: Result<Chunk, CliError>,
    from: u64,
) -> Result<(Chunk, Sent), CliError> {
    let chunk = chunk?;
    let sent = if chunk.number < from {
        Sent::default()
    } else {
        sender.send(&chunk).await?
    };
    Ok((chunk, sent))
}
