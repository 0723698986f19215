"""Records what PaddleNLP's image processor of ERNIE-ViL 2.0 makes of pixels, for tests/it/image.rs.

    python benches/peers/preprocess_paddlenlp.py > tests/goldens/preprocess_paddlenlp.json

The steps of `ErnieViLImageProcessor` with its defaults (paddlenlp/transformers/ernie_vil/image_processing.py and
image_transforms.py), by Pillow and NumPy alone: bicubic resize of the short side, centre crop, times 1 / 255, minus mean
over standard deviation. Of each case the sizes and the SHA-256 of the crop's bytes (RGB, row by row) and of the tensor's
(float32, little-endian, channels first) are kept. The pixels are those of the recorded PNG files, and noise whose
formula is below.
"""

import hashlib
import json
import platform
import sys
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

DECODED = Path(__file__).parents[2] / "tests/goldens/decoded"
MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
# Width, height, size of the crop.
NOISE = [
    (1, 1, 224), (2, 3, 32), (3, 2, 224), (7, 500, 224), (500, 7, 224), (31, 33, 32), (32, 32, 32), (32, 80, 32),
    (80, 32, 32), (33, 32, 32), (64, 64, 32), (223, 225, 224), (224, 225, 224), (225, 224, 224), (448, 448, 224),
    (449, 447, 224), (640, 480, 224), (480, 641, 224), (1000, 667, 224), (640, 480, 384), (300, 200, 17), (1920, 300, 32),
    (1, 3000, 32), (2999, 1, 32), (5, 4, 3), (999, 1001, 2),
]


def noise(width, height):
    i = np.arange(3 * width * height, dtype=np.uint64)
    return ((i * 2654435761 % 2**32) >> 24).astype(np.uint8).reshape(height, width, 3)


def process(pixels, size):
    height, width, _ = pixels.shape
    short, long = (width, height) if width <= height else (height, width)
    new = int(size * long / short)
    resized = (size, new) if width <= height else (new, size)
    image = np.array(Image.fromarray(pixels).resize(resized, resample=Image.Resampling.BICUBIC))
    top, left = (resized[1] - size) // 2, (resized[0] - size) // 2
    crop = image[top : top + size, left : left + size]
    tensor = (crop * (1 / 255)).astype(np.float32)
    tensor = ((tensor - MEAN) / STD).transpose(2, 0, 1)
    assert tensor.dtype == np.float32
    sha256 = lambda array: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"resized": resized, "crop_sha256": sha256(crop), "tensor_sha256": sha256(tensor)}


cases = []
for path in sorted(DECODED.glob("*.png")):
    pixels = np.array(Image.open(path).convert("RGB"))
    cases.append({"decoded": path.name, "size": 224, **process(pixels, 224)})
for width, height, size in NOISE:
    cases.append({"noise": [width, height], "size": size, **process(noise(width, height), size)})
versions = {"pillow": PIL.__version__, "numpy": np.__version__, "python": platform.python_version()}
lines = ",\n".join(json.dumps(case) for case in cases)
sys.stdout.write(f'{{"versions": {json.dumps(versions)}, "cases": [\n{lines}\n]}}\n')
