"""Several processes and several hosts: they compute what one would, stop together, and fail together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from container.artifact import INT8_NETWORK, MANIFEST, NETWORK, WEIGHTS, load_manifest, verify_files
from container.contract import SageMakerPaths
from tests.support import free_port, wait_until
from tests.training import ROOT, SMALL, arguments, run_train, start_train, write_digits

pytestmark = pytest.mark.slow

QUICK = {**SMALL, "batch_size": "8", "workers": "0", "epochs": "1"}
TWO = {**QUICK, "processes_per_host": "2"}


def together(words: list[list[str]], *, hosts: int = 1) -> list[str]:
    """Run Python with each of the words, as the ranks of one training; return the last line of each."""
    port, size = str(free_port()), len(words)
    processes = [
        subprocess.Popen(
            [sys.executable, *own],
            cwd=ROOT,
            env={
                **os.environ,
                **{"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                **{"LOCAL_RANK": str(rank if hosts == 1 else 0), "LOCAL_WORLD_SIZE": str(size // hosts)},
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, own in enumerate(words)
    ]
    outputs = [process.communicate(timeout=280)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * size
    return [output.splitlines()[-1] for output in outputs]


def ranks(folders: list[Path], *, batch_size: int, steps: int) -> list[dict[str, object]]:
    """Run tests.training_ranks with a rank for each folder; a folder of its own stands for a host."""
    words = [["-m", "tests.training_ranks", str(folder), str(batch_size), str(steps)] for folder in folders]
    return [json.loads(line) for line in together(words, hosts=len(set(folders)))]


# A rank that has COUNT items, and is asked to stop at its item STOP.
_ITEMS = """
import sys, torch
from train.distributed import World
from train.predictions import until_stopped
from train.stop import STOP
world, (count, stop), seen = World.join(), map(int, sys.argv[1:]), 0
with torch.inference_mode():
    for _ in until_stopped(range(count), count, world=world):
        seen += 1
        STOP.signal = 15 if seen == stop else None
print(seen)
world.leave()
"""


@pytest.mark.parametrize(
    ("items", "seen"),
    [
        ([(40, 0), (3, 0), (0, 0)], [40, 3, 0]),
        ([(1000, 0), (3, 2), (0, 0)], [16, 2, 0]),
    ],
)
def test_processes_of_unequal_shares_all_leave_where_one_is_asked_to(
    items: list[tuple[int, int]], seen: list[int]
) -> None:
    """SageMaker may stop one host alone: the others must not work on to the end of their share before they hear."""
    found = together([["-c", _ITEMS, str(count), str(stop)] for count, stop in items], hosts=3)
    assert [int(line) for line in found] == seen


def test_two_processes_compute_what_one_does_with_twice_the_batch(tmp_path: Path) -> None:
    """a5: the same losses for 20 steps, and the same weights in both processes."""
    folder = write_digits(tmp_path, per_class=20)
    (alone,) = ranks([folder], batch_size=8, steps=20)
    one, two = ranks([folder, folder], batch_size=4, steps=20)
    assert one["weights"] == two["weights"]
    assert one["losses"] == two["losses"]
    assert len(alone["losses"]) == 20  # type: ignore[arg-type]
    assert one["losses"] == pytest.approx(alone["losses"], abs=1e-4)


def test_a2_20_unequal_shards_with_missing_classes_train_together(tmp_path: Path) -> None:
    large = write_digits(tmp_path / "a", per_class=20, classes=3)
    small = write_digits(tmp_path / "b", per_class=3, classes=1, skip=40)
    one, two = ranks([large, small], batch_size=8, steps=12)
    assert one["weights"] == two["weights"]
    assert one["losses"] == two["losses"]


# A rank whose collectives wait for ten seconds, and which looks at four photos in one.
_LOOKS = """
import datetime, sys, time
from pathlib import Path
import train.distributed, train.doctor, train.sets
from train.channels import Channels
from train.distributed import World

def slowly(path, facts=train.doctor._facts):
    time.sleep(0.25)
    return facts(path)

