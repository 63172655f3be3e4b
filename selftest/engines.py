"""Programs that `selftest` starts: one engine each runs the shipped network, and says as JSON what came of it.

`python -m selftest.engines onnxruntime|torch FOLDER`. Processes of their own, since an engine may take more memory
than there is, or use instructions that a CPU does not know: either ends the process without a word.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from container.artifact import NETWORK
from container.preprocessing import Float32Array

# The network that ships with the image (selftest.network), and its answers on the machine that built the image:
# `photos` (8, 3, 32, 32) and `logits` (8, 3).
FOLDER: Final = Path(__file__).parent / "model"
ANSWERS: Final = "answers.safetensors"


def run_onnxruntime(folder: Path) -> dict[str, Any]:
    """Serving's own engine on a CPU; the worst difference is as a share of max(1, |logit|)."""
    from safetensors.numpy import load_file

    from serve.engine import LOGITS, OnnxEngine

    answers = load_file(folder / ANSWERS)
    (found,) = OnnxEngine(folder / NETWORK, threads=1).run(answers["photos"], [LOGITS])
    return {"worst": _worst(found, answers["logits"])}


def run_torch(folder: Path) -> dict[str, Any]:
    """Training's engine, on the CPU and on every GPU."""
    import torch
    from safetensors.torch import load_file

    from selftest import network

    answers = load_file(folder / ANSWERS)
    model = network.load(folder)
    wanted = answers["logits"].numpy()
    answer: dict[str, Any] = {
        "worst": _worst(network.logits(model, answers["photos"]).numpy(), wanted),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cuda_build": torch.version.cuda,
        "gpus": [],
    }
    try:
        for index in range(torch.cuda.device_count()):
            found = network.logits(model.to(f"cuda:{index}"), answers["photos"]).numpy()
            answer["gpus"].append({"name": torch.cuda.get_device_name(index), "worst": _worst(found, wanted)})
        if not answer["gpus"]:
            torch.zeros(1, device="cuda")  # Says why.
    except (RuntimeError, AssertionError) as error:
        answer["cuda_error"] = str(error).splitlines()[0]
    return answer


def _worst(found: Float32Array, wanted: Float32Array) -> float:
    return float((np.abs(found - wanted) / np.maximum(1, np.abs(wanted))).max())


if __name__ == "__main__":
    run = {"onnxruntime": run_onnxruntime, "torch": run_torch}[sys.argv[1]]
    print(json.dumps(run(Path(sys.argv[2]))))
