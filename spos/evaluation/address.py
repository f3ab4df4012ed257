"""Where the evaluator of a run folder is found, and the lock that lets there be only one.

Imports `spos.errors`, `spos.evaluation.settings`, `spos.files`; never torch.

Below the run folder, ``evaluator/KEY.lock`` is held by the evaluator as long as it lives, by the
kernel: no process that died is taken for one that runs. ``KEY.json`` names its socket, which lies
in a folder of its own under the system's temporary one, because a socket's path holds 107 bytes at
most and run folders may be deep, or on a network. ``KEY.log`` is what it printed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from spos.errors import SposError
from spos.evaluation.settings import EvaluationSettings
from spos.files import read_json, write_json

FOLDER = "evaluator"
PROTOCOL = 1
MAX_RECORD_BYTES = 4096
MAX_SOCKET_PATH = 100  # bytes; Linux takes 107, macOS 103
_PREFIX = "spos-evaluator-"


@dataclass(frozen=True)
class Address:
    """The files by which one evaluator is found.

    Attributes:
        folder: ``evaluator`` in the run folder.
        key: what tells the evaluators of a run folder apart.
    """

    folder: Path
    key: str

    @property
    def lock(self) -> Path:
        """Locked by the evaluator while it lives."""
        return self.folder / f"{self.key}.lock"

    @property
    def record(self) -> Path:
        """Names the process and its socket."""
        return self.folder / f"{self.key}.json"

    @property
    def log(self) -> Path:
        """What evaluators of this key have printed."""
        return self.folder / f"{self.key}.log"


def find_address(settings: EvaluationSettings) -> Address:
    """The address of the evaluator for these settings on this machine.

    Evaluators differ in whatever a result, or who may use it, depends on: run, installation, host,
    user, device (NNI gives each trial a GPU by ``CUDA_VISIBLE_DEVICES``), threads, images, space.
    """
    run_dir = settings.run_dir.resolve()  # a copy of a run folder holds the original's record
    identity = [
        PROTOCOL,
        str(run_dir),
        sys.executable,
        socket.gethostname(),
        os.getuid(),
        os.environ.get("CUDA_VISIBLE_DEVICES"),
        settings.device,
        settings.threads or os.environ.get("OMP_NUM_THREADS"),
        str(settings.data_dir.resolve()) if settings.data_dir else None,
        settings.space,
    ]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    return Address(run_dir / FOLDER, key)


def take_lock(address: Address) -> int | None:
    """Become the one who may be, or start, this evaluator.

    The lock belongs to the open file: it is passed on to a process that inherits it, and is free
    again when the last one that has it open is gone.

    Returns:
        The file descriptor that holds the lock; None if somebody else does.

    Raises:
        OSError: if the run folder cannot be written.
    """
    address.folder.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(address.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:
        os.close(lock)
        raise
    return lock


def open_socket(address: Address) -> socket.socket:
    """Listen, and leave word of it; for the process that has the lock."""
    close_socket(address)  # of one that was killed
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=_short_folder())  # for its owner only
    path = os.path.join(folder, "socket")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(128)
        record = {"version": PROTOCOL, "pid": os.getpid(), "socket": path}
        write_json(address.record, record)
    except BaseException:
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return listener


def close_socket(address: Address) -> None:
    """Remove the socket and the word of it; for the process that has the lock."""
    path = read_socket_path(address)
    if path is not None:
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)
    address.record.unlink(missing_ok=True)


def read_socket_path(address: Address) -> str | None:
    """Path of the socket that the evaluator has opened; None if there is none of ours.

    What the record says is believed only if its socket lies in such a folder as `open_socket`
    makes, and both belong to this user: nobody else can have put it there.
    """
    try:
        record = read_json(address.record, max_bytes=MAX_RECORD_BYTES)
    except SposError:
        return None
    path = record.get("socket") if isinstance(record, dict) else None
    if not isinstance(path, str) or "\0" in path:
        return None
    folder, name = os.path.split(path)
    if name != "socket" or not os.path.basename(folder).startswith(_PREFIX):
        return None
    mode = _own_mode(folder)
    is_private = stat.S_ISDIR(mode) and stat.S_IMODE(mode) == 0o700
    return path if is_private and stat.S_ISSOCK(_own_mode(path)) else None


def _own_mode(path: str) -> int:
    """Type and permissions of a file of this user; 0 if there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_mode if status.st_uid == os.getuid() else 0


def _short_folder() -> str:
    """A folder for temporary files whose name leaves room for a socket's."""
    given = tempfile.gettempdir()
    length = len(os.fsencode(os.path.join(os.path.abspath(given), _PREFIX + "12345678", "socket")))
    return given if length <= MAX_SOCKET_PATH else "/tmp"
