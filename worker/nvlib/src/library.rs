//! One library: its names, where it is looked for, and what is said if it is not there.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use libloading::os::unix;

use crate::{beside, driver::CudaVersion};

/// Folders that are looked in before all others, separated by colons.
const FIRST: &str = "NVLIB_PATH";
/// Folders where drivers and toolkits lie without being known to the system's loader: containers of Kubernetes, WSL, NixOS,
/// a toolkit of its own installer.
const KNOWN: [&str; 5] = [
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
    "/usr/local/cuda/lib64",
];

/// A library of NVIDIA's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// The driver's half in user space.
    Driver,
    /// Collectives between GPUs.
    Nccl,
    /// Products of matrices.
    Cublas,
    /// Convolutions.
    Cudnn,
    /// The compiler of kernels.
    Nvrtc,
}

impl Library {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Driver, Self::Nccl, Self::Cublas, Self::Cudnn, Self::Nvrtc];

    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Driver => "the NVIDIA driver",
            Self::Nccl => "NCCL",
            Self::Cublas => "cuBLAS",
            Self::Cudnn => "cuDNN",
            Self::Nvrtc => "NVRTC",
        }
    }

    /// File names by which it is asked for, the best one first.
    pub const fn sonames(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &["libcuda.so.1"],
            Self::Nccl => &["libnccl.so.2"],
            Self::Cublas => &["libcublas.so.13", "libcublas.so.12"],
            Self::Cudnn => &["libcudnn.so.9"],
            Self::Nvrtc => &["libnvrtc.so.13", "libnvrtc.so.12"],
        }
    }

    /// The same: those that fit a driver, and those that are made for a newer CUDA than it knows.
    fn sonames_for(self, newest: Option<CudaVersion>) -> [Vec<&'static str>; 2] {
        let major = |name: &str| name.rsplit('.').next().and_then(|major| major.parse::<u32>().ok());
        let too_new = |name: &str| newest.is_some_and(|cuda| major(name).is_some_and(|major| major > cuda.major));
        let (newer, fitting) = self.sonames().iter().copied().partition(|name| self.follows_cuda() && too_new(name));
        [fitting, newer]
    }

    /// Whether its versions are those of CUDA.
    const fn follows_cuda(self) -> bool {
        matches!(self, Self::Cublas | Self::Nvrtc)
    }

    /// The library, opened by the first call that finds it and never closed, as is what it opens by itself and needs beside it.
    ///
    /// # Errors
    /// It is not there, or not one that this machine can load. The next call looks again.
    pub fn open(self) -> Result<&'static Opened, Missing> {
        self.open_from(&[])
    }

    /// The same, looking in some folders before all others.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_from(self, folders: &[PathBuf]) -> Result<&'static Opened, Missing> {
        static OPENED: [OnceLock<Opened>; Library::ALL.len()] = [const { OnceLock::new() }; Library::ALL.len()];
        let place = &OPENED[self as usize];
        if let Some(opened) = place.get() {
            return Ok(opened);
        }
        if self == Self::Cudnn {
            // It asks for these two by name, and has them where they are open.
            for other in [Self::Cublas, Self::Nvrtc] {
                let _ = other.open_from(folders);
            }
        }
        let mut first = folders.to_vec();
        first.extend(std::env::var_os(FIRST).iter().flat_map(std::env::split_paths));
        let driver = if self.follows_cuda() { Self::Driver.open_from(folders).ok() } else { None };
        let opened = self.find(driver.and_then(CudaVersion::newest), &first, &KNOWN.map(PathBuf::from))?;
        // Who was faster at the same moment has opened the same file: its handle is as good.
        Ok(place.get_or_init(|| opened))
    }

    /// Looks in the folders of `first`, with the system's loader, and in those of `last`: for what fits a driver that knows this
    /// CUDA, and only then, again everywhere, for what is too new for it.
    pub(crate) fn find(
        self,
        newest: Option<CudaVersion>,
        first: &[PathBuf],
        last: &[PathBuf],
    ) -> Result<Opened, Missing> {
        let within = |folders: &[PathBuf], names: &[&str]| -> Vec<PathBuf> {
            let all = folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
            all.filter(|path| path.exists()).collect()
        };
        let mut reasons = Vec::new();
        for names in self.sonames_for(newest) {
            let by_name = names.iter().map(PathBuf::from);
            let tries = within(first, &names).into_iter().chain(by_name).chain(within(last, &names));
            for path in tries {
                let asked = names.iter().find(|name| path == Path::new(name));
                let beside = beside::open(self, &path);
                match load(&path) {
                    Ok(handle) => {
                        return Ok(Opened { library: self, path: whereabouts(&path), handle, _beside: beside });
                    }
                    // That the loader does not know the name either is said once, below; that it misses something that the
                    // library itself needs is a reason.
                    Err(why) if asked.is_some_and(|name| why.starts_with(&format!("{name}: "))) => {}
                    Err(why) => reasons.push(format!("`{}` cannot be opened: {why}", path.display())),
                }
            }
        }
        let shown = |folders: &[PathBuf]| folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>();
        let mut looked_in = shown(first);
        looked_in.push("the system's library path".into());
        looked_in.extend(shown(last));
        Err(Missing { library: self, looked_in, reasons })
    }
}

