//! Ranks summed up as recall.

use serde::Serialize;

use super::Ranks;
use crate::{Error, Result};

/// Recall at three depths, as shares between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Recall {
    /// Share of queries whose partner has the first place.
    pub r1: f64,
    /// Share of queries whose partner is among the first five.
    pub r5: f64,
    /// Share of queries whose partner is among the first ten.
    pub r10: f64,
    /// Mean recall: the mean of the three.
    pub mean: f64,
}

impl Recall {
    pub(super) fn new(r1: f64, r5: f64, r10: f64) -> Self {
        let mean = (r1 + r5 + r10) / 3.0;
        Self { r1, r5, r10, mean }
    }

    /// In percent, rounded to two places in the way numpy rounds.
    pub(super) fn percent(&self) -> [f64; 4] {
        [self.r1, self.r5, self.r10, self.mean].map(|share| (share * 100.0 * 100.0).round_ties_even() / 100.0)
    }
}

/// Scores of one direction of retrieval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Direction {
    /// Recall at 1, 5 and 10.
    #[serde(flatten)]
    pub recall: Recall,
    /// Mean reciprocal rank, where the first place counts 1 and the second 1/2.
    pub mrr: f64,
    /// Median rank, counting from 1; of an even number of queries the mean of the middle two.
    pub median_rank: f64,
}

impl Direction {
    /// Sums up at least one rank.
    fn new(ranks: &[u32]) -> Self {
        let rows = ranks.len() as f64;
        let within = |places: u32| ranks.iter().filter(|&&rank| rank < places).count() as f64 / rows;
        let mut sorted = ranks.to_vec();
        sorted.sort_unstable();
        let middle = f64::from(sorted[(ranks.len() - 1) / 2]) + f64::from(sorted[ranks.len() / 2]);
        Self {
            recall: Recall::new(within(1), within(5), within(10)),
            mrr: ranks
                .iter()
                .map(|&rank| 1.0 / (1.0 + f64::from(rank)))
                .sum::<f64>()
                / rows,
            median_rank: middle / 2.0 + 1.0,
        }
    }
}

/// Recall in both directions, and their mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// Images found by their captions.
    pub text_to_image: Recall,
    /// Captions found by their images.
    pub image_to_text: Recall,
    /// The mean of the two directions, figure by figure.
    pub mean: Recall,
}

impl Figures {
    pub(super) fn new(text_to_image: Recall, image_to_text: Recall) -> Self {
        let both = |figure: fn(&Recall) -> f64| (figure(&text_to_image) + figure(&image_to_text)) / 2.0;
        let mean = Recall {
            r1: both(|recall| recall.r1),
            r5: both(|recall| recall.r5),
            r10: both(|recall| recall.r10),
            mean: both(|recall| recall.mean),
        };
        Self {
            text_to_image,
            image_to_text,
            mean,
        }
    }

    /// The three lines of a table with the names that the original gives them.
    pub(super) fn lines(&self) -> [(&'static str, [f64; 4]); 3] {
        [
            ("Text2Image", self.text_to_image.percent()),
            ("Image2Text", self.image_to_text.percent()),
            ("MeanRecall", self.mean.percent()),
        ]
    }

    /// The table that the original prints, in percent, with a line feed at its end.
    pub fn table(&self) -> String {
        table(
            &self
                .lines()
                .map(|(name, figures)| (name, figures.map(|figure| format!("{figure:.2}")))),
        )
    }
}

/// How well captions and images find each other.
///
/// As JSON the shares stay shares:
/// `{"rows": .., "text_to_image": {"r1": .., "r5": .., "r10": .., "mean": .., "mrr": .., "median_rank": ..},
/// "image_to_text": {..}, "mean": {"r1": .., ..}}`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Report {
    /// Pairs that were scored.
    pub rows: usize,
    /// Images found by their captions.
    pub text_to_image: Direction,
    /// Captions found by their images.
    pub image_to_text: Direction,
    /// The mean of the two directions, figure by figure.
    pub mean: Recall,
}

impl Report {
    /// Sums up the ranks of both directions.
    ///
    /// # Errors
    /// [`Error::Scoring`] where there are no ranks, or more in one direction than in the other.
    pub fn new(ranks: &Ranks) -> Result<Self> {
        let rows = ranks.text_to_image.len();
        if rows == 0 || ranks.image_to_text.len() != rows {
            return Err(Error::Scoring(format!(
                "{rows} ranks of captions and {} of images, expected the same number and at least 1",
                ranks.image_to_text.len()
            )));
        }
        let text_to_image = Direction::new(&ranks.text_to_image);
        let image_to_text = Direction::new(&ranks.image_to_text);
        Ok(Self {
            rows,
            text_to_image,
            image_to_text,
            mean: Figures::new(text_to_image.recall, image_to_text.recall).mean,
        })
    }

    /// The recall alone, without what the published figures lack.
    pub fn figures(&self) -> Figures {
        Figures {
            text_to_image: self.text_to_image.recall,
            image_to_text: self.image_to_text.recall,
            mean: self.mean,
        }
    }

    /// The table that the original prints, in percent, with a line feed at its end.
    pub fn table(&self) -> String {
        self.figures().table()
    }

    /// The report as indented JSON, with a line feed at its end.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("plain data serialises");
        json.push('\n');
        json
    }
}

/// A table as the original's formatter lays it out in its GitHub style: names to the left, figures to
/// the right, and every column two characters wider than its heading at least.
pub(super) fn table(lines: &[(&str, [String; 4])]) -> String {
    const HEADINGS: [&str; 4] = ["R@1", "R@5", "R@10", "meanRecall"];
    let widest =
        |heading: &str, cells: &mut dyn Iterator<Item = usize>| cells.fold(heading.len() + 2, usize::max);
    let name_width = widest("Name", &mut lines.iter().map(|(name, _)| name.len()));
    let widths: [usize; 4] = std::array::from_fn(|column| {
        widest(
            HEADINGS[column],
            &mut lines.iter().map(|(_, cells)| cells[column].len()),
        )
    });
    let line = |name: &str, cells: [&str; 4]| {
        let cells = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!(" {cell:>width$} |"));
        format!("| {name:<name_width$} |{}\n", cells.collect::<String>())
    };

    let mut text = line("Name", HEADINGS);
    text.push_str(&format!("|{:-<1$}|", "", name_width + 2));
    for width in widths {
        text.push_str(&format!("{:-<1$}|", "", width + 2));
    }
    text.push('\n');
    for (name, cells) in lines {
        text.push_str(&line(name, cells.each_ref().map(String::as_str)));
    }
    text
}
