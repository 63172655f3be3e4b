"""Checkpoints as files, and a job that goes on from them."""

from __future__ import annotations

import dataclasses
import re
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from container.contract import SageMakerPaths
from container.errors import ConfigError, UserError
from container.preprocessing import Preprocessing
from tests.resnets import one_thread
from tests.training import write_digits
from train.channels import Channels, list_photos, split_validation
from train.checkpoint import Checkpoint, load_newest, save_checkpoint
from train.config import TrainConfig
from train.distributed import ALONE
from train.entrypoint import _prepare, processes_for
from train.graph import resnet_graph
from train.job import Job
from train.loop import Trainer
from train.model import build_resnet, weights_digest
from train.outcome import Epoch, Outcome
from train.predictions import Predictions
from train.quantization import answers, quantize
from train.results import Results
from train.run import setting_of
from train.saving import answer, prove_int8
from train.sets import JobSets, open_photo_sets
from train.stop import STOP, Stopped

CONFIG = TrainConfig(
    architecture="resnet18",
    pretrained=False,
    image_size=32,
    batch_size=8,
    epochs=2,
    workers=0,
    checkpoint_seconds=0,
    precision="float32",
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
    STOP.signal = None


def job(base: Path, config: TrainConfig = CONFIG) -> Job:
    paths = SageMakerPaths(base)
    paths.checkpoints.mkdir(parents=True, exist_ok=True)
    if not paths.channel("training").exists():
        write_digits(paths.channel("training"), per_class=14)
    sets = split_validation(list_photos(Channels(training=paths.channel("training"))), seed=0)
    return Job(
        paths=paths,
        config=config,
        world=ALONE,
        sets=JobSets(photos=sets, world=ALONE),
        spec=Preprocessing.for_image_size(32),
    )


def run(work: Job, *, stop_after: int | None = None) -> tuple[Outcome, bool]:
    """Train, and ask the job to stop after that many steps of this run; say whether it was resumed."""
    torch.manual_seed(work.config.seed)
    trainer = Trainer(build_resnet("resnet18", 3), setting_of(work, torch.ones(3)))
    resumed = trainer.resume()
    update, left = trainer.ema.update, stop_after

    def counted(model: torch.nn.Module, step: int) -> None:
        nonlocal left
        update(model, step)
        if left is not None:
            left -= 1
            STOP.signal = signal.SIGTERM if left <= 0 else None

    trainer.ema.update = counted  # type: ignore[method-assign]
    outcome = trainer.fit()
    STOP.signal = None
    return outcome, resumed


def timeless(epoch: Epoch) -> Epoch:
    return dataclasses.replace(epoch, images_per_second=0, seconds=0, waiting=0)


def assert_same(one: Outcome, two: Outcome) -> None:
    for name, value in one.state.items():
        assert torch.equal(value, two.state[name]), name
    for mine, theirs in zip(one.epochs, two.epochs, strict=True):
        assert timeless(mine) == timeless(theirs)


def test_a_job_stopped_anywhere_ends_bit_for_bit_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, _ = run(job(tmp_path / "whole"))
    assert whole.steps == 10
    for stop_after in (3, 5, 7):  # in the middle of an epoch, at its end, in the next
        work = job(tmp_path / f"stopped-{stop_after}")
        stopped, _ = run(work, stop_after=stop_after)
        assert stopped.steps == stop_after
        assert stopped.state
        finished, resumed = run(work)
        assert resumed
        assert_same(whole, finished)


def test_the_rate_of_a_resumed_epoch_is_that_of_its_rest(tmp_path: Path) -> None:
    work = job(tmp_path, dataclasses.replace(CONFIG, epochs=1))
    run(work, stop_after=3)
    epoch = run(work)[0].epochs[0]
    assert epoch.images_per_second * epoch.seconds == pytest.approx(6 + 6)  # of 7, 7, 7, 6 and 6


def test_a_job_that_had_ended_goes_straight_to_its_result(tmp_path: Path) -> None:
    work = job(tmp_path)
    first, _ = run(work)
    again, resumed = run(work)
    assert resumed
    assert_same(first, again)
    assert first.found is not None
    assert again.found is not None
    assert (first.found.logits == again.found.logits).all()


def test_what_is_answered_for_a_part_of_the_photos_is_no_figure(tmp_path: Path) -> None:
    """A job that is stopped while it tests, or while it proves int8, saves what it has until then."""
    work = job(tmp_path)
    model = build_resnet("resnet18", 3)
    epoch = Epoch(1, 1.0, 0.5, 1.0, 0.5, 1.0, 1.0)
    found = work.validate(model)
    sets = dataclasses.replace(work.sets.photos, test=work.sets.photos.validation)
    work = dataclasses.replace(work, sets=JobSets(photos=sets, world=ALONE))
    begun = Results(outcome=Outcome(best=epoch, found=found), photos=work.sets.answered("validation"))
    whole = answer(model, begun, work)
    assert whole.test is not None
    STOP.signal = signal.SIGTERM
    stopped = answer(model, begun, work)
    assert (stopped.test, stopped.validation) == (None, found)
    assert prove_int8(b"", work, whole) == whole
    photos = work.sets.photos.training
    network = resnet_graph(model, image_size=32).SerializeToString()
    for slow in (answers, quantize):
        with pytest.raises(Stopped):
            slow(network, photos, work.spec)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_whose_loss_is_no_number_leaves_no_trace(tmp_path: Path, precision: str) -> None:
    """Neither in weights nor in BatchNorm's running figures; the epoch's figures, and the next step, are numbers."""
    work = job(tmp_path, dataclasses.replace(CONFIG, precision=precision, ema_decay=0.0))
    trainer = Trainer(build_resnet("resnet18", 3), setting_of(work, torch.ones(3)))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1.0, enabled=precision == "float16")
    photos, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    trainer._step(photos, labels)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    odd = photos.clone()
    odd[0, 0, 0, 0] = torch.inf
    trainer._step(odd, labels)
    assert trainer.bad_steps == 1
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    trainer._step(photos, labels)
    assert (trainer.bad_steps, trainer.sums[0].item()) == (0, 16)
    assert trainer.sums.isfinite().all()
    assert not torch.equal(trainer.model.state_dict()["conv1.weight"], before["conv1.weight"])


