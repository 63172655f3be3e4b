"""Time and cost before anything starts: the dated table in prices.toml, and what follows from it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from deploy.errors import DeployError

HOURS_A_MONTH = 730
# An instance of SageMaker has to start, pull the image and the data before it trains.
START_MINUTES = 6


@dataclass(frozen=True)
class Machine:
    """A machine type without its `ml.`: prices in US dollars an hour, the speed of training a ResNet-50."""

    name: str
    vcpus: int
    gpus: int
    ec2_hour: float
    sagemaker_hour: float
    train_images_per_s: float
    basis: str

    @property
    def measured(self) -> bool:
        return self.basis.startswith("measured")


@dataclass(frozen=True)
class Prices:
    """The whole table."""

    date: str
    region: str
    machines: dict[str, Machine]
    rates: dict[str, float]

    def machine(self, instance_type: str) -> Machine | None:
        """The machine behind `ml.g4dn.xlarge` or `g4dn.xlarge`; None where the table has no such type."""
        return self.machines.get(instance_type.removeprefix("ml."))

    @property
    def caveat(self) -> str:
        return f"prices of {self.region} as known on {self.date}; check them before you rely on them"


@dataclass(frozen=True)
class Estimate:
    """What a training would take: hours on the clock and US dollars."""

    machine: Machine
    hours: float
    dollars: float

    def words(self) -> str:
        seen = "measured speed" if self.machine.measured else "estimated, not measured"
        return f"about {self.hours:.1f} h and ${self.dollars:.2f} ({seen})"


@cache
def load_prices() -> Prices:
    table: dict[str, Any] = tomllib.loads(Path(__file__).with_name("prices.toml").read_text())
    measured = table["measured"]
    machines = {name: Machine(name=name, **_scaled(row, measured), **row) for name, row in table["machines"].items()}
    return Prices(str(table["date"]), table["region"], machines, table["rates"])


def has_gpu(instance_type: str) -> bool:
    """Of a type that the table does not have, its family tells."""
    machine = load_prices().machine(instance_type)
    return machine.gpus > 0 if machine else instance_type.removeprefix("ml.")[0] in "gp"


def _scaled(row: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """The speed of a row that has none: what was measured, by the number of vCPUs."""
    if "basis" in row:
        return {}
    times = row["vcpus"] / measured["vcpus"]
    speed = measured["train_images_per_s"]
    basis = f"estimate: {times:g} x the {speed:g} images/s measured on {measured['machine']}"
    return {"train_images_per_s": speed * times, "basis": basis}


def training_estimate(
    machine: Machine, *, photos: int, epochs: int, instances: int = 1, spot: bool = False, sagemaker: bool = True
) -> Estimate:
    """Photos x epochs at the machine's speed; hosts share the photos, and each is paid for."""
    hours = photos * epochs / (machine.train_images_per_s * instances) / 3600 + START_MINUTES / 60
    hourly = machine.sagemaker_hour if sagemaker else machine.ec2_hour
    share = load_prices().rates["spot_share"] if spot else 1.0
    return Estimate(machine, hours, hours * hourly * instances * share)


def estimate_words(
    instance_type: str, *, photos: int, epochs: int, instances: int = 1, spot: bool = False, sagemaker: bool = True
) -> str:
    """What one training of all layers would take, in words."""
    machine = load_prices().machine(instance_type)
    if machine is None:
        return f"{instance_type} is not in prices.toml"
    found = training_estimate(
        machine, photos=photos, epochs=epochs, instances=instances, spot=spot, sagemaker=sagemaker
    )
    return f"{found.words()} for {epochs} epochs of {photos} photos, all layers"


def advice(*, photos: int, epochs: int, spot: bool = False) -> list[Estimate]:
    """Every machine of the table for this training, the cheapest first."""
    if photos < 1 or epochs < 1:
        raise DeployError(f"{photos} photos and {epochs} epochs: both must be at least 1")
    machines = load_prices().machines.values()
    estimates = [training_estimate(machine, photos=photos, epochs=epochs, spot=spot) for machine in machines]
    return sorted(estimates, key=lambda estimate: estimate.dollars)


def ceiling_words(instance_type: str, *, hours: float, instances: int, spot: bool, sagemaker: bool = True) -> str:
    """The most that a job can cost before its time-out ends it."""
    machine = load_prices().machine(instance_type)
    if machine is None:
        return f"{instance_type} is not in prices.toml"
    hourly = machine.sagemaker_hour if sagemaker else machine.ec2_hour
    on_demand = hourly * hours * instances
    spot_words = f", about ${on_demand * load_prices().rates['spot_share']:.2f} on spot" if spot else ""
    return f"at most ${on_demand:.2f} on demand ({instances} x ${hourly:.3f}/h x {hours:g} h){spot_words}"


def function_calls(calls: float, *, seconds: float, memory_mb: int = 512) -> float:
    """US dollars for calls of the Lambda function that find a warm environment, each so many seconds long."""
    rates = load_prices().rates
    run = seconds * memory_mb / 1024 * rates["lambda_provisioned_run_gb_second"]
    return calls * (rates["lambda_request"] + run)


def provisioned_month(environments: int, *, memory_mb: int = 512) -> float:
    """US dollars a month for Lambda environments that are kept warm, idle or not."""
    rate = load_prices().rates["lambda_provisioned_gb_second"]
    return environments * memory_mb / 1024 * HOURS_A_MONTH * 3600 * rate
