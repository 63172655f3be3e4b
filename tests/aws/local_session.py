"""Run by the interpreter of .venv-sdk3: SageMaker's own client plays the service, with real containers.

Standard input: {"folder", "port", "training"?, "model"?, "photo"?}, whose dicts are those that boto3 would send.
The last line of standard output is JSON: what training and the endpoint answered.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from typing import Any

import boto3
from sagemaker.core.local import LocalSession  # type: ignore[import-not-found]  # lives in .venv-sdk3

PATIENCE_S = 120


def main() -> None:
    order = json.load(sys.stdin)
    quiet = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
    session = LocalSession(boto3.Session(), sagemaker_config=quiet)
    session.config = {"local": {"container_root": order["folder"], "serving_port": order["port"]}}
    answer: dict[str, Any] = {}
    if "training" in order:
        answer["training"] = _train(session, order["training"])
    if "model" in order:
        answer["endpoint"] = _serve(session, order["model"], base64.b64decode(order["photo"]))
    print(json.dumps(answer))


def _train(session: Any, request: dict[str, Any]) -> dict[str, str]:
    session.sagemaker_client.create_training_job(**request)
    job = session.sagemaker_client.describe_training_job(TrainingJobName=request["TrainingJobName"])
    return {"state": job["TrainingJobStatus"], "artifact": job["ModelArtifacts"]["S3ModelArtifacts"]}


def _serve(session: Any, model: dict[str, Any], photo: bytes) -> dict[str, Any]:
    client = session.sagemaker_client
    client.create_model(ModelName="m", PrimaryContainer=model["PrimaryContainer"])
    client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=model["ProductionVariants"])
    client.create_endpoint(EndpointName="kennel-dev", EndpointConfigName="c")
    try:
        runtime = session.sagemaker_runtime_client
        runtime.config = session.config
        runtime.serving_port = session.config["local"]["serving_port"]
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = runtime.invoke_endpoint(photo, "kennel-dev", "application/x-image", "application/json")
            body = answer["Body"].read()
            if answer["Body"].status == 200 or time.monotonic() > deadline:
                return {"status": answer["Body"].status, "body": json.loads(body)}
            time.sleep(1)
    finally:
        client.delete_endpoint(EndpointName="kennel-dev")


main()
