//! The fused operations on the host's memory, and their backward passes.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, backend_extension};
use burn::tensor::{Shape, TensorData};

use crate::kernels::dropout::DropoutMask;
use crate::kernels::train::{self, LinearShape, PackedAttention, Wanted};
use crate::kernels::{Activation, AttentionShape};

/// What the fused operations need of a backend.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait TrainingOps: Backend {
    /// `qkv` \[batch, tokens, 2 * query width + value width\], `key_bias` \[batch, tokens\].
    fn train_attention(
        qkv: FloatTensor<Self>,
        key_bias: FloatTensor<Self>,
        shape: AttentionShape,
        drop: Option<DropoutMask>,
        only_first: bool,
    ) -> FloatTensor<Self>;

    /// Over the last dimension of `x`.
    fn train_layer_norm(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// Over the last dimension of `x`.
    fn train_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// drop(x).
    fn train_drop(x: FloatTensor<Self>, drop: DropoutMask) -> FloatTensor<Self>;

    /// x + drop(y).
    fn train_add_drop(x: FloatTensor<Self>, y: FloatTensor<Self>, drop: DropoutMask) -> FloatTensor<Self>;
}

type Host = FloatTensor<Flex>;

/// The tensor with its values side by side and nothing else in its buffer.
fn whole(tensor: &Host) -> Host {
    tensor.to_contiguous()
}

fn tensor(values: Vec<f32>, shape: Shape) -> Host {
    Host::from_data(TensorData::new(values, shape))
}

fn shape_of(tensor: &Host) -> Shape {
    tensor.layout().shape().clone()
}

/// The shape with another last dimension.
fn with_last(shape: &Shape, last: usize) -> Shape {
    let mut dims: Vec<usize> = shape.iter().copied().collect();
    *dims.last_mut().expect("at least one dimension") = last;
    Shape::from(dims)
}

fn last_of(shape: &Shape) -> usize {
    shape[shape.num_dims() - 1]
}

/// What the attention and its backward pass are computed of.
#[derive(Debug, Clone)]
struct Attention {
    qkv: Host,
    key_bias: Host,
    shape: AttentionShape,
    drop: Option<DropoutMask>,
    only_first: bool,
}

impl Attention {
    fn new(
        qkv: &Host,
        key_bias: &Host,
        shape: AttentionShape,
        drop: Option<DropoutMask>,
        only_first: bool,
    ) -> Self {
        Self {
            qkv: whole(qkv),
            key_bias: whole(key_bias),
            shape,
            drop,
            only_first,
        }
    }

    fn packed(&self) -> PackedAttention<'_> {
        let shape = self.qkv.layout().shape();
        PackedAttention {
            shape: self.shape,
            batch: shape[0],
            tokens: shape[1],
            rows: self.qkv.storage(),
            key_bias: Some(self.key_bias.storage()),
            drop: self.drop,
            only_first: self.only_first,
        }
    }

    fn forward(&self) -> Host {
        let packed = self.packed();
        let rows = if self.only_first { 1 } else { packed.tokens };
        tensor(
            packed.forward(),
            Shape::from([packed.batch, rows, self.shape.value_width()]),
        )
    }
}

fn layer_norm(x: &Host, scale: &Host, shift: &Host, epsilon: f32) -> (Host, Vec<f32>) {
    let (y, moments) = train::layer_norm(x.storage(), scale.storage(), shift.storage(), epsilon);
    (tensor(y, shape_of(x)), moments)
}

fn linear_shape(x: &Host, weight: &Host, activation: Activation) -> LinearShape {
    let weight = weight.layout().shape();
    let x = x.layout().shape();
    assert_eq!(last_of(x), weight[0], "the layer's inputs");
    LinearShape {
        rows: x.num_elements() / weight[0],
        inputs: weight[0],
        outputs: weight[1],
        activation,
    }
}

fn linear(x: &Host, weight: &Host, bias: &Host, activation: Activation) -> (Host, Option<Host>) {
    let shape = with_last(x.layout().shape(), weight.layout().shape()[1]);
    let (y, before) =
        linear_shape(x, weight, activation).forward(x.storage(), weight.storage(), Some(bias.storage()));
    (
        tensor(y, shape.clone()),
        before.map(|before| tensor(before, shape)),
    )
}

impl TrainingOps for Flex {
    fn train_attention(
        qkv: Host,
        key_bias: Host,
        shape: AttentionShape,
        drop: Option<DropoutMask>,
        only_first: bool,
    ) -> Host {
        Attention::new(&qkv, &key_bias, shape, drop, only_first).forward()
    }

    fn train_layer_norm(x: Host, scale: Host, shift: Host, epsilon: f32) -> Host {
        layer_norm(&whole(&x), &whole(&scale), &whole(&shift), epsilon).0
    }

    fn train_linear(x: Host, weight: Host, bias: Host, activation: Activation) -> Host {
        linear(&whole(&x), &whole(&weight), &whole(&bias), activation).0
    }

    fn train_drop(x: Host, drop: DropoutMask) -> Host {
        let x = whole(&x);
        let width = last_of(x.layout().shape());
        tensor(train::drop_out(x.storage(), width, &drop), shape_of(&x))
    }

