"""`endpoint …`: the app stack."""

from __future__ import annotations

import subprocess
from typing import Annotated

import typer

from deploy import bill, doctor, endpoint, images, jobs, lambda_zip, notifications, quotas, releases, stacks, teardown
from deploy.aws import Aws
from deploy.commands.apply import apply
from deploy.commands.common import NOTHING, Context, PlanOnly, Yes, aws_of, only_reads, proceed, say
from deploy.errors import DeployError
from deploy.plan import Plan, Step

Image = Annotated[str, typer.Option(help="Tag in ECR, or a digest URI as build_and_push.sh prints it.")]
Model = Annotated[
    str, typer.Option(help="A finished job's name, or s3://…/model.tar.gz (multi-model: s3://…/models/).")
]

app = typer.Typer(no_args_is_help=True, help="`endpoint apply` and what follows: the app stack.")


@app.callback()
def endpoint_group() -> None:
    """Model, endpoint, scaling, function, alarms: the app stack."""


@app.command("apply")
def endpoint_apply(
    context: Context, model: Model, image: Image = "latest", plan: PlanOnly = False, yes: Yes = False
) -> None:
    """Make or update the endpoint and what belongs to it. A second time, it changes nothing."""
    aws = aws_of(context)
    doctor.require_credentials(aws)
    artifact = _artifact(aws, model)
    endpoint.require_model(aws, artifact)
    code = _function_zip(aws)
    release = endpoint.Release(
        image=images.image_uri(aws, image), model=artifact, code_key=f"functions/{code.sha256}.zip"
    )
    quota = (quotas.require_endpoint(aws), quotas.require_concurrency(aws))
    if not plan:
        _upload_code(aws, release.code_key, code.data)
    _apply_app(aws, endpoint.app_stack(aws, release), notes=quota, plan_only=plan, yes=yes)


@app.command("plan")
def endpoint_plan(context: Context, model: Model, image: Image = "latest") -> None:
    """What `endpoint apply` would change, by a change set that is then thrown away."""
    endpoint_apply(context, model=model, image=image, plan=True)


@app.command("status")
def endpoint_status(
    context: Context,
    drift: Annotated[bool, typer.Option(help="Also look for what was changed by hand (takes a minute).")] = False,
    plan: PlanOnly = False,
) -> None:
    """Whether it is in service, with which image, on how many instances, and what is alarming."""
    if only_reads("the endpoint, its alarms, its stack and its log", plan_only=plan):
        return
    aws = aws_of(context)
    found = endpoint.endpoint_status(aws)
    if found is None:
        raise DeployError(f"endpoint '{aws.profile.prefix}' is not there: `endpoint apply`")
    say(f"endpoint {aws.profile.prefix}: {found.state}")
    say(f"  image {found.image or 'not known'}")
    say(f"  instances {found.instances}, wanted {found.desired}")
    say(f"  alarms: {', '.join(found.alarms) or 'none'}")
    for name, value in sorted(stacks.outputs(aws, aws.profile.app_stack).items()):
        say(f"  {name}: {value}")
    for line in stacks.drift(aws, aws.profile.app_stack) if drift else ():
        say(f"  changed by hand: {line}")
    if found.state in ("Failed", "Creating", "UpdateRollbackFailed"):
        say(endpoint.why_it_failed(aws))
    if found.state == "Failed":
        raise typer.Exit(1)


@app.command("rollback")
def endpoint_rollback(context: Context, plan: PlanOnly = False, yes: Yes = False) -> None:
    """Back to the release before this one, or out of an update that was left half-way."""
    aws = aws_of(context)
    name = aws.profile.app_stack
    stack = stacks.describe(aws, name)
    if stack is None:
        raise DeployError(f"stack '{name}' is not there: nothing to roll back")
    if stack["StackStatus"] in stacks.HALF_WAY:
        step = Step("update", f"{name} is {stack['StackStatus']}: back to its last good state")
        shown = Plan(title="rollback", steps=(step,), cost=bill.month_words(aws.profile))
        if proceed(shown, plan_only=plan, ask=True, yes=yes):
            stacks.go_back(aws, name, say=say)
        return
    current = {entry["ParameterKey"]: entry["ParameterValue"] for entry in stack.get("Parameters", [])}
    _apply_app(aws, releases.before(aws, name, current=current), notes=(), plan_only=plan, yes=yes)


