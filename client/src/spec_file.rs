//! A job file, ready to be sent: steps of a pipeline put in, paths made absolute.

use std::path::{Path, PathBuf};

use tl_proto::{
    MAX_SPEC_BYTES,
    catalog::Catalog,
    spec::{JobSpec, StepSection},
};

use crate::Error;

/// Reads a job file, replaces keys (`a.b=c`), puts in the files of pipeline steps, writes out baselines and seeds, and makes
/// paths absolute. The catalog says which modifiers go with a baseline.
///
/// The seed of a pipeline, or each of its `seeds`, is added to those of its steps. A relative path is looked for beside the job file, then in the current folder.
///
/// # Errors
/// The first thing that is wrong, with its file and place.
pub fn load(path: &Path, overrides: &[String], catalog: &Catalog) -> Result<JobSpec, Error> {
    let mut spec = read(path, overrides)?;
    let base = path.parent().unwrap_or(Path::new(""));
    for step in &mut spec.step {
        fill(step, base)?;
        if let Some(inner) = step.spec.as_mut().filter(|_| spec.job.seeds.is_empty()) {
            inner.job.seed = inner.job.seed.wrapping_add(spec.job.seed);
        }
    }
    if !spec.step.is_empty() && spec.job.seeds.is_empty() {
        // The seeds are those of the steps now: what is written out and read again is the same job.
        spec.job.seed = 0;
    }
    spec.write_out_runs(catalog).map_err(|e| Error::input(format!("{}: {e}", path.display()), e.hint))?;
    absolute(&mut spec, base);
    Ok(spec)
}

fn read(path: &Path, overrides: &[String]) -> Result<JobSpec, Error> {
    let shown = path.display();
    let size = std::fs::metadata(path).map_err(|e| {
        Error::input(format!("`{shown}` cannot be read: {e}"), "`tlctl init` writes a job file to start from")
    })?;
    if size.len() > MAX_SPEC_BYTES as u64 {
        return Err(Error::input(
            format!("`{shown}` has {} bytes, more than the limit of {MAX_SPEC_BYTES}", size.len()),
            "a job file names its data, it does not hold it",
        ));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::input(format!("`{shown}` cannot be read: {e}"), "a job file is text"))?;
    JobSpec::from_toml(&text, overrides).map_err(|e| Error::input(format!("{shown}: {e}"), e.hint))
}

fn fill(step: &mut StepSection, base: &Path) -> Result<(), Error> {
    let Some(file) = step.job.take() else { return Ok(()) };
    if step.spec.is_some() {
        return Err(Error::input(format!("step `{}` has both `job` and `spec`", step.id), "keep one of them"));
    }
    let set = |(key, value): (&String, &serde_json::Value)| {
        let value = toml::Value::try_from(value).map(|v| v.to_string()).unwrap_or_default();
        format!("{key}={value}")
    };
    let overrides: Vec<String> = step.set.iter().map(set).collect();
    let path = base.join(file);
    let mut inner = read(&path, &overrides)?;
    absolute(&mut inner, path.parent().unwrap_or(base));
    step.set.clear();
    step.spec = Some(Box::new(inner));
    Ok(())
}

fn absolute(spec: &mut JobSpec, base: &Path) {
    // What was pushed, or lies on the hub, has the same name everywhere. A name that is none is refused as it was meant.
    let plain = |place: &&mut String| JobSpec::is_path(place);
    spec.places_mut().filter(plain).for_each(|place| resolve(place, base));
    for step in &mut spec.step {
        if let Some(inner) = &mut step.spec {
            absolute(inner, base);
        }
    }
}

