"""Compares the EfficientNet image tower of `ernie-vil` with ONNX Runtime on the CPU: as towers_onnx.py does it.

The weights are seeded random numbers under timm's names, converted by `ernie-vil`; the graph is what an export of
timm's network is after its batch normalisations were folded into the convolutions.

    cargo build --release
    pip install -r benches/peers/requirements.txt
    python benches/peers/efficientnet_onnx.py --work /tmp/efficientnet --output efficientnet.json

The exit code is 1 where the vectors disagree.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import towers_onnx as towers
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

# Image size, multipliers of channels and blocks.
SIZES = {"b0": (224, 1.0, 1.0), "b5": (456, 1.6, 2.2)}
# Output channels, repeats, kernel, stride, expansion.
STAGES = [(16, 1, 3, 1, 1), (24, 2, 3, 2, 6), (40, 2, 5, 2, 6), (80, 3, 3, 2, 6), (112, 3, 5, 1, 6), (192, 4, 5, 2, 6)]
STAGES += [(320, 1, 3, 1, 6)]
EPSILON = 1e-3
# A small text tower, since a model has one.
TEXT_WIDTH, TEXT_BLOCKS = 64, 1
FORMS = ["plain", "QuickGelu"]
BATCHES = [1, 8]


def channels(base, multiplier):
    scaled = base * multiplier
    near = max(8, int(scaled + 4) // 8 * 8)
    return near + 8 if near < 0.9 * scaled else near


def blocks(width, depth):
    """Each block's name, kernel, stride, input, expanded and output channels, and whether it expands."""
    inputs = channels(32, width)
    for stage, (base, repeats, kernel, stride, expansion) in enumerate(STAGES):
        outputs = channels(base, width)
        for index in range(math.ceil(repeats * depth)):
            strides = stride if index == 0 else 1
            yield f"blocks.{stage}.{index}", kernel, strides, inputs, inputs * expansion, outputs, expansion > 1
            inputs = outputs


def random_weights(width, depth, seed):
    """All tensors of a file of timm's, with values that stay near 1 on their way, and a small text tower."""
    random = np.random.default_rng(seed)
    weights = {}

    def normal(name, shape, deviation, mean=0.0):
        values = random.standard_normal(shape, dtype=np.float32)
        weights[name] = values * np.float32(deviation) + np.float32(mean)

    def convolution(name, shape, gain=1.0):
        normal(f"{name}.weight", shape, gain * math.prod(shape[1:]) ** -0.5)

    def norm(name, count):
        normal(f"{name}.weight", (count,), 0.1, 1.0)
        normal(f"{name}.bias", (count,), 0.1)
        normal(f"{name}.running_mean", (count,), 0.1)
        weights[f"{name}.running_var"] = random.uniform(0.8, 1.2, count).astype(np.float32)

    convolution("conv_stem", (channels(32, width), 3, 3, 3))
    norm("bn1", channels(32, width))
    outputs = None
    for name, kernel, stride, inputs, expanded, outputs, expands in blocks(width, depth):
        if expands:
            convolution(f"{name}.conv_pw", (expanded, inputs, 1, 1))
            norm(f"{name}.bn1", expanded)
        convolution(f"{name}.conv_dw", (expanded, 1, kernel, kernel), 1.7)
        norm(f"{name}.bn{2 if expands else 1}", expanded)
        squeezed = inputs // 4
        for part, shape in [("reduce", (squeezed, expanded, 1, 1)), ("expand", (expanded, squeezed, 1, 1))]:
            convolution(f"{name}.se.conv_{part}", shape)
            normal(f"{name}.se.conv_{part}.bias", shape[:1], 0.1)
        is_residual = stride == 1 and inputs == outputs
        convolution(f"{name}.conv_{'pwl' if expands else 'pw'}", (outputs, expanded, 1, 1), 0.7 if is_residual else 3.3)
        norm(f"{name}.bn{3 if expands else 2}", outputs)
    convolution("conv_head", (channels(1280, width), outputs, 1, 1))
    norm("bn2", channels(1280, width))
    text = towers.random_weights(TEXT_WIDTH, TEXT_BLOCKS, 32, seed)
    return weights | {name: array for name, array in text.items() if name.startswith("text_model.")}


