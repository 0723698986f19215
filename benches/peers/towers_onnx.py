"""Compares `ernie-vil` with ONNX Runtime on the CPU: the same weights, the same machine, the same run.

The weights are seeded random numbers of the published sizes. They are written as a checkpoint of the original,
converted by `ernie-vil`, and built into ONNX graphs here. Both sides must first give the same vectors; then they
are timed in turn, so that whatever else the machine does falls on both.

    cargo build --release
    pip install -r benches/peers/requirements.txt
    python benches/peers/towers_onnx.py --work /tmp/towers --output towers.json

The exit code is 1 where the vectors disagree.
"""

import argparse
import base64
import io
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
# Of both towers: width, blocks; of the image tower: patch size. A head has 64 columns.
SIZES = {"small": (128, 2, 32), "base": (768, 12, 16), "large": (1024, 24, 14)}
HEAD_WIDTH = 64
IMAGE_SIZE = 224
WORDS = 40_000
POSITIONS = 2_048
TOKENS = 48
PADDING, CLS, SEP, MASK = range(4)
# The made-up vocabulary: the special tokens, these characters, [UNK].
CHARACTERS = [chr(code) for code in range(0x4E00, 0x5E00)]
IMAGE_EPSILON, TEXT_EPSILON = 1e-6, 1e-5
MEAN = np.array([0.485, 0.456, 0.406]).reshape((3, 1, 1))
STD = np.array([0.229, 0.224, 0.225]).reshape((3, 1, 1))
# The least cosine between the two sides' vectors of one input.
SAME = 0.99999
# How a graph is written: standard operators only; attention as ONNX Runtime's own operator; its fused operators
# wherever there is one. Which of them is fastest depends on the machine and the version, so it is measured.
FORMS = ["plain", "attention", "fused"]
MICROSOFT = "com.microsoft"
MICROSOFT_OPERATORS = {"MultiHeadAttention", "SkipLayerNormalization", "QuickGelu", "BiasGelu"}

# A program that does on ONNX Runtime what `ernie-vil bench --cold-start` does.
COLD_START = """
import sys, time
import numpy, onnxruntime
start = time.perf_counter()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"ids": numpy.arange(1, 11, dtype=numpy.int64)[None]})
print((time.perf_counter() - start) * 1e3)
"""