train.doctor._facts, train.doctor.usable_cores, train.sets._ROUND = slowly, lambda: 1, 4
train.distributed._TIMEOUT = datetime.timedelta(seconds=10)
world = World.join()
sets, findings = train.sets.open_photo_sets(Channels(training=Path(sys.argv[1])), seed=0, world=world)
print(findings.photos, len(findings.unreadable))
world.leave()
"""


def test_a_host_with_many_photos_keeps_one_with_few_waiting_for_no_longer_than_a_round(tmp_path: Path) -> None:
    large = write_digits(tmp_path / "a", per_class=20, classes=3)
    small = write_digits(tmp_path / "b", per_class=2, classes=2, skip=40)
    (large / "1" / "003.png").write_bytes(b"no photo")
    found = together([["-c", _LOOKS, str(folder)] for folder in (large, small)], hosts=2)
    assert found == ["63 1", "63 1"]


# A rank whose features are a little different from the other's, as another processor's may be.
_HEADS = """
import hashlib, torch
from train.config import TrainConfig
from train.distributed import World
from train.features import Features
from train.head import fit_head, warm_up_head
from train.model import build_resnet

def digest(state, found):
    whole = b"".join(value.numpy().tobytes() for name, value in sorted(state.items()))
    return hashlib.sha256(whole + found.logits.tobytes()).hexdigest()

world = World.join()
torch.manual_seed(0)
model, values, labels = build_resnet("resnet18", 3), torch.randn(24, 512), torch.arange(24) % 3
torch.manual_seed(world.rank)
training, validation = (Features(values + torch.randn(24, 512), labels) for _ in range(2))
config = TrainConfig(epochs=8, batch_size=8)
epoch, state, found = warm_up_head(model, training, validation, config, weights=torch.ones(3), world=world)
outcome = fit_head(model, training, validation, config, weights=torch.ones(3), world=world)
epochs = [(one.train_loss, one.validation_loss, one.validation_accuracy) for one in (epoch, *outcome.epochs)]
print(epochs, outcome.best.number, digest(state, found), digest(outcome.state, outcome.found))
world.leave()
"""


def test_hosts_that_round_differently_go_by_one_head_and_its_figures() -> None:
    """What they found decides which weights are kept, and when patience ends: all must decide the same."""
    one, two = together([["-c", _HEADS]] * 2, hosts=2)
    assert one == two


# A rank whose validations find accuracies of its own.
_PATIENCE = """
import dataclasses, datetime, sys
from pathlib import Path
import numpy as np, torch
import train.distributed
from container.contract import SageMakerPaths
from container.preprocessing import Preprocessing
from train.channels import Channels
from train.config import TrainConfig
from train.distributed import World
from train.job import Job
from train.loop import Trainer
from train.model import build_resnet
from train.predictions import Predictions
from train.run import setting_of
from train.sets import open_photo_sets

train.distributed._TIMEOUT = datetime.timedelta(seconds=120)
torch.set_num_threads(1)
folder, *accuracies = sys.argv[1:]

def validate(model):
    right = np.arange(10) < int(accuracies.pop(0))
    return Predictions(np.stack([right, ~right], 1).astype(np.float32), np.zeros(10, np.int64))

