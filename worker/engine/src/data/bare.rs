//! Samples without labels: what lies with them is not looked at. A network that is brought to another domain learns from
//! these, and cannot come by a label that it must not know.

use tl_proto::spec::{PairedBy, Params};

use super::{Dataset, Image, audio::Clip, drawing::Drawing};

/// What stands where a label would: no class has this number.
const NO_LABEL: usize = usize::MAX;

/// Samples whose labels are out of reach.
pub(super) struct Bare {
    inner: Box<dyn Dataset>,
    labels: Vec<usize>,
    /// What pairs each with a sample of another kind, where that is not its name.
    keys: Option<Vec<String>>,
}

impl Bare {
    pub(super) fn new(inner: Box<dyn Dataset>) -> Self {
        let labels = vec![NO_LABEL; inner.labels().len()];
        Self { inner, labels, keys: None }
    }

    /// Samples that are halves of pairs. Where their classes make the pairs, that is all that their classes do.
    pub(super) fn paired(inner: Box<dyn Dataset>, by: PairedBy) -> Self {
        let all = 0..inner.labels().len();
        let place = |i| inner.place(i).to_string();
        let keys = match by {
            PairedBy::Name => None,
            PairedBy::Label => Some(inner.labels().iter().map(|l| inner.classes()[*l].clone()).collect()),
            PairedBy::Order => Some(all.map(place).collect()),
        };
        Self { keys, ..Self::new(inner) }
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
    fn drawn(&self) -> Option<&Params> {
        self.inner.drawn()
    }
    fn drawing(&self, index: usize) -> Result<&Drawing, String> {
        self.inner.drawing(index)
    }
    fn key(&self, index: usize) -> String {
        match &self.keys {
            Some(keys) => keys[index].clone(),
            None => self.inner.key(index),
        }
    }
    fn passed_over(&self) -> Option<&str> {
        self.inner.passed_over()
    }
}