def prepare(folder, size, seed):
    """Makes the weights, the configurations and the vocabulary; returns the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    image_size, width, depth = SIZES[size]
    image = {"kind": "efficientnet", "image_size": image_size, "width_multiplier": width, "depth_multiplier": depth}
    (folder / "image_config.json").write_text(json.dumps(image))
    (folder / "text_config.json").write_text(json.dumps(towers.text_config(TEXT_WIDTH, TEXT_BLOCKS)))
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *towers.CHARACTERS, "[UNK]"]
    vocabulary = "\n".join(f"{token}\t{index}" for index, token in enumerate(tokens))
    (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    if not (folder / "weights.safetensors").exists():
        save_file(random_weights(width, depth, seed), folder / "weights.partial")
        (folder / "weights.partial").replace(folder / "weights.safetensors")
    return load_file(folder / "weights.safetensors")


def image_tower(weights, size, form, batch):
    """The graph from pixels [batch, 3, height, width] to raw vectors."""
    graph = towers.Graph(form)
    image_size, width, depth = SIZES[size]

    def convolution(x, side, conv, norm, stride=1, groups=1):
        weight = weights[f"{conv}.weight"]
        scale, shift, mean, variance = (
            weights[f"{norm}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = scale / np.sqrt(variance + EPSILON)
        kernel = weight.shape[2]
        after = -(-side // stride)
        padding = max((after - 1) * stride + kernel - side, 0)
        pads = [padding // 2] * 2 + [padding - padding // 2] * 2
        folded = (weight * factor[:, None, None, None]).astype(np.float32)
        bias = graph.weight((shift - mean * factor).astype(np.float32))
        attributes = {"strides": [stride] * 2, "pads": pads, "group": groups, "kernel_shape": [kernel] * 2}
        return graph.op("Conv", x, graph.weight(folded), bias, **attributes), after

    def swish(x):
        return (
            graph.op("QuickGelu", x, alpha=1.0) if form == "QuickGelu" else graph.op("Mul", x, graph.op("Sigmoid", x))
        )

    def plain(x, name):
        return graph.op("Conv", x, *(graph.weight(array) for array in towers.pair(weights, name)), kernel_shape=[1, 1])

    x, side = convolution("pixels", image_size, "conv_stem", "bn1", 2)
    x = swish(x)
    for name, _, stride, inputs, expanded, outputs, expands in blocks(width, depth):
        before = x
        if expands:
            x = swish(convolution(x, side, f"{name}.conv_pw", f"{name}.bn1")[0])
        x, side = convolution(x, side, f"{name}.conv_dw", f"{name}.bn{2 if expands else 1}", stride, expanded)
        x = swish(x)
        gate = swish(plain(graph.op("GlobalAveragePool", x), f"{name}.se.conv_reduce"))
        x = graph.op("Mul", x, graph.op("Sigmoid", plain(gate, f"{name}.se.conv_expand")))
        conv, norm = ("conv_pwl", "bn3") if expands else ("conv_pw", "bn2")
        x, _ = convolution(x, side, f"{name}.{conv}", f"{name}.{norm}")
        if stride == 1 and inputs == outputs:
            x = graph.op("Add", x, before)
    x = swish(convolution(x, side, "conv_head", "bn2")[0])
    x = graph.op("Flatten", graph.op("GlobalAveragePool", x))
    shape = [batch, 3, image_size, image_size]
    return towers.Tower(graph, helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape), x)


class Ours(towers.Ours):
    """The `ernie-vil` binary with a model folder in f32."""

    def __init__(self, binary, folder, threads):
        self.binary, self.threads = binary, threads
        self.folders = {"f32": folder / "model"}
        if not self.folders["f32"].exists():
            inputs = ["--weights", folder / "weights.safetensors", "--vocab", folder / "vocab.txt"]
            inputs += ["--text-config", folder / "text_config.json", "--image-config", folder / "image_config.json"]
            self.run("convert", *inputs, "--output", self.folders["f32"])


def arguments():
    target = Path(os.environ.get("CARGO_TARGET_DIR", towers.ROOT / "target"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", choices=SIZES, default="b5", help="the network (default: b5)")
    parser.add_argument("--binary", type=Path, default=target / "release" / "ernie-vil", help="the ernie-vil to time")
    parser.add_argument("--check-only", action="store_true", help="compare the vectors and time nothing")
    parser.add_argument("--work", type=Path, help="where weights and models are kept for the next run")
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    parser.add_argument(
        "--threads", type=int, default=towers.cores(), help="threads of both sides (default: one a core)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often the sides take turns (default: 5)")
    parser.add_argument("--repeat", type=int, default=3, help="measurements in a turn (default: 3)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and pictures (default: 1)")
    args = parser.parse_args()
    args.binary = args.binary.absolute()
    if not args.binary.is_file():
        parser.error(f"there is no {args.binary}: build it or give --binary")
    return args


def compare(args, folder):
    """Everything, with `folder` for the files. Returns the report and whether the vectors are the same."""
    weights = prepare(folder, args.size, args.seed)
    ours = Ours(args.binary, folder, args.threads)
    towers.IMAGE_SIZE = SIZES[args.size][0]
    lines, pixels, _ = towers.examples(args.seed)
    machine = {"processor": towers.processor(), "threads": args.threads, "load_before": os.getloadavg()}
    report = {"size": args.size, "machine": machine, "onnxruntime": onnxruntime.__version__}
    print(
        args.size, machine["processor"], f"{args.threads} threads", f"ONNX Runtime {onnxruntime.__version__}", sep=", "
    )

    one = pixels[:1]
    calls = {form: image_tower(weights, args.size, form, 1).open(args.threads) for form in FORMS}
    times = {form: min(towers.timed(call, one, args.repeat)["least"] for _ in range(2)) for form, call in calls.items()}
    taken = min(times, key=times.get)
    print(", ".join(f"{form} {ms:.1f} ms" for form, ms in times.items()), f"taking {taken}", sep="; ")
    peer = np.concatenate([calls[taken](pixels[i : i + 1]) for i in range(len(pixels))])
    result = towers.agreement(ours.embed(lines)[1], peer)
    same = towers.agrees(result)
    print("the same vectors" if same else "DIFFERENT vectors", *(f"{key} {value:.9g}" for key, value in result.items()))
    report |= {"form": {"taken": taken, "ms": times}, "agreement": result}
    if same and not args.check_only:
        random = np.random.default_rng(0)
        found = {f"image, batch {batch}": {"ours": [], "peer": []} for batch in BATCHES}
        sessions = {batch: image_tower(weights, args.size, taken, batch).open(args.threads) for batch in BATCHES}
        for _ in range(args.rounds):
            our_times = ours.bench("image_tower", args.repeat)
            for batch, call in sessions.items():
                values = random.standard_normal((batch, *one.shape[1:]), dtype=np.float32)
                times = towers.timed(call, values, args.repeat)
                case = found[f"image, batch {batch}"]
                case["peer"].append({key: ms / batch for key, ms in times.items()})
                case["ours"].append(our_times[batch, None])
        report["results"] = towers.table(found)
        machine["load_after"] = os.getloadavg()
    return report, same


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        report, same = compare(args, (args.work or Path(temporary)) / f"{args.size}-{args.seed}")
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
