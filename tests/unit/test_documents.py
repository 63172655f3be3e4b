"""What the documents say exists: commands with their options, targets, settings, links, alarms, metrics."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
from botocore import xform_name
from typer.testing import CliRunner

from container.errors import ConfigError
from deploy.cli import app
from deploy.profile import Profile
from deploy.stacks import read_template
from docs import reference
from serve import openapi
from tests.aws import cloudformation
from tests.documents import NOTEBOOK, PAGES, ROOT, SHELL, Command, blocks, commands, prose
from train.config import TrainConfig, read_command_line
from train.import_weights import _OPTIONS as IMPORT_OPTIONS

COMMANDS = commands()
PROGRAMS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
IMAGES = ("kennel", "kennel:latest", "IMAGE")
DOCKER_VALUES = ("-v", "-p", "-e", "--name", "--shm-size", "--user")
DOCKER_FLAGS = ("--rm", "-d")
# Programs of the reader's machine, whose options are not ours to check.
OTHERS = (".", "curl", "cut", "ls", "mkdir", "printf", "sort", "unzip")
# Commands of the aws program that it adds to every operation, or to all output.
AWS_GLOBALS = {"cli-binary-format", "output", "query", "region"}


def check(command: Command) -> None:
    """Raise where the command names what does not exist."""
    program, *words = command.words
    if command.words[:3] == ("python", "-m", "deploy"):
        check_deploy(words[2:])
    elif program == "docker":
        check_docker(words)
    elif program == "kennel":
        check_program(words)
    elif program == "make":
        check_make(words)
    elif program == "aws":
        check_aws(words)
    elif program == "./build_and_push.sh":
        assert [word for word in words if word.startswith("-")] in ([], ["--dirty"], ["--help"]), words
        check_settings(command.settings, ROOT / "container/build.sh")
    elif program == "python":
        assert (ROOT / f"{words[1].replace('.', '/')}.py").exists(), words
    elif program.startswith(".venv"):
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), words
    else:
        assert program in OTHERS, program


def check_deploy(words: list[str]) -> None:
    """With --help a command line is read to its end, and an unknown option is an error all the same."""
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0, done.output


def check_docker(words: list[str]) -> None:
    if words[0] in ("stop", "logs", "image"):
        return
    assert words.pop(0) == "run"
    while words and words[0].startswith(("-", "…")):
        option = words.pop(0)
        assert option in (*DOCKER_VALUES, *DOCKER_FLAGS, "…"), option
        if option in DOCKER_VALUES:
            words.pop(0)
    if words:
        assert words.pop(0) in IMAGES
        check_program(words)


def check_program(words: list[str]) -> None:
    """A program of the image, with what it takes."""
    name, *arguments = words
    assert name in PROGRAMS, name
    if name in ("train", "doctor", "tune") and not {"--help", "--describe"} & set(arguments):
        given = read_command_line(arguments)
        if name == "tune":
            given.pop("trials", None)
        TrainConfig.from_hyperparameters({}, given)
    elif name == "import-weights":
        assert {key.replace("-", "_") for key in read_command_line(arguments)} <= set(IMPORT_OPTIONS)
    elif name == "serve":
        assert arguments == []


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) | {".venv-deploy/ready"}
    settings = [word for word in words if "=" in word]
    assert set(words) - set(settings) <= targets, words
    check_settings(settings, ROOT / "Makefile", ROOT / "container/build.sh")


def check_settings(settings: Any, *files: Path) -> None:
    text = "".join(file.read_text() for file in files)
    for setting in settings:
        assert re.search(rf"\b{setting.partition('=')[0]}\b", text), setting


def check_aws(words: list[str]) -> None:
    """`aws lambda invoke --function-name …`: an operation of AWS's own models, and its members."""
    session = botocore.session.get_session()
    model = session.get_service_model(words[0])
    operations = {xform_name(name, "-"): name for name in model.operation_names}
    shape = model.operation_model(operations[words[1]]).input_shape
    assert shape is not None
    options = {word.removeprefix("--") for word in words[2:] if word.startswith("--")}
    assert options <= {xform_name(name, "-") for name in shape.members} | AWS_GLOBALS, words


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_documented_command_exists(command: Command) -> None:
    check(command)


