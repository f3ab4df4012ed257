"""What the README says exists: its files, its commands and their flags."""

import os
import re
import shlex
import subprocess
import sys
from functools import cache

import pytest
from forked import ROOT

from spos.__main__ import COMMANDS

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def commands():
    for language, text in BLOCKS:
        if language == "bash":
            for line in text.splitlines():
                if words := shlex.split(line, comments=True):
                    yield words


@cache
def flags_of(*program):
    done = subprocess.run(
        [sys.executable, *program, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", done.stdout))


def test_layout_names_files_that_exist():
    (layout,) = (text for language, text in BLOCKS if language == "text" and "spos/" in text)
    for line in layout.splitlines():
        folder = ROOT / "spos" if line.startswith(" ") else ROOT
        names = re.split(r"\s{3,}", line.strip())[0]
        for name in names.split():
            assert (folder / name).exists(), f"the README's layout names {name}"


@pytest.mark.slow
def test_commands_exist_with_their_flags():
    seen = 0
    for words in commands():
        while "=" in words[0]:
            words = words[1:]
        if words[0] == "torchrun":
            words = ["python", *words[words.index(next(w for w in words if w.endswith(".py"))) :]]
        if words[0] != "python":
            assert words[0] in ("make", "nnictl", "pip"), words
            continue
        if words[1:3] == ["-m", "spos"]:
            assert words[3] in COMMANDS, words
            action = [words[4]] if words[3] in ("bench", "data", "search") else []
            known = flags_of("-m", "spos", words[3], *action)
        else:
            assert (ROOT / words[1]).exists(), words
            known = flags_of(words[1])
        given = {word.split("=")[0] for word in words if word.startswith("--")}
        assert given <= known, (words, given - known)
        seen += 1
    assert seen > 8
