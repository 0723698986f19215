"""Both towers against PyTorch on the same device, in the same run.

    pip install torch numpy safetensors
    cargo build --release --features cuda
    python benches/peers/towers_pytorch.py --device cuda --dtype f16 --output towers.json

PyTorch's model is that of train_pytorch.py, checked first against what was recorded of the large structure. Each
batch size is timed in turn: `ernie-vil bench` and PyTorch in several forms (eager with its fused attention, eager
with a plain one, torch.compile, torch.compile with CUDA graphs), of which the fastest is the peer. Both sides start
with the crops' bytes or the captions' ids on the host and end with vectors there; PyTorch's time with everything on the
device is shown too. `--attention` may name several ways to compute attention for our side, each with rows of its own.
Weights are random numbers. The exit code is 1 where the recording is missed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from train_pytorch import Model, cores, processor, random_weights, token_ids

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"base": (768, 12, 12, 16), "large": (1024, 24, 16, 14)}
DTYPES = {"f32": torch.float32, "tf32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Captions of COCO-CN have 8 to 20 tokens, mostly; 48 is the longest that the original takes.
SHORT, LONG = (8, 20), (48, 48)
# Means and deviations of the channels, as in the original.
NORMALISATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Side of the square matrices by which the device's rate is measured.
SIDE = {"cuda": 8192, "cpu": 2048}


def configuration(size):
    width, depth, heads, patch = SIZES[size]
    common = {"width": width, "depth": depth, "heads": heads, "mlp_width": 4 * width}
    return {
        "image": common | {"image_size": 224, "patch_size": patch, "epsilon": 1e-6},
        "text": common | {"vocab_size": 40_000, "max_positions": 2_048, "epsilon": 1e-5, "activation": "gelu"},
    }


def check():
    """Whether the model here is the original's: the least cosine with what was recorded."""
    folder = ROOT / "tests/goldens/structures/large_vit"
    vision, text = (json.loads((folder / f"{name}_config.json").read_text()) for name in ("vision", "text"))
    model = Model(
        {
            "image": {
                "image_size": vision["img_size"],
                "patch_size": vision["patch_size"],
                "depth": vision["depth"],
                "heads": vision["num_heads"],
                "epsilon": vision["epsilon"],
            },
            "text": {
                "depth": text["num_hidden_layers"],
                "heads": text["num_attention_heads"],
                "activation": text["hidden_act"],
                "epsilon": 1e-5,
            },
        }
    )
    p, io = load_file(folder / "model.safetensors"), load_file(folder / "io.safetensors")
    with torch.inference_mode():
        image = model.image(p, (io["pixels_u8"].float() - 128) / 64)
        caption = model.text(p, io["input_ids"])
    pairs = ((image, io["image_normalised"]), (caption, io["text_normalised"]))
    return min(F.cosine_similarity(got, expected).min().item() for got, expected in pairs)


def operations(config, tokens, patches=0):
    """Multiply-adds of one input, each counted twice; the last block's are counted whole, as for PyTorch without tricks."""
    width, depth, inner = config["width"], config["depth"], config["mlp_width"]
    block = tokens * (4 * width * width + 2 * width * inner) + 2 * tokens * tokens * width
    return 2 * (depth * block + patches * 3 * config.get("patch_size", 0) ** 2 * width)


def seconds(device, call, repeat):
    """The times of some calls, the device's work included."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return times


def matrix_rate(device, dtype):
    """Operations a second of one large product."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds(device, lambda: a @ b, 2)
    return 2 * side**3 / min(seconds(device, lambda: a @ b, 5))


def forms(device, compiles):
    """PyTorch's ways to compute a tower, by name: options of torch.compile, or none for eager, and the attention."""
    found = {"eager, fused attention": (None, "fused"), "eager, plain attention": (None, "plain")}
    if compiles:
        found["compiled"] = ({}, "fused")
        if device.type == "cuda":
            found["compiled, CUDA graphs"] = ({"mode": "reduce-overhead"}, "fused")
    return found


class Peer:
    """One tower in every form, with inputs of one shape."""

    def __init__(self, config, p, tower, inputs, device, dtype, compiles):
        self.device = device
        self.calls, self.failed = {}, {}
        mean, std = (torch.tensor(x, device=device).reshape(1, 3, 1, 1) for x in NORMALISATION)
        for name, (options, attention) in forms(device, compiles).items():
            model = Model(config)
            model.attention = dict.fromkeys(model.attention, attention)
            run = getattr(model, tower)
            if options is not None:
                # Shapes are few and fixed.
                run = torch.compile(run, dynamic=False, **options)

            def moved():
                x = inputs.to(device, non_blocking=True)
                return x if x.dtype != torch.uint8 else ((x.permute(0, 3, 1, 2) / 255 - mean) / std).to(dtype)

            def whole(run=run):
                return F.normalize(run(p, moved()).float()).cpu()

            def inside(run=run, x=moved()):
                return run(p, x)

            try:
                seconds(device, whole, 3)
                seconds(device, inside, 2)
            except Exception as error:  # torch.compile needs a compiler, which may be missing.
                self.failed[name] = str(error).splitlines()[0]
                continue
            self.calls[name] = (whole, inside)

    def measure(self, repeat):
        return {name: tuple(seconds(self.device, call, repeat) for call in calls) for name, calls in self.calls.items()}


