//! Learning curves: loss and accuracy by epoch, over all stages, and of validation samples by task where there are several.

use plotters::prelude::{ChartBuilder, Circle, Color, LineSeries, PathElement};

use super::{
    Picture,
    canvas::{Area, COLOURS, Drawn, FONT, legend, range, svg},
};
use crate::{Result, train::export::Report};

pub(super) const PICTURE: Picture = Picture { file: "curves.svg", draw: of };

/// What is drawn of each chart.
const PARTS: [&str; 3] = ["train", "val", "target"];

fn of(report: &Report) -> Result<Option<String>> {
    if report.history.is_empty() {
        return Ok(None);
    }
    let tasks: Vec<String> = report.tasks.keys().map(|name| format!("tasks.{name}")).collect();
    let parts = || PARTS.into_iter().chain(tasks.iter().map(String::as_str));
    let charts = ["loss", "accuracy"].map(|what| Chart {
        what,
        lines: parts()
            .map(|part| {
                let value = |(i, h): (usize, &crate::train::export::EpochFigures)| {
                    Some(((i + 1) as f64, h.values.get(&format!("{part}.{what}")).copied().filter(|v| v.is_finite())?))
                };
                (part, report.history.iter().enumerate().filter_map(value).collect())
            })
            .collect(),
        stages: (1..report.history.len())
            .filter(|i| report.history[*i].stage != report.history[i - 1].stage)
            .map(|i| i as f64 + 0.5)
            .collect(),
        epochs: report.history.len(),
    });
    draw(&charts).map(Some)
}

/// Points `(epoch, value)`.
type Line = Vec<(f64, f64)>;

struct Chart<'a> {
    what: &'a str,
    lines: Vec<(&'a str, Line)>,
    /// Where a stage begins.
    stages: Vec<f64>,
    epochs: usize,
}

fn draw(charts: &[Chart<'_>]) -> Result<String> {
    svg((480 * charts.len() as u32, 360), |sheet| {
        sheet.split_evenly((1, charts.len())).iter().zip(charts).try_for_each(|(area, chart)| panel(area, chart))
    })
}

fn panel(area: &Area<'_>, one: &Chart<'_>) -> Drawn {
    let height = range(one.lines.iter().flat_map(|(_, line)| line.iter().map(|p| p.1)));
    let mut chart = ChartBuilder::on(area)
        .caption(one.what, (FONT, 18))
        .margin(12)
        .set_left_and_bottom_label_area_size(46)
        .build_cartesian_2d(0.5..one.epochs as f64 + 0.5, height.clone())?;
    chart.configure_mesh().x_desc("epoch").light_line_style(COLOURS[5].mix(0.08)).label_style((FONT, 12)).draw()?;
    let border = |x: &f64| PathElement::new(vec![(*x, height.start), (*x, height.end)], COLOURS[5].mix(0.5));
    chart.draw_series(one.stages.iter().map(border))?;
    let colours = COLOURS.into_iter().cycle();
    for ((name, line), colour) in one.lines.iter().zip(colours).filter(|((_, line), _)| !line.is_empty()) {
        chart
            .draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart.draw_series(line.iter().map(|p| Circle::new(*p, 2, colour.filled())))?;
    }
    legend(&mut chart)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::export::{EpochFigures, TaskReport};

    #[test]
    fn each_part_has_a_line_and_stages_are_divided() {
        let epoch = |stage: &str, epoch: u32| EpochFigures {
            stage: stage.into(),
            epoch,
            values: [("train.loss", 1.0), ("val.loss", f64::NAN), ("val.accuracy", 0.5)]
                .map(|(k, v)| (k.into(), v))
                .into(),
        };
        let history = vec![epoch("head", 1), epoch("head", 2), epoch("all", 1)];
        let text = of(&Report { history, ..Report::default() }).unwrap().unwrap();
        assert!(["loss", "accuracy", ">\ntrain\n", ">\nval\n"].iter().all(|said| text.contains(said)), "{text}");
        // Three epochs of the one and three of the other; what is not finite is left out.
        assert_eq!(text.matches("<circle").count(), 6);

        let mut several = vec![epoch("head", 1)];
        several[0].values.insert("tasks.other.loss".into(), 0.7);
        let tasks = [("other".to_owned(), TaskReport { weight: 1.0, evaluation: Default::default() })].into();
        let text = of(&Report { history: several, tasks, ..Report::default() }).unwrap().unwrap();
        assert!(text.contains(">\ntasks.other\n") && text.matches("<circle").count() == 3, "{text}");
    }
}
