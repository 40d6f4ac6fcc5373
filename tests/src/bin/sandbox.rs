//! The processes of end-to-end tests.

fn main() {}
