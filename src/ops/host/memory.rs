//! The host's tensors as rows, in memory that is used again.

use std::sync::Arc;

use burn::tensor::{Bytes, DType, Shape, TensorData};

use super::Host;
use super::free::{self, Quad, give_back};
use crate::kernels::{Rows, RowsMut};

/// Floats of a cache line.
const LINE: usize = 16;

/// Floats from one row to the next in memory of our own: whole cache lines, and no multiple of 512 bytes.
fn stride(width: usize) -> usize {
    let lines = width.next_multiple_of(LINE);
    match lines.is_multiple_of(8 * LINE) {
        true => lines + LINE,
        false => lines,
    }
}

/// Memory for at least so many floats from a cache line's start on, of any values; and where that start is.
fn take(floats: usize) -> (Vec<Quad>, usize) {
    let memory = free::take((floats + LINE).div_ceil(4));
    let address = memory.as_ptr() as usize / size_of::<f32>();
    let start = address.next_multiple_of(LINE) - address;
    (memory, start)
}

/// Where rows are in their memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) rows: usize,
    pub(super) width: usize,
    /// Floats from one row to the next.
    pub(super) stride: usize,
    start: usize,
}

impl Place {
    /// Of a tensor of single precision whose last dimension is contiguous, and whose others are rows that are
    /// equally far apart.
    fn of(tensor: &Host) -> Option<Self> {
        let layout = tensor.layout();
        let width = *layout.shape().iter().next_back()?;
        let start = layout.start_offset();
        if layout.is_contiguous() {
            let rows = layout.num_elements().checked_div(width)?;
            return Some(Self {
                rows,
                width,
                stride: width,
                start,
            });
        }
        match (layout.shape().as_slice(), layout.strides()) {
            (&[rows, width], &[apart, 1]) if apart >= width as isize => Some(Self {
                rows,
                width,
                stride: apart as usize,
                start,
            }),
            _ => None,
        }
    }
}

/// A tensor that is read.
pub(super) struct Values {
    tensor: Host,
    pub(super) place: Place,
}

impl Values {
    pub(super) fn of(tensor: Host) -> Self {
        let (tensor, place) = match Place::of(&tensor) {
            Some(place) => (tensor, place),
            None => {
                let tensor = tensor.to_contiguous();
                let place = Place::of(&tensor).expect("contiguous rows");
                (tensor, place)
            }
        };
        Self { tensor, place }
    }

    /// As [`Values::of`], for kernels that read whole registers: memory goes on behind the last row to the
    /// end of a cache line.
    pub(super) fn of_whole_registers(tensor: Host) -> Self {
        let values = Self::of(tensor);
        let Place {
            rows,
            width,
            stride,
            start,
        } = values.place;
        let end = start + rows.saturating_sub(1) * stride + width.next_multiple_of(LINE);
        match end <= values.tensor.storage::<f32>().len() {
            true => values,
            false => Self::of(Owned::copy(&values).into_tensor()),
        }
    }

    /// Whether two tensors are the same rows of the same memory.
    pub(super) fn is_same(a: &Host, b: &Host) -> bool {
        Arc::ptr_eq(&a.data_arc(), &b.data_arc())
            && Place::of(a).is_some_and(|place| Place::of(b) == Some(place))
    }

    pub(super) fn rows(&self) -> Rows<'_> {
        self.rows_from(0, self.place.rows)
    }

    /// `count` rows from `first` on.
    pub(super) fn rows_from(&self, first: usize, count: usize) -> Rows<'_> {
        let Place {
            width, stride, start, ..
        } = self.place;
        Rows::new(
            &self.tensor.storage()[start + first * stride..],
            count,
            width,
            stride,
        )
    }

    /// Keeps the memory for a later operation, if nothing else holds it.
    pub(super) fn recycle(self) {
        recycle(self.tensor);
    }
}

fn recycle(tensor: Host) {
    let memory = tensor.data_arc();
    drop(tensor);
    if let Ok(bytes) = Arc::try_unwrap(memory)
        && let Ok(quads) = bytes.try_into_vec::<Quad>()
    {
        give_back(quads);
    }
}

