//! Which files a job may name: those below the roots that the operator of the node has allowed.

use std::path::{Path, PathBuf};

use tl_proto::{failure::Failure, spec::JobSpec};

/// Folders that jobs may read.
#[derive(Clone, Debug, Default)]
pub struct Roots(Vec<PathBuf>);

impl Roots {
    /// Opens the folders; links are resolved once, here.
    ///
    /// # Errors
    /// A folder that is not there.
    pub fn open(folders: &[PathBuf]) -> Result<Self, String> {
        let resolve = |f: &PathBuf| {
            let found = f.canonicalize().map_err(|e| format!("data root `{}` cannot be used: {e}", f.display()))?;
            if found.is_dir() { Ok(found) } else { Err(format!("data root `{}` is no folder", f.display())) }
        };
        Ok(Self(folders.iter().map(resolve).collect::<Result<_, _>>()?))
    }

    /// Whether every path of a job is there and allowed.
    ///
    /// # Errors
    /// Names the first path that is not.
    pub fn check(&self, spec: &JobSpec) -> Result<(), Failure> {
        // Pushed data sets and what comes from the hub lie where the agent has put them.
        let mut paths = spec.places().filter(|(_, place)| JobSpec::is_path(place));
        paths.try_for_each(|(key, path)| self.allows(key, path))
    }

    fn allows(&self, key: &str, path: &str) -> Result<(), Failure> {
        if !Path::new(path).is_absolute() {
            let hint = "write it from the root on; nodes do not share your current folder";
            return Err(Failure::user(format!("`{key}` is the relative path `{path}`"), hint));
        }
        // A path outside the roots is refused in the same words whether it exists or not.
        let outside = || {
            let known: Vec<String> = self.0.iter().map(|r| r.display().to_string()).collect();
            let hint = if known.is_empty() {
                "start `tl-worker` with `--data-root FOLDER`".to_owned()
            } else {
                format!("allowed on this node: {}", known.join(", "))
            };
            Failure::user(format!("`{key}`: `{path}` is not below a data root of the node"), hint)
        };
        match Path::new(path).canonicalize() {
            Ok(real) if self.0.iter().any(|r| real.starts_with(r)) => Ok(()),
            Ok(_) => Err(outside()),
            Err(e) if self.0.iter().any(|r| Path::new(path).starts_with(r)) => {
                Err(Failure::user(format!("`{key}`: `{path}` cannot be opened: {e}"), "check the path on the node"))
            }
            Err(_) => Err(outside()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_that_a_list_begins_from_lies_below_the_roots_too() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("in");
        std::fs::create_dir_all(inside.join("images")).unwrap();
        std::fs::write(inside.join("list.txt"), "1.png a\n").unwrap();
        let roots = Roots::open(std::slice::from_ref(&inside)).unwrap();
        let says = |root: &Path| {
            let list = inside.join("list.txt");
            let data = format!(
                "data = {{ format = \"image_folder\", train = {list:?}, val = {list:?}, batch = 4, \
                 params = {{ val_root = {root:?} }} }}"
            );
            let stage = "[[stage]]\nname = \"s\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.1\n";
            let job = format!("schema = 1\njob = {{ name = \"t\", kind = \"finetune\" }}\n{data}\n{stage}");
            roots.check(&JobSpec::from_toml(&job, &[]).unwrap()).map_err(|f| f.message)
        };
        assert_eq!(says(&inside.join("images")), Ok(()));
        for root in [inside.join(".."), inside.join("images/../.."), "/etc".into()] {
            let error = says(&root).unwrap_err();
            assert!(error.contains("`data.params.val_root`") && error.contains("not below a data root"), "{error}");
        }
    }

    #[test]
    fn links_and_dots_do_not_lead_out_of_the_roots() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir_all(inside.join("photos")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        let roots = Roots::open(std::slice::from_ref(&inside)).unwrap();
        let says = |path: &Path| roots.allows("data.train", &path.display().to_string()).map_err(|f| f.message);
        assert_eq!(says(&inside.join("photos")), Ok(()));
        for path in [inside.join("link"), inside.join("../out"), "/etc/passwd".into(), "/etc/no-such".into()] {
            assert!(says(&path).unwrap_err().contains("not below a data root"), "{}", path.display());
        }
        assert!(says(&inside.join("missing")).unwrap_err().contains("cannot be opened"));
        assert!(says(Path::new("photos")).unwrap_err().contains("relative path"));
        assert!(Roots::open(&[dir.path().join("none")]).is_err());
    }
}
