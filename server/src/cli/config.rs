//! `shoal config`.

use std::process::ExitCode;

use super::{CliError, CliResult};
use crate::config::{ConfigArgs, defaults_toml};

/// Print or check the configuration.
#[derive(Debug, clap::Args)]
pub struct ConfigCommandArgs {
    /// Print every key with its default, unit and meaning, as TOML.
    #[arg(long)]
    defaults: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Prints the defaults, or checks what file, environment and flags say together.
pub fn run(args: &ConfigCommandArgs) -> CliResult {
    if args.defaults {
        print!("{}", defaults_toml());
        return Ok(ExitCode::SUCCESS);
    }
    let (_, warnings) = args
        .config
        .layers()
        .load()
        .map_err(|e| CliError::usage(e.to_string()))?;
    for warning in warnings {
        eprintln!("shoal: warning: {warning}");
    }
    println!("the configuration is good (`shoal config --defaults` prints every key)");
    Ok(ExitCode::SUCCESS)
}
