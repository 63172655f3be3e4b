"""`train`, `tune` and `ec2 train`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy import datasets, doctor, ec2, images, quotas, training
from deploy.aws import Aws
from deploy.commands import watch
from deploy.commands.common import Context, PlanOnly, aws_of, proceed, say
from deploy.commands.data import dataset_name, push_folder
from deploy.commands.watch import Follow
from deploy.plan import Plan, Step
from deploy.pricing import ceiling_words, load_prices

Data = Annotated[str, typer.Option(help="Data set that `data push` has put there, or a folder: it is pushed first.")]
Image = Annotated[str, typer.Option(help="Tag in ECR, or a digest URI as build_and_push.sh prints it.")]
Name = Annotated[str, typer.Option(help="The job's name; by default from the clock.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A hyperparameter; repeatable.")]
InstanceType = Annotated[str | None, typer.Option(help="Instead of the profile's.")]
Instances = Annotated[int | None, typer.Option(help="How many, instead of the profile's.")]
Spot = Annotated[bool | None, typer.Option("--spot/--no-spot", help="Instead of the profile's.")]
Hours = Annotated[float | None, typer.Option(help="The job is ended after this, instead of the profile's.")]
Weights = Annotated[str, typer.Option(help="s3:// folder of pretrained weights, as the channel 'pretrained'.")]
Resume = Annotated[str, typer.Option("--continue", metavar="JOB", help="Go on from this job's checkpoints.")]

ec2_app = typer.Typer(no_args_is_help=True, help="The same training on an EC2 instance.")


@ec2_app.callback()
def group() -> None:
    """The same training on an EC2 instance."""


def train(
    context: Context,
    data: Data,
    image: Image = "latest",
    name: Name = "",
    set_: Set = None,
    instance_type: InstanceType = None,
    instances: Instances = None,
    spot: Spot = None,
    hours: Hours = None,
    warm_minutes: Annotated[int, typer.Option(help="Keep the instances this long for the next job.")] = 0,
    weights: Weights = "",
    resume: Resume = "",
    follow: Follow = False,
    plan: PlanOnly = False,
) -> None:
    """Start a training job on SageMaker."""
    aws = aws_of(context)
    changes = {"instance_type": instance_type, "instances": instances, "spot": spot, "max_hours": hours}
    job = _job(
        aws,
        data=data,
        image=image,
        name=name,
        pairs=set_,
        weights=weights,
        resume=resume,
        changes=changes,
        plan_only=plan,
    )
    job = dataclasses.replace(job, warm_minutes=warm_minutes)
    training.check_job(job)
    request = training.training_request(job, role_arn=aws.role_arn("training"), profile=aws.profile)
    if proceed(_sagemaker_plan(aws, job, request, trials=1), plan_only=plan):
        aws.call_with_new_role("sagemaker", "create_training_job", **request)
        _started(context, job.name, follow=follow)


def tune(
    context: Context,
    data: Data,
    image: Image = "latest",
    name: Name = "",
    set_: Set = None,
    instance_type: InstanceType = None,
    spot: Spot = None,
    hours: Hours = None,
    trials: Annotated[int, typer.Option(help="How many trainings.")] = 10,
    parallel: Annotated[int, typer.Option(help="How many at a time; a Bayesian search learns from ended ones.")] = 2,
    strategy: Annotated[str, typer.Option(help=", ".join(training.STRATEGIES))] = "Bayesian",
    weights: Weights = "",
    description: Annotated[Path | None, typer.Option(help="What `train --describe` printed in the image.")] = None,
    plan: PlanOnly = False,
) -> None:
    """Start a tuning job over the ranges that the image itself ships."""
    aws = aws_of(context)
    changes = {"instance_type": instance_type, "spot": spot, "max_hours": hours}
    name = name or training.new_name(aws.profile, what="tune")
    job = _job(
        aws, data=data, image=image, name=name, pairs=set_, weights=weights, resume="", changes=changes, plan_only=plan
    )
    training.check_job(job)
    request = training.tuning_request(
        job,
        role_arn=aws.role_arn("training"),
        profile=aws.profile,
        description=images.description(job.image, file=description),
        trials=trials,
        parallel=parallel,
        strategy=strategy,
    )
    if proceed(_sagemaker_plan(aws, job, request, trials=trials, at_a_time=parallel), plan_only=plan):
        aws.call_with_new_role("sagemaker", "create_hyper_parameter_tuning_job", **request)
        say(job.name)


@ec2_app.command("train")
def ec2_train(
    context: Context,
    data: Data,
    image: Image = "latest",
    name: Name = "",
    set_: Set = None,
    instance_type: InstanceType = None,
    spot: Spot = None,
    hours: Hours = None,
    weights: Weights = "",
    resume: Resume = "",
    follow: Follow = False,
    plan: PlanOnly = False,
) -> None:
    """Launch an instance that trains, saves the model as SageMaker would, and ends itself."""
    aws = aws_of(context)
    name = name or training.new_name(aws.profile, what="ec2")
    changes = {"instance_type": instance_type, "instances": 1, "spot": spot, "max_hours": hours}
    job = _job(
        aws,
        data=data,
        image=image,
        name=name,
        pairs=set_,
        weights=weights,
        resume=resume,
        changes=changes,
        plan_only=plan,
    )
    training.check_job(job)
    group = ec2.find_security_group(aws)
    script = ec2.user_data(job, region=aws.profile.region, log_group=f"/{aws.profile.name}/{aws.profile.stage}/ec2")
    request = ec2.launch_request(
        job,
        profile_name=f"{aws.profile.prefix}-ec2",
        security_group=group or "(to be made)",
        tags=aws.profile.tags,
        script=script,
    )
    if not proceed(_ec2_plan(aws, job, request, group), plan_only=plan):
        return
    request["NetworkInterfaces"][0]["Groups"] = [group or ec2.make_security_group(aws)]
    launched = aws.call_with_new_role("ec2", "run_instances", **request)
    say(f"on instance {launched['Instances'][0]['InstanceId']}")
    _started(context, job.name, follow=follow)


def _started(context: Context, name: str, *, follow: bool) -> None:
    say(name)
    if follow:
        watch.logs(context, name, follow=True)
        watch.status(context, name)


def _job(
    aws: Aws,
    *,
    data: str,
    image: str,
    name: str,
    pairs: list[str] | None,
    weights: str,
    resume: str,
    changes: dict[str, Any],
    plan_only: bool,
) -> training.Job:
    doctor.require_credentials(aws)
    given = {key: value for key, value in changes.items() if value is not None}
    channels = _channels(aws, data, plan_only=plan_only)
    if weights:
        channels["pretrained"] = weights
    return training.Job(
        name=name or training.new_name(aws.profile),
        image=images.image_uri(aws, image),
        bucket=aws.bucket,
        channels=channels,
        settings=dataclasses.replace(aws.profile.training, **given),
        hyperparameters=training.check_hyperparameters(pairs or []),
        checkpoints_of=resume,
    )


def _channels(aws: Aws, data: str, *, plan_only: bool) -> dict[str, str]:
    folder = Path(data).expanduser()
    if "/" not in data and not folder.is_dir():
        return datasets.channels(aws, dataset_name(data))
    return push_folder(aws, folder, dataset_name(folder.resolve().name), plan_only=plan_only)


def _sagemaker_plan(aws: Aws, job: training.Job, request: dict[str, Any], *, trials: int, at_a_time: int = 1) -> Plan:
    settings = job.settings
    quota = quotas.require_sagemaker(
        aws, settings.instance_type, use="training job", count=settings.instances * at_a_time, spot=settings.spot
    )
    cost = ceiling_words(
        settings.instance_type, hours=settings.max_hours, instances=settings.instances * trials, spot=settings.spot
    )
    notes = (
        f"artifact: {job.artifact}" if trials == 1 else f"artifacts below {job.output}",
        quota,
        load_prices().caveat,
    )
    what = f"{'training' if trials == 1 else f'{trials} trainings, {at_a_time} at a time,'} {job.name} of {job.image}"
    return Plan("on SageMaker", (Step("run", what, cost, request),), notes)


def _ec2_plan(aws: Aws, job: training.Job, request: dict[str, Any], group: str | None) -> Plan:
    settings = job.settings
    quota = quotas.require_ec2(aws, ec2.instance_type(settings.instance_type), spot=settings.spot)
    cost = ceiling_words(
        settings.instance_type, hours=settings.max_hours, instances=1, spot=settings.spot, sagemaker=False
    )
    steps = [] if group else [Step("create", f"security group {ec2.group_name(aws)}, which lets nothing in")]
    steps.append(Step("run", f"instance {job.name}: {request['InstanceType']}, {job.image}", cost, request))
    return Plan("on EC2", tuple(steps), (f"artifact: {job.artifact}", quota, load_prices().caveat))
