//! Which small parts a network gets in place of trained weights: those of the job, of an adapter's folder, or the
//! bottlenecks that came with its weights.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use tl_proto::{
    catalog::nearest_hint,
    spec::{ModelSection, Params},
};

use super::net::Net;
use crate::{
    Error, Result,
    backbone::{Backbone, Network},
    modifier,
    nn::{Adapters, Kind, ParamId, Part, Plan, Store, Target},
    weights::{
        self, Merged,
        peft::{self, Folder},
    },
};

/// The parts of a network that is to be built.
pub struct Parts {
    plan: Option<Plan>,
    folder: Option<Folder>,
    /// The modifier that trains them; without one they become a piece of the weights.
    modifier: Option<String>,
    /// Adapters that are in the weights, that of the folder with them.
    merged: Merged,
}

impl Parts {
    /// What a job's modifiers, `model.adapter` and the weights come to.
    ///
    /// # Errors
    /// A folder that cannot be read, or that says something else than the job or the weights.
    pub fn of(
        model: &ModelSection,
        backbone: &Backbone,
        modifiers: &BTreeMap<String, Params>,
        path: Option<&Path>,
    ) -> Result<Self> {
        let asked = modifier::adapt(modifiers);
        let modifier = asked.as_ref().map(|(name, ..)| (*name).to_owned());
        let folder = model.adapter.as_deref().map(|f| Folder::read(Path::new(f), backbone)).transpose()?;
        let inside = path.map(weights::inside).transpose()?.unwrap_or_default();
        let has = |digest: &String| inside.merged.0.contains(digest);
        if let Some(folder) = folder.as_ref().filter(|f| has(&f.digest) || has(&f.file)) {
            // Older weights know of the file alone.
            let same = if has(&folder.digest) { "" } else { ", from the same file" };
            return Err(Error::user(
                format!("the adapter `{}` is in the weights already{same}", folder.shown),
                "a job leaves a model with its adapter in its weights, and so do those that begin with that model: leave \
                 `model.adapter` out, or give the weights that the first job began with",
            ));
        }
        let merged = inside.merged.and(folder.as_ref().map(|f| f.digest.clone()));
        let plan = match (asked, &folder, inside.plan) {
            (None, None, own) => own,
            (Some((.., plan)), None, own) if own.as_ref().is_none_or(|own| *own == plan) => Some(plan),
            (asked, Some(folder), None) => Some(match asked {
                Some((name, params, plan)) => continued(folder, name, params, plan)?,
                None => folder.plan.clone(),
            }),
            _ => {
                return Err(Error::user(
                    "the weights come with bottleneck adapters of another kind than the job asks for",
                    "leave the modifier and `model.adapter` out, or begin with other weights",
                ));
            }
        };
        Ok(Self { plan, folder, modifier, merged })
    }

    /// What is put where.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// Whether every target was the name of a layer.
    ///
    /// # Errors
    /// Names one that was not.
    pub fn are_placed(&self, adapters: &Adapters, backbone: &Backbone) -> Result<()> {
        let Some(plan) = &self.plan else { return Ok(()) };
        let who = match (&self.folder, &self.modifier) {
            (Some(folder), _) => format!("the adapter `{}`", folder.shown),
            (None, Some(name)) => format!("`modifiers.{name}`"),
            (None, None) => "the model".into(),
        };
        if let Kind::Bottleneck { .. } = plan.kind {
            if !adapters.params.is_empty() {
                return Ok(());
            }
            return Err(Error::user(
                format!("{who} wants blocks that normalise sums, as BERT's do, and {} has none", backbone.name),
                "use a backbone of BERT's family, or `[modifiers.lora]`",
            ));
        }
        let ends: BTreeSet<&str> = adapters.layers.iter().map(|layer| told(layer)).collect();
        let ends: Vec<&str> = ends.into_iter().collect();
        let missed = plan.targets.iter().zip(&adapters.hits).find(|(_, hit)| !**hit).filter(|_| plan.strict);
        if let Some((target, _)) = missed {
            let (text, name) = (target.text(), backbone.name);
            return Err(match target {
                Target::Like(_) => Error::user(
                    format!("{who}: `{text}` is the end of no name of a dense layer or convolution of {name}"),
                    match backbone.blocks {
                        true => nearest_hint(text, &ends),
                        false => format!("{}; depthwise convolutions take none", nearest_hint(text, &ends)),
                    },
                ),
                Target::Exact(_) => Error::user(
                    format!("{who} changes `{text}`, which {name} does not have, or not as a layer that takes parts"),
                    "`model.backbone` must be the network that the adapter was trained on",
                ),
            });
        }
        if let Kind::Ia3 { feedforward, strict: true } = &plan.kind
            && let Some(odd) = feedforward.iter().find(|t| !adapters.sites.iter().any(|s| t.names(&s.layer)))
        {
            return Err(Error::user(
                format!("{who}: `{}` in `feedforward` is the end of no name of a layer in `targets`", odd.text()),
                "name some of the targets",
            ));
        }
        if adapters.hits.contains(&true) {
            return Ok(());
        }
        let usual: Vec<&str> = plan.targets.iter().map(Target::text).collect();
        Err(Error::user(
            format!("{who}: {} has none of its usual targets ({})", backbone.name, usual.join(", ")),
            format!("set `targets`; names of its layers end in {}", ends.join(", ")),
        ))
    }

