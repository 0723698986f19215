//! The text tower, whatever computes it.

use std::sync::OnceLock;

use burn::tensor::{Device, FloatDType, Tensor, TensorData};

use super::ernie::Ernie;
use super::image::Later;
use super::load::{Layered, Loader, Words, WordsOnDevice};
use super::{Engine, normalised, wait};
use crate::ops::{How, Layout, Pass, Step, Trace, host_values, host_values_async, narrowed, to};
use crate::vectors::Embeddings;
use crate::weights::{self, Dtype, TensorSource};
use crate::{ErnieConfig, Error, Result};

/// What computes a text tower, from checked captions without padding; as
/// [`ImageBody`](super::image::ImageBody).
pub(super) trait TextBody: Send + Sync {
    fn embed(&self, words: &Words, captions: &[&[u32]]) -> Result<Vec<f32>>;

    fn embed_async<'a>(&'a self, words: &'a Words, captions: &'a [&'a [u32]]) -> Later<'a>;

    fn trace(&self, words: &Words, captions: &[&[u32]]) -> Result<Vec<Step>>;

    /// How its weights are kept.
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    /// The embeddings on the device, where it is a Burn module.
    fn forward(&self, _words: &Words, _captions: &[&[u32]]) -> Option<Tensor<2>> {
        None
    }
}

/// A text tower as a Burn module, with its tables, which go to the device with the first captions.
pub(super) struct ErnieOnDevice {
    module: Ernie,
    device: Device,
    #[cfg(feature = "cube")]
    engine: Engine,
    how: How,
    tables: OnceLock<WordsOnDevice>,
}

impl ErnieOnDevice {
    pub(super) fn new(module: Ernie, device: &Device, engine: Engine) -> Self {
        let how = engine.how(device);
        Self {
            module: narrowed(module, how.options().dtype()),
            device: device.clone(),
            #[cfg(feature = "cube")]
            engine,
            how,
            tables: OnceLock::new(),
        }
    }

    fn forward(&self, embedded: Tensor<2>, layout: &Layout, trace: Trace<'_>) -> Tensor<2> {
        let mut pass = Pass::new(self.how, trace);
        let embedded = pass.rows(embedded);
        to(self.module.forward(embedded, layout, &mut pass), FloatDType::F32)
    }

    /// Captions without padding between them, their words looked up on the host: every step but attention
    /// works on single rows, and attention knows where each caption ends.
    fn ragged(&self, words: &Words, captions: &[&[u32]], trace: Trace<'_>) -> Tensor<2> {
        let width = words.width();
        let mut rows = Vec::with_capacity(captions.iter().map(|c| c.len()).sum::<usize>() * width);
        let sequences = words.pack(captions, |row, id, position| {
            rows.resize((row + 1) * width, 0.0);
            words.embed(id, position, &mut rows[row * width..]);
        });
        let shape = [rows.len() / width, width];
        let embedded = Tensor::from_data(TensorData::new(rows, shape), &self.device);
        self.forward(embedded, &self.how.ragged(sequences, &self.device), trace)
    }

    /// As [`ErnieOnDevice::ragged`], so many rows at a time.
    #[cfg(feature = "cube")]
    async fn in_parts(&self, words: &Words, captions: &[&[u32]]) -> Result<Vec<f32>> {
        let most = self.engine.rows_at_once(self.module.widest());
        let (mut rest, mut parts) = (captions, Vec::new());
        // All are begun before the first is waited for.
        while !rest.is_empty() {
            let mut rows = 0;
            let fit = rest.iter().take_while(|caption| {
                rows += caption.len();
                rows <= most
            });
            let (some, others) = rest.split_at(fit.count().max(1));
            parts.push(self.ragged(words, some, Trace::new("text", None)));
            rest = others;
        }
        let mut values = Vec::new();
        for part in parts {
            values.append(&mut host_values_async(part).await?);
        }
        Ok(values)
    }

