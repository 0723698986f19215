#!/usr/bin/env python3
"""Drives `ernie-vil serve` as a bad day would, and says what became of the index.

    cargo build --release
    python3 benches/soak.py --seconds 300

In each round a server is started on the same index. Clients add, replace, remove, search, classify and embed; others read their
answers slowly, send half a head or half a body, leave, and send pictures that are made to hurt. Then the process is killed, or every
third time asked to stop. The next server has to hold everything that was acknowledged, and nothing that was removed. At the end an
index is filled on a disk that is full.

Printed are what was acknowledged and what is there, how long `/health` and searches took at most, and the most memory beside what
docs/SERVING.md says. The exit code is 1 where something was lost, a probe took too long, or the memory was exceeded. Only
Python's standard library is needed; memory is read on Linux alone.
"""

import argparse
import base64
import collections
import http.client
import json
import math
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib

MB = 1 << 20
DIMENSIONS = 128
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# What the server is started with, and what its memory follows from.
BUFFERED, ANSWER, TEXT, QUEUE, CONNECTIONS, THREADS = 64 * MB, 8 * MB, 64 << 10, 512, 256, 2
PIXELS, IMAGE_MEMORY = 8_000_000, 64 * MB
FLAGS = [
    "--listen", "127.0.0.1:0", "--quiet", "--max-buffered", str(BUFFERED), "--max-answer", str(ANSWER),
    "--max-pixels", str(PIXELS), "--max-image-memory", str(IMAGE_MEMORY), "--max-connections", str(CONNECTIONS), "--threads", str(THREADS),
    "--read-timeout", "3", "--answer-timeout", "10", "--timeout", "20", "--drain", "5",
]
# For a probe, and for a search of one query, in seconds. The clients share the machine with the server.
PROBE, SEARCH = 5.0, 20.0


def vector(seed):
    """A vector of length 1 that an id stands for."""
    numbers = random.Random(seed)
    values = [numbers.gauss(0, 1) for _ in range(DIMENSIONS)]
    length = math.sqrt(sum(value * value for value in values))
    return [round(value / length, 6) for value in values]


def png(width, height, data=None, colour=0):
    """A PNG of one byte a pixel, black where no compressed data is given."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    if data is None:
        packer = zlib.compressobj(9)
        row = bytes(width + 1)
        data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(strips):
    """A TIFF whose strips all lead to the same bytes."""
    entries = [(256, 4, 1, 64), (257, 4, 1, strips), (258, 3, 1, 8), (259, 3, 1, 32773), (262, 3, 1, 1), (277, 3, 1, 1),
               (278, 4, 1, 1)]
    data = b"\x80" * 4096
    offsets = 8 + len(data)
    counts = offsets + 4 * strips
    entries += [(273, 4, strips, offsets), (279, 4, strips, counts)]
    entries.sort()
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    table = struct.pack("<I", 8) * strips + struct.pack("<I", len(data)) * strips
    return (struct.pack("<2sHI", b"II", 42, counts + 4 * strips) + data + table
            + struct.pack("<H", len(entries)) + directory + bytes(4))


def hostile(numbers, good):
    """A picture that is made to hurt, or a good one with some bytes changed."""
    kind = numbers.randrange(7)
    if kind == 0:
        return png(2800, 2800)
    if kind == 1:
        return png(100_000, 100_000, zlib.compress(b"\0" * 100))
    if kind == 2:
        return png(4, 4, zlib.compress(b"\0" * 20), colour=3)
    if kind == 3:
        return tiff(numbers.choice([16, 4096, 1 << 16]))
    if kind == 4:
        return numbers.choice([b"\xff\xd8\xff\xe0", b"II*\0", b"RIFF", b"BM", b"P6 "]) + numbers.randbytes(2000)
    changed = bytearray(good)
    for _ in range(numbers.randrange(1, 20)):
        changed[numbers.randrange(len(changed))] = numbers.randrange(256)
    return bytes(changed[: numbers.randrange(len(changed) // 2, len(changed) + 1)])


class Server:
    def __init__(self, binary, index, limit=None):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ERNIE_VIL_")}

        def restrict():
            # A file that may not grow is what a full disk is to the server; without this the signal would end it.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        self.process = subprocess.Popen(
            [binary, "serve", "--index", index, *FLAGS], stdout=subprocess.PIPE, env=environment, cwd=tempfile.gettempdir(),
            preexec_fn=restrict if limit else None)
        line = self.process.stdout.readline().decode()
        if "listening on http://" not in line:
            sys.exit(f"the server did not start: {line!r}")
        self.host, port = line.strip().removeprefix("listening on http://").split(":")
        self.port = int(port)
        deadline = time.monotonic() + 120
        while self.send("GET", "/ready")[0] != 200:
            if time.monotonic() > deadline or self.process.poll() is not None:
                sys.exit("the server did not become ready")
            time.sleep(0.05)

    def send(self, method, path, body=None, timeout=60):
        """The status and the value of an answer, on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            headers = {"content-type": "application/json"} if body is not None else {}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read()
            kind = response.getheader("content-type") or ""
            return response.status, json.loads(data) if "json" in kind else data
        finally:
            connection.close()

    def connect(self):
        return socket.create_connection((self.host, self.port), timeout=10)

    def memory(self, what="VmHWM"):
        try:
            with open(f"/proc/{self.process.pid}/status") as status:
                for line in status:
                    if line.startswith(what + ":"):
                        return int(line.split()[1]) << 10
        except OSError:
            pass
        return 0

    def stop(self, how):
        self.process.send_signal(how)
        try:
            return self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None


