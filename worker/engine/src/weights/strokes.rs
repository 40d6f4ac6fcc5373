//! How drawings become what a network for them reads: as its weights say, or as the data will.

use std::path::Path;

use tl_proto::spec::ModelSection;

use super::{Contract, Which, contract_of};
use crate::{Error, Result, backbone::Backbone};

/// The contract of a network for drawings. Where weights do not come with one, it is still to be agreed with the data.
///
/// # Errors
/// Weights of a network for something else, a job that asks for preprocessing of images.
pub fn contract(
    backbone: &Backbone,
    (section, model): (&str, &ModelSection),
    path: Option<&Path>,
    which: Which,
) -> Result<Contract> {
    if model.preprocess.is_some() || model.padding.is_some() || model.input.is_some() {
        return Err(Error::user(
            format!("{} reads drawings, which have neither `preprocess` nor `padding` nor `input`", backbone.name),
            format!("remove them from `[{section}]`; `points` in `data.params` is the most points of a drawing"),
        ));
    }
    let found = path.map(|path| contract_of(path, which)).transpose()?.flatten();
    match (found, path) {
        (Some(found), Some(path)) if found.strokes.is_none() => Err(Error::user(
            format!("weights `{}` are not of a network for drawings, and {} reads them", path.display(), backbone.name),
            format!("`{section}.backbone` must be the network that the weights were trained with"),
        )),
        (Some(found), _) => Ok(found),
        (None, _) => Contract::named("unit", 32, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::find;

    #[test]
    fn what_a_job_must_not_say_is_named_with_its_section() {
        let model = ModelSection { input: Some(64), ..ModelSection::default() };
        match contract(find("stroke_lstm").unwrap(), ("nets.tower", &model), None, Which::Tower) {
            Err(Error::User { hint, .. }) => assert!(hint.starts_with("remove them from `[nets.tower]`"), "{hint}"),
            other => panic!("{other:?}"),
        }
    }
}
