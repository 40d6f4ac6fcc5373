//! The confusion matrix, of the validation samples, or of those of each task, and of another domain's: rows are true
//! classes, columns predicted ones.

use plotters::{
    prelude::{Color, IntoFont, RGBColor, Rectangle, Text, TextStyle},
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    Picture,
    canvas::{Area, COLOURS, Drawn, FONT, svg},
};
use crate::{Result, eval::Evaluation, train::export::Report};

pub(super) const PICTURE: Picture = Picture { file: "confusion.svg", draw: of };

/// More classes are a carpet, not a picture.
const MOST: usize = 40;
/// And so are more tasks.
const PANELS: usize = 6;
/// Room for names, in pixels, and of a name in characters.
const NAMES: i32 = 110;
const LETTERS: usize = 14;

fn of(report: &Report) -> Result<Option<String>> {
    let tasks = report.tasks.iter().map(|(name, task)| (name.as_str(), &task.evaluation));
    let whole = report.tasks.is_empty().then_some(("validation", &report.evaluation));
    let target = report.target.iter().map(|e| ("the other domain", e));
    let all = whole.into_iter().chain(tasks).chain(target).filter(|(_, e)| (1..=MOST).contains(&e.classes.len()));
    let all: Vec<(&str, &Evaluation)> = all.take(PANELS).collect();
    if all.is_empty() { Ok(None) } else { draw(&all).map(Some) }
}

fn draw(all: &[(&str, &Evaluation)]) -> Result<String> {
    let classes = all.iter().map(|(_, e)| e.classes.len()).max().unwrap_or(1) as i32;
    let cell = (420 / classes).clamp(12, 60);
    let side = (NAMES + cell * classes + 20) as u32;
    svg((side * all.len() as u32, side + 30), |sheet| {
        let areas = sheet.split_evenly((1, all.len()));
        areas.iter().zip(all).try_for_each(|(area, (title, e))| panel(area, title, e, cell))
    })
}

fn style(size: i32, h: HPos) -> TextStyle<'static> {
    TextStyle::from((FONT, size).into_font()).pos(Pos::new(h, VPos::Center))
}

fn panel(area: &Area<'_>, title: &str, e: &Evaluation, cell: i32) -> Drawn {
    let heading = format!("{title}: {:.1} % right", 100.0 * e.accuracy);
    area.draw(&Text::new(heading, (NAMES, 14), style(16, HPos::Left)))?;
    let small = (cell / 2).clamp(7, 13);
    for (i, class) in e.classes.iter().enumerate() {
        let name: String = class.class.chars().take(LETTERS).collect();
        let along = NAMES + cell * i as i32 + cell / 2;
        area.draw(&Text::new(name.clone(), (NAMES - 6, along - NAMES + 60), style(small, HPos::Right)))?;
        let turned = style(small, HPos::Left).transform(plotters::style::FontTransform::Rotate270);
        area.draw(&Text::new(name, (along, 56), turned))?;
        let row = e.confusion.row(i);
        let whole = row.iter().sum::<usize>().max(1) as f64;
        for (j, count) in row.iter().enumerate() {
            let part = *count as f64 / whole;
            let corner = (NAMES + cell * j as i32, 60 + cell * i as i32);
            let across = [corner, (corner.0 + cell, corner.1 + cell)];
            let shade = |low: u8| 255 - (f64::from(255 - low) * part).round() as u8;
            let RGBColor(r, g, b) = COLOURS[0];
            area.draw(&Rectangle::new(across, RGBColor(shade(r), shade(g), shade(b)).filled()))?;
            area.draw(&Rectangle::new(across, COLOURS[5].mix(0.3)))?;
            if *count > 0 && cell >= 18 {
                let ink = if part > 0.5 { plotters::style::WHITE } else { plotters::style::BLACK };
                let middle = (corner.0 + cell / 2, corner.1 + cell / 2);
                area.draw(&Text::new(count.to_string(), middle, style(small, HPos::Center).color(&ink)))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Outcome;

    fn evaluation(classes: usize) -> Evaluation {
        let names: Vec<String> = (0..classes).map(|c| format!("<class & {c}>")).collect();
        let outcome = |i: usize| Outcome { label: i % classes, predicted: i / 2 % classes, loss: 0.0, entropy: 0.0 };
        Evaluation::new(&names, &(0..41).map(outcome).collect::<Vec<_>>())
    }

    #[test]
    fn every_count_is_there_and_names_are_no_markup() {
        let report = Report { evaluation: evaluation(3), target: Some(evaluation(3)), ..Report::default() };
        let text = of(&report).unwrap().unwrap();
        for [.., count] in report.evaluation.confusion.cells() {
            assert!(text.contains(&format!(">\n{count}\n")), "{count}");
        }
        assert!(text.contains("the other domain:") && !text.contains("<class") && text.contains("&lt;class"));
        assert_eq!(of(&Report { evaluation: evaluation(MOST + 1), ..Report::default() }).unwrap(), None);
    }
}
