"""Time and cost before anything starts, from one dated table that says where its figures come from."""

from __future__ import annotations

import datetime

import pytest

from deploy.endpoint import scaling_target
from deploy.errors import DeployError
from deploy.pricing import (
    advice,
    ceiling_words,
    endpoint_month_words,
    load_prices,
    provisioned_month,
    training_estimate,
)


def test_every_figure_says_where_it_comes_from() -> None:
    prices = load_prices()
    datetime.date.fromisoformat(prices.date)
    assert prices.date in prices.caveat
    for machine in prices.machines.values():
        assert machine.basis.startswith(("measured: ", "estimate: "))
        assert machine.sagemaker_hour > machine.ec2_hour > 0


def test_time_and_cost_follow_from_the_speed() -> None:
    machine = load_prices().machines["m5.large"]
    found = training_estimate(machine, photos=4600, epochs=36)
    assert found.hours == pytest.approx(10 + 0.1)  # 4,600 x 36 / 4.6 a second, and six minutes to start
    assert found.dollars == pytest.approx(10.1 * machine.sagemaker_hour)
    assert "measured speed" in found.words()


def test_two_instances_halve_the_time_and_cost_their_starts() -> None:
    machine = load_prices().machines["m5.large"]
    one = training_estimate(machine, photos=4600, epochs=36)
    two = training_estimate(machine, photos=4600, epochs=36, instances=2)
    assert two.hours == pytest.approx(5.1)
    assert two.dollars > one.dollars


def test_ec2_is_cheaper_an_hour_than_sagemaker() -> None:
    machine = load_prices().machines["g4dn.xlarge"]
    sagemaker = training_estimate(machine, photos=6680, epochs=10)
    assert training_estimate(machine, photos=6680, epochs=10, sagemaker=False).dollars < sagemaker.dollars


def test_advice_begins_with_the_cheapest() -> None:
    dollars = [estimate.dollars for estimate in advice(photos=6680, epochs=10)]
    assert dollars == sorted(dollars)
    assert len(dollars) == len(load_prices().machines)


def test_advice_for_nothing_is_refused() -> None:
    with pytest.raises(DeployError, match="must be at least 1"):
        advice(photos=0, epochs=1)


def test_a_machine_without_a_price_is_said_to_have_none() -> None:
    assert ceiling_words("ml.p5.48xlarge", hours=1, instances=1, spot=False) == "ml.p5.48xlarge is not in prices.toml"
    assert "not in prices.toml" in endpoint_month_words("ml.p5.48xlarge", least=1, most=3)


def test_the_ceiling_counts_hours_and_instances() -> None:
    hourly = load_prices().machines["m5.large"].sagemaker_hour
    assert f"at most ${hourly * 8:.2f} on demand" in ceiling_words("ml.m5.large", hours=4, instances=2, spot=False)


def test_warm_environments_cost_whether_they_are_called_or_not() -> None:
    rate = load_prices().rates["lambda_provisioned_gb_second"]
    assert provisioned_month(2, memory_mb=512) == pytest.approx(730 * 3600 * rate)


@pytest.mark.parametrize(("per_second", "target"), [(2.0, 60), (34.7, 1041), (0.001, 1)])
def test_the_scaling_target_is_awss_rule(per_second: float, target: int) -> None:
    """Max requests a second x 0.5 x 60: invocations a minute an instance."""
    assert scaling_target(per_second) == target
