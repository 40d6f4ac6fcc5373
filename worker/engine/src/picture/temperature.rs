//! What a temperature does to a teacher: the mean probability of its likeliest class, of the second, and so on.

use plotters::prelude::{ChartBuilder, Circle, Color, IntoLogRange, LineSeries, PathElement};

use super::{
    Picture,
    canvas::{COLOURS, FONT, legend, svg},
};
use crate::{Result, train::export::Report};

pub(super) const PICTURE: Picture = Picture { file: "temperature.svg", draw: of };

/// The most classes that are shown, and the smallest probability.
const MOST: usize = 20;
const LEAST: f64 = 1e-5;

fn of(report: &Report) -> Result<Option<String>> {
    let soft = &report.softened;
    let classes = soft.iter().map(|s| s.mean.len().min(MOST)).max().unwrap_or(0);
    if classes < 2 {
        return Ok(None);
    }
    let drawn = svg((560, 400), |sheet| {
        let mut chart = ChartBuilder::on(sheet)
            .caption("soft targets by temperature", (FONT, 18))
            .margin(12)
            .set_left_and_bottom_label_area_size(52)
            .build_cartesian_2d(0.5..classes as f64 + 0.5, (LEAST..1.5).log_scale())?;
        let power = |p: &f64| format!("{p:.0e}");
        chart
            .configure_mesh()
            .x_desc("classes, from the likeliest to the least likely")
            .y_desc("mean probability")
            .x_labels(classes)
            .y_label_formatter(&power)
            .light_line_style(COLOURS[5].mix(0.08))
            .label_style((FONT, 12))
            .draw()?;
        for (one, colour) in soft.iter().zip(COLOURS) {
            let points = || (1..).zip(&one.mean).take(MOST).map(|(k, p)| (f64::from(k), p.max(LEAST)));
            chart
                .draw_series(LineSeries::new(points(), colour.stroke_width(2)))?
                .label(format!("T = {}", one.temperature))
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)));
            chart.draw_series(points().map(|p| Circle::new(p, 2, colour.filled())))?;
        }
        legend(&mut chart)
    });
    drawn.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::softened::softened;

    #[test]
    fn each_temperature_has_a_line() {
        let report = Report { softened: softened(&[vec![5.0, 1.0, -900.0]], 4.0), ..Report::default() };
        let text = of(&report).unwrap().unwrap();
        assert!(["T = 1", "T = 2", "T = 4", "T = 8"].iter().all(|said| text.contains(said)), "{text}");
        assert_eq!(text.matches("<circle").count(), 4 * 3);
    }
}
