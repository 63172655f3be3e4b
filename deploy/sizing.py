"""What a measured capacity means for a stated traffic: scaling target, instances, concurrency, and the bill."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from deploy.endpoint import load_factor, scaling_target
from deploy.loadtest import Round
from deploy.pricing import HOURS_A_MONTH, function_calls, load_prices, provisioned_month
from deploy.profile import Endpoint

_SECONDS_A_MONTH = HOURS_A_MONTH * 3600


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """For a peak of so many requests a second; US dollars a month as if the peak lasted all of it.

    `scaling_target` and `instances` are of endpoints with instances, `serverless_concurrency` is of one without.
    """

    scaling_target: int | None = None
    instances: int | None = None
    serverless_concurrency: int | None = None
    endpoint_dollars: float | None = None  # where the machine has a price
    provisioned_concurrency: int
    reserved_concurrency: int
    function_dollars: float


def size(found: Round, *, peak_per_s: float, endpoint: Endpoint, memory_mb: int = 512) -> Sizing:
    """What follows from the round.

    Instances run at the load factor of the scaling rule. Concurrency is Little's law, calls a second x seconds a
    call: at p50 for what is kept warm, at p99 and twice the peak for the cap.
    """
    usual_s, slow_s = found.p50_ms / 1000, found.p99_ms / 1000
    provisioned = max(1, math.ceil(peak_per_s * usual_s))
    calls = function_calls(peak_per_s * _SECONDS_A_MONTH, seconds=usual_s, memory_mb=memory_mb)
    function = Sizing(
        provisioned_concurrency=provisioned,
        reserved_concurrency=max(provisioned, math.ceil(2 * peak_per_s * slow_s)),
        function_dollars=provisioned_month(provisioned, memory_mb=memory_mb) + calls,
    )
    if endpoint.variant == "serverless":
        second = endpoint.serverless_memory_mb / 1024 * load_prices().rates["serverless_gb_second"]
        return replace(
            function,
            serverless_concurrency=max(1, math.ceil(peak_per_s * slow_s)),
            endpoint_dollars=peak_per_s * usual_s * second * _SECONDS_A_MONTH,
        )
    instances = max(1, math.ceil(peak_per_s / (found.requests_per_s * load_factor(endpoint.variant))))
    machine = load_prices().machine(endpoint.instance_type)
    return replace(
        function,
        scaling_target=scaling_target(found.requests_per_s, variant=endpoint.variant),
        instances=instances,
        endpoint_dollars=None if machine is None else instances * machine.sagemaker_hour * HOURS_A_MONTH,
    )