@app.command("destroy")
def endpoint_destroy(context: Context, plan: PlanOnly = False, yes: Yes = False) -> None:
    """Remove the app stack; data, models, images and roles of jobs stay."""
    aws = aws_of(context)
    name = aws.profile.app_stack
    exists = stacks.exists(aws, name)
    step = Step("delete", f"stack {name}") if exists else Step("keep", f"stack {name} is not there")
    cost = f"nothing, and this is billed no longer: {bill.month_words(aws.profile)}" if exists else NOTHING
    if proceed(Plan(title="endpoint destroy", steps=(step,), cost=cost), plan_only=plan, ask=exists, yes=yes):
        teardown.remove_notifications(aws, say=say)
        stacks.delete(aws, name, say=say)


@app.command("notify")
def endpoint_notify(
    context: Context,
    bucket: Annotated[str, typer.Argument(help="One of function.allowed_buckets.")],
    prefix: Annotated[str, typer.Option(help="Of the photos' keys.")] = "photos/",
    remove: Annotated[bool, typer.Option("--remove", help="Take the notification away.")] = False,
    plan: PlanOnly = False,
) -> None:
    """Let a bucket tell the function of each new photo; answers go to result_prefix. Its other notifications stay."""
    aws = aws_of(context)
    ours = None if remove else notifications.entry(aws, prefix)
    if ours:
        notifications.require_function(aws, bucket)
    found = notifications.current(aws, bucket)
    place = f"s3://{bucket}/{prefix}" if ours else f"s3://{bucket}"
    words = f"notification of {aws.profile.prefix} for {place}"
    same = Step("keep", f"{words} is as it should be")
    step = same if found == ours else Step("create" if ours else "delete", words, ours)
    cost = "what the function and the endpoint cost for each photo that arrives" if ours else NOTHING
    if proceed(Plan(title="notify", steps=(step,), cost=cost), plan_only=plan) and found != ours:
        notifications.put(aws, bucket, ours)


def _apply_app(aws: Aws, stack: stacks.Stack, *, notes: tuple[str, ...], plan_only: bool, yes: bool) -> None:
    """As `apply`, and where it hangs or fails, with what the container has to say."""
    endpoint.require_same_variant(aws, stack)
    try:
        apply(
            aws,
            stack,
            cost=bill.month_words(aws.profile),
            notes=(*notes, *endpoint.advice(aws.profile)),
            plan_only=plan_only,
            yes=yes,
            watch=endpoint.StuckWatch(aws, say),
        )
    except stacks.StackFailed as error:
        raise DeployError(f"{error}\n{endpoint.why_it_failed(aws)}") from error


def _artifact(aws: Aws, model: str) -> str:
    if model.startswith("s3://"):
        return model
    found = jobs.status(aws, model)
    if found.kind == "ec2":
        return f"s3://{aws.bucket}/jobs/{model}/output/model.tar.gz"
    if found.state not in ("Completed", "Stopped") or not found.artifact:
        raise DeployError(f"{found.kind} job '{model}' is {found.state} and has left no artifact; {found.failure}")
    return found.artifact


def _function_zip(aws: Aws) -> lambda_zip.LambdaZip:
    try:
        return lambda_zip.build(with_pillow=aws.profile.function.pillow)
    except subprocess.CalledProcessError as error:
        raise DeployError(
            "pip could not get Pillow, as it said above: mend that, or set function.pillow = false"
        ) from error


def _upload_code(aws: Aws, key: str, data: bytes) -> None:
    """The key is the zip's sha256: what is there already is the same."""
    if aws.profile.function.enabled and aws.found("s3", "head_object", "404", Bucket=aws.bucket, Key=key) is None:
        aws.call("s3", "put_object", Bucket=aws.bucket, Key=key, Body=data)