#[expect(unsafe_code, reason = "a library may run code when it is loaded")]
pub(crate) fn load(path: &Path) -> Result<unix::Library, String> {
    // SAFETY: only names of NVIDIA's libraries are asked for; what they run when loaded (and what the operator of the
    // machine has put in their place) is theirs to answer for. They are never unloaded.
    unsafe { unix::Library::open(Some(path), unix::RTLD_NOW | unix::RTLD_LOCAL) }.map_err(|e| {
        let source = std::error::Error::source(&e);
        source.map_or_else(|| e.to_string(), ToString::to_string)
    })
}

/// Where the loader has found what it was asked for by name.
fn whereabouts(asked: &Path) -> PathBuf {
    if asked.is_absolute() {
        return asked.to_owned();
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let stem = asked.to_string_lossy().into_owned();
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let mut ours = paths.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&stem)));
    ours.next().unwrap_or(asked).to_owned()
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A library that is there.
#[derive(Debug)]
pub struct Opened {
    library: Library,
    path: PathBuf,
    handle: unix::Library,
    /// What it opens by itself.
    _beside: Vec<unix::Library>,
}

impl Opened {
    /// Which one.
    pub fn library(&self) -> Library {
        self.library
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A function of it.
    ///
    /// # Safety
    /// `F` must be the type that the library's documentation gives the function, as `unsafe extern "C" fn`.
    ///
    /// # Errors
    /// This version has no such function.
    #[expect(unsafe_code, reason = "the type of a symbol cannot be checked")]
    pub unsafe fn function<F: Copy>(&self, name: &'static str) -> Result<F, NoSymbol> {
        // SAFETY: the caller vouches for the type. The handle is never closed, so the address stays good.
        let found = unsafe { self.handle.get::<F>(name.as_bytes()) };
        found.map(|f| *f).map_err(|_| NoSymbol { path: self.path.clone(), name })
    }
}

/// A library is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which one.
    pub library: Library,
    /// Folders, in the order in which they were looked in.
    pub looked_in: Vec<String>,
    /// Files that are there and cannot be opened, with the loader's reason.
    pub reasons: Vec<String>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.library.sonames().join(" or ");
        write!(f, "{} ({names}) was not found in {}", self.library, self.looked_in.join(", "))?;
        self.reasons.iter().try_for_each(|why| write!(f, "; {why}"))
    }
}

impl std::error::Error for Missing {}

