//! What a graphics card has to compute before it is trusted.

use super::image::ImageTower;
use super::text::TextTower;
use crate::config::{Activation as TextActivation, ErnieConfig, VitConfig};
use crate::weights::RandomWeights;
use crate::{Error, Result};

/// Computes captions and images on small towers of which it is known what comes out, before a card is
/// trusted: one that miscompiles a kernel may leave wrong numbers and say nothing.
///
/// # Errors
/// [`Error::Device`] where something else comes out, or where the card fails.
#[cfg(feature = "wgpu")]
pub async fn check_gpu(gpu: &crate::gpu::Gpu) -> Result<()> {
    let known = Known::new();
    let weights = RandomWeights::new(&known.image, &known.text, 1);
    let (device, engine) = (gpu.device(), gpu.engine());
    let image = ImageTower::load(&weights, &known.image, device, engine)?;
    let text = TextTower::load(&weights, &known.text, device, engine)?;
    check(&known, &image, &text, gpu.name()).await
}

/// As [`check_gpu`], of a card in a browser.
///
/// # Errors
/// As [`check_gpu`].
#[cfg(feature = "webgpu")]
pub async fn check_webgpu(gpu: &crate::webgpu::Gpu) -> Result<()> {
    let known = Known::new();
    let weights = RandomWeights::new(&known.image, &known.text, 1);
    let image = ImageTower::load_on_gpu(&weights, &known.image, gpu)?;
    let text = TextTower::load_on_gpu(&weights, &known.text, gpu)?;
    check(&known, &image, &text, gpu.name()).await
}

async fn check(known: &Known, image: &ImageTower, text: &TextTower, name: &str) -> Result<()> {
    let captions: Vec<&[u32]> = known.captions.iter().map(Vec::as_slice).collect();
    let images = image.embed_async(&known.pixels).await?;
    let texts = text.embed_async(&captions).await?;
    for (what, got, expected) in [
        ("images", images, &IMAGES[..]),
        ("captions", texts, &CAPTIONS[..]),
    ] {
        // Half precision moves them by a few ten-thousandths.
        let wrong =
            |(got, expected): (&f32, &f32)| (got - expected).abs().is_nan() || (got - expected).abs() > 2e-3;
        if got.data().iter().zip(expected).any(wrong) {
            return Err(Error::Device(format!(
                "{:?} computes wrong vectors of {what}, expected those of the processor",
                name
            )));
        }
    }
    Ok(())
}

/// What a card is asked to compute.
struct Known {
    image: VitConfig,
    text: ErnieConfig,
    pixels: Vec<f32>,
    captions: Vec<Vec<u32>>,
}

impl Known {
    fn new() -> Self {
        let image = VitConfig {
            image_size: 16,
            patch_size: 4,
            width: 8,
            depth: 2,
            heads: 2,
            mlp_width: 16,
            epsilon: 1e-6,
        };
        let text = ErnieConfig {
            vocab_size: 50,
            max_positions: 24,
            width: 8,
            depth: 2,
            heads: 2,
            query_head_width: 4,
            value_head_width: 4,
            mlp_width: 16,
            activation: TextActivation::Gelu,
            epsilon: 1e-5,
            sentence_types: None,
            task_types: None,
        };
        let pixel = |i: usize| ((i * 37) % 101) as f32 / 50.0 - 1.0;
        let caption = |length: u32| (0..length).map(|i| 1 + (i * 17 + length) % 49).collect();
        Self {
            pixels: (0..2 * 3 * 16 * 16).map(pixel).collect(),
            captions: [3, 20].map(caption).to_vec(),
            image,
            text,
        }
    }
}

/// The vectors of [`Known`], by the processor.
const IMAGES: [f32; 16] = [
    0.7267298,
    0.3404158,
    -0.34215784,
    -0.3459751,
    0.054788113,
    -0.30721945,
    -0.13730742,
    -0.054508973,
    0.7931967,
    0.007890257,
    -0.2564271,
    -0.27253184,
    0.27011737,
    -0.24543351,
    -0.24860747,
    -0.18905456,
];
const CAPTIONS: [f32; 16] = [
    -0.30715522,
    -0.047657527,
    0.4124491,
    -0.44909254,
    -0.41857183,
    0.32505113,
    -0.35561386,
    -0.35251132,
    0.5678424,
    -0.55325544,
    -0.18349409,
    0.15896836,
    -0.19931553,
    -0.20997998,
    0.3928745,
    -0.27267882,
];

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    #[cfg(feature = "wgpu")]
    use crate::gpu::Gpu;
    use crate::towers::Engine;
    #[cfg(feature = "wgpu")]
    use crate::towers::Precision;

    #[test]
    fn the_check_of_a_card_knows_what_comes_out() {
        let known = Known::new();
        let weights = RandomWeights::new(&known.image, &known.text, 1);
        let image = ImageTower::load(&weights, &known.image, &Device::flex(), Engine::Auto).unwrap();
        let text = TextTower::load(&weights, &known.text, &Device::flex(), Engine::Auto).unwrap();
        let captions: Vec<&[u32]> = known.captions.iter().map(Vec::as_slice).collect();
        let [images, texts] = [
            image.embed(&known.pixels).unwrap(),
            text.embed(&captions).unwrap(),
        ];
        for (got, expected) in [(images, IMAGES), (texts, CAPTIONS)] {
            assert_eq!(got.data().len(), expected.len());
            for (a, b) in got.data().iter().zip(&expected) {
                assert!((a - b).abs() < 1e-5, "{:?}", got.data());
            }
        }
    }

    #[cfg(feature = "wgpu")]
    #[test]
    fn a_card_passes_its_check_in_every_precision() {
        match pollster::block_on(Gpu::open(true)) {
            Err(error) => crate::skip::skipped(error),
            Ok(gpu) => {
                for precision in [Precision::Stored, Precision::Single, Precision::Half] {
                    pollster::block_on(check_gpu(&gpu.clone().with_precision(precision))).unwrap();
                }
            }
        }
    }
}