/// Rows that are written.
pub(super) struct Owned {
    memory: Memory,
    pub(super) place: Place,
}

enum Memory {
    Fresh(Vec<Quad>),
    /// Of a tensor that nothing else holds.
    Tensor(Host),
}

impl Owned {
    /// Rows of any values.
    pub(super) fn new(rows: usize, width: usize) -> Self {
        let stride = stride(width);
        let (memory, start) = take(rows * stride);
        Self {
            memory: Memory::Fresh(memory),
            place: Place {
                rows,
                width,
                stride,
                start,
            },
        }
    }

    /// A tensor's own memory.
    ///
    /// # Errors
    /// The tensor, where something else holds its memory or where it is not of rows.
    pub(super) fn in_place(tensor: Host) -> Result<Self, Host> {
        match Place::of(&tensor) {
            Some(place) if tensor.is_unique() => Ok(Self {
                memory: Memory::Tensor(tensor),
                place,
            }),
            _ => Err(tensor),
        }
    }

    /// A tensor's own memory, or a copy of it where something else holds that.
    pub(super) fn from_tensor(tensor: Host) -> Self {
        Self::in_place(tensor).unwrap_or_else(|tensor| Self::copy(&Values::of(tensor)))
    }

    fn copy(values: &Values) -> Self {
        let mut copy = Self::new(values.place.rows, values.place.width);
        let (from, apart) = (values.rows(), copy.place.stride);
        for (i, row) in copy.values_mut().chunks_mut(apart).take(from.rows).enumerate() {
            row[..from.width].copy_from_slice(from.row(i));
        }
        copy
    }

    /// All values, from the first row on.
    pub(super) fn values(&self) -> &[f32] {
        let all = match &self.memory {
            Memory::Fresh(quads) => bytemuck::cast_slice(quads),
            Memory::Tensor(tensor) => tensor.storage(),
        };
        &all[self.place.start..]
    }

    /// All values, from the first row on.
    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        let all = match &mut self.memory {
            Memory::Fresh(quads) => bytemuck::cast_slice_mut(quads),
            Memory::Tensor(tensor) => tensor.storage_mut(),
        };
        &mut all[self.place.start..]
    }

    pub(super) fn rows(&self) -> Rows<'_> {
        self.first(self.place.rows)
    }

    pub(super) fn rows_mut(&mut self) -> RowsMut<'_> {
        self.first_mut(self.place.rows)
    }

    /// The first `rows` rows.
    pub(super) fn first(&self, rows: usize) -> Rows<'_> {
        Rows::new(self.values(), rows, self.place.width, self.place.stride)
    }

    /// The first `rows` rows.
    pub(super) fn first_mut(&mut self, rows: usize) -> RowsMut<'_> {
        let Place { width, stride, .. } = self.place;
        RowsMut::new(self.values_mut(), rows, width, stride)
    }

    /// `count` rows from `first` on.
    pub(super) fn some_mut(&mut self, first: usize, count: usize) -> RowsMut<'_> {
        let Place { width, stride, .. } = self.place;
        RowsMut::new(&mut self.values_mut()[first * stride..], count, width, stride)
    }

    /// `[rows, width]`.
    pub(super) fn into_tensor(self) -> Host {
        match self.memory {
            Memory::Tensor(tensor) => tensor,
            Memory::Fresh(quads) => {
                let shape = Shape::from([4 * quads.len()]);
                let data = TensorData::from_bytes(Bytes::from_elems(quads), shape, DType::F32);
                let Place {
                    rows,
                    width,
                    stride,
                    start,
                } = self.place;
                let all = Host::from_data(data).narrow(0, start, rows * stride);
                all.reshape(Shape::from([rows, stride])).narrow(1, 0, width)
            }
        }
    }

    /// Keeps the memory for a later operation.
    pub(super) fn recycle(self) {
        match self.memory {
            Memory::Fresh(quads) => give_back(quads),
            Memory::Tensor(tensor) => recycle(tensor),
        }
    }
}
