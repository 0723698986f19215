"""Contrastive training in PyTorch: what the tests compare with, and how fast the same steps are there.

    pip install torch numpy safetensors
    python benches/peers/train_pytorch.py record --output tests/train
    python benches/peers/train_pytorch.py bench --model FOLDER --batch 128 --text-tokens 24
    python benches/peers/train_pytorch.py compare --model FOLDER --train-file PAIRS

`record` writes losses, gradients and updated parameters, computed in float64. `bench` times whole training steps
in float32 and prints one JSON line. `compare` takes turns between `ernie-vil train` on a file of pairs and `bench`, so
that whatever else the machine does falls on both. Ours reads, decodes and augments the pictures meanwhile; PyTorch is
given one batch of noise.
"""

import argparse
import json
import math
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from safetensors.torch import load_file

TEMPERATURE = "contrastive_loss_mm.temperature_b"
INITIAL_TEMPERATURE, MOST_TEMPERATURE = 2.65926, math.log(100)
LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, MOST_NORM = 1e-3, (0.9, 0.98), 1e-6, 0.2, 1.0
# Two views that are drawn together, and the weight of that in the loss.
PAIRS = [
    ("image", "caption", 1.0),
    ("image", "image_2", 0.5),
    ("caption", "caption_2", 0.25),
    ("image", "tags", 0.75),
]
IMAGES, TEXTS = ("image", "image_2"), ("caption", "caption_2", "tags")
PADDING, MASKED = 0, -10_000.0
WARM_UP_STEPS = 2


