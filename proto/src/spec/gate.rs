//! `gate = "val.accuracy >= 0.9"`: what a step must come to before the steps that need it may start.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    JobSpec, Metric,
    check::{Checked, require},
};

/// A metric of a step's report, and its bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    /// The metric.
    pub metric: String,
    /// On which side it must be.
    pub side: Side,
    /// Of what.
    pub bound: f64,
}

/// On which side of a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `>=`
    AtLeast,
    /// `>`
    Above,
    /// `<=`
    AtMost,
    /// `<`
    Below,
}

impl Side {
    // The longer ones first: they begin like the others.
    const ALL: [(&str, Self); 4] =
        [(">=", Self::AtLeast), ("<=", Self::AtMost), (">", Self::Above), ("<", Self::Below)];
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(_, side)| side == self).map_or("", |(sign, _)| sign))
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.metric, self.side, self.bound)
    }
}

impl std::str::FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is no gate: write it as \"val.accuracy >= 0.9\", with >=, >, <= or <");
        let split = Side::ALL.iter().find_map(|(sign, side)| Some((text.split_once(sign)?, *side)));
        let ((metric, bound), side) = split.ok_or_else(bad)?;
        let bound: f64 = bound.trim().parse().map_err(|_| bad())?;
        let metric = metric.trim();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if metric.is_empty() || !metric.chars().all(plain) {
            return Err(bad());
        }
        Ok(Self { metric: metric.into(), side, bound })
    }
}

impl Gate {
    /// Whether a value is on the right side; one that is no number is on neither.
    pub fn holds(&self, value: f64) -> bool {
        match self.side {
            Side::AtLeast => value >= self.bound,
            Side::Above => value > self.bound,
            Side::AtMost => value <= self.bound,
            Side::Below => value < self.bound,
        }
    }

    /// Whether some reports of `spec` have it, and others not.
    pub(super) fn check(&self, spec: &JobSpec) -> Checked {
        let metric = Metric::find("gate", &self.metric, spec)?;
        require(!metric.is_of_target(), || {
            (
                format!("the gate `{self}` looks at `{}`: labels of that domain decide nothing", self.metric),
                "use `val.accuracy`, `val.loss` or `shift.a_distance`".into(),
            )
        })?;
        let ([least, most], bound) = (metric.range(), self.bound);
        let (can_hold, can_fail) = match self.side {
            Side::AtLeast => (bound <= most, bound > least),
            Side::Above => (bound < most, bound >= least),
            Side::AtMost => (bound >= least, bound < most),
            Side::Below => (bound > least, bound <= most),
        };
        let what = metric.kind();
        let hint = if metric.is_part() && bound <= 100.0 && bound > 1.0 {
            format!("for {bound} % write `{} {} {}`", self.metric, self.side, bound / 100.0)
        } else {
            "give it a bound that some models pass and others do not".into()
        };
        let verdict = if can_hold { "always holds" } else { "never holds" };
        require(bound.is_finite() && can_hold && can_fail, || {
            (format!("the gate `{self}` {verdict}: `{}` is {what}", self.metric), hint)
        })
    }
}

/// One gate, or several that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "GateText", into = "GateText")]
pub struct Gates(pub Vec<Gate>);

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "`gate` takes a text such as \"val.accuracy >= 0.9\", or a list of such texts")]
enum GateText {
    One(String),
    All(Vec<String>),
}

impl TryFrom<GateText> for Gates {
    type Error = String;
    fn try_from(text: GateText) -> Result<Self, String> {
        let all = match text {
            GateText::One(one) => vec![one],
            GateText::All(all) => all,
        };
        all.iter().map(|text| text.parse::<Gate>()).collect::<Result<_, _>>().map(Self)
    }
}

impl From<Gates> for GateText {
    fn from(gates: Gates) -> Self {
        let mut all: Vec<String> = gates.0.iter().map(ToString::to_string).collect();
        if all.len() == 1 { Self::One(all.remove(0)) } else { Self::All(all) }
    }
}

impl Gates {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse;

