//! Two domains in the plane in which a network's features spread most, before and after it was brought from one to the
//! other.

use plotters::prelude::{ChartBuilder, Circle, Color, Cross};

use super::{
    Picture,
    canvas::{Area, COLOURS, Drawn, FONT, legend, range, svg},
};
use crate::{Result, eval::shift::Apart, train::export::Report};

pub(super) const PICTURE: Picture = Picture { file: "shift.svg", draw: of };

fn of(report: &Report) -> Result<Option<String>> {
    let Some(shift) = &report.shift else { return Ok(None) };
    let before = shift.before.iter().map(|apart| Cloud { title: "before", apart });
    let clouds: Vec<Cloud<'_>> = before.chain([Cloud { title: "after", apart: &shift.after }]).collect();
    draw(&clouds).map(Some)
}

/// Both domains at one time.
struct Cloud<'a> {
    title: &'a str,
    apart: &'a Apart,
}

fn draw(clouds: &[Cloud<'_>]) -> Result<String> {
    svg((480 * clouds.len() as u32, 460), |sheet| {
        sheet.split_evenly((1, clouds.len())).iter().zip(clouds).try_for_each(|(area, cloud)| panel(area, cloud))
    })
}

fn panel(area: &Area<'_>, cloud: &Cloud<'_>) -> Drawn {
    let Apart { a_distance, samples, points, shown, .. } = cloud.apart;
    let along = |axis: usize| range(points.iter().flatten().map(move |p| f64::from(p[axis])));
    let of = if *samples == 0 { String::new() } else { format!(", {samples} samples each") };
    let title = format!("{}: A-distance {a_distance:.2}{of}", cloud.title);
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 18))
        .margin(12)
        .set_left_and_bottom_label_area_size(42)
        .build_cartesian_2d(along(0), along(1))?;
    let about = format!("principal components: {:.0} % of the variance", 100.0 * shown);
    chart.configure_mesh().disable_mesh().x_desc(about).label_style((FONT, 12)).draw()?;
    let at = |p: &[f32; 2]| (f64::from(p[0]), f64::from(p[1]));
    let [source, target] = points;
    let (blue, orange) = (COLOURS[0].mix(0.7), COLOURS[1].mix(0.8));
    chart
        .draw_series(source.iter().map(|p| Circle::new(at(p), 3, blue.filled())))?
        .label("source (with labels)")
        .legend(move |at| Circle::new(at, 3, blue.filled()));
    chart
        .draw_series(target.iter().map(|p| Cross::new(at(p), 3, orange)))?
        .label("target")
        .legend(move |at| Cross::new(at, 3, orange));
    legend(&mut chart)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::shift::Shift;

    #[test]
    fn both_domains_are_there_before_and_after() {
        let apart = |a_distance: f64| Apart {
            a_distance,
            samples: 40,
            points: [vec![[0.0, 1.0], [2.0, 3.0]], vec![[5.0, 1.0]; 3]],
            shown: 0.5,
            ..Apart::default()
        };
        let shift = Some(Shift { before: Some(apart(1.75)), after: apart(0.25) });
        let text = of(&Report { shift, ..Report::default() }).unwrap().unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
        for said in
            ["before: A-distance 1.75, 40 samples each", "after: A-distance 0.25", "50 % of the variance", "target"]
        {
            assert!(text.contains(said), "{said}");
        }
        // Two points and one in the legend, twice.
        assert_eq!(text.matches("<circle").count(), 6);
        let later = Some(Shift { before: None, after: apart(0.25) });
        assert!(!of(&Report { shift: later, ..Report::default() }).unwrap().unwrap().contains("before"));
    }
}
