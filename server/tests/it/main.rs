//! Tests of the real binary: it is started on free ports in a folder of its own and spoken to as
//! clients do.

mod access;
mod formats;
mod import;
mod life;
mod parameters;
mod pg;
mod pg_clients;
mod pg_copy;
mod pg_hostile;
mod server;
mod sql_cli;
mod writes;
