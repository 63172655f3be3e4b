"""Used by the Dockerfile alone: put one architecture's ImageNet weights into the image.

`python bake_weights.py FOLDER [ARCHITECTURE]` writes FOLDER/ARCHITECTURE.safetensors; without an architecture the
folder stays empty.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(folder: Path, architecture: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if architecture is None:
        return
    from safetensors.torch import save_file
    from torchvision.models import get_model_weights

    weights = get_model_weights(architecture).DEFAULT
    save_file(
        weights.get_state_dict(check_hash=True, progress=False, weights_only=True),
        folder / f"{architecture}.safetensors",
    )
    print(f"baked {weights} into {folder}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
