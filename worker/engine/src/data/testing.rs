//! Data sets for tests: names and labels as given, with images of two by three pixels that count up; and files in folders.

use std::path::Path;

use super::{Dataset, Image};

/// Writes files below a folder, each with its own name in it.
pub fn fill(dir: &Path, names: &[&str]) {
    for name in names {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, name).unwrap();
    }
}

/// A data set of that kind.
pub struct Named {
    classes: Vec<String>,
    labels: Vec<usize>,
}

impl Named {
    /// Classes, and the class of each sample.
    pub fn new(classes: &[&str], labels: &[usize]) -> Self {
        Self { classes: classes.iter().map(|c| (*c).to_owned()).collect(), labels: labels.to_vec() }
    }

    /// So many samples of each class, class by class.
    pub fn sized(counts: &[usize]) -> Self {
        let classes = (0..counts.len()).map(|c| format!("c{c}")).collect();
        let labels = counts.iter().enumerate().flat_map(|(c, n)| std::iter::repeat_n(c, *n)).collect();
        Self { classes, labels }
    }
}

impl Dataset for Named {
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn labels(&self) -> &[usize] {
        &self.labels
    }
    fn name(&self, index: usize) -> String {
        format!("#{index}")
    }
    fn digest(&self, index: usize) -> [u8; 32] {
        [index as u8; 32]
    }
    fn load(&self, _: usize) -> Result<Image, String> {
        Ok(Image { width: 2, height: 3, bytes: (0..6).flat_map(|v| [v; 3]).collect() })
    }
}
