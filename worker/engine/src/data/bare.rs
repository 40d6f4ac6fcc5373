//! Samples without labels: what lies with them is not looked at. A network that is brought to another domain learns from
//! these, and cannot come by a label that it must not know.

use tl_proto::spec::Params;

use super::{Dataset, Image, audio::Clip};

/// What stands where a label would: no class has this number.
const NO_LABEL: usize = usize::MAX;

/// Samples whose labels are out of reach.
pub(super) struct Bare {
    inner: Box<dyn Dataset>,
    labels: Vec<usize>,
}

impl Bare {
    pub(super) fn new(inner: Box<dyn Dataset>) -> Self {
        let labels = vec![NO_LABEL; inner.labels().len()];
        Self { inner, labels }
    }
}

impl Dataset for Bare {
    /// None.
    fn classes(&self) -> &[String] {
        &[]
    }
    /// As many as there are samples; none of them is a class.
    fn labels(&self) -> &[usize] {
        &self.labels
    }
    fn name(&self, index: usize) -> String {
        self.inner.name(index)
    }
    fn digest(&self, index: usize) -> [u8; 32] {
        self.inner.digest(index)
    }
    fn load(&self, index: usize) -> Result<Image, String> {
        self.inner.load(index)
    }
    fn text(&self, index: usize) -> Option<&str> {
        self.inner.text(index)
    }
    fn heard(&self) -> Option<&Params> {
        self.inner.heard()
    }
    fn clip(&self, index: usize) -> Result<Clip, String> {
        self.inner.clip(index)
    }
}
