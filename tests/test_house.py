"""The rules of the house, read off the source: nothing that runs files, nothing too long."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(ROOT.glob("*.py"))
PACKAGE = sorted((ROOT / "spos").rglob("*.py"))
SHIPPED = [*PACKAGE, *SCRIPTS, *sorted((ROOT / "benchmarks").rglob("*.py"))]
MAX_FILE = 500
MAX_FUNCTION = 60
MAX_SCRIPT_MAIN = 80
VAGUE = {"utils", "util", "common", "core", "base", "manager", "helpers", "misc"}

UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
# `module.name`, called or imported, that runs what a file or a string says.
BANNED = {
    "builtins.eval",
    "builtins.exec",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "torch.jit.load",
    "torch.hub.load",
    "nni.load",
}


def module_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), module_name(path))


# --- nothing that runs what a file says ------------------------------------------------------


def find_dangers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # The exception that torch raises may be caught by name; it unpickles nothing.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name for name in names if name != "pickle.UnpicklingError"]
        elif isinstance(node, ast.Call):
            names = list(find_dangerous_call(node))
        else:
            continue
        for name in names:
            if name in BANNED or name.split(".")[0] in UNPICKLERS or name.endswith("(...)"):
                yield f"line {node.lineno}: {name}"


def find_dangerous_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    yield f"builtins.{name}" if name in ("eval", "exec") else name
    if name.endswith("torch.load") and not is_constant(given.get("weights_only"), True):
        yield "torch.load without weights_only=True (...)"
    for keyword in ("shell", "allow_pickle"):
        if keyword in given and not is_constant(given[keyword], False):
            yield f"{name} with {keyword} (...)"


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SHIPPED, ids=module_name)
def test_no_source_runs_what_a_file_says(path):
    assert list(find_dangers(parse(path))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, dill as d",
        "def late():\n    from cloudpickle import loads",
        "from pickle import loads, UnpicklingError",
        "eval(text)",
        "exec(compile(text, 'x', 'exec'))",
        "os.system('ls')",
        "from os import system",
        "subprocess.run('ls', shell=True)",
        "subprocess.Popen(command, shell=flag)",
        "yaml.load(file)",
        "yaml.load(file, Loader=yaml.SafeLoader)",
        "from yaml import unsafe_load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_rule_finds_each_danger(source):
    assert len(list(find_dangers(ast.parse(source)))) == 1


def test_rule_lets_harmless_code_pass():
    source = """
from pickle import UnpicklingError
network.eval()
torch.load(path, map_location="cpu", weights_only=True)
yaml.safe_load(file)
subprocess.run(["ls"], shell=False)
json.load(file)
re.compile("x")
"""
    assert list(find_dangers(ast.parse(source))) == []


# --- nothing of the workplace or of a registry -----------------------------------------------

TEXTS = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".js", ".cfg", ""}
FOREIGN = re.compile(
    r"\bpy(?:pi|thonhosted)\.|\bnpmjs\.|\banaconda\.org|download\.pytorch\.|"
    r"(?:index|registry)[-_]url|find-links|trusted-host|"
    r"/(?:root|home|Users)/\w|/work/\w",
    re.IGNORECASE,
)


def find_texts() -> list[Path]:
    """What a clone holds, as far as it is text; ignored folders and data are left out."""
    skipped = {"data", "runs", "build", "node_modules"}
    found = [ROOT / ".ci" / "run", ROOT / "data" / "README.md"]
    for top in sorted(ROOT.iterdir()):
        if top.is_dir() and top.name[0] != "." and top.name not in skipped | {"spos.egg-info"}:
            found += sorted(top.rglob("*"))
        elif top.is_file() and top.name != ".git":  # a file where this is a linked work tree
            found.append(top)
    return [
        path
        for path in found
        if path.is_file() and path.suffix in TEXTS and "__pycache__" not in path.parts
    ]


def test_no_text_names_a_registry_or_somebodys_folder():
    found = [
        f"{module_name(path)}: {line.strip()}"
        for path in find_texts()
        if path != Path(__file__).resolve()
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if FOREIGN.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    ["https://py" + "pi.org/simple", "--extra-" + "index-url x", "/ro" + "ot/x", "/wo" + "rk/y"],
)
def test_rule_finds_registries_and_folders(text):
    assert FOREIGN.search(text)


# --- sizes and names -------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=module_name)
def test_no_file_or_function_is_too_long(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE, "split it"
    too_long = []
    for node in ast.walk(parse(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            in_script = path in SCRIPTS and node.name == "main"
            if lines > (MAX_SCRIPT_MAIN if in_script else MAX_FUNCTION):
                too_long.append(f"{node.name}: {lines} lines")
    assert too_long == []


def test_no_module_has_a_vague_name():
    names = [module_name(path) for path in SHIPPED]
    assert [name for name in names if VAGUE & set(re.split(r"[/._]", name))] == []


@pytest.mark.parametrize("path", SHIPPED, ids=module_name)
def test_every_module_says_what_it_holds(path):
    docstring = ast.get_docstring(parse(path))
    assert docstring and len(docstring.splitlines()[0]) > 15


@pytest.mark.parametrize("path", PACKAGE, ids=module_name)
def test_modules_that_import_the_package_say_what_they_import(path):
    tree = parse(path)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    if path.name.startswith("__") or not any("spos" in str(node.module) for node in imports):
        return
    assert re.search(r"\b[Ii]mports? ", ast.get_docstring(tree) or "")


def find_heirs(trees: list[ast.Module]) -> list[str]:
    """Classes that inherit from a class among ``trees`` that is no exception."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    own = {node.name for node in classes if not node.name.endswith("Error")}
    return [
        f"{node.name}({ast.unparse(base)})"
        for node in classes
        for base in node.bases
        if ast.unparse(base).split("[")[0].split(".")[-1] in own
    ]


def test_no_class_inherits_from_one_of_ours():
    assert find_heirs([parse(path) for path in SHIPPED]) == []
    source = "class A(nn.Module): ...\nclass B(blocks.A): ...\nclass BError(ValueError): ..."
    assert find_heirs([ast.parse(source)]) == ["B(blocks.A)"]


def test_no_work_is_left_for_later():
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XXX|HACK)\b")
    found = [module_name(path) for path in SHIPPED if marks.search(path.read_text())]
    assert found == []


@pytest.mark.parametrize("path", [*PACKAGE, *SCRIPTS], ids=module_name)
def test_paths_of_flags_may_begin_with_the_home_folder(path):
    assert "type=Path" not in path.read_text(), "use spos.flag_values.to_path"
