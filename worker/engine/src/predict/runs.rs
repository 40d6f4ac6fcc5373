//! One-shot runs as Omniglot's: folders of which each shows one sample of every class and asks for the classes of others,
//! with the answers in a list. A run is an episode that somebody else has drawn.

use std::{collections::BTreeMap, path::Path};

use candle_core::Tensor;
use tl_proto::spec::EpisodeShape;

use super::{Asked, Model, section};
use crate::{
    Error, Result,
    eval::Evaluation,
    objective::fewshot::{Learns, Shown},
    train::{
        fewshot::judge::{gathered, outcome},
        samples::Samples,
    },
};

/// The list of a run: lines of a sample that is asked for and of the one that shows its class, by their paths below the folder
/// of all runs.
const ANSWERS: &str = "class_labels.txt";
/// The folder of a run that has the samples that it shows.
const SHOWN: &str = "training";

const HINT: &str =
    "its lines are `RUN/test/item01.png RUN/training/class01.png`, paths below the folder with all runs in it";

/// One run, by the numbers of its samples.
#[derive(Debug, PartialEq)]
struct Run {
    /// What it shows, one sample of each class.
    shown: Vec<usize>,
    /// What it asks for, as many samples of each class, class by class.
    asked: Vec<usize>,
}

impl Model {
    /// Judges the model by all runs in a folder: by its method, or, where it was taught by another kind of job, by the nearest
    /// prototype. Of what is `asked`, format, place and parameters count.
    ///
    /// # Errors
    /// A folder without runs, runs of different sizes, a list that names what is not there; a model that learns by steps on
    /// its weights.
    pub fn evaluate_runs(&self, asked: &Asked) -> Result<Evaluation> {
        let (method, params) = self.taught();
        let (Learns::Compares(scores) | Learns::Fits(scores)) = method.learns else {
            return Err(Error::user(
                format!(
                    "a model of `{}` learns a task by steps on its weights, and runs are for such as compare",
                    method.name()
                ),
                "train one with `method = \"prototype\"`; `tlctl evaluate` judges this one by episodes of its own",
            ));
        };
        let place = Path::new(&asked.place);
        let names = folders(place)?;
        let spec = section(&asked.format, &asked.place, asked.params.clone(), &[])?;
        let samples = Samples::open_bare(&spec, asked.seed)?.called("val");
        let known: BTreeMap<String, usize> = (0..samples.count()).map(|i| (samples.dataset.name(i), i)).collect();
        let runs = names.iter().map(|name| Run::read(place, name, &known)).collect::<Result<Vec<Run>>>()?;
        let shape = runs.first().map(Run::shape).ok_or_else(|| Error::Internal("a folder without runs".into()))?;
        if let Some((name, odd)) = names.iter().zip(&runs).find(|(_, run)| run.shape() != shape) {
            let (first, other) = (&names[0], odd.shape());
            return Err(Error::user(
                format!(
                    "`{first}` shows {} classes and asks for {} samples of each, and `{name}` {} and {}",
                    shape.way, shape.query, other.way, other.query
                ),
                "a mean is one of runs of the same size: put others into a folder of their own",
            ));
        }
        // The lists lie there too, and are none.
        let mut used: Vec<usize> = runs.iter().flat_map(|run| run.shown.iter().chain(&run.asked)).copied().collect();
        used.sort_unstable();
        used.dedup();
        let rows = self.rows(&samples.only(used.clone())?)?;
        let of = |list: &[usize]| -> Result<Tensor> {
            let places: Vec<usize> = list.iter().filter_map(|i| used.binary_search(i).ok()).collect();
            gathered(&rows, &places)
        };
        let counts = vec![1; shape.way];
        let one = |run: &Run| {
            let (support, query) = (of(&run.shown)?, of(&run.asked)?);
            outcome(&scores(&params, &Shown { support: &support, counts: &counts, query: &query })?)
        };
        Ok(Evaluation::of_episodes(shape, &runs.iter().map(one).collect::<Result<Vec<_>>>()?))
    }
}

