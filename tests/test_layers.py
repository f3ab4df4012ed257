"""A module imports only from its own layer and those below it, never in a circle.

The search side never loads torch, and `import spos` loads nothing and touches nothing.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("supernet.py", "tester.py", "scratch.py")

# Layer of each module; a folder's layer holds for every module in it that has none of its own.
LAYERS = {
    "spos.errors": 0,
    "spos.files": 0,
    "spos.flag_values": 0,
    "spos.architecture": 1,
    "spos.cost.constraints": 2,
    "spos.cost.table": 2,
    "spos.cost.axis": 2,
    "spos.cost.grid": 2,
    "spos.cost.scores": 2,
    "spos.data": 2,
    "spos.search": 3,
    "spos.spaces": 3,
    "spos.training.samplers": 3,
    "spos.folding": 4,
    "spos.placement": 4,
    "spos.supernet": 4,
    "spos.cost": 4,
    "spos.training": 5,
    "spos.evaluation": 5,
    "spos.convert": 5,
    "spos.subnet": 5,
    "spos.search.tuner": 6,
    "spos.search.launch": 6,
    "spos.search.watch": 6,
    "spos.deploy": 6,
    "spos.report": 6,
    "spos.commands": 7,
    "spos.__main__": 8,
    **dict.fromkeys(SCRIPTS, 8),
}
# `spos/__init__.py` is left out: its re-exports are lazy (`test_package.py` sees to that).

TORCH_FREE = (
    "spos.errors",
    "spos.files",
    "spos.architecture",
    "spos.cost.constraints",
    "spos.cost.table",
    "spos.search",
    "spos.evaluation.client",
    "spos.evaluation.results",
    "spos.training.run_folder",
)


def layer_of(module: str) -> int:
    name = module
    while name and name not in LAYERS:
        name = name.rpartition(".")[0] if not name.endswith(".py") else ""
    assert name, (
        f"{module} has no layer: add it or its folder to LAYERS in {Path(__file__).name}, "
        "above everything that it imports"
    )
    return LAYERS[name]


def find_modules() -> dict[str, Path]:
    modules = {name: ROOT / name for name in SCRIPTS if (ROOT / name).exists()}
    for path in sorted((ROOT / "spos").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del modules["spos"]
    return modules


def find_imports(
    module: str, source: str, known: set[str], *, is_package: bool = False
) -> set[str]:
    """The modules among ``known`` that the source of ``module`` imports, anywhere in it."""
    folder = module if is_package else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder.split(".")[: len(folder.split(".")) + 1 - node.level]
            origin = ".".join([*above, *filter(None, [node.module])]) if node.level else node.module
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                names.add(inner if inner in known else origin)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names.update(each.value for each in node.args if isinstance(each, ast.Constant))
    return {name for name in names if isinstance(name, str) and name.split(".")[0] == "spos"}


MODULES = find_modules()
IMPORTS = {
    name: find_imports(name, path.read_text(), set(MODULES), is_package=path.name == "__init__.py")
    for name, path in MODULES.items()
}


def find_upward(imports: dict[str, set[str]]) -> list[str]:
    return [
        f"{module} (layer {layer_of(module)}) imports {other} (layer {layer_of(other)})"
        for module, others in imports.items()
        for other in sorted(others - {"spos"})
        if layer_of(other) > layer_of(module)
    ]


def find_circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules left when those that import none of the others are taken away again and again."""
    left = {module: set(others) for module, others in imports.items()}
    while True:
        free = {module for module, others in left.items() if not others & set(left)}
        if not free:
            return sorted(left)
        left = {module: others for module, others in left.items() if module not in free}


def test_every_module_has_a_layer():
    for module in MODULES:
        layer_of(module)


def test_no_module_imports_upward():
    assert find_upward(IMPORTS) == []


def test_no_module_imports_in_a_circle():
    assert find_circle(IMPORTS) == []


