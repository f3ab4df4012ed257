"""What `import spos` offers, what its errors become on the command line, what comes with it."""

import argparse
import ast
import importlib
import inspect
import os
import re
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

import spos
from spos import errors
from spos.training.flags import add_data_flags

ROOT = Path(__file__).resolve().parent.parent


def type_checking_names() -> dict[str, str]:
    """Public name -> module, as type checkers are told."""
    tree = ast.parse((ROOT / "spos" / "__init__.py").read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


# --- public names ------------------------------------------------------------------------------


def test_public_names_are_sorted_and_the_same_for_people_and_type_checkers():
    assert sorted(spos.__all__) == spos.__all__ == dir(spos)
    assert type_checking_names() == spos._HOME
    assert set(spos._HOME) == set(spos.__all__)


@pytest.mark.parametrize("name", spos.__all__)
def test_public_name_resolves_and_is_documented(name):
    value = getattr(spos, name)
    assert value.__module__ == spos._HOME[name]
    assert value is getattr(importlib.import_module(spos._HOME[name]), name)
    assert len(inspect.getdoc(value) or "") > 20


def test_readme_names_every_public_name():
    code = " ".join(re.findall(r"```.*?```|`[^`]+`", (ROOT / "README.md").read_text(), re.DOTALL))
    assert [name for name in spos.__all__ if not re.search(rf"\b{name}\b", code)] == []


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'spos' has no attribute 'Mutator'"):
        _ = spos.Mutator  # type: ignore[attr-defined]
    assert not hasattr(spos, "Mutator")


def test_nni_is_told_to_leave_lightning_alone():
    program = "import spos, os; print(os.environ['NNI_FRAMEWORK'])"
    environment = {key: value for key, value in os.environ.items() if key != "NNI_FRAMEWORK"}
    for given, seen in ((None, "none"), ("pytorch", "pytorch")):
        extra = {"NNI_FRAMEWORK": given} if given else {}
        command = [sys.executable, "-c", program]
        assert subprocess.check_output(command, env={**environment, **extra}, text=True) == (
            f"{seen}\n"
        )


# --- errors and exit status ----------------------------------------------------------------------

ERRORS = [value for value in vars(errors).values() if inspect.isclass(value)]


def test_every_error_is_ours_and_a_value_error():
    ours = [each for each in ERRORS if each.__module__ == "spos.errors"]
    assert len(ours) == 7
    assert all(issubclass(each, errors.SposError) for each in ours)
    assert issubclass(errors.SposError, ValueError)


@pytest.mark.parametrize(("status", "code"), [(None, 0), (0, 0), (3, 3)])
def test_command_ends_with_its_status(status, code):
    with pytest.raises(SystemExit) as caught:
        errors.run_main(lambda: status)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("problem", "code", "message"),
    [
        (errors.DataError("data: no images in it"), 2, "error: data: no images in it\n"),
        (errors.SposError("x.json: half a file"), 2, "error: x.json: half a file\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
    ids=["DataError", "SposError", "KeyboardInterrupt"],
)
def test_user_error_is_one_line_and_a_status(capsys, problem, code, message):
    def main() -> int:
        raise problem

    with pytest.raises(SystemExit) as caught:
        errors.run_main(main)
    assert caught.value.code == code
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (OSError(28, "No space", "run/cost.json"), "run/cost.json: No space; make room and repeat"),
        (PermissionError(13, "Permission denied", "data/train"), "data/train: Permission denied"),
    ],
    ids=["full", "closed"],
)
def test_what_the_disk_refuses_is_one_line_with_its_file(capsys, problem, message):
    def main() -> int:
        raise problem

    with pytest.raises(SystemExit) as caught:
        errors.run_main(main)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1


@pytest.mark.parametrize("defect", [KeyError("defect"), FileNotFoundError(2, "No such", "file")])
def test_defect_of_ours_keeps_its_traceback(defect):
    def main() -> int:
        raise defect

    with pytest.raises(type(defect)):
        errors.run_main(main)


def run_in_shell(main: str, shell: str) -> subprocess.CompletedProcess:
    """Run the Python expression ``main`` as a command, ``$RUN``, in a line of bash."""
    program = f"import os, sys; from spos.errors import *; run_main(lambda: {main})"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    environment["RUN"] = f"{sys.executable} -c '{program}'"
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(
        ["bash", "-c", f'eval "$RUN {shell}"'], env=environment, cwd=ROOT, capture_output=True
    )


def test_stream_that_is_closed_is_no_file_of_ours():
    handle = "(sys.stderr.isatty(), sys.stdout.isatty(), os.open(os.devnull, 0))[2]"
    for closed in ("2>&-", ">&-", "<&- >&- 2>&-"):
        done = run_in_shell(handle, closed)
        assert (done.returncode, done.stdout, done.stderr) == (3, b"", b"")


def test_error_is_no_output_where_standard_error_is_closed():
    done = run_in_shell('(_ for _ in "").throw(SposError("x"))', "2>&-")
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("main", ["print(1)", "(print(1), sys.exit(0))"], ids=["result", "help"])
def test_reader_that_is_gone_ends_a_command_in_silence(main):
    done = run_in_shell(main, "| (exec <&-; sleep 0.5); exit \\${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (141, b"")


def test_output_to_a_full_disk_is_one_line():
    done = run_in_shell("print(1)", "> /dev/full")
    assert done.returncode == 2
    assert done.stderr == b"error: No space left on device; make room and repeat the command\n"


def test_name_that_is_not_utf8_is_printed_as_it_is():
    assert run_in_shell('print("caf\\udce9")', "").stdout == b"caf\xe9\n"


# --- what is shipped -----------------------------------------------------------------------------


def test_version_of_the_change_log_is_the_version_of_the_package():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert latest and latest[1] == version[1]


def test_type_hints_are_shipped():
    assert (ROOT / "spos" / "py.typed").exists()
    assert "py.typed" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    "use",
    [
        lambda sock: sock.connect(("192.0.2.1", 9)),
        lambda _: socket.getaddrinfo("example.invalid", 9),
        lambda sock: sock.bind(("0.0.0.0", 0)),
        lambda sock: sock.bind(("", 0)),
    ],
)
def test_tests_cannot_use_a_network(use):
    with socket.socket() as sock, pytest.raises(RuntimeError, match="loopback only"):
        use(sock)


def test_large_image_that_pillow_decodes_is_no_warning(recwarn):
    def main() -> None:
        text = "Image size (100000000 pixels) exceeds limit of 89478485 pixels, could be ..."
        warnings.warn(text, Image.DecompressionBombWarning, stacklevel=1)
        raise errors.DataError("done")

    with pytest.raises(SystemExit):
        errors.run_main(main)
    assert not recwarn.list


@pytest.mark.parametrize("given", ["~/x", "~", "a/~/b", "~nobody-of-that-name/x"])
def test_home_folder_in_a_flag_is_meant(monkeypatch, given):
    monkeypatch.setenv("HOME", "/some/where")
    parser = argparse.ArgumentParser()
    add_data_flags(parser)
    found = parser.parse_args([f"--data-dir={given}"]).data_dir
    assert str(found) == given.replace("~", "/some/where", given in ("~/x", "~"))
