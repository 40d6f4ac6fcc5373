//! What must hold of the whole tree.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic too")]

mod architecture;
