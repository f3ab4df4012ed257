"""Files are whole or absent whatever happens while they are written, and JSON is read strictly."""

import contextlib
import hashlib
import json
import math
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spos.errors import SearchError, SposError
from spos.files import (
    MAX_JSON_DEPTH,
    append_journal,
    digest,
    lock_file,
    open_atomic,
    parse_json,
    read_bytes,
    read_journal,
    read_json,
    write_journal,
    write_json,
    write_text,
)

KILLS = int(os.environ.get("SPOS_KILLS", "20"))

WRITE_FOR_EVER = """
import itertools, sys
from spos.files import write_json
for number in itertools.count():
    write_json(sys.argv[1], {"number": number, "filling": [number] * 20_000})
    if number == 0:
        print("ready", flush=True)
"""

APPEND = """
import sys
from spos.files import append_journal
path, writer, count, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for number in range(count):
    append_journal(path, {"writer": writer, "number": number, "filling": "x" * size})
"""

LOCK_FOR_EVER = """
import sys, time
from spos.files import lock_file
with lock_file(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(600)
"""


def start(program: str, *arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, **options)


def kill_once_ready(child: subprocess.Popen, delay: float) -> None:
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == b"ready\n"
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def full_disk(*, after: int) -> Iterator[None]:
    """Fail every write beyond ``after`` bytes of a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- atomic writes ---------------------------------------------------------------------------


def test_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "state.json"
    delays = random.Random(0)
    for _ in range(KILLS):
        child = start(WRITE_FOR_EVER, path, stdout=subprocess.PIPE)
        kill_once_ready(child, delay=delays.uniform(0, 0.05))
        value = read_json(path)
        assert value["filling"] == [value["number"]] * 20_000
    files = [each for each in tmp_path.iterdir() if not each.name.endswith(".tmp")]
    assert files == [path]


def test_exception_while_writing_keeps_the_file_before(tmp_path):
    path = tmp_path / "state.json"
    write_text(path, "before")
    with pytest.raises(KeyboardInterrupt), open_atomic(path) as file:
        file.write(b"half of what")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_keeps_the_file_before(tmp_path):
    path = tmp_path / "state.json"
    write_text(path, "before")
    with full_disk(after=50_000), pytest.raises(OSError) as caught:
        write_text(path, "x" * 100_000)
    assert caught.value.filename == str(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_cannot_be_made_is_named_and_not_its_temporary_one(tmp_path):
    path = tmp_path / "gone" / "state.json"
    with pytest.raises(FileNotFoundError) as caught:
        write_text(path, "x")
    assert caught.value.filename == str(path)


def test_text_keeps_bytes_of_names_that_are_not_utf8(tmp_path):
    write_text(tmp_path / "card.md", "caf\udce9, é")
    assert (tmp_path / "card.md").read_bytes() == b"caf\xe9, \xc3\xa9"


def test_refused_value_touches_nothing(tmp_path):
    path = tmp_path / "state.json"
    write_json(path, {"top1": 0.5})
    before = path.read_bytes()
    for value in (math.nan, -math.inf, {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_target_that_is_a_folder_leaves_no_temporary_file(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(target, "text")
    assert list(tmp_path.iterdir()) == [target]


def test_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "state.json"
    write_text(path, "a long text that was there before")
    write_text(str(path), "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"


def test_file_appears_only_at_the_end(tmp_path):
    path = tmp_path / "weights.bin"
    with open_atomic(path) as file:
        file.write(b"abc")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"abc"


@pytest.mark.parametrize("size", [0, 1, 3 * 2**20 + 1])
def test_digest_is_sha256(tmp_path, size):
    data = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(data)
    assert digest(tmp_path / "file") == hashlib.sha256(data).hexdigest()


# --- journal ---------------------------------------------------------------------------------


def test_journal_returns_entries_in_order(tmp_path):
    path = tmp_path / "search.jsonl"
    assert read_journal(path) == []
    entries = [{"arch": "a", "top1": 0.5}, {"note": "two\nlines, \u2028 and é"}, None, [1, 2]]
    for entry in entries:
        append_journal(path, entry)
    assert read_journal(path) == entries
    write_journal(path, entries[:2])
    assert read_journal(path) == entries[:2]


@pytest.mark.parametrize("rest", [b"{", b'{"number": 2}', b"\xff\x00", b"x" * 10_000])
def test_journal_drops_only_a_line_cut_by_a_crash(tmp_path, rest):
    path = tmp_path / "search.jsonl"
    append_journal(path, 1)
    with open(path, "ab") as file:
        file.write(rest)
    assert read_journal(path) == [1]
    append_journal(path, 2)
    assert path.read_bytes() == b"1\n2\n"


def test_journal_of_nothing_but_a_cut_line_starts_anew(tmp_path):
    path = tmp_path / "search.jsonl"
    path.write_bytes(b'{"number": ' + b"1" * 9000)
    assert read_journal(path) == []
    append_journal(path, 2)
    assert read_journal(path) == [2]


def test_two_processes_append_without_loss(tmp_path):
    path = tmp_path / "search.jsonl"
    # Lines of 50 bytes, and lines longer than any buffer that a single write might be split at.
    children = [start(APPEND, path, "a", 100, 10), start(APPEND, path, "b", 30, 200_000)]
    assert [child.wait() for child in children] == [0, 0]
    entries = read_journal(path)
    for writer, count in (("a", 100), ("b", 30)):
        numbers = [entry["number"] for entry in entries if entry["writer"] == writer]
        assert numbers == list(range(count))
    assert len(entries) == 130


def test_append_waits_for_another_writer(tmp_path):
    path = tmp_path / "search.jsonl"
    with lock_file(path):
        path.write_bytes(b'{"half a line')  # of ours, which the other must not take for a crash
        child = start(APPEND, path, "other", 1, 1)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)
        path.write_bytes(b'{"half a line": "whole"}\n')
    assert child.wait() == 0
    assert len(read_journal(path)) == 2


@pytest.mark.parametrize("line", [b"", b"garbage", b"{", b"NaN", b"\xff\xfe", b"1 2"])
def test_journal_with_a_damaged_line_is_our_error(tmp_path, line):
    path = tmp_path / "search.jsonl"
    path.write_bytes(b'{"number": 1}\n' + line + b"\n3\n")
    with pytest.raises(SearchError, match="search.jsonl, line 2: not valid JSON"):
        read_journal(path, error=SearchError)


def test_journal_that_is_a_folder_is_our_error(tmp_path):
    with pytest.raises(SearchError, match="cannot be read"):
        read_journal(tmp_path, error=SearchError)


def test_refused_entry_leaves_the_journal_alone(tmp_path):
    path = tmp_path / "search.jsonl"
    append_journal(path, 1)
    with pytest.raises(ValueError):
        append_journal(path, {"top1": math.nan})
    assert path.read_bytes() == b"1\n"


def test_full_disk_costs_the_journal_no_earlier_entry(tmp_path):
    path = tmp_path / "search.jsonl"
    append_journal(path, 1)
    with full_disk(after=50_000), pytest.raises(OSError) as caught:
        append_journal(path, "x" * 100_000)
    assert caught.value.filename == str(path)
    assert path.stat().st_size > 2  # half of the line is there
    assert read_journal(path) == [1]
    append_journal(path, 2)
    assert read_journal(path) == [1, 2]


def test_lock_is_exclusive_and_dies_with_its_holder(tmp_path):
    path = tmp_path / "lock"
    child = start(LOCK_FOR_EVER, path, stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(BlockingIOError), lock_file(path, blocking=False):
            pass
        child.kill()
    with lock_file(path, blocking=False):
        pass


def test_forked_process_does_not_hold_the_lock(tmp_path):
    path = tmp_path / "lock"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with lock_file(path, blocking=False):
            if not (child := os.fork()):
                theirs.send(b"begun")
                theirs.recv(1)  # outlives the block
                os._exit(0)
            assert ours.recv(5) == b"begun"
            with pytest.raises(BlockingIOError), lock_file(path, blocking=False):
                pass
        with lock_file(path, blocking=False):
            ours.send(b".")
        os.waitpid(child, 0)


# --- strict JSON -----------------------------------------------------------------------------

REFUSED = {
    "nothing": "",
    "repeated key": '{"a": 1, "b": {"c": 1, "c": 1}}',
    "NaN": '{"top1": NaN}',
    "infinity": "[-Infinity]",
    "number out of range": '{"top1": 1e999}',
    "5,000-digit number": "1" * 5000,
    "100-digit number": "-" + "1" * 100,
    "nesting of 100,000 lists": "[" * 100_000,
    "nesting of 100,000 objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "nesting beyond our limit": "[" * (MAX_JSON_DEPTH + 1) + "]" * (MAX_JSON_DEPTH + 1),
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "not UTF-8": b'{"a": "\xff"}',
    "NUL": b"\x00",
    "two values": "{} {}",
    "single quotes": "{'a': 1}",
    "Python's True": "True",
    "comment": "{} // a comment",
    "trailing comma": "[1,]",
    "line break in text": '"a\nb"',
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_json_refuses(text):
    with pytest.raises(SearchError, match=r"^the source: not valid JSON \(.+\)$") as caught:
        parse_json(text, source="the source", error=SearchError)
    assert len(str(caught.value)) < 300


def test_json_refuses_a_repeated_key_of_a_large_object_at_once():
    text = "{" + ",".join(f'"{number}":0' for number in range(100_000)) + ',"77777":0}'
    begin = time.monotonic()
    with pytest.raises(SposError, match="'77777' is given twice"):
        parse_json(text, source="large")
    assert time.monotonic() - begin < 5  # looking for it pair by pair took ten minutes


def test_json_keeps_types_apart():
    value = parse_json('[true, 1, 1.0, "1", null]', source="types")
    assert [type(each) for each in value] == [bool, int, float, str, type(None)]


def test_json_nests_up_to_the_limit():
    text = "[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH
    assert json.dumps(parse_json(text, source="deep")) == text


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**128), 2**128)  # the state of a random generator has 128 bits
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(JSON_VALUES)
def test_json_round_trips(value):
    assert parse_json(json.dumps(value), source="value") == value


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:01eE+-.truefalsnN\\u ', max_size=60))
def test_json_answers_any_bytes_with_a_value_or_our_error(text):
    try:
        parse_json(text, source="fuzz", error=SearchError)
    except SearchError as error:
        assert str(error).startswith("fuzz: ")


def test_reading_names_the_file_that_is_missing_or_too_large(tmp_path):
    path = tmp_path / "arch.json"
    with pytest.raises(SearchError, match=r"arch\.json: cannot be read \(No such file"):
        read_json(path, error=SearchError)
    with pytest.raises(SearchError, match="cannot be read"):
        read_json(tmp_path, error=SearchError)
    path.write_bytes(b"1234567890")
    assert read_bytes(path, max_bytes=10) == b"1234567890"
    with pytest.raises(SearchError, match=r"arch\.json: larger than 9 bytes"):
        read_json(path, error=SearchError, max_bytes=9)


def test_endless_file_is_refused():
    with pytest.raises(SposError, match="larger than"):
        read_bytes(Path("/dev/zero"), max_bytes=2**20)