    fn train_add_drop(x: Host, y: Host, drop: DropoutMask) -> Host {
        let (x, y) = (whole(&x), whole(&y));
        assert_eq!(x.layout().shape(), y.layout().shape(), "the shapes of a sum");
        let width = last_of(x.layout().shape());
        tensor(
            train::drop_add(x.storage(), y.storage(), width, &drop),
            shape_of(&x),
        )
    }
}

impl<C: CheckpointStrategy> TrainingOps for Autodiff<Flex, C> {
    fn train_attention(
        qkv: FloatTensor<Self>,
        key_bias: FloatTensor<Self>,
        shape: AttentionShape,
        drop: Option<DropoutMask>,
        only_first: bool,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;

        impl Backward<Flex, 1> for Step {
            type State = Attention;

            fn backward(self, ops: Ops<Attention, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = whole(&grads.consume::<Flex>(&ops.node));
                if let [Some(node)] = ops.parents {
                    let rows = ops.state.packed().backward(gradient.storage());
                    grads.register::<Flex>(node.id, tensor(rows, shape_of(&ops.state.qkv)));
                }
            }
        }

        let state = Attention::new(qkv.primitive(), key_bias.primitive(), shape, drop, only_first);
        let output = state.forward();
        match Step.prepare::<C>([qkv.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn train_layer_norm(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;

        impl Backward<Flex, 3> for Step {
            /// x, scale, and the moments of each row.
            type State = (Host, Host, Vec<f32>);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let mut gradient = grads.consume::<Flex>(&ops.node);
                gradient = whole(&gradient);
                let (x, scale, moments) = ops.state;
                let (to_scale, to_shift) = train::layer_norm_backward(
                    x.storage(),
                    scale.storage(),
                    &moments,
                    gradient.storage_mut(),
                );
                let [node_x, node_scale, node_shift] = ops.parents;
                if let Some(node) = node_x {
                    grads.register::<Flex>(node.id, gradient);
                }
                if let Some(node) = node_scale {
                    grads.register::<Flex>(node.id, tensor(to_scale, shape_of(&scale)));
                }
                if let Some(node) = node_shift {
                    grads.register::<Flex>(node.id, tensor(to_shift, shape_of(&scale)));
                }
            }
        }

        let (values, factors) = (whole(x.primitive()), whole(scale.primitive()));
        let (output, moments) = layer_norm(&values, &factors, &whole(shift.primitive()), epsilon);
        match Step
            .prepare::<C>([x.node(), scale.node(), shift.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((values, factors, moments), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn train_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;

        impl Backward<Flex, 3> for Step {
            /// x, the weight, what went into the activation, and which.
            type State = (Host, Host, Option<Host>, Activation);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = whole(&grads.consume::<Flex>(&ops.node));
                let (x, weight, before, activation) = ops.state;
                let [node_x, node_weight, node_bias] = ops.parents;
                let wanted = Wanted {
                    input: node_x.is_some(),
                    weight: node_weight.is_some(),
                    bias: node_bias.is_some(),
                };
                let shape = linear_shape(&x, &weight, activation);
                let found = shape.backward(
                    x.storage(),
                    weight.storage(),
                    before.as_ref().map(|before| before.storage()),
                    gradient.storage(),
                    wanted,
                );
                if let (Some(node), Some(values)) = (node_x, found.input) {
                    grads.register::<Flex>(node.id, tensor(values, shape_of(&x)));
                }
                if let (Some(node), Some(values)) = (node_weight, found.weight) {
                    grads.register::<Flex>(node.id, tensor(values, shape_of(&weight)));
                }
                if let (Some(node), Some(values)) = (node_bias, found.bias) {
                    grads.register::<Flex>(node.id, tensor(values, Shape::from([shape.outputs])));
                }
            }
        }

        let (values, factors) = (whole(x.primitive()), whole(weight.primitive()));
        let (output, before) = linear(&values, &factors, &whole(bias.primitive()), activation);
        match Step
            .prepare::<C>([x.node(), weight.node(), bias.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((values, factors, before, activation), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn train_drop(x: FloatTensor<Self>, drop: DropoutMask) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;

        impl Backward<Flex, 1> for Step {
            type State = DropoutMask;

            fn backward(self, ops: Ops<DropoutMask, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<Flex>(&ops.node);
                if let [Some(node)] = ops.parents {
                    grads.register::<Flex>(node.id, Flex::train_drop(gradient, ops.state));
                }
            }
        }

        let (x, node) = x.into_parts();
        let output = Flex::train_drop(x, drop);
        match Step.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(drop, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn train_add_drop(x: FloatTensor<Self>, y: FloatTensor<Self>, drop: DropoutMask) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;

        impl Backward<Flex, 2> for Step {
            type State = DropoutMask;

            fn backward(self, ops: Ops<DropoutMask, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let gradient = grads.consume::<Flex>(&ops.node);
                let [node_x, node_y] = ops.parents;
                if let Some(node) = node_y {
                    grads.register::<Flex>(node.id, Flex::train_drop(gradient.clone(), ops.state));
                }
                if let Some(node) = node_x {
                    grads.register::<Flex>(node.id, gradient);
                }
            }
        }

        let (x, node_x) = x.into_parts();
        let (y, node_y) = y.into_parts();
        let output = Flex::train_add_drop(x, y, drop);
        match Step.prepare::<C>([node_x, node_y]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(drop, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}
