"""The same training on an EC2 instance: what is launched, and the script that it runs."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

from deploy.aws import Aws
from deploy.errors import DeployError
from deploy.pricing import has_gpu
from deploy.profile import Profile
from deploy.training import Job

# Amazon Linux 2023 with docker, and with NVIDIA's driver and container toolkit; AWS keeps these parameters up to date.
_IMAGES = {
    False: "resolve:ssm:/aws/service/ecs/optimized-ami/amazon-linux-2023/recommended/image_id",
    True: "resolve:ssm:/aws/service/ecs/optimized-ami/amazon-linux-2023/gpu/recommended/image_id",
}
_SCRIPT = Path(__file__).with_name("user_data.sh")
# RunInstances refuses more than 16 KB of user data.
_USER_DATA_LIMIT = 16_384


def instance_type(name: str) -> str:
    """`ml.g4dn.xlarge` is called `g4dn.xlarge` by EC2."""
    return name.removeprefix("ml.")


def user_data(
    job: Job, *, region: str, log_group: str, work: str = "/var/lib/kennel", log_driver: str = "awslogs"
) -> str:
    """The instance's script with this job's values before it. `log_driver` is docker's."""
    options = {
        "awslogs": [
            f"--log-opt=awslogs-group={log_group}",
            f"--log-opt=awslogs-stream={job.name}/algo-1",
            f"--log-opt=awslogs-region={region}",
        ],
    }.get(log_driver, [])
    gpus = ["--gpus=all"] if has_gpu(job.settings.instance_type) else []
    values = {
        "JOB": job.name,
        "IMAGE": job.image,
        "REGION": region,
        "LOG_GROUP": log_group,
        "OUTPUT": f"{job.output}/{job.name}/output",
        "CHECKPOINTS": job.checkpoints,
        "HYPERPARAMETERS": json.dumps(dict(job.hyperparameters)),
        "MAX_MINUTES": str(math.ceil(job.settings.max_hours * 60)),
        "SHM_SIZE": "2g",
        "WORK": work,
    }
    head = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    channels = " ".join(f"[{shlex.quote(name)}]={shlex.quote(uri)}" for name, uri in job.channels.items())
    head.append(f"declare -A CHANNELS=({channels})")
    head.append(f"DOCKER_OPTIONS=({shlex.join([f'--log-driver={log_driver}', *options, *gpus])})")
    script = "\n".join(["#!/bin/bash", *head, _SCRIPT.read_text()])
    if len(script.encode()) > _USER_DATA_LIMIT:
        raise DeployError(f"the instance's script has {len(script)} bytes; EC2 takes 16,384: fewer --set values")
    return script


def launch_request(
    job: Job, *, profile_name: str, security_group: str, tags: dict[str, str], script: str
) -> dict[str, Any]:
    """RunInstances: no key pair, no open port, IMDSv2 out of the container's reach, ended by its own shutdown."""
    settings = job.settings
    labels = [{"Key": key, "Value": value} for key, value in {**tags, "Name": job.name, "job": job.name}.items()]
    network: dict[str, Any] = {"DeviceIndex": 0, "Groups": [security_group], "AssociatePublicIpAddress": True}
    if settings.subnets:
        network |= {"SubnetId": settings.subnets[0], "AssociatePublicIpAddress": False}
    request: dict[str, Any] = {
        "ImageId": _IMAGES[has_gpu(settings.instance_type)],
        "InstanceType": instance_type(settings.instance_type),
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": job.name,
        "IamInstanceProfile": {"Name": profile_name},
        "InstanceInitiatedShutdownBehavior": "terminate",
        # One hop ends at the host: a container behind docker's bridge gets no credentials.
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled"},
        "NetworkInterfaces": [network],
        "BlockDeviceMappings": [
            {
                "DeviceName": "/dev/xvda",
                "Ebs": {
                    "VolumeSize": max(settings.volume_gb, 50),
                    "VolumeType": "gp3",
                    "Encrypted": True,
                    "DeleteOnTermination": True,
                },
            }
        ],
        "TagSpecifications": [{"ResourceType": kind, "Tags": labels} for kind in ("instance", "volume")],
        "UserData": script,
    }
    if settings.spot:
        request["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "one-time"}}
    return request


def security_groups(aws: Aws, *, vpc: str = "") -> list[str]:
    """Our groups: one in each network in which an instance was ever launched, or the one of this network."""
    filters = [{"Name": "group-name", "Values": [group_name(aws)]}]
    if vpc:
        filters.append({"Name": "vpc-id", "Values": [vpc]})
    found = aws.pages("ec2", "describe_security_groups", "SecurityGroups", Filters=filters)
    return [group["GroupId"] for group in found]


def find_security_group(aws: Aws) -> str | None:
    """Ours in the network that instances are launched into; RunInstances refuses one of another."""
    return next(iter(security_groups(aws, vpc=_network(aws))), None)


def make_security_group(aws: Aws) -> str:
    """A group that lets nothing in: a new one has no ingress rule."""
    tags = [{"ResourceType": "security-group", "Tags": aws.profile.tag_list()}]
    made = aws.call(
        "ec2",
        "create_security_group",
        GroupName=group_name(aws),
        Description="Kennel training on EC2: nothing comes in",
        VpcId=_network(aws),
        TagSpecifications=tags,
    )
    return str(made["GroupId"])


def _network(aws: Aws) -> str:
    """The VPC of the profile's subnets, or the region's default one. Raises DeployError where there is neither."""
    if subnets := aws.profile.training.subnets:
        return str(aws.call("ec2", "describe_subnets", SubnetIds=[subnets[0]])["Subnets"][0]["VpcId"])
    default = [{"Name": "is-default", "Values": ["true"]}]
    if not (found := aws.call("ec2", "describe_vpcs", Filters=default)["Vpcs"]):
        raise DeployError(f"{aws.profile.region} has no default VPC: set training.subnets and training.security_groups")
    return str(found[0]["VpcId"])


def log_group(profile: Profile) -> str:
    """The base stack makes it (deploy/templates/base.yaml)."""
    return f"/{profile.name}/{profile.stage}/ec2"


def group_name(aws: Aws) -> str:
    return f"{aws.profile.prefix}-ec2"
