"""What stands costs while it stands: the endpoint, the function and what watches them, by the month."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deploy.pricing import HOURS_A_MONTH, load_prices, provisioned_month
from deploy.profile import Profile

# deploy/templates/app.yaml: 5xx and p99 of the endpoint, throttles, spill-over and failed calls of the function; and
# target tracking makes two of its own.
_ENDPOINT_ALARMS, _FUNCTION_ALARMS, _SCALING_ALARMS = 2, 3, 2


@dataclass(frozen=True)
class Item:
    """A part of the bill: US dollars a month with the fewest instances, called or not."""

    what: str
    dollars: float


def month(profile: Profile) -> tuple[Item, ...] | None:
    """What the app stack costs a month without a single call; None where its machine has no price."""
    try:
        return tuple(_items(profile))
    except KeyError:
        return None


def month_words(profile: Profile) -> str:
    """`about $164 a month while it stands: ...`, and what each further instance adds."""
    items = month(profile)
    if items is None:
        return f"{profile.endpoint.instance_type} is not in prices.toml; it costs what AWS bills while it stands"
    parts = ", ".join(f"{item.what} ${item.dollars:.2f}" for item in items)
    return f"about ${sum(item.dollars for item in items):.0f} a month while it stands ({parts}){_further(profile)}"


def abuse_words(profile: Profile) -> str:
    """What strangers can cost a month who keep a public function busy all the time, at most its reserved concurrency.

    Lambda starts at most ten calls a second for each that may run at a time (developer guide, "Lambda quotas").
    """
    rates, function, endpoint = load_prices().rates, profile.function, profile.endpoint
    calls, seconds = function.reserved_concurrency, HOURS_A_MONTH * 3600
    lambda_month = calls * seconds * (0.5 * rates["lambda_gb_second"] + 10 * rates["lambda_request"])
    if endpoint.variant == "serverless":
        busy = min(calls, endpoint.serverless_concurrency) * seconds
        month = busy * endpoint.serverless_memory_mb / 1024 * rates["serverless_gb_second"]
        at_most = f"${month:.0f} for the endpoint"
    elif machine := load_prices().machine(endpoint.instance_type):
        month = endpoint.max_instances * machine.sagemaker_hour * HOURS_A_MONTH
        at_most = f"${month:.0f} for the endpoint at all its {endpoint.max_instances} instances"
    else:
        at_most = f"what {endpoint.max_instances} x {endpoint.instance_type} cost"
    return (
        f"the function's URL is public: anybody can have photos classified at your cost. Abuse of all {calls} calls at "
        f"a time (reserved_concurrency) costs a month at most ${lambda_month:.0f} for the function and {at_most}; "
        f"traffic out comes on top, ${rates['traffic_out_gb']:.2f} a GB"
    )


def _items(profile: Profile) -> Iterator[Item]:
    prices, endpoint, function = load_prices(), profile.endpoint, profile.function
    alarms = _ENDPOINT_ALARMS + _FUNCTION_ALARMS * function.enabled
    if endpoint.variant == "serverless":
        yield Item("idle endpoint", 0.0)
    else:
        hourly = prices.machines[endpoint.instance_type.removeprefix("ml.")].sagemaker_hour
        what = f"{endpoint.min_instances} x {endpoint.instance_type}"
        yield Item(what, endpoint.min_instances * hourly * HOURS_A_MONTH)
        alarms += _SCALING_ALARMS
    if function.enabled:
        warm = provisioned_month(function.provisioned_concurrency)
        yield Item(f"{function.provisioned_concurrency} warm environments", warm)
    yield Item(f"{alarms} alarms and dashboard", alarms * prices.rates["alarm_month"] + prices.rates["dashboard_month"])


def _further(profile: Profile) -> str:
    endpoint, prices = profile.endpoint, load_prices()
    if endpoint.variant == "serverless":
        second = endpoint.serverless_memory_mb / 1024 * prices.rates["serverless_gb_second"]
        return f"; ${second:.6f} for a second of work"
    machine = prices.machine(endpoint.instance_type)
    if machine is None or endpoint.max_instances == endpoint.min_instances:
        return ""
    each = machine.sagemaker_hour * HOURS_A_MONTH
    return f"; each further instance, up to {endpoint.max_instances}, ${each:.0f} (${machine.sagemaker_hour:.3f}/h)"
