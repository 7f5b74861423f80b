//! Runs statements and shows what comes back, one after another.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use shoal_query::{QueryError, Seen, commit_tokens, parse_timeout};

use super::OutputFormat;
use super::failure::{Failure, Refused};
use super::meta::{self, Meta};
use super::names::NameCache;
use super::table::{Expanded, Table};
use crate::cli::client::Client;
use crate::cli::{CliError, chain};
use crate::postgres::lexer;

/// How deep `\i` files may include each other.
const INCLUDES_MAX: usize = 16;

/// What the statements of one run share.
pub struct Shell {
    client: Client,
    names: Arc<NameCache>,
    /// How results are shown.
    pub format: OutputFormat,
    /// When rows turn on their side.
    pub expanded: Expanded,
    /// Whether row counts and times follow results.
    pub timing: bool,
    /// The current schema.
    pub schema: String,
    timeout_ms: Option<u64>,
    consistency: Option<String>,
    read_from: Option<String>,
    /// What this run has written, and what it was told to have seen.
    seen: Seen,
    interactive: bool,
    includes: usize,
}

/// The setting that a statement sets, and to what; `None`: to its default.
fn assignment(sql: &str) -> Option<(String, Option<String>)> {
    let words = lexer::words(sql, 64);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let name_of = |parts: &[&str]| {
        let name = parts.concat();
        name.strip_prefix("shoal.").unwrap_or(&name).to_owned()
    };
    let rest = match words.as_slice() {
        ["use", name] => return Some(("search_path".into(), Some(lexer::value_of(name)))),
        ["reset", name @ ..] => return Some((name_of(name), None)),
        ["set", "session", rest @ ..] | ["set", rest @ ..] => rest,
        _ => return None,
    };
    let at = rest.iter().position(|word| matches!(*word, "=" | "to"))?;
    let value = match &rest[at + 1..] {
        [] => return None,
        ["default"] => None,
        values => Some(
            values
                .iter()
                .map(|v| lexer::value_of(v))
                .collect::<String>(),
        ),
    };
    Some((name_of(&rest[..at]), value))
}

/// What a meta-command asks the prompt to do next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    On,
    /// Leave.
    Quit,
}

impl Shell {
    /// A shell at a server.
    pub fn new(
        client: Client,
        format: OutputFormat,
        schema: String,
        timeout_ms: Option<u64>,
        interactive: bool,
    ) -> Self {
        Self {
            names: Arc::new(NameCache::new(client.clone())),
            client,
            format,
            expanded: if interactive {
                Expanded::Auto
            } else {
                Expanded::Off
            },
            timing: interactive,
            schema,
            timeout_ms,
            consistency: None,
            read_from: None,
            seen: Seen::default(),
            interactive,
            includes: 0,
        }
    }

    /// The names that Tab completes.
    pub fn names(&self) -> &Arc<NameCache> {
        &self.names
    }

    /// The server.
    pub fn server(&self) -> &str {
        self.client.base()
    }

    /// Runs the statements of a text; at the first failure it says why on standard error, with
    /// the place, and ends.
    ///
    /// # Errors
    /// Of the first statement that failed; a refusal was shown already.
    pub async fn script(&mut self, text: &str) -> Result<(), Failure> {
        for range in lexer::statements(text) {
            let sql = &text[range];
            let ran = self.statement(sql).await;
            if let Err(Failure::Refused(refused)) = &ran {
                io::stdout().flush()?;
                eprintln!("{}", refused.show(sql));
            }
            ran?;
        }
        Ok(())
    }

    /// Runs one statement.
    async fn statement(&mut self, sql: &str) -> Result<(), Failure> {
        if self.keep_setting(sql)? {
            return Ok(());
        }
        let began = Instant::now();
        if !self.interactive {
            // Ctrl-C ends the process, and with it the connection: the server cancels.
            return self.run(sql, began).await;
        }
        let ran = tokio::select! {
            ran = self.run(sql, began) => ran,
            _ = tokio::signal::ctrl_c() => Err(Failure::Cancelled),
        };
        let first = lexer::words(sql, 1);
        if matches!(
            first.first().map(String::as_str),
            Some("create" | "alter" | "drop")
        ) {
            self.names.forget();
        }
        ran
    }

    /// Requests have no session in common, so settings are kept here and sent with each. Whether
    /// it was a statement that sets one.
    fn keep_setting(&mut self, sql: &str) -> Result<bool, Failure> {
        let Some((name, value)) = assignment(sql) else {
            return Ok(false);
        };
        let refused = |error: QueryError| Failure::from(CliError::failed(error.message));
        match name.as_str() {
            "search_path" | "schema" => self.schema = value.unwrap_or_else(|| "public".into()),
            "consistency" => self.consistency = value,
            "read_from" => self.read_from = value,
            "commit_tokens" => {
                let tokens = commit_tokens(&value.unwrap_or_default()).map_err(refused)?;
                if tokens.is_empty() {
                    self.seen.clear();
                }
                self.seen.add(&tokens);
            }
            "statement_timeout" => {
                let ms = parse_timeout(value.as_deref().unwrap_or("0")).map_err(refused)?;
                self.timeout_ms = Some(ms).filter(|ms| *ms > 0);
            }
            _ => return Ok(false),
        }
        if self.interactive {
            say(format_args!("SET"))?;
        }
        Ok(true)
    }

