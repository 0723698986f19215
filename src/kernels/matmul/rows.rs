//! Rows of a matrix in memory, which may stand further apart than they are wide.

use std::marker::PhantomData;

/// Rows of a row-major matrix, `stride` floats apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pointer: *const f32,
    /// Number of rows.
    pub rows: usize,
    /// Floats of a row.
    pub width: usize,
    /// Floats from the start of a row to the start of the next.
    pub stride: usize,
    lifetime: PhantomData<&'a [f32]>,
}

/// Rows of a row-major matrix that are written to, `stride` floats apart.
pub struct RowsMut<'a> {
    pointer: *mut f32,
    /// Number of rows.
    pub rows: usize,
    /// Floats of a row.
    pub width: usize,
    /// Floats from the start of a row to the start of the next.
    pub stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

fn check_rows(len: usize, rows: usize, width: usize, stride: usize) {
    assert!(
        width <= stride || rows <= 1,
        "rows of {width} floats, {stride} apart, overlap"
    );
    let needed = match rows {
        0 => 0,
        _ => (rows - 1)
            .checked_mul(stride)
            .and_then(|n| n.checked_add(width))
            .expect("a size in memory"),
    };
    assert!(
        needed <= len,
        "{rows} rows of {width} floats, {stride} apart, need {needed} floats, got {len}"
    );
}

impl<'a> Rows<'a> {
    /// The first `width` of every `stride` floats, `rows` times.
    ///
    /// # Panics
    /// Where `data` is too short or rows overlap.
    pub fn new(data: &'a [f32], rows: usize, width: usize, stride: usize) -> Self {
        check_rows(data.len(), rows, width, stride);
        Self {
            pointer: data.as_ptr(),
            rows,
            width,
            stride,
            lifetime: PhantomData,
        }
    }

    pub(in crate::kernels) fn as_ptr(&self) -> *const f32 {
        self.pointer
    }

    /// Row `i`.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, i: usize) -> &'a [f32] {
        assert!(i < self.rows);
        // SAFETY: `new` checked that row `i` lies inside the slice.
        unsafe { std::slice::from_raw_parts(self.pointer.add(i * self.stride), self.width) }
    }
}

impl<'a> RowsMut<'a> {
    /// The first `width` of every `stride` floats, `rows` times.
    ///
    /// # Panics
    /// Where `data` is too short or rows overlap.
    pub fn new(data: &'a mut [f32], rows: usize, width: usize, stride: usize) -> Self {
        check_rows(data.len(), rows, width, stride);
        Self {
            pointer: data.as_mut_ptr(),
            rows,
            width,
            stride,
            lifetime: PhantomData,
        }
    }

    pub(in crate::kernels) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.pointer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "need 20 floats")]
    fn rows_that_do_not_fit_are_refused() {
        Rows::new(&[0.0; 19], 4, 5, 5);
    }
}
