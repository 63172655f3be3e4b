"""Topology, batches and the line between hosts, without a network to train."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from container.contract import SageMakerPaths
from container.errors import ConfigError, TrainingError, UserError
from container.preprocessing import Preprocessing
from tests.support import free_port, wait_until
from train import hostlink
from train.casualty import Casualty, first_of, leave_word
from train.channels import PhotoSets
from train.config import TrainConfig
from train.data import TrainingBatches
from train.distributed import World
from train.hostlink import HostLink, meet
from train.job import Job
from train.launch import failure_of
from train.model import build_resnet
from train.recipe import MovingAverage, build_optimizer, class_weights
from train.sets import JobSets
from train.stop import STOP, Stopped
from train.topology import Topology, network_environment, thread_environment
from train.workers import usable_cores

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
# What gloo says in a collective whose peer has ended.
LOST = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Connection closed by peer [10.0.0.2]:9")


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_a2_21_the_topology_comes_from_resourceconfig_alone(tmp_path: Path) -> None:
    assert Topology.read(tmp_path / "absent.json", processes=2) == Topology(processes=2)
    hosts = ["algo-1", "algo-10", "algo-2"]
    value = {"current_host": "algo-2", "hosts": hosts, "network_interface_name": "eth1", "topology": {}}
    found = Topology.read(write(tmp_path / "r.json", value), processes=4)
    assert (found.rank, found.leads, found.world_size) == (2, False, 12)


@pytest.mark.parametrize("value", [[], {}, {"hosts": []}, {"hosts": ["a"], "current_host": "b"}])
def test_a_resourceconfig_that_makes_no_sense_is_named(tmp_path: Path, value: object) -> None:
    with pytest.raises(ConfigError, match=r"r\.json must name"):
        Topology.read(write(tmp_path / "r.json", value), processes=1)


def test_a5_47_an_interface_that_does_not_exist_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    topology = Topology(hosts=HOSTS, current=HOSTS[0], interface="ethwe", processes=1)
    env = network_environment(topology)
    assert (env["GLOO_SOCKET_IFNAME"], env["TP_SOCKET_IFNAME"], env["NCCL_SOCKET_IFNAME"]) == ("lo", "lo", "=lo")
    assert env["NCCL_HOSTID"] == HOSTS[0]
    assert "'ethwe'" in capsys.readouterr().out


@pytest.mark.parametrize(("count", "size"), [(10, 2), (11, 3), (50, 4)])
def test_every_photo_comes_once_over_all_processes(count: int, size: int) -> None:
    ranks = [
        list(TrainingBatches(count, batch_size=3, seed=0, world=World(rank=rank, size=size))) for rank in range(size)
    ]
    one = TrainingBatches(count, batch_size=3, seed=0, world=World(size=size))
    assert len({len(batches) for batches in ranks}) == 1
    seen = [index for batches in ranks for batch in batches for _, index, real in batch if real]
    assert sorted(seen) == list(range(count))
    for step in range(one.steps):
        assert one.size_of(step) == sum(real for batches in ranks for _, _, real in batches[step])


def test_a2_20_unequal_shards_agree_on_the_steps_and_lose_nothing() -> None:
    shards = [17, 2, 5]
    ranks = [
        TrainingBatches(0, batch_size=4, seed=0, world=World(rank=rank, size=3), shards=shards) for rank in range(3)
    ]
    batches = [list(rank) for rank in ranks]
    assert {rank.steps for rank in ranks} == {2}
    many = [TrainingBatches(0, batch_size=2, seed=0, world=World(rank=r, size=3), shards=shards) for r in range(3)]
    for rank, own in zip(many, shards, strict=True):
        keys = [key for batch in rank for key in batch]
        assert sorted(index for _, index, real in keys if real) == list(range(own))
    assert any(not real for batch in many[1] for _, _, real in batch)
    for step in range(2):
        assert ranks[0].size_of(step) == sum(real for rank in batches for _, _, real in rank[step])


def test_the_largest_batch_of_unequal_shards_is_what_shared_memory_must_hold(tmp_path: Path) -> None:
    world, shards = World(size=3), (170, 20, 50)
    photos = PhotoSets(class_names=("a", "b"), training=(), validation=())
    equal = Job(
        paths=SageMakerPaths(tmp_path),
        config=TrainConfig(batch_size=8),
        world=world,
        sets=JobSets(photos=photos, world=world),
        spec=Preprocessing.for_image_size(32),
    )
    unequal = dataclasses.replace(equal, sets=dataclasses.replace(equal.sets, shards=shards))
    batches = list(TrainingBatches(0, batch_size=8, seed=0, world=world, shards=shards))
    assert equal.largest_batch == 8
    assert unequal.largest_batch == max(map(len, batches)) == 17


def test_the_rate_follows_the_square_root_of_the_global_batch() -> None:
    model = build_resnet("resnet18", 2)
    config = TrainConfig(pretrained=False, learning_rate=1e-3)
    rates = [build_optimizer(model, config, global_batch=size).param_groups[0]["lr"] for size in (32, 128)]
    assert rates == pytest.approx([1e-3, 2e-3])


def test_class_weights_favour_the_rare_and_keep_the_scale() -> None:
    weights = class_weights([100, 25], balanced=True)
    assert float(weights[1] / weights[0]) == pytest.approx(2)
    assert float(weights[0] * 100 + weights[1] * 25) == pytest.approx(125)
    assert class_weights([100, 25], balanced=False).tolist() == [1, 1]


def test_the_moving_average_follows_quickly_at_first() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = MovingAverage(model, 0.99)
    torch.nn.init.ones_(model.weight)
    average.update(model, 1)
    assert average.model.state_dict()["weight"].item() == pytest.approx(1 - 2 / 11)
    assert MovingAverage(model, 0).model is model


def together(hosts: tuple[str, ...], *, wait_s: float = 20) -> dict[str, HostLink | TrainingError]:
    port, found = free_port(), dict[str, HostLink | TrainingError]()

    def one(host: str) -> None:
        try:
            found[host] = meet(Topology(hosts=HOSTS, current=host, processes=1), wait_s=wait_s, port=port)
        except TrainingError as error:
            found[host] = error

    threads = [threading.Thread(target=one, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return found


def links(found: dict[str, HostLink | TrainingError]) -> list[HostLink]:
    assert all(isinstance(link, HostLink) for link in found.values()), found
    return [link for link in found.values() if isinstance(link, HostLink)]


def test_a_failure_reaches_every_host() -> None:
    found = links(together(HOSTS))
    last = next(link for link in found if link.current == HOSTS[2])
    luck = Casualty(message="rank 2 ran out of luck", time=5.0)
    assert last.settle(luck) == luck
    others = [link for link in found if link is not last]
    for link in others:
        assert wait_until(lambda link=link: link.failure, timeout_s=5, what="the message") == luck  # type: ignore[misc]
    for link in found:
        link.close()


def test_the_blame_is_not_put_on_those_who_fail_in_the_wake_of_another() -> None:
    """Whose word is read first does not matter, nor that a process lost its peer before that one wrote its own."""
    found = links(together(HOSTS))
    wake = Casualty(message="RuntimeError: connection closed by peer", time=1.0, wake=True)
    cause = Casualty(message="the disk is full", time=2.0)
    own = {HOSTS[0]: wake, HOSTS[1]: cause, HOSTS[2]: wake}
    blamed: dict[str, Casualty | None] = {}

    def settle(link: HostLink) -> None:
        blamed[link.current] = link.settle(own[link.current])

    threads = [threading.Thread(target=settle, args=(link,)) for link in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    for link in found:
        link.close()
    assert blamed == dict.fromkeys(HOSTS, cause)


def test_a_host_that_vanishes_is_named() -> None:
    found = links(together(HOSTS))
    vanished = next(link for link in found if link.current == HOSTS[1])
    for connection in vanished._peers.values():
        connection.shutdown(2)
    leader = next(link for link in found if link.current == HOSTS[0])
    failure = wait_until(lambda: leader.failure, timeout_s=5, what="the message")
    assert "host 127.0.0.2 ended without a word" in failure.message
    for link in found:
        link.close()


def test_a5_50_missing_hosts_are_named_to_those_that_came() -> None:
    found = together(HOSTS[:2], wait_s=2)
    assert all("127.0.0.3" in str(found[host]) for host in HOSTS[:2]), found


def test_a_host_that_is_there_early_waits_as_long_as_the_leader_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader's own time may have begun when ours is nearly over."""
    monkeypatch.setattr(hostlink, "_GRACE_S", 0)
    topology = Topology(hosts=HOSTS, current=HOSTS[1], processes=1)
    with socket.create_server(("", 0)) as leader:
        begun = time.monotonic()
        with pytest.raises(TrainingError, match=r"host 127\.0\.0\.1 answers, but did not say within 3 s whether"):
            hostlink._call(topology, begun + 2, wait_s=3, port=leader.getsockname()[1])
    assert time.monotonic() - begun >= 3


