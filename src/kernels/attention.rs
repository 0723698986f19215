//! Multi-head attention that never leaves the cache.

use std::cell::RefCell;

use super::buffer::Buffer;
use super::math;
use super::matmul::{Activation, Panels, Product, Rows, RowsMut, product_with};
use super::parallel::{Shared, for_each};
use super::simd::{Simd, dispatch};

/// Queries whose scores are held at a time: with 200 keys they are 40 KiB.
const QUERY_BLOCK: usize = 48;

/// Sizes of a multi-head attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Number of heads.
    pub heads: usize,
    /// Width of one head's query and key.
    pub query_head_width: usize,
    /// Width of one head's value.
    pub value_head_width: usize,
}

impl AttentionShape {
    /// Width of all heads' queries; of all heads' keys as well.
    pub fn query_width(&self) -> usize {
        self.heads * self.query_head_width
    }

    /// Width of all heads' values, and of the result.
    pub fn value_width(&self) -> usize {
        self.heads * self.value_head_width
    }
}

/// One sequence's rows: each of its queries attends to each of its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// First row of the queries (and of the result).
    pub query: usize,
    /// Number of queries.
    pub queries: usize,
    /// First row of the keys and values.
    pub key: usize,
    /// Number of keys and values.
    pub keys: usize,
}

/// softmax(q k^T / sqrt(query_head_width)) v, for each sequence and head.
///
/// `queries` is [rows, heads * query_head_width]; a row of `keys_values` holds all heads' keys, then all
/// heads' values; `output` is [rows of `queries`, heads * value_head_width].
///
/// # Panics
/// Where the shapes do not fit, where a sequence has no key, or where two sequences share queries.
pub fn attention(
    shape: &AttentionShape,
    sequences: &[Sequence],
    queries: Rows<'_>,
    keys_values: Rows<'_>,
    output: &mut RowsMut<'_>,
    parallel: bool,
) {
    assert_eq!(queries.width, shape.query_width());
    assert_eq!(keys_values.width, shape.query_width() + shape.value_width());
    assert_eq!((output.rows, output.width), (queries.rows, shape.value_width()));
    let mut end = 0;
    for s in sequences {
        assert!(s.query >= end, "the sequences' queries overlap");
        end = s.query + s.queries;
        assert!(s.keys > 0 && end <= queries.rows && s.key + s.keys <= keys_values.rows);
    }
    let (q, kv) = (
        Shared(queries.as_ptr().cast_mut()),
        Shared(keys_values.as_ptr().cast_mut()),
    );
    let out = Shared(output.as_mut_ptr());
    for_each(sequences.len() * shape.heads, parallel, |task| {
        let (s, head) = (sequences[task / shape.heads], task % shape.heads);
        // SAFETY: the shapes were checked above; each task writes its own rows and head of the output.
        unsafe {
            let kv = kv.get().add(s.key * keys_values.stride);
            let head = Head {
                queries: q
                    .get()
                    .add(s.query * queries.stride + head * shape.query_head_width),
                query_stride: queries.stride,
                query_rows: s.queries,
                query_width: shape.query_head_width,
                keys: kv.add(head * shape.query_head_width),
                values: kv.add(shape.query_width() + head * shape.value_head_width),
                key_stride: keys_values.stride,
                key_rows: s.keys,
                value_width: shape.value_head_width,
                output: out
                    .get()
                    .add(s.query * output.stride + head * shape.value_head_width),
                output_stride: output.stride,
            };
            SCRATCH.with_borrow_mut(|scratch| one_head(&head, scratch));
        }
    });
}

/// One head of one sequence.
struct Head {
    queries: *const f32,
    query_stride: usize,
    query_rows: usize,
    query_width: usize,
    keys: *const f32,
    values: *const f32,
    key_stride: usize,
    key_rows: usize,
    value_width: usize,
    output: *mut f32,
    output_stride: usize,
}

