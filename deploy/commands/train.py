"""`train`, `tune` and `ec2 train`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy import datasets, doctor, ec2, images, jobs, quotas, training, weights
from deploy.aws import Aws
from deploy.commands import watch
from deploy.commands.common import Context, PlanOnly, aws_of, proceed, say
from deploy.commands.data import dataset_name, push_folder
from deploy.commands.watch import Follow
from deploy.datasets import DataSet
from deploy.plan import Plan, Step
from deploy.pricing import ceiling_words, estimate_words, load_prices
from deploy.profile import Training
from deploy.training import Job

Data = Annotated[str, typer.Option(help="Data set that `data push` has put there, or a folder, which is pushed then.")]
Image = Annotated[str, typer.Option(help="Tag in ECR, or a digest URI as build_and_push.sh prints it.")]
Name = Annotated[str, typer.Option(help="The job's name; by default from the clock.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A hyperparameter; repeatable.")]
InstanceType = Annotated[str | None, typer.Option(help="Instead of the profile's.")]
Instances = Annotated[int | None, typer.Option(help="How many, instead of the profile's.")]
Spot = Annotated[bool | None, typer.Option("--spot/--no-spot", help="Instead of the profile's.")]
Hours = Annotated[float | None, typer.Option(help="The job is ended after this, instead of the profile's.")]
Channels = Annotated[
    list[str] | None,
    typer.Option("--channel", metavar="NAME=URI", help="A further channel, e.g. pretrained=s3://…; repeatable."),
]
Resume = Annotated[str, typer.Option("--continue", metavar="JOB", help="Go on from this job's checkpoints.")]

ec2_app = typer.Typer(no_args_is_help=True, help="`ec2 train`: the same training on an EC2 instance that ends itself.")


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
    channel: Channels = None,
    resume: Resume = "",
    follow: Follow = False,
    plan: PlanOnly = False,
) -> None:
    """Start a training job on SageMaker: one instance or several, on spot or not."""
    aws = aws_of(context)
    found = _data_set(aws, data)
    settings = _settings(aws, instance_type=instance_type, instances=instances, spot=spot, max_hours=hours)
    job = _job(
        aws, found, settings, name=name, image=image, channels=channel, pairs=set_, warm=warm_minutes, resume=resume
    )
    request = training.training_request(job, role_arn=aws.role_arn("training"), profile=aws.profile)
    shown = _sagemaker_plan(aws, job, found, request)
    _push(aws, found, plan_only=plan)
    if proceed(shown, plan_only=plan):
        aws.call_with_new_role("sagemaker", "create_training_job", **request)
        _started(context, job.name, follow=follow)


def tune(
    context: Context,
    data: Data,
    image: Image = "latest",
    name: Name = "",
    set_: Set = None,
    instance_type: InstanceType = None,
    instances: Instances = None,
    spot: Spot = None,
    hours: Hours = None,
    trials: Annotated[int, typer.Option(help="How many trainings.")] = 10,
    parallel: Annotated[int, typer.Option(help="How many at a time; a Bayesian search learns from ended ones.")] = 2,
    strategy: Annotated[str, typer.Option(help=", ".join(training.STRATEGIES))] = "Bayesian",
    channel: Channels = None,
    description: Annotated[Path | None, typer.Option(help="What `train --describe` printed in the image.")] = None,
    follow: Follow = False,
    plan: PlanOnly = False,
) -> None:
    """Start a tuning job over the ranges that the image itself ships."""
    aws = aws_of(context)
    found = _data_set(aws, data)
    settings = _settings(aws, instance_type=instance_type, instances=instances, spot=spot, max_hours=hours)
    name = name or training.new_name(aws.profile, what="tune")
    job = _job(aws, found, settings, name=name, image=image, channels=channel, pairs=set_)
    request = training.tuning_request(
        job,
        role_arn=aws.role_arn("training"),
        profile=aws.profile,
        description=images.description(job.image, file=description),
        trials=trials,
        parallel=parallel,
        strategy=strategy,
    )
    shown = _sagemaker_plan(aws, job, found, request, trials=trials, at_a_time=parallel)
    _push(aws, found, plan_only=plan)
    if proceed(shown, plan_only=plan):
        aws.call_with_new_role("sagemaker", "create_hyper_parameter_tuning_job", **request)
        _started(context, job.name, follow=follow)


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
    channel: Channels = None,
    resume: Resume = "",
    follow: Follow = False,
    plan: PlanOnly = False,
) -> None:
    """Launch an instance that trains, saves the model as SageMaker would, and ends itself."""
    aws = aws_of(context)
    found = _data_set(aws, data)
    settings = _settings(aws, instance_type=instance_type, instances=1, spot=spot, max_hours=hours)
    name = name or training.new_name(aws.profile, what="ec2")
    job = _job(aws, found, settings, name=name, image=image, channels=channel, pairs=set_, resume=resume)
    group = ec2.find_security_group(aws)
    request = ec2.launch_request(
        job,
        profile_name=f"{aws.profile.prefix}-ec2",
        security_group=group or "(to be made)",
        tags=aws.profile.tags,
        script=ec2.user_data(job, region=aws.profile.region, log_group=ec2.log_group(aws.profile)),
    )
    shown = _ec2_plan(aws, job, found, request, group)
    _push(aws, found, plan_only=plan)
    if proceed(shown, plan_only=plan):
        request["NetworkInterfaces"][0]["Groups"] = [group or ec2.make_security_group(aws)]
        launched = aws.call_with_new_role("ec2", "run_instances", **request)
        say(f"on instance {launched['Instances'][0]['InstanceId']}")
        _started(context, job.name, follow=follow)


def _started(context: Context, name: str, *, follow: bool) -> None:
    say(name)
    if follow:
        watch.logs(context, name, follow=True)
        watch.status(context, name)


def _settings(aws: Aws, **changes: Any) -> Training:
    """The profile's settings with what the command line gives."""
    given = {key: value for key, value in changes.items() if value is not None}
    return dataclasses.replace(aws.profile.training, **given)


