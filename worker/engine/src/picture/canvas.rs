//! What pictures have in common: a white sheet, a font, colours that differ in lightness too, and ranges that a scale can
//! be drawn for.

use std::ops::Range;

use plotters::{
    chart::ChartContext,
    coord::{CoordTranslate, Shift},
    drawing::DrawingAreaErrorKind,
    prelude::{Color, DrawingArea, IntoDrawingArea, RGBColor, SVGBackend, WHITE},
};

use crate::{Error, Result};

/// A part of a sheet.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// What drawing comes to.
pub(super) type Drawn<T = ()> = std::result::Result<T, DrawingAreaErrorKind<std::io::Error>>;

/// The font of everything, which whoever shows the picture has.
pub(super) const FONT: &str = "sans-serif";
/// Lines, in the order in which they are taken.
pub(super) const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 90, 180),
    RGBColor(225, 110, 20),
    RGBColor(30, 130, 70),
    RGBColor(180, 40, 60),
    RGBColor(110, 70, 160),
    RGBColor(90, 90, 90),
];

/// An SVG document of this size, in pixels.
pub(super) fn svg(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String> {
    let mut text = String::new();
    let failed = |e: DrawingAreaErrorKind<std::io::Error>| Error::Internal(format!("a picture was not drawn: {e}"));
    {
        let sheet = SVGBackend::with_string(&mut text, size).into_drawing_area();
        sheet.fill(&WHITE).and_then(|()| draw(&sheet)).and_then(|()| sheet.present()).map_err(failed)?;
    }
    Ok(text)
}

/// Draws what the lines and dots of a chart are called.
pub(super) fn legend<'a, 'b: 'a, C: CoordTranslate>(chart: &mut ChartContext<'a, SVGBackend<'b>, C>) -> Drawn {
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(COLOURS[5])
        .label_font((FONT, 12))
        .draw()
}

/// The range of what is finite, with some room; from 0 to 1 where there is nothing.
pub(super) fn range(values: impl IntoIterator<Item = f64>) -> Range<f64> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    values.into_iter().filter(|v| v.is_finite()).for_each(|v| (low, high) = (low.min(v), high.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    let room = if high > low { 0.05 * (high - low) } else { 0.5 * high.abs().max(1.0) };
    low - room..high + room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_has_a_length() {
        assert_eq!(range([]), 0.0..1.0);
        assert_eq!(range([f64::NAN, f64::INFINITY]), 0.0..1.0);
        assert_eq!(range([3.0]), 1.5..4.5);
        let r = range([0.0, 10.0, f64::NAN]);
        assert_eq!(r, -0.5..10.5);
    }
}
