//! The sizes of an image tower of any kind, and how they are read from JSON.

use serde::{Deserialize, Serialize};

use super::{EfficientNetConfig, VitConfig, efficientnet};
use crate::Result;

/// The image tower: which kind it is, and its sizes.
///
/// In JSON a vision transformer is its sizes alone; others say what they are.
///
/// ```
/// use ernie_vil::{EfficientNetConfig, ImageConfig};
/// let json = r#"{
///     "kind": "efficientnet", "image_size": 456, "width_multiplier": 1.6, "depth_multiplier": 2.2
/// }"#;
/// let config: ImageConfig = serde_json::from_str(json)?;
/// assert_eq!(config, EfficientNetConfig::b5().into());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum ImageConfig {
    /// A vision transformer.
    Vit(VitConfig),
    /// A convolutional network.
    EfficientNet(EfficientNetConfig),
}

impl ImageConfig {
    /// Height and width of the input, in pixels.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Vit(vit) => vit.image_size,
            Self::EfficientNet(net) => net.image_size,
        }
    }

    /// Width of the embedding.
    pub fn width(&self) -> usize {
        match self {
            Self::Vit(vit) => vit.width,
            Self::EfficientNet(net) => net.width(),
        }
    }

    /// Number of positions that an image has inside the tower: its patches, or, in a convolutional network,
    /// the pixels of the last feature map.
    pub fn patches(&self) -> usize {
        match self {
            Self::Vit(vit) => vit.patches(),
            Self::EfficientNet(net) => net.image_size.div_ceil(32).pow(2),
        }
    }

    /// Checks every size.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) names the field, its value and what was expected.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Vit(vit) => vit.validate(),
            Self::EfficientNet(net) => net.validate(),
        }
    }
}

impl Serialize for ImageConfig {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(tag = "kind")]
        enum Tagged<'a> {
            #[serde(rename = "efficientnet")]
            EfficientNet(&'a EfficientNetConfig),
        }
        match self {
            Self::Vit(vit) => vit.serialize(serializer),
            Self::EfficientNet(net) => Tagged::EfficientNet(net).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ImageConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        /// The fields of all kinds: one reader for them is less code than one for each.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            kind: Option<String>,
            image_size: usize,
            patch_size: Option<usize>,
            width: Option<usize>,
            depth: Option<usize>,
            heads: Option<usize>,
            mlp_width: Option<usize>,
            epsilon: Option<f64>,
            width_multiplier: Option<f64>,
            depth_multiplier: Option<f64>,
            projection: Option<usize>,
        }
        let fields = Fields::deserialize(deserializer)?;
        let is_vit = fields.kind.is_none();
        let others = match fields.kind.as_deref() {
            None => [
                ("width_multiplier", fields.width_multiplier.is_some()),
                ("depth_multiplier", fields.depth_multiplier.is_some()),
                ("projection", fields.projection.is_some()),
                ("", false),
                ("", false),
            ],
            Some("efficientnet") => [
                ("patch_size", fields.patch_size.is_some()),
                ("width", fields.width.is_some()),
                ("depth", fields.depth.is_some()),
                ("heads", fields.heads.is_some()),
                ("mlp_width", fields.mlp_width.is_some()),
            ],
            Some(kind) => {
                return Err(D::Error::custom(format_args!(
                    "kind is {kind:?}, expected \"efficientnet\", or none for a vision transformer"
                )));
            }
        };
        if let Some((name, _)) = others.into_iter().find(|(_, given)| *given) {
            return Err(D::Error::custom(format_args!(
                "unknown field `{name}` of this kind of tower"
            )));
        }
        let size = |name, value: Option<usize>| value.ok_or_else(|| D::Error::missing_field(name));
        let number = |name, value: Option<f64>| value.ok_or_else(|| D::Error::missing_field(name));
        Ok(match is_vit {
            true => Self::Vit(VitConfig {
                image_size: fields.image_size,
                patch_size: size("patch_size", fields.patch_size)?,
                width: size("width", fields.width)?,
                depth: size("depth", fields.depth)?,
                heads: size("heads", fields.heads)?,
                mlp_width: size("mlp_width", fields.mlp_width)?,
                epsilon: number("epsilon", fields.epsilon)?,
            }),
            false => Self::EfficientNet(EfficientNetConfig {
                image_size: fields.image_size,
                width_multiplier: number("width_multiplier", fields.width_multiplier)?,
                depth_multiplier: number("depth_multiplier", fields.depth_multiplier)?,
                epsilon: fields.epsilon.unwrap_or(efficientnet::EPSILON),
                projection: fields.projection,
            }),
        })
    }
}

impl From<EfficientNetConfig> for ImageConfig {
    fn from(net: EfficientNetConfig) -> Self {
        Self::EfficientNet(net)
    }
}

impl From<&EfficientNetConfig> for ImageConfig {
    fn from(net: &EfficientNetConfig) -> Self {
        Self::EfficientNet(net.clone())
    }
}

impl From<VitConfig> for ImageConfig {
    fn from(vit: VitConfig) -> Self {
        Self::Vit(vit)
    }
}

impl From<&VitConfig> for ImageConfig {
    fn from(vit: &VitConfig) -> Self {
        Self::Vit(vit.clone())
    }
}

impl From<&ImageConfig> for ImageConfig {
    fn from(config: &ImageConfig) -> Self {
        config.clone()
    }
}
