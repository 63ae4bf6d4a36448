//! The command line only: parse, then call.

fn main() {}
