"""Training beside the usual way, in the same run on the same photos.

head: ResNet-50, frozen backbone, 5 epochs, from the start of the program to a servable artifact; the usual way trains
with torch eager, its own transforms, and a validation after each epoch. step: images/s of full fine-tuning. waiting:
how long full training of a ResNet-18 waits for its photos. processes: two of one thread each, beside each alone.
Weights are random: nothing here depends on what they are.
The photos are those of KENNEL_PHOTOS, with its folders train and val, or generated.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from functools import partial
from pathlib import Path

import psutil
import torch

from tests.benchmarks.networks import generated
from tests.benchmarks.table import Effort, Table
from tests.training import ROOT
from train.model import build_resnet

EPOCHS = 5
_USUAL_HEAD = textwrap.dedent(
    """
    import sys, torch, torchvision
    from torchvision import transforms as T
    root, weights, out = sys.argv[1:4]
    norm = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    train_t = T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.ToTensor(), norm])
    valid_t = T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor(), norm])
    folder = torchvision.datasets.ImageFolder
    data = {{"train": folder(f"{{root}}/train", train_t), "val": folder(f"{{root}}/val", valid_t)}}
    load = {{k: torch.utils.data.DataLoader(d, batch_size=32, shuffle=k == "train") for k, d in data.items()}}
    model = torchvision.models.resnet50()
    model.load_state_dict(torch.load(weights, weights_only=True))
    for p in model.parameters():
        p.requires_grad = False
    model.fc = torch.nn.Linear(2048, len(data["train"].classes))
    loss_fn, opt = torch.nn.CrossEntropyLoss(), torch.optim.Adam(model.fc.parameters(), lr=1e-3)
    for epoch in range({epochs}):
        model.train()
        for x, y in load["train"]:
            opt.zero_grad(); loss_fn(model(x), y).backward(); opt.step()
        model.eval(); right = 0
        with torch.no_grad():
            for x, y in load["val"]:
                right += int((model(x).argmax(1) == y).sum())
        print(epoch, right / len(data["val"]), flush=True)
    torch.save(model.state_dict(), out)
    """
).format(epochs=EPOCHS)


def head(table: Table, effort: Effort) -> None:
    """ResNet-50, frozen backbone, 5 epochs, from the program's start to a servable artifact."""
    with tempfile.TemporaryDirectory() as folder:
        photos = _photos(Path(folder, "photos"))
        weights = Path(folder, "resnet50.pth")
        torch.save(build_resnet("resnet50", 1000).state_dict(), weights)
        usual = [sys.executable, "-c", _USUAL_HEAD, str(photos), str(weights), str(Path(folder, "usual.pth"))]
        rows = {"the usual way": [_timed(usual, {}) for _ in range(effort.repeat)]}
        for name, more in (
            ("everything on", ["--quantize", "always"]),  # auto does not try int8 on as few photos of validation
            ("bare", ["--quantize", "never", "--report", "false"]),
        ):
            rows[name] = [_ours(Path(folder, f"{name} {n}"), photos, weights, more) for n in range(effort.repeat)]
    seconds = {name: statistics.median(s for s, _ in found) for name, found in rows.items()}
    peak = {name: max(m for _, m in found) for name, found in rows.items()}
    lower = partial(table.add, smaller=True)
    for name, target in (("everything on", 3.0), ("bare", 4.5)):
        figure = f"frozen backbone, {EPOCHS} epochs, {name}"
        lower(figure, ours=seconds[name], other=seconds["the usual way"], unit="s", target=target, essential=True)
        lower(f"peak memory of it, {name}", ours=peak[name], other=peak["the usual way"], unit="MB")


def _photos(folder: Path) -> Path:
    """KENNEL_PHOTOS, with its folders train and val; else as many generated photos as the hymenoptera set has."""
    if named := os.environ.get("KENNEL_PHOTOS"):
        return Path(named).resolve()
    for number, photo in enumerate(generated(500, 375, 244 + 153)):
        path = folder / ("train" if number < 244 else "val") / f"class {number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo)
    return folder


def _ours(base: Path, photos: Path, weights: Path, more: list[str]) -> tuple[float, float]:
    (base / "input/data/pretrained").mkdir(parents=True)
    (base / "input/data/training").symlink_to(photos)
    (base / "input/data/pretrained/resnet50.pth").symlink_to(weights)
    words = ["--strategy", "head", "--epochs", str(EPOCHS), *more]
    return _timed([sys.executable, "-m", "train", *words], {"SAGEMAKER_BASE_DIR": str(base)})


