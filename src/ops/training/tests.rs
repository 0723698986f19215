//! The operations of training against Burn's own operations, forward and backward.

use super::super::DropoutMask;
use crate::kernels::{Activation, AttentionShape};
use burn::tensor::activation::{gelu, relu, sigmoid, softmax};
use burn::tensor::{Device, Tensor, TensorData};

/// Values between -1 and 1 that differ from one another.
fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769).wrapping_add(12_345);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn leaf<const D: usize>(dims: [usize; D], seed: u32) -> Tensor<D> {
    let data = TensorData::new(values(dims.iter().product(), seed), dims);
    Tensor::from_data(data, &Device::flex().autodiff()).require_grad()
}

fn constant<const D: usize>(data: Vec<f32>, dims: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(data, dims), &Device::flex().autodiff())
}

fn floats<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_into_vec_as::<f32>().expect("f32")
}

/// Equal within 1e-5 of the largest value.
fn assert_near(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let size = expected.iter().fold(1e-3f32, |size, x| size.max(x.abs()));
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= 1e-5 * size,
            "{what}: value {i} is {a}, expected {b}"
        );
    }
}

/// The result of `f` and the gradients, with respect to what it was given, of the sum of the result's values
/// times fixed ones.
fn run<const D: usize, const E: usize>(
    inputs: &[Tensor<D>],
    others: &[Tensor<1>],
    f: impl Fn(&[Tensor<D>], &[Tensor<1>]) -> Tensor<E>,
) -> Vec<Vec<f32>> {
    let y = f(inputs, others);
    let weights = constant(values(y.dims().iter().product(), 99), y.dims());
    let gradients = (y.clone() * weights).sum().backward();
    let mut all = vec![floats(y)];
    all.extend(
        inputs
            .iter()
            .map(|x| floats(x.grad(&gradients).expect("a gradient"))),
    );
    all.extend(
        others
            .iter()
            .map(|x| floats(x.grad(&gradients).expect("a gradient"))),
    );
    all
}

/// On one thread and on two, with the same bytes.
fn on_threads(f: impl Fn() -> Vec<Vec<f32>> + Sync) -> Vec<Vec<f32>> {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads").install(&f)
    };
    let one = on(1);
    assert!(one == on(2), "the number of threads changes nothing");
    one
}

fn assert_all_near(what: &str, got: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_near(&format!("{what}, tensor {i}"), got, expected);
    }
}

#[test]
fn attention() {
    for (batch, tokens, heads, dq, dv) in [
        (1, 1, 1, 1, 1),
        (3, 5, 2, 6, 10),
        (2, 65, 4, 32, 32),
        (2, 64, 2, 64, 64),
        (3, 33, 3, 33, 70),
        (2, 200, 1, 16, 48),
    ] {
        let shape = AttentionShape {
            heads,
            query_head_width: dq,
            value_head_width: dv,
        };
        let width = 2 * shape.query_width() + shape.value_width();
        let qkv = leaf([batch, tokens, width], 1);
        // Every third key of a sequence is padding, but not the first.
        let bias: Vec<f32> = (0..batch * tokens)
            .map(|i| if i % tokens % 3 == 1 { -10_000.0 } else { 0.0 })
            .collect();
        for (has_bias, drop, only_first) in [
            (false, None, false),
            (true, None, false),
            (false, None, true),
            (true, Some(DropoutMask { seed: 5, share: 0.3 }), false),
            (true, Some(DropoutMask { seed: 6, share: 0.3 }), true),
        ] {
            let key_bias = || has_bias.then(|| constant(bias.clone(), [batch, 1, 1, tokens]));
            let got = on_threads(|| {
                run(std::slice::from_ref(&qkv), &[], |x, _| {
                    super::attention(x[0].clone(), key_bias(), &shape, drop, only_first)
                })
            });
            let expected = run(std::slice::from_ref(&qkv), &[], |x, _| {
                let part = |start: usize, head_width: usize| {
                    x[0].clone()
                        .narrow(2, start, heads * head_width)
                        .reshape([batch, tokens, heads, head_width])
                        .swap_dims(1, 2)
                };
                let (q, k) = (part(0, dq), part(shape.query_width(), dq));
                let mut scores = q.matmul(k.transpose()) / (dq as f64).sqrt();
                if let Some(bias) = key_bias() {
                    scores = scores + bias;
                }
                let mut weights = softmax(scores, 3);
                if let Some(drop) = drop {
                    let rows = batch * heads * tokens;
                    let factors = (0..rows)
                        .flat_map(|row| (0..tokens).map(move |column| drop.factor(row, column)))
                        .collect();
                    weights = weights * constant(factors, [batch, heads, tokens, tokens]);
                }
                let all = weights
                    .matmul(part(2 * shape.query_width(), dv))
                    .swap_dims(1, 2)
                    .reshape([batch, tokens, heads * dv]);
                if only_first { all.narrow(1, 0, 1) } else { all }
            });
            let what = format!("{batch} {tokens} {heads} {dq} {dv} {has_bias} {drop:?} {only_first}");
            assert_all_near(&what, &got, &expected);
        }
    }
}

