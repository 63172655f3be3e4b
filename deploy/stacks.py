"""CloudFormation: what a stack would change, changing it, waiting for it, and saying why it failed."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.aws import Aws
from deploy.errors import AwsError, DeployError
from deploy.plan import Step

TEMPLATES = Path(__file__).with_name("templates")
_ABSENT = "ValidationError"
# A stack with nothing but change sets that nobody has executed.
_UNBORN = "REVIEW_IN_PROGRESS"
_VERBS = {"Add": "create", "Modify": "update", "Remove": "delete", "Import": "keep", "Dynamic": "update"}
_WAY_BACK = {
    "UPDATE_ROLLBACK_FAILED": "continue_update_rollback",
    "UPDATE_FAILED": "rollback_stack",
    "CREATE_FAILED": "rollback_stack",
}
HALF_WAY = tuple(_WAY_BACK)
_POLL_S = 5
# An endpoint's update starts new instances, waits for alarms and ends the old ones.
_WAIT_S = 3 * 3600


class StackFailed(DeployError):
    """CloudFormation could not bring a stack to where it should be."""


@dataclass(frozen=True)
class Stack:
    """A stack as it should be. `adopts`: what exists under the template's names is taken in, not made twice."""

    name: str
    template: str
    parameters: Mapping[str, str]
    adopts: bool = False


@dataclass(frozen=True)
class ChangeSet:
    """What CloudFormation would do. `arn` is empty where there is nothing to do."""

    arn: str
    steps: tuple[Step, ...]


def read_template(name: str) -> str:
    return (TEMPLATES / f"{name}.yaml").read_text()


def exists(aws: Aws, name: str) -> bool:
    """Whether anything has this name, even the empty stack that a broken-off plan may leave."""
    stack = _found(aws, name)
    return stack is not None and stack["StackStatus"] != "DELETE_COMPLETE"


def describe(aws: Aws, name: str) -> dict[str, Any] | None:
    """The stack, or nothing where there is none (a stack with nothing but an unexecuted change set is none)."""
    stack = _found(aws, name)
    return None if stack is None or stack["StackStatus"] in (_UNBORN, "DELETE_COMPLETE") else stack


def _found(aws: Aws, name: str) -> dict[str, Any] | None:
    answer = aws.found("cloudformation", "describe_stacks", _ABSENT, StackName=name)
    return answer["Stacks"][0] if answer and answer["Stacks"] else None


def outputs(aws: Aws, name: str) -> dict[str, str]:
    """Raises DeployError where the stack is missing."""
    stack = describe(aws, name)
    if stack is None:
        raise DeployError(
            f"stack '{name}' is not there: `{'base' if name.endswith('base') else 'endpoint'} apply` first"
        )
    return {entry["OutputKey"]: entry["OutputValue"] for entry in stack.get("Outputs", [])}


def propose(aws: Aws, stack: Stack) -> ChangeSet:
    """Make a change set and read it."""
    _require_movable(aws, stack.name)
    arn = _request(aws, stack, "CREATE" if describe(aws, stack.name) is None else "UPDATE")
    if not arn:
        return ChangeSet("", ())
    answer = _settled(aws, arn)
    if answer["Status"] == "FAILED":
        discard(aws, stack, ChangeSet(arn, ()))
        if _nothing_to_do(answer.get("StatusReason", "")):
            return ChangeSet("", ())
        raise DeployError(f"change set of stack '{stack.name}'\nAWS said: {answer.get('StatusReason', 'nothing')}")
    steps = tuple(_step(change["ResourceChange"]) for change in answer.get("Changes", []) if "ResourceChange" in change)
    return ChangeSet(arn, steps)


def _request(aws: Aws, stack: Stack, kind: str) -> str:
    """Ask for a change set; its ARN, or nothing where CloudFormation sees at once that nothing would change."""
    try:
        answer = aws.call(
            "cloudformation",
            "create_change_set",
            StackName=stack.name,
            ChangeSetName=f"kennel-{uuid.uuid4().hex[:12]}",
            ChangeSetType=kind,
            TemplateBody=stack.template,
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in stack.parameters.items()],
            Capabilities=["CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"],
            Tags=aws.profile.tag_list(),
            ImportExistingResources=stack.adopts,
        )
    except AwsError as error:
        if _nothing_to_do(error.said):
            return ""
        raise
    return str(answer["Id"])


def execute(
    aws: Aws, stack: Stack, changes: ChangeSet, *, say: Callable[[str], None], watch: Callable[[], None] | None = None
) -> None:
    """Carry a change set out and wait. Raises DeployError with the first resource that failed and why."""
    if changes.arn:
        aws.call("cloudformation", "execute_change_set", ChangeSetName=changes.arn, StackName=stack.name)
        wait(aws, stack.name, say=say, watch=watch)


def discard(aws: Aws, stack: Stack, changes: ChangeSet) -> None:
    """Forget a change set, and the empty stack that it stood on: somebody else may have filled it meanwhile."""
    if not changes.arn:
        return
    aws.call("cloudformation", "delete_change_set", ChangeSetName=changes.arn, StackName=stack.name)
    found = _found(aws, stack.name)
    if found and found["StackStatus"] == _UNBORN:
        aws.call("cloudformation", "delete_stack", StackName=stack.name)