def random_weights(width, blocks, patch, seed):
    """All tensors of a checkpoint by name. A linear layer's weight is [in, out]."""
    random = np.random.default_rng(seed)
    weights = {}

    def normal(name, shape, deviation, mean=0.0):
        values = random.standard_normal(shape, dtype=np.float32)
        weights[name] = values * np.float32(deviation) + np.float32(mean)

    def linear(name, inputs, outputs):
        normal(f"{name}.weight", (inputs, outputs), inputs**-0.5)
        normal(f"{name}.bias", (outputs,), 0.02)

    def norm(name):
        normal(f"{name}.weight", (width,), 0.1, 1.0)
        normal(f"{name}.bias", (width,), 0.05)

    patch_values = 3 * patch * patch
    normal("visual.class_embedding", (1, 1, width), 0.2)
    normal("visual.positional_embedding", (1, (IMAGE_SIZE // patch) ** 2 + 1, width), 0.1)
    normal("visual.patch_embed.proj.weight", (width, 3, patch, patch), patch_values**-0.5)
    norm("visual.norm_pre")
    for block in range(blocks):
        name = f"visual.blocks.{block}"
        norm(f"{name}.norm1")
        linear(f"{name}.attn.qkv", width, 3 * width)
        linear(f"{name}.attn.proj", width, width)
        norm(f"{name}.norm2")
        linear(f"{name}.mlp.fc1", width, 4 * width)
        linear(f"{name}.mlp.fc2", 4 * width, width)
    norm("visual.norm_post")

    norm("text_model.ln")
    normal("text_model.word_emb.weight", (WORDS, width), 0.02)
    normal("text_model.pos_emb.weight", (POSITIONS, width), 0.02)
    for block in range(blocks):
        name = f"text_model.encoder_stack.block.{block}"
        for part in "qkvo":
            linear(f"{name}.attn.{part}", width, width)
        norm(f"{name}.ln1")
        linear(f"{name}.ffn.i", width, 4 * width)
        linear(f"{name}.ffn.o", 4 * width, width)
        norm(f"{name}.ln2")
    linear("text_model.pooler", width, width)
    weights["contrastive_loss_mm.temperature_b"] = np.array([2.65926], dtype=np.float32)
    return weights


def text_config(width, blocks):
    """The text tower's sizes with the original's keys."""
    return {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": width,
        "initializer_range": 0.02,
        "max_position_embeddings": POSITIONS,
        "num_attention_heads": width // HEAD_WIDTH,
        "num_hidden_layers": blocks,
        "sent_type_vocab_size": 4,
        "task_type_vocab_size": 3,
        "vocab_size": WORDS,
    }


class ArraysOnly(pickle.Unpickler):
    """Reads a checkpoint and nothing else: no global beyond those that make up a NumPy array."""

    def find_class(self, module, name):
        if module.startswith("numpy") and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a checkpoint holds {module}.{name}, expected NumPy arrays only")


def prepare(folder, size, seed):
    """Makes the checkpoint, the text configuration and the vocabulary where they are missing; returns the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "weights.pdparams"
    width, blocks, patch = SIZES[size]
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, "[UNK]"]
    vocabulary = "\n".join(f"{token}\t{index}" for index, token in enumerate(tokens))
    (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    (folder / "text_config.json").write_text(json.dumps(text_config(width, blocks), indent=2))
    if not checkpoint.exists():
        # Under another name until it is whole, so that a run that broke off leaves nothing to be taken for it.
        partial = checkpoint.with_suffix(".partial")
        with partial.open("wb") as file:
            pickle.dump(random_weights(width, blocks, patch, seed), file, protocol=4)
        partial.replace(checkpoint)
    with checkpoint.open("rb") as file:
        return ArraysOnly(file).load()


class Graph:
    """An ONNX graph that grows by one operator at a time, with its weights beside it."""

    def __init__(self, form):
        self.form = form
        self.nodes = []
        self.constants = []
        self.weights = []

    def op(self, kind, *inputs, outputs=(True,), **attributes):
        """Adds an operator and returns the names of the outputs that are wanted: one, or a list of them."""
        domain = MICROSOFT if kind in MICROSOFT_OPERATORS else ""
        names = [f"{kind}_{len(self.nodes)}_{i}" if wanted else "" for i, wanted in enumerate(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        names = [name for name in names if name]
        return names[0] if len(names) == 1 else names

    def constant(self, value, dtype=np.int64):
        """A small value that shapes the graph."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name

    def weight(self, array):
        """A weight, which is kept outside the graph."""
        self.weights.append(np.ascontiguousarray(array))
        return f"weight_{len(self.weights) - 1}"

    def linear(self, x, weight, bias=None):
        y = self.op("MatMul", x, self.weight(weight))
        return y if bias is None else self.op("Add", y, self.weight(bias))

    def norm(self, x, scale, bias, epsilon):
        return self.op("LayerNormalization", x, self.weight(scale), self.weight(bias), epsilon=epsilon)

    def attention(self, queries, x, projections, heads, mask):
        """Attention of `queries` over `x`, both [batch, tokens, width], before the output projection.

        `projections` are the weights and biases of query, key and value. `mask` is None, or in the plain form what
        is added to the scores, [batch, 1, 1, tokens], and otherwise 1 for each token that counts, [batch, tokens].
        """
        weights, biases = zip(*projections)
        width = weights[2].shape[1]
        inputs = (queries, x, x)
        if self.form != "plain":
            q, k, v = (self.linear(i, weight) for i, weight in zip(inputs, weights))
            bias = self.weight(np.concatenate(biases))
            return self.op("MultiHeadAttention", q, k, v, bias, mask or "", num_heads=heads)
        shape = self.constant([0, 0, heads, width // heads])
        q, k, v = (self.op("Reshape", self.linear(i, w, b), shape) for i, w, b in zip(inputs, weights, biases))
        q, v = (self.op("Transpose", y, perm=[0, 2, 1, 3]) for y in (q, v))
        q = self.op("Mul", q, self.constant((width // heads) ** -0.5, np.float32))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 2, 3, 1]))
        if mask is not None:
            scores = self.op("Add", scores, mask)
        y = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        return self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), self.constant([0, 0, width]))

    def add_and_norm(self, x, y, projection, norm, epsilon):
        """`x` plus `y` through a linear layer, and the LayerNorm of that sum: both names."""
        weight, bias = projection
        if self.form != "fused":
            x = self.op("Add", x, self.linear(y, weight, bias))
            return x, self.norm(x, *norm, epsilon)
        inputs = [self.linear(y, weight), *map(self.weight, (*norm, bias))]
        wanted = (True, False, False, True)
        y, x = self.op("SkipLayerNormalization", x, *inputs, outputs=wanted, epsilon=epsilon)
        return x, y

    def model(self, source, output, file):
        """The graph as a model whose weights lie one after another in `file`, each on a page of its own."""
        tensors = list(self.constants)
        offset = 0
        for index, array in enumerate(self.weights):
            tensor = TensorProto(name=f"weight_{index}", data_type=TensorProto.FLOAT, dims=array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", file), ("offset", offset), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            offset += -(-array.nbytes // 4096) * 4096
        output = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
        graph = helper.make_graph(self.nodes, "tower", [source], [output], tensors)
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


class Tower:
    """A finished graph: `input` is the input's name."""

    def __init__(self, graph, source, output):
        self.input = source.name
        self.weights = graph.weights
        self.model = graph.model(source, output, "tower.bin")

    def open(self, threads):
        """Readies ONNX Runtime and returns a function from the input to the raw vectors."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        names = [f"weight_{index}" for index in range(len(self.weights))]
        options.add_external_initializers(names, [onnxruntime.OrtValue.ortvalue_from_numpy(w) for w in self.weights])
        session = onnxruntime.InferenceSession(
            self.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return lambda values: session.run(None, {self.input: values})[0]

    def write(self, folder):
        """Writes the model and its weights; returns the model's path."""
        folder.mkdir(exist_ok=True)
        with (folder / "tower.bin").open("wb") as file:
            for array in self.weights:
                file.write(array.data)
                file.write(bytes(-array.nbytes % 4096))
        path = folder / "tower.onnx"
        path.write_bytes(self.model.SerializeToString())
        return path


def pair(weights, name):
    """Weight and bias of a layer."""
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def image_tower(weights, heads, form, class_only=False):
    """The image tower, pixels [batch, 3, height, width] to raw vectors [batch, width].

    `class_only` leaves out what the last block computes for tokens that the embedding does not depend on.
    """
    graph = Graph(form)
    kernel = weights["visual.patch_embed.proj.weight"]
    width, _, patch, _ = kernel.shape
    positions = weights["visual.positional_embedding"]
    side = patch * round((positions.shape[1] - 1) ** 0.5)
    blocks = sum(f"visual.blocks.{block}.norm1.weight" in weights for block in range(len(weights)))

    x = graph.op("Conv", "pixels", graph.weight(kernel), strides=[patch, patch])
    x = graph.op("Transpose", graph.op("Reshape", x, graph.constant([0, width, -1])), perm=[0, 2, 1])
    shape = graph.op("Concat", graph.op("Shape", x, start=0, end=1), graph.constant([1, width]), axis=0)
    class_token = graph.op("Expand", graph.weight(weights["visual.class_embedding"]), shape)
    x = graph.op("Add", graph.op("Concat", class_token, x, axis=1), graph.weight(positions))
    x = graph.norm(x, *pair(weights, "visual.norm_pre"), IMAGE_EPSILON)
    normed = graph.norm(x, *pair(weights, "visual.blocks.0.norm1"), IMAGE_EPSILON)
    for block in range(blocks):
        name = f"visual.blocks.{block}"
        weight, bias = pair(weights, f"{name}.attn.qkv")
        projections = list(zip(np.split(weight, 3, axis=1), np.split(bias, 3)))
        queries = normed
        if class_only and block == blocks - 1:
            x, queries = (graph.op("Gather", y, graph.constant([0]), axis=1) for y in (x, normed))
        y = graph.attention(queries, normed, projections, heads, None)
        projection, norm = pair(weights, f"{name}.attn.proj"), pair(weights, f"{name}.norm2")
        x, normed = graph.add_and_norm(x, y, projection, norm, IMAGE_EPSILON)
        y = graph.linear(normed, *pair(weights, f"{name}.mlp.fc1"))
        if form == "fused":
            y = graph.op("QuickGelu", y, alpha=1.702)
        else:
            y = graph.op("Mul", y, graph.op("Sigmoid", graph.op("Mul", y, graph.constant(1.702, np.float32))))
        after = f"visual.blocks.{block + 1}.norm1" if block + 1 < blocks else "visual.norm_post"
        x, normed = graph.add_and_norm(x, y, pair(weights, f"{name}.mlp.fc2"), pair(weights, after), IMAGE_EPSILON)
    output = graph.op("Gather", normed, graph.constant(0), axis=1)
    return Tower(graph, helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, side, side]), output)


def text_tower(weights, heads, form, class_only=False):
    """The text tower, token ids [batch, tokens] with 0 as padding to raw vectors [batch, width].

    Only keys are masked. The original also masks the rows of padding queries, which no other row sees.
    """
    graph = Graph(form)
    stack = "text_model.encoder_stack.block"
    blocks = sum(f"{stack}.{block}.ln1.weight" in weights for block in range(len(weights)))
    x = graph.op("Gather", graph.weight(weights["text_model.word_emb.weight"]), "ids", axis=0)
    tokens = graph.op("Shape", "ids", start=1, end=2)
    positions = graph.weight(weights["text_model.pos_emb.weight"])
    x = graph.op("Add", x, graph.op("Slice", positions, graph.constant([0]), tokens, graph.constant([0])))
    x = graph.norm(x, *pair(weights, "text_model.ln"), TEXT_EPSILON)
    padding = graph.op("Equal", "ids", graph.constant(PADDING))
    if form == "plain":
        mask = graph.op("Cast", padding, to=TensorProto.FLOAT)
        mask = graph.op("Unsqueeze", graph.op("Mul", mask, graph.constant(-1e4, np.float32)), graph.constant([1, 2]))
    else:
        mask = graph.op("Cast", graph.op("Not", padding), to=TensorProto.INT32)
    for block in range(blocks):
        name = f"{stack}.{block}"
        queries = x
        if class_only and block == blocks - 1:
            queries = graph.op("Gather", x, graph.constant([0]), axis=1)
        y = graph.attention(queries, x, [pair(weights, f"{name}.attn.{part}") for part in "qkv"], heads, mask)
        projection, norm = pair(weights, f"{name}.attn.o"), pair(weights, f"{name}.ln1")
        _, x = graph.add_and_norm(queries, y, projection, norm, TEXT_EPSILON)
        weight, bias = pair(weights, f"{name}.ffn.i")
        if form == "fused":
            y = graph.op("BiasGelu", graph.linear(x, weight), graph.weight(bias))
        else:
            y = graph.op("Gelu", graph.linear(x, weight, bias))
        _, x = graph.add_and_norm(x, y, pair(weights, f"{name}.ffn.o"), pair(weights, f"{name}.ln2"), TEXT_EPSILON)
    x = graph.op("Gather", x, graph.constant(0), axis=1)
    output = graph.op("Tanh", graph.linear(x, *pair(weights, "text_model.pooler")))
    return Tower(graph, helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"]), output)


def normalised(vectors):
    """Vectors of length 1, in float64."""
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def agreement(ours, peer):
    """How near two sides' vectors of the same inputs are, and how far apart those of different inputs."""
    ours, peer = normalised(ours), normalised(peer)
    cosines = ours @ peer.T
    others = cosines[~np.eye(len(cosines), dtype=bool)]
    return {
        "least_cosine": float(np.diag(cosines).min()),
        "largest_difference": float(np.abs(ours - peer).max()),
        "largest_cosine_of_different_inputs": float(others.max()),
    }


def agrees(result):
    """Whether the vectors are the same. Where all inputs look alike, a high cosine would say nothing."""
    return result["least_cosine"] >= SAME > result["largest_cosine_of_different_inputs"]


def pixels_of(picture):
    """What the image tower takes: float32 [3, height, width]."""
    values = np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    values = (values - MEAN).astype(np.float32)
    return (values / STD).astype(np.float32)


def examples(seed):
    """Pictures and captions: the lines of a pairs file, pixels [rows, 3, height, width], ids [rows, 48]."""
    random = np.random.default_rng(seed)
    lengths = [3, 8, 12, 20, 33, TOKENS]
    ids = np.full((len(lengths), TOKENS), PADDING, dtype=np.int64)
    lines, pixels = [], []
    for row, length in enumerate(lengths):
        characters = random.integers(len(CHARACTERS), size=length - 2)
        ids[row, :length] = [CLS, *(MASK + 1 + characters), SEP]
        # Colours that run into one another, and some noise.
        spots = Image.fromarray(random.integers(256, size=(2 + row, 3 + row, 3), dtype=np.uint8))
        smooth = np.asarray(spots.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + random.integers(-20, 21, size=smooth.shape), 0, 255)
        picture = Image.fromarray(noisy.astype(np.uint8))
        file = io.BytesIO()
        picture.save(file, "PNG")
        caption = "".join(CHARACTERS[index] for index in characters)
        lines.append(f"{caption}\tpicture-{row}\t{base64.b64encode(file.getvalue()).decode()}\n")
        pixels.append(pixels_of(picture))
    return lines, np.stack(pixels), ids


def timed(call, values, repeat):
    """Median and least time of a call on `values` in milliseconds, after one call to warm up."""
    call(values)
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call(values)
        times.append((time.perf_counter() - start) * 1e3)
    return {"median": statistics.median(times), "least": min(times)}


def together(rounds):
    """The median of the rounds' medians and the least time of all."""
    return {
        "median": statistics.median(times["median"] for times in rounds),
        "least": min(times["least"] for times in rounds),
    }


class Ours:
    """The `ernie-vil` binary with the model folders made from the weights."""

    def __init__(self, binary, folder, threads):
        self.binary = binary
        self.threads = threads
        self.folders = {dtype: folder / f"model-{dtype}" for dtype in ("f32", "f16")}
        for dtype, model in self.folders.items():
            if not model.exists():
                inputs = ["--weights", folder / "weights.pdparams", "--vocab", folder / "vocab.txt"]
                inputs += ["--text-config", folder / "text_config.json"]
                self.run("convert", *inputs, "--output", model, "--dtype", dtype)

    def run(self, *arguments):
        """Runs a command and returns what it printed."""
        command = [str(self.binary), "--quiet", "--threads", str(self.threads), *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}")
        return done.stdout

    def embed(self, lines):
        """The vectors of a pairs file's captions and pictures."""
        with tempfile.TemporaryDirectory() as folder:
            pairs, output = Path(folder) / "pairs.tsv", Path(folder) / "vectors.safetensors"
            pairs.write_text("".join(lines), encoding="utf-8")
            files = ["--input", pairs, "--output", output, "--format", "safetensors"]
            self.run("embed", "--model", self.folders["f32"], *files)
            tensors = load_file(output)
        return tensors["text"], tensors["image"]

    def bench(self, stage, repeat):
        """Times of a tower by batch and tokens, in milliseconds an input."""
        arguments = ["--model", self.folders["f32"], "--json", "--only", stage, "--repeat", repeat]
        unit = "ms_per_image" if stage == "image_tower" else "ms_per_caption"
        rows = json.loads(self.run("bench", *arguments))[stage]
        return {(row["batch"], row.get("tokens")): {"median": row[unit], "least": row[f"least_{unit}"]} for row in rows}

    def cold_start(self):
        """Milliseconds until a caption's vector is there: from the start of loading, and of the process."""
        start = time.perf_counter()
        printed = self.run("bench", "--model", self.folders["f16"], "--cold-start", "--json")
        whole = (time.perf_counter() - start) * 1e3
        return json.loads(printed)["cold_start_ms"], whole


def peer_cold_start(model, threads):
    """The same of ONNX Runtime in a fresh Python."""
    start = time.perf_counter()
    command = [sys.executable, "-c", COLD_START, str(model), str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    whole = (time.perf_counter() - start) * 1e3
    return float(done.stdout), whole


def fastest(build, values, threads, repeat):
    """Tries every form on a batch. Returns the name of the fastest, its function and all least times in ms an input."""
    calls = {form: build(form).open(threads) for form in FORMS}
    first = calls[FORMS[0]](values)
    for form, call in calls.items():
        cosine = float((normalised(first) * normalised(call(values))).sum(axis=1).min())
        if cosine < SAME:
            sys.exit(f"the graph in the form {form!r} disagrees with {FORMS[0]!r}: cosine {cosine}")
    rounds = {form: [] for form in FORMS}
    for _ in range(3):
        for form, call in calls.items():
            rounds[form].append(timed(call, values, repeat))
    times = {form: together(found)["least"] / len(values) for form, found in rounds.items()}
    best = min(times, key=times.get)
    return best, calls[best], times


SAVING = "peer computes only the class token in its last block"
# What is timed: a name, the tower, the peer's graph, the batch, our tokens a caption, the peer's.
CASES = [
    ("image, batch 8", "image_tower", "whole", 8, None, None),
    ("image, batch 1", "image_tower", "whole", 1, None, None),
    (f"image, batch 8, {SAVING}", "image_tower", "class_only", 8, None, None),
    ("text, batch 8, 8-20 tokens, peer pads to 48 as the original does", "text_tower", "whole", 8, "8-20", 48),
    ("text, batch 8, 8-20 tokens, peer pads to 20", "text_tower", "whole", 8, "8-20", 20),
    ("text, batch 8, 48 tokens", "text_tower", "whole", 8, 48, 48),
    (f"text, batch 8, 48 tokens, {SAVING}", "text_tower", "class_only", 8, 48, 48),
    ("text, batch 1, 12 tokens", "text_tower", "whole", 1, 12, 12),
]
COLD_CASES = ["cold start, load and embed one caption", "cold start, whole process"]


def measure(ours, calls, cold_model, rounds, repeat, threads):
    """Times both sides in turn. Returns each case's rounds, of `ours` and of `peer`."""
    random = np.random.default_rng(0)
    found = {name: {"ours": [], "peer": []} for name in [*(case[0] for case in CASES), *COLD_CASES]}
    for _ in range(rounds):
        for tower in ("image_tower", "text_tower"):
            our_times = ours.bench(tower, repeat) if ours else {}
            for name, of, graph, batch, our_tokens, tokens in CASES:
                if of != tower:
                    continue
                if tower == "image_tower":
                    values = random.standard_normal((batch, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
                else:
                    values = np.full((batch, tokens), PADDING)
                    used = 20 if our_tokens == "8-20" else tokens
                    values[:, :used] = random.integers(1, len(CHARACTERS), size=(batch, used))
                times = timed(calls[tower, graph], values, repeat)
                found[name]["peer"].append({key: ms / batch for key, ms in times.items()})
                if ours:
                    found[name]["ours"].append(our_times[batch, our_tokens])
        sides = {"peer": lambda: peer_cold_start(cold_model, threads)}
        if ours:
            sides["ours"] = ours.cold_start
        for side, run in sides.items():
            for name, ms in zip(COLD_CASES, run()):
                found[name][side].append({"median": ms, "least": ms})
    return found


def table(found):
    """A result for each case, printed on the way."""
    width = max(map(len, found))
    print(f"{'ms (median / least)':<{width}}  {'ours':>17}  {'ONNX Runtime':>17}  ours / peer")
    results = []
    for name, sides in found.items():
        result = {"case": name} | {side: together(rounds) for side, rounds in sides.items() if rounds}
        cells = []
        for side in ("ours", "peer"):
            times = result.get(side)
            cells.append(f"{times['median']:8.2f} /{times['least']:7.2f}" if times else "-")
        ratio = "-"
        if "ours" in result:
            result["ratio"] = {key: result["ours"][key] / result["peer"][key] for key in ("median", "least")}
            ratio = f"{result['ratio']['median']:.2f} / {result['ratio']['least']:.2f}"
        print(f"{name:<{width}}  {cells[0]:>17}  {cells[1]:>17}  {ratio:>11}")
        results.append(result)
    return results


def processor():
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def arguments():
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base", help="the model's size (default: base)")
    parser.add_argument("--binary", type=Path, default=target / "release" / "ernie-vil", help="the ernie-vil to time")
    parser.add_argument("--peer-only", action="store_true", help="time ONNX Runtime alone")
    parser.add_argument("--check-only", action="store_true", help="compare the vectors and time nothing")
    parser.add_argument("--work", type=Path, help="where weights and models are kept for the next run")
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    parser.add_argument("--threads", type=int, default=cores(), help="threads of both sides (default: one a core)")
    parser.add_argument("--rounds", type=int, default=5, help="how often the sides take turns (default: 5)")
    parser.add_argument("--repeat", type=int, default=3, help="measurements in a turn (default: 3)")
    parser.add_argument("--seed", type=int, default=1, help="of weights, pictures and captions (default: 1)")
    args = parser.parse_args()
    args.binary = args.binary.absolute()
    if not args.peer_only and not args.binary.is_file():
        parser.error(f"there is no {args.binary}: build it, give --binary, or time the peer alone by --peer-only")
    return args


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        report, same = compare(args, (args.work or Path(temporary)) / f"{args.size}-{args.seed}")
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if same else 1


def compare(args, folder):
    """Everything, with `folder` for the files. Returns the report and whether the vectors are the same."""
    weights = prepare(folder, args.size, args.seed)
    heads = SIZES[args.size][0] // HEAD_WIDTH
    ours = None if args.peer_only else Ours(args.binary, folder, args.threads)
    lines, pixels, ids = examples(args.seed)
    report = {
        "size": args.size,
        "machine": {"processor": processor(), "threads": args.threads, "load_before": os.getloadavg()},
        "onnxruntime": onnxruntime.__version__,
        "agreement": {},
        "forms": {},
    }
    print(args.size, processor(), f"{args.threads} threads", f"ONNX Runtime {onnxruntime.__version__}", sep=", ")

    calls, vectors = {}, {}
    builders = {"image_tower": (image_tower, pixels), "text_tower": (text_tower, ids)}
    for tower, (build, values) in builders.items():
        form, call, times = fastest(lambda form: build(weights, heads, form), values, args.threads, args.repeat)
        shown = ", ".join(f"{name} {ms:.2f} ms" for name, ms in times.items())
        print(f"{tower}: {shown}; taking {form}")
        report["forms"][tower] = {"taken": form, "ms": times}
        calls[tower, "whole"] = call
        calls[tower, "class_only"] = build(weights, heads, form, class_only=True).open(args.threads)
        vectors[tower] = call(values)
        saving = agreement(calls[tower, "class_only"](values), vectors[tower])
        report["agreement"][f"{tower}, the peer's two graphs"] = saving
    if ours:
        text, image = ours.embed(lines)
        report["agreement"]["image_tower"] = agreement(image, vectors["image_tower"])
        report["agreement"]["text_tower"] = agreement(text, vectors["text_tower"])
    for name, result in report["agreement"].items():
        verdict = "the same vectors" if agrees(result) else "DIFFERENT vectors"
        figures = (f"{key.replace('_', ' ')} {value:.9g}" for key, value in result.items())
        print(f"{name}: {verdict}", *figures, sep=", ")
    same = all(map(agrees, report["agreement"].values()))
    if same and not args.check_only:
        form = report["forms"]["text_tower"]["taken"]
        cold_model = text_tower(weights, heads, form).write(folder / "onnx")
        found = measure(ours, calls, cold_model, args.rounds, args.repeat, args.threads)
        report["results"] = table(found)
        report["machine"]["load_after"] = os.getloadavg()
        loads = (report["machine"][key][0] for key in ("load_before", "load_after"))
        print("load average before and after: {:.2f}, {:.2f}".format(*loads))
    return report, same


if __name__ == "__main__":
    sys.exit(main())
