"""The OpenAPI document against the running server, by schemathesis."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import PHOTO, running_server, write_artifact

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def schemathesis(url: str, folder: Path, *, examples: int) -> None:
    """Check what the document at `url` describes, with generated requests."""
    program = Path(sys.executable).parent / "schemathesis"
    done = subprocess.run(
        [str(program), "run", url, "--checks", CHECKS, "--max-examples", str(examples), "--seed", "1", "--no-color"],
        capture_output=True,
        text=True,
        timeout=250,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("mode", ["single", "multi"])
def test_what_the_document_says_is_what_is_served(tmp_path: Path, mode: str) -> None:
    write_artifact(tmp_path / "model")
    write_artifact(tmp_path / "models" / "one")
    with running_server(tmp_path, SAGEMAKER_MULTI_MODEL=str(mode == "multi")) as server:
        schemathesis(f"http://127.0.0.1:{server.port}/openapi.json", tmp_path, examples=10)
        assert server.ping() == 200


def test_real_answers_fit_the_document(tmp_path: Path) -> None:
    """Generated bodies are never photos: the answers of 200 are checked here."""
    import jsonschema

    write_artifact(tmp_path / "model", confidence_threshold=0.5)
    with running_server(tmp_path) as server:
        document = server.call("GET", "/openapi.json").json
        instances = {"instances": [{"b64": base64.b64encode(PHOTO).decode()}, {"b64": "bm8="}]}
        one, many = server.classify(), server.classify(json.dumps(instances).encode(), "application/json")
        for answer, name in ((one, "One"), (many, "Many"), (server.classify(b"no"), "Error")):
            schema = {**document, "$ref": f"#/components/schemas/{name}"}
            jsonschema.Draft4Validator(schema).validate(answer.json)
