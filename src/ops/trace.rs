//! What comes out of a tower's steps, to compare with another implementation.

use burn::tensor::Tensor;

use crate::{Error, Result};

/// What came out of one step of a tower.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The step's name: `visual.block.0.norm1`.
    pub name: String,
    /// The values' shape. The rows of all sequences may be contiguous in the first dimension.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub values: Vec<f32>,
}

#[cfg(feature = "webgpu")]
impl Step {
    /// Appends the rows of one more image to those that are there.
    pub(crate) fn append(all: &mut Vec<Step>, more: Vec<Step>) {
        if all.is_empty() {
            *all = more;
            return;
        }
        for (step, more) in all.iter_mut().zip(more) {
            step.shape[0] += more.shape[0];
            step.values.extend(more.values);
        }
    }
}

/// Records the steps of a pass where they are asked for.
pub(crate) struct Trace<'a> {
    prefix: &'static str,
    inside: Option<String>,
    steps: Option<&'a mut Vec<Step>>,
}

/// Whether steps can be recorded. In a module for JavaScript nothing asks for them, and the code that records
/// them is left out of the download.
const RECORDABLE: bool = !cfg!(feature = "web");

impl<'a> Trace<'a> {
    pub(crate) fn new(prefix: &'static str, steps: Option<&'a mut Vec<Step>>) -> Self {
        Self {
            prefix,
            inside: None,
            steps,
        }
    }

    /// The steps that follow are those of the block of this name.
    pub(crate) fn enter(&mut self, block: std::fmt::Arguments<'_>) {
        if self.is_on() {
            self.inside = Some(block.to_string());
        }
    }

    /// Ends what [`Trace::enter`] began.
    pub(crate) fn leave(&mut self) {
        self.inside = None;
    }

    /// Whether steps are recorded.
    pub(crate) fn is_on(&self) -> bool {
        RECORDABLE && self.steps.is_some()
    }

    pub(crate) fn push(
        &mut self,
        name: &str,
        shape: impl FnOnce() -> Vec<usize>,
        values: impl FnOnce() -> Vec<f32>,
    ) {
        if !RECORDABLE {
            return;
        }
        let Some(steps) = self.steps.as_deref_mut() else {
            return;
        };
        let parts = [Some(self.prefix), self.inside.as_deref(), Some(name)];
        let parts: Vec<&str> = parts
            .into_iter()
            .flatten()
            .filter(|part| !part.is_empty())
            .collect();
        steps.push(Step {
            name: parts.join("."),
            shape: shape(),
            values: values(),
        });
    }

    pub(crate) fn tensor<const D: usize>(&mut self, name: &str, tensor: &Tensor<D>) {
        self.push(name, || tensor.dims().to_vec(), || host_values(tensor.clone()));
    }
}

/// Reads a tensor back to the host in single precision.
pub(crate) fn host_values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor
        .into_data()
        .try_into_vec_as::<f32>()
        .expect("a float tensor reads as f32")
}

/// As [`host_values`], without blocking.
pub(crate) async fn host_values_async<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    #[cfg(feature = "wgpu")]
    let device = tensor.device();
    let data = tensor.into_data_async().await;
    #[cfg(feature = "wgpu")]
    crate::gpu::check(&device)?;
    let data = data.map_err(|error| Error::Device(error.to_string()))?;
    Ok(data
        .try_into_vec_as::<f32>()
        .expect("a float tensor reads as f32"))
}