#[derive(Default)]
struct Scratch {
    keys: Buffer,
    values: Buffer,
    scores: Buffer,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

dispatch! {
    unsafe fn one_head(head: &Head, scratch: &mut Scratch) = one_head_with
}

#[inline(always)]
unsafe fn one_head_with<S: Simd>(head: &Head, scratch: &mut Scratch) {
    let panel = 2 * S::LANES;
    let key_panels = head.key_rows.div_ceil(panel);
    let value_panels = head.value_width.div_ceil(panel);
    // Room beside the scores keeps the rows from falling into the same cache sets.
    let score_stride = key_panels * panel + 16;
    scratch.keys.resize(key_panels * panel * head.query_width);
    scratch.values.resize(value_panels * panel * head.key_rows);
    scratch.scores.resize(QUERY_BLOCK * score_stride);
    let keys = scratch.keys.as_mut_ptr();
    let values = scratch.values.as_mut_ptr();
    let scores = scratch.scores.as_mut_ptr();
    // SAFETY: the buffers were just given these sizes; the caller vouches for the rest.
    unsafe {
        pack_transposed(
            head.keys,
            head.key_stride,
            head.key_rows,
            head.query_width,
            panel,
            keys,
        );
        pack(
            head.values,
            head.key_stride,
            head.key_rows,
            head.value_width,
            panel,
            values,
        );
        let scale = (head.query_width as f32).powf(-0.5);
        for first in (0..head.query_rows).step_by(QUERY_BLOCK) {
            let rows = QUERY_BLOCK.min(head.query_rows - first);
            product_with::<S>(&Product {
                input: head.queries.add(first * head.query_stride),
                input_stride: head.query_stride,
                rows,
                packed: Panels::F32(keys),
                depth: head.query_width,
                columns: head.key_rows,
                bias: std::ptr::null(),
                output: scores,
                output_stride: score_stride,
                activation: Activation::None,
                accumulate: false,
            });
            let mut inverse = [0.0; QUERY_BLOCK];
            for (row, inverse) in inverse[..rows].iter_mut().enumerate() {
                *inverse = 1.0 / exponentials::<S>(scores.add(row * score_stride), head.key_rows, scale);
            }
            let output = head.output.add(first * head.output_stride);
            product_with::<S>(&Product {
                input: scores,
                input_stride: score_stride,
                rows,
                packed: Panels::F32(values),
                depth: head.key_rows,
                columns: head.value_width,
                bias: std::ptr::null(),
                output,
                output_stride: head.output_stride,
                activation: Activation::None,
                accumulate: false,
            });
            // Dividing here by the sum of the exponentials takes fewer steps than dividing the weights.
            for (row, &inverse) in inverse[..rows].iter().enumerate() {
                let row = output.add(row * head.output_stride);
                let mut i = 0;
                while i + S::LANES <= head.value_width {
                    S::store(row.add(i), S::mul(S::load(row.add(i)), S::splat(inverse)));
                    i += S::LANES;
                }
                while i < head.value_width {
                    *row.add(i) *= inverse;
                    i += 1;
                }
            }
        }
    }
}

/// Replaces each of `n` scores s by e^(scale * (s - largest)) and returns their sum.
#[inline(always)]
unsafe fn exponentials<S: Simd>(row: *mut f32, n: usize, scale: f32) -> f32 {
    unsafe {
        let whole = n / S::LANES * S::LANES;
        let mut largest = f32::NEG_INFINITY;
        if whole > 0 {
            let mut v = S::load(row);
            for i in (S::LANES..whole).step_by(S::LANES) {
                v = S::max(v, S::load(row.add(i)));
            }
            largest = S::largest(v);
        }
        for i in whole..n {
            largest = largest.max(*row.add(i));
        }
        let (largest, scale) = (S::splat(largest), S::splat(scale));
        let mut sum = S::splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            let e = math::exp::<S>(S::mul(S::sub(S::load(row.add(i)), largest), scale));
            S::store(row.add(i), e);
            sum = S::add(sum, e);
        }
        let mut sum = S::sum(sum);
        if whole < n {
            let v = S::load_first(row.add(whole), n - whole);
            let e = math::exp::<S>(S::mul(S::sub(v, largest), scale));
            S::store_first(row.add(whole), e, n - whole);
            for i in whole..n {
                sum += *row.add(i);
            }
        }
        sum
    }
}