class Model:
    """Both towers as functions of their parameters, a dict of tensors with the checkpoint's names.

    `attention` says of each tower ("image", "text") whether PyTorch's fused attention computes it ("fused") or
    products and a softmax ("plain"). Without `class_only` the last blocks compute every token, of which only the
    first is used.
    """

    def __init__(self, config, dropout=0.0, class_only=True):
        self.image_config, self.text_config = config["image"], config["text"]
        self.dropout = dropout
        self.class_only = class_only
        self.attention = {"image": "plain", "text": "plain"}

    def attend(self, tower, q, k, v, heads, mask=None, dropout=0.0):
        """Attention of [batch, tokens, heads * head width], `mask` is added to the scores."""
        q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        if self.attention[tower] == "fused":
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        else:
            scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
            if mask is not None:
                scores = scores + mask
            y = F.dropout(scores.softmax(3), dropout, dropout > 0) @ v
        return y.transpose(1, 2).flatten(2)

    def image(self, p, pixels):
        """Pixels [batch, 3, size, size] to embeddings [batch, width], not normalised."""
        c = self.image_config

        def norm(name, x):
            return F.layer_norm(x, x.shape[-1:], *pair(p, f"visual.{name}"), c["epsilon"])

        batch, channels, size, _ = pixels.shape
        patch = c["patch_size"]
        side = size // patch
        patches = pixels.reshape(batch, channels, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        x = F.linear(patches.reshape(batch, side * side, -1), p["visual.patch_embed.proj.weight"].flatten(1))
        x = torch.cat([p["visual.class_embedding"].expand(batch, -1, -1), x], 1) + p["visual.positional_embedding"]
        x = norm("norm_pre", x)
        for i in range(c["depth"]):
            name = f"visual.blocks.{i}"
            q, k, v = linear(p, f"{name}.attn.qkv", norm(f"blocks.{i}.norm1", x)).chunk(3, 2)
            if self.class_only and i == c["depth"] - 1:
                x, q = x[:, :1], q[:, :1]
            x = x + linear(p, f"{name}.attn.proj", self.attend("image", q, k, v, c["heads"]))
            hidden = linear(p, f"{name}.mlp.fc1", norm(f"blocks.{i}.norm2", x))
            x = x + linear(p, f"{name}.mlp.fc2", hidden * torch.sigmoid(1.702 * hidden))
        return norm("norm_post", x[:, 0])

    def text(self, p, ids):
        """Token ids [batch, tokens], padded with 0, to embeddings [batch, width], not normalised."""
        c = self.text_config

        def norm(name, x):
            return F.layer_norm(x, x.shape[-1:], *pair(p, name), c["epsilon"])

        def drop(x):
            return F.dropout(x, self.dropout, self.dropout > 0)

        words, positions = (p[f"text_model.{kind}_emb.weight"] for kind in ("word", "pos"))
        mask = (ids == PADDING).to(words.dtype)[:, None, None] * MASKED
        x = drop(norm("text_model.ln", F.embedding(ids, words) + positions[: ids.shape[1]]))
        for i in range(c["depth"]):
            name = f"text_model.encoder_stack.block.{i}"
            k, v = (linear(p, f"{name}.attn.{part}", x) for part in "kv")
            if self.class_only and i == c["depth"] - 1:
                x = x[:, :1]
            q = linear(p, f"{name}.attn.q", x)
            y = self.attend("text", q, k, v, c["heads"], mask, self.dropout)
            x = norm(f"{name}.ln1", x + drop(linear(p, f"{name}.attn.o", y)))
            hidden = linear(p, f"{name}.ffn.i", x)
            hidden = F.relu(hidden) if c["activation"] == "relu" else F.gelu(hidden)
            x = norm(f"{name}.ln2", x + drop(linear(p, f"{name}.ffn.o", hidden)))
        return torch.tanh(linear(p, "text_model.pooler", x[:, 0]))

    def loss(self, p, inputs, pairs):
        """The loss and each pair's term, of inputs by view."""
        towers = {view: self.image if view in IMAGES else self.text for view in inputs}
        embeddings = {view: tower(p, inputs[view]) for view, tower in towers.items()}
        return contrastive_loss(embeddings, p[TEMPERATURE], pairs)


def pair(p, name):
    """Weight and bias of a layer."""
    return p[f"{name}.weight"], p[f"{name}.bias"]


def linear(p, name, x):
    """A linear layer, whose weight is [in, out]."""
    weight, bias = pair(p, name)
    return F.linear(x, weight.T, bias)


def contrastive_loss(embeddings, temperature, pairs, groups=None):
    """The weighted sum of the pairs' terms, and the terms.

    A term is the mean cross entropy of both directions, over the cosines times exp(temperature). With `groups`, a
    number for each row of a text view, the partners of another row with the same text in either view are left out.
    """
    units = {view: F.normalize(vectors, dim=1) for view, vectors in embeddings.items()}
    terms = []
    for left, right, _ in pairs:
        logits = temperature.exp() * (units[left] @ units[right].T)
        rows = torch.arange(len(logits), device=logits.device)
        if groups:
            for numbers in (torch.tensor(groups[view]) for view in (left, right) if view in groups):
                equal = numbers[:, None] == numbers
                logits = logits.masked_fill(equal & (rows[:, None] != rows), -math.inf)
        terms.append((F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2)
    return sum(weight * term for (_, _, weight), term in zip(pairs, terms)), terms


def optimiser(p, **options):
    """AdamW. The weights of linear layers, patches, words and positions decay; nothing else does."""
    kinds = {True: [], False: []}
    for name, tensor in p.items():
        kinds[name.endswith(".weight") and tensor.ndim >= 2].append(tensor)
    groups = [{"params": kinds[True], "weight_decay": WEIGHT_DECAY}, {"params": kinds[False], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, **options)


def update(p, adamw):
    """Clips the gradients, takes a step and clamps the temperature. Returns the gradients' norm before."""
    norm = torch.nn.utils.clip_grad_norm_(p.values(), MOST_NORM)
    adamw.step()
    with torch.no_grad():
        p[TEMPERATURE].clamp_(0, MOST_TEMPERATURE)
    return norm


def views_of(pairs):
    """The views that the pairs need, in a fixed order."""
    return [view for view in (*IMAGES, *TEXTS) if any(view in names[:2] for names in pairs)]


# What the tests compare with.


def record_loss(output):
    """Losses of random embeddings and their gradients, in float64."""
    rows, width, temperature = 5, 7, 2.0
    random = np.random.default_rng(1)
    # Five digits, so that the file says exactly what was computed with.
    embeddings = {view: random.standard_normal((rows, width)).round(5) for view in (*IMAGES, *TEXTS)}
    captions = {"caption": [0, 1, 2, 3, 4], "caption_2": [0, 1, 2, 3, 4]}
    equal_captions = {"caption": [0, 1, 1, 2, 1], "caption_2": [0, 1, 1, 2, 1]}
    cases = [
        ("all four pairs", PAIRS, None),
        ("image and caption alone", PAIRS[:1], None),
        ("tags of rows 0 and 3 equal", PAIRS, captions | {"tags": [0, 1, 2, 0, 3]}),
        ("also captions of rows 1, 2 and 4 equal", PAIRS, equal_captions | {"tags": [0, 1, 2, 0, 3]}),
    ]
    recorded = []
    for name, pairs, groups in cases:
        inputs = {view: torch.tensor(embeddings[view], requires_grad=True) for view in views_of(pairs)}
        t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
        loss, terms = contrastive_loss(inputs, t, pairs, groups)
        loss.backward()
        recorded.append(
            {
                "name": name,
                "pairs": pairs,
                "groups": groups,
                "loss": loss.item(),
                "terms": [term.item() for term in terms],
                "gradients": {view: x.grad.tolist() for view, x in inputs.items()},
                "temperature_gradient": t.grad.item(),
            }
        )
    given = {"temperature": temperature, "embeddings": {view: x.tolist() for view, x in embeddings.items()}}
    write_json(output / "loss.json", given | {"cases": recorded})


STEP_CONFIG = {
    "image": {
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "depth": 2,
        "heads": 2,
        "mlp_width": 64,
        "epsilon": 1e-6,
    },
    "text": {
        "vocab_size": 50,
        "max_positions": 16,
        "width": 32,
        "depth": 2,
        "heads": 2,
        "query_head_width": 16,
        "value_head_width": 16,
        "mlp_width": 64,
        "activation": "gelu",
        "epsilon": 1e-5,
    },
}
STEPS = 3
# Of a tensor with more values than SAMPLED_ABOVE, the file has every SAMPLE_STEP-th value after the steps.
SAMPLED_ABOVE, SAMPLE_STEP = 512, 8


def random_weights(config, seed):
    """All parameters by name as float16, which float32 and float64 hold exactly."""
    random = np.random.default_rng(seed)
    weights = {}

    def normal(name, shape, deviation, mean=0.0):
        weights[name] = (random.standard_normal(shape) * deviation + mean).astype(np.float16)

    def layer(name, inputs, outputs):
        normal(f"{name}.weight", (inputs, outputs), inputs**-0.5)
        normal(f"{name}.bias", (outputs,), 0.05)

    def norm(name, width):
        normal(f"{name}.weight", (width,), 0.1, 1.0)
        normal(f"{name}.bias", (width,), 0.05)

    image, text = config["image"], config["text"]
    width, patch = image["width"], image["patch_size"]
    normal("visual.class_embedding", (1, 1, width), 0.2)
    normal("visual.positional_embedding", (1, (image["image_size"] // patch) ** 2 + 1, width), 0.2)
    normal("visual.patch_embed.proj.weight", (width, 3, patch, patch), (3 * patch * patch) ** -0.5)
    norm("visual.norm_pre", width)
    for i in range(image["depth"]):
        name = f"visual.blocks.{i}"
        norm(f"{name}.norm1", width)
        layer(f"{name}.attn.qkv", width, 3 * width)
        layer(f"{name}.attn.proj", width, width)
        norm(f"{name}.norm2", width)
        layer(f"{name}.mlp.fc1", width, image["mlp_width"])
        layer(f"{name}.mlp.fc2", image["mlp_width"], width)
    norm("visual.norm_post", width)

    width = text["width"]
    norm("text_model.ln", width)
    normal("text_model.word_emb.weight", (text["vocab_size"], width), 0.1)
    normal("text_model.pos_emb.weight", (text["max_positions"], width), 0.1)
    for i in range(text["depth"]):
        name = f"text_model.encoder_stack.block.{i}"
        for part in "qkvo":
            layer(f"{name}.attn.{part}", width, width)
        norm(f"{name}.ln1", width)
        layer(f"{name}.ffn.i", width, text["mlp_width"])
        layer(f"{name}.ffn.o", text["mlp_width"], width)
        norm(f"{name}.ln2", width)
    layer("text_model.pooler", width, width)
    weights[TEMPERATURE] = np.array([2.65625], dtype=np.float16)
    return weights


def token_ids(random, lengths, tokens, words):
    """Rows of random ids that are not padding, then padding."""
    ids = np.full((len(lengths), tokens), PADDING)
    for row, length in zip(ids, lengths):
        row[:length] = random.integers(1, words, size=length)
    return ids


def train(dtype, weights, inputs):
    """Takes the steps on one batch. Returns the first gradients, the last parameters, and what each step says."""
    model = Model(STEP_CONFIG)
    p = {name: torch.tensor(values, dtype=dtype, requires_grad=True) for name, values in weights.items()}
    inputs = {view: torch.tensor(x, dtype=dtype if view in IMAGES else None) for view, x in inputs.items()}
    adamw = optimiser(p, foreach=False)
    gradients, steps = None, []
    for _ in range(STEPS):
        adamw.zero_grad()
        loss, terms = model.loss(p, inputs, PAIRS)
        loss.backward()
        gradients = gradients or {name: x.grad.numpy().copy() for name, x in p.items()}
        terms = [term.item() for term in terms]
        steps.append({"loss": loss.item(), "terms": terms, "gradient_norm": update(p, adamw).item()})
    return gradients, {name: x.detach().numpy() for name, x in p.items()}, steps


def largest_difference(left, right):
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


def record_step(output):
    """Whole steps of a small model: the first gradients and the parameters after the last."""
    random = np.random.default_rng(2)
    weights = random_weights(STEP_CONFIG, 3)
    size, words = STEP_CONFIG["image"]["image_size"], STEP_CONFIG["text"]["vocab_size"]
    bytes_of = {view: random.integers(256, size=(6, 3, size, size), dtype=np.uint8) for view in IMAGES}
    captions = token_ids(random, [12, 3, 7, 5, 10, 9], 12, words)
    tags = token_ids(random, [3, 4, 6, 3, 5, 4], 12, words)
    ids = {"caption": captions, "caption_2": captions, "tags": tags}
    inputs = {view: x / 64 - 2 for view, x in bytes_of.items()} | ids

    gradients, after, steps = train(torch.float64, weights, inputs)
    single = train(torch.float32, weights, inputs)
    differences = {
        "loss": max(abs(a["loss"] - b["loss"]) for a, b in zip(steps, single[2])),
        "gradients": largest_difference(gradients, single[0]),
        "after": largest_difference(after, single[1]),
    }
    tensors = {f"pixels.{view}": x for view, x in bytes_of.items()}
    for name, values in gradients.items():
        tensors[f"gradient.{name}"] = values.astype(np.float32)
    for name, values in after.items():
        values = values.astype(np.float32)
        sampled = values.size > SAMPLED_ABOVE
        tensors[f"after.{name}"] = np.ascontiguousarray(values.ravel()[::SAMPLE_STEP]) if sampled else values
    save_file(weights, output / "tiny_weights.safetensors")
    save_file(tensors, output / "tiny_step.safetensors")
    described = {
        "config": STEP_CONFIG,
        "ids": {view: x.tolist() for view, x in ids.items()},
        "pairs": PAIRS,
        "learning_rate": LEARNING_RATE,
        "betas": BETAS,
        "epsilon": EPSILON,
        "weight_decay": WEIGHT_DECAY,
        "largest_gradient_norm": MOST_NORM,
        "largest_temperature": MOST_TEMPERATURE,
        "steps": steps,
        "float32_differs_by": differences,
    }
    write_json(output / "tiny_step.json", described)


def write_json(path, value):
    """Writes JSON with a line of its own for each innermost list."""
    path.write_text(indented(value) + "\n")


def indented(value, indent=""):
    deeper = indent + "  "
    if isinstance(value, dict):
        items = [f"{deeper}{json.dumps(key)}: {indented(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, (list, tuple, dict)) for item in value):
        return "[\n" + ",\n".join(deeper + indented(item, deeper) for item in value) + f"\n{indent}]"
    return json.dumps(value)


def record(args):
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    record_loss(args.output)
    record_step(args.output)
    for path in sorted(args.output.iterdir()):
        print(f"{path}: {path.stat().st_size} bytes")


# How fast it is.


def open_model(folder, device):
    """The configuration and the parameters of a model folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "patch_size" not in config["image"] or {"sentence_types", "task_types"} & config["text"].keys():
        sys.exit(f"{folder}: this peer knows the towers of Base (ViT) and Large (ViT) only")
    tensors = load_file(folder / "image.safetensors") | load_file(folder / "text.safetensors")
    tensors.setdefault(TEMPERATURE, torch.tensor([INITIAL_TEMPERATURE]))
    return config, {name: x.to(device, torch.float32).requires_grad_() for name, x in tensors.items()}


def random_inputs(args, config):
    """A batch of noise: pixels, and captions of at least half the longest length."""
    random = np.random.default_rng(args.seed)
    size, words = config["image"]["image_size"], config["text"]["vocab_size"]
    inputs = {}
    for view in views_of(args.pairs):
        if view in IMAGES:
            inputs[view] = random.standard_normal((args.batch, 3, size, size), dtype=np.float32)
        elif view == "caption_2" and "caption" in inputs:
            inputs[view] = inputs["caption"]
        else:
            tokens = args.tag_tokens if view == "tags" else args.text_tokens
            lengths = random.integers((tokens + 1) // 2, tokens + 1, size=args.batch)
            lengths[0] = tokens
            inputs[view] = token_ids(random, lengths, tokens, words)
    return {view: torch.from_numpy(x).to(args.device) for view, x in inputs.items()}


def seconds(device, call):
    """How long a call takes, on the device too."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def choose_attention(model, p, inputs, device):
    """Sets each tower's attention to the faster of both. Returns the milliseconds of forward and backward."""
    found = {}
    for tower, run, views in (("image", model.image, IMAGES), ("text", model.text, TEXTS)):
        x = next((inputs[view] for view in views if view in inputs), None)
        if x is None:
            continue
        times = {"plain": [], "fused": []}
        for _ in range(1 + 3):
            for kind in times:
                model.attention[tower] = kind
                times[kind].append(1e3 * seconds(device, lambda: run(p, x).sum().backward()))
        # The first of each warms up.
        found[tower] = {kind: min(ms[1:]) for kind, ms in times.items()}
        model.attention[tower] = min(found[tower], key=found[tower].get)
    return found


def measure(args):
    """Times training steps. Returns what is printed."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = args.device
    config, p = open_model(args.model, device)
    for tokens in (args.text_tokens, args.tag_tokens):
        if tokens > config["text"]["max_positions"]:
            sys.exit(f"{tokens} tokens, but the model has {config['text']['max_positions']} positions")
    inputs = random_inputs(args, config)
    model = Model(config, args.dropout, not args.whole_last_block)
    attention = None
    if args.attention == "fastest":
        attention = choose_attention(model, p, inputs, device)
    else:
        model.attention = dict.fromkeys(model.attention, args.attention)
    adamw = optimiser(p, fused=True)
    loss_of = torch.compile(model.loss, dynamic=False) if args.compile else model.loss
    losses = []

    def step():
        adamw.zero_grad()
        loss, _ = loss_of(p, inputs, args.pairs)
        loss.backward()
        update(p, adamw)
        losses.append(loss.detach())

    warm_up = sum(seconds(device, step) for _ in range(WARM_UP_STEPS))
    times = [seconds(device, step) for _ in range(args.steps)]
    median = statistics.median(times)
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    return {
        "samples_per_second": args.batch / median,
        "step_ms": {"median": 1e3 * median, "least": 1e3 * min(times), "all": [1e3 * t for t in times]},
        "warm_up_s": warm_up,
        "peak_memory_mib": peak / 2**20,
        "first_loss": losses[0].item(),
        "last_loss": losses[-1].item(),
        "batch": args.batch,
        "pairs": args.pairs,
        "text_tokens": args.text_tokens,
        "tag_tokens": args.tag_tokens,
        "dropout": args.dropout,
        "parameters": sum(x.numel() for x in p.values()),
        "attention": model.attention,
        "attention_ms": attention,
        "class_only": model.class_only,
        "compile": args.compile,
        "threads": args.threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def processor():
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def bench(args):
    print(json.dumps(measure(args)))


def run(command, **options):
    """Runs a command and returns what it printed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with exit code {done.returncode}")
    return done.stdout


def longest(args, column):
    """The tokens of the longest text of the batch in a column of the file: what a batch is padded to."""
    with args.train_file.open(encoding="utf-8") as lines:
        texts = [line.split("\t")[column] for line, _ in zip(lines, range(args.batch))]
    answers = run([args.binary, "tokenize", "--quiet", "--model", args.model], input="\n".join(texts) + "\n")
    # With the class token in front and the separator behind.
    return max(len(json.loads(line)["ids"]) for line in answers.splitlines()) + 2


def train_with_ours(args):
    """A run of `ernie-vil train`: the same sizes, pairs and steps, from the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        output, config = Path(folder) / "run", Path(folder) / "train.yaml"
        steps = WARM_UP_STEPS + args.steps
        settings = {
            "name": "bench",
            "output": str(output),
            "train_file": str(args.train_file.resolve()),
            "init_from": str(args.model.resolve()),
            "seed": args.seed,
            "batch_size": args.batch,
            "steps": steps,
            "learning_rate": LEARNING_RATE,
            "pairs": args.pairs,
            "text_dropout": {"hidden": args.dropout, "attention": args.dropout},
            "checkpoint_every": steps,
        }
        # JSON is YAML too.
        config.write_text(json.dumps(settings), encoding="utf-8")
        run([args.binary, "train", "--quiet", "--config", config, "--threads", str(args.threads)])
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    # The file has the mean speed since the run's start, so the time of each step is a difference.
    ends = [i * args.batch / line["train"]["pairs_per_second"] for i, line in enumerate(lines, 1) if "train" in line]
    times = [end - start for start, end in zip(ends, ends[1:])][WARM_UP_STEPS - 1 :]
    median = statistics.median(times)
    return {"samples_per_second": args.batch / median, "step_ms": [1e3 * t for t in times]}


def compare(args):
    # The peer has a process of its own too, so that neither side's threads stay while the other runs.
    peer = [sys.executable, str(Path(__file__).resolve()), "bench", *bench_options(args)]
    sides = {"ours": lambda: train_with_ours(args), "peer": lambda: json.loads(run(peer).splitlines()[-1])}
    rounds = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, call in sides.items():
            rounds[side].append(call())
        ours, theirs = (rounds[side][-1]["samples_per_second"] for side in sides)
        print(f"ours {ours:.1f}, PyTorch {theirs:.1f} samples/s, ratio {ours / theirs:.3f}", file=sys.stderr)
    speeds = {side: [result["samples_per_second"] for result in results] for side, results in rounds.items()}
    ratios = [ours / theirs for ours, theirs in zip(*speeds.values())]
    print(
        json.dumps(
            {
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "ratio_of_best": max(speeds["ours"]) / max(speeds["peer"]),
                "samples_per_second": {side: statistics.median(found) for side, found in speeds.items()},
                "text_tokens": args.text_tokens,
                "tag_tokens": args.tag_tokens,
                "load": os.getloadavg(),
                "rounds": rounds,
            }
        )
    )


def bench_options(args):
    """The options as they are written for `bench`."""
    options = ["--pairs", ",".join(f"{left}-{right}:{weight}" for left, right, weight in args.pairs)]
    sizes = ("model", "batch", "steps", "text_tokens", "tag_tokens")
    for name in (*sizes, "dropout", "threads", "device", "attention", "seed"):
        options += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    for name in ("compile", "whole_last_block"):
        options += [f"--{name.replace('_', '-')}"] if getattr(args, name) else []
    return options


def pairs_of(text):
    """Reads `image-caption,image-tags:0.75`; a pair's usual weight need not be said."""
    weights = {f"{left}-{right}": weight for left, right, weight in PAIRS}
    pairs = []
    for part in text.split(","):
        name, _, weight = part.partition(":")
        if name not in weights:
            raise argparse.ArgumentTypeError(f"{name!r} is no pair, expected one of {', '.join(weights)}")
        try:
            pairs.append((*name.split("-"), float(weight) if weight else weights[name]))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{weight!r} is no weight, expected a number") from None
    return pairs


def count(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def probability(text):
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError
    return value


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("record", help="write what the tests compare with")
    command.add_argument("--output", type=Path, required=True, help="the folder for the files")
    command.set_defaults(run=record)

    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--model", type=Path, required=True, help="a model folder of ernie-vil")
    options.add_argument("--batch", type=count, default=128, help="samples of a step (default: 128)")
    options.add_argument("--steps", type=count, default=10, help="steps to time (default: 10)")
    options.add_argument("--text-tokens", type=count, help="the longest caption's tokens (bench: 24; compare: the file's)")
    options.add_argument("--tag-tokens", type=count, help="the longest tags' tokens (bench: as captions)")
    options.add_argument("--pairs", type=pairs_of, default=PAIRS, help="such as image-caption,image-tags:0.75")
    options.add_argument("--dropout", type=probability, default=0.1, help="of the text tower (default: 0.1)")
    options.add_argument("--threads", type=count, default=cores(), help="threads to use (default: one a core)")
    options.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda (default: cpu)")
    kinds = ["fastest", "plain", "fused"]
    options.add_argument("--attention", choices=kinds, default="fastest", help="how to compute it (default: fastest)")
    options.add_argument("--compile", action="store_true", help="let torch.compile make kernels of its own")
    options.add_argument("--whole-last-block", action="store_true", help="compute tokens there that nothing uses")
    options.add_argument("--seed", type=int, default=1, help="of the batch and of dropout (default: 1)")
    command = commands.add_parser("bench", parents=[options], help="time training steps")
    command.set_defaults(run=bench)
    command = commands.add_parser("compare", parents=[options], help="time `ernie-vil train` and PyTorch in turn")
    command.add_argument("--train-file", type=Path, required=True, help="pairs that `ernie-vil train` reads")
    command.add_argument("--binary", type=Path, default="target/release/ernie-vil", help="(default: %(default)s)")
    command.add_argument("--rounds", type=count, default=3, help="how often the sides take turns (default: 3)")
    command.set_defaults(run=compare)
    args = parser.parse_args()
    if args.run is not record:
        if not (args.model / "config.json").is_file():
            parser.error(f"{args.model} is no model folder: it has no config.json")
        if args.device.type == "cuda" and not torch.cuda.is_available():
            parser.error("--device cuda: PyTorch finds no such device")
        compilers = [os.environ.get("CXX", "c++"), "g++", "clang++"]
        if args.compile and not any(map(shutil.which, compilers)):
            parser.error("--compile needs a C++ compiler, and there is none")
        if args.run is compare:
            args.text_tokens = args.text_tokens or longest(args, 0)
            args.tag_tokens = args.tag_tokens or longest(args, 2)
        args.text_tokens = args.text_tokens or 24
        args.tag_tokens = args.tag_tokens or args.text_tokens
    return args


def main():
    args = arguments()
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
