//! What each stage trains: units of the network from input to head, by the rate that they learn at; those that are
//! frozen are grey.

use plotters::{
    prelude::{Color, IntoFont, RGBColor, Rectangle, Text, TextStyle},
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    Picture,
    canvas::{COLOURS, Drawn, FONT, svg},
};
use crate::{
    Result,
    train::export::{Report, StageFigures},
};

pub(super) const PICTURE: Picture = Picture { file: "strategy.svg", draw: of };

/// Pixels of a line, of the names at the left, and of a stage.
const LINE: i32 = 16;
const NAMES: i32 = 130;
const STAGE: i32 = 110;
/// Above the units.
const TOP: i32 = 50;
/// The most stages, and units, that a picture shows.
const MOST: [usize; 2] = [20, 120];

fn of(report: &Report) -> Result<Option<String>> {
    let stages = &report.stages;
    let units = stages.iter().map(|s| s.units.len()).max().unwrap_or(0);
    if stages.is_empty() || units == 0 || stages.len() > MOST[0] || units > MOST[1] {
        return Ok(None);
    }
    let size = (NAMES + STAGE * stages.len() as i32 + 10, TOP + LINE * units as i32 + 10);
    svg((size.0 as u32, size.1 as u32), |sheet| {
        let style = |h, size| TextStyle::from((FONT, size).into_font()).pos(Pos::new(h, VPos::Center));
        for (at, unit) in stages[0].units.iter().enumerate() {
            let y = TOP + LINE * at as i32 + LINE / 2;
            sheet.draw(&Text::new(unit.name.clone(), (NAMES - 6, y), style(HPos::Right, 11)))?;
        }
        for (column, stage) in stages.iter().enumerate() {
            let left = NAMES + STAGE * column as i32;
            sheet.draw(&Text::new(stage.name.clone(), (left + STAGE / 2, 14), style(HPos::Center, 14)))?;
            let part = 100.0 * stage.trained as f64 / stage.parameters.max(1) as f64;
            let said = format!("{part:.1} % trained");
            sheet.draw(&Text::new(said, (left + STAGE / 2, 34), style(HPos::Center, 11)))?;
            cells(stage, left, |area, fill, text| {
                sheet.draw(&Rectangle::new(area, fill.filled()))?;
                sheet.draw(&Rectangle::new(area, COLOURS[5].mix(0.4)))?;
                let middle = ((area[0].0 + area[1].0) / 2, (area[0].1 + area[1].1) / 2);
                let ink = if text == FROZEN { COLOURS[5] } else { plotters::style::BLACK };
                sheet.draw(&Text::new(text, middle, style(HPos::Center, 10).color(&ink)))
            })?;
        }
        Ok(())
    })
    .map(Some)
}

/// What is said of a unit that learns nothing.
const FROZEN: &str = "frozen";

fn cells(stage: &StageFigures, left: i32, mut draw: impl FnMut([(i32, i32); 2], RGBColor, String) -> Drawn) -> Drawn {
    let top = stage.units.iter().filter_map(|u| u.lr).fold(0.0f64, f64::max);
    for (at, unit) in stage.units.iter().enumerate() {
        let y = TOP + LINE * at as i32;
        let area = [(left + 4, y + 1), (left + STAGE - 4, y + LINE - 1)];
        let (fill, text) = match unit.lr {
            // Darker where it learns faster: by the number of tens below the fastest.
            Some(lr) if lr > 0.0 => {
                let strength = (1.0 + libm::log10(lr / top) / 4.0).clamp(0.25, 1.0);
                let RGBColor(r, g, b) = COLOURS[1];
                let shade = |c: u8| 255 - (f64::from(255 - c) * strength).round() as u8;
                (RGBColor(shade(r), shade(g), shade(b)), format!("{lr:.1e}"))
            }
            _ => (RGBColor(225, 225, 225), FROZEN.to_owned()),
        };
        draw(area, fill, text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::export::UnitFigures;

    #[test]
    fn each_stage_shows_what_is_frozen_and_at_which_rate_the_rest_learns() {
        let unit = |name: &str, lr| UnitFigures { name: name.into(), lr };
        let stage = |name: &str, lrs: [Option<f64>; 2]| StageFigures {
            name: name.into(),
            units: vec![unit("stem", lrs[0]), unit("fc", lrs[1])],
            trained: 1,
            parameters: 8,
            ..StageFigures::default()
        };
        let stages = vec![stage("head", [None, Some(1e-3)]), stage("all", [Some(1e-5), Some(1e-4)])];
        let text = of(&Report { stages, ..Report::default() }).unwrap().unwrap();
        assert_eq!(text.matches(">\nfrozen\n").count(), 1);
        for said in ["stem", "head", "1.0e-3", "1.0e-5", "12.5 % trained"] {
            assert!(text.contains(said), "{said}");
        }
    }
}
