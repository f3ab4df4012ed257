"""Single Path One-Shot neural architecture search (Guo et al., ECCV 2020) on NNI.

Importing this package is cheap: torch is loaded only when a name that needs it is used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("NNI_FRAMEWORK", "none")  # before any nni import: its NAS without Lightning

if TYPE_CHECKING:
    from spos.architecture import (
        Architecture,
        SearchSpec,
        load_architecture,
        save_architecture,
    )
    from spos.cost.constraints import Constraint
    from spos.cost.table import CostTable
    from spos.errors import SposError
    from spos.subnet import load_subnet
    from spos.supernet import Supernet

_HOME = {
    "Architecture": "spos.architecture",
    "Constraint": "spos.cost.constraints",
    "CostTable": "spos.cost.table",
    "SearchSpec": "spos.architecture",
    "SposError": "spos.errors",
    "Supernet": "spos.supernet",
    "load_architecture": "spos.architecture",
    "load_subnet": "spos.subnet",
    "save_architecture": "spos.architecture",
}

__all__ = [
    "Architecture",
    "Constraint",
    "CostTable",
    "SearchSpec",
    "SposError",
    "Supernet",
    "load_architecture",
    "load_subnet",
    "save_architecture",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spos' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