    /// Captions of like length together: each group is padded to its longest only.
    fn grouped(&self, words: &Words, captions: &[&[u32]]) -> Tensor<2> {
        let tables = self.tables.get_or_init(|| words.on_device(&self.device));
        let step = self.how.options().token_step();
        let length = |i: usize| captions[i].len().next_multiple_of(step).min(words.positions());
        let mut order: Vec<usize> = (0..captions.len()).collect();
        order.sort_by_key(|&i| length(i));
        let groups = order.chunk_by(|&a, &b| length(a) == length(b)).map(|group| {
            let length = length(group[0]);
            let mut ids = vec![0i32; group.len() * length];
            for (ids, &i) in ids.chunks_exact_mut(length).zip(group) {
                for (to, &id) in ids.iter_mut().zip(captions[i]) {
                    *to = id as i32;
                }
            }
            let layout = Layout::Padded {
                batch: group.len(),
                tokens: length,
                key_bias: Some(self.key_bias(ids.iter().map(|&id| id == 0), length)),
            };
            let count = ids.len();
            let ids = Tensor::from_data(TensorData::new(ids, [count]), &self.device);
            self.forward(tables.embed(ids, length), &layout, Trace::new("text", None))
        });
        let sorted = Tensor::cat(groups.collect(), 0);
        let mut place = vec![0i32; order.len()];
        for (at, &i) in order.iter().enumerate() {
            place[i] = at as i32;
        }
        let place = Tensor::from_data(TensorData::new(place, [order.len()]), &self.device);
        sorted.select(0, place)
    }

    /// The keys' bias [captions, 1, 1, length] by which tokens are padding.
    fn key_bias(&self, padding: impl Iterator<Item = bool>, length: usize) -> Tensor<4> {
        let bias: Vec<f32> = padding.map(|is| if is { -10_000.0 } else { 0.0 }).collect();
        let captions = bias.len() / length;
        Tensor::from_data(TensorData::new(bias, [captions, 1, 1, length]), &self.device)
    }
}

impl TextBody for ErnieOnDevice {
    fn dtype(&self) -> Dtype {
        self.module.dtype()
    }

    fn embed(&self, words: &Words, captions: &[&[u32]]) -> Result<Vec<f32>> {
        #[cfg(feature = "flex")]
        if self.how.is_packed() {
            let rows: usize = captions.iter().map(|c| c.len()).sum();
            let (count, width) = (captions.len(), words.width());
            let each = rows.div_ceil(count.max(1));
            return Ok(crate::ops::host::in_runs(count, each, width, |first, count| {
                let captions = &captions[first..][..count];
                host_values(self.ragged(words, captions, Trace::new("text", None)))
            }));
        }
        wait(self.embed_async(words, captions))
    }

    fn embed_async<'a>(&'a self, words: &'a Words, captions: &'a [&'a [u32]]) -> Later<'a> {
        if self.how.is_packed() {
            return Box::pin(async move { self.embed(words, captions) });
        }
        #[cfg(feature = "cube")]
        if self.how.on_card().is_some() {
            return Box::pin(self.in_parts(words, captions));
        }
        Box::pin(async move { host_values_async(self.grouped(words, captions)).await })
    }

    fn trace(&self, words: &Words, captions: &[&[u32]]) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        let trace = Trace::new("text", Some(&mut steps));
        if self.how.is_ragged() {
            self.ragged(words, captions, trace);
            return Ok(steps);
        }
        let (batch, width) = (captions.len(), words.width());
        let longest = captions.iter().map(|c| c.len()).max().unwrap_or(0);
        let mut embedded = vec![0.0; batch * longest * width];
        let mut is_padding = vec![true; batch * longest];
        for (i, caption) in captions.iter().enumerate() {
            for (position, &id) in caption.iter().enumerate() {
                let row = i * longest + position;
                words.embed(id, position, &mut embedded[row * width..][..width]);
                is_padding[row] = id == 0;
            }
        }
        let embedded = TensorData::new(embedded, [batch * longest, width]);
        let embedded = Tensor::from_data(embedded, &self.device);
        let layout = Layout::Padded {
            batch,
            tokens: longest,
            key_bias: Some(self.key_bias(is_padding.into_iter(), longest)),
        };
        self.forward(embedded, &layout, trace);
        Ok(steps)
    }

