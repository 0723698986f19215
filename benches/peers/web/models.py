"""Makes what `compare.mjs` loads: a model folder with random weights and ONNX graphs of the same weights.

    cargo build --release
    pip install -r benches/peers/requirements.txt
    python benches/peers/web/models.py --work /tmp/towers

The weights are those of `towers_onnx.py`, whose `--work` folder can be given here too. The bundled model "scenes"
gets graphs as well.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from towers_onnx import FORMS, HEAD_WIDTH, ROOT, SIZES, image_tower, prepare, text_tower

TOWERS = {"image": image_tower, "text": text_tower}
# A weight starts on a page of its own.
PAGE = 4096


def write_graphs(folder, tower, weights, heads):
    """Writes a tower in every form, whole and with only the class token in its last block.

    All of them share one file of weights. In the forms with attention as one operator, captions have no mask: those
    compared are of one length, and the operator takes none on WebGPU.
    """
    file = f"{tower}.bin"
    places = {}
    with (folder / file).open("wb") as output:
        for form in FORMS:
            for class_only, suffix in ((False, ""), (True, "-class")):
                graph = TOWERS[tower](weights, heads, form, class_only)
                tensors = {tensor.name: tensor for tensor in graph.model.graph.initializer}
                for index, array in enumerate(graph.weights):
                    key = hashlib.sha256(array.data).digest()
                    if key not in places:
                        places[key] = output.tell()
                        output.write(array.data)
                        output.write(bytes(-array.nbytes % PAGE))
                    tensor = tensors[f"weight_{index}"]
                    for entry in tensor.external_data:
                        entry.value = {"location": file, "offset": str(places[key])}.get(entry.key, entry.value)
                for node in graph.model.graph.node:
                    if node.op_type == "MultiHeadAttention":
                        del node.input[4:]
                (folder / f"{tower}-{form}{suffix}.onnx").write_bytes(graph.model.SerializeToString())


def convert(binary, source, output):
    """Makes a model folder for the web of a checkpoint."""
    command = [binary, "--quiet", "convert", "--weights", source / "weights.pdparams", "--vocab", source / "vocab.txt"]
    command += ["--text-config", source / "text_config.json", "--dtype", "f32", "--shard-size", "32MB"]
    subprocess.run([*map(str, command), "--output", str(output)], check=True)


def arguments():
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="the folder for everything, 2.5 GB for the size base")
    parser.add_argument("--size", choices=SIZES, default="base", help="the model's size (default: base)")
    parser.add_argument(
        "--binary", type=Path, default=target / "release" / "ernie-vil", help="the ernie-vil to convert with"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the weights (default: 1)")
    return parser.parse_args()


def main():
    args = arguments()
    source = args.work / f"{args.size}-{args.seed}"
    weights = prepare(source, args.size, args.seed)
    folder = source / "web"
    folder.mkdir(exist_ok=True)
    if not (folder / "model").exists():
        convert(args.binary, source, folder / "model")
    for tower in TOWERS:
        write_graphs(folder, tower, weights, SIZES[args.size][0] // HEAD_WIDTH)

    scenes = ROOT / "models" / "scenes"
    config = json.loads((scenes / "config.json").read_text())
    folder = args.work / "scenes" / "web"
    folder.mkdir(parents=True, exist_ok=True)
    for tower in TOWERS:
        tensors = load_file(scenes / f"{tower}.safetensors")
        weights = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        write_graphs(folder, tower, weights, config[tower]["heads"])
    shutil.copytree(scenes, folder / "model", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
