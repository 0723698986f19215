//! The four pairs of towers that ERNIE-ViL 2.0 was published with.

use super::{EfficientNetConfig, ErnieConfig, ImageConfig, VitConfig};

/// The structures of the original's paper.
///
/// ```
/// use ernie_vil::Structure;
/// let names = Structure::ALL.map(Structure::name);
/// assert_eq!(names, ["Base (ViT)", "Large (ViT)", "Base (CNN)", "Large (CNN)"]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Structure {
    /// ViT-B/16 and ERNIE 3.0 Base.
    BaseVit,
    /// ViT-L/14 and ERNIE 3.0 Large.
    LargeVit,
    /// EfficientNet-B5 and ERNIE 2.0 Base.
    BaseCnn,
    /// EfficientNet-L2 and ERNIE 2.0 Large.
    LargeCnn,
}

impl Structure {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::BaseVit, Self::LargeVit, Self::BaseCnn, Self::LargeCnn];

    /// What the original calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::BaseVit => "Base (ViT)",
            Self::LargeVit => "Large (ViT)",
            Self::BaseCnn => "Base (CNN)",
            Self::LargeCnn => "Large (CNN)",
        }
    }

    /// The image tower's sizes. The original never published what its CNNs put on top of the pooled channels;
    /// here it is a linear layer to the text tower's width.
    pub fn image(self) -> ImageConfig {
        let projected = |net| EfficientNetConfig {
            projection: Some(self.text().width),
            ..net
        };
        match self {
            Self::BaseVit => VitConfig::base().into(),
            Self::LargeVit => VitConfig::large().into(),
            Self::BaseCnn => projected(EfficientNetConfig::b5()).into(),
            Self::LargeCnn => projected(EfficientNetConfig::l2()).into(),
        }
    }

    /// The text tower's sizes.
    pub fn text(self) -> ErnieConfig {
        match self {
            Self::BaseVit => ErnieConfig::base(),
            Self::LargeVit => ErnieConfig::large(),
            Self::BaseCnn => ErnieConfig::ernie2_base(),
            Self::LargeCnn => ErnieConfig::ernie2_large(),
        }
    }
}
