"""The usual way to serve a ResNet on multi-model-server: torch in eager mode, torchvision's transforms, one file."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torchvision import transforms

TRANSFORM = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)

_model: torch.nn.Module | None = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str] | None:
    """MMS's entry; the network's name and threads come from the environment."""
    global _model
    if data is None:
        torch.set_num_threads(int(os.environ["BENCHMARK_THREADS"]))
        _model = getattr(torchvision.models, os.environ["BENCHMARK_ARCHITECTURE"])(num_classes=133).eval()
        weights = Path(context.system_properties["model_dir"]) / "model.pth"
        _model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return None
    assert _model is not None
    photo = Image.open(io.BytesIO(data[0]["body"])).convert("RGB")
    with torch.inference_mode():
        logits = _model(TRANSFORM(photo)[None])
    best = torch.topk(torch.softmax(logits[0], 0), 5)
    context.set_response_content_type(0, "application/json")
    return [json.dumps({"indices": best.indices.tolist(), "probabilities": best.values.tolist()})]
