//! Line plots as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// One line of a plot.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Colours that stay apart for readers who see no red or no green (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(150, 150, 150),
];

/// Draws `lines` into an SVG file; lines without points are left out.
///
/// # Errors
/// A file that cannot be written.
pub(super) fn draw(path: &Path, title: &str, (x, y): (&str, &str), lines: &[Line]) -> Result<()> {
    let lines: Vec<&Line> = lines.iter().filter(|line| !line.points.is_empty()).collect();
    let points = || lines.iter().flat_map(|line| &line.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let low = points().map(of).fold(f64::MAX, f64::min);
        let high = points().map(of).fold(f64::MIN, f64::max);
        if high > low {
            (low, high)
        } else {
            (low - 1.0, low + 1.0)
        }
    };
    if points().next().is_none() {
        return Err(anyhow!("{title}: nothing to draw"));
    }
    let ((left, right), (bottom, top)) = (range(|p| p.0), range(|p| p.1));
    let margin = 0.05 * (top - bottom);
    let failed = |error: &dyn std::fmt::Display| anyhow!("{}: {error}", path.display());
    let area = SVGBackend::new(path, (760, 420)).into_drawing_area();
    area.fill(&WHITE).map_err(|e| failed(&e))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(52)
        .build_cartesian_2d(left..right, bottom - margin..top + margin)
        .map_err(|e| failed(&e))?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .light_line_style(WHITE)
        .draw()
        .map_err(|e| failed(&e))?;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let colour = *colour;
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))
            .map_err(|e| failed(&e))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(|e| failed(&e))?;
    area.present().map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_lines_and_axes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.svg");
        let line = |name: &str, points: &[(f64, f64)]| Line {
            name: name.into(),
            points: points.to_vec(),
        };
        let lines = [line("rising", &[(0.0, 1.0), (10.0, 3.0)]), line("empty", &[])];
        draw(&path, "title", ("step", "loss"), &lines).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for word in ["title", "step", "loss", "rising", "<polyline"] {
            assert!(svg.contains(word), "no {word} in the plot");
        }
        assert!(!svg.contains("empty"));
        let nothing = draw(&path, "title", ("step", "loss"), &[]).unwrap_err();
        assert!(nothing.to_string().contains("nothing to draw"));
    }
}