def test_hosts_are_stopped_together_while_they_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader's signal may come first: it has not gone away for an unknown reason."""
    port = free_port()

    def named() -> bool:
        found = psutil.Process().net_connections("tcp")
        return any((one.laddr.port, one.status) == (port, psutil.CONN_ESTABLISHED) for one in found)

    with ThreadPoolExecutor() as pool:
        topologies = [Topology(hosts=HOSTS, current=host, processes=1) for host in HOSTS[:2]]
        ends = [pool.submit(meet, topology, wait_s=60, port=port) for topology in topologies]
        wait_until(named, timeout_s=30, what="the leader to take the call")
        monkeypatch.setattr(STOP, "signal", signal.SIGTERM)
        assert [type(end.exception(timeout=30)) for end in ends] == [Stopped, Stopped]


def test_hosts_that_finish_do_not_fail_each_other() -> None:
    found = links(together(HOSTS))
    threads = [threading.Thread(target=link.settle, args=(None,)) for link in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for link in found:
        link.close()
    assert [link.failure for link in found] == [None] * 3


def test_what_calls_the_leader_without_being_a_host_is_sent_away() -> None:
    port, found = free_port(), list[HostLink]()
    topology = Topology(hosts=HOSTS[:2], current=HOSTS[0], processes=1)
    leader = threading.Thread(target=lambda: found.append(meet(topology, wait_s=30, port=port)))
    leader.start()
    for word in (b"GET / HTTP/1.1\r\n\r\n", b'{"host": "127.0.0.9"}\n', b"[1]\n", b"x" * 9000):
        with wait_until(lambda: connected(port), timeout_s=10, what="the leader") as stranger:
            stranger.sendall(word)
            stranger.settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
    found.append(meet(Topology(hosts=HOSTS[:2], current=HOSTS[1], processes=1), wait_s=30, port=port))
    leader.join(timeout=30)
    assert len(found) == 2
    for link in found:
        link.close()


def connected(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port), timeout=5)
    except OSError:
        return None


