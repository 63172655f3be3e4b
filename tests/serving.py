"""What tests of serving share: a tiny artifact whose network they know, and a server run as its users run it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from container.artifact import NETWORK, Manifest, save_artifact
from container.preprocessing import Preprocessing
from tests.support import encoded, free_port, picture, wait_until

REPOSITORY = Path(__file__).resolve().parent.parent
CLASSES = ("red", "green", "blue")
SIZE = 32
# A photo of this white never gets an answer from a network made with `hangs_on_white`.
WHITE = encoded(picture(SIZE, SIZE).point(lambda _: 255))
PHOTO = encoded(picture(64, 48), "JPEG")


def tiny_network(
    *, hangs_on_white: bool = False, classes: int = len(CLASSES), ballast: int = 0, grabs: float | None = None
) -> bytes:
    """An ONNX network: logits are the photo's mean colours; with `hangs_on_white`, a loop of 10^15 steps first.

    `ballast` is a number of weights of no effect that are read for every photo. A photo whose mean colour is above
    `grabs` makes it fill 8 GiB of memory.
    """
    nodes = [
        helper.make_node("GlobalAveragePool", ["photos"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["colours"]),
        helper.make_node("Gemm", ["colours", "weight", "bias"], ["answer"]),
        *_loop(hangs_on_white),
        *_ballast(ballast),
        *_grab(grabs),
        helper.make_node("Identity", [_last(hangs_on_white, ballast, grabs)], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("photos", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [
            numpy_helper.from_array(np.eye(3, classes, dtype=np.float32), "weight"),
            numpy_helper.from_array(np.zeros(classes, np.float32), "bias"),
            numpy_helper.from_array(np.array(2.0, np.float32), "bright"),
            numpy_helper.from_array(np.array(10**15, np.float32), "for_ever"),
            numpy_helper.from_array(np.array(True), "true"),
            numpy_helper.from_array(np.array(grabs or 0, np.float32), "modest"),
            numpy_helper.from_array(np.array(2**31, np.float32), "too_many"),
            numpy_helper.from_array(np.array([1]), "one"),
            *([numpy_helper.from_array(np.zeros((ballast, 1), np.float32), "ballast")] if ballast else []),
        ],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(network)
    return bytes(network.SerializeToString())


def _last(hangs_on_white: bool, ballast: int, grabs: float | None) -> str:
    if grabs is not None:
        return "greedy_answer"
    if ballast:
        return "heavy_answer"
    return "late_answer" if hangs_on_white else "answer"


def _ballast(count: int) -> list[onnx.NodeProto]:
    """Adds the sum of `count` zeros, picked by a number that is known at run time alone: it cannot be folded away."""
    if not count:
        return []
    return [
        helper.make_node("ReduceMin", ["colours"], ["least"], keepdims=0),
        helper.make_node("Mul", ["ballast", "least"], ["scaled"]),
        helper.make_node("ReduceSum", ["scaled"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["answer", "nothing"], ["heavy_answer"]),
    ]


def _grab(above: float | None) -> list[onnx.NodeProto]:
    if above is None:
        return []
    return [
        helper.make_node("ReduceMean", ["colours"], ["average"], keepdims=0),
        helper.make_node("Greater", ["average", "modest"], ["is_greedy"]),
        helper.make_node("Cast", ["is_greedy"], ["is_greedy_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["is_greedy_float", "too_many"], ["count_float"]),
        helper.make_node("Cast", ["count_float"], ["count_scalar"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["count_scalar", "one"], ["count"]),
        helper.make_node(
            "ConstantOfShape", ["count"], ["hoard"], value=numpy_helper.from_array(np.ones(1, np.float32), "filling")
        ),
        helper.make_node("ReduceSum", ["hoard"], ["sum"], keepdims=0),
        helper.make_node("Min", ["sum", "is_greedy_float"], ["added"]),
        helper.make_node("Add", ["answer", "added"], ["greedy_answer"]),
    ]


def _loop(wanted: bool) -> list[onnx.NodeProto]:
    if not wanted:
        return []
    body = helper.make_graph(
        [
            helper.make_node("Sin", ["carried"], ["next"]),
            helper.make_node("Identity", ["condition"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    return [
        helper.make_node("ReduceMean", ["colours"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "bright"], ["is_white"]),
        helper.make_node("Cast", ["is_white"], ["is_white_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["is_white_float", "for_ever"], ["steps_float"]),
        helper.make_node("Cast", ["steps_float"], ["steps"], to=TensorProto.INT64),
        helper.make_node("Loop", ["steps", "true", "answer"], ["looped"], body=body),
        helper.make_node("Mul", ["looped", "is_white_float"], ["kept"]),
        helper.make_node("Add", ["answer", "kept"], ["late_answer"]),
    ]


def write_artifact(folder: Path, network: bytes | None = None, **fields: Any) -> Manifest:
    """Save a whole artifact with a tiny network in `folder`; `fields` replace those of its manifest."""
    content = tiny_network() if network is None else network
    manifest = Manifest(
        **{
            "architecture": "resnet18",
            "class_names": CLASSES,
            "preprocessing": Preprocessing.for_image_size(SIZE),
            "top_k": 2,
            **fields,
        }
    )
    return save_artifact(folder, manifest, {NETWORK: lambda path: path.write_bytes(content)})


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """A `serve` that runs; `process` is its first process (PID 1 of a container)."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def call(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # A refusal may come before the end of the body.
                connection.request(method, path, body, dict(headers or {}), encode_chunked=not isinstance(body, bytes))
            response = connection.getresponse()
            return Answer(
                response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
            )
        finally:
            connection.close()

    def classify(
        self, photo: bytes | Iterator[bytes] = PHOTO, content_type: str = "image/jpeg", **options: Any
    ) -> Answer:
        headers = {"Content-Type": content_type, **options.pop("headers", {})}
        return self.call("POST", "/invocations", photo, headers, **options)

    def ping(self) -> int:
        try:
            return self.call("GET", "/ping", timeout_s=3).status
        except OSError:
            return 0

    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"serve ended with {self.process.returncode}:\n{self.log.read_text()}")
        return self.ping() == 200

    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines of its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def workers(self) -> list[int]:
        """Process ids of the workers that answer: children of MMS's starter, which is a worker.py too."""
        found = _worker_processes(self.process.pid)
        return [pid for pid, parent in found.items() if parent in found]

    def worker_starter(self) -> int:
        found = _worker_processes(self.process.pid)
        return next(pid for pid, parent in found.items() if parent not in found)

    def child(self, name: str) -> int:
        return next(pid for pid, (parent, comm) in _processes().items() if parent == self.process.pid and comm == name)


