//! `recipe = "fine_tune"`: a line that stands for stages and an optimizer. It is written out when the file is read, so
//! that everything behind sees ordinary stages, and `tlctl check --output json` shows what it came to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BnMode, CycleSection, JobSpec, OptimizerSection, Rates, SpecError, StageSection};

/// `recipe`: a name, or a table with a name and what differs from the usual.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "RecipeText")]
pub struct RecipeSection {
    /// `fine_tune`.
    pub name: String,
    /// Epochs of the whole network.
    pub epochs: u32,
    /// Rate of the head in its first epoch.
    pub base_lr: f64,
    /// Epochs of the head alone.
    pub freeze_epochs: u32,
    /// The lowest block of the whole network learns at this fraction of the head's rate, 1/lr_mult.
    pub lr_mult: f64,
    /// Part of the second stage in which the rate rises.
    pub pct_start: f64,
    /// The rate of the second stage begins at 1/div of itself.
    pub div: f64,
    /// Train the backbone's batch-norms while the rest of it is frozen, as fastai does; nothing is cached then.
    pub train_bn: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "`recipe` takes a name such as \"fine_tune\", or a table with `name`, `epochs`, `base_lr`, `freeze_epochs`, `lr_mult`, `pct_start`, `div`, `train_bn`"
)]
enum RecipeText {
    Name(String),
    Table(RecipeTable),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct RecipeTable {
    name: String,
    epochs: u32,
    base_lr: f64,
    freeze_epochs: u32,
    lr_mult: f64,
    pct_start: f64,
    div: f64,
    train_bn: bool,
}

impl Default for RecipeTable {
    fn default() -> Self {
        Self {
            name: FINE_TUNE.into(),
            epochs: 5,
            base_lr: 2e-3,
            freeze_epochs: 1,
            lr_mult: 100.0,
            pct_start: 0.3,
            div: 5.0,
            train_bn: false,
        }
    }
}

const FINE_TUNE: &str = "fine_tune";

impl From<RecipeText> for RecipeSection {
    fn from(text: RecipeText) -> Self {
        let t = match text {
            RecipeText::Name(name) => RecipeTable { name, ..RecipeTable::default() },
            RecipeText::Table(table) => table,
        };
        Self {
            name: t.name,
            epochs: t.epochs,
            base_lr: t.base_lr,
            freeze_epochs: t.freeze_epochs,
            lr_mult: t.lr_mult,
            pct_start: t.pct_start,
            div: t.div,
            train_bn: t.train_bn,
        }
    }
}

impl JobSpec {
    /// Writes recipes out as stages and optimizer, and shares as parts of the training samples, here and in every step of a
    /// pipeline.
    ///
    /// # Errors
    /// An unknown recipe, one beside stages, numbers that make no rates; see [`JobSpec::divide`].
    pub(super) fn expand(&mut self) -> Result<(), SpecError> {
        for step in &mut self.step {
            if let Some(inner) = &mut step.spec {
                inner.expand()?;
            }
        }
        self.divide()?;
        let Some(recipe) = self.recipe.take() else { return Ok(()) };
        if recipe.name != FINE_TUNE {
            let hint = crate::catalog::nearest_hint(&recipe.name, &[FINE_TUNE]);
            return Err(SpecError::new(format!("there is no recipe `{}`", recipe.name), hint));
        }
        if !self.stage.is_empty() {
            let hint = "keep one of them; `tlctl check --output json` shows the stages of a recipe";
            return Err(SpecError::new("the job has both `recipe` and `[[stage]]`", hint));
        }
        let positive = |v: f64| v.is_finite() && v > 0.0;
        if !positive(recipe.base_lr) || !positive(recipe.lr_mult) || recipe.lr_mult < 1.0 {
            let hint = "both are positive, and `lr_mult` is at least 1";
            return Err(SpecError::new("`recipe.base_lr` and `recipe.lr_mult` make no rates", hint));
        }
        self.stage = fine_tune(&recipe);
        fill(&mut self.optimizer);
        Ok(())
    }
}

/// fastai's `Learner.fine_tune`: the head alone for an epoch, then everything at rates that fall away from the head.
fn fine_tune(r: &RecipeSection) -> Vec<StageSection> {
    let cycle = |pct_start, div| CycleSection { pct_start, div, div_final: 1e5, momentum: Some([0.95, 0.85, 0.95]) };
    let stage = |name, epochs, train: &[&str], lr: Rates, shape| StageSection {
        schedule: "one_cycle".into(),
        cycle: Some(shape),
        bn: BnMode::Train,
        ..StageSection::new(name, epochs, train, lr)
    };
    let base = r.base_lr;
    let freeze = if r.train_bn {
        // `slice(base_lr)`: a tenth for all groups but the last.
        let rates = Rates::Rules([("head".to_owned(), base), ("norms".to_owned(), base / 10.0)].into());
        stage("freeze", r.freeze_epochs, &["head", "norms"], rates, cycle(0.99, 25.0))
    } else {
        StageSection {
            bn: BnMode::Frozen,
            ..stage("freeze", r.freeze_epochs, &["head"], base.into(), cycle(0.99, 25.0))
        }
    };
    let half = base / 2.0;
    let whole = stage("fine_tune", r.epochs, &["*"], Rates::Range([half / r.lr_mult, half]), cycle(r.pct_start, r.div));
    if r.freeze_epochs == 0 { vec![whole] } else { vec![freeze, whole] }
}

/// fastai's Adam, where `[optimizer]` leaves a value at its default: eps 1e-5, squares at .99, decoupled decay .01.
fn fill(o: &mut OptimizerSection) {
    let usual = OptimizerSection::default();
    if o.name == usual.name {
        o.eps = if o.eps == usual.eps { 1e-5 } else { o.eps };
        o.beta2 = if o.beta2 == usual.beta2 { 0.99 } else { o.beta2 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse;

    const JOB: &str = r#"
schema = 1
recipe = "fine_tune"
job = { name = "t", kind = "finetune" }
data = { format = "generated", train = "shapes", val = "shapes", batch = 8 }
model = { backbone = "small_cnn" }
"#;

    #[test]
    fn one_line_comes_to_the_stages_of_fastai() {
        let spec = parse(JOB).unwrap();
        assert!(spec.recipe.is_none());
        let [freeze, whole] = &spec.stage[..] else { panic!("{:?}", spec.stage) };
        assert_eq!((freeze.epochs, freeze.lr.clone(), freeze.bn), (1, Rates::One(2e-3), BnMode::Frozen));
        let cycle = freeze.cycle.clone().unwrap();
        assert_eq!((cycle.pct_start, cycle.div, cycle.div_final), (0.99, 25.0, 1e5));
        assert_eq!((whole.epochs, whole.lr.clone(), whole.bn), (5, Rates::Range([1e-5, 1e-3]), BnMode::Train));
        let cycle = whole.cycle.clone().unwrap();
        assert_eq!((cycle.pct_start, cycle.div, cycle.momentum), (0.3, 5.0, Some([0.95, 0.85, 0.95])));
        let o = &spec.optimizer;
        assert_eq!((o.eps, o.beta1, o.beta2, o.weight_decay), (1e-5, 0.9, 0.99, 0.01));
        assert_eq!(parse(&spec.to_toml()).unwrap(), spec, "written out, it reads back as the same job");
    }

    #[test]
    fn a_table_changes_what_it_names_and_mistakes_are_told() {
        let with = |recipe: &str| parse(&JOB.replace("\"fine_tune\"", recipe));
        let spec = with("{ epochs = 3, base_lr = 0.01, train_bn = true }").unwrap();
        assert_eq!((spec.stage[1].epochs, spec.stage[1].lr.top()), (3, 0.005));
        assert_eq!(spec.stage[0].train, ["head", "norms"]);
        assert_eq!(with("{ freeze_epochs = 0 }").unwrap().stage.len(), 1);
        let e = with("\"fine_tun\"").unwrap_err();
        assert_eq!(
            (e.message.as_str(), e.hint.as_str()),
            ("there is no recipe `fine_tun`", "did you mean `fine_tune`?")
        );
        assert!(with("{ epoch = 3 }").unwrap_err().message.contains("`recipe` takes a name"));
        assert!(with("{ base_lr = 0.0 }").unwrap_err().message.contains("make no rates"));
        let both = format!("{JOB}[[stage]]\nname = \"a\"\nepochs = 1\ntrain = [\"*\"]\nlr = 1\n");
        assert!(parse(&both).unwrap_err().message.contains("both `recipe` and `[[stage]]`"));
    }
}
