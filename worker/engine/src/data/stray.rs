//! Which files are samples of a format, and which merely lie among them.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// Most bytes that are looked at.
const START: u64 = 16;

/// The files that are samples of a format.
pub(super) struct Kind {
    /// What one of them is, for people.
    pub what: &'static str,
    /// Endings of their names, in lower case. With those of their relatives that cannot be decoded: such a file is told as
    /// one, and not passed over.
    pub endings: &'static [&'static str],
    /// Whether a file begins as one does.
    pub begins: fn(&[u8]) -> bool,
}

impl Kind {
    /// Whether a file is called as one is.
    pub fn names(&self, file: &str) -> bool {
        file.rsplit_once('.').is_some_and(|(_, ending)| self.endings.iter().any(|e| ending.eq_ignore_ascii_case(e)))
    }

    /// Whether a file is one, by its name or by how it begins. One that cannot be opened is told by who reads it.
    pub fn is(&self, file: &str, path: &Path) -> bool {
        let mut start = Vec::new();
        let mut read = || File::open(path)?.take(START).read_to_end(&mut start);
        self.names(file) || read().is_err() || (self.begins)(&start)
    }

    /// Takes out of what was found what is no sample; what is to be said of that.
    pub fn sift(&self, found: &mut Vec<(String, PathBuf)>) -> Option<String> {
        let (all, mut first) = (found.len(), None);
        found.retain(|(name, path)| {
            let stays = self.is(name, path);
            if !stays && first.is_none() {
                first = Some(name.clone());
            }
            stays
        });
        let (first, n) = (first?, all - found.len());
        let what = self.what;
        let are = if n == 1 { format!("1 file is no {what}") } else { format!("{n} files are no {what}s") };
        Some(format!("{are}, first `{first}`: passed over"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_sample_by_its_ending_or_by_how_it_begins() {
        let dir = tempfile::tempdir().unwrap();
        let kind = Kind { what: "picture", endings: &["png", "gif"], begins: |start| start.starts_with(b"PNG") };
        let mut found = Vec::new();
        for (name, bytes) in [
            ("Thumbs.db", "old"),
            ("a.PNG", "cut off"),
            ("b.gif", "a relative"),
            ("c", "PNG and so on"),
            ("d.jpg", "PNG under another name"),
            ("notes.txt", "png"),
            ("png", "no ending"),
        ] {
            std::fs::write(dir.path().join(name), bytes).unwrap();
            found.push((name.to_owned(), dir.path().join(name)));
        }
        found.push(("gone.txt".into(), dir.path().join("gone.txt")));
        let said = kind.sift(&mut found).unwrap();
        assert_eq!(said, "3 files are no pictures, first `Thumbs.db`: passed over");
        let names: Vec<&str> = found.iter().map(|f| f.0.as_str()).collect();
        assert_eq!(names, ["a.PNG", "b.gif", "c", "d.jpg", "gone.txt"]);
        assert_eq!(kind.sift(&mut found), None);
    }
}
