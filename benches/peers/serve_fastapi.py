"""`ernie-vil serve` against a server of the usual parts: FastAPI, uvicorn, tokenizers and ONNX Runtime.

    cargo build --release
    pip install -r benches/peers/requirements.txt fastapi==0.165.0 uvicorn[standard]==0.54.0 tokenizers==0.23.3 orjson==3.13.0
    apt-get install wrk
    python benches/peers/serve_fastapi.py --model models/scenes

Both serve captions in OpenAI's form from the same model folder. The peer's batches are whatever waits when the last
one is done, which is what ours does too. Both must first give the same vectors; then wrk drives them in turn over
kept connections, with one caption a request. The exit code is 1 where the vectors disagree.
"""

import argparse
import asyncio
import base64
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from towers_onnx import CLS, PADDING, ROOT, SAME, SEP, cores, fastest, processor, text_tower

# Captions that go through the model together at most.
BATCH = 64
TOKENS = 48
# Chinese, of about 12 tokens.
CAPTION = "左边有一辆红色的小汽车"
WRK = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[%s]]
done = function(summary, latency, requests)
  local errors = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format("RESULT %%d %%d %%d %%d %%d %%d\\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(95), latency:percentile(99), errors))
end
"""


def load(folder):
    """The text tower's weights in float32, its heads and its vocabulary."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = {name: x.astype(np.float32) for name, x in load_file(folder / "text.safetensors").items()}
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    rows = (line.split("\t") for line in lines)
    vocabulary = {row[0]: int(row[1]) if len(row) > 1 else i for i, row in enumerate(rows)}
    return weights, config["text"]["heads"], vocabulary


class Batches:
    """Captions to vectors, as many at a time as are waiting."""

    def __init__(self, call, batching):
        self.call, self.most = call, BATCH if batching else 1
        self.waiting = asyncio.Queue()
        # ONNX Runtime has its own threads; one of ours hands it the work.
        self.pool = ThreadPoolExecutor(1)

    async def work(self):
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < self.most and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            vectors = await loop.run_in_executor(self.pool, self.compute, [ids for ids, _ in batch])
            for (_, answer), vector in zip(batch, vectors):
                if not answer.done():
                    answer.set_result(vector)

    def compute(self, captions):
        longest = max(map(len, captions))
        ids = np.array([ids + [PADDING] * (longest - len(ids)) for ids in captions])
        vectors = self.call(ids)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    async def embed(self, ids):
        answer = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((ids, answer))
        return await answer


def peer(args):
    """Serves until it is ended."""
    import uvicorn
    from contextlib import asynccontextmanager
    from fastapi import FastAPI, Request
    from fastapi.responses import Response
    import orjson
    from tokenizers import BertWordPieceTokenizer

    weights, heads, vocabulary = load(args.model)
    tokenizer = BertWordPieceTokenizer(vocabulary, strip_accents=True, lowercase=True)
    example = np.full((8, 14), 5)
    _, call, _ = fastest(lambda form: text_tower(weights, heads, form, True), example, args.threads, 3)
    batches = None

    @asynccontextmanager
    async def lifespan(_app):
        nonlocal batches
        batches = Batches(call, args.batching == "on")
        task = asyncio.create_task(batches.work())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request):
        texts = orjson.loads(await request.body())["input"]
        texts = [texts] if isinstance(texts, str) else texts
        data, tokens = [], 0
        for i, text in enumerate(texts):
            ids = [CLS, *tokenizer.encode(text, add_special_tokens=False).ids[: TOKENS - 2], SEP]
            tokens += len(ids)
            vector = await batches.embed(ids)
            code = base64.b64encode(vector.astype("<f4").tobytes()).decode()
            data.append({"object": "embedding", "index": i, "embedding": code})
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Response(orjson.dumps({"object": "list", "data": data, "model": "peer", "usage": usage}), media_type="application/json")

    @app.get("/ready")
    def ready():
        return "ready"

    uvicorn.run(app, port=args.port, log_level="error", access_log=False)


