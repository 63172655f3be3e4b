"""A template as CloudFormation would read it with given parameters: conditions decided, references filled in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cfnlint.decode import decode_str  # type: ignore[import-untyped]

PSEUDO = {
    "AWS::AccountId": "123456789012",
    "AWS::Region": "eu-west-3",
    "AWS::Partition": "aws",
    "AWS::URLSuffix": "amazonaws.com",
}
_NOTHING = object()


def load(text: str) -> dict[str, Any]:
    """CloudFormation's YAML with its short forms (`!Ref`, `!Sub`, …) written out."""
    document, problems = decode_str(text)
    assert problems == []
    return dict(json.loads(json.dumps(document)))


def resources(text: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    """The properties of every resource that exists with these parameters, by logical name."""
    document = load(text)
    defaults = {name: entry["Default"] for name, entry in document["Parameters"].items() if "Default" in entry}
    reader = _Reader({**PSEUDO, **defaults, **parameters}, document.get("Conditions", {}))
    return {
        name: reader.filled(entry.get("Properties", {}))
        for name, entry in document["Resources"].items()
        if "Condition" not in entry or reader.holds(entry["Condition"])
    }


class _Reader:
    def __init__(self, values: Mapping[str, Any], conditions: Mapping[str, Any]) -> None:
        self.values, self.conditions = values, conditions

    def holds(self, name: str) -> bool:
        return self._true(self.conditions[name])

    def _true(self, node: Any) -> bool:
        ((kind, inner),) = node.items()
        if kind == "Condition":
            return self.holds(inner)
        if kind == "Fn::Equals":
            return str(self.filled(inner[0])) == str(self.filled(inner[1]))
        results = [self._true(one) for one in inner]
        return {"Fn::Not": lambda: not results[0], "Fn::And": lambda: all(results), "Fn::Or": lambda: any(results)}[
            kind
        ]()

    def filled(self, node: Any) -> Any:
        if isinstance(node, list):
            return [value for one in node if (value := self.filled(one)) is not _NOTHING]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            ((kind, inner),) = node.items()
            if kind in ("Ref", "Fn::GetAtt", "Fn::If", "Fn::Sub", "Fn::Join"):
                return self._function(kind, inner)
        return {key: value for key, one in node.items() if (value := self.filled(one)) is not _NOTHING}

    def _function(self, kind: str, inner: Any) -> Any:
        if kind == "Fn::If":
            return self.filled(inner[1] if self.holds(inner[0]) else inner[2])
        if kind == "Fn::GetAtt":
            return ".".join(inner)
        if kind == "Fn::Join":  # of a list that is a parameter, which is one text here
            return self.filled(inner[1]).replace(",", inner[0])
        if kind == "Ref":
            return _NOTHING if inner == "AWS::NoValue" else self.values.get(inner, inner)
        for name, value in self.values.items():
            inner = inner.replace(f"${{{name}}}", str(value))
        return inner
