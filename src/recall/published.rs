//! The scores that were published for the released weights.

use super::report::table;
use super::{Figures, Recall, Report};
use crate::Published;

/// A test set that figures were published for. Other protocols on the same images, where every caption of an image
/// counts, give other numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TestSet {
    /// COCO-CN's test split: 1,000 images with one caption each.
    #[default]
    CocoCn,
    /// AIC-ICC's validation set: its first 10,000 lines, where five captions of an image stand behind one another
    /// and each counts with its own row's copy of the image alone.
    AicIcc,
}

impl TestSet {
    /// What the published figures were measured on.
    pub fn protocol(self) -> &'static str {
        match self {
            Self::CocoCn => "one-to-one, COCO-CN test, 1,000 pairs",
            Self::AicIcc => "one-to-one, AIC-ICC validation, first 10,000 pairs",
        }
    }

    /// Pairs of that protocol.
    pub fn pairs(self) -> usize {
        match self {
            Self::CocoCn => 1_000,
            Self::AicIcc => 10_000,
        }
    }
}

/// The scores that Baidu published for a release on COCO-CN. The means are computed from the other figures.
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

/// The lines of a table as they were published, in percent. Of AIC-ICC that is three figures, of the first release.
fn cells(release: Published, set: TestSet) -> [[Option<f64>; 4]; 3] {
    match set {
        TestSet::CocoCn => published(release).lines().map(|(_, line)| line.map(Some)),
        TestSet::AicIcc => [
            [Some(17.93), None, None, None],
            [Some(30.41), None, None, None],
            [None, None, None, Some(38.57)],
        ],
    }
}

/// A table of a report's figures, each with the published one and the difference (report minus
/// published) beneath it, under a line with the protocol's name.
///
/// The figures are comparable only where the report is about the same pairs; another number of
/// rows is pointed out. For AIC-ICC those of [`Published::First`] stand in for the open release's, as only they were
/// published.
///
/// ```
/// use ernie_vil::Published;
/// use ernie_vil::recall::{Ranks, Report, TestSet, comparison};
/// let ranks = vec![0; 1000];
/// let report = Report::new(&Ranks { text_to_image: ranks.clone(), image_to_text: ranks })?;
/// let text = comparison(&report, Published::Open, TestSet::CocoCn);
/// assert!(text.starts_with("Published: OPEN_ERNIE_VIL2_BASE_ViT, one-to-one, COCO-CN test, 1,000 pairs\n"));
/// assert!(text.contains("| difference | +34.10 |"));
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub fn comparison(report: &Report, release: Published, set: TestSet) -> String {
    let name = match (release, set) {
        (Published::First, _) => "ERNIE_VIL2_BASE_ViT",
        (Published::Open, TestSet::CocoCn) => "OPEN_ERNIE_VIL2_BASE_ViT",
        (Published::Open, TestSet::AicIcc) => "ERNIE_VIL2_BASE_ViT (not the open release)",
    };
    let mut text = format!("Published: {name}, {}\n", set.protocol());
    if report.rows != set.pairs() {
        text.push_str(&format!(
            "Not comparable: these are {} pairs, so not that test split\n",
            report.rows
        ));
    }
    let mut lines = Vec::new();
    let shown = |figure: Option<String>| figure.unwrap_or_else(|| "-".into());
    for ((name, ours), theirs) in report.figures().lines().into_iter().zip(cells(release, set)) {
        // Both have two places, and a difference of nothing has no minus sign.
        let difference: [Option<f64>; 4] = std::array::from_fn(|i| {
            theirs[i].map(|theirs| ((ours[i] - theirs) * 100.0).round() / 100.0 + 0.0)
        });
        lines.push((name, ours.map(|figure| format!("{figure:.2}"))));
        lines.push((
            "published",
            theirs.map(|figure| shown(figure.map(|f| format!("{f:.2}")))),
        ));
        lines.push((
            "difference",
            difference.map(|figure| shown(figure.map(|f| format!("{f:+.2}")))),
        ));
    }
    text.push_str(&table(&lines));
    text
}