    async fn run(&self, sql: &str, began: Instant) -> Result<(), Failure> {
        let format = match self.format {
            OutputFormat::Table => "arrow",
            OutputFormat::Csv => "csv",
            OutputFormat::Json => "json",
        };
        let mut body = json!({ "sql": sql, "schema": self.schema, "format": format });
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                body[name] = value;
            }
        };
        put("timeout_ms", self.timeout_ms.map(Value::from));
        put("consistency", self.consistency.clone().map(Value::from));
        put("read_from", self.read_from.clone().map(Value::from));
        put("commit_tokens", Some(self.seen.text().into()));
        let request = self.client.request(Method::POST, "/v1/sql").json(&body);
        let response = self.client.send(request).await?;
        if !response.status().is_success() {
            let status = response.status().as_u16();
            let text = response.text().await.map_err(|e| broken(&e))?;
            return Err(Failure::Refused(Refused::read(status, &text)));
        }
        let given = response.headers().get("Shoal-Commit-Token");
        let given = given.and_then(|v| v.to_str().ok());
        // Tokens of a later release mean nothing here, and are no reason to fail after a write.
        let known = given.and_then(|t| commit_tokens(t).ok());
        self.seen.add(&known.unwrap_or_default());
        let tag = response
            .headers()
            .get("Shoal-Tag")
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned);
        let stdout = io::stdout();
        let shown = match self.format {
            OutputFormat::Table => self.show_table(response, tag, began).await,
            OutputFormat::Csv => copy(response, &mut Lines::new(stdout.lock())).await,
            OutputFormat::Json => {
                let mut out = stdout.lock();
                match copy(response, &mut out).await {
                    Ok(()) => writeln!(out).map_err(Into::into),
                    failed => failed,
                }
            }
        };
        shown?;
        io::stdout().flush()?;
        if self.format != OutputFormat::Table && self.timing && io::stderr().is_terminal() {
            eprintln!("Time: {}", elapsed(began.elapsed()));
        }
        Ok(())
    }

    /// Shows an Arrow stream as a table.
    async fn show_table(
        &self,
        mut response: Response,
        tag: Option<String>,
        began: Instant,
    ) -> Result<(), Failure> {
        let terminal = terminal_size::terminal_size()
            .map(|(width, _)| usize::from(width.0))
            .filter(|_| io::stdout().is_terminal());
        let mut out = io::BufWriter::with_capacity(64 << 10, io::stdout());
        let mut decoder = StreamDecoder::new();
        let mut table = None;
        while let Some(chunk) = response.chunk().await.map_err(|e| broken(&e))? {
            let mut buffer = Buffer::from(chunk);
            loop {
                let batch = decoder.decode(&mut buffer).map_err(CliError::from)?;
                if table.is_none()
                    && let Some(schema) = decoder.schema()
                    && !schema.fields().is_empty()
                {
                    table = Some(Table::new(&schema, self.expanded, terminal));
                }
                match (batch, &mut table) {
                    (Some(batch), Some(table)) => table.push(&batch, &mut out)?,
                    (Some(_), None) => {}
                    (None, _) => break,
                }
            }
        }
        let time = if self.timing {
            format!(" ({})", elapsed(began.elapsed()))
        } else {
            String::new()
        };
        match table {
            Some(mut table) => {
                table.finish(&mut out)?;
                let rows = table.rows();
                let s = if rows == 1 { "" } else { "s" };
                writeln!(out, "{rows} row{s}{time}")?;
            }
            None => writeln!(out, "{}{time}", tag.unwrap_or_else(|| "OK".into()))?,
        }
        out.flush()?;
        Ok(())
    }

    /// Runs a file of statements.
    ///
    /// # Errors
    /// The file, or its first statement that failed.
    pub async fn file(&mut self, path: &Path) -> Result<(), Failure> {
        if self.includes >= INCLUDES_MAX {
            return Err(CliError::failed("files include each other too deeply").into());
        }
        let text = std::fs::read_to_string(path)
            .map_err(|e| CliError::usage(format!("cannot read {}: {e}", path.display())))?;
        self.includes += 1;
        let ran = Box::pin(self.lines(&text)).await;
        self.includes -= 1;
        ran.map(|_| ())
    }

    /// Runs a text that may hold meta-commands on lines of their own.
    ///
    /// # Errors
    /// Of the first statement or command that failed.
    pub async fn lines(&mut self, text: &str) -> Result<Next, Failure> {
        let mut pending = String::new();
        for line in text.split_inclusive('\n') {
            let between = lexer::statements(&pending).is_empty();
            if between && let Some(command) = meta::parse(line) {
                if self.command(command).await? == Next::Quit {
                    return Ok(Next::Quit);
                }
                pending.clear();
                continue;
            }
            pending.push_str(line);
            if line.trim_end().ends_with(';') && lexer::is_complete(&pending) {
                let statements = std::mem::take(&mut pending);
                self.script(&statements).await?;
            }
        }
        self.script(&pending).await?;
        Ok(Next::On)
    }

    /// Runs a meta-command.
    ///
    /// # Errors
    /// As [`Self::script`].
    pub async fn command(&mut self, command: Meta) -> Result<Next, Failure> {
        match command {
            Meta::Tables(all) => {
                let sql = meta::tables_query(&self.schema, all);
                self.script(&sql).await?;
            }
            Meta::Describe(name) => match meta::describe_statement(&name) {
                Some(sql) => self.script(&sql).await?,
                None => return Err(CliError::failed(format!("{name} is not a name")).into()),
            },
            Meta::Schemas => self.script(meta::SCHEMAS_QUERY).await?,
            Meta::Schema(name) => {
                say(format_args!("schema is now {name}"))?;
                self.schema = name;
            }
            Meta::Timing(on) => {
                self.timing = on.unwrap_or(!self.timing);
                say(format_args!(
                    "timing is {}",
                    if self.timing { "on" } else { "off" }
                ))?;
            }
            Meta::Format(format) => {
                self.format = format.unwrap_or(self.format);
                say(format_args!("format is {}", self.format.name()))?;
            }
            Meta::Expanded(expanded) => {
                self.expanded = match (expanded, self.expanded) {
                    (Some(asked), _) => asked,
                    (None, Expanded::On) => Expanded::Off,
                    (None, _) => Expanded::On,
                };
                let shown = match self.expanded {
                    Expanded::On => "on",
                    Expanded::Off => "off",
                    Expanded::Auto => "auto",
                };
                say(format_args!("one line a value is {shown}"))?;
            }
            Meta::Include(path) => self.file(&path).await?,
            Meta::Quit => return Ok(Next::Quit),
            Meta::Help => say(format_args!("{}", meta::HELP))?,
            Meta::Unknown(why) => return Err(CliError::failed(why).into()),
        }
        Ok(Next::On)
    }
}

