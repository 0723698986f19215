use super::*;
use crate::gpu::Gpu;
use crate::weights::{Bits, Dtype, Quantised, TensorData};

/// Somewhat random, in [-1, 1], exact in half precision.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 7919 + seed * 104_729) % 257) as f32 / 128.0 - 1.0)
        .collect()
}

fn exact(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Swish => x / (1.0 + (-x).exp()),
        // The towers' tests hold it to the recordings.
        Activation::Gelu => unreachable!(),
    }
}

fn rows(values: &[f32], width: usize, gpu: &Gpu) -> Tensor<2> {
    let data = burn::tensor::TensorData::new(values.to_vec(), [values.len() / width, width]);
    Tensor::from_data(data, gpu.device())
}

#[test]
fn matrix_products_of_every_kind() {
    let gpu = match pollster::block_on(Gpu::open(true)) {
        Ok(gpu) => gpu,
        Err(error) => return crate::skip::skipped(error),
    };
    let (depth, columns, part) = (64, 132, [8, 128]);
    let (weight, bias) = (numbers(depth * columns, 1), numbers(columns, 2));
    let halves: Vec<half::f16> = weight.iter().map(|&x| half::f16::from_f32(x)).collect();
    let kinds = [
        Dtype::F32,
        Dtype::F16,
        Dtype::Quantised(Bits::Int8),
        Dtype::Quantised(Bits::Int4),
    ];
    for (dtype, is_software) in kinds.into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        let (precision, stored) = match dtype {
            Dtype::F32 => (Precision::Single, TensorData::F32((&weight).into())),
            Dtype::F16 => (Precision::Half, TensorData::F16((&halves).into())),
            Dtype::Quantised(bits) => {
                let values = TensorData::F32((&weight).into());
                let matrix = Quantised::of_linear(&values, depth, columns, bits).unwrap();
                (Precision::Stored, TensorData::Quantised(matrix))
            }
        };
        let weight = stored.clone().into_f32().into_owned();
        let options = CardOptions {
            precision,
            ..CardOptions::default()
        };
        let layer = CardLayer::new(
            [depth, columns],
            stored,
            Some(bias.clone()),
            options,
            gpu.device(),
        );
        assert_eq!(layer.dtype(), dtype);
        for count in [1, 9, 15] {
            let (input, before) = (numbers(count * depth, 3), numbers(count * 120, 4));
            let finishes = [
                Finish::Activation(Activation::None),
                Finish::Activation(Activation::Relu),
                Finish::Activation(Activation::QuickGelu),
                Finish::Activation(Activation::Swish),
                Finish::Add,
            ];
            for finish in finishes {
                let residual = (finish == Finish::Add).then(|| rows(&before, 120, &gpu));
                let x = rows(&input, depth, &gpu);
                let got = columns_of(x, &layer, part, finish, residual, is_software);
                let got = pollster::block_on(crate::ops::host_values_async(got)).unwrap();
                assert_eq!(got.len(), count * 120);
                for (i, (&got, &before)) in got.iter().zip(&before).enumerate() {
                    let (row, column) = (i / 120, i % 120 + part[0]);
                    let x = &input[row * depth..][..depth];
                    let products = x.iter().zip(weight[column..].iter().step_by(columns));
                    let sum: f64 = products.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                    let sum = sum + f64::from(bias[column]);
                    let expected = match finish {
                        Finish::Add => sum + f64::from(before),
                        Finish::Activation(activation) => exact(activation, sum),
                    };
                    assert!(
                        (f64::from(got) - expected).abs() < 2e-5,
                        "{finish:?} {dtype} {is_software}: row {row}, column {column}: {got}, expected {expected}"
                    );
                }
            }
        }
    }
}

/// Those below the smallest normal number too, which not every card has in single precision.
#[test]
fn halves_are_unpacked_exactly() {
    let gpu = match pollster::block_on(Gpu::open(true)) {
        Ok(gpu) => gpu,
        Err(error) => return crate::skip::skipped(error),
    };
    let bits = (0..=u16::MAX).filter(|bits| half::f16::from_bits(*bits).is_finite());
    let halves: Vec<half::f16> = bits.map(half::f16::from_bits).collect();
    let mut weight = halves.clone();
    weight.resize(4 * halves.len(), half::f16::ZERO);
    let options = CardOptions {
        precision: Precision::Half,
        ..CardOptions::default()
    };
    let sizes = [4, halves.len()];
    let layer = CardLayer::new(sizes, TensorData::F16(weight.into()), None, options, gpu.device());
    let x = rows(&[1.0, 0.0, 0.0, 0.0], 4, &gpu);
    let got = linear(x, &layer, Activation::None, true);
    let got = pollster::block_on(crate::ops::host_values_async(got)).unwrap();
    for (got, expected) in got.iter().zip(&halves) {
        assert_eq!(*got, expected.to_f32());
    }
}

#[test]
fn a_card_is_kept_busy() {
    // One caption, the classes of a batch, an image, a batch of them.
    assert_eq!(spread(13, 192, false), (7, 8));
    assert_eq!(spread(13, 192, true), (7, 1));
    assert_eq!(spread(1, 192, false), (1, 8));
    assert_eq!(spread(4, 192, false), (4, 8));
    assert_eq!(spread(197, 768, false), (7, 1));
    assert_eq!(spread(32 * 197, 192, false), (7, 1));
}
