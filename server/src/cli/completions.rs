//! `shoal completions`.

use std::process::ExitCode;

use clap::Command;
use clap_complete::{Shell, generate};

use super::CliResult;

/// Print a script that completes commands and flags in a shell.
///
/// bash: shoal completions bash > ~/.local/share/bash-completion/completions/shoal
///
/// zsh: shoal completions zsh > a folder of $fpath, as _shoal
///
/// fish: shoal completions fish > ~/.config/fish/completions/shoal.fish
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Prints it.
pub fn run(args: &CompletionsArgs, mut command: Command) -> CliResult {
    generate(args.shell, &mut command, "shoal", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}
