//! The `shoal` binary.

use std::process::ExitCode;

// Allocation is a visible share of parsing and of query execution; mimalloc gives memory back
// between them, which the system's allocator does not.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    shoal_server::cli::main()
}
