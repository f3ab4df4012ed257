"""A network as a folder to hand over: weights, a description for programs, a card for people.

Imports `spos.errors`, `spos.files` and `spos.subnet`, which reads the folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spos.errors import ConfigError
from spos.files import parse_json, temporary_beside, write_json, write_text, writing
from spos.subnet import FOLDER_CONFIG, FOLDER_FORMAT, FOLDER_WEIGHTS, save_subnet

CARD = "README.md"


def write_folder(path: Path | str, network: Any, *, metrics: Mapping[str, float]) -> None:
    """Write ``model.safetensors``, ``config.json`` and a model card, all of them or none.

    Args:
        path: a folder that is not there yet, or is empty.
        network: of `spos.load_subnet`, with known preprocessing.
        metrics: what is known of its quality and cost, by the names of architecture files.

    Raises:
        ConfigError: if the folder holds something or cannot be written.
    """
    path = Path(path)
    check_folder_free(path)
    config = {
        "format": FOLDER_FORMAT,
        "architecture": parse_json(network.arch.to_json(), source="the architecture"),
        "preprocessing": network.preprocessing.describe(network.image_size),
        "classes": None if network.classes is None else list(network.classes),
        "metrics": dict(metrics),
    }
    temporary = temporary_beside(path)
    try:
        with writing(path):
            temporary.mkdir(parents=True)
            save_subnet(
                temporary / FOLDER_WEIGHTS, network, network.arch,
                preprocessing=network.preprocessing.name, classes=network.classes,
            )  # fmt: skip
            write_json(temporary / FOLDER_CONFIG, config)
            write_text(temporary / CARD, _card(path.name, config))
            os.replace(temporary, path)  # an empty folder gives way
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)


def check_folder_free(path: Path) -> None:
    """Raise a ConfigError if ``path`` is a file, or `.`, or a folder that holds something."""
    if not path.name:  # `.`, which cannot give way to the folder that is written beside it
        raise ConfigError(f"--hub-dir {path}: name a new folder, such as my-net")
    with writing(path):
        is_free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    if not is_free:
        raise ConfigError(f"{path}: is there already; remove it or name another folder")


def _card(name: str, config: Mapping[str, Any]) -> str:
    arch, prepared, classes = config["architecture"], config["preprocessing"], config["classes"]
    size, metrics = prepared["image_size"], config["metrics"]
    listed = "not known" if classes is None else ", ".join(classes[:20])
    if classes is not None and len(classes) > 20:
        listed += f", ... ({len(classes)}, all in `{FOLDER_CONFIG}`)"
    rows = "\n".join(f"| {key} | {_shown(value)} |" for key, value in metrics.items())
    choices = ", ".join(f"{label} {chosen}" for label, chosen in arch["choices"].items())
    return f"""---
library_name: spos
pipeline_tag: image-classification
---

# {name}

An image classifier found by Single Path One-Shot architecture search in the space
`{arch["space"]}`.

| metric | value |
| --- | --- |
{rows or "| none known | |"}

- **Classes**: {listed}
- **Input**: {size} x {size} pixels; the shorter side resized to {prepared["resize_shorter_side"]}
  ({prepared["interpolation"]}), centre crop, {prepared["channels"]}, times
  {prepared["scale"]:.6g}, minus {prepared["mean"]}, divided by {prepared["std"]}
- **Architecture**: {choices}

```python
import spos

network = spos.load_subnet("{name}")
logits = network(network.preprocess("IMAGE.jpg"))  # of a batch (1, 3, {size}, {size})
```

```bash
python -m spos predict {name} IMAGE.jpg
```
"""


def _shown(value: float) -> str:
    return f"{value:,d}" if isinstance(value, int) else f"{value:.4f}"