def test_two_trainings_in_one_network_are_a_sentence() -> None:
    with socket.create_server(("", 0)) as taken:
        topology = Topology(hosts=HOSTS[:2], current=HOSTS[0], processes=1)
        with pytest.raises(TrainingError, match=r"port \d+, at which hosts meet, cannot be opened"):
            meet(topology, wait_s=5, port=taken.getsockname()[1])


def test_the_first_failure_is_the_one_that_counts(tmp_path: Path) -> None:
    leave_word(tmp_path, 0, Casualty.of(LOST, place="rank 0"))
    leave_word(tmp_path, 1, Casualty.of(ConfigError("a mistake"), place="rank 1"))
    leave_word(tmp_path, 2, Casualty.of(ValueError("later"), place="rank 2"))
    assert isinstance(failure_of(tmp_path, 1).error(), UserError)
    assert failure_of(tmp_path, 1).message == "a mistake"


def test_those_whom_torchrun_ends_beside_a_failed_process_were_not_asked_to_stop(tmp_path: Path) -> None:
    cause, stopped = RuntimeError("DataLoader worker (pid 7) is killed"), Stopped("stopped by a signal")
    words = [Casualty.of(cause, place="rank 1"), Casualty.of(stopped, place="rank 0")]
    for rank, word in enumerate(words):
        leave_word(tmp_path, rank, dataclasses.replace(word, time=rank))
    assert failure_of(tmp_path, 1).message.startswith("RuntimeError: DataLoader worker")
    asked = dataclasses.replace(Casualty.of(stopped, place="rank 0", asked=True), time=2.0)
    assert first_of([*words, asked]) == asked


def test_a_process_that_was_killed_is_named_rather_than_those_that_missed_it(tmp_path: Path) -> None:
    lost = Casualty.of(LOST, place="rank 0, host a")
    for rank in (0, 1):
        (tmp_path / f"pid-{rank}").touch()
    leave_word(tmp_path, 0, lost)
    assert "the training process of rank 1 ended without a word" in failure_of(tmp_path, 1).message
    leave_word(tmp_path, 1, dataclasses.replace(lost, time=lost.time + 1))
    assert failure_of(tmp_path, 1).message == f"RuntimeError: {LOST} (rank 0, host a)"


@pytest.mark.parametrize(
    ("error", "wake"),
    [
        (LOST, True),
        (RuntimeError("Operation timed out!"), True),
        (RuntimeError("NCCL communicator was aborted on rank 0."), True),
        (dist.DistBackendError("a collective was aborted"), True),
        (dist.DistNetworkError("the store has gone"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), False),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x512 and 2048x3)"), False),
    ],
)
def test_only_an_error_of_a_collective_may_be_anothers_fault(tmp_path: Path, error: Exception, wake: bool) -> None:
    """A process that waits in a GPU's kernel runs no handler of signals: torchrun ends it without a word."""
    for rank in (0, 1):
        (tmp_path / f"pid-{rank}").touch()
    leave_word(tmp_path, 1, Casualty.of(error, place="rank 1"))
    blamed = "the training process of rank 0 ended without a word" if wake else f"{type(error).__name__}: {error}"
    assert failure_of(tmp_path, 1).message.startswith(blamed)


def test_processes_that_never_started_were_not_killed(tmp_path: Path) -> None:
    message = "torchrun could not start the training processes (it ended with 1); the log says why"
    assert failure_of(tmp_path, 1).message == message


@pytest.mark.parametrize("devices", [[], ["uverbs0"]])
def test_a5_48_efa_is_asked_for_only_where_it_is(tmp_path: Path, devices: list[str]) -> None:
    for name in devices:
        (tmp_path / name).touch()
    topology = Topology(hosts=HOSTS, current=HOSTS[0], interface="lo", processes=1)
    env = network_environment(topology, devices=tmp_path)
    assert env.get("FI_PROVIDER") == ("efa" if devices else None)


def test_processes_share_the_cores_unless_the_user_says_how_many_threads_each_has() -> None:
    shared = thread_environment(Topology(processes=2), {})
    assert shared == {"OMP_NUM_THREADS": str(max(1, usable_cores() // 2))}
    assert thread_environment(Topology(processes=2), {"OMP_NUM_THREADS": "3"}) == {"OMP_NUM_THREADS": "3"}
