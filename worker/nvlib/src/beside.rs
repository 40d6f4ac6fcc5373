//! What a library of NVIDIA's opens by a bare name, and needs beside it.
//!
//! The loader looks for such a name where the library says (RPATH, RUNPATH), where the system keeps its libraries, and among
//! those that are open already. Not every release says where: NVRTC 12.9 and 13.5 do, 13.0 does not, and compiles nothing then.
//! So what lies beside a library that was found in a folder is opened before it, from that folder.
//!
//! cuDNN's own parts are not: its wheels say where they are, and a process needs few of what is half a gigabyte. For cuBLAS and
//! NVRTC it looks where the wheels of one folder have them, so these two are opened before it ([`Library::open`]).

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use libloading::os::unix;

use crate::{Library, library::load};

/// What the files are called, up to a version.
const fn stem(of: Library) -> Option<&'static str> {
    match of {
        // NCCL asks for that.
        Library::Driver => Some("libnvidia-ml.so."),
        Library::Cublas => Some("libcublasLt.so."),
        Library::Nvrtc => Some("libnvrtc-builtins.so."),
        Library::Nccl | Library::Cudnn => None,
    }
}

/// Opens what a library needs that is about to be opened from a file. What cannot be is missed by the library, which says so.
pub(crate) fn open(of: Library, path: &Path) -> Vec<unix::Library> {
    files(of, path).iter().filter_map(|file| load(file).ok()).collect()
}

/// The files of the library's age in its folder, and, where that has a link to it, in that of its target; none of a library that
/// was asked for by name alone: then the system knows where they are, too.
fn files(of: Library, path: &Path) -> BTreeSet<PathBuf> {
    let age = |name: &str| Some(name.split_once(".so.")?.1.split('.').next()?.to_owned());
    let named = path.file_name().and_then(|name| age(&name.to_string_lossy()));
    let (Some(stem), Some(age)) = (stem(of), named) else { return BTreeSet::new() };
    let wanted = format!("{stem}{age}");
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix(&wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let target = path.canonicalize().ok();
    let folders = [Some(path), target.as_deref()].into_iter().flatten().filter_map(Path::parent);
    let listed = folders.filter(|folder| !folder.as_os_str().is_empty()).filter_map(|folder| folder.read_dir().ok());
    let found = listed.flatten().flatten().map(|entry| entry.path()).filter(is_one);
    found.filter_map(|file| file.canonicalize().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::{ffi::c_int, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn what_is_of_another_age_or_another_kind_is_left_alone_and_links_are_followed() {
        let (dir, links) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = dir.path().canonicalize().unwrap();
        for name in [
            "libnvrtc.so.13",
            "libnvrtc-builtins.so.13.0.88",
            "libnvrtc-builtins.so.12.9",
            "libnvrtc-builtins.so.130.0",
            "libnvrtc-builtins.alt.so.13.0",
            "libcublasLt.so.13",
            "libnvidia-ml.so.1",
        ] {
            std::fs::write(root.join(name), "").unwrap();
        }
        symlink("libnvrtc-builtins.so.13.0.88", root.join("libnvrtc-builtins.so.13.0")).unwrap();
        symlink(root.join("libnvrtc.so.13"), links.path().join("libnvrtc.so.13")).unwrap();
        let found = |of, path: PathBuf| files(of, &path).into_iter().collect::<Vec<_>>();
        let builtins = [root.join("libnvrtc-builtins.so.13.0.88")];
        for folder in [root.as_path(), links.path()] {
            assert_eq!(found(Library::Nvrtc, folder.join("libnvrtc.so.13")), builtins);
        }
        assert_eq!(found(Library::Cublas, root.join("libcublas.so.13")), [root.join("libcublasLt.so.13")]);
        assert!(found(Library::Cublas, root.join("libcublas.so.12")).is_empty());
        assert_eq!(found(Library::Driver, root.join("libcuda.so.1")), [root.join("libnvidia-ml.so.1")]);
        assert!(found(Library::Nvrtc, "libnvrtc.so.13".into()).is_empty());
    }

    #[test]
    #[expect(unsafe_code, reason = "calls a function of a library")]
    fn a_compiler_finds_the_rest_of_itself_beside_it_and_not_where_it_is_not() {
        if load(Path::new("libnvrtc-builtins.so.13.0")).is_ok() {
            eprintln!("left out: the system's loader knows where the rest of a compiler is");
            return;
        }
        let (whole, part) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        crate::fake::build_computing(whole.path()).unwrap();
        std::fs::copy(whole.path().join("libnvrtc.so.13"), part.path().join("libnvrtc.so.13")).unwrap();
        // It finds the rest if any file of it is open in this process, so who has it comes last.
        for (dir, want) in [(&part, 0), (&whole, 1)] {
            let found = Library::Nvrtc.find(None, &[dir.path().into()], &[]).unwrap();
            // SAFETY: that is its type in `nvrtc.c`.
            let has_rest = unsafe { found.function::<unsafe extern "C" fn() -> c_int>("fake_has_rest") }.unwrap();
            // SAFETY: it looks for a file.
            assert_eq!(unsafe { has_rest() }, want);
        }
    }
}
