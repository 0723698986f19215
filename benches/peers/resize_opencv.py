"""Times OpenCV on what `benches/resize.rs` times: one thread, one JSON line a case."""

import json
import math
import time

import cv2
import numpy as np

SIZES = [(640, 480), (4000, 3000), (300, 200), (101, 67), (1920, 1080), (672, 672)]
MEAN = np.array([0.485, 0.456, 0.406]).reshape((1, 1, 3))
STD = np.array([0.229, 0.224, 0.225]).reshape((1, 1, 3))


def resized(width, height, size=224):
    """Width and height after the short side has become `size`."""
    if width < height:
        return size, int(size / width * height) + 1
    return int(size / height * width) + 1, size


def crop(pixels, size=224):
    """The middle `size` x `size` pixels."""
    height, width = pixels.shape[:2]
    x, y = math.ceil((width - size) / 2), math.ceil((height - size) / 2)
    return pixels[y : y + size, x : x + size]


def normalise(pixels):
    """Float32 values, channels first."""
    values = pixels.astype(np.float32) / np.float32(255)
    values = ((values - MEAN).astype(np.float32) / STD).astype(np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def report(case, width, height, call):
    """Prints the median time of a call."""
    times = []
    start = time.perf_counter_ns()
    while len(times) < 50 or time.perf_counter_ns() - start < 300_000_000:
        before = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - before)
    median = sorted(times)[len(times) // 2]
    print(json.dumps({"case": case, "image": f"{width}x{height}", "median_ns": median}))


def main():
    cv2.setNumThreads(1)
    for width, height in SIZES:
        index = np.arange(3 * width * height, dtype=np.uint32)
        pixels = (index * np.uint32(2_654_435_761) >> np.uint32(24)).astype(np.uint8)
        pixels = pixels.reshape((height, width, 3))
        to = resized(width, height)
        report("resize", width, height, lambda: cv2.resize(pixels, to, interpolation=cv2.INTER_LINEAR))
        report(
            "resize_crop",
            width,
            height,
            lambda: np.ascontiguousarray(crop(cv2.resize(pixels, to, interpolation=cv2.INTER_LINEAR))),
        )
        cropped = crop(cv2.resize(pixels, to, interpolation=cv2.INTER_LINEAR))
        report("normalise", width, height, lambda: normalise(cropped))


if __name__ == "__main__":
    main()
