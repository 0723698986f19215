use js_sys::Uint32Array;
use serde::Serialize;
use wasm_bindgen::prelude::*;

use super::{object, place, thrown};
use crate::classify::TEMPLATES;
use crate::image::{Limits, Pixels, Preprocessor};
use crate::text::Tokenizer;
use crate::towers::{DualEncoder, ImageTower, ImageTowerStream, TextTower, TextTowerStream};
#[cfg(feature = "webgpu")]
use crate::webgpu::Precision;
use crate::weights::Dtype;
use crate::{Error, ModelConfig};

/// A model in the making, from the bytes of a model folder's files as they arrive.
#[wasm_bindgen]
pub struct ModelLoader {
    config: ModelConfig,
    tokenizer: Option<Tokenizer>,
    image: Option<ImageTowerStream>,
    text: Option<TextTowerStream>,
}

#[wasm_bindgen]
impl ModelLoader {
    /// Starts with the bytes of `config.json` and, for the text tower, of `vocab.txt`. `dtype` is how the
    /// weights are kept.
    #[wasm_bindgen(constructor)]
    pub fn new(
        config: &[u8],
        vocab: Option<Vec<u8>>,
        image: bool,
        text: bool,
        #[wasm_bindgen(unchecked_param_type = "\"auto\" | \"f32\" | \"f16\"")] dtype: &str,
    ) -> Result<Self, JsValue> {
        Self::start(config, vocab, image, text, dtype).map_err(thrown)
    }

    fn start(
        config: &[u8],
        vocab: Option<Vec<u8>>,
        image: bool,
        text: bool,
        dtype: &str,
    ) -> crate::Result<Self> {
        let config = ModelConfig::from_json(config).map_err(|error| error.within("config.json"))?;
        let place = place()?;
        #[cfg(feature = "webgpu")]
        let place = match dtype {
            "f32" => place.with_precision(Precision::Single),
            "f16" => place.with_precision(Precision::Half),
            _ => place,
        };
        #[cfg(not(feature = "webgpu"))]
        if dtype == "f16" {
            return Err(Error::Device(
                "f16 was asked for, expected f32 or auto: the processor's kernels keep weights in single precision".into(),
            ));
        }
        let tokenizer = match (text, vocab) {
            (false, _) => None,
            (true, None) => {
                return Err(Error::Vocabulary(
                    "not given, expected vocab.txt: the text tower needs it".into(),
                ));
            }
            (true, Some(vocab)) => {
                let tokenizer = Tokenizer::parse(&vocab, config.text.vocab_size);
                Some(tokenizer.map_err(|error| error.within("vocab.txt"))?)
            }
        };
        // Of the two kinds of towers a module has one.
        #[cfg(feature = "webgpu")]
        let (image, text) = (
            image.then(|| ImageTowerStream::on_gpu(&config.image, &place)),
            text.then(|| TextTowerStream::on_gpu(&config.text, &place)),
        );
        #[cfg(not(feature = "webgpu"))]
        let (image, text) = (
            image.then(|| ImageTowerStream::on_host(&config.image, &place)),
            text.then(|| TextTowerStream::on_host(&config.text, &place)),
        );
        Ok(Self {
            image: image.transpose()?,
            text: text.transpose()?,
            tokenizer,
            config,
        })
    }

    /// Takes the next bytes of `image.safetensors` or `text.safetensors`, in order, pieces of any size.
    pub fn feed(
        &mut self,
        #[wasm_bindgen(unchecked_param_type = "\"image\" | \"text\"")] tower: &str,
        bytes: &[u8],
    ) -> Result<(), JsValue> {
        let fed = match (tower, &mut self.image, &mut self.text) {
            ("image", Some(image), _) => image.feed(bytes),
            ("text", _, Some(text)) => text.feed(bytes),
            _ => Err(Error::Weights(format!(
                "{tower:?}, expected \"image\" or \"text\", of a tower that is wanted"
            ))),
        };
        fed.map_err(|error| thrown(error.within(format!("{tower}.safetensors"))))
    }

    /// The model, when every file has arrived whole.
    pub fn finish(self) -> Result<Model, JsValue> {
        let image = self.image.map(ImageTowerStream::finish).transpose();
        let text = self.text.map(TextTowerStream::finish).transpose();
        Ok(Model {
            tokenizer: self.tokenizer,
            encoder: DualEncoder {
                image: image.map_err(|error| thrown(error.within("image.safetensors")))?,
                text: text.map_err(|error| thrown(error.within("text.safetensors")))?,
                config: self.config,
            },
        })
    }
}

/// A model: its tokenizer and the towers that were loaded.
#[wasm_bindgen]
pub struct Model {
    tokenizer: Option<Tokenizer>,
    encoder: DualEncoder,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info<'a> {
    name: &'a str,
    note: Option<&'a str>,
    structure: &'a str,
    fingerprint: &'a str,
    dimensions: usize,
    max_text_tokens: usize,
    /// What cosines are multiplied by before a softmax.
    logit_scale: f64,
    /// The prompts of an ensemble.
    templates: &'a [&'a str],
    image_size: usize,
    vocab_size: usize,
    towers: Vec<&'a str>,
    parameters: u64,
    /// How the weights are kept where the towers compute.
    dtype: &'a str,
}