def _data_set(aws: Aws, data: str) -> DataSet:
    """What to train on, by name or by folder. Nothing is sent yet: what is cheap to check is checked first."""
    doctor.require_credentials(aws)
    folder = Path(data).expanduser()
    if "/" not in data and not folder.is_dir():
        return datasets.in_bucket(aws, dataset_name(data))
    return datasets.in_folder(aws, folder, dataset_name(folder.resolve().name))


def _job(
    aws: Aws,
    found: DataSet,
    settings: Training,
    *,
    name: str,
    image: str,
    channels: list[str] | None,
    pairs: list[str] | None,
    warm: int = 0,
    resume: str = "",
) -> Job:
    """The job, checked; its name is free."""
    job = Job(
        name=name or training.new_name(aws.profile),
        image=images.image_uri(aws, image),
        bucket=aws.bucket,
        channels={**found.channels, **training.read_channels(channels or [])},
        settings=settings,
        hyperparameters=training.check_hyperparameters(pairs or []),
        warm_minutes=warm,
        checkpoints_of=resume,
    )
    training.check_job(job)
    jobs.require_free_name(aws, job.name)
    return job


def _push(aws: Aws, found: DataSet, *, plan_only: bool) -> None:
    if found.folder:
        push_folder(aws, found.folder, dataset_name(found.folder.resolve().name), plan_only=plan_only)


def _sagemaker_plan(
    aws: Aws, job: Job, data: DataSet, request: dict[str, Any], *, trials: int = 1, at_a_time: int = 1
) -> Plan:
    settings = job.settings
    quota = quotas.require_sagemaker(
        aws, settings.instance_type, use="training job", count=settings.instances * at_a_time, spot=settings.spot
    )
    hosts = settings.instances * trials
    notes = [f"artifact: {job.artifact}" if trials == 1 else f"artifacts below {job.output}/", quota]
    if job.warm_minutes:
        notes.append(f"after it, warm instances are billed for up to {job.warm_minutes} minutes: `stop` ends them")
    what = f"{'training' if trials == 1 else f'{trials} trainings, {at_a_time} at a time,'} {job.name} of {job.image}"
    return Plan(
        title="on SageMaker",
        steps=(Step("run", what, request),),
        cost=f"{'' if trials == 1 else 'each '}{_estimate(job, data)}; "
        + ceiling_words(settings.instance_type, hours=settings.max_hours, instances=hosts, spot=settings.spot),
        notes=(*notes, *weights.require(aws, job, offline=settings.isolated), load_prices().caveat),
    )


def _ec2_plan(aws: Aws, job: Job, data: DataSet, request: dict[str, Any], group: str | None) -> Plan:
    settings = job.settings
    quota = quotas.require_ec2(aws, ec2.instance_type(settings.instance_type), spot=settings.spot)
    ceiling = ceiling_words(
        settings.instance_type, hours=settings.max_hours, instances=1, spot=settings.spot, sagemaker=False
    )
    steps = [] if group else [Step("create", f"security group {ec2.group_name(aws)}, which lets nothing in")]
    steps.append(Step("run", f"instance {job.name}: {request['InstanceType']}, {job.image}", request))
    return Plan(
        title="on EC2",
        steps=tuple(steps),
        cost=f"{_estimate(job, data, sagemaker=False)}; {ceiling}",
        notes=(f"artifact: {job.artifact}", quota, *weights.require(aws, job, offline=True), load_prices().caveat),
    )


def _estimate(job: Job, data: DataSet, *, sagemaker: bool = True) -> str:
    settings = job.settings
    return estimate_words(
        settings.instance_type,
        photos=data.photos,
        epochs=training.epochs_of(job.hyperparameters),
        instances=settings.instances,
        spot=settings.spot,
        sagemaker=sagemaker,
    )