class Soak:
    def __init__(self, arguments):
        self.arguments = arguments
        self.lock = threading.Lock()
        # The vector's seed of each id that was acknowledged, None where its removal was.
        self.expected = {}
        # What a client had begun when the server ended: it may be there or not.
        self.open = set()
        self.counts = collections.Counter()
        self.slowest = collections.defaultdict(float)
        self.failures = []
        self.peak = 0
        self.stopping = threading.Event()
        with open(os.path.join(ROOT, "models/scenes/test.tsv")) as pairs:
            rows = [line.rstrip("\n").split("\t") for _, line in zip(range(32), pairs)]
        # The row's last columns are the caption and the image.
        self.images = [max(row, key=len) for row in rows]
        self.good = [base64.b64decode(image) for image in self.images]

    def fail(self, message):
        with self.lock:
            self.failures.append(message)
            if len(self.failures) <= 20:
                print("FAILED:", message, flush=True)

    def count(self, what, number=1):
        with self.lock:
            self.counts[what] += number

    def timed(self, what, limit, send):
        start = time.monotonic()
        answer = send()
        taken = time.monotonic() - start
        with self.lock:
            self.slowest[what] = max(self.slowest[what], taken)
        if taken > limit:
            self.fail(f"{what} took {taken:.1f} s")
        return answer

    # The clients. Each goes on until the server is gone.

    def change(self, server, number, round_):
        numbers = random.Random(f"{round_} {number}")
        mine = [f"{number}-{i}-" + "目录/" * (i % 5) for i in range(600)]
        while not self.stopping.is_set():
            ids = numbers.sample(mine, 60)
            seeds = [f"{name} {numbers.random()}" for name in ids]
            remove = numbers.random() < 0.3
            with self.lock:
                unknown = self.open.intersection(ids)
                self.open.update(ids)
            if remove:
                status, answer = server.send("DELETE", "/v1/index", {"ids": ids})
            else:
                items = [{"id": name, "embedding": vector(seed)} for name, seed in zip(ids, seeds)]
                status, answer = server.send("POST", "/v1/index", {"items": items})
            self.count(f"changes: {status}")
            with self.lock:
                if status == 200:
                    self.expected.update((name, None if remove else seed) for name, seed in zip(ids, seeds))
                # Where it is known what the change did, and what was before where it did nothing.
                if status != 504:
                    self.open.difference_update(ids if status == 200 else set(ids) - unknown)
            if status not in (200, 429, 504):
                self.fail(f"a change was answered {status}: {answer}")

    def ask(self, server, number, round_):
        numbers = random.Random(f"{round_} {number}")
        labels = [f"{i}辆红色汽车" for i in range(20)]
        while not self.stopping.is_set():
            image = {"image": numbers.choice(self.images)}
            path, body = numbers.choice([
                ("/v1/search", {"input": {"embedding": vector(numbers.random())}}),
                ("/v1/embeddings", {"input": ["雪地里的红色汽车"] * numbers.randrange(1, 30)}),
                ("/v1/embeddings", {"input": [image] * numbers.randrange(1, 8)}),
                ("/v1/classify", {"input": image, "labels": labels, "ensemble": True}),
            ])
            limit = SEARCH if path == "/v1/search" else 60
            status, answer = self.timed(path, limit, lambda: server.send("POST", path, body))
            self.count(f"{path}: {status}")
            if status not in (200, 429, 504):
                self.fail(f"{path} was answered {status}: {answer}")

    def hurt(self, server, number, round_):
        numbers = random.Random(f"{round_} {number}")
        while not self.stopping.is_set():
            count = numbers.choice([1, 1, 4, 24])
            pictures = [hostile(numbers, numbers.choice(self.good)) for _ in range(count)]
            body = {"input": [{"image": base64.b64encode(picture).decode()} for picture in pictures]}
            status, answer = server.send("POST", "/v1/embeddings", body)
            self.count(f"hostile: {status}")
            if status not in (200, 400, 413, 429, 504):
                self.fail(f"a hostile picture was answered {status}: {answer}")

    def read_slowly(self, server, number, round_):
        queries = [{"embedding": vector(i)} for i in range(60)]
        body = json.dumps({"input": queries, "k": 1000}).encode()
        head = (f"POST /v1/search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n\r\n").encode()
        while not self.stopping.is_set():
            with server.connect() as stream:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                stream.sendall(head + body)
                for _ in range(60):
                    if self.stopping.wait(0.1) or not stream.recv(512):
                        break
            self.count("slow readers")

    def send_half(self, server, number, round_):
        numbers = random.Random(f"{round_} {number}")
        half = [b"", b"GET /health HTTP/1.1\r\nhost: local",
                b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                b"content-length: 60000\r\n\r\n" + b" " * 50_000]
        while not self.stopping.is_set():
            streams = []
            for _ in range(120):
                stream = server.connect()
                streams.append(stream)
                try:
                    stream.sendall(numbers.choice(half))
                except OSError:
                    pass
            self.count("half requests", len(streams))
            self.stopping.wait(1)
            for stream in streams:
                stream.close()

    def probe(self, server, number, round_):
        while not self.stopping.is_set():
            for path in ["/health", "/ready"]:
                status, _ = self.timed(path, PROBE, lambda path=path: server.send("GET", path))
                self.count(f"{path}: {status}")
                if status != 200:
                    self.fail(f"{path} was answered {status}")
            self.stopping.wait(0.1)

    def run_client(self, client, server, number, round_):
        while not self.stopping.is_set():
            try:
                client(server, number, round_)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if self.stopping.is_set() or server.process.poll() is not None:
                    return
                # A connection without a request may be closed for another one, and one that is slow is.
                self.count(f"{client.__name__}: {type(error).__name__}")
                self.stopping.wait(0.05)

    def check(self, server, when):
        """Looks for everything that was acknowledged."""
        with self.lock:
            known = {name: seed for name, seed in self.expected.items() if name not in self.open}
        there = {name: seed for name, seed in known.items() if seed is not None}
        gone = {name for name, seed in known.items() if seed is None}
        found, missing, names = 0, [], list(there)
        for start in range(0, len(names), 100):
            some = names[start : start + 100]
            queries = [{"embedding": vector(there[name])} for name in some]
            _, answer = server.send("POST", "/v1/search", {"input": queries, "k": 2})
            for name, result in zip(some, answer["data"]):
                hits = [hit for hit in result["hits"] if hit["id"] == name and hit["score"] > 0.9999]
                found += len(hits)
                missing += [] if hits else [name]
        size = server.send("GET", "/v1/index")[1]["size"]
        extra = size - len(there) - len(self.open)
        print(f"{when}: {len(known)} acknowledged, {len(there)} of them to be there: {found} are, {len(missing)} are missing; "
              f"{len(gone)} removed, {len(self.open)} open; the index has {size}", flush=True)
        if missing:
            self.fail(f"{len(missing)} of {len(there)} are missing: {missing[:3]}")
        if extra > 0:
            self.fail(f"{extra} are there that were removed or never added")
        # What is open stays so until it is changed again.
        with self.lock:
            for name in self.open:
                self.expected.pop(name, None)

    def bound(self, start, embeddings):
        """What docs/SERVING.md says beside the model, which the process has at its start."""
        decoding = IMAGE_MEMORY * (THREADS + 1)
        connections = (CONNECTIONS + 256) * 10_000
        index = embeddings * (4 * DIMENSIONS + 2048)
        return start + 3 * BUFFERED + QUEUE * TEXT + 16 * MB + decoding + QUEUE * 3 * 96 * 96 + connections + index

    def round(self, binary, index, number, seconds):
        server = Server(binary, index)
        self.check(server, f"round {number}")
        start = server.memory("VmRSS")
        clients = ([self.change] * 3 + [self.ask] * 3 + [self.hurt] * 2 + [self.read_slowly] * 20 + [self.send_half] * 2
                   + [self.probe])
        self.stopping.clear()
        threads = [threading.Thread(target=self.run_client, args=(client, server, i, number)) for i, client in enumerate(clients)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        peak, bound = server.memory(), self.bound(start, len(self.expected))
        self.peak = max(self.peak, peak)
        print(f"round {number}: at most {peak // MB} MB, {start // MB} MB after the start, {bound // MB} MB allowed", flush=True)
        if peak > bound:
            self.fail(f"{peak // MB} MB, and docs/SERVING.md allows {bound // MB} MB")
        if server.process.poll() is not None:
            self.fail(f"the server ended by itself: {server.process.returncode}")
        asked = number % 3 == 2
        self.stopping.set()
        begun = time.monotonic()
        code = server.stop(signal.SIGTERM if asked else signal.SIGKILL)
        if asked:
            print(f"round {number}: stopped in {time.monotonic() - begun:.1f} s", flush=True)
            if code != 0:
                self.fail(f"stopped with {code}")
        for thread in threads:
            thread.join()

    def full_disk(self, binary, folder):
        """Fills an index until the disk is full, removes, adds, kills and looks what is there."""
        small = os.path.join(folder, "small")
        os.mkdir(small)
        mount = shutil.which("mount")
        mounted = mount and subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], stderr=subprocess.DEVNULL).returncode == 0
        print("full disk:", "a file system of 8 MB" if mounted else "files of 6 MB at most, as no file system can be mounted here")
        self.expected, self.open = {}, set()
        index = os.path.join(small, "index")
        limit = None if mounted else 6 * MB
        server = None
        try:
            server = Server(binary, index, limit)

            def add(start):
                ids = [f"full-{start}-{i}" for i in range(100)]
                items = [{"id": name, "embedding": vector(name)} for name in ids]
                status, _ = server.send("POST", "/v1/index", {"items": items})
                self.count(f"full disk, adding: {status}")
                if status == 200:
                    self.expected.update((name, name) for name in ids)
                return status

            added = 0
            while added < 400 and (status := add(added)) == 200:
                added += 1
            if status != 507:
                self.fail(f"a full disk was answered {status}")
            self.check(server, "full disk")
            names = list(self.expected)[: max(len(self.expected) // 2, 1)]
            for start in range(0, len(names), 200):
                some = names[start : start + 200]
                status, answer = server.send("DELETE", "/v1/index", {"ids": some})
                self.count(f"full disk, removing: {status}")
                if status == 200:
                    self.expected.update((name, None) for name in some)
                elif mounted:
                    self.fail(f"nothing can be removed from a full disk: {status} {answer}")
                    break
            server.stop(signal.SIGKILL)
            server = Server(binary, index, limit)
            self.check(server, "full disk, killed and started again")
            if mounted and add(1000) != 200:
                self.fail("nothing can be added after half was removed")
            if mounted and server.stop(signal.SIGTERM) != 0:
                self.fail("stopping on a full disk failed")
        finally:
            if server and server.process.poll() is None:
                server.stop(signal.SIGKILL)
            if mounted:
                subprocess.run(["umount", small], check=False)

    def run(self):
        binary = os.path.abspath(self.arguments.binary)
        with tempfile.TemporaryDirectory(prefix="ernie-vil-soak-") as folder:
            index = os.path.join(folder, "index")
            end, number = time.monotonic() + self.arguments.seconds, 0
            while time.monotonic() < end:
                self.round(binary, index, number, self.arguments.round)
                number += 1
            server = Server(binary, index)
            self.check(server, "at the end")
            server.stop(signal.SIGTERM)
            self.full_disk(binary, folder)
        print("\nanswers:")
        for what, count in sorted(self.counts.items()):
            print(f"  {what:<40} {count}")
        print("at most:", ", ".join(f"{what} {taken:.2f} s" for what, taken in sorted(self.slowest.items())),
              f"{self.peak // MB} MB")
        print(f"{len(self.failures)} failures" if self.failures else "nothing failed")
        return 1 if self.failures else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--binary", default=os.path.join(ROOT, "target/release/ernie-vil"))
    parser.add_argument("--seconds", type=float, default=120, help="all rounds together")
    parser.add_argument("--round", type=float, default=8, help="a round")
    sys.exit(Soak(parser.parse_args()).run())


if __name__ == "__main__":
    main()
