//! `val = 0.2`: a share of the training samples for validation, where nobody has divided them.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use super::{JobSpec, Params, SpecError};

/// What a share begins with where a place would stand, until the job is read as a whole.
const SHARE: &str = "share:";

/// What `data.val` is in a file.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "`val` is a place, or a share of the samples of `train` such as 0.2")]
pub(super) enum Val {
    /// Where the samples are.
    Place(String),
    /// How many of those of `train` are kept for validation.
    Share(f64),
}

impl Val {
    fn into_place(self) -> String {
        match self {
            Self::Place(place) => place,
            Self::Share(share) => format!("{SHARE}{share}"),
        }
    }
}

/// Reads `data.val`.
pub(super) fn place<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Val::deserialize(from).map(Val::into_place)
}

/// Reads the same of a section that may go without.
pub(super) fn place_if_any<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Val>::deserialize(from)?.map(Val::into_place))
}

impl JobSpec {
    /// Writes shares out, in `[data]`, its target and the tasks: `val` becomes the place of the training samples, and
    /// `val_share` the share.
    ///
    /// # Errors
    /// A share that is none, or of samples that are divided otherwise.
    pub(super) fn divide(&mut self) -> Result<(), SpecError> {
        let Some(data) = &mut self.data else { return Ok(()) };
        if written_out("data", &data.train, &mut data.val, &mut data.val_share)? {
            check_undivided("data", &data.params)?;
            if data.pairs.is_some() {
                return Err(divided_otherwise("data", "samples of `[data.pairs]` are not divided"));
            }
            if data.episodes.is_some() {
                return Err(divided_otherwise("data", "episodes are judged by other classes"));
            }
        }
        let target = data.target.as_mut();
        let target =
            target.map_or(Ok(false), |t| written_out_if_any("data.target", &t.train, &mut t.val, &mut t.val_share))?;
        if let Some(own) = data.of_target().filter(|_| target) {
            check_undivided("data.target", &own.params)?;
        }
        for (name, task) in &mut self.tasks {
            let at = format!("tasks.{name}");
            let train = task.train.as_deref().unwrap_or_default();
            let is_share = written_out_if_any(&at, train, &mut task.val, &mut task.val_share)?;
            if let Some(own) = task.own_data(data).filter(|_| is_share) {
                check_undivided(&at, &own.params)?;
            }
        }
        Ok(())
    }
}

/// Writes the share of one section out, which the job has `at`; whether it has one.
fn written_out(at: &str, train: &str, val: &mut String, share: &mut Option<f64>) -> Result<bool, SpecError> {
    if let Some(said) = val.strip_prefix(SHARE).and_then(|said| said.parse::<f64>().ok()) {
        if share.is_some_and(|other| other != said) {
            let message = format!("`{at}.val` is a share of {said}, and `{at}.val_share` says another");
            return Err(SpecError::new(message, format!("say it once, as `{at}.val`")));
        }
        *share = Some(said);
        train.clone_into(val);
    }
    let Some(said) = *share else { return Ok(false) };
    if !(said > 0.0 && said < 1.0) {
        let hint = "a share is above 0 and below 1, such as `val = 0.2`";
        return Err(SpecError::new(format!("`{at}.val` cannot be a share of {said}"), hint));
    }
    if train.is_empty() || val.as_str() != train {
        let hint = format!("write `train = …` and `val = {said}`, or a place for each, and no `val_share`");
        let message = format!("`{at}.val` is a share of the samples in `{at}.train`, and of no others");
        return Err(SpecError::new(message, hint));
    }
    Ok(true)
}

/// The same of a section that may have no samples for validation.
fn written_out_if_any(
    at: &str,
    train: &str,
    val: &mut Option<String>,
    share: &mut Option<f64>,
) -> Result<bool, SpecError> {
    match val {
        None if share.is_none() => Ok(false),
        val => written_out(at, train, val.get_or_insert_default(), share),
    }
}

