//! The command line of `shoal bench`.

use std::io::Write;
use std::path::PathBuf;

use crate::client::{Client, Target};
use crate::figures::Report;
use crate::load::LoadOptions;
use crate::query::QueryOptions;
use crate::tables::TablesOptions;
use crate::{Bars, BenchError, Generator, Workload, load, query, tables};

/// `shoal bench`: load and query generator (TSBS cpu-only).
#[derive(Clone, Debug, clap::Args)]
pub struct BenchCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// Write the rows as line protocol to a file or to standard output.
    Generate {
        #[command(flatten)]
        workload: Workload,
        /// Where to; `-`: standard output.
        #[arg(long, short, default_value = "-")]
        output: PathBuf,
    },
    /// Send the rows to a server and report rows/s and latencies.
    Load {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        workload: Workload,
        #[command(flatten)]
        options: LoadOptions,
        #[command(flatten)]
        bars: BarsFile,
    },
    /// Run the fifteen queries over rows loaded with the same workload options.
    Query {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        workload: Workload,
        #[command(flatten)]
        options: QueryOptions,
        #[command(flatten)]
        bars: BarsFile,
    },
    /// Make many small tables and report how the cost of one changes.
    Tables {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        options: TablesOptions,
        #[command(flatten)]
        bars: BarsFile,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct BarsFile {
    /// Bars to hold the figures against, instead of those built in.
    #[arg(long, value_name = "FILE")]
    bars: Option<PathBuf>,
}

impl BarsFile {
    fn report(&self) -> Result<Report, BenchError> {
        Ok(Report::new(match &self.bars {
            Some(path) => Bars::read(path)?,
            None => Bars::built_in()?,
        }))
    }
}

/// Runs the command: figures to standard output, one JSON object a line; progress to standard
/// error. `Ok(false)`: it ran, but a figure missed its bar, and the process should exit with 1.
///
/// # Errors
/// [`BenchError`] when it could not be measured.
pub async fn run(command: BenchCommand) -> Result<bool, BenchError> {
    match command.what {
        What::Generate { workload, output } => {
            generate(&workload, &output)?;
            Ok(true)
        }
        What::Load {
            target,
            workload,
            options,
            bars,
        } => {
            let mut report = bars.report()?;
            load::run(&Client::new(&target)?, &workload, &options, &mut report).await?;
            Ok(report.all_passed())
        }
        What::Query {
            target,
            workload,
            options,
            bars,
        } => {
            let mut report = bars.report()?;
            query::run(&Client::new(&target)?, &workload, &options, &mut report).await?;
            Ok(report.all_passed())
        }
        What::Tables {
            target,
            options,
            bars,
        } => {
            let mut report = bars.report()?;
            tables::run(&Client::new(&target)?, &options, &mut report).await?;
            Ok(report.all_passed())
        }
    }
}

/// Rows a write call takes at a time.
const GENERATE_ROWS: usize = 5000;

fn generate(workload: &Workload, output: &std::path::Path) -> Result<(), BenchError> {
    let wrap = |e| BenchError::file(output, e);
    let mut out: Box<dyn Write> = if output.as_os_str() == "-" {
        Box::new(std::io::stdout().lock())
    } else {
        Box::new(std::fs::File::create(output).map_err(wrap)?)
    };
    let mut generator = Generator::new(workload);
    while let Some(batch) = generator.next_batch(GENERATE_ROWS) {
        match out.write_all(&batch.lines) {
            // `shoal bench generate | head` is no error.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            result => result.map_err(wrap)?,
        }
    }
    out.flush().map_err(wrap)
}