    /// Adapters that will be in the weights when the parts are.
    pub fn merged(&self) -> &Merged {
        &self.merged
    }

    /// Digest of which parts are where, and of the adapters that they and the weights come from. Ranks must agree on it,
    /// and so must a run that goes on.
    pub fn digest(&self, adapters: &Adapters) -> String {
        let mut text = String::from("parts/1;");
        text.extend(self.plan.as_ref().map(|p| p.kind.describe()));
        for site in &adapters.sites {
            let inner = matches!(site.part, Part::Ia3 { input: true, .. });
            text.push_str(&format!("{}:{inner};", site.layer));
        }
        text.push_str(&self.merged.0.join(","));
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    /// Whether they come from a folder.
    pub fn have_a_folder(&self) -> bool {
        self.folder.is_some()
    }

    /// Whether the folder holds a head.
    pub fn bring_a_head(&self) -> bool {
        self.folder.as_ref().is_some_and(Folder::has_head)
    }

    /// Fills the parts from the folder, and the head if it is kept for these classes.
    ///
    /// # Errors
    /// Tensors without a place.
    pub fn fill(&self, network: &mut Network, backbone: &Backbone, kept: Option<&[String]>) -> Result<()> {
        if let Some(folder) = &self.folder {
            folder.fill(network, backbone, kept)?;
        }
        if self.modifier.is_none() && self.folder.is_none() {
            // Bottlenecks that nobody asked for are weights like others: trained if a stage names them.
            network.adapters.params.clear();
        }
        Ok(())
    }

    /// Whether the parts become a piece of the weights.
    pub fn to_be_merged(&self) -> bool {
        self.folder.is_some() && self.modifier.is_none()
    }
}

/// What tells a layer from others: the end of its name, or all of it where that is a number alone.
fn told(layer: &str) -> &str {
    let end = layer.rsplit('.').next().unwrap_or(layer);
    if end.bytes().all(|b| b.is_ascii_digit()) { layer } else { end }
}

/// What a folder says, with the dropout of the job that trains it on, if that says one.
fn continued(folder: &Folder, name: &str, params: &Params, asked: Plan) -> Result<Plan> {
    let shown = &folder.shown;
    if std::mem::discriminant(&folder.plan.kind) != std::mem::discriminant(&asked.kind) {
        return Err(Error::user(
            format!("the adapter `{shown}` is not of the kind of `modifiers.{name}`"),
            "use the modifier that it was made with, or none: then it is worked into the weights",
        ));
    }
    if let Some(key) = params.keys().find(|key| *key != "dropout") {
        return Err(Error::user(
            format!("`modifiers.{name}.{key}` is said by the adapter `{shown}` too"),
            "remove it: an adapter that is trained on stays what it is",
        ));
    }
    let mut plan = folder.plan.clone();
    if let (Kind::Lora { dropout, .. }, Kind::Lora { dropout: wanted, .. }, true) =
        (&mut plan.kind, asked.kind, params.contains_key("dropout"))
    {
        *dropout = wanted;
    }
    Ok(plan)
}

impl Net {
    /// Whether a stage leaves the weights alone that have parts.
    ///
    /// # Errors
    /// Names one that it would train.
    pub(super) fn keeps_its_weights(&self, store: &Store, stage: &str, trained: &[bool]) -> Result<()> {
        for site in &self.network.adapters.sites {
            if let Some(odd) = std::iter::once(site.weight).chain(site.bias).find(|p| trained[p.0]) {
                return Err(Error::user(
                    format!(
                        "stage `{stage}` names `{}`, whose layer learns a change instead",
                        store.params[odd.0].name
                    ),
                    "name what has no such change, like `head`: the changes are always trained; or remove the modifier",
                ));
            }
        }
        self.hides_no_part(store, stage, trained)
    }

    /// Whether peft will find the layers that have parts beside the modules that are saved as they are.
    fn hides_no_part(&self, store: &Store, stage: &str, trained: &[bool]) -> Result<()> {
        let network = &self.network;
        let first = if peft::has_their_head(network, self.backbone) { network.head } else { network.units.len() };
        let head = (first..network.units.len()).flat_map(|unit| network.unit_params(unit));
        let own = (0..trained.len()).filter(|p| trained[*p]).map(ParamId).chain(head);
        let second = |p: &ParamId| store.params[p.0].name.starts_with(weights::TOWER);
        let own = own.filter(|p| !network.adapters.params.contains(p) && !second(p));
        for module in own.filter_map(|p| peft::module(&store.params[p.0].name)).collect::<BTreeSet<_>>() {
            if let Some(site) = network.adapters.sites.iter().find(|s| peft::hides(module, &s.layer)) {
                return Err(Error::user(
                    format!(
                        "stage `{stage}` trains `{module}`, and peft takes that name for `{}` too, which learns a change",
                        site.layer
                    ),
                    "leave that layer out of `targets`, or do not train what is called as its end",
                ));
            }
        }
        Ok(())
    }
}