#[test]
fn layer_norm() {
    for (rows, width) in [(1, 1), (7, 5), (300, 128), (65, 100), (1000, 33)] {
        let x = [leaf([rows, width], 1) * 3.0 + 0.5];
        // A leaf again, so that it has a gradient.
        let x = [Tensor::from_data(x[0].clone().into_data(), &Device::flex().autodiff()).require_grad()];
        let others = [leaf([width], 2), leaf([width], 3)];
        let got = on_threads(|| {
            run::<2, 2>(&x, &others, |x, o| {
                super::layer_norm(x[0].clone(), o[0].clone(), o[1].clone(), 1e-5)
            })
        });
        let expected = run::<2, 2>(&x, &others, |x, o| {
            let centred = x[0].clone() - x[0].clone().mean_dim(1);
            let variance = (centred.clone() * centred.clone()).mean_dim(1);
            centred / (variance + 1e-5).sqrt() * o[0].clone().unsqueeze() + o[1].clone().unsqueeze()
        });
        assert_all_near(&format!("{rows} {width}"), &got, &expected);
    }
}

fn composed(x: Tensor<2>, activation: Activation) -> Tensor<2> {
    match activation {
        Activation::None => x,
        Activation::QuickGelu => x.clone() * sigmoid(x * 1.702),
        Activation::Gelu => gelu(x),
        Activation::Relu => relu(x),
        Activation::Swish => x.clone() * sigmoid(x),
    }
}

const ACTIVATIONS: [Activation; 5] = [
    Activation::None,
    Activation::QuickGelu,
    Activation::Swish,
    Activation::Gelu,
    Activation::Relu,
];

#[test]
fn activations() {
    for activation in ACTIVATIONS {
        for (n, size) in [(1, 1.0), (37, 9.0), (40_000, 4.0), (1000, 60.0)] {
            let x = leaf([n, 1], 4) * size;
            let x = [Tensor::from_data(x.into_data(), &Device::flex().autodiff()).require_grad()];
            // A layer that hands its one input on.
            let same = constant(vec![1.0], [1, 1]);
            let got = on_threads(|| {
                run::<2, 2>(&x, &[], |x, _| {
                    super::linear(x[0].clone(), same.clone(), None, activation)
                })
            });
            let expected = run::<2, 2>(&x, &[], |x, _| composed(x[0].clone(), activation));
            assert_all_near(&format!("{activation:?} {n}"), &got, &expected);
        }
    }
}

#[test]
fn linear() {
    for (rows, inputs, outputs) in [
        (1, 1, 1),
        (7, 5, 3),
        (130, 33, 70),
        (1100, 128, 96),
        (500, 100, 17),
        (241, 300, 40),
    ] {
        for activation in ACTIVATIONS {
            let inputs_of = [leaf([rows, inputs], 1), leaf([inputs, outputs], 2)];
            let bias = [leaf([outputs], 3)];
            let got = on_threads(|| {
                run::<2, 2>(&inputs_of, &bias, |x, b| {
                    super::linear(x[0].clone(), x[1].clone(), Some(b[0].clone()), activation)
                })
            });
            let expected = run::<2, 2>(&inputs_of, &bias, |x, b| {
                composed(
                    x[0].clone().matmul(x[1].clone()) + b[0].clone().unsqueeze(),
                    activation,
                )
            });
            assert_all_near(
                &format!("{rows} {inputs} {outputs} {activation:?}"),
                &got,
                &expected,
            );
        }
    }
}

#[test]
fn linear_of_what_is_fixed() {
    let (x, weight) = (constant(values(12, 1), [4, 3]), constant(values(15, 2), [3, 5]));
    let bias = leaf([5], 3);
    let y = super::linear(x.clone(), weight.clone(), Some(bias.clone()), Activation::None);
    assert_eq!(y.dims(), [4, 5]);
    let gradients = y.sum().backward();
    assert_eq!(floats(bias.grad(&gradients).expect("a gradient")), [4.0; 5]);
    assert!(x.grad(&gradients).is_none() && weight.grad(&gradients).is_none());
    let without = super::linear(x.clone(), weight.clone(), None, Activation::None);
    let plain = x.matmul(weight);
    assert_near("no bias", &floats(without), &floats(plain));
}

#[test]
fn dropout() {
    let (rows, width) = (301, 150);
    let drop = DropoutMask {
        seed: 11,
        share: 0.25,
    };
    let factors: Vec<f32> = (0..rows)
        .flat_map(|row| (0..width).map(move |column| drop.factor(row, column)))
        .collect();
    let kept = factors.iter().filter(|&&f| f != 0.0).count() as f64 / factors.len() as f64;
    assert!((kept - 0.75).abs() < 0.01, "{kept}");
    assert!(factors.iter().all(|&f| f == 0.0 || f == (1.0f32 / 0.75)));
    let other = DropoutMask { seed: 12, ..drop };
    let same = (0..rows)
        .filter(|&row| drop.factor(row, 7) == other.factor(row, 7))
        .count();
    assert!(same < rows * 3 / 4, "{same}");

    let inputs = [leaf([rows, width], 1), leaf([rows, width], 2)];
    let mask = constant(factors, [rows, width]);
    let got = on_threads(|| {
        run::<2, 2>(&inputs, &[], |x, _| {
            let dropped = super::drop_out(x[1].clone(), drop);
            super::add_drop_out(x[0].clone(), dropped, drop)
        })
    });
    let expected = run::<2, 2>(&inputs, &[], |x, _| {
        x[0].clone() + x[1].clone() * mask.clone() * mask.clone()
    });
    assert_all_near("dropout", &got, &expected);
}