/// Packs `rows` rows as the columns of panels: out[p][k][c] = from[p * panel + c][k].
#[inline(always)]
unsafe fn pack_transposed(
    from: *const f32,
    stride: usize,
    rows: usize,
    width: usize,
    panel: usize,
    out: *mut f32,
) {
    for first in (0..rows).step_by(panel) {
        let some = panel.min(rows - first);
        unsafe {
            let out = out.add(first * width);
            for c in 0..panel {
                let row = from.add((first + c) * stride);
                for k in 0..width {
                    *out.add(k * panel + c) = if c < some { *row.add(k) } else { 0.0 };
                }
            }
        }
    }
}

/// Packs `rows` rows as the rows of panels: out[p][r][c] = from[r][p * panel + c].
#[inline(always)]
unsafe fn pack(from: *const f32, stride: usize, rows: usize, width: usize, panel: usize, out: *mut f32) {
    for column in (0..width).step_by(panel) {
        let some = panel.min(width - column);
        unsafe {
            let out = out.add(column * rows);
            for r in 0..rows {
                let from = from.add(r * stride + column);
                for c in 0..panel {
                    *out.add(r * panel + c) = if c < some { *from.add(c) } else { 0.0 };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, in f64, for one query and head.
    fn expected(shape: &AttentionShape, head: usize, q: &[f32], kv: &[f32], keys: usize) -> Vec<f64> {
        let (dq, dv) = (shape.query_head_width, shape.value_head_width);
        let width = shape.query_width() + shape.value_width();
        let scores: Vec<f64> = (0..keys)
            .map(|j| {
                let dot: f64 = (0..dq)
                    .map(|k| f64::from(q[head * dq + k]) * f64::from(kv[j * width + head * dq + k]))
                    .sum();
                (dot / (dq as f64).sqrt()).exp()
            })
            .collect();
        let sum: f64 = scores.iter().sum();
        (0..dv)
            .map(|c| {
                let at = shape.query_width() + head * dv + c;
                (0..keys)
                    .map(|j| scores[j] / sum * f64::from(kv[j * width + at]))
                    .sum()
            })
            .collect()
    }

    #[test]
    fn agrees_with_the_definition() {
        let mut seed = 1u32;
        let mut random = |n: usize| -> Vec<f32> {
            (0..n)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
                })
                .collect()
        };
        for (heads, dq, dv) in [(1, 1, 1), (3, 6, 10), (2, 64, 64), (4, 33, 70)] {
            let shape = AttentionShape {
                heads,
                query_head_width: dq,
                value_head_width: dv,
            };
            let lengths = [1, 5, 17, 33, 97, 200];
            let rows: usize = lengths.iter().sum();
            let width = shape.query_width() + shape.value_width();
            let (q, kv) = (random(rows * shape.query_width()), random(rows * width));
            let mut start = 0;
            let sequences: Vec<Sequence> = lengths
                .iter()
                .map(|&n| {
                    start += n;
                    Sequence {
                        query: start - n,
                        queries: n,
                        key: start - n,
                        keys: n,
                    }
                })
                .collect();
            let mut results = Vec::new();
            for parallel in [false, true] {
                let mut out = vec![f32::NAN; rows * shape.value_width()];
                attention(
                    &shape,
                    &sequences,
                    Rows::new(&q, rows, shape.query_width(), shape.query_width()),
                    Rows::new(&kv, rows, width, width),
                    &mut RowsMut::new(&mut out, rows, shape.value_width(), shape.value_width()),
                    parallel,
                );
                results.push(out);
            }
            assert_eq!(results[0], results[1], "threads change nothing");
            for s in &sequences {
                for row in s.query..s.query + s.queries {
                    for head in 0..heads {
                        let q = &q[row * shape.query_width()..][..shape.query_width()];
                        let expected = expected(&shape, head, q, &kv[s.key * width..], s.keys);
                        let got = &results[0][row * shape.value_width() + head * dv..][..dv];
                        for (a, b) in got.iter().zip(expected) {
                            assert!((f64::from(*a) - b).abs() < 2e-6, "{a} instead of {b}");
                        }
                    }
                }
            }
        }
    }
}