def test_the_scale_of_float16s_gradients_is_kept_in_a_checkpoint(tmp_path: Path) -> None:
    work = job(tmp_path, dataclasses.replace(CONFIG, precision="float16"))
    trainer = Trainer(build_resnet("resnet18", 3), setting_of(work, torch.ones(3)))
    first = trainer.scaler.get_scale()
    trainer._step(torch.full((2, 3, 32, 32), torch.inf), torch.tensor([0, 1]))
    trainer.checkpoint()
    again = Trainer(build_resnet("resnet18", 3), setting_of(work, torch.ones(3)))
    assert again.resume()
    assert again.scaler.get_scale() == trainer.scaler.get_scale() < first


def test_a_job_begun_in_float32_goes_on_in_float16(tmp_path: Path) -> None:
    """precision=auto chooses by the processor, and a job may be resumed on another."""
    work = job(tmp_path)
    Trainer(build_resnet("resnet18", 3), setting_of(work, torch.ones(3))).checkpoint()
    again = Trainer(build_resnet("resnet18", 3), setting_of(work, torch.ones(3)))
    again.scaler = torch.amp.GradScaler("cpu")
    assert again.resume()
    assert again.scaler.get_scale() == torch.amp.GradScaler("cpu").get_scale()


def test_a_gradual_job_keeps_its_head_before_all_layers_learn(tmp_path: Path) -> None:
    work = job(tmp_path)
    trainer = Trainer(build_resnet("resnet18", 3), setting_of(work, torch.ones(3)))
    head = build_resnet("resnet18", 3)
    trainer.start_from(Epoch(0, 1.0, 0.5, 1.0, 0.5, 1.0, 1.0), head.state_dict(), work.validate(head))
    again = Trainer(build_resnet("resnet18", 3), setting_of(work, torch.ones(3)))
    assert again.resume()
    assert torch.equal(again.model.state_dict()["fc.weight"], head.fc.weight)
    assert (again.epoch, again.outcome.steps) == (1, 0)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = job(tmp_path)
    whole, _ = run(work)
    newest = max(work.paths.checkpoints.glob("checkpoint-*"), key=lambda path: path.name)
    newest.write_bytes(newest.read_bytes()[:-1000])
    finished, resumed = run(work)
    assert resumed
    assert_same(whole, finished)
    assert f"{newest.name} is damaged" in capsys.readouterr().out


def test_another_jobs_checkpoints_are_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(job(tmp_path), stop_after=1)
    _, resumed = run(job(tmp_path, dataclasses.replace(CONFIG, learning_rate=0.5, epochs=1)))
    assert not resumed
    assert "of another job" in capsys.readouterr().out


def test_what_does_not_change_the_result_may_change_between_runs(tmp_path: Path) -> None:
    one = job(tmp_path)
    assert one.fingerprint == job(tmp_path, dataclasses.replace(CONFIG, workers=1, top_k=1)).fingerprint
    assert one.fingerprint != job(tmp_path, dataclasses.replace(CONFIG, seed=1)).fingerprint


def test_photos_that_were_replaced_and_other_pretrained_weights_make_another_job(tmp_path: Path) -> None:
    """Names stay as they were: it is the bytes that count."""

    def fingerprint(network: torch.nn.Module) -> str:
        sets, _ = open_photo_sets(Channels(training=one.paths.channel("training")), seed=0, world=ALONE)
        return dataclasses.replace(one, sets=sets, pretrained=weights_digest(network, head=False)).fingerprint

    one, network = job(tmp_path), build_resnet("resnet18", 3)
    before = fingerprint(network)
    torch.nn.init.zeros_(network.fc.weight)
    assert fingerprint(network) == before
    torch.nn.init.zeros_(network.conv1.weight)
    other = fingerprint(network)
    assert other != before
    photo = one.sets.photos.training[0].path
    photo.write_bytes(photo.with_name("013.png").read_bytes())
    assert fingerprint(network) != other


