//! An earlier model where the files of a job are to go: it is moved aside, so that files of both do not lie together. Where
//! that fails, the new ones are written all the same: what has been trained is never lost over it.

use std::path::{Path, PathBuf};

use tl_proto::spec::JobSpec;

use crate::Error;

/// What every job leaves, whatever else: weights alone may be somebody's own.
const LEFT: [&str; 2] = ["job.toml", "report.json"];

/// Whether a job has left files in a folder, or in the folder there that one of these `steps` has of its own. What else lies
/// below is no concern of theirs.
pub(super) fn is_used(dir: &Path, steps: &[&str]) -> bool {
    let left = |dir: &Path| LEFT.iter().all(|name| dir.join(name).exists());
    left(dir) || steps.iter().any(|step| *step != JobSpec::MAIN && left(&dir.join(step)))
}

/// Looks, before anything is started, whether what lies in a folder can be moved aside.
///
/// # Errors
/// Files of an earlier job in a folder that this process is in.
#[cfg(feature = "local")]
pub(super) fn check(dir: &Path, steps: &[&str]) -> Result<(), Error> {
    std::env::current_dir().map_or(Ok(()), |here| check_from(&here, dir, steps))
}

#[cfg(any(feature = "local", test))]
fn check_from(here: &Path, dir: &Path, steps: &[&str]) -> Result<(), Error> {
    let inside = here.canonicalize().ok().zip(dir.canonicalize().ok()).is_some_and(|(here, dir)| here.starts_with(dir));
    if inside && is_used(dir, steps) {
        return Err(Error::input(
            format!("`{}` has the files of an earlier job, and cannot be moved aside from within", dir.display()),
            "give another folder: `--out FOLDER`",
        ));
    }
    Ok(())
}

/// Makes room for the files of these `steps`, and tells what became of those of an earlier job, if there are some.
pub(super) fn make_room(dir: &Path, steps: &[&str]) -> Option<String> {
    match set_aside(dir, steps) {
        Ok(aside) => aside.map(|aside| format!("what lay in `{}` is in `{}` now", dir.display(), aside.display())),
        Err(e) => Some(format!(
            "{e}: the earlier model there is not moved aside, and files of the same names are written over"
        )),
    }
}

/// Moves a folder with the files of an earlier job to the first free of `NAME.1`, `NAME.2` and so on, and says where that is;
/// any other folder stays. A link to one stays, too, and leads to an empty folder then.
///
/// # Errors
/// The disk refuses.
fn set_aside(dir: &Path, steps: &[&str]) -> Result<Option<PathBuf>, Error> {
    if !is_used(dir, steps) {
        return Ok(None);
    }
    // A slash at the end would have a link followed.
    let plain: PathBuf = dir.components().collect();
    let is_link = plain.is_symlink();
    let real = if is_link { plain.canonicalize().map_err(Error::file(&plain))? } else { plain };
    let dir = real.as_path();
    let Some(name) = dir.file_name() else { return Ok(None) };
    let numbered = |n: u32| {
        let mut name = name.to_owned();
        name.push(format!(".{n}"));
        dir.with_file_name(name)
    };
    let free = (1..).map(numbered).find(|path| path.symlink_metadata().is_err());
    let Some(free) = free else { return Ok(None) };
    std::fs::rename(dir, &free).map_err(Error::file(dir))?;
    if is_link {
        std::fs::create_dir(dir).map_err(Error::file(dir))?;
    }
    Ok(Some(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(dir: &Path, names: &[&str]) {
        for name in names {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, *name).unwrap();
        }
    }

    #[test]
    fn an_earlier_model_is_moved_aside_whole_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("ants");
        assert_eq!(set_aside(&out, &[]).unwrap(), None, "nothing is there");
        fill(&out, &["notes.txt", "job.toml", "weights/model.safetensors"]);
        assert_eq!(set_aside(&out, &[]).unwrap(), None, "it is somebody's own folder");
        fill(&out, &["report.json", "adapter_config.json"]);
        let first = dir.path().join("ants.1");
        assert_eq!(set_aside(&out, &["main"]).unwrap().as_ref(), Some(&first));
        assert!(!out.exists() && first.join("adapter_config.json").exists() && first.join("notes.txt").exists());
        // Of a pipeline, each step has its own.
        fill(&out, &["teacher/job.toml", "teacher/report.json"]);
        assert_eq!(set_aside(&out, &["bees"]).unwrap(), None, "models of others lie beside each other");
        assert_eq!(set_aside(&out, &["teacher", "student"]).unwrap(), Some(dir.path().join("ants.2")));
        assert!(dir.path().join("ants.2/teacher/report.json").exists() && first.exists());
    }

    #[test]
    fn a_link_stays_and_what_it_leads_to_is_moved() {
        let dir = tempfile::tempdir().unwrap();
        let (big, link) = (dir.path().join("big/ants"), dir.path().join("ants"));
        std::fs::create_dir_all(&big).unwrap();
        std::os::unix::fs::symlink(&big, &link).unwrap();
        for (n, out) in [(1, link.clone()), (2, link.join(""))] {
            fill(&big, &["job.toml", "report.json"]);
            let said = make_room(&out, &[]).unwrap();
            assert!(said.contains(&format!("big/ants.{n}` now")), "{said}");
            assert!(link.is_symlink() && big.read_dir().unwrap().next().is_none());
            assert!(dir.path().join(format!("big/ants.{n}/report.json")).exists());
        }
    }

    #[test]
    fn what_cannot_be_moved_stays_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        // With a number behind it, the name is longer than Linux's 255 bytes.
        let out = dir.path().join("a".repeat(255));
        fill(&out, &["job.toml", "report.json"]);
        let said = make_room(&out, &[]).unwrap();
        assert!(said.contains("is not moved aside") && said.contains("written over"), "{said}");
        assert!(out.join("report.json").exists());
    }

    #[test]
    fn a_folder_that_one_is_in_is_refused_if_it_would_be_moved() {
        let dir = tempfile::tempdir().unwrap();
        let (out, inner) = (dir.path().join("out"), dir.path().join("out/inner"));
        std::fs::create_dir_all(&inner).unwrap();
        check_from(&inner, &out, &[]).unwrap();
        fill(&out, &["job.toml", "report.json"]);
        for here in [&out, &inner] {
            let error = check_from(here, &out, &[]).unwrap_err();
            assert!(error.to_string().contains("an earlier job") && error.hint().contains("--out"), "{error}");
        }
        check_from(dir.path(), &out, &[]).unwrap();
    }
}
