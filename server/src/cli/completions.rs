//! `shoal completions`.

use std::process::ExitCode;

use clap::Command;
use clap_complete::{Shell, generate};

use super::CliResult;

const WHERE: &str = "\
Where the script goes:
  bash  shoal completions bash > ~/.local/share/bash-completion/completions/shoal
  zsh   shoal completions zsh > _shoal, in a folder of $fpath
  fish  shoal completions fish > ~/.config/fish/completions/shoal.fish";

/// Print a script that completes commands and flags in a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = WHERE)]
pub struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Prints it.
pub fn run(args: &CompletionsArgs, mut command: Command) -> CliResult {
    generate(args.shell, &mut command, "shoal", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}
