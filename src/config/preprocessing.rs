//! The profiles of preprocessing.

use serde::{Deserialize, Serialize};

/// How an image becomes the tensor that the image tower takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Preprocessing {
    /// The original's: OpenCV's bilinear resize of the short side, centre crop, ImageNet's mean and
    /// standard deviation.
    #[default]
    #[serde(rename = "ernie-vil-2.0")]
    Original,
    /// That of PaddleNLP's `ernie_vil-2.0-base-zh`, another front end of the same weights: Pillow's bicubic
    /// resize of the short side with antialiasing, centre crop, the same mean and standard deviation. Its
    /// vectors differ slightly.
    #[serde(rename = "paddlenlp")]
    PaddleNlp,
}

impl Preprocessing {
    /// Tokens of a caption at most, where nothing else is said.
    pub fn max_text_tokens(self) -> usize {
        match self {
            Self::Original => 48,
            Self::PaddleNlp => 64,
        }
    }
}