@pytest.mark.parametrize(
    "line",
    [
        "python -m deploy train --dataa x",
        "docker run kennel trian",
        "docker run --remove kennel train",
        "kennel train --epoch 3",
        "kennel import-weights --weight x",
        "make bensh",
        "make image PRETAINED=resnet50",
        "aws lambda invoke --function x",
        "python -m deploy.lambdazip",
        "kubectl get pods",
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises((AssertionError, ConfigError)):
        check(Command("test", tuple(line.split())))


def test_every_page_and_the_notebook_were_read() -> None:
    pages = {command.page for command in COMMANDS}
    assert {"README.md", "CONTRIBUTING.md", "aws.md", "operations.md", "upgrading.md", "walkthrough.md"} <= pages
    assert NOTEBOOK.name in pages


@pytest.mark.parametrize("block", [one for one in blocks() if one.language in SHELL], ids=lambda one: one.page)
def test_shell_blocks_can_be_parsed(block: Any) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("block", [one for one in blocks() if one.language == "toml"], ids=lambda one: one.page)
def test_settings_of_a_stage_are_known(block: Any, tmp_path: Path) -> None:
    file = tmp_path / "profiles.toml"
    file.write_text(f"{block.text}\n[dev]\n")
    Profile.load("dev", file)


def test_the_answer_in_the_readme_is_one_of_the_api() -> None:
    (block,) = [one for one in blocks() if one.page == "README.md" and one.language == "json"]
    components = openapi.document(multi_model=False)["components"]
    jsonschema.validate(json.loads(block.text), {"$ref": "#/components/schemas/One", "components": components})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file), target


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_environment_variables_that_documents_name_are_read_somewhere() -> None:
    named = {name for page in PAGES for name in re.findall(r"\b(?:KENNEL|SAGEMAKER)_[A-Z_]*[A-Z]\b", page.read_text())}
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    code = [name for name in listed.split("\0") if name.endswith((".py", ".sh", "Dockerfile")) and "docs/" not in name]
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in code)
    assert named >= {"SAGEMAKER_BASE_DIR"}
    assert {name for name in named if name not in text and name.lower() not in text} == set()


def test_the_reference_is_what_the_code_says() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "write it anew: make docs"


def test_every_alarm_is_explained() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    values = {"Stage": "STAGE", "CodeKey": "x.zip", "ModelDataUrl": "s3://x/y", "EndpointRoleArn": "", "Bucket": ""}
    found = cloudformation.resources(read_template("app"), {**values, "ImageUri": "x"})
    alarms = {properties["AlarmName"]: properties for properties in found.values() if "AlarmName" in properties}
    assert len(alarms) == read_template("app").count("AWS::CloudWatch::Alarm\n")
    rows = re.findall(r"^\| `(kennel-STAGE-[a-z0-9-]+)` \| (.+?) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert sorted(name for name, *_ in rows) == sorted(alarms)
    for name, rings_when, *_ in rows:
        if points := alarms[name].get("DatapointsToAlarm"):
            assert f"in {points} of {alarms[name]['EvaluationPeriods']} minutes" in rings_when, name


def test_every_metric_of_serving_is_explained() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    code = "".join(path.read_text() for path in (ROOT / "serve").glob("*.py"))
    names = set(re.findall(r'"(kennel_[a-z_]+)"', code))
    assert len(names) >= 8
    assert {name for name in names if not re.search(rf"`{name}(_total)?[`{{]", page)} == set()


def test_log_groups_of_the_page_are_those_of_the_template() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    assert "`/aws/lambda/kennel-STAGE-classify`" in page
    assert 'LogGroupName: !Sub "/aws/lambda/${Name}-${Stage}-classify"' in read_template("app")


def test_every_line_of_the_contract_is_kept_by_a_test_or_says_by_what() -> None:
    part, others = "", {}
    for line in (ROOT / "docs/contract.md").read_text().splitlines():
        if line.startswith("## "):
            part = line[3:5].lower()
        elif found := re.match(r"\| (\d+) \|.*\|(.*)\|$", line):
            others[part, int(found[1])] = found[2].strip()
    named = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        for area, first, last in re.findall(r"def test_(a\d)_(\d+)_(?:to_(\d+)_)?", file.read_text(encoding="utf-8")):
            named |= {(area, number) for number in range(int(first), int(last or first) + 1)}
    assert [number for _, number in others] == [*range(1, 87)]
    assert named <= set(others)
    assert {line for line, other in others.items() if not other} <= named
    for name in re.findall(r"`(tests/[\w/.]+)`", " ".join(others.values())):
        assert (ROOT / name).is_file()


@pytest.mark.parametrize("package", ["train", "serve", "deploy"])
def test_a_packages_guide_names_every_module_of_it(package: str) -> None:
    guide = set(re.findall(r"`(\w+)`", (ROOT / package / "__init__.py").read_text()))
    modules = {file.stem for file in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}
    assert modules - guide == set()
