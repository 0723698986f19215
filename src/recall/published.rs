//! The scores that were published for the released weights.

use super::report::table;
use super::{Figures, Recall, Report};
use crate::Published;

/// What the published figures were measured on. Other protocols on the same images, where every
/// caption of an image counts, give other numbers.
pub const PROTOCOL: &str = "one-to-one, COCO-CN test, 1,000 pairs";
/// Pairs of that protocol.
const PAIRS: usize = 1_000;

/// The scores that Baidu published for a release, by [`PROTOCOL`]. The means are computed from the
/// other figures.
///
/// ```
/// use ernie_vil::{Published, recall::published};
/// assert!(published(Published::First).table().contains("| MeanRecall | 65.95 | 90.70 |  96.20 |        84.28 |"));
/// ```
pub fn published(release: Published) -> Figures {
    match release {
        Published::First => Figures::new(Recall::new(0.660, 0.900, 0.961), Recall::new(0.659, 0.914, 0.963)),
        Published::Open => Figures::new(Recall::new(0.659, 0.901, 0.961), Recall::new(0.665, 0.916, 0.962)),
    }
}

/// A table of a report's figures, each with the published one and the difference (report minus
/// published) beneath it, under a line with the protocol's name.
///
/// The figures are comparable only where the report is about the same 1,000 pairs; another number of
/// rows is pointed out.
///
/// ```
/// use ernie_vil::Published;
/// use ernie_vil::recall::{Ranks, Report, comparison};
/// let ranks = vec![0; 1000];
/// let report = Report::new(&Ranks { text_to_image: ranks.clone(), image_to_text: ranks })?;
/// let text = comparison(&report, Published::Open);
/// assert!(text.starts_with("Published: OPEN_ERNIE_VIL2_BASE_ViT, one-to-one, COCO-CN test, 1,000 pairs\n"));
/// assert!(text.contains("| difference | +34.10 |"));
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub fn comparison(report: &Report, release: Published) -> String {
    let name = match release {
        Published::First => "ERNIE_VIL2_BASE_ViT",
        Published::Open => "OPEN_ERNIE_VIL2_BASE_ViT",
    };
    let mut text = format!("Published: {name}, {PROTOCOL}\n");
    if report.rows != PAIRS {
        text.push_str(&format!(
            "Not comparable: these are {} pairs, so not that test split\n",
            report.rows
        ));
    }
    let mut lines = Vec::new();
    for ((name, ours), (_, theirs)) in report
        .figures()
        .lines()
        .into_iter()
        .zip(published(release).lines())
    {
        // Both have two places, and a difference of nothing has no minus sign.
        let difference: [f64; 4] =
            std::array::from_fn(|i| ((ours[i] - theirs[i]) * 100.0).round() / 100.0 + 0.0);
        lines.push((name, ours.map(|figure| format!("{figure:.2}"))));
        lines.push(("published", theirs.map(|figure| format!("{figure:.2}"))));
        lines.push(("difference", difference.map(|figure| format!("{figure:+.2}"))));
    }
    text.push_str(&table(&lines));
    text
}
