//! Places that a job names: paths on the nodes, data sets that were pushed to the blob store, weights on the hub.

use serde_json::Value;

use super::{DataSection, Handed, Hub, JobSpec, Params, SpecError, TaskSection};

/// The format whose places are names of tasks.
const GENERATED: &str = "generated";

/// What the name of a pushed data set begins with.
const SCHEME: &str = "data:";

/// Parameters of formats that are places.
pub(super) const PLACED: [&str; 2] = ["root", "val_root"];

/// The keys of these in a task.
const TASK: [&str; 2] = ["tasks.*.params.root", "tasks.*.params.val_root"];

/// Places among the parameters of a format, under the keys that a job has for them.
fn placed<'a>(keys: [&'static str; 2], params: &'a Params) -> impl Iterator<Item = (&'static str, &'a String)> {
    keys.into_iter().zip(PLACED).filter_map(move |(key, name)| match params.get(name) {
        Some(Value::String(place)) if !place.is_empty() => Some((key, place)),
        _ => None,
    })
}

/// The same, to be changed.
fn placed_mut(params: &mut Params) -> impl Iterator<Item = &mut String> {
    params.iter_mut().filter(|(name, _)| PLACED.contains(&name.as_str())).filter_map(|(_, value)| match value {
        Value::String(place) if !place.is_empty() => Some(place),
        _ => None,
    })
}

/// A place in a data set that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed<'a> {
    /// SHA-256 of its archive: 64 lower-case hexadecimal digits.
    pub digest: &'a str,
    /// The folder or file in it; empty for all of it.
    pub inside: &'a str,
}

impl<'a> Pushed<'a> {
    /// Reads `data:DIGEST` or `data:DIGEST/FOLDER`; `None` for a plain path.
    ///
    /// # Errors
    /// A digest that is none, or a folder that leads out of the data set.
    pub fn parse(place: &'a str) -> Result<Option<Self>, SpecError> {
        let Some(rest) = place.strip_prefix(SCHEME) else { return Ok(None) };
        let (digest, inside) = rest.split_once('/').unwrap_or((rest, ""));
        let hex = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !hex {
            let hint = "`tlctl data push FOLDER` prints the name to use, and `tlctl data ls` lists them";
            return Err(SpecError::new(format!("`{place}` is not the name of a pushed data set"), hint));
        }
        if inside.split('/').any(|part| part == "..") || inside.starts_with('/') {
            return Err(SpecError::new(
                format!("`{place}` leads out of its data set"),
                "name a folder inside, without `..`",
            ));
        }
        Ok(Some(Self { digest, inside }))
    }

    /// The name of a data set.
    pub fn name(digest: &str) -> String {
        format!("{SCHEME}{digest}")
    }
}

impl JobSpec {
    /// Places that this job (not its steps) names, with their keys. Models of steps and jobs are none.
    pub fn places(&self) -> impl Iterator<Item = (&'static str, &String)> {
        self.named().filter(|(_, place)| !Handed::is(place))
    }

    fn named(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let own = self.data.iter().filter(|d| d.format != GENERATED);
        let opens_train = self.opens_train();
        let own = own.flat_map(move |d| {
            let train = Some(("data.train", &d.train)).filter(|(_, place)| opens_train && !place.is_empty());
            let more = placed(["data.params.root", "data.params.val_root"], &d.params);
            train.into_iter().chain([("data.val", &d.val)]).chain(more)
        });
        let target = self.data.iter().filter_map(|d| Some((d, d.target.as_ref()?)));
        let target = target.filter(|(d, t)| t.format.as_ref().unwrap_or(&d.format) != GENERATED);
        let target = target.flat_map(|(_, t)| {
            let more = placed(["data.target.params.root", "data.target.params.val_root"], &t.params);
            let own = std::iter::once(("data.target.train", &t.train));
            own.chain(t.val.as_ref().map(|v| ("data.target.val", v))).chain(more)
        });
        let source = self.data.iter().filter_map(|d| Some((d, d.source.as_ref()?)));
        let source = source.filter(|(d, s)| s.format.as_ref().unwrap_or(&d.format) != GENERATED);
        let source = source.flat_map(|(_, s)| {
            let more = placed(["data.source.params.root", "data.source.params.val_root"], &s.params);
            s.train.iter().map(|t| ("data.source.train", t)).chain([("data.source.val", &s.val)]).chain(more)
        });
        let pairs = self.data.iter().filter_map(|d| d.pairs.as_ref()).filter(|p| p.format != GENERATED);
        let pairs = pairs.flat_map(|p| {
            let more = placed(["data.pairs.params.root", "data.pairs.params.val_root"], &p.params);
            let own = std::iter::once(("data.pairs.train", &p.train));
            own.chain(p.val.as_ref().map(|v| ("data.pairs.val", v))).chain(more)
        });
        let tasks = self.tasks.values().filter(move |t| self.has_files(t));
        let tasks = tasks.flat_map(|t| {
            let more = placed(TASK, &t.params);
            let train = t.train.as_ref().map(|p| ("tasks.*.train", p));
            train.into_iter().chain(t.val.as_ref().map(|p| ("tasks.*.val", p))).chain(more)
        });
        let data = own.chain(target).chain(source).chain(pairs).chain(tasks);
        let nets = self.model.iter().map(|m| (["model.weights", "model.adapter"], m));
        let nets = nets.chain(self.nets.values().map(|m| (["nets.*.weights", "nets.*.adapter"], m)));
        let files = nets.flat_map(|(keys, m)| keys.into_iter().zip([m.weights.as_ref(), m.adapter.as_ref()]));
        data.chain(files.filter_map(|(key, place)| Some((key, place?))))
    }

