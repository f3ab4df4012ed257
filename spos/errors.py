"""The exceptions that users meet, and the one place where a command turns them into an exit status.

Imports nothing of the package.
"""

from __future__ import annotations

import errno
import io
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


# What the disk refuses, as `OSError.errno` has it.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's ``main`` and exit: a `SposError` becomes one line and exit status 2.

    So does what the disk refuses: there is no room, or this user may not. Any other exception is a
    defect and keeps its traceback.
    """
    _open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="surrogateescape")
    # Pillow's of an image that it decodes all the same, without the name; larger ones it refuses.
    warnings.filterwarnings("ignore", message=r"Image size .* exceeds limit of .* pixels")
    try:
        try:
            status = main()
        except SystemExit as end:  # argparse's, after --help
            status = end.code
        sys.stdout.flush()
    except SposError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _drop_output()
        sys.exit(141)
    except OSError as problem:
        if problem.errno not in _FULL | _FORBIDDEN:
            raise
        if problem.filename is None:  # what is printed goes to a full disk
            _drop_output()
        print(f"error: {_describe_refusal(problem)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status or 0)


def _describe_refusal(problem: OSError) -> str:
    place = "" if problem.filename is None else f"{problem.filename}: "
    advice = "; make room and repeat the command" if problem.errno in _FULL else ""
    return f"{place}{problem.strerror}{advice}"


def _open_missing_streams() -> None:
    """Let what was closed, as by ``2>&-``, lead nowhere; else the next file would be taken for it.

    Without this, Python has None in the stream's place.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    sys.stdout = sys.stdout or open(1, "w")
    sys.stderr = sys.stderr or open(2, "w")


def _drop_output() -> None:
    """Let what was printed but cannot be written lead nowhere: Python tries again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
