"""Run by the interpreter of .venv-sdk: version 2 of SageMaker's SDK as its users call it, on real containers.

Standard input: {"folder", "port", "image", "training", "hyperparameters", "instances", "photos"?}. Everything lies in
files. Where `photos` names a folder, the model is deployed and asked for the first, and a batch transform asked for
all. The last line of standard output is JSON: {"artifact", "prediction"?, "transformed"?}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import boto3
from sagemaker.deserializers import JSONDeserializer  # type: ignore[import-not-found]  # lives in .venv-sdk
from sagemaker.estimator import Estimator  # type: ignore[import-not-found]
from sagemaker.local import LocalSession  # type: ignore[import-not-found]
from sagemaker.serializers import IdentitySerializer  # type: ignore[import-not-found]

ROLE = "arn:aws:iam::123456789012:role/kennel"


def main() -> None:
    order = json.load(sys.stdin)
    quiet = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
    session = LocalSession(boto3.Session(), sagemaker_config=quiet)
    session.config = {"local": {"container_root": order["folder"], "serving_port": order["port"]}}
    output = f"file://{order['folder']}/output"
    estimator = Estimator(
        image_uri=order["image"],
        role=ROLE,
        instance_count=order["instances"],
        instance_type="local",
        output_path=output,
        hyperparameters=order["hyperparameters"],
        sagemaker_session=session,
    )
    estimator.fit({"training": f"file://{order['training']}"})
    answer: dict[str, Any] = {"artifact": estimator.model_data}
    if "photos" in order:
        photos = Path(order["photos"])
        answer["prediction"] = _predict(estimator, sorted(photos.iterdir())[0].read_bytes())
        answer["transformed"] = _transform(estimator, photos, output=f"{output}/transformed")
    print(json.dumps(answer))


def _predict(estimator: Any, photo: bytes) -> Any:
    predictor = estimator.deploy(
        initial_instance_count=1,
        instance_type="local",
        serializer=IdentitySerializer("image/png"),
        deserializer=JSONDeserializer(),
    )
    try:
        return predictor.predict(photo)
    finally:
        predictor.delete_endpoint()


def _transform(estimator: Any, photos: Path, *, output: str) -> dict[str, Any]:
    transformer = estimator.transformer(1, "local", strategy="SingleRecord", output_path=output)
    transformer.transform(f"file://{photos}", content_type="image/png", logs=False)  # Its logs are CloudWatch's.
    found = Path(output.removeprefix("file://")).iterdir()
    return {path.name: json.loads(path.read_text()) for path in sorted(found)}


main()
