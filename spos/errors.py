"""The exceptions that users meet, and the one place where a command turns them into an exit status.

Imports nothing of the package.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn


class SposError(ValueError):
    """Something the user can mend; the message says what, where, what was expected, what to do."""


class ArchitectureError(SposError):
    """An architecture, or a file holding one, does not fit its search space."""


class ConstraintError(SposError):
    """A bound on a cost is malformed or cannot be met in this search space."""


class DataError(SposError):
    """A data set, a split file or an image is missing, malformed or unreadable."""


class CheckpointError(SposError):
    """A checkpoint or weight file is missing, damaged, unsafe or belongs to another run."""


class ConfigError(SposError):
    """A flag, a run folder or an experiment configuration is wrong or asks too much."""


class SearchError(SposError):
    """A search cannot be started, continued or finished."""


def is_out_of_memory(problem: Exception) -> bool:
    """Whether an allocation of torch's or DALI's failed; not all of these have a type of their own.

    Sources: `torch.OutOfMemoryError` and its allocator of a CPU; CUDA's and DALI's messages.
    """
    text = str(problem).lower()
    return any(each in text for each in ("out of memory", "can't allocate memory", "bad_alloc"))


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's ``main`` and exit: a `SposError` becomes one line and exit status 2."""
    # Pillow's of an image that it decodes all the same, without the name; larger ones it refuses.
    warnings.filterwarnings("ignore", message=r"Image size .* exceeds limit of .* pixels")
    try:
        status = main()
    except SposError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status or 0)
