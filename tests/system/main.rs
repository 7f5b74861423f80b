//! Whole-system tests: each starts real `shoal` processes and looks at them from outside.

mod bad_input;
mod clients;
mod cluster;
mod cluster_clients;
mod cluster_damage;
mod cluster_script;
mod cuts;
mod damage;
mod disk_full;
mod docs;
mod failover;
mod faults;
mod health;
mod import;
mod kill_loop;
mod outside_readers;
mod partitions;
mod placement;
mod pulse;
mod reads;
mod services;
mod shard_splits;
mod single_process;
mod small_bench;
mod small_tables;
