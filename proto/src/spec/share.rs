//! `val = 0.2`: a share of the training samples for validation, where nobody has divided them.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use super::{DataSection, SpecError};

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

/// Reads `data.val`.
pub(super) fn place<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(match Val::deserialize(from)? {
        Val::Place(place) => place,
        Val::Share(share) => format!("{SHARE}{share}"),
    })
}

impl DataSection {
    /// Writes a share out: `val` becomes the place of the training samples, and `val_share` the share.
    ///
    /// # Errors
    /// A share that is none, or of samples that are divided otherwise.
    pub(super) fn divide(&mut self) -> Result<(), SpecError> {
        if let Some(share) = self.val.strip_prefix(SHARE).and_then(|share| share.parse::<f64>().ok()) {
            self.val_share = Some(share);
            self.val.clone_from(&self.train);
        }
        let Some(share) = self.val_share else { return Ok(()) };
        if !(share > 0.0 && share < 1.0) {
            let hint = "a share is above 0 and below 1, such as `val = 0.2`";
            return Err(SpecError::new(format!("`data.val` cannot be a share of {share}"), hint));
        }
        if self.train.is_empty() || self.val != self.train {
            let hint = "write `train = …` and `val = 0.2`, or a place for each";
            return Err(SpecError::new("`data.val` is a share of the samples in `data.train`, and of no others", hint));
        }
        let otherwise = [
            (self.params.contains_key("held_out"), "`data.params.held_out` says which samples are for validation"),
            (self.pairs.is_some(), "samples of `[data.pairs]` are not divided"),
            (self.episodes.is_some(), "episodes are judged by other classes"),
        ];
        match otherwise.into_iter().find(|(is_so, _)| *is_so) {
            None => Ok(()),
            Some((_, why)) => {
                let hint = "name the place of the validation samples as `data.val`";
                Err(SpecError::new(format!("`data.val` is a share, and {why}"), hint))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{JobSpec, parse};

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
    fn what_is_no_share_or_is_divided_otherwise_is_refused() {
        for (data, says) in [
            ("train = \"a\", val = 0", "cannot be a share of 0"),
            ("train = \"a\", val = 1.5", "cannot be a share of 1.5"),
            ("train = \"a\", val = nan", "cannot be a share of NaN"),
            ("val = 0.2", "of the samples in `data.train`"),
            ("train = \"a\", val = \"b\", val_share = 0.2", "of the samples in `data.train`"),
            ("train = \"a\", val = true", "`val` is a place, or a share"),
            ("train = \"a\", val = 0.2, params = { held_out = \"x\" }", "`data.params.held_out` says"),
            ("train = \"a\", val = 0.2, episodes = {}", "episodes are judged"),
        ] {
            let error = parse(&job(data)).unwrap_err();
            assert!(error.message.contains(says), "{data}: {error}");
        }
    }
}
