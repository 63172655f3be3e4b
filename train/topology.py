"""Which hosts and processes train together: from resourceconfig.json alone.

Host names in /etc/hostname or gethostname() are not to be trusted on SageMaker, and neither is the named interface in
the SDK's local mode, which writes `ethwe` where the container has eth0.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from container.errors import ConfigError
from train.workers import usable_cores

MASTER_PORT: Final = 7777
_SIOCGIFADDR: Final = 0x8915


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The hosts, in the order in which SageMaker lists them, and what each runs."""

    hosts: tuple[str, ...] = ("localhost",)
    current: str = "localhost"
    interface: str = ""
    processes: int = 1

    @classmethod
    def read(cls, path: Path, *, processes: int) -> Topology:
        """Without a file, or with one host, this machine alone. Raises ConfigError."""
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(processes=processes)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
        hosts, current = _hosts(value, path)
        if len(hosts) == 1:
            return cls(processes=processes)
        interface = str(value.get("network_interface_name", ""))
        return cls(hosts=hosts, current=current, interface=interface, processes=processes)

    @property
    def rank(self) -> int:
        """This host's place among the hosts."""
        return self.hosts.index(self.current)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def world_size(self) -> int:
        return len(self.hosts) * self.processes


def _hosts(value: Any, path: Path) -> tuple[tuple[str, ...], str]:
    hosts, current = (value.get("hosts"), value.get("current_host")) if isinstance(value, dict) else (None, None)
    if not isinstance(hosts, list) or not hosts or current not in hosts:
        raise ConfigError(f"{path} must name `hosts` and, among them, `current_host`; found {hosts!r} and {current!r}")
    return tuple(str(host) for host in hosts), str(current)


def network_environment(topology: Topology, *, devices: Path = Path("/dev/infiniband")) -> dict[str, str]:
    """The variables by which NCCL, gloo and TensorPipe find the network between the hosts."""
    interface = _usable_interface(topology)
    env: dict[str, str] = {}
    if interface:
        env = {
            "NCCL_SOCKET_IFNAME": f"={interface}",
            "GLOO_SOCKET_IFNAME": interface,
            "TP_SOCKET_IFNAME": interface,
            # gethostname() may be the same on all hosts, and NCCL would take them for one.
            "NCCL_HOSTID": topology.current,
        }
    if any(devices.glob("uverbs*")):
        env["FI_PROVIDER"] = "efa"
    return env


def thread_environment(topology: Topology, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Each process of a host gets its share of the cores. OMP_NUM_THREADS is obeyed."""
    share = max(1, usable_cores() // topology.processes)
    return {"OMP_NUM_THREADS": env.get("OMP_NUM_THREADS", str(share))}


def _usable_interface(topology: Topology) -> str:
    names = [name for _, name in socket.if_nameindex()]
    if len(topology.hosts) == 1:
        return "lo" if "lo" in names else ""
    if topology.interface in names:
        return topology.interface
    found = _interface_towards(next(host for host in topology.hosts if host != topology.current), names)
    print(f"warning: there is no network interface {topology.interface!r}; using {found or 'the default'}", flush=True)
    return found


def _interface_towards(host: str, names: list[str]) -> str:
    """The interface whose address a packet to the host would carry; empty where that cannot be told."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, MASTER_PORT))  # Sends nothing: it is a datagram socket.
            own = probe.getsockname()[0]
            return next((name for name in names if _address(probe, name) == own), "")
    except OSError:
        return ""


def _address(probe: socket.socket, name: str) -> str:
    try:
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError:
        return ""  # an interface without an IPv4 address
    return socket.inet_ntoa(answer[20:24])