    /// Whether anything opens the training samples: without stages and episodes, a job judges those of `data.val` alone, which
    /// may be a share of them.
    fn opens_train(&self) -> bool {
        let opens = |d: &DataSection| d.episodes.is_some() || d.val_share.is_some();
        !self.stage.is_empty() || self.data.as_ref().is_some_and(opens)
    }

    /// Whether the places of a task are files.
    fn has_files(&self, task: &TaskSection) -> bool {
        let format = task.format.as_ref().or(self.data.as_ref().map(|d| &d.format));
        format.is_none_or(|format| format != GENERATED)
    }

    /// The same, to be changed.
    pub fn places_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let opens_train = self.opens_train();
        let generated = self.data.as_ref().is_some_and(|d| d.format == GENERATED);
        let files = move |t: &&mut TaskSection| t.format.as_ref().map_or(!generated, |format| format != GENERATED);
        let tasks = self.tasks.values_mut().filter(files);
        let tasks = tasks.flat_map(|t| t.train.iter_mut().chain(&mut t.val).chain(placed_mut(&mut t.params)));
        let data = self.data.iter_mut().flat_map(move |d| {
            let DataSection { format, train, val, target, source, pairs, params, .. } = d;
            let source = source.iter_mut().filter(|s| s.format.as_ref().unwrap_or(format) != GENERATED);
            let source = source
                .flat_map(|s| s.train.iter_mut().chain([&mut s.val]).chain(placed_mut(&mut s.params)))
                .collect::<Vec<_>>();
            let target = target.iter_mut().filter(|t| t.format.as_ref().unwrap_or(format) != GENERATED);
            let target = target
                .flat_map(|t| [&mut t.train].into_iter().chain(t.val.as_mut()).chain(placed_mut(&mut t.params)))
                .collect::<Vec<_>>();
            let mut own = match opens_train && !train.is_empty() {
                _ if format == GENERATED => Vec::new(),
                true => vec![train, val],
                false => vec![val],
            };
            if format != GENERATED {
                own.extend(placed_mut(params));
            }
            let pairs = pairs.iter_mut().filter(|p| p.format != GENERATED);
            let pairs = pairs
                .flat_map(|p| [&mut p.train].into_iter().chain(p.val.as_mut()).chain(placed_mut(&mut p.params)))
                .collect::<Vec<_>>();
            own.into_iter().chain(target).chain(source).chain(pairs)
        });
        let nets = self.model.iter_mut().chain(self.nets.values_mut());
        data.chain(tasks)
            .chain(nets.flat_map(|m| m.weights.iter_mut().chain(&mut m.adapter)))
            .filter(|p| !Handed::is(p))
    }

    /// Whether every place that this job (not its steps) names can be one.
    ///
    /// # Errors
    /// Names the first that cannot.
    pub(super) fn check_places(&self) -> Result<(), SpecError> {
        for (key, place) in self.named() {
            let handed = Handed::parse(place)?.is_some();
            if handed && !key.ends_with(".weights") {
                let hint = "write it where weights belong: `model.weights`";
                let key = self.whole_key(key, place);
                return Err(SpecError::new(format!("`{key}` is `{place}`, which only weights can be"), hint));
            }
        }
        for (key, place) in self.places() {
            Pushed::parse(place)?;
            if Hub::parse(place)?.is_some() && !key.ends_with(".weights") {
                let samples = key.starts_with("data.") || key.starts_with("tasks.");
                let what = if samples { "samples" } else { "adapter" };
                let hint =
                    format!("bring the {what} yourself: `tlctl data push FOLDER` gives the folder a name for the job");
                return Err(SpecError::new(format!("`{key}` names `{place}`: only weights come from the hub"), hint));
            }
        }
        Ok(())
    }

    /// The key of a place with the name of the task or the role that it belongs to.
    fn whole_key(&self, key: &str, place: &str) -> String {
        let is = |known: Option<&String>| known.is_some_and(|known| known == place);
        let has = |t: &TaskSection| {
            is(t.train.as_ref()) || is(t.val.as_ref()) || placed(TASK, &t.params).any(|(_, known)| known == place)
        };
        let task = self.tasks.iter().find(|(_, t)| has(t)).map(|(name, _)| name);
        let role = self.nets.iter().find(|(_, m)| is(m.adapter.as_ref())).map(|(role, _)| role);
        let owner = if key.starts_with("tasks.") { task } else { role };
        owner.map_or_else(|| key.to_owned(), |owner| key.replace('*', owner))
    }

    /// Places of weights on the hub, each once.
    pub fn hub(&self) -> Vec<&str> {
        let all = self.places().filter(|(_, place)| matches!(Hub::parse(place), Ok(Some(_))));
        let mut places: Vec<&str> = all.map(|(_, place)| place.as_str()).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// Whether a place is a path on the nodes.
    pub fn is_path(place: &str) -> bool {
        matches!((Pushed::parse(place), Hub::parse(place)), (Ok(None), Ok(None)))
    }

    /// Digests of the pushed data sets that this job (not its steps) needs, each once.
    pub fn pushed(&self) -> Vec<&str> {
        let all = self.places().filter_map(|(_, place)| Pushed::parse(place).ok().flatten());
        let mut digests: Vec<&str> = all.map(|p| p.digest).collect();
        digests.sort_unstable();
        digests.dedup();
        digests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_weights_come_from_the_hub() {
        let check = |model: &str| {
            let job = format!("schema = 1\njob = {{ name = \"t\", kind = \"finetune\" }}\nmodel = {{ {model} }}\n");
            crate::spec::parse(&job).unwrap().check_places().map_err(|e| format!("{}; {}", e.message, e.hint))
        };
        check("backbone = \"bert\", weights = \"hf://a/b\"").unwrap();
        let error = check("backbone = \"bert\", weights = \"w\", adapter = \"hf://a/b\"").unwrap_err();
        assert!(error.contains("`model.adapter` names `hf://a/b`: only weights") && error.contains("adapter yourself"));
    }

    const STAGE: &str = "[[stage]]\nname = \"s\"\nepochs = 1\ntrain = [\"*\"]\nlr = 0.1\n";

    #[test]
    fn models_of_steps_and_jobs_are_weights_and_no_places() {
        let id = crate::ids::JobId::from_bits(1);
        let job = |train: &str, weights: &str| {
            let data = format!("data = {{ format = \"text\", train = \"{train}\", val = \"v\", batch = 4 }}");
            let model = format!("model = {{ backbone = \"bert\", weights = \"{weights}\" }}");
            let head = "schema = 1\njob = { name = \"t\", kind = \"f\" }";
            crate::spec::parse(&format!("{head}\n{data}\n{model}\n{STAGE}")).unwrap()
        };
        for weights in ["step:a".to_owned(), format!("job:{id}"), format!("job:{id}/a")] {
            let spec = job("t", &weights);
            spec.check_places().unwrap();
            assert_eq!(spec.places().map(|(key, _)| key).collect::<Vec<_>>(), ["data.train", "data.val"]);
            let e = job(&weights, "w").check_places().unwrap_err();
            assert!(e.message.contains("`data.train` is") && e.message.contains("only weights"), "{e}");
            let with = |more: &str| {
                let text = format!("{}\n{more}", job("t", "w").to_toml());
                crate::spec::parse(&text).unwrap().check_places().unwrap_err().message
            };
            let task = with(&format!(
                "[tasks.a]\ntrain = \"t\"\nval = \"v\"\n[tasks.b]\ntrain = \"{weights}\"\nval = \"v\"\n"
            ));
            assert!(task.contains("`tasks.b.train` is"), "{task}");
            let net = with(&format!("[nets.teacher]\nbackbone = \"bert\"\nweights = \"w\"\nadapter = \"{weights}\"\n"));
            assert!(net.contains("`nets.teacher.adapter` is"), "{net}");
            let mut own = job("t", "w");
            own.model.as_mut().unwrap().adapter = Some(weights);
            assert!(own.check_places().unwrap_err().message.contains("`model.adapter` is"));
        }
        assert!(job("t", "job:mine").check_places().unwrap_err().message.contains("not the model of a job"));
    }

    #[test]
    fn folders_that_lists_begin_from_are_places_of_every_section() {
        let folders = |name: &str| format!("params = {{ root = \"{name}\", val_root = \"{name}-val\" }}");
        let data = format!(
            "data = {{ format = \"image_folder\", train = \"t\", val = \"v\", batch = 4, {}, \
             target = {{ train = \"a\", {} }}, source = {{ val = \"b\", {} }}, \
             pairs = {{ format = \"text\", train = \"c\", {} }} }}",
            folders("own"),
            folders("target"),
            folders("source"),
            folders("pairs")
        );
        let task = format!("[tasks.a]\ntrain = \"d\"\nval = \"e\"\n{}\n", folders("task"));
        let text = format!("schema = 1\njob = {{ name = \"t\", kind = \"f\" }}\n{data}\n{task}{STAGE}");
        let mut spec = crate::spec::parse(&text).unwrap();
        let known: Vec<(&str, String)> = spec.places().map(|(key, place)| (key, place.clone())).collect();
        for (section, name) in [
            ("data", "own"),
            ("data.target", "target"),
            ("data.source", "source"),
            ("data.pairs", "pairs"),
            ("tasks.*", "task"),
        ] {
            for (key, place) in [("root", name.to_owned()), ("val_root", format!("{name}-val"))] {
                let key = format!("{section}.params.{key}");
                assert!(known.iter().any(|(k, p)| *k == key && *p == place), "{key}: {known:?}");
            }
        }
        assert_eq!(spec.places_mut().count(), known.len());
        // What is changed there is what the format is given.
        spec.places_mut().for_each(|place| place.insert(0, '/'));
        assert_eq!(spec.data.as_ref().unwrap().params["root"], "/own");
        assert_eq!(spec.tasks["a"].params["val_root"], "/task-val");
        let pushed = spec.data.as_mut().unwrap();
        pushed.params.insert("root".into(), format!("data:{}/images", "0a".repeat(32)).into());
        assert_eq!(spec.pushed(), ["0a".repeat(32)]);
        let outside = format!("data:{}/../x", "0a".repeat(32));
        spec.tasks.get_mut("a").unwrap().params.insert("root".into(), outside.into());
        assert!(spec.check_places().unwrap_err().message.contains("leads out of its data set"));
        spec.tasks.get_mut("a").unwrap().params.insert("root".into(), "step:b".into());
        assert!(spec.check_places().unwrap_err().message.contains("`tasks.a.params.root` is `step:b`"));
    }

    #[test]
    fn training_samples_that_are_not_named_or_that_nothing_opens_are_no_place() {
        let train = format!("train = \"data:{}\",", "0a".repeat(32));
        for (train, more, stage, opened) in [
            ("", "", STAGE, false),
            (train.as_str(), "", STAGE, true),
            (train.as_str(), "", "", false),
            (train.as_str(), ", episodes = { way = 2 }", "", true),
        ] {
            let data = format!("data = {{ format = \"text\", {train} val = \"v\", batch = 4{more} }}");
            let job = format!("schema = 1\njob = {{ name = \"t\", kind = \"f\" }}\n{data}\n{stage}");
            let mut spec = crate::spec::parse(&job).unwrap();
            let keys: Vec<&str> = spec.places().map(|(key, _)| key).collect();
            assert_eq!(keys, if opened { vec!["data.train", "data.val"] } else { vec!["data.val"] }, "{data}");
            assert_eq!(spec.pushed().len(), usize::from(opened), "{data}");
            assert_eq!(spec.places_mut().count(), keys.len(), "{data}");
            assert_eq!(crate::spec::parse(&spec.to_toml()).unwrap(), spec);
        }
    }

    #[test]
    fn a_pushed_place_has_a_digest_and_stays_inside() {
        let digest = "0a".repeat(32);
        let parse = |text: &str| Pushed::parse(text).map(|p| p.map(|p| (p.digest.to_owned(), p.inside.to_owned())));
        assert_eq!(parse("/srv/data:photos"), Ok(None));
        assert_eq!(parse(&format!("data:{digest}")), Ok(Some((digest.clone(), String::new()))));
        assert_eq!(parse(&format!("data:{digest}/a/b..c")), Ok(Some((digest.clone(), "a/b..c".into()))));
        for bad in [format!("data:{digest}/../x"), format!("data:{digest}//etc"), "data:photos".into()] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
        assert!(parse(&format!("data:{}", digest.to_uppercase())).is_err());
    }
}