    fn forward(&self, words: &Words, captions: &[&[u32]]) -> Option<Tensor<2>> {
        (!self.how.is_ragged()).then(|| self.grouped(words, captions))
    }
}

/// A caption's tokens, with the position and the types that ERNIE 2.0 receives for each beside its id. The
/// models of this project count positions from 0 and have all types 0. This is for comparison with other
/// implementations.
#[derive(Debug, Clone, Copy)]
pub struct TypedCaption<'a> {
    /// The tokens' ids.
    pub ids: &'a [u32],
    /// Each token's row of the position table.
    pub positions: &'a [u32],
    /// Each token's row of the sentence-type table; not looked at where the model has none.
    pub sentence_types: &'a [u32],
    /// Each token's row of the task-type table; likewise.
    pub task_types: &'a [u32],
}

/// The text tower: token ids to embeddings.
pub struct TextTower {
    pub(super) config: ErnieConfig,
    pub(super) device: Device,
    pub(super) words: Words,
    pub(super) body: Box<dyn TextBody>,
}

impl TextTower {
    /// Loads the tower's weights; other tensors of the source are not looked at.
    ///
    /// # Errors
    /// [`Error::Config`] where a size is out of range; [`Error::Weights`] lists every missing tensor and
    /// every wrong shape.
    pub fn load(
        source: &dyn TensorSource,
        config: &ErnieConfig,
        device: &Device,
        engine: Engine,
    ) -> Result<Self> {
        config.validate()?;
        engine.check_width("text.width", config.width)?;
        weights::check(source, &weights::text_tensors(config))?;
        let loader = Loader(source);
        let words = Words::load(&loader, config)?;
        let module = Ernie::load(&loader, config, &engine.target(device))?;
        let body = Box::new(ErnieOnDevice::new(module, device, engine));
        Ok(Self {
            config: config.clone(),
            device: device.clone(),
            words,
            body,
        })
    }

    /// As [`TextTower::load`], on a graphics card by this crate's kernels.
    ///
    /// # Errors
    /// As [`TextTower::load`]; [`Error::Config`] also where a width is not a multiple of 4.
    #[cfg(feature = "webgpu")]
    pub fn load_on_gpu(
        source: &dyn TensorSource,
        config: &ErnieConfig,
        gpu: &crate::webgpu::Gpu,
    ) -> Result<Self> {
        config.validate()?;
        super::webgpu::GpuErnie::check(config)?;
        weights::check(source, &weights::text_tensors(config))?;
        let loader = Loader(source);
        Ok(Self {
            config: config.clone(),
            device: Device::flex(),
            words: Words::load(&loader, config)?,
            body: Box::new(super::webgpu::GpuErnie::load(&loader, config, gpu)?),
        })
    }

    /// The tower's sizes.
    pub fn config(&self) -> &ErnieConfig {
        &self.config
    }

    /// How the weights of its blocks are kept.
    pub fn dtype(&self) -> Dtype {
        self.body.dtype()
    }

    /// Captions, each its token ids (padding at the end may be there or not), to embeddings
    /// [captions, width], not normalised.
    ///
    /// # Errors
    /// [`Error::Text`] names the caption that is empty, starts with padding, is longer than the position
    /// table, or has an id beyond the word table.
    pub fn forward(&self, captions: &[&[u32]]) -> Result<Tensor<2>> {
        let captions = self.check(captions)?;
        if let Some(embeddings) = self.body.forward(&self.words, &captions) {
            return Ok(embeddings);
        }
        let raw = self.body.embed(&self.words, &captions)?;
        Ok(Tensor::from_data(
            TensorData::new(raw, [captions.len(), self.config.width]),
            &self.device,
        ))
    }