/// Writes a line to standard output; `println!` would panic once nobody reads it.
fn say(line: std::fmt::Arguments<'_>) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

/// The answer stopped before its end.
fn broken(error: &reqwest::Error) -> CliError {
    CliError::failed(format!("the answer broke off: {}", chain(error)))
}

async fn copy(mut response: Response, out: &mut impl Write) -> Result<(), Failure> {
    while let Some(chunk) = response.chunk().await.map_err(|e| broken(&e))? {
        out.write_all(&chunk)?;
    }
    out.flush()?;
    Ok(())
}

/// Turns the server's CSV line ends (CRLF, RFC 4180) into those of this system, outside quotes.
struct Lines<W: Write> {
    out: W,
    quoted: bool,
    held: bool,
}

impl<W: Write> Lines<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            quoted: false,
            held: false,
        }
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut plain = Vec::with_capacity(data.len() + 1);
        for byte in data {
            if std::mem::take(&mut self.held) && *byte != b'\n' {
                plain.push(b'\r');
            }
            match byte {
                b'\r' if !self.quoted => self.held = true,
                b'"' => {
                    self.quoted = !self.quoted;
                    plain.push(b'"');
                }
                other => plain.push(*other),
            }
        }
        self.out.write_all(&plain)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A duration for people.
fn elapsed(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 10.0 {
        format!("{ms:.2} ms")
    } else if ms < 1_000.0 {
        format!("{ms:.0} ms")
    } else if ms < 60_000.0 {
        format!("{:.2} s", ms / 1e3)
    } else {
        let seconds = time.as_secs();
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_lines_end_as_on_this_system_but_values_stay_as_they_are() {
        let mut out = Vec::new();
        let mut lines = Lines::new(&mut out);
        for byte in b"a,\"x\r\ny\"\r\nb,\r,c\r\n" {
            lines.write_all(&[*byte]).unwrap();
        }
        assert_eq!(out, b"a,\"x\r\ny\"\nb,\r,c\n");
    }

    #[test]
    fn times_are_short() {
        let shown =
            [0.4, 37.2, 2_350.0, 125_000.0].map(|ms| elapsed(Duration::from_secs_f64(ms / 1e3)));
        assert_eq!(shown, ["0.40 ms", "37 ms", "2.35 s", "2 min 05 s"]);
    }
}