    #[test]
    fn a_gate_reads_back_and_its_bound_is_in_or_out_as_its_sign_says() {
        for (text, below, at, above) in [
            ("val.accuracy >= 0.9", false, true, true),
            ("val.accuracy > 0.9", false, false, true),
            ("val.accuracy <= 0.9", true, true, false),
            ("val.accuracy < 0.9", true, false, false),
        ] {
            let gate: Gate = text.parse().unwrap();
            assert_eq!([0.89, 0.9, 0.91].map(|v| gate.holds(v)), [below, at, above], "{text}");
            assert!(!gate.holds(f64::NAN), "{text}");
            assert_eq!(gate.to_string(), text);
            let spaceless: Gate = text.replace(' ', "").parse().unwrap();
            assert_eq!(spaceless, gate);
        }
        for bad in ["val.accuracy", "val.accuracy = 0.9", "val.accuracy >= x", ">= 0.9", "", "val.accuracy => 0.9"] {
            assert!(bad.parse::<Gate>().unwrap_err().contains("is no gate"), "{bad}");
        }
    }

    #[test]
    fn gates_are_one_text_or_a_list() {
        let gates = |text: &str| serde_json::from_str::<Gates>(text).map_err(|e| e.to_string());
        let (one, two) = (r#""val.loss < 1""#, r#"["val.loss < 1","val.accuracy >= 0.5"]"#);
        assert_eq!(gates(two).unwrap().0[1].metric, "val.accuracy");
        for text in [one, two] {
            assert_eq!(serde_json::to_string(&gates(text).unwrap()).unwrap(), text);
        }
        assert!(gates("[\"high\"]").unwrap_err().contains("`high` is no gate"));
        assert!(gates("1").unwrap_err().contains("`gate` takes a text"));
    }

    #[test]
    fn a_gate_that_is_always_or_never_open_is_refused() {
        let plain = "schema = 1\njob = { name = \"t\", kind = \"f\" }\n";
        let data = |target: &str| {
            let text = format!("data = {{ format = \"g\", train = \"a\", val = \"a\", batch = 1{target} }}");
            parse(&format!("{plain}{text}")).unwrap()
        };
        let (alone, labelled) = (data(""), data(", target = { train = \"b\", val = \"b\" }"));
        let check = |text: &str, spec: &JobSpec| {
            let gate: Gate = text.parse().unwrap();
            gate.check(spec).map_err(|e| format!("{}; {}", e.message, e.hint))
        };
        for good in ["val.accuracy >= 1", "val.accuracy > 0", "val.loss < 0.5", "val.loss <= 0", "val.macro_f1 < 1"] {
            assert_eq!(check(good, &alone), Ok(()), "{good}");
        }
        for (bad, part) in [
            ("val.acuracy >= 0.9", "no report has a metric `val.acuracy`; did you mean `val.accuracy`?"),
            (
                "val.accuracy >= 90",
                "never holds: `val.accuracy` is a part of one; for 90 % write `val.accuracy >= 0.9`",
            ),
            ("val.accuracy > 1", "never holds"),
            ("val.accuracy >= 0", "always holds"),
            ("val.accuracy <= 1", "always holds"),
            ("val.loss >= 0", "always holds: `val.loss` is a loss"),
            ("val.loss < -1", "never holds"),
            ("val.loss < inf", "`val.loss < inf` always holds"),
            ("val.loss > NaN", "never holds"),
            ("target.accuracy > 0.5", "without samples of the target that have labels"),
        ] {
            let error = check(bad, &alone).unwrap_err();
            assert!(error.contains(part), "{bad}: {error}");
        }
        let error = check("target.accuracy > 0.5", &labelled).unwrap_err();
        assert!(error.contains("labels of that domain decide nothing"), "{error}");
        assert_eq!(check("shift.a_distance < 1.5", &labelled), Ok(()));
        assert!(check("shift.a_distance <= 2", &labelled).unwrap_err().contains("always holds"));
        let old = data(", source = { val = \"b\" }");
        for good in ["source.after > 0.5", "source.forgotten < 3", "source.forgotten <= 0", "tasks.main.loss < 1"] {
            assert_eq!(check(good, &old), Ok(()), "{good}");
        }
    }
}