#[wasm_bindgen(typescript_custom_section)]
const INFO: &str = "
export interface ModelInfo {
    name: string;
    note: string | null;
    structure: string;
    fingerprint: string;
    dimensions: number;
    maxTextTokens: number;
    logitScale: number;
    templates: string[];
    imageSize: number;
    vocabSize: number;
    towers: (\"image\" | \"text\")[];
    parameters: number;
    dtype: \"f32\" | \"f16\" | \"int8\" | \"int4\";
}
";

#[wasm_bindgen]
impl Model {
    /// What the model is.
    #[wasm_bindgen(unchecked_return_type = "ModelInfo")]
    pub fn info(&self) -> Result<JsValue, JsValue> {
        let config = &self.encoder.config;
        let loaded = [
            ("image", self.encoder.image.is_some()),
            ("text", self.encoder.text.is_some()),
        ];
        let towers = || loaded.iter().filter(|(_, loaded)| *loaded);
        let parameters = towers().map(|(tower, _)| match *tower {
            "image" => config.image.parameters(),
            _ => config.text.parameters(),
        });
        let encoder = &self.encoder;
        let image = encoder.image.as_ref().map(ImageTower::dtype);
        let dtype = image.or_else(|| encoder.text.as_ref().map(TextTower::dtype));
        let dtype = dtype.unwrap_or(Dtype::F32).to_string();
        object(&Info {
            name: &config.name,
            note: config.note.as_deref(),
            structure: config.structure(),
            fingerprint: &config.fingerprint,
            dimensions: config.image.width(),
            max_text_tokens: config.max_text_tokens,
            logit_scale: config.scale(),
            templates: &TEMPLATES,
            image_size: config.image.image_size(),
            vocab_size: config.text.vocab_size,
            towers: towers().map(|(tower, _)| *tower).collect(),
            parameters: parameters.sum(),
            dtype: &dtype,
        })
    }

    /// The ids of each caption, `[CLS]` and `[SEP]` included, without padding.
    pub fn tokenize(&self, texts: Vec<String>) -> Result<Vec<Uint32Array>, JsValue> {
        let ids = self.ids(&texts).map_err(thrown)?;
        Ok(ids.iter().map(|ids| Uint32Array::from(ids.as_slice())).collect())
    }

    /// Captions to vectors of unit length, behind one another in order.
    #[wasm_bindgen(js_name = embedText)]
    pub async fn embed_text(&self, texts: Vec<String>) -> Result<Vec<f32>, JsValue> {
        let ids = self.ids(&texts).map_err(thrown)?;
        let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let tower = self.encoder.text.as_ref();
        let tower = tower.ok_or_else(|| thrown(Error::Text("the text tower is not loaded".into())))?;
        Ok(tower.embed_async(&ids).await.map_err(thrown)?.into_data())
    }

    /// A JPEG, PNG, WebP, BMP, TIFF or PNM file to the crop that the image tower sees: red, green and blue of
    /// `size * size` pixels, a byte each.
    pub fn crop(&self, file: &[u8]) -> Result<Vec<u8>, JsValue> {
        let crop = self.preprocessor().decode_crop(file, &Limits::default());
        Ok(crop.map_err(thrown)?.into_data())
    }

    /// As `crop`, of `width * height` pixels of red, green, blue and alpha, of which the last is dropped as
    /// in the original.
    #[wasm_bindgen(js_name = cropRgba)]
    pub fn crop_rgba(&self, rgba: &[u8], width: u32, height: u32) -> Result<Vec<u8>, JsValue> {
        let (pixels, []) = rgba.as_chunks::<4>() else {
            return Err(thrown(Error::Image(format!(
                "{} bytes, expected a multiple of 4",
                rgba.len()
            ))));
        };
        let rgb = pixels.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect();
        let pixels = Pixels::new(width, height, rgb).map_err(thrown)?;
        Ok(self.preprocessor().crop(&pixels).into_data())
    }

    /// A crop as the tower computes with it: planes of red, green and blue, normalised.
    pub fn normalise(&self, crop: &[u8]) -> Result<Vec<f32>, JsValue> {
        let preprocessor = self.preprocessor();
        if crop.len() != preprocessor.values() {
            return Err(thrown(Error::Image(format!(
                "a crop of {} bytes, expected {}",
                crop.len(),
                preprocessor.values()
            ))));
        }
        let mut pixels = vec![0.0; crop.len()];
        preprocessor.normalise(crop, &mut pixels);
        Ok(pixels)
    }

    /// Some images' crops, behind one another, to vectors of unit length in the same order.
    #[wasm_bindgen(js_name = embedImages)]
    pub async fn embed_images(&self, crops: Vec<u8>) -> Result<Vec<f32>, JsValue> {
        let tower = self.image_tower()?;
        let embeddings = tower.embed_crops_async(&crops, &self.preprocessor()).await;
        Ok(embeddings.map_err(thrown)?.into_data())
    }

    /// As `embedImages`, of images as `normalise` gives them: for inputs that no file becomes.
    #[wasm_bindgen(js_name = embedPixels)]
    pub async fn embed_pixels(&self, pixels: Vec<f32>) -> Result<Vec<f32>, JsValue> {
        let tower = self.image_tower()?;
        Ok(tower.embed_async(&pixels).await.map_err(thrown)?.into_data())
    }

    fn image_tower(&self) -> Result<&ImageTower, JsValue> {
        let tower = self.encoder.image.as_ref();
        tower.ok_or_else(|| thrown(Error::Image("the image tower is not loaded".into())))
    }

    fn ids(&self, texts: &[String]) -> crate::Result<Vec<Vec<u32>>> {
        let tokenizer = self.tokenizer.as_ref();
        let tokenizer = tokenizer.ok_or_else(|| Error::Text("the text tower is not loaded".into()))?;
        let most = self.encoder.config.max_text_tokens;
        texts.iter().map(|text| tokenizer.encode(text, most)).collect()
    }

    fn preprocessor(&self) -> Preprocessor {
        Preprocessor::of(&self.encoder.config)
    }
}
