//! Matmuls against plain loops in `f64`, and with weights in eight and four bits.

use super::panels::groups;
use super::*;

fn seed_after(seed: u32) -> u32 {
    seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)
}

fn random(n: usize, seed: &mut u32) -> Vec<f32> {
    (0..n)
        .map(|_| {
            *seed = seed_after(*seed);
            (*seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

#[test]
fn linear_agrees_with_f64_for_odd_shapes() {
    let mut seed = 7;
    for (rows, depth, columns) in [
        (1, 1, 1),
        (5, 3, 7),
        (12, 385, 33),
        (13, 768, 64),
        (200, 40, 31),
        (30, 800, 17),
    ] {
        let a = random(rows * (depth + 3), &mut seed);
        let w = random(depth * columns, &mut seed);
        let bias = random(columns, &mut seed);
        let old = random(rows * (columns + 5), &mut seed);
        let layer = Linear {
            weight: PackedMatrix::from_rows(&w, depth, columns),
            bias: bias.clone(),
        };
        for (activation, accumulate, parallel) in [
            (Activation::None, false, true),
            (Activation::Relu, false, false),
            (Activation::None, true, true),
            (Activation::Gelu, false, true),
            (Activation::QuickGelu, true, false),
            (Activation::Swish, false, true),
        ] {
            let mut out = old.clone();
            linear(
                Rows::new(&a, rows, depth, depth + 3),
                &layer,
                &mut RowsMut::new(&mut out, rows, columns, columns + 5),
                activation,
                accumulate,
                parallel,
            );
            for r in 0..rows {
                for c in 0..columns {
                    let mut x = f64::from(bias[c]);
                    if accumulate {
                        x += f64::from(old[r * (columns + 5) + c]);
                    }
                    for k in 0..depth {
                        x += f64::from(a[r * (depth + 3) + k]) * f64::from(w[k * columns + c]);
                    }
                    let y = f64::from(out[r * (columns + 5) + c]);
                    match activation {
                        Activation::None => assert!((y - x).abs() < 5e-5, "{y} instead of {x}"),
                        Activation::Relu => assert!((y - x.max(0.0)).abs() < 5e-5),
                        Activation::QuickGelu => {
                            assert!((y - x / (1.0 + (-1.702 * x).exp())).abs() < 5e-5)
                        }
                        Activation::Swish => assert!((y - x / (1.0 + (-x).exp())).abs() < 5e-5),
                        // The exact values are checked in `math`; here that it was applied at all.
                        Activation::Gelu => assert!((y - x / (1.0 + (-1.702 * x).exp())).abs() < 0.03),
                    }
                }
                let beside = r * (columns + 5) + columns..(r + 1) * (columns + 5);
                assert_eq!(out[beside.clone()], old[beside], "values beside the rows stay");
            }
        }
    }
}

#[test]
fn whole_numbers_multiply_as_their_values_do() {
    let mut seed = 9;
    let mut code = |largest: i32| {
        seed = seed_after(seed);
        ((seed >> 8) as i32 % (2 * largest + 1) - largest) as i8
    };
    for (rows, depth, columns) in [(1, 1, 1), (3, 31, 40), (14, 192, 33), (70, 500, 64), (250, 33, 7)] {
        let a = random(rows * depth, &mut 5);
        let scales = random(columns * groups(depth), &mut 6);
        let codes: Vec<i8> = (0..columns * depth).map(|_| code(127)).collect();
        let value = |c: usize, k: usize| f32::from(codes[c * depth + k]) * scales[c];
        let int8 = PackedMatrix::pack_int8(depth, columns, |c| (&codes[c * depth..][..depth], scales[c]));
        check(&a, rows, &int8, value);

        let bytes = depth.div_ceil(2);
        let codes: Vec<i8> = (0..columns * depth).map(|_| code(7)).collect();
        let mut packed = vec![0u8; columns * bytes];
        for (i, &code) in codes.iter().enumerate() {
            let (c, k) = (i / depth, i % depth);
            packed[c * bytes + k / 2] |= (code as u8 & 15) << (k % 2 * 4);
        }
        let of = |c: usize| &scales[c * groups(depth)..][..groups(depth)];
        let value = |c: usize, k: usize| f32::from(codes[c * depth + k]) * of(c)[k / GROUP];
        let int4 = PackedMatrix::pack_int4(depth, columns, |c, out| {
            out.copy_from_slice(of(c));
            &packed[c * bytes..][..bytes]
        });
        check(&a, rows, &int4, value);
    }
}

fn check(a: &[f32], rows: usize, matrix: &PackedMatrix, value: impl Fn(usize, usize) -> f32) {
    let (depth, columns) = (matrix.depth(), matrix.columns());
    let values: Vec<f32> = (0..depth * columns)
        .map(|i| value(i % columns, i / columns))
        .collect();
    let expanded = PackedMatrix::from_rows(&values, depth, columns);
    let (mut got, mut expected) = (vec![0.0; rows * columns], vec![1.0; rows * columns]);
    matmul(a, rows, matrix, &mut got, true);
    matmul(a, rows, &expanded, &mut expected, false);
    assert_eq!(got, expected);
}

#[test]
fn a_value_does_not_depend_on_its_neighbours() {
    let mut seed = 3;
    let (rows, depth, columns) = (31, 500, 70);
    let a = random(rows * depth, &mut seed);
    let b = random(columns * depth, &mut seed);
    let packed = PackedMatrix::from_transposed(&b, columns, depth);
    let mut all = vec![0.0; rows * columns];
    matmul(&a, rows, &packed, &mut all, true);
    for r in 0..rows {
        for c in [0, 15, 16, 33, 69] {
            let packed = PackedMatrix::from_transposed(&b[c * depth..(c + 1) * depth], 1, depth);
            let mut one = [0.0];
            matmul(&a[r * depth..(r + 1) * depth], 1, &packed, &mut one, false);
            assert_eq!(one[0], all[r * columns + c]);
        }
    }
}
