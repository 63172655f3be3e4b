"""A program: IAM policies by name on standard input, parliament's findings by name as JSON.

A process of its own, because parliament asks setuptools for its files (setuptools no longer ships what it asks) and
leaves them open, which is an error in the tests' own process.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.resources import files
from types import ModuleType
from typing import Any

stand_in: Any = ModuleType("pkg_resources")
stand_in.resource_filename = lambda package, name: str(files(package) / name)
sys.modules["pkg_resources"] = stand_in
parliament: Any = import_module("parliament")

policies = json.load(sys.stdin)
findings = {
    name: [str(found) for found in parliament.analyze_policy_string(json.dumps(policy)).findings]
    for name, policy in policies.items()
}
print(json.dumps(findings))