def ours(args, tower, batch, attention):
    """Seconds of a batch by `ernie-vil bench`: the least, by what the batch is of."""
    command = [args.binary, "bench", "--json", "--structure", f"{args.size}-vit", "--device", args.device.type]
    command += ["--dtype", args.dtype, "--batch", str(batch), "--only", f"{tower}_tower", "--repeat", str(args.repeat)]
    command += ["--attention", attention] if attention else []
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, env=args.environment)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with exit code {done.returncode}")
    rows = json.loads(done.stdout)[f"{tower}_tower"]
    unit = "caption" if tower == "text" else "image"
    return {str(row.get("tokens", "")): row[f"least_ms_per_{unit}"] * batch / 1e3 for row in rows}


def captions(batch, least, most, words):
    lengths = [least + i * (most - least) // max(batch - 1, 1) for i in range(batch)]
    return torch.from_numpy(token_ids(np.random.default_rng(1), lengths, max(lengths), words))


def compare(args):
    config = configuration(args.size)
    dtype, device = DTYPES[args.dtype], args.device
    torch.backends.cuda.matmul.allow_tf32 = args.dtype == "tf32"
    weights = random_weights(config, args.seed)
    p = {name: torch.from_numpy(values).to(device, dtype) for name, values in weights.items()}
    rate = matrix_rate(device, dtype)
    patches = (224 // config["image"]["patch_size"]) ** 2
    results = []
    for batch in args.batches:
        pixels = torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8)
        if device.type == "cuda":
            pixels = pixels.pin_memory()
        cases = [("image", "", pixels, batch * operations(config["image"], patches + 1, patches))]
        for least, most in (SHORT, LONG):
            ids = captions(batch, least, most, config["text"]["vocab_size"])
            tokens = str(least) if least == most else f"{least}-{most}"
            cases.append(("text", tokens, ids, int((ids != 0).sum()) * operations(config["text"], 1)))
        for tower, tokens, inputs, work in cases:
            with torch.inference_mode():
                peer = Peer(config, p, tower, inputs, device, dtype, not args.no_compile)
                times, mine = {name: ([], []) for name in peer.calls}, {way: [] for way in args.attention}
                for _ in range(args.rounds):
                    for way, own in mine.items():
                        own.append(ours(args, tower, batch, way)[tokens])
                    for name, both in peer.measure(args.repeat).items():
                        for all_times, new in zip(times[name], both):
                            all_times.extend(new)
            least = {name: [1e3 * min(x) for x in both] for name, both in times.items()}
            best = min(least, key=lambda name: least[name][0])
            for way, own in mine.items():
                row = {
                    "tower": tower,
                    "tokens": tokens,
                    "batch": batch,
                    "attention": way,
                    "ours_ms": {"median": 1e3 * statistics.median(own), "least": 1e3 * min(own)},
                    "peer_ms": {name: {"with transfers": x[0], "on the device": x[1]} for name, x in least.items()},
                    "failed": peer.failed,
                    "peer": best,
                    "ratio": 1e3 * min(own) / least[best][0],
                    "share_of_matrix_rate": work / min(own) / rate,
                }
                results.append(row)
                what = " ".join(filter(None, (tower, tokens, way)))
                print(
                    f"{what:20} batch {batch:3}: ours {1e3 * min(own):9.2f} ms, {best} {least[best][0]:9.2f} ms "
                    f"(on the device {least[best][1]:.2f}), ratio {row['ratio']:.2f}, {row['share_of_matrix_rate']:.0%} of the matrix rate"
                )
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": args.threads,
        "dtype": args.dtype,
        "size": args.size,
        "torch": torch.__version__,
        "matrix_rate_tflops": rate / 1e12,
        "results": results,
    }


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--device", type=torch.device, default="cuda", help="cuda or cpu (default: cuda)")
    parser.add_argument("--dtype", choices=DTYPES, default="f16", help="(default: f16; the CPU's kernels have f32)")
    parser.add_argument(
        "--attention", type=lambda text: text.split(","), default=[""], help="ways of ours, with commas between: products,fused (default: its default)"
    )
    parser.add_argument("--size", choices=SIZES, default="base", help="the model's size (default: base)")
    batches = [1, 8, 32, 128, 256]
    parser.add_argument("--batches", type=lambda text: [int(x) for x in text.split(",")], default=batches, help="(default: 1,8,32,128,256)")
    parser.add_argument("--binary", type=Path, default=target / "release/ernie-vil", help="the ernie-vil to time")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    parser.add_argument("--check-only", action="store_true", help="compare with the recording and time nothing")
    parser.add_argument("--threads", type=int, default=cores(), help="threads of both sides (default: one a core)")
    parser.add_argument("--rounds", type=int, default=3, help="how often the sides take turns (default: 3)")
    parser.add_argument("--repeat", type=int, default=10, help="measurements in a turn (default: 10)")
    parser.add_argument("--seed", type=int, default=1, help="of the weights (default: 1)")
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    args = parser.parse_args()
    if not args.check_only and not args.binary.is_file():
        parser.error(f"there is no {args.binary}: build it, or give --binary")
    args.environment = os.environ | {"RAYON_NUM_THREADS": str(args.threads)}
    return args


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    cosine = check()
    print(f"PyTorch's model and the recorded vectors: least cosine {cosine:.7f}")
    if cosine < 0.99999:
        sys.exit(1)
    if args.check_only:
        return
    found = compare(args)
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