fn resolve(path: &mut String, base: &Path) {
    let given = PathBuf::from(&*path);
    let beside = base.join(&given);
    let found = if !beside.exists() && given.exists() { given } else { beside };
    // Dots are kept where nothing is there: the node's refusal shows the path as it was meant.
    let whole = found.canonicalize().or_else(|_| std::path::absolute(&found));
    if let Ok(whole) = whole {
        *path = whole.display().to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(path: &Path, overrides: &[String]) -> Result<JobSpec, Error> {
        super::load(path, overrides, &Catalog::default())
    }

    const INNER: &str = r#"
schema = 1
job = { name = "t", kind = "finetune" }
data = { format = "image_folder", train = "photos", val = "photos", batch = 8 }
model = { backbone = "small_cnn" }
stage = [{ name = "all", epochs = 1, train = ["*"], lr = 0.1 }]
"#;

    #[test]
    fn a_pipeline_takes_its_steps_from_files_beside_it_with_keys_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("photos")).unwrap();
        std::fs::write(dir.path().join("inner.toml"), INNER).unwrap();
        let outer = r#"
schema = 1
job = { name = "p", kind = "pipeline" }
step = [{ id = "a", job = "inner.toml", set = { "stage.0.lr" = 0.5, "model.weights" = "step:b" } }]
"#;
        std::fs::write(dir.path().join("outer.toml"), outer).unwrap();
        let spec = load(&dir.path().join("outer.toml"), &[]).unwrap();
        let inner = spec.step[0].spec.as_ref().unwrap();
        assert_eq!(inner.stage[0].lr.top(), 0.5);
        assert_eq!(inner.model.as_ref().unwrap().weights.as_deref(), Some("step:b"));
        let photos = dir.path().join("photos").canonicalize().unwrap();
        assert_eq!(inner.data.as_ref().unwrap().train, photos.display().to_string());
        assert!(spec.step[0].job.is_none() && spec.step[0].set.is_empty());
    }

    #[test]
    fn baselines_and_seeds_are_written_out_and_their_paths_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("photos")).unwrap();
        let inner = INNER.replace("backbone = \"small_cnn\"", "backbone = \"small_cnn\", weights = \"step:first\"");
        std::fs::write(dir.path().join("inner.toml"), inner).unwrap();
        let set = |seeds: &str| ["job.baseline=[\"scratch\"]".to_owned(), format!("job.seeds={seeds}")];
        let spec = load(&dir.path().join("inner.toml"), &set("[4, 5]")).unwrap();
        let seeds: Vec<_> = spec.steps().iter().map(|(id, s, _)| ((*id).to_owned(), s.job.seed)).collect();
        let want = [("main", 4), ("scratch", 4), ("main-seed5", 5), ("scratch-seed5", 5)];
        assert_eq!(seeds, want.map(|(id, seed)| (id.to_owned(), seed)));
        let photos = dir.path().join("photos").canonicalize().unwrap().display().to_string();
        assert!(spec.steps().iter().all(|(_, s, _)| s.data.as_ref().unwrap().train == photos));
        let e = load(&dir.path().join("inner.toml"), &["job.baseline=[\"direct\"]".into()]).unwrap_err();
        assert!(e.to_string().contains("inner.toml: `direct` is no baseline"), "{e}");
        // Of a pipeline, the seeds come in place of its own, and are added to those of its steps.
        let outer = "schema = 1\njob = { name = \"p\", kind = \"pipeline\", seed = 9, SEEDS }\n\
                     step = [{ id = \"a\", job = \"inner.toml\", set = { \"job.seed\" = 10 } }]\n";
        for (seeds, want) in [("priority = 0", vec![19]), ("seeds = [1, 2]", vec![11, 12])] {
            std::fs::write(dir.path().join("outer.toml"), outer.replace("SEEDS", seeds)).unwrap();
            let spec = load(&dir.path().join("outer.toml"), &[]).unwrap();
            assert_eq!(spec.steps().iter().map(|(_, s, _)| s.job.seed).collect::<Vec<_>>(), want);
            std::fs::write(dir.path().join("again.toml"), spec.to_toml()).unwrap();
            assert_eq!(load(&dir.path().join("again.toml"), &[]).unwrap(), spec, "written out, it is the same job");
        }
    }

    #[test]
    fn an_error_names_the_file_and_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j.toml");
        std::fs::write(&path, INNER.replace("epochs", "epocs")).unwrap();
        let e = load(&path, &[]).unwrap_err();
        assert!(e.to_string().ends_with("j.toml: line 6, column 26: unknown key `epocs`"), "{e}");
        assert_eq!((e.hint(), e.exit_code()), ("did you mean `epochs`?", 2));
        std::fs::write(&path, vec![b'#'; MAX_SPEC_BYTES + 1]).unwrap();
        assert!(load(&path, &[]).unwrap_err().to_string().contains("more than the limit"));
    }
}