def _timed(command: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Seconds, and the highest memory in MB of the process with those that it starts, shared pages counted once."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **env}, stdout=subprocess.DEVNULL
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
    if process.returncode:
        raise RuntimeError(f"{command[:4]} ended with {process.returncode}")
    seconds = time.perf_counter() - started
    print(f"{seconds:.1f} s: {' '.join(word for word in command[1:] if len(word) < 99)}", flush=True)
    return seconds, peak


def _memory(pid: int) -> float:
    """MB of a process and its descendants: the sum of proportional set sizes."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().pss
    return total / 1e6


def step(table: Table, effort: Effort) -> None:
    """Full fine-tuning of ResNet-50, batches of 16, images/s of the trainer's own step."""

    def measured(which: str) -> dict[str, float]:
        command = [sys.executable, "-m", "tests.benchmarks.full_step", which]
        # What `train` itself sets, see train/__main__.py.
        env = {**os.environ, **({"OMP_WAIT_POLICY": "PASSIVE"} if which == "ours" else {})}
        output = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout
        found: dict[str, float] = json.loads(output)
        return found

    # In turns, so that a machine that slows down meanwhile slows both; twice as often, since each is short.
    pairs = [(measured("usual"), measured("ours")) for _ in range(2 * effort.repeat + 1)]
    print("usual, ours:", *(f"{usual['rate']:.2f} {ours['rate']:.2f}" for usual, ours in pairs), sep="\n  ", flush=True)
    usual, ours = zip(*pairs, strict=True)
    fast, slow = (statistics.median(run["rate"] for run in runs) for runs in (ours, usual))
    table.add("all layers, images/s of a step", ours=fast, other=slow, unit="/s", target=1.2, essential=True)
    mine, theirs = (max(run["peak"] for run in runs) for runs in (ours, usual))
    table.add("peak memory of it", ours=mine, other=theirs, unit="MB", smaller=True)


def waiting(table: Table, effort: Effort) -> None:
    """ResNet-18, all layers, three epochs: the share of their time in which photos were awaited."""
    with tempfile.TemporaryDirectory() as folder:
        photos = _photos(Path(folder, "photos"))

        def share(number: int) -> float:
            base = Path(folder, str(number))
            (base / "input/data").mkdir(parents=True)
            (base / "input/data/training").symlink_to(photos)
            words = ["--architecture", "resnet18", "--pretrained", "false", "--epochs", "3", "--quantize", "never"]
            _timed([sys.executable, "-m", "train", *words], {"SAGEMAKER_BASE_DIR": str(base)})
            epochs = json.loads((base / "output/data/report.json").read_text())["epochs"]
            spent = sum(epoch["seconds"] for epoch in epochs)
            return float(sum(epoch["seconds"] * epoch["waiting"] for epoch in epochs) / spent)

        found = statistics.median(share(number) for number in range(effort.repeat))
    table.add("time in which photos are awaited, ResNet-18", ours=100 * found, unit="%", limit=5)


def processes(table: Table, effort: Effort) -> None:
    """ResNet-18 with one thread a process: two processes together beside each of them alone, in short turns.

    At the size that is trained by default, and with small photos, where the gradients weigh more beside the rest.
    """
    for size, steps, target in ((224, 1, 0.85), (96, 3, None)):
        rounds = _rounds_of_two(7 * effort.repeat, size, steps)
        for figure, side, least in (("two processes", "together", target), ("two that share nothing", "apart", None)):
            middle = sorted(rounds, key=lambda rates: rates[side] / rates["alone"])[len(rounds) // 2]
            table.add(
                f"{figure}, beside each alone, photos of {size} px, the median round",
                ours=middle[side],
                other=middle["alone"],
                unit="/s",
                target=least,
            )


def _rounds_of_two(count: int, size: int, steps: int) -> list[dict[str, float]]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.benchmarks.two_processes", str(count), str(size), str(steps)]
    # What `train` itself sets, see train/topology.py; torchrun would choose one thread, too.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout
    rounds: list[dict[str, float]] = json.loads(output.splitlines()[-1])
    for rates in rounds:
        print(*(f"{name} {rate:.1f}" for name, rate in rates.items()), sep=", ", flush=True)
    return rounds
