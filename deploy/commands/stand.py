"""`base apply`, and the end of everything: `destroy --all`."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy import doctor, inventory, stacks, teardown
from deploy.aws import Aws
from deploy.commands.apply import apply
from deploy.commands.common import NOTHING, Context, PlanOnly, Yes, aws_of, proceed, say
from deploy.errors import DeployError
from deploy.plan import Plan, Step
from deploy.pricing import load_prices

base_app = typer.Typer(
    no_args_is_help=True, help="`base apply`: bucket, repository and roles, which all else stands on."
)


@base_app.callback()
def base_group() -> None:
    """Bucket, repository and roles: the stack that all else stands on."""


@base_app.command("apply")
def base_apply(context: Context, plan: PlanOnly = False, yes: Yes = False) -> None:
    """Make or update the base stack; a repository that build_and_push.sh has made is taken in."""
    aws = aws_of(context)
    doctor.require_credentials(aws)
    rates = load_prices().rates
    cost = (
        f"nothing while empty; then ${rates['s3_gb_month']:.3f} a month for each GB of data and models, "
        f"${rates['ecr_gb_month']:.2f} for each GB of image"
    )
    apply(aws, _base_stack(aws), cost=cost, notes=(load_prices().caveat,), plan_only=plan, yes=yes)


def destroy(
    context: Context,
    everything: Annotated[bool, typer.Option("--all", help="Data, models and images too.")] = False,
    plan: PlanOnly = False,
    yes: Yes = False,
) -> None:
    """Remove everything of this stage, and prove that nothing is left."""
    aws = aws_of(context)
    if not everything:
        raise DeployError("`destroy --all` removes everything of a stage; `endpoint destroy` the endpoint alone")
    doctor.require_credentials(aws)
    teardown.require_repository_unused(aws)
    left = inventory.take(aws)
    steps = tuple(Step("delete", f"{one.kind} {one.name}") for one in left) or (Step("keep", "nothing is there"),)
    title = f"everything of {aws.profile.prefix} in account {aws.account}, {aws.profile.region}"
    cost = "nothing, and nothing of it is billed from then on" if left else NOTHING
    if proceed(Plan(title=title, steps=steps, cost=cost), plan_only=plan, ask=bool(left), yes=yes):
        teardown.destroy(aws, say=say)
        teardown.prove_gone(aws)
        say(f"nothing of {aws.profile.prefix} is left in account {aws.account}, {aws.profile.region}:")
        say(f"asked for, by name and by tag: {', '.join(inventory.LOOKS)}")


def _base_stack(aws: Aws) -> stacks.Stack:
    profile = aws.profile
    parameters = {
        "Name": profile.name,
        "Stage": profile.stage,
        "RepositoryName": profile.repository,
        "OwnsRepository": str(profile.owns_repository).lower(),
        "RepositoryAccount": profile.repository_account or aws.account,
        "PullAccounts": ",".join(profile.pull_accounts),
        "TrainingNetwork": ",".join(_training_network(aws)),
    }
    return stacks.Stack(profile.base_stack, _with_literal_names(aws), parameters, adopts=True)


def _training_network(aws: Aws) -> list[str]:
    """The ARNs of what an interface of a training job is made from: the profile's subnets and security groups."""
    training = aws.profile.training
    if not training.subnets:
        return []
    subnets = [f"subnet/{name}" for name in training.subnets]
    groups = [f"security-group/{name}" for name in training.security_groups]
    place = f"arn:{aws.partition}:ec2:{aws.profile.region}:{aws.account}"
    return [f"{place}:{name}" for name in ("network-interface/*", *subnets, *groups)]


def _with_literal_names(aws: Aws) -> str:
    """The base template as a change set can adopt by it: resources whose names are functions are not looked for.

    CloudFormation's user guide, "Import AWS resources into a CloudFormation stack automatically".
    """
    template = stacks.read_template("base")
    for name, function in {
        f'BucketName: "{aws.bucket}"': 'BucketName: !Sub "${Name}-${Stage}-${AWS::AccountId}-${AWS::Region}"',
        f'RepositoryName: "{aws.profile.repository}"': "RepositoryName: !Ref RepositoryName",
    }.items():
        template = template.replace(function, name)
    return template
