//! The multi-view contrastive loss.

use std::collections::HashMap;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// One way to look at a pair: what stands on either side of a contrast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// The image.
    Image,
    /// The image, augmented another time.
    #[serde(rename = "image_2")]
    Image2,
    /// The caption.
    Caption,
    /// The caption, with another choice of what dropout leaves out.
    #[serde(rename = "caption_2")]
    Caption2,
    /// The names of the objects in the picture.
    Tags,
}

impl View {
    /// All views.
    pub const ALL: [Self; 5] = [
        Self::Image,
        Self::Image2,
        Self::Caption,
        Self::Caption2,
        Self::Tags,
    ];

    /// Whether the image tower sees it.
    pub fn is_image(self) -> bool {
        matches!(self, Self::Image | Self::Image2)
    }

    /// The name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Image2 => "image_2",
            Self::Caption => "caption",
            Self::Caption2 => "caption_2",
            Self::Tags => "tags",
        }
    }
}

/// Two views that are contrasted, and the weight of their term in the loss: `[image, caption, 1.0]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pair(pub View, pub View, pub f64);

impl Pair {
    /// The name of its term: `image-caption`.
    pub fn name(&self) -> String {
        format!("{}-{}", self.0.name(), self.1.name())
    }
}

/// Checks a list of pairs.
///
/// # Errors
/// [`Error::Config`] where there is none, a pair is of a view with itself or stands there twice, or a weight
/// is not above 0.
pub fn check_pairs(pairs: &[Pair]) -> Result<()> {
    if pairs.is_empty() {
        return Err(Error::Config("pairs is empty, expected at least one".into()));
    }
    for (i, pair) in pairs.iter().enumerate() {
        let name = pair.name();
        let problem = if pair.0 == pair.1 {
            "contrasts a view with itself"
        } else if !(pair.2 > 0.0 && pair.2.is_finite()) {
            "has a weight that is not above 0"
        } else if pairs[..i]
            .iter()
            .any(|p| (p.0, p.1) == (pair.0, pair.1) || (p.1, p.0) == (pair.0, pair.1))
        {
            "stands there twice"
        } else {
            continue;
        };
        return Err(Error::Config(format!("pairs: {name} {problem}")));
    }
    Ok(())
}

/// The loss of a batch.
#[derive(Debug, Clone)]
pub struct Loss {
    /// The weighted sum, \[1\].
    pub total: Tensor<1>,
    /// Each pair's own term, not weighted, \[1\] each, in the pairs' order.
    pub terms: Vec<Tensor<1>>,
}

/// Which rows of a batch have the same text, by a number for each row: equal texts are not negatives of one
/// another.
#[derive(Debug, Clone, Default)]
pub struct EqualTexts {
    /// The numbers of the captions.
    pub captions: Vec<usize>,
    /// The numbers of the tags.
    pub tags: Vec<usize>,
}

impl EqualTexts {
    /// Numbers rows by what their texts are.
    pub fn of<T: AsRef<[u32]>>(captions: &[T], tags: &[T]) -> Self {
        let number = |texts: &[T]| {
            let mut first: HashMap<&[u32], usize> = HashMap::new();
            let texts = texts.iter().map(T::as_ref).enumerate();
            texts.map(|(i, text)| *first.entry(text).or_insert(i)).collect()
        };
        Self {
            captions: number(captions),
            tags: number(tags),
        }
    }

    fn of_view(&self, view: View) -> Option<&[usize]> {
        match view {
            View::Image | View::Image2 => None,
            View::Caption | View::Caption2 => Some(&self.captions),
            View::Tags => Some(&self.tags),
        }
    }

    /// Where a text of the pair equals another row's: [rows, rows], false on the diagonal.
    fn mask(&self, pair: &Pair, rows: usize, device: &Device) -> Option<Tensor<2, Bool>> {
        let equal = |i: usize, j: usize| {
            [pair.0, pair.1]
                .into_iter()
                .filter_map(|view| self.of_view(view))
                .any(|numbers| numbers[i] == numbers[j])
        };
        let mask: Vec<bool> = (0..rows * rows)
            .map(|at| (at / rows, at % rows))
            .map(|(i, j)| i != j && equal(i, j))
            .collect();
        mask.contains(&true)
            .then(|| Tensor::from_data(TensorData::new(mask, [rows, rows]), device))
    }
}

/// The weighted sum of symmetric InfoNCE terms over pairs of views, with the other rows of the batch as
/// negatives.
///
/// With U and V the two views' embeddings, normalised, and s = exp(`temperature`), the logits of a pair are
/// s U V^T; its term is the mean of the cross entropies of the rows and of the columns, the true one being
/// the diagonal. `embeddings` holds [rows, width] for each view that a pair names; `temperature` is \[1\].
///
/// # Panics
/// Where a view's embeddings are not there.
pub fn contrastive_loss(
    embeddings: &[(View, Tensor<2>)],
    pairs: &[Pair],
    temperature: Tensor<1>,
    equal: Option<&EqualTexts>,
) -> Loss {
    let device = temperature.device();
    let scale = temperature.exp().unsqueeze::<2>();
    let normalised: Vec<(View, Tensor<2>)> = embeddings
        .iter()
        .map(|(view, x)| (*view, x.clone() / x.clone().square().sum_dim(1).sqrt()))
        .collect();
    let of = |view: View| {
        let found = normalised.iter().find(|(v, _)| *v == view);
        found.expect("each view has its embeddings").1.clone()
    };
    let mut total: Option<Tensor<1>> = None;
    let mut terms = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let (u, v) = (of(pair.0), of(pair.1));
        let [rows, _] = u.dims();
        let mut logits = u.matmul(v.transpose()) * scale.clone();
        if let Some(mask) = equal.and_then(|equal| equal.mask(pair, rows, &device)) {
            logits = logits.mask_fill(mask, -1e9);
        }
        let diagonal = Tensor::<1, Int>::arange(0..rows as i64, &device).reshape([rows, 1]);
        let entropy = |logits: Tensor<2>| {
            -log_softmax(logits, 1)
                .gather(1, diagonal.clone())
                .mean()
                .reshape([1])
        };
        let term = (entropy(logits.clone()) + entropy(logits.transpose())) * 0.5;
        let weighted = term.clone() * pair.2;
        total = Some(match total {
            Some(total) => total + weighted,
            None => weighted,
        });
        terms.push(term);
    }
    Loss {
        total: total.expect("at least one pair"),
        terms,
    }
}