def anonymous_mib(root: int) -> int:
    """The anonymous memory (no file's) of a process and all below it, together; what they share is counted once."""
    table = _processes()
    family, found = {root}, 0
    while len(family) > found:
        found = len(family)
        family |= {pid for pid, (parent, _) in table.items() if parent in family}
    return sum(_anonymous_kib(pid) for pid in family) // 1024


def _anonymous_kib(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0  # It has just ended.
    return int(text.split("\nPss_Anon:")[1].split()[0])


def _processes() -> dict[int, tuple[int, str]]:
    """pid -> (parent, name) of all that run here."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, _, after = path.read_text().rpartition(")")
        except OSError:
            continue
        pid, _, name = before.partition(" (")
        found[int(pid)] = (int(after.split()[1]), name)
    return found


def _worker_processes(root: int) -> dict[int, int]:
    """pid -> parent of the descendants of `root` that run serve/worker.py."""
    table = _processes()
    found = {}
    for pid, (parent, _) in table.items():
        ancestor = parent
        while ancestor in table and ancestor != root:
            ancestor = table[ancestor][0]
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if ancestor == root and b"serve/worker.py" in command and b"/bin/sh" not in command:
            found[pid] = parent
    return found


def serve_command() -> list[str]:
    return [sys.executable, "-m", "serve"]


def serve_environment(base: Path, port: int, **settings: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "SAGEMAKER_BASE_DIR": str(base),
        "SAGEMAKER_BIND_TO_PORT": str(port),
        **settings,
    }


@contextmanager
def starting_server(base: Path, **settings: str) -> Iterator[Server]:
    """`python -m serve` on the artifact in `base`/model, not waited for; ended with SIGKILL if it still runs."""
    port = free_port()
    with tempfile.NamedTemporaryFile(prefix="kennel-test-", suffix=".log") as log:
        process = subprocess.Popen(
            serve_command(),
            env=serve_environment(base, port, **settings),
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=base,
        )
        try:
            yield Server(process, port, Path(log.name))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@contextmanager
def running_server(base: Path, **settings: str) -> Iterator[Server]:
    """A server whose /ping has said 200."""
    with starting_server(base, **settings) as server:
        wait_until(server.ready, timeout_s=60, what="/ping to say 200")
        yield server
