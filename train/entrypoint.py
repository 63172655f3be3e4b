"""The process: what it is asked, how it ends, and what it leaves for SageMaker to read.

Exit codes: 0 with a loadable artifact in the model folder; 143 (130 for ^C) stopped before there was anything to
save; 1 for every other end. All but 0 leave a failure file.
"""

from __future__ import annotations

import functools
import io
import json
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from container.artifact import MANIFEST, discard_artifact, discard_incomplete
from container.contract import SageMakerPaths
from container.errors import ConfigError, TrainingError, UserError
from train import toolkit
from train.config import TrainConfig, checkpoint_folder, describe, help_text, read_command_line, read_hyperparameters
from train.failure import failure_text, write_failure
from train.folders import discard_results, make_writable
from train.rank import one_of_several, run_rank
from train.stop import STOP, Stopped
from train.topology import Topology


def main(arguments: Sequence[str]) -> int:
    """Train as SageMaker's files and `arguments` ask; return the exit code."""
    if "--help" in arguments or "-h" in arguments:
        print(help_text())
        return 0
    if "--describe" in arguments:
        print(json.dumps(describe(), indent=2))
        return 0
    _log_line_by_line()
    paths = SageMakerPaths.from_env()
    try:
        STOP.install()
        _prepare(paths)
        given = read_hyperparameters(paths.hyperparameters)
        config = TrainConfig.from_hyperparameters(given, read_command_line(arguments))
        entry = functools.partial(train, paths, config, arguments)
        if one_of_several():  # Not on SageMaker, then: there it is we who start processes.
            entry()
        else:
            toolkit.run(entry, paths, given)
    except BaseException as error:  # The translator: SystemExit, too, must not pass for success.
        return _failed(paths, error)
    return 0


def train(paths: SageMakerPaths, config: TrainConfig, arguments: Sequence[str]) -> None:
    """Run the job, in this process or in several, and make sure that what it leaves can be served."""
    from train.export import check_loadable  # torch takes seconds to import; a misspelt hyperparameter need not wait.

    before = artifact_stamp(paths.model)
    leads = run_rank(paths, config) if one_of_several() else run_hosts(paths, config, arguments)
    if leads:
        check_loadable(paths.model)
        if artifact_stamp(paths.model) == before:
            raise TrainingError(f"training ended without an artifact; {paths.model} still holds an earlier run's")


def run_hosts(paths: SageMakerPaths, config: TrainConfig, arguments: Sequence[str]) -> bool:
    """Train with the hosts that SageMaker names, and return whether this is the one that leaves the artifact."""
    from train.launch import run_processes
    from train.run import run_job

    topology = Topology.read(paths.resource_config, processes=processes_of(config))
    if topology.world_size == 1:
        run_job(paths, config)
    else:
        run_processes(topology, arguments)
    return topology.leads


def artifact_stamp(folder: Path) -> tuple[int, int] | None:
    """What tells an artifact from the one that replaces it: containers are started again on the same folders."""
    try:
        found = (folder / MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def processes_of(config: TrainConfig) -> int:
    """Training processes of this host: one for each GPU unless the user says otherwise."""
    import torch

    return processes_for(torch.cuda.device_count(), config.processes_per_host)


def processes_for(gpus: int, wanted: int) -> int:
    """Raises ConfigError where processes would have to share a GPU, which NCCL refuses."""
    if 0 < gpus < wanted:
        raise ConfigError(f"processes_per_host is {wanted}, but this host has {gpus} GPU(s); give each process its own")
    return wanted if wanted > 0 else max(1, gpus)


def _prepare(paths: SageMakerPaths) -> None:
    """Make the folders that training writes to, without what an earlier run said of itself: containers are reused."""
    checkpoints = checkpoint_folder(paths)
    for folder in (paths.model, paths.output_data, *([checkpoints] if checkpoints.is_dir() else [])):
        make_writable(folder)
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(
            "no temporary folder can be written to; beside a read-only root, mount one with --tmpfs /tmp"
        ) from error
    if paths.resource_config.exists():
        # SageMaker merges the hosts' model folders, and keeps what a stopped job has there: an earlier job's artifact
        # would mix with this one's, or pass for it. On one's own machine the last model stays until there is another.
        discard_artifact(paths.model)
        discard_incomplete(paths.model)
    discard_results(paths.output_data)
    paths.failure.unlink(missing_ok=True)
    (paths.output / "success").unlink(missing_ok=True)


def _failed(paths: SageMakerPaths, error: BaseException) -> int:
    """Say why, in the log and in the failure file."""
    STOP.hold()  # A signal that comes now must not take the reason away.
    if not isinstance(error, Stopped | UserError):
        traceback.print_exception(error)
    text = failure_text(error)
    print(f"error: {text.partition(chr(10))[0]}", file=sys.stderr, flush=True)
    if not (one_of_several() and paths.failure.exists()):  # What the first to fail said is the reason.
        write_failure(paths.failure, text)
    return STOP.exit_code if isinstance(error, Stopped) else 1


def _log_line_by_line() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
