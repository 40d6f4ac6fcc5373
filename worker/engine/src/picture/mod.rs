//! Pictures of a run, for people: SVG text made of what its report says. A new picture is a file here and a line in
//! [`ALL`]. Nothing here reads or writes files, and no number of a model depends on it.

mod canvas;
mod confusion;
mod curves;
mod scatter;
mod strategy;
mod temperature;

use crate::{Result, train::export::Report};

/// One picture.
pub struct Picture {
    /// What its file is called.
    pub file: &'static str,
    /// Draws it; nothing where the report has nothing to show.
    pub draw: fn(&Report) -> Result<Option<String>>,
}

/// Every picture, in the order in which people look.
pub const ALL: &[Picture] =
    &[curves::PICTURE, confusion::PICTURE, scatter::PICTURE, strategy::PICTURE, temperature::PICTURE];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_nothing_has_no_pictures_and_no_two_share_a_file() {
        let report = Report::default();
        let files: std::collections::BTreeSet<&str> = ALL.iter().map(|p| p.file).collect();
        assert_eq!(files.len(), ALL.len());
        for picture in ALL {
            assert!(picture.file.ends_with(".svg"));
            assert_eq!((picture.draw)(&report).unwrap(), None, "{}", picture.file);
        }
    }
}