world = World.join()
sets, _ = open_photo_sets(Channels(training=Path(folder)), seed=0, world=world)
config = TrainConfig(
    architecture="resnet18", image_size=32, batch_size=8, epochs=4, patience=1, workers=0, precision="float32"
)
spec = Preprocessing.for_image_size(32)
job = Job(paths=SageMakerPaths(Path(folder) / "none"), config=config, world=world, sets=sets, spec=spec)
setting = dataclasses.replace(setting_of(job, torch.ones(3)), validate=validate)
print(len(Trainer(build_resnet("resnet18", 3), setting).fit().epochs))
world.leave()
"""


def test_the_patience_of_one_process_ends_the_training_of_all(tmp_path: Path) -> None:
    folder = str(write_digits(tmp_path, per_class=5))
    found = together([["-c", _PATIENCE, folder, *accuracies] for accuracies in ("5444", "5678")])
    assert found == ["2", "2"]


def tree(base: Path, host: str = "", hosts: tuple[str, ...] = ()) -> SageMakerPaths:
    paths = SageMakerPaths(base)
    write_digits(paths.channel("training"), per_class=13)
    paths.checkpoints.mkdir()
    if hosts:
        paths.config.mkdir()
        resources = {"current_host": host, "hosts": list(hosts), "network_interface_name": "lo"}
        paths.resource_config.write_text(json.dumps(resources))
    return paths


def assert_valid(paths: SageMakerPaths) -> None:
    verify_files(paths.model, load_manifest(paths.model))
    assert not paths.failure.exists()


def test_processes_of_one_host_leave_one_artifact(tmp_path: Path) -> None:
    paths = tree(tmp_path)
    code, output = run_train(paths.base, *arguments(TWO))
    assert code == 0, output
    assert_valid(paths)
    assert output.count("validation:accuracy=") == 1
    assert "all 2 processes hold the same weights" in output
    confusion = json.loads((paths.output_data / "report.json").read_text())["confusion"]
    assert [sum(row) for row in confusion] == [3, 3, 3], "of an odd number, every validation photo counts once"


def test_jobs_of_containers_that_share_the_machines_network_do_not_meet(tmp_path: Path) -> None:
    """In its container, each is process 1."""
    program = ("-c", "import os; os.getpid = lambda: 1; from train.__main__ import run; run()")
    trees = [tree(tmp_path / name) for name in ("one", "two")]
    running = [start_train(paths.base, *arguments(TWO), program=program) for paths in trees]
    outputs = [process.communicate(timeout=280)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    for paths in trees:
        assert_valid(paths)


@pytest.mark.timeout(900)
def test_processes_that_were_stopped_go_on_to_the_bits_of_those_that_were_not(tmp_path: Path) -> None:
    words = arguments({**TWO, "epochs": "5", "report": "false"})
    whole, stopped = tree(tmp_path / "whole"), tree(tmp_path / "stopped")
    code, output = run_train(whole.base, *words)
    assert code == 0, output
    with start_train(stopped.base, *words) as process:
        wait_until(lambda: any(stopped.checkpoints.glob("checkpoint-*")) or None, timeout_s=120, what="a checkpoint")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    code, output = run_train(stopped.base, *words)
    assert code == 0, output
    assert "resumed in epoch" in output
    one, two = load_manifest(whole.model), load_manifest(stopped.model)
    assert one.files == two.files
    assert one.metrics == two.metrics


def test_a3_34_sigterm_stops_all_processes_and_saves(tmp_path: Path) -> None:
    paths = tree(tmp_path)
    with start_train(paths.base, *arguments({**TWO, "epochs": "500"})) as process:
        wait_until(lambda: any(paths.checkpoints.glob("checkpoint-*")) or None, timeout_s=120, what="a checkpoint")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    assert_valid(paths)


def test_a5_50_one_processs_error_is_the_jobs(tmp_path: Path) -> None:
    paths = tree(tmp_path)
    paths.channel("pretrained").mkdir()
    code, output = run_train(paths.base, *arguments({**TWO, "pretrained": "true"}))
    assert code == 1
    assert paths.failure.read_text().startswith("channel 'pretrained' must hold one state dict"), output


HOSTS = ("127.0.0.1", "127.0.0.2")


def test_a5_50_a_host_that_never_comes_is_named_within_the_bound(tmp_path: Path) -> None:
    paths = tree(tmp_path, HOSTS[0], HOSTS)
    code, output = run_train(paths.base, *arguments(QUICK), env={"KENNEL_HOST_WAIT_SECONDS": "3"})
    assert code == 1, output
    assert paths.failure.read_text().startswith("waited 3 s in vain for host(s) 127.0.0.2")


def test_two_hosts_leave_one_artifact(tmp_path: Path) -> None:
    """SageMaker merges their model folders, in which a warm pool's hosts find what an earlier job left."""
    trees = [tree(tmp_path / host, host, HOSTS) for host in HOSTS]
    for paths in trees:
        paths.model.mkdir()
        for name in (MANIFEST, NETWORK, INT8_NETWORK, WEIGHTS):
            (paths.model / name).write_text("of an earlier job")
    running = [start_train(paths.base, *arguments(QUICK)) for paths in trees]
    outputs = [process.communicate(timeout=280)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert_valid(trees[0])
    assert sorted(path.name for path in trees[0].model.iterdir()) == sorted([MANIFEST, NETWORK, WEIGHTS])
    assert list(trees[1].model.iterdir()) == []


def test_a2_20_hosts_with_parts_of_their_own_answer_for_all_photos(tmp_path: Path) -> None:
    """Each holds out validation photos of its own part; int8 is judged by them all, and each is counted once."""
    trees = [tree(tmp_path / host, host, HOSTS) for host in HOSTS]
    shutil.rmtree(trees[1].channel("training"))
    write_digits(trees[1].channel("training"), per_class=8, classes=2, skip=20)
    words = arguments({**QUICK, "quantize": "always"})
    running = [start_train(paths.base, *words) for paths in trees]
    outputs = [process.communicate(timeout=280)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert_valid(trees[0])
    report = json.loads((trees[0].output_data / "report.json").read_text())
    assert report["served"] == "int8"
    assert [sum(row) for row in report["confusion"]] == [3 + 2, 3 + 2, 3]
    right = sum(report["confusion"][label][label] for label in range(3))
    assert report["metrics"]["int8:accuracy"] == pytest.approx(right / 13)


def test_a2_20_a_host_without_validation_photos_trains_with_one_that_has_them(tmp_path: Path) -> None:
    """Of one channel with train/ beside valid/, the second host's part has train/ alone."""
    trees = [tree(tmp_path / host, host, HOSTS) for host in HOSTS]
    for paths, parts in zip(trees, ({"train": 8, "valid": 5}, {"train": 6}), strict=True):
        shutil.rmtree(paths.channel("training"))
        for part, count in parts.items():
            write_digits(paths.channel("training") / part, per_class=count, skip=20 * (part == "valid"))
    running = [start_train(paths.base, *arguments(QUICK)) for paths in trees]
    outputs = [process.communicate(timeout=280)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert_valid(trees[0])
    assert load_manifest(trees[0].model).class_names == ("0", "1", "2")
    report = json.loads((trees[0].output_data / "report.json").read_text())
    assert [sum(row) for row in report["confusion"]] == [5, 5, 5]


def test_a_channel_without_photos_on_any_host_is_named_on_both(tmp_path: Path) -> None:
    trees = [tree(tmp_path / host, host, HOSTS) for host in HOSTS]
    for paths in trees:
        (paths.channel("validation") / "1").mkdir(parents=True)
    running = [start_train(paths.base, *arguments(QUICK)) for paths in trees]
    outputs = [process.communicate(timeout=280)[0] for process in running]
    assert [process.returncode for process in running] == [1, 1], outputs
    for paths in trees:
        assert paths.failure.read_text().startswith("channel 'validation' holds no photos in"), outputs


def test_an_error_on_one_host_is_in_both_failure_files(tmp_path: Path) -> None:
    trees = [tree(tmp_path / host, host, HOSTS) for host in HOSTS]
    trees[1].channel("pretrained").mkdir()
    trees[0].channel("pretrained").mkdir()
    words = arguments({**QUICK, "pretrained": "true"})
    running = [start_train(paths.base, *words) for paths in trees]
    outputs = [process.communicate(timeout=280)[0] for process in running]
    assert [process.returncode for process in running] == [1, 1], outputs
    for paths in trees:
        assert "channel 'pretrained' must hold one state dict" in paths.failure.read_text()


def test_a_process_that_fails_in_the_middle_ends_both_hosts_with_its_message(tmp_path: Path) -> None:
    """Its peer loses the connection, and fails as well; both failure files have the cause, not the consequence."""
    trees = [tree(tmp_path / host, host, HOSTS) for host in HOSTS]
    words = arguments({**QUICK, "epochs": "500", "report": "false"})
    with start_train(trees[0].base, *words) as one, start_train(trees[1].base, *words) as two:
        wait_until(lambda: any(trees[0].checkpoints.iterdir()) or None, timeout_s=150, what="a checkpoint")
        shutil.rmtree(trees[1].channel("training"))
        outputs = [process.communicate(timeout=120)[0] for process in (one, two)]
    assert [one.returncode, two.returncode] == [1, 1], outputs
    for paths in trees:
        failure = paths.failure.read_text()
        assert failure.startswith("FileNotFoundError: "), failure
        assert failure.endswith("(rank 1, host 127.0.0.2)")


def test_a_process_that_is_killed_is_named_on_both_hosts(tmp_path: Path) -> None:
    trees = [tree(tmp_path / host, host, HOSTS) for host in HOSTS]
    words = arguments({**QUICK, "epochs": "500", "report": "false"})
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {"TMPDIR": str(temporary)}
    with start_train(trees[0].base, *words, env=env) as one, start_train(trees[1].base, *words, env=env) as two:
        wait_until(lambda: any(trees[0].checkpoints.iterdir()) or None, timeout_s=150, what="a checkpoint")
        (pid,) = temporary.glob("kennel-run-*/pid-1")
        os.kill(int(pid.read_text()), signal.SIGKILL)
        outputs = [process.communicate(timeout=150)[0] for process in (one, two)]
    assert [one.returncode, two.returncode] == [1, 1], outputs
    for paths in trees:
        assert "the training process of rank 1 ended without a word" in paths.failure.read_text()
