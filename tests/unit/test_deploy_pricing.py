"""Time and cost before anything starts, from one dated table that says where its figures come from."""

from __future__ import annotations

import dataclasses
import datetime
import re
import tomllib
from pathlib import Path

import pytest

from deploy import bill, pricing
from deploy.endpoint import advice as endpoint_advice
from deploy.endpoint import scaling_target
from deploy.errors import DeployError
from deploy.pricing import (
    advice,
    ceiling_words,
    estimate_words,
    load_prices,
    provisioned_month,
    training_estimate,
)
from deploy.profile import Endpoint, Function, Profile
from deploy.stacks import read_template
from tests.aws.cloudformation import load


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


def test_an_estimate_is_called_one() -> None:
    """No machine type of AWS was measured, so none may be said to have been."""
    for machine in load_prices().machines.values():
        assert not machine.measured
        assert "estimated, not measured" in training_estimate(machine, photos=100, epochs=1).words()
    seen = dataclasses.replace(load_prices().machines["m5.large"], basis="measured: by whoever writes it down")
    assert "(measured speed)" in training_estimate(seen, photos=100, epochs=1).words()


def test_the_cpu_types_follow_from_what_was_measured() -> None:
    table = tomllib.loads(Path(pricing.__file__).with_name("prices.toml").read_text())
    measured, machine = table["measured"], load_prices().machines["c6i.2xlarge"]
    assert machine.train_images_per_s == pytest.approx(4 * measured["train_images_per_s"])
    assert measured["machine"] in machine.basis


def test_an_estimate_says_what_it_is_of() -> None:
    words = estimate_words("ml.g4dn.xlarge", photos=6680, epochs=10, spot=True)
    assert words.startswith("about 0.5 h and $0.13 (estimated")
    assert "10 epochs of 6680 photos" in words
    assert estimate_words("ml.p5.48xlarge", photos=1, epochs=1) == "ml.p5.48xlarge is not in prices.toml"


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


def test_the_ceiling_counts_hours_and_instances() -> None:
    hourly = load_prices().machines["m5.large"].sagemaker_hour
    assert f"at most ${hourly * 8:.2f} on demand" in ceiling_words("ml.m5.large", hours=4, instances=2, spot=False)


def test_warm_environments_cost_whether_they_are_called_or_not() -> None:
    rate = load_prices().rates["lambda_provisioned_gb_second"]
    assert provisioned_month(2, memory_mb=512) == pytest.approx(730 * 3600 * rate)


@pytest.mark.parametrize(("per_second", "target"), [(2.0, 60), (34.7, 1041), (0.001, 1)])
def test_the_scaling_target_is_awss_rule(per_second: float, target: int) -> None:
    """Max requests a second x 0.5 x 60: invocations a minute an instance."""
    assert scaling_target(per_second, variant="real-time") == target


def _profile(**endpoint: object) -> Profile:
    return Profile("dev", endpoint=Endpoint(**endpoint))  # type: ignore[arg-type]


def test_what_stands_is_added_up() -> None:
    profile, hourly = _profile(instance_type="ml.m5.large"), load_prices().machines["m5.large"].sagemaker_hour
    items = {item.what: item.dollars for item in bill.month(profile) or ()}
    assert items["1 x ml.m5.large"] == pytest.approx(hourly * 730)
    assert items["2 warm environments"] == pytest.approx(provisioned_month(2))
    words = bill.month_words(profile)
    assert words.startswith(f"about ${sum(items.values()):.0f} a month while it stands")
    assert f"each further instance, up to 3, ${hourly * 730:.0f}" in words


def test_a_public_url_says_what_abuse_can_cost() -> None:
    """Ten environments of half a GB for 730 hours, a hundred calls a second, and all instances of the endpoint."""
    hourly = load_prices().machines["c6i.xlarge"].sagemaker_hour
    public = Function(url="public")
    words = bill.abuse_words(Profile("dev", function=public))

    assert "all 10 calls at a time" in words
    assert "$272 for the function" in words  # 219 for the time, 53 for the calls.
    assert f"${3 * 730 * hourly:.0f} for the endpoint at all its 3 instances" in words
    assert endpoint_advice(Profile("dev", function=public))[-2] == words
    assert not [note for note in endpoint_advice(Profile("dev")) if "public" in note]


def test_abuse_of_a_serverless_endpoint_is_bounded_by_the_smaller_concurrency() -> None:
    endpoint = Endpoint(variant="serverless", serverless_memory_mb=2048, serverless_concurrency=5)
    words = bill.abuse_words(Profile("dev", endpoint=endpoint, function=Function(url="public")))

    assert f"${5 * 2 * 730 * 3600 * 0.00002:.0f} for the endpoint;" in words


def test_a_serverless_endpoint_costs_nothing_idle_and_something_a_second() -> None:
    words = bill.month_words(_profile(variant="serverless", serverless_memory_mb=3072))
    assert "idle endpoint $0.00" in words
    assert "$0.000060 for a second of work" in words


def test_an_endpoint_without_a_price_is_said_to_have_none() -> None:
    assert "ml.p5.48xlarge is not in prices.toml" in bill.month_words(_profile(instance_type="ml.p5.48xlarge"))


def test_the_bill_counts_the_alarms_of_the_template() -> None:
    """A profile with everything switched on: as many alarms as there are in the template, and scaling's two."""
    alarms = sum(one["Type"] == "AWS::CloudWatch::Alarm" for one in load(read_template("app"))["Resources"].values())
    assert any(item.what == f"{alarms + 2} alarms and dashboard" for item in bill.month(_profile()) or ())


def test_the_readme_names_the_costs_that_the_plans_print() -> None:
    """The month of what stands and the ceiling of a training, as the profile that ships has them."""
    profile, readme = Profile.load("dev"), (Path(__file__).parents[2] / "README.md").read_text()
    month = sum(item.dollars for item in bill.month(profile) or ())
    assert f"# ${month:.0f} a month while it stands" in readme
    training = profile.training
    ceiling = ceiling_words(training.instance_type, hours=training.max_hours, instances=1, spot=True)
    estimate = estimate_words(training.instance_type, photos=6680, epochs=10, spot=True)
    ((cost, most),) = re.findall(r"# (\$\S+) on spot, estimated; at most (\$\S+)$", readme, re.MULTILINE)
    assert f"at most {most} on demand" in ceiling
    assert f"{cost} (estimated" in estimate