    /// As [`TextTower::forward`], on the host.
    ///
    /// # Errors
    /// As [`TextTower::forward`].
    pub fn embed_raw(&self, captions: &[&[u32]]) -> Result<Vec<f32>> {
        match captions {
            [] => Ok(Vec::new()),
            _ => self.body.embed(&self.words, &self.check(captions)?),
        }
    }

    /// As [`TextTower::embed_raw`], each embedding divided by its length.
    ///
    /// # Errors
    /// As [`TextTower::forward`].
    pub fn embed(&self, captions: &[&[u32]]) -> Result<Embeddings> {
        normalised(self.embed_raw(captions)?, self.config.width)
    }

    /// As [`TextTower::embed`], for a device whose results cannot be waited for on the thread that asks, as
    /// in a browser.
    ///
    /// # Errors
    /// As [`TextTower::forward`], and [`Error::Device`] where the device fails.
    pub async fn embed_async(&self, captions: &[&[u32]]) -> Result<Embeddings> {
        let captions = self.check(captions)?;
        let raw = match captions.is_empty() {
            true => Vec::new(),
            false => self.body.embed_async(&self.words, &captions).await?,
        };
        normalised(raw, self.config.width)
    }

    /// As [`TextTower::embed_raw`], with what comes out of every step instead of the embeddings. The
    /// captions are computed as one batch.
    ///
    /// # Errors
    /// As [`TextTower::forward`].
    pub fn trace(&self, captions: &[&[u32]]) -> Result<Vec<Step>> {
        let captions = self.check(captions)?;
        self.body.trace(&self.words, &captions)
    }

    /// As [`TextTower::trace`], of one caption with its own positions and types.
    ///
    /// # Errors
    /// As [`TextTower::forward`]; [`Error::Text`] also where a list has another length than `ids`, or an
    /// entry that the model's table has no row for.
    pub fn trace_typed(&self, caption: &TypedCaption<'_>) -> Result<Vec<Step>> {
        let types = [
            (
                "sentence type",
                self.config.sentence_types,
                caption.sentence_types,
            ),
            ("task type", self.config.task_types, caption.task_types),
        ];
        let positions = ("position", Some(self.config.max_positions), caption.positions);
        let lists = types.into_iter().chain([positions]);
        for (name, rows, list) in lists.filter_map(|(name, rows, list)| Some((name, rows?, list))) {
            if list.len() != caption.ids.len() {
                let (found, expected) = (list.len(), caption.ids.len());
                return Err(Error::Text(format!(
                    "{found} {name}s, expected {expected}, one a token"
                )));
            }
            if let Some(entry) = list.iter().find(|&&entry| entry as usize >= rows) {
                return Err(Error::Text(format!(
                    "the {name} {entry}, expected less than {rows}"
                )));
            }
        }
        let captions = self.check(&[caption.ids])?;
        let types = types.iter().filter(|(_, rows, _)| rows.is_some());
        let types: Vec<_> = types.map(|&(_, _, list)| list).collect();
        self.body
            .trace(&self.words.typed(caption.positions, &types), &captions)
    }

    /// Checks the captions and cuts the padding off their ends.
    fn check<'a>(&self, captions: &[&'a [u32]]) -> Result<Vec<&'a [u32]>> {
        let check = |(i, caption): (usize, &&'a [u32])| {
            let tokens = caption.iter().rposition(|&id| id != 0).map_or(0, |last| last + 1);
            let caption = &caption[..tokens];
            let problem = if caption.first().is_none_or(|&id| id == 0) {
                "it starts with padding (id 0) or is empty, expected [CLS] first".to_owned()
            } else if tokens > self.config.max_positions {
                format!("{tokens} tokens, expected at most {}", self.config.max_positions)
            } else if let Some(id) = caption.iter().find(|&&id| id as usize >= self.config.vocab_size) {
                format!("the id {id}, expected less than {}", self.config.vocab_size)
            } else {
                return Ok(caption);
            };
            Err(Error::Text(format!("caption {i}: {problem}")))
        };
        captions.iter().enumerate().map(check).collect()
    }
}
