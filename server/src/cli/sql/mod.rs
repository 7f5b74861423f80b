//! `shoal sql`: SQL from the command line, a file or a prompt, over HTTP.
//!
//! Each statement is one request, so a session's settings do not outlive a statement on the
//! server; the schema, time limit and freshness that `SET` names are kept here and sent along.

mod failure;
mod meta;
mod names;
mod prompt;
mod shell;
mod table;

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::client::{Client, ClientArgs};
use crate::cli::{CliError, CliResult};
use crate::postgres::lexer;
use failure::Failure;
use shell::Shell;

/// Run SQL.
#[derive(Debug, clap::Args)]
pub struct SqlArgs {
    /// Run these statements and exit; may be given more than once.
    #[arg(short = 'c', long = "command", value_name = "SQL")]
    command: Vec<String>,
    /// Run a file and exit; "-" for standard input.
    #[arg(short = 'f', long, value_name = "FILE", conflicts_with = "command")]
    file: Option<PathBuf>,
    /// How results are written.
    #[arg(long, value_enum, default_value_t = OutputFormat::Table)]
    format: OutputFormat,
    /// The schema in which unqualified names are looked up.
    #[arg(long, default_value = "public", env = "SHOAL_SCHEMA")]
    schema: String,
    /// Time limit of each statement, in milliseconds.
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
    #[command(flatten)]
    client: ClientArgs,
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// Aligned columns, for people.
    Table,
    /// RFC 4180 with a header line.
    Csv,
    /// One JSON document a statement, as the server sends it.
    Json,
}

impl OutputFormat {
    fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Csv => "csv",
            Self::Json => "json",
        }
    }
}

/// Runs the command.
///
/// # Errors
/// [`CliError`] with the exit code.
pub async fn run(args: SqlArgs) -> CliResult {
    let client = Client::new(&args.client)?;
    let from_input = args.file.as_ref().is_some_and(|f| f.as_os_str() == "-");
    let interactive = args.command.is_empty() && args.file.is_none() && io::stdin().is_terminal();
    let mut shell = Shell::new(
        client,
        args.format,
        args.schema,
        args.timeout_ms,
        interactive,
    );
    if interactive {
        return prompt::run(shell).await;
    }
    let ran = if !args.command.is_empty() {
        commands(&mut shell, &args.command).await
    } else if let Some(file) = args.file.filter(|_| !from_input) {
        shell.file(&file).await
    } else {
        input(&mut shell).await
    };
    match ran {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Shown already, with its place.
        Err(Failure::Refused(_)) => Ok(ExitCode::from(1)),
        // `shoal sql … | head` is no failure.
        Err(Failure::Output) => Ok(ExitCode::SUCCESS),
        Err(Failure::Cancelled) => Err(CliError::failed("cancelled")),
        Err(Failure::Other(error)) => Err(error),
    }
}

async fn commands(shell: &mut Shell, commands: &[String]) -> Result<(), Failure> {
    for command in commands {
        shell.lines(command).await?;
    }
    Ok(())
}

/// Runs standard input as it comes: a statement runs once its semicolon is read, so that a pipe
/// of any length takes the memory of one statement.
async fn input(shell: &mut Shell) -> Result<(), Failure> {
    let mut pending = String::new();
    let mut stdin = io::stdin().lock();
    loop {
        let begin = pending.len();
        if stdin.read_line(&mut pending)? == 0 {
            break;
        }
        let line = pending[begin..].trim_end();
        let command = begin == 0 && line.starts_with('\\');
        if command || (line.ends_with(';') && lexer::is_complete(&pending)) {
            let text = std::mem::take(&mut pending);
            if shell.lines(&text).await? == shell::Next::Quit {
                return Ok(());
            }
        }
    }
    shell.lines(&pending).await.map(|_| ())
}
