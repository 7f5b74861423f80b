//! Line protocol from outside: what is stored, what is refused, against another parser.

mod equivalence;
mod lines;
mod resolve;
mod shared_data;
mod speed;
mod support;
