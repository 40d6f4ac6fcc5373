//! A group of one.

use super::Collective;
use crate::{Error, Result};

/// The group of a run with a single rank.
#[derive(Debug)]
pub struct Solo;

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }
    fn weights(&self) -> &[u32] {
        &[1]
    }
    fn messages(&self) -> u64 {
        0
    }
    fn send_parts(&mut self, to: usize, _: &[&[u8]]) -> Result<()> {
        Err(Error::Internal(format!("a rank alone sends to rank {to}")))
    }
    fn receive(&mut self, from: usize) -> Result<Vec<u8>> {
        Err(Error::Internal(format!("a rank alone waits for rank {from}")))
    }
}
