"""From scratch, ours reaches at least what a plain torchvision loop does with the same photos, epochs and seeds."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from container.artifact import load_manifest
from container.contract import SageMakerPaths
from tests.training import ROOT, arguments, run_train, write_digits

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
EPOCHS = 6
_REFERENCE = textwrap.dedent(
    """
    import sys, torch, torchvision
    from torchvision import transforms as T
    root, seed, epochs, side, flip = sys.argv[1], *map(int, sys.argv[2:])
    torch.manual_seed(seed)
    norm = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    resized, mirrored = T.Resize(round(side * 256 / 224)), [T.RandomHorizontalFlip()] * flip
    train_t = T.Compose([resized, T.RandomCrop(side), *mirrored, T.ToTensor(), norm])
    test_t = T.Compose([resized, T.CenterCrop(side), T.ToTensor(), norm])
    train = torchvision.datasets.ImageFolder(f"{root}/training", train_t)
    test = torchvision.datasets.ImageFolder(f"{root}/test", test_t)
    model = torchvision.models.resnet18(num_classes=len(train.classes))
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        model.train()
        for x, y in torch.utils.data.DataLoader(train, batch_size=32, shuffle=True):
            opt.zero_grad(); torch.nn.functional.cross_entropy(model(x), y).backward(); opt.step()
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in torch.utils.data.DataLoader(test, batch_size=64)
        )
    print(right / len(test))
    """
)


def reference(data: Path, seed: int, *, side: int, flip: bool) -> float:
    command = [sys.executable, "-c", _REFERENCE, str(data), *map(str, (seed, EPOCHS, side, int(flip)))]
    found = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True, text=True
    )
    return float(found.stdout)


def ours(base: Path, data: Path, seed: int, *, side: int, flip: bool) -> float:
    paths = SageMakerPaths(base)
    paths.input.mkdir(parents=True)
    paths.data.symlink_to(data)
    given = {"architecture": "resnet18", "pretrained": "false", "quantize": "never", "report": "false", "workers": "0"}
    given |= {"image_size": str(side), "flip": str(flip).lower(), "epochs": str(EPOCHS), "seed": str(seed)}
    code, output = run_train(base, *arguments(given))
    assert code == 0, output
    return load_manifest(paths.model).metrics["test:accuracy"]


def digits(data: Path) -> None:
    write_digits(data / "training", per_class=90, classes=10)
    write_digits(data / "test", per_class=60, classes=10, skip=110)


def hymenoptera(data: Path) -> None:
    photos = os.environ.get("KENNEL_PHOTOS")
    if not photos:
        pytest.skip("KENNEL_PHOTOS names no folder of photos with train/ and val/")
    data.mkdir()
    (data / "training").symlink_to(Path(photos, "train").resolve())
    (data / "test").symlink_to(Path(photos, "val").resolve())


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("photos", "side", "flip"), [(digits, 32, False), (hymenoptera, 64, True)])
def test_from_scratch_ours_reaches_the_reference(
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    photos: Callable[[Path], None],
    side: int,
    flip: bool,
) -> None:
    """Noise of the means' difference: each one's deviation over the seeds, or what chance leaves open of a share."""
    data = tmp_path / "data"
    photos(data)
    # As many side by side as there are cores: each has one thread.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        references = pool.map(lambda seed: reference(data, seed, side=side, flip=flip), SEEDS)
        jobs = pool.map(lambda seed: ours(tmp_path / str(seed), data, seed, side=side, flip=flip), SEEDS)
        theirs, mine = [*references], [*jobs]
    rows = [f"| {seed} | {their:.3f} | {our:.3f} |" for seed, their, our in zip(SEEDS, theirs, mine, strict=True)]
    record_property("shown", "\n".join([f"| {photos.__name__}, seed | reference | ours |", "|---|---|---|", *rows]))
    sizes = [sum(path.is_file() for path in folder.iterdir()) for folder in (data / "test").iterdir()]
    share = statistics.mean(theirs)
    chance = math.sqrt(share * (1 - share) / sum(sizes))
    deviations = (max(chance, statistics.stdev(found)) for found in (theirs, mine))
    noise = math.hypot(*deviations) / math.sqrt(len(SEEDS))
    assert statistics.mean(mine) >= share - 2 * noise
    assert statistics.mean(mine) > max(sizes) / sum(sizes), "no better than naming the largest class"
