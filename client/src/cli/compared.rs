//! What a pipeline has shown, as people read it.

use std::collections::BTreeSet;

use tl_proto::{
    compare::{Comparison, Figures},
    spec::Metric,
};

use super::output::table;

/// Candidate and baselines side by side, and what that comes to.
pub(super) fn text(compared: &Comparison) -> String {
    let Some(metric) = Metric::named(&compared.metric) else { return String::new() };
    let gains = compared.rows.len() > 1;
    let rows = compared.rows.iter().map(|row| {
        let done = row.value.map_or(0, |v| v.runs);
        let mut value = row.value.map_or_else(|| "none".into(), |v| metric.shown(&v));
        if done > 0 && done < row.steps as usize {
            value += &format!(" ({done} of {} runs)", row.steps);
        }
        let gain = row.gain.map(|g| metric.difference(&g)).unwrap_or_default();
        if gains { vec![row.name.clone(), value, gain] } else { vec![row.name.clone(), value] }
    });
    let ahead = if compared.unit == "points" { "AHEAD BY (POINTS)" } else { "AHEAD BY" };
    let head = ["STEP", compared.metric.as_str(), ahead];
    let rows: Vec<_> = rows.collect();
    let table = table(&head[..if gains { 3 } else { 2 }], &rows);
    let summary = if compared.summary.is_empty() { String::new() } else { format!("{}\n", compared.summary) };
    format!("{table}\n{summary}")
}

/// What each step came to, a line each.
pub(super) fn figures(steps: &Figures) -> String {
    let names: BTreeSet<&String> = steps.values().flat_map(|f| f.keys()).collect();
    let head: Vec<&str> = std::iter::once("STEP").chain(names.iter().map(|n| n.as_str())).collect();
    let cell = |v: Option<&f64>| v.map(|v| format!("{v:.4}")).unwrap_or_default();
    let rows = steps.iter().map(|(step, f)| {
        let cells = names.iter().map(|name| cell(f.get(*name)));
        std::iter::once(step.clone()).chain(cells).collect()
    });
    table(&head, &rows.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use tl_proto::spec::parse;

    use super::*;

    #[test]
    fn a_comparison_is_a_table_and_a_sentence() {
        let text_of = |values: &[(&str, f64)]| {
            let mut spec = parse(
                "schema = 1\njob = { name = \"t\", kind = \"pipeline\" }\nstep = [{ id = \"main\" }, { id = \"scratch\" }]\n\
                 compare = { metric = \"val.accuracy\", candidate = \"main\", baselines = [\"scratch\"] }",
            )
            .unwrap();
            let inner = Box::new(spec.clone());
            spec.step.iter_mut().for_each(|s| s.spec = Some(inner.clone()));
            let figures =
                values.iter().map(|(s, v)| ((*s).to_owned(), [("val.accuracy".to_owned(), *v)].into())).collect();
            text(&Comparison::of(&spec, &figures).unwrap())
        };
        assert_eq!(
            text_of(&[("main", 0.75), ("scratch", 0.8)]),
            "STEP     val.accuracy  AHEAD BY (POINTS)\nmain     75.0 %\nscratch  80.0 %        -5.0\n\
             negative transfer: -5.0 points of val.accuracy against `scratch`, the best baseline; several `seeds` \
             would show whether that is chance\n"
        );
        assert_eq!(
            text_of(&[("main", 0.75)]),
            "STEP     val.accuracy  AHEAD BY (POINTS)\nmain     75.0 %\nscratch  none\nno verdict: `scratch` has 0 of 1 runs\n"
        );
    }
}