class Server:
    """A server in a process of its own."""

    def __init__(self, command, port, environment=None):
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, env=environment)
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{self.url}/ready") as response:
                    if response.status == 200:
                        return
            except OSError:
                pass
            if self.process.poll() is not None:
                sys.exit(f"{command[0]} ended with exit code {self.process.returncode}")
            time.sleep(0.1)
        sys.exit(f"{command[0]} is not ready after a minute")

    def end(self):
        self.process.terminate()
        self.process.wait()

    def embed(self, body):
        request = urllib.request.Request(f"{self.url}/v1/embeddings", body.encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            return np.frombuffer(base64.b64decode(json.load(response)["data"][0]["embedding"]), "<f4")

    def busy(self):
        """Seconds of processor time so far, where /proc tells it."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def drive(self, script, connections, seconds):
        before = self.busy()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", script, f"{self.url}/v1/embeddings"]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        requests, duration, *percentiles, errors = map(int, re.search(r"RESULT ([\d ]+)", output)[1].split())
        if errors or not requests:
            sys.exit(f"{self.url}: {errors} errors in {requests} requests")
        return {
            "rate": requests / duration * 1e6,
            "ms": [x / 1e3 for x in percentiles],
            "busy_us": (self.busy() - before) / requests * 1e6,
        }


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def compare(args):
    body = json.dumps({"input": CAPTION, "encoding_format": "base64"}, ensure_ascii=False)
    report = []
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "caption.lua"
        script.write_text(WRK % body, encoding="utf-8")
        for batching in ("on", "off"):
            port, peer_port = free_port(), free_port()
            command = [args.binary, "--quiet", "serve", "--model", args.model, "--listen", f"127.0.0.1:{port}"]
            command += [] if batching == "on" else ["--caption-batch", "1"]
            ours = Server(command, port, os.environ | {"RAYON_NUM_THREADS": str(args.threads)})
            command = [sys.executable, __file__, "--model", args.model, "--threads", args.threads, "--batching", batching]
            other = Server([*command, "--peer", "--port", peer_port], peer_port)
            try:
                a, b = ours.embed(body), other.embed(body)
                cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
                if cosine < SAME:
                    sys.exit(f"the vectors differ: cosine {cosine}")
                for connections in args.connections:
                    times = {"ours": [], "peer": []}
                    for _ in range(args.rounds):
                        for name, server in (("ours", ours), ("peer", other)):
                            times[name].append(server.drive(script, connections, args.seconds))
                    # The round in which each was fastest: what else ran on the machine only takes away.
                    best = {name: max(rounds, key=lambda one: one["rate"]) for name, rounds in times.items()}
                    row = {"batching": batching, "connections": connections, **best}
                    row["ratio"] = best["ours"]["rate"] / best["peer"]["rate"]
                    report.append(row)
                    shown = "; ".join(
                        f"{name} {x['rate']:7.0f}/s, p50 {x['ms'][0]:.2f} p95 {x['ms'][1]:.2f} p99 {x['ms'][2]:.2f} ms, {x['busy_us']:.0f} us"
                        for name, x in best.items()
                    )
                    print(f"batching {batching:3} {connections:3} connections: {shown}; ours / peer {row['ratio']:.1f}", flush=True)
            finally:
                ours.end()
                other.end()
    if args.output:
        args.output.write_text(json.dumps({"processor": processor(), "threads": args.threads, "results": report}, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--model", type=Path, default=ROOT / "models/scenes", help="the model folder (default: models/scenes)")
    parser.add_argument("--binary", type=Path, default=target / "release/ernie-vil", help="the ernie-vil to drive")
    parser.add_argument("--threads", type=int, default=cores(), help="threads of each model (default: one a core)")
    parser.add_argument("--connections", type=lambda text: [int(x) for x in text.split(",")], default=[1, 8, 64], help="(default: 1,8,64)")
    parser.add_argument("--seconds", type=int, default=6, help="of a measurement (default: 6)")
    parser.add_argument("--rounds", type=int, default=2, help="how often the sides take turns (default: 2)")
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    parser.add_argument("--peer", action="store_true", help="be the peer")
    parser.add_argument("--port", type=int, help="the peer's")
    parser.add_argument("--batching", choices=["on", "off"], default="on", help="of the peer")
    args = parser.parse_args()
    peer(args) if args.peer else compare(args)


if __name__ == "__main__":
    main()
