//! An earlier model where the files of a job are to go: it is moved aside, so that files of both never lie together.

use std::path::{Path, PathBuf};

use crate::Error;

/// What every job leaves, whatever else: weights alone may be somebody's own.
const LEFT: [&str; 2] = ["job.toml", "report.json"];

/// Whether a job has left files in a folder, or a step of a job in one of its folders.
fn is_used(dir: &Path) -> bool {
    let left = |dir: &Path| LEFT.iter().all(|name| dir.join(name).exists());
    left(dir) || std::fs::read_dir(dir).into_iter().flatten().flatten().any(|step| left(&step.path()))
}

/// Looks, before anything is started, whether what lies in a folder can be moved aside.
///
/// # Errors
/// Files of an earlier job in a folder that this process is in.
#[cfg(feature = "local")]
pub(super) fn check(dir: &Path) -> Result<(), Error> {
    std::env::current_dir().map_or(Ok(()), |here| check_from(&here, dir))
}

#[cfg(any(feature = "local", test))]
fn check_from(here: &Path, dir: &Path) -> Result<(), Error> {
    let inside = here.canonicalize().ok().zip(dir.canonicalize().ok()).is_some_and(|(here, dir)| here.starts_with(dir));
    if inside && is_used(dir) {
        return Err(Error::input(
            format!("`{}` has the files of an earlier job, and cannot be moved aside from within", dir.display()),
            "give another folder: `--out FOLDER`",
        ));
    }
    Ok(())
}

/// Moves a folder with the files of an earlier job to the first free of `NAME.1`, `NAME.2` and so on, and says where that is;
/// any other folder stays.
///
/// # Errors
/// The disk refuses.
pub(super) fn set_aside(dir: &Path) -> Result<Option<PathBuf>, Error> {
    if !is_used(dir) {
        return Ok(None);
    }
    let Some(name) = dir.file_name() else { return Ok(None) };
    let numbered = |n: u32| {
        let mut name = name.to_owned();
        name.push(format!(".{n}"));
        dir.with_file_name(name)
    };
    let free = (1..).map(numbered).find(|path| path.symlink_metadata().is_err());
    let Some(free) = free else { return Ok(None) };
    std::fs::rename(dir, &free).map_err(Error::file(dir))?;
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
        assert_eq!(set_aside(&out).unwrap(), None, "nothing is there");
        fill(&out, &["notes.txt", "job.toml", "weights/model.safetensors"]);
        assert_eq!(set_aside(&out).unwrap(), None, "it is somebody's own folder");
        fill(&out, &["report.json", "adapter_config.json"]);
        let first = dir.path().join("ants.1");
        assert_eq!(set_aside(&out).unwrap().as_ref(), Some(&first));
        assert!(!out.exists() && first.join("adapter_config.json").exists() && first.join("notes.txt").exists());
        // Of a pipeline, each step has its own.
        fill(&out, &["teacher/job.toml", "teacher/report.json"]);
        assert_eq!(set_aside(&out).unwrap(), Some(dir.path().join("ants.2")));
        assert!(dir.path().join("ants.2/teacher/report.json").exists() && first.exists());
    }

    #[test]
    fn a_folder_that_one_is_in_is_refused_if_it_would_be_moved() {
        let dir = tempfile::tempdir().unwrap();
        let (out, inner) = (dir.path().join("out"), dir.path().join("out/inner"));
        std::fs::create_dir_all(&inner).unwrap();
        check_from(&inner, &out).unwrap();
        fill(&out, &["job.toml", "report.json"]);
        for here in [&out, &inner] {
            let error = check_from(here, &out).unwrap_err();
            assert!(error.to_string().contains("an earlier job") && error.hint().contains("--out"), "{error}");
        }
        check_from(dir.path(), &out).unwrap();
    }
}
