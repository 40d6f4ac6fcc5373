//! The report for people.

use std::fmt;

use super::{Check, Report};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.hardware;
        writeln!(f, "tl-worker {}, {} CUDA", self.version, if self.cuda_build { "with" } else { "built without" })?;
        writeln!(f, "machine   {} (vectors: {})", machine.summary(), machine.vector)?;
        for gpu in &machine.gpus {
            let memory = gpu.memory as f64 / f64::from(1 << 30);
            writeln!(f, "GPU {}     {}, {memory:.0} GiB, compute {}, {}", gpu.index, gpu.name, gpu.compute, gpu.uuid)?;
        }
        if !machine.driver.is_empty() {
            writeln!(f, "driver    {}, CUDA {} at most", machine.driver, machine.cuda)?;
        }
        for library in &self.libraries {
            match (library.path.as_str(), library.problem.as_str()) {
                ("", problem) => writeln!(f, "missing   {problem}")?,
                (path, "") => writeln!(f, "library   {} {} ({path})", library.name, library.version)?,
                (path, problem) => {
                    writeln!(f, "library   {} {} ({path}): {problem}", library.name, library.version)?;
                }
            }
        }
        if self.cuda_build && !machine.note.is_empty() {
            writeln!(f, "GPUs      not used: {}", machine.note)?;
        }
        if self.data_roots.is_empty() {
            writeln!(f, "data      no root: jobs may read no folder; give some with `--data-root`")?;
        }
        for root in &self.data_roots {
            let (path, problem) = (root.path.display(), root.problem.as_str());
            if problem.is_empty() {
                writeln!(f, "data      {path}")?
            } else {
                writeln!(f, "data      FAILED: {problem}")?
            }
        }
        let width = self.checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
        self.checks.iter().try_for_each(|check| line(f, check, width))?;
        writeln!(f, "{}", if self.ok { "all is well" } else { "something is wrong, see above" })
    }
}

fn line(f: &mut fmt::Formatter<'_>, check: &Check, width: usize) -> fmt::Result {
    match check.value {
        Some(value) => writeln!(f, "check     {:width$}  {value:.1} {}", check.name, check.unit),
        None if check.ok => writeln!(f, "check     {:width$}  {}", check.name, check.problem),
        None => writeln!(f, "check     {:width$}  FAILED: {}", check.name, check.problem),
    }
}
