"""A stack's change set, shown, agreed to and carried out: what `base apply` and `endpoint …` share."""

from __future__ import annotations

from collections.abc import Callable

from deploy import releases, stacks
from deploy.aws import Aws
from deploy.commands.common import proceed, say
from deploy.plan import Plan, Step


def apply(
    aws: Aws,
    stack: stacks.Stack,
    *,
    cost: str,
    notes: tuple[str, ...],
    plan_only: bool,
    yes: bool,
    watch: Callable[[], None] | None = None,
) -> None:
    """Propose the change set, and on agreement execute it, record the release and print the stack's outputs.

    `watch` is called while the stack changes. A plan's change set is thrown away.
    """
    changes = stacks.propose(aws, stack)
    steps = changes.steps or (Step("keep", f"stack {stack.name} is as it should be"),)
    shown = Plan(title=f"stack {stack.name}", steps=steps, cost=cost, notes=notes)
    go_on = False
    try:
        go_on = proceed(shown, plan_only=plan_only, ask=bool(changes.arn), yes=yes)
    finally:
        if not go_on:
            stacks.discard(aws, stack, changes)
    if go_on and changes.arn:
        stacks.execute(aws, stack, changes, say=say, watch=watch)
        releases.record(aws, stack)
    if go_on:
        for name, value in sorted(stacks.outputs(aws, stack.name).items()):
            say(f"{name}: {value}")
