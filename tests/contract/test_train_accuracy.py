"""From scratch, ours reaches at least what a plain torchvision loop does with the same photos, epochs and seeds."""

from __future__ import annotations

import statistics
import subprocess
import sys
import textwrap
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
    root, seed, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.manual_seed(seed)
    norm = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    train_t = T.Compose([T.Resize(37), T.RandomCrop(32), T.ToTensor(), norm])
    test_t = T.Compose([T.Resize(37), T.CenterCrop(32), T.ToTensor(), norm])
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


def reference(data: Path, seed: int) -> float:
    command = [sys.executable, "-c", _REFERENCE, str(data), str(seed), str(EPOCHS)]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(found.stdout)


def ours(base: Path, data: Path, seed: int) -> float:
    paths = SageMakerPaths(base)
    paths.input.mkdir(parents=True)
    paths.data.symlink_to(data)
    given = {
        "architecture": "resnet18",
        "pretrained": "false",
        "image_size": "32",
        "flip": "false",
        "quantize": "never",
    }
    code, output = run_train(base, *arguments({**given, "epochs": str(EPOCHS), "seed": str(seed), "report": "false"}))
    assert code == 0, output
    return load_manifest(paths.model).metrics["test:accuracy"]


@pytest.mark.timeout(1200)
def test_digits_from_scratch_reach_the_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    write_digits(data / "training", per_class=90, classes=10)
    write_digits(data / "test", per_class=60, classes=10, skip=110)
    table = [(seed, reference(data, seed), ours(tmp_path / str(seed), data, seed)) for seed in SEEDS]
    with capsys.disabled():
        print("\n| seed | reference | ours |\n|---|---|---|")
        print("\n".join(f"| {seed} | {theirs:.3f} | {mine:.3f} |" for seed, theirs, mine in table))
    theirs, mine = ([row[index] for row in table] for index in (1, 2))
    noise = max(0.01, statistics.stdev(theirs), statistics.stdev(mine))
    assert statistics.mean(mine) >= statistics.mean(theirs) - 2 * noise