/// Refuses parameters that say something else of which samples are for validation.
fn check_undivided(at: &str, params: &Params) -> Result<(), SpecError> {
    let otherwise = [
        ("held_out", "`params.held_out` says which samples are for validation"),
        ("val_root", "`params.val_root` is where others for validation lie"),
    ];
    match otherwise.into_iter().find(|(key, _)| params.contains_key(*key)) {
        None => Ok(()),
        Some((_, why)) => Err(divided_otherwise(at, why)),
    }
}

fn divided_otherwise(at: &str, why: &str) -> SpecError {
    let hint = format!("name the place of the validation samples as `{at}.val`, or remove what says otherwise");
    SpecError::new(format!("`{at}.val` is a share, and {why}"), hint)
}

/// Says the shares in a job that was written out as its file says them: `val = 0.2`. Then a change of `train` or `val`
/// there is a change of one key.
pub(super) fn as_in_file(job: &mut toml::Table) {
    for (_, value) in job.iter_mut() {
        match value {
            toml::Value::Table(table) => as_in_file(table),
            toml::Value::Array(all) => all.iter_mut().filter_map(toml::Value::as_table_mut).for_each(as_in_file),
            _ => {}
        }
    }
    // A class may be called so, too, and is no number.
    let share = job.get("val_share").and_then(toml::Value::as_float);
    if let Some(share) = share.filter(|_| job.contains_key("val")) {
        job.remove("val_share");
        job.insert("val".into(), toml::Value::Float(share));
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{JobSpec, parse},
        as_in_file,
    };

    fn job(data: &str) -> String {
        format!(
            "schema = 1\njob = {{ name = \"t\", kind = \"finetune\" }}\nmodel = {{ backbone = \"small_cnn\" }}\n\
             data = {{ format = \"image_folder\", {data}, batch = 8 }}\n\
             stage = [{{ name = \"all\", epochs = 1, train = [\"*\"], lr = 0.1 }}]\n"
        )
    }

    #[test]
    fn a_share_is_one_of_the_training_samples_and_stays_one_when_it_is_written_out() {
        let spec = parse(&job("train = \"photos\", val = 0.2")).unwrap();
        let data = spec.data.as_ref().unwrap();
        assert_eq!((data.val.as_str(), data.val_share), ("photos", Some(0.2)));
        assert_eq!(parse(&spec.to_toml()).unwrap(), spec);
        let json = serde_json::to_vec(&spec).unwrap();
        assert_eq!(serde_json::from_slice::<JobSpec>(&json).unwrap(), spec);
        let set = JobSpec::from_toml(&job("train = \"a\", val = \"b\""), &["data.val=0.5".into()]).unwrap();
        assert_eq!(set.data.unwrap().val_share, Some(0.5));
        let places = parse(&job("train = \"a\", val = \"b\"")).unwrap().data.unwrap();
        assert_eq!((places.val.as_str(), places.val_share), ("b", None));
        // What lies beside is not divided with it.
        let target = job("train = \"a\", val = 0.2, target = { train = \"c\", val = \"d\" }");
        let target = parse(&target).unwrap().data.unwrap().of_target().unwrap();
        assert_eq!((target.val.as_str(), target.val_share), ("d", None));
    }

    #[test]
    fn what_was_written_out_can_be_given_other_places() {
        let spec = parse(&job("train = \"photos\", val = 0.2")).unwrap();
        let text = spec.to_toml();
        assert!(text.contains("val = 0.2") && !text.contains("val_share"), "{text}");
        let set = |change: &str| JobSpec::from_toml(&text, &[change.into()]).unwrap().data.unwrap();
        let train = set("data.train=more");
        assert_eq!((train.val.as_str(), train.val_share), ("more", Some(0.2)));
        let val = set("data.val=other");
        assert_eq!((val.train.as_str(), val.val.as_str(), val.val_share), ("photos", "other", None));
        // In a step, too.
        let step = crate::spec::StepSection { id: "a".into(), spec: Some(Box::new(spec)), ..Default::default() };
        let mut pipeline = parse(&text).unwrap();
        (pipeline.data, pipeline.step) = (None, vec![step]);
        assert!(pipeline.to_toml().contains("val = 0.2"), "{}", pipeline.to_toml());
        // A class may be called so.
        let mut classes: toml::Table = toml::from_str("val = [\"0\"]\nval_share = [\"1\"]").unwrap();
        as_in_file(&mut classes);
        assert_eq!(classes.len(), 2);
    }

    #[test]
    fn a_target_and_a_task_are_divided_as_the_data_is() {
        let text = job("train = \"a\", val = \"b\", target = { train = \"c\", val = 0.25 }");
        let spec = parse(&format!("{text}[tasks.t]\ntrain = \"d\"\nval = 0.5\n")).unwrap();
        let data = spec.data.as_ref().unwrap();
        assert_eq!((data.val.as_str(), data.val_share), ("b", None));
        let (target, task) = (data.of_target().unwrap(), spec.tasks["t"].own_data(data).unwrap());
        assert_eq!((target.val.as_str(), target.val_share), ("c", Some(0.25)));
        assert_eq!((task.val.as_str(), task.val_share), ("d", Some(0.5)));
        assert_eq!(parse(&spec.to_toml()).unwrap(), spec);
        let json = serde_json::to_vec(&spec).unwrap();
        assert_eq!(serde_json::from_slice::<JobSpec>(&json).unwrap(), spec);
        let refused = |task: &str| parse(&format!("{text}[tasks.t]\n{task}\n")).unwrap_err().message;
        assert!(refused("val = 0.5").contains("`tasks.t.val` is a share of the samples in `tasks.t.train`"));
        assert!(refused("train = \"d\"\nval = 2.0").contains("`tasks.t.val` cannot be a share of 2"));
    }

    #[test]
    fn samples_that_are_divided_are_looked_for_where_nothing_is_trained_too() {
        let mut spec = parse(&job("train = \"photos\", val = 0.2")).unwrap();
        spec.stage.clear();
        spec.places_mut().for_each(|place| place.insert(0, '/'));
        let data = spec.data.unwrap();
        assert_eq!((data.train.as_str(), data.val.as_str()), ("/photos", "/photos"));
    }

    #[test]
    fn what_is_no_share_or_is_divided_otherwise_is_refused() {
        for (data, says) in [
            ("train = \"a\", val = 0", "cannot be a share of 0"),
            ("train = \"a\", val = 1.5", "cannot be a share of 1.5"),
            ("train = \"a\", val = nan", "cannot be a share of NaN"),
            ("val = 0.2", "of the samples in `data.train`"),
            ("train = \"a\", val = \"b\", val_share = 0.2", "of the samples in `data.train`"),
            ("train = \"a\", val = true", "`val` is a place, or a share"),
            ("train = \"a\", val = 0.2, params = { held_out = \"x\" }", "`params.held_out` says"),
            ("train = \"a\", val = 0.2, params = { val_root = \"x\" }", "`params.val_root` is"),
            ("train = \"a\", val = \"b\", target = { train = \"c\", val = 0.0 }", "`data.target.val` cannot be"),
            (
                "train = \"a\", val = \"b\", params = { held_out = \"x\" }, target = { train = \"c\", val = 0.2 }",
                "`data.target.val` is a share, and `params.held_out` says",
            ),
            (
                "train = \"a\", val = \"b\", target = { train = \"c\", val_share = 0.2 }",
                "`data.target.train`, and of no",
            ),
            ("train = \"a\", val = 0.2, episodes = {}", "episodes are judged"),
        ] {
            let error = parse(&job(data)).unwrap_err();
            assert!(error.message.contains(says), "{data}: {error}");
        }
    }
}