/// A library has no such function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` has no function `{name}`: it is too old", path.display())]
pub struct NoSymbol {
    /// The file.
    pub path: PathBuf,
    /// The function.
    pub name: &'static str,
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_not_there_is_named_with_the_places_that_were_looked_in() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Library::Cublas.find(None, &[dir.path().into()], &["/nowhere".into()]).unwrap_err();
        let text = missing.to_string();
        assert!(text.starts_with("cuBLAS (libcublas.so.13 or libcublas.so.12) was not found in "), "{text}");
        assert!(text.contains(&dir.path().display().to_string()) && text.ends_with("/nowhere"), "{text}");
        assert_eq!(missing.reasons, [""; 0]);
    }

    #[test]
    fn a_file_that_is_no_library_is_named_with_the_loaders_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libnccl.so.2");
        std::fs::write(&path, "not an ELF file").unwrap();
        for folders in [[vec![dir.path().into()], vec![]], [vec![], vec![dir.path().into()]]] {
            let missing = Library::Nccl.find(None, &folders[0], &folders[1]).unwrap_err();
            assert_eq!(missing.reasons.len(), 1, "{missing}");
            assert!(missing.to_string().contains(&format!("`{}` cannot be opened: ", path.display())), "{missing}");
        }
    }

    #[test]
    fn an_older_driver_gets_the_libraries_of_its_age() {
        let names = |library: Library, major| library.sonames_for(Some(CudaVersion { major, minor: 9 }));
        assert_eq!(names(Library::Cublas, 12), [["libcublas.so.12"], ["libcublas.so.13"]]);
        assert_eq!(names(Library::Nvrtc, 12), [["libnvrtc.so.12"], ["libnvrtc.so.13"]]);
        for newest in [Some(CudaVersion { major: 13, minor: 0 }), Some(CudaVersion { major: 14, minor: 0 }), None] {
            assert_eq!(Library::Cublas.sonames_for(newest), [Library::Cublas.sonames(), &[]], "{newest:?}");
        }
        for other in [Library::Driver, Library::Nccl, Library::Cudnn] {
            assert_eq!(names(other, 1), [other.sonames(), &[]]);
        }
    }

    /// Says to a process of these tests where the files of the next one lie.
    const FILES: &str = "NVLIB_TEST_FILES";

    #[test]
    fn a_folder_that_is_named_comes_before_the_loader_and_what_fits_the_driver_before_what_is_too_new() {
        let Some(root) = std::env::var_os(FILES).map(PathBuf::from) else {
            return in_a_process_whose_loader_knows_a_newer_one();
        };
        let found = |major, first: &str| {
            let newest = Some(CudaVersion { major, minor: 0 });
            let opened = Library::Cublas.find(newest, &[root.join(first)], &[root.join("last")]).unwrap();
            opened.path().strip_prefix(&root).unwrap().display().to_string()
        };
        // First, since the file is told by what is open.
        assert_eq!(found(13, "none"), "loader/libcublas.so.13");
        assert_eq!(found(13, "old"), "old/libcublas.so.12");
        assert_eq!([12, 13].map(|major| found(major, "both")), ["both/libcublas.so.12", "both/libcublas.so.13"]);
        assert_eq!(found(12, "new"), "last/libcublas.so.12");
        assert_eq!(found(11, "new"), "new/libcublas.so.13");
    }

    fn in_a_process_whose_loader_knows_a_newer_one() {
        if load(Path::new("libcublas.so.12")).is_ok() {
            eprintln!("left out: the system's loader knows a cuBLAS");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        crate::fake::build(&root).unwrap();
        for name in ["old/12", "both/12", "both/13", "new/13", "loader/13", "last/12"] {
            let (folder, version) = name.split_once('/').unwrap();
            std::fs::create_dir_all(root.join(folder)).unwrap();
            let file = root.join(folder).join(format!("libcublas.so.{version}"));
            std::fs::copy(root.join("libnccl.so.2"), file).unwrap();
        }
        let mut again = Command::new(std::env::current_exe().unwrap());
        let name = "a_folder_that_is_named_comes_before_the_loader_and_what_fits_the_driver_before_what_is_too_new";
        again.args(["--exact", &format!("library::tests::{name}")]);
        let ended = again.env(FILES, &root).env("LD_LIBRARY_PATH", root.join("loader")).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    #[expect(unsafe_code, reason = "asks for addresses")]
    fn a_second_file_of_the_same_library_is_told_from_the_one_that_was_opened() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&dir, &other] {
            crate::fake::build(dir.path()).unwrap();
        }
        let find = |dir: &Path| Library::Nccl.find(None, &[dir.into()], &[]).unwrap();
        let (opened, second) = (find(dir.path()), find(other.path()));
        // SAFETY: addresses, which nobody calls.
        let [own, strange] = [&opened, &second]
            .map(|library| unsafe { library.function::<*const std::ffi::c_void>("ncclGetVersion") }.unwrap());
        opened.expect("ncclGetVersion", own).unwrap();
        let elsewhere = opened.expect("ncclGetVersion", strange).unwrap_err();
        let path = |dir: &tempfile::TempDir| dir.path().canonicalize().unwrap().join("libnccl.so.2");
        assert_eq!((elsewhere.library, elsewhere.called), (Library::Nccl, path(&other)));
        assert_eq!(elsewhere.opened.canonicalize().unwrap(), path(&dir));
        // One that the library does not have is another one's.
        assert!(opened.expect("no_such_function", own).is_err());
    }

    #[test]
    fn every_library_has_a_place_of_its_own() {
        for (at, library) in Library::ALL.into_iter().enumerate() {
            assert_eq!(library as usize, at);
        }
    }
}