def test_no_module_imports_the_lazy_package():
    # A name taken from `spos` itself hides which module, and so which layer, it comes from.
    users = {module for module, others in IMPORTS.items() if "spos" in others}
    assert sorted(users - set(SCRIPTS)) == []


def test_imports_are_of_modules_that_exist():
    missing = {other for others in IMPORTS.values() for other in others} - set(MODULES) - {"spos"}
    assert sorted(missing) == []


def test_checks_find_each_offence():
    known = {"spos.files", "spos.search", "spos.search.tuner", "spos.training.loop"}
    sources = {
        "import spos.training.loop": "spos.training.loop",
        "def late():\n    from spos.search import tuner": "spos.search.tuner",
        "from spos.search.tuner import Tuner": "spos.search.tuner",
        "from .search import tuner as other": "spos.search.tuner",
        "from . import search": "spos.search",
        "from .search import Searcher": "spos.search",
        "importlib.import_module('spos.search.tuner')": "spos.search.tuner",
        "if TYPE_CHECKING:\n    from spos.search import Searcher": "spos.search",
    }
    for source, imported in sources.items():
        assert find_imports("spos.files", source, known) == {imported}
        assert find_upward({"spos.files": {imported}}) != []
    assert find_imports("spos.search", "from .tuner import T", known, is_package=True) == {
        "spos.search.tuner"
    }
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "d"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    with pytest.raises(AssertionError, match="spos.newcomer has no layer: add it"):
        layer_of("spos.newcomer")


# --- what an import loads ----------------------------------------------------------------------

LOAD = """
import importlib, json, sys
loaded = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded[name] = [heavy for heavy in ("torch", "nni", "numpy") if heavy in sys.modules]
print(json.dumps(loaded))
"""

COMMAND = """
import contextlib, sys
from spos.__main__ import main
with contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print([heavy for heavy in ("torch", "nni", "scipy") if heavy in sys.modules])
"""

WATCH = """
import os, sys
seen = []
def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.mkdir", "os.rename")):
        seen.append((event, repr(arguments)))
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        seen.append((event, repr(arguments)))
before = set(sys.modules)
sys.addaudithook(watch)
import spos
dir(spos)
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(seen, sorted(new - set(sys.stdlib_module_names)))
"""


def run_python(program: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_search_side_never_loads_torch():
    modules = [
        module for module in MODULES if module in TORCH_FREE or module.startswith("spos.search.")
    ]
    assert set(TORCH_FREE) <= set(modules)
    loaded = json.loads(run_python(LOAD, *modules))
    assert [module for module in modules if "torch" in loaded[module]] == []


@pytest.mark.parametrize(
    "words",
    [("search", "best", "tests/assets/0.1.0/search"), ("bench", "nasbench-macro", "--help"),
     ("summary", "--help"), ("zoo",)],
)  # fmt: skip
def test_commands_of_the_search_side_load_neither_torch_nor_scipy(words):
    # `spos.__main__` loads the modules of all commands, whichever is run.
    *_, loaded = run_python(COMMAND, *words).splitlines()
    assert loaded == "[]"


def test_files_and_architectures_need_the_standard_library_only():
    loaded = json.loads(run_python(LOAD, "spos.errors", "spos.files", "spos.architecture"))
    assert list(loaded.values()) == [[], [], []]


def test_trials_need_the_standard_library_only():
    loaded = json.loads(run_python(LOAD, "spos.search.trial", "spos.evaluation.client", "tester"))
    assert list(loaded.values()) == [[], [], []]


def test_import_loads_and_touches_nothing():
    assert run_python(WATCH) == "[] ['spos']\n"


def test_import_sees_what_it_should_not():
    # The watch above would notice each of these.
    for deed in ("open('/dev/null', 'w')", "__import__('socket').socket().bind(('', 0))"):
        assert run_python(WATCH.replace("dir(spos)", deed)).startswith("[(")
    assert "'numpy'" in run_python(WATCH.replace("dir(spos)", "import numpy"))
