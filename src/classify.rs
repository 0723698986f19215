//! Zero-shot classification: labels in prompts, prompts to a vector a label, scores to shares.
//!
//! ```
//! use ernie_vil::classify::{label_vectors, probabilities, prompts};
//! use ernie_vil::vectors::Embeddings;
//! let prompts = prompts(&["猫", "狗"], &["一张{}的照片", "这是{}。"])?;
//! assert_eq!(prompts, ["一张猫的照片", "这是猫。", "一张狗的照片", "这是狗。"]);
//! // What a text tower makes of them.
//! let rows = Embeddings::new(4, 2, vec![1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0])?;
//! let labels = label_vectors(rows, 2)?;
//! assert_eq!(labels.row(0), [0.70710677, 0.70710677]);
//! assert_eq!(labels.row(1), [1.0, 0.0]);
//! let shares = probabilities(&[0.30, 0.25], 14.29);
//! assert!(shares[0] > 0.67 && shares[0] + shares[1] == 1.0);
//! # Ok::<(), ernie_vil::Error>(())
//! ```

use crate::vectors::Embeddings;
use crate::{Error, Result};

/// What stands for the label in a template.
pub const PLACE: &str = "{}";

/// What other programs write for it, and what a Chinese keyboard makes of it.
const OTHER_PLACES: [&str; 6] = ["%s", "｛｝", "{｝", "｛}", "()", "<label>"];

/// The templates of an ensemble, for photographs and drawings.
///
/// ```
/// assert!(ernie_vil::classify::TEMPLATES.iter().all(|template| template.contains("{}")));
/// ```
pub const TEMPLATES: [&str; 12] = [
    "{}",
    "{}的照片",
    "一张{}的照片",
    "一张有{}的图片",
    "一张拍得很清楚的{}照片",
    "一张模糊的{}照片",
    "{}的近景",
    "远处的{}",
    "照片里能看到{}",
    "这是{}",
    "一幅画着{}的画",
    "网上找到的{}图片",
];

/// Every label in every template, label by label.
///
/// # Errors
/// [`Error::Text`] where there is no label or no template, a label is empty, and where a template has no [`PLACE`].
pub fn prompts<L: AsRef<str>, T: AsRef<str>>(labels: &[L], templates: &[T]) -> Result<Vec<String>> {
    if labels.is_empty() || templates.is_empty() {
        return Err(Error::Text(format!(
            "{} labels and {} templates, expected at least one of each",
            labels.len(),
            templates.len()
        )));
    }
    if let Some(at) = labels.iter().position(|label| label.as_ref().trim().is_empty()) {
        return Err(Error::Text(format!(
            "label {} of {} is empty, expected some text",
            at + 1,
            labels.len()
        )));
    }
    if let Some(template) = templates.iter().map(T::as_ref).find(|text| !text.contains(PLACE)) {
        let other = OTHER_PLACES.iter().find(|place| template.contains(*place));
        let hint = match (other, template.find('{').zip(template.find('}'))) {
            (Some(other), _) => format!("; write {PLACE} for {other}"),
            (None, Some((start, end))) if start < end => {
                format!("; write {PLACE} for {}", &template[start..=end])
            }
            (None, _) => String::new(),
        };
        return Err(Error::Text(format!(
            "the template {template:?} has no {PLACE} where the label goes{hint}"
        )));
    }
    let of_label = |label: &L| {
        let label = label.as_ref().to_owned();
        (templates.iter()).map(move |template| template.as_ref().replace(PLACE, &label))
    };
    Ok(labels.iter().flat_map(of_label).collect())
}

/// A vector a label: the mean of those of its prompts, which have length 1, divided by its length. `prompts` are the
/// vectors in the order of [`prompts`].
///
/// # Errors
/// [`Error::Vectors`] where the rows are not a multiple of `templates`, and where the vectors of a label add up to nothing.
pub fn label_vectors(prompts: Embeddings, templates: usize) -> Result<Embeddings> {
    if templates == 0 || !prompts.rows().is_multiple_of(templates) {
        return Err(Error::Vectors(format!(
            "{} rows, expected a multiple of the {templates} templates",
            prompts.rows()
        )));
    }
    if templates == 1 {
        return Ok(prompts);
    }
    let dimensions = prompts.dimensions();
    let mut data = Vec::with_capacity(prompts.data().len() / templates);
    for rows in prompts.data().chunks_exact((templates * dimensions).max(1)) {
        let mean = |at| {
            let sum: f64 = rows
                .iter()
                .skip(at)
                .step_by(dimensions)
                .copied()
                .map(f64::from)
                .sum();
            (sum / templates as f64) as f32
        };
        data.extend((0..dimensions).map(mean));
    }
    let mut labels = Embeddings::new(prompts.rows() / templates, dimensions, data)?;
    labels.normalise()?;
    Ok(labels)
}

/// The softmax of scores times `scale` ([`ModelConfig::scale`](crate::ModelConfig::scale)): each one's share.
pub fn probabilities(scores: &[f32], scale: f64) -> Vec<f32> {
    let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = (scores.iter())
        .map(|score| (f64::from(score - best) * scale).exp())
        .collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| (weight / sum) as f32).collect()
}
