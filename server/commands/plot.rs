//! The curves of a training run, as an SVG file.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// Points of a curve at most: more would not be seen.
const MOST_POINTS: usize = 1_000;

/// Draws the loss and, where there is any, the recall over the steps.
pub fn curves(title: &str, loss: &[(f64, f64)], recall: &[(f64, f64)]) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (900, 640)).into_drawing_area();
        let failed = |error: DrawingAreaErrorKind<_>| anyhow!("drawing the curves: {error}");
        root.fill(&WHITE).map_err(failed)?;
        let root = root.titled(title, ("sans-serif", 20)).map_err(failed)?;
        let panels = match recall.is_empty() {
            true => vec![root],
            false => root.split_evenly((2, 1)),
        };
        let curves = [
            ("loss", loss, RGBColor(31, 90, 160)),
            ("mean recall, %", recall, RGBColor(190, 80, 30)),
        ];
        for (panel, (name, points, colour)) in panels.iter().zip(curves) {
            let points = thin(points);
            let last = points.last().map_or(1.0, |p| p.0).max(1.0);
            let top = points.iter().map(|p| p.1).fold(0.0, f64::max).max(1e-3) * 1.05;
            let mut chart = ChartBuilder::on(panel)
                .margin(8)
                .x_label_area_size(34)
                .y_label_area_size(56)
                .build_cartesian_2d(0.0..last, 0.0..top)
                .map_err(failed)?;
            chart
                .configure_mesh()
                .x_desc("step")
                .y_desc(name)
                .light_line_style(RGBColor(235, 235, 235))
                .draw()
                .map_err(failed)?;
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(failed)?;
        }
        for panel in &panels {
            panel.present().map_err(failed)?;
        }
    }
    Ok(svg)
}

/// Means of neighbours, so that no more than [`MOST_POINTS`] are left.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let together = points.len().div_ceil(MOST_POINTS).max(1);
    points
        .chunks(together)
        .map(|chunk| {
            let n = chunk.len() as f64;
            let sum = chunk.iter().fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
            (sum.0 / n, sum.1 / n)
        })
        .collect()
}