def test_only_the_last_few_checkpoints_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    for step in range(5):
        save_checkpoint(tmp_path, step, Checkpoint(tensors={"x": torch.tensor([step])}, figures={}), fingerprint="f")
    assert [path.name[11:20] for path in sorted(tmp_path.iterdir())] == ["000000002", "000000003", "000000004"]
    newest = load_newest(tmp_path, fingerprint="f")
    assert newest is not None
    assert newest.tensors["x"].item() == 4
    own, others = (tmp_path / f".checkpoint-000000005-{job}-0123.tmp" for job in ("f", "g"))
    for staged in (own, others):
        staged.write_bytes(b"half")
    (tmp_path / "checkpoint-000000009-f-0123456789abcdef.safetensors").write_bytes(b"")
    assert load_newest(tmp_path, fingerprint="f") is not None
    assert not own.exists()
    assert others.exists(), "another job may be writing it"


def test_jobs_of_one_process_number_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As containers do, where each is process 1."""

    def save(fingerprint: str) -> None:
        for step in range(30):
            content = Checkpoint(tensors={"x": torch.full((200_000,), step)}, figures={})
            save_checkpoint(tmp_path, step, content, fingerprint=fingerprint)

    with ThreadPoolExecutor() as pool:
        list(pool.map(save, "fgh"))
    assert "warning" not in capsys.readouterr().out
    for fingerprint in "fgh":
        newest = load_newest(tmp_path, fingerprint=fingerprint)
        assert newest is not None
        assert newest.tensors["x"].tolist() == [29] * 200_000
    assert len(list(tmp_path.iterdir())) == 9


def test_damaged_checkpoints_of_higher_steps_do_not_cost_those_to_come(tmp_path: Path) -> None:
    def content(step: int) -> Checkpoint:
        return Checkpoint(tensors={"x": torch.tensor([step])}, figures={})

    for step in (7, 8, 9):
        save_checkpoint(tmp_path, step, content(step), fingerprint="f")
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert load_newest(tmp_path, fingerprint="f") is None
    save_checkpoint(tmp_path, 1, content(1), fingerprint="f")
    newest = load_newest(tmp_path, fingerprint="f")
    assert newest is not None
    assert newest.tensors["x"].item() == 1


def test_a_folder_that_cannot_be_written_to_is_a_sentence_at_the_start(tmp_path: Path) -> None:
    paths = SageMakerPaths(tmp_path)
    paths.config.mkdir(parents=True)
    (paths.config / "checkpointconfig.json").write_text('{"LocalPath": "/proc"}')
    with pytest.raises(UserError, match=r"^/proc cannot be written to"):
        _prepare(paths)


def test_a_checkpoint_that_cannot_be_written_does_not_cost_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = job(tmp_path)
    setting = setting_of(work, torch.ones(3))

    def validate(model: torch.nn.Module) -> Predictions:
        shutil.rmtree(work.paths.checkpoints, ignore_errors=True)
        return work.validate(model)

    outcome = Trainer(build_resnet("resnet18", 3), dataclasses.replace(setting, validate=validate)).fit()
    assert (len(outcome.epochs), "fc.weight" in outcome.state) == (2, True)
    output = capsys.readouterr().out
    assert re.search(
        r"warning: checkpoint-000000010-\w+, of \d+ MB, cannot be written to .*; 4 need room there; training goes on",
        output,
    ), output


@pytest.mark.parametrize(("gpus", "wanted", "processes"), [(0, -1, 1), (0, 3, 3), (4, -1, 4), (4, 2, 2)])
def test_a_process_for_each_gpu_unless_fewer_are_wanted(gpus: int, wanted: int, processes: int) -> None:
    assert processes_for(gpus, wanted) == processes
    with pytest.raises(ConfigError, match=r"processes_per_host is 5, but this host has 4 GPU"):
        processes_for(4, 5)


def test_jobs_that_share_a_folder_keep_their_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trials of a tuning job may: the one with fewer steps must not lose its own to the other's higher numbers."""
    for job_name, steps in (("long", range(100, 105)), ("short", range(3))):
        for step in steps:
            content = Checkpoint(tensors={"x": torch.tensor([step])}, figures={})
            save_checkpoint(tmp_path, step, content, fingerprint=job_name)
    assert len(list(tmp_path.iterdir())) == 6
    newest = load_newest(tmp_path, fingerprint="short")
    assert newest is not None
    assert newest.tensors["x"].item() == 2
    assert "3 checkpoint(s)" in capsys.readouterr().out


def test_a3_36_without_the_folder_there_are_no_checkpoints(tmp_path: Path) -> None:
    work = job(tmp_path)
    work.paths.checkpoints.rmdir()
    run(work, stop_after=1)
    assert not work.paths.checkpoints.exists()
