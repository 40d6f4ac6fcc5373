//! What a sample counts in the loss by its class.

use tl_proto::spec::{ClassWeights, DataSection, WeightRule};

use crate::{Error, Result, data::Dataset};

/// A weight for each class in the order of the data set, or nothing where all count the same.
///
/// # Errors
/// See [`of_labels`].
pub fn of_classes(data: &DataSection, train: &dyn Dataset) -> Result<Option<Vec<f32>>> {
    of_labels("data", data.class_weights.as_ref(), train.classes(), train.labels())
}

/// The same of samples with these labels; `section` is where the job says it.
///
/// `balanced` is scikit-learn's: all samples / (classes · samples of the class).
///
/// # Errors
/// A list that is as long as there are no classes.
pub fn of_labels(
    section: &str,
    weights: Option<&ClassWeights>,
    classes: &[String],
    labels: &[usize],
) -> Result<Option<Vec<f32>>> {
    match weights {
        None => Ok(None),
        Some(ClassWeights::Rule(WeightRule::Balanced)) => {
            let n = classes.len() as f64;
            let mut counts = vec![0usize; classes.len()];
            labels.iter().for_each(|l| counts[*l] += 1);
            Ok(Some(counts.iter().map(|c| (labels.len() as f64 / (n * (*c).max(1) as f64)) as f32).collect()))
        }
        Some(ClassWeights::Each(weights)) if weights.len() == classes.len() => {
            Ok(Some(weights.iter().map(|w| *w as f32).collect()))
        }
        Some(ClassWeights::Each(weights)) => Err(Error::user(
            format!("`{section}.class_weights` has {} numbers for {} classes", weights.len(), classes.len()),
            format!("give one for each of {}", classes.join(", ")),
        )),
    }
}

#[cfg(test)]
mod tests {
    use tl_proto::spec::JobSpec;

    use super::*;
    use crate::data::Image;

    struct Few;

    impl Dataset for Few {
        fn classes(&self) -> &[String] {
            static CLASSES: std::sync::LazyLock<Vec<String>> =
                std::sync::LazyLock::new(|| ["a", "b", "c"].map(String::from).into());
            &CLASSES
        }
        fn labels(&self) -> &[usize] {
            &[0, 0, 0, 1, 1, 2]
        }
        fn name(&self, index: usize) -> String {
            index.to_string()
        }
        fn digest(&self, _: usize) -> [u8; 32] {
            [0; 32]
        }
        fn load(&self, _: usize) -> Result<Image, String> {
            Err("nothing to see".into())
        }
    }

    #[test]
    fn rare_classes_count_more_and_lists_must_fit() {
        let with = |weights: &str| {
            let text = format!(
                "schema = 1\njob = {{ name = \"t\", kind = \"finetune\" }}\n\
                 data = {{ format = \"idx\", train = \"a\", val = \"a\", batch = 2, class_weights = {weights} }}"
            );
            let data = JobSpec::from_toml(&text, &[]).unwrap().data.unwrap();
            of_classes(&data, &Few)
        };
        // sklearn.utils.class_weight.compute_class_weight("balanced", ...)
        assert_eq!(with("\"balanced\"").unwrap().unwrap(), [6.0 / 9.0, 1.0, 2.0]);
        assert_eq!(with("[1, 2, 0.5]").unwrap().unwrap(), [1.0, 2.0, 0.5]);
        assert!(with("[1, 2]").unwrap_err().to_string().contains("2 numbers for 3 classes"));
    }
}