impl Run {
    /// Reads the run in the folder `name` of `place`, from samples that are known by their paths below `place`.
    fn read(place: &Path, name: &str, known: &BTreeMap<String, usize>) -> Result<Self> {
        let file = place.join(name).join(ANSWERS);
        let list = file.display();
        let text = std::fs::read_to_string(&file)
            .map_err(|e| Error::user(format!("`{list}` cannot be read: {e}"), "give a list in UTF-8"))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let folder = format!("{name}/{SHOWN}/");
        let shown: Vec<(&String, &usize)> =
            known.range(folder.clone()..).take_while(|(path, _)| path.starts_with(&folder)).collect();
        let mut asked: Vec<(usize, usize)> = Vec::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let bad = |why: String| Error::user(format!("line {number} of `{list}` {why}"), HINT);
            let words = line.trim().split_once(char::is_whitespace);
            let (query, of) = words.ok_or_else(|| bad("has one path and no other".into()))?;
            let of = of.trim();
            let sample = known.get(query).ok_or_else(|| bad(format!("names `{query}`, which is not there")))?;
            let class = shown.iter().position(|(path, _)| *path == of);
            let class = class.ok_or_else(|| bad(format!("names `{of}`, which is none of the files in `{folder}`")))?;
            asked.push((class, *sample));
        }
        asked.sort_unstable();
        let way = shown.len();
        let each = asked.len() / way.max(1);
        let even = (0..way).all(|class| asked.iter().filter(|(of, _)| *of == class).count() == each);
        if way < 2 || each == 0 || !even {
            return Err(Error::user(
                format!("`{list}` asks for {} samples of the {way} classes in `{folder}`", asked.len()),
                "a run has two classes or more, a file each, and asks for as many samples of each of them",
            ));
        }
        let shown = shown.into_iter().map(|(_, sample)| *sample).collect();
        Ok(Self { shown, asked: asked.into_iter().map(|(_, sample)| sample).collect() })
    }

    fn shape(&self) -> EpisodeShape {
        let way = self.shown.len();
        EpisodeShape { way, shot: 1, query: self.asked.len() / way.max(1) }
    }
}

/// The folders of runs in a folder, in order.
fn folders(place: &Path) -> Result<Vec<String>> {
    let fail = |e: std::io::Error| {
        let hint = "give the folder with the folders of all runs in it";
        Error::user(format!("`{}` cannot be listed: {e}", place.display()), hint)
    };
    let mut found = Vec::new();
    for item in std::fs::read_dir(place).map_err(fail)? {
        let item = item.map_err(fail)?;
        if item.path().join(ANSWERS).is_file() {
            found.push(item.file_name().to_string_lossy().into_owned());
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(Error::user(
            format!("`{}` has no folders with `{ANSWERS}` in them", place.display()),
            format!(
                "a run is such a folder, with a file for each class in `{SHOWN}/`; `all_runs` of Omniglot has twenty"
            ),
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_class_by_class_and_a_list_that_does_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["a/test/1.png", "a/test/2.png", "a/training/x y.png", "a/training/z.png", "b/training/z.png"];
        let known: BTreeMap<String, usize> = names.iter().zip(0..).map(|(name, i)| ((*name).to_owned(), i)).collect();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::create_dir(dir.path().join("none")).unwrap();
        let read = |list: &str| {
            std::fs::write(dir.path().join("a").join(ANSWERS), list).unwrap();
            Run::read(dir.path(), "a", &known).map_err(|e| e.to_string())
        };
        let run = read("\u{feff}a/test/1.png a/training/z.png\r\n\na/test/2.png\ta/training/x y.png\n").unwrap();
        assert_eq!(run, Run { shown: vec![2, 3], asked: vec![1, 0] });
        assert_eq!(run.shape(), EpisodeShape { way: 2, shot: 1, query: 1 });
        assert_eq!(folders(dir.path()).unwrap(), ["a"]);
        for (list, says) in [
            ("a/test/1.png", "line 1 of "),
            ("\na/test/3.png a/training/z.png", "names `a/test/3.png`, which is not there"),
            ("a/test/1.png b/training/z.png", "none of the files in `a/training/`"),
            ("a/test/1.png a/training/z.png\na/test/2.png a/training/z.png", "asks for 2 samples of the 2 classes"),
            ("", "asks for 0 samples"),
        ] {
            let error = read(list).unwrap_err();
            assert!(error.contains(says), "{list}: {error}");
        }
        assert!(folders(&dir.path().join("none")).unwrap_err().to_string().contains("no folders with"));
    }
}