def wait(aws: Aws, name: str, *, say: Callable[[str], None], watch: Callable[[], None] | None = None) -> None:
    """Until the stack stands still; `watch` is called meanwhile. Raises DeployError where it should not stand so."""
    seen: set[str] = set()
    deadline = aws.clock() + _WAIT_S
    while aws.clock() < deadline:
        stack = describe(aws, name)
        state = stack["StackStatus"] if stack else "DELETE_COMPLETE"
        _report_events(aws, name, seen, say)
        if not state.endswith("_IN_PROGRESS"):
            if "ROLLBACK" in state or state.endswith("_FAILED"):
                raise StackFailed(f"stack '{name}' is {state}\n{failure(aws, name)}")
            return
        if watch:
            watch()
        aws.sleep(_POLL_S)
    raise StackFailed(f"stack '{name}' did not come to rest in {_WAIT_S / 3600:g} h; `endpoint status` shows it")


def failure(aws: Aws, name: str) -> str:
    """What failed first in the stack's last operation, in AWS's words."""
    failed = []
    for event in _events(aws, name):
        reason = event.get("ResourceStatusReason", "")
        if event["ResourceStatus"].endswith("_FAILED") and "cancelled" not in reason.lower():
            failed.append(f"{event['LogicalResourceId']} ({event['ResourceType']}): {reason}")
        if event["PhysicalResourceId"] == event["StackId"] and reason == "User Initiated":
            break
    return f"AWS said of {failed[-1]}" if failed else "AWS gave no reason"


def delete(aws: Aws, name: str, *, say: Callable[[str], None]) -> None:
    if not exists(aws, name):
        return
    aws.call("cloudformation", "delete_stack", StackName=name)
    wait(aws, name, say=say)


def go_back(aws: Aws, name: str, *, say: Callable[[str], None]) -> bool:
    """Bring a stack that an update left half-way to its last good state. False where it stands well already."""
    stack = describe(aws, name)
    operation = _WAY_BACK.get(stack["StackStatus"] if stack else "")
    if operation is None:
        return False
    aws.call("cloudformation", operation, StackName=name)
    try:
        wait(aws, name, say=say)
    except StackFailed:
        # It ends in ..._ROLLBACK_COMPLETE, which is what was asked for.
        after = describe(aws, name)
        if after is None or not after["StackStatus"].endswith("ROLLBACK_COMPLETE"):
            raise
    return True


def drift(aws: Aws, name: str) -> list[str]:
    """Resources that are no longer as the template says, each with what differs."""
    detection = aws.call("cloudformation", "detect_stack_drift", StackName=name)["StackDriftDetectionId"]
    deadline = aws.clock() + 600
    while aws.clock() < deadline:
        state = aws.call("cloudformation", "describe_stack_drift_detection_status", StackDriftDetectionId=detection)
        if state["DetectionStatus"] != "DETECTION_IN_PROGRESS":
            break
        aws.sleep(_POLL_S)
    drifted = aws.call(
        "cloudformation",
        "describe_stack_resource_drifts",
        StackName=name,
        StackResourceDriftStatusFilters=["MODIFIED", "DELETED"],
    )["StackResourceDrifts"]
    return [f"{entry['LogicalResourceId']}: {_difference(entry)}" for entry in drifted]


def _difference(entry: dict[str, Any]) -> str:
    if entry["StackResourceDriftStatus"] == "DELETED":
        return "deleted by hand"
    return ", ".join(f"{one['PropertyPath']} is {one['ActualValue']}" for one in entry.get("PropertyDifferences", []))


def _require_movable(aws: Aws, name: str) -> None:
    stack = describe(aws, name)
    state = stack["StackStatus"] if stack else ""
    if state.endswith("_IN_PROGRESS"):
        raise DeployError(f"stack '{name}' is {state}: another apply is under way; repeat when it has ended")
    if state == "ROLLBACK_COMPLETE":
        command = "destroy --all" if name == aws.profile.base_stack else "endpoint destroy"
        raise DeployError(f"stack '{name}' was never made whole ({state}); delete the rest first: `{command}`")
    if state in HALF_WAY:
        raise DeployError(f"stack '{name}' is half-way ({state}): `endpoint rollback` first\n{failure(aws, name)}")


def _settled(aws: Aws, arn: str) -> dict[str, Any]:
    deadline = aws.clock() + 300
    while True:
        answer = aws.call("cloudformation", "describe_change_set", ChangeSetName=arn)
        if answer["Status"] not in ("CREATE_PENDING", "CREATE_IN_PROGRESS") or aws.clock() > deadline:
            return answer
        aws.sleep(2)


def _nothing_to_do(reason: str) -> bool:
    return "didn't contain changes" in reason or "No updates are to be performed" in reason


def _step(change: dict[str, Any]) -> Step:
    replaced = change.get("Replacement") in ("True", "Conditional")
    aside = " (replaced)" if replaced else ""
    return Step(_VERBS[change["Action"]], f"{change['LogicalResourceId']}: {change['ResourceType']}{aside}")


def _events(aws: Aws, name: str) -> list[dict[str, Any]]:
    try:
        return aws.call("cloudformation", "describe_stack_events", StackName=name)["StackEvents"]  # type: ignore[no-any-return]
    except AwsError:
        return []  # a stack that is gone has no events, and an error must not hide the one that is being told


def _report_events(aws: Aws, name: str, seen: set[str], say: Callable[[str], None]) -> None:
    events = [event for event in reversed(_events(aws, name)) if event["EventId"] not in seen]
    first = not seen
    seen.update(event["EventId"] for event in events)
    for event in events if not first else []:
        say(f"{event['ResourceStatus'].lower():30} {event['LogicalResourceId']}")
