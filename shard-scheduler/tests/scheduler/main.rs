//! The scheduler as a whole: on a cluster that does at once what is planned, and on nodes in memory.

mod fake;
mod procedures;
mod simulation;
mod size;
mod world;
