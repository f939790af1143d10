"""The structure of the package: layers, cycles, sizes, names, and no effect on import.

A test that stops you is a question, not an answer: if the design has changed, change the tables below on purpose, with
the reason. What is checked is the source, parsed, except where a fresh interpreter is asked.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
PACKAGE = "QEfficient"
SIMULATOR = TOP / "qaic_simulator"

# From the lowest layer to the highest; a part is a folder or a file of the package, the longest name counts.
# A lower layer never imports a higher one.
DIRECTION: tuple[frozenset[str], ...] = (
    frozenset({"errors", "specs", "program", "progress", "publication", "artifacts", "old_place", "demo"}),
    frozenset({"operators"}),
    frozenset({"transformers", "graph", "devices"}),
    frozenset({"generation"}),
    frozenset({"transformers.models", "peft", "finetune", "verification", "legacy"}),
    frozenset({"serving", "cloud"}),
)
ISLANDS = ("transformers", "graph", "devices")
RECORDS = DIRECTION[0]
TORCH_FREE = ("devices", "generation")
TORCH_LIBRARIES = frozenset({"torch", "transformers", "onnxscript", "peft", "accelerate"})
TOKENIZER_USER = f"{PACKAGE}.generation.text"

FORBIDDEN_NAMES = frozenset({"utils", "common", "helpers", "base", "core", "manager", "misc"})
FILE_LINES = 500
FUNCTION_LINES, LONG_FUNCTION_LINES, LONG_FUNCTION_SHARE = 80, 50, 0.03
PARAMETERS = 8
# Signatures that users know from elsewhere, and options of commands.
MANY_PARAMETERS_ALLOWED = ("transformers.models", "cloud", "legacy", "generation.text_generation_inference")
# Functions that somebody else calls: the function, and who.
FOREIGN_SIGNATURES: dict[str, str] = {
    "QEfficient.transformers.attention.attend": "every attention layer of transformers (AttentionInterface)",
}
# The front doors speak to people and to the process; all else is a library. Scripts read what the last one prints.
MAY_PRINT = ("cloud", "generation.text_generation_inference")
# What a flag asks for has to reach the processes that a command starts; it is taken back when the command ends.
MAY_SET_THE_ENVIRONMENT = ("cloud.main",)

# Where a model's name would be a special case. Families are the place for it; the tiny models are data.
NAMELESS = ("transformers", "graph", "devices", "generation", "operators", "peft", "serving")
NAMES_ALLOWED_IN = ("transformers.families",)
# Model types that are ordinary words too: the word, and what it means where it is used.
WORDS: dict[str, str] = {}

HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "openvino", "numpy", "rich", "peft")


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    on_load: bool
    """Whether loading the file runs it: not inside a function and not for type checkers only."""


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    is_package: bool
    names: frozenset[str] = field(default_factory=frozenset)
    """Every module of the package, to tell `from package import module` from `from module import thing`."""

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        return tuple(self._imports(self.tree, on_load=True))

    @property
    def part(self) -> str:
        """The name inside the package: `devices.cpu`; empty for the package itself."""
        return self.name.partition(".")[2]

    def _imports(self, node: ast.AST, on_load: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, on_load) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield from self._imports_from(child, on_load)
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or _type_checking(child)
                yield from self._imports(child, on_load and not inside)

    def _imports_from(self, node: ast.ImportFrom, on_load: bool) -> Iterator[Import]:
        source = node.module or ""
        if node.level:
            parents = self.name.split(".")[
                : None if self.is_package and node.level == 1 else -node.level + self.is_package
            ]
            source = ".".join([*parents, *([node.module] if node.module else [])])
        for alias in node.names:
            full = f"{source}.{alias.name}"
            yield Import(full if full in self.names else source, node.lineno, on_load)


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def read_package(top: Path) -> dict[str, Module]:
    """Every module of the package, by name."""
    found = {}
    for path in sorted((top / PACKAGE).rglob("*.py")):
        parts = path.relative_to(top).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        found[".".join(parts[:-1] if is_package else parts)] = (path, is_package)
    names = frozenset(found)
    return {name: Module(name, path, is_package, names) for name, (path, is_package) in found.items()}


MODULES = read_package(TOP)


def within(module: str, *parts: str) -> bool:
    """Whether a module of the package is one of these parts or lies inside one."""
    own = module.partition(".")[2]
    return module.startswith(f"{PACKAGE}.") and any(own == part or own.startswith(f"{part}.") for part in parts)


def layer(module: str) -> int | None:
    """The number of a module's layer; the package itself, which only names things, has none."""
    fitting = [(len(part), n) for n, parts in enumerate(DIRECTION) for part in parts if within(module, part)]
    return max(fitting)[1] if fitting else None


def is_own(module: str) -> bool:
    return module == PACKAGE or module.startswith(f"{PACKAGE}.")


def place(module: Module, node: ast.AST | Import) -> str:
    line = node.line if isinstance(node, Import) else getattr(node, "lineno", 0)
    return f"{module.path.relative_to(TOP) if module.path.is_relative_to(TOP) else module.path}:{line}"


def nodes(*kinds: type[ast.AST], without: tuple[str, ...] = ()) -> Iterator[tuple[Module, ast.AST]]:
    for module in MODULES.values():
        if not within(module.name, *without):
            yield from ((module, node) for node in ast.walk(module.tree) if isinstance(node, kinds))


# Direction


def upward_imports(modules: dict[str, Module]) -> list[str]:
    wrong = []
    for module in modules.values():
        own = layer(module.name)
        for imported in module.imports:
            other = layer(imported.module)
            if imported.module == PACKAGE and own is not None and own < len(DIRECTION) - 1:
                wrong.append(f"{place(module, imported)} imports the package's front door")
            elif own is not None and other is not None and other > own:
                wrong.append(
                    f"{place(module, imported)} (layer {own + 1}) imports {imported.module} (layer {other + 1})"
                )
    return wrong


def bridges(modules: dict[str, Module]) -> list[str]:
    """Imports from one island to another. `transformers.models` stands above them and may see all."""
    wrong = []
    for module in modules.values():
        home = next((island for island in ISLANDS if within(module.name, island)), None)
        if home is None or layer(module.name) != layer(f"{PACKAGE}.{home}"):
            continue
        others = [island for island in ISLANDS if island != home]
        wrong += [f"{place(module, i)} imports {i.module}" for i in module.imports if within(i.module, *others)]
    return wrong


def cycles(modules: dict[str, Module]) -> list[str]:
    """Circles of imports that loading runs."""
    edges = {
        name: sorted({i.module for i in module.imports if i.on_load and i.module in modules and i.module != name})
        for name, module in modules.items()
    }
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append(" → ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for other in edges[name]:
                visit(other, [*path, name])
            done.add(name)

    for name in sorted(edges):
        visit(name, [])
    return found


def torch_imports(modules: dict[str, Module]) -> list[str]:
    """Imports of torch or of modelling code right of the ONNX file, also by way of other modules."""
    wrong = []
    for name in [name for name in modules if within(name, *TORCH_FREE)]:
        reached, todo = {name}, [name]
        while todo:
            module = modules[todo.pop()]
            for imported in module.imports:
                library = imported.module.partition(".")[0]
                lazily_tokenizing = module.name == TOKENIZER_USER and library == "transformers" and not imported.on_load
                if library in TORCH_LIBRARIES and not lazily_tokenizing and (imported.on_load or module.name == name):
                    wrong.append(f"{name} reaches {library} at {place(module, imported)}")
                if imported.on_load and imported.module in modules and imported.module not in reached:
                    reached.add(imported.module)
                    todo.append(imported.module)
    return sorted(set(wrong))


def test_every_module_has_a_layer() -> None:
    homeless = [name for name in MODULES if name != PACKAGE and layer(name) is None]
    assert not homeless, "give these a place in DIRECTION"


def test_no_module_imports_a_higher_layer() -> None:
    assert not upward_imports(MODULES)


def test_islands_do_not_import_one_another() -> None:
    assert not bridges(MODULES)


def test_no_import_cycles() -> None:
    assert not cycles(MODULES)


def test_no_torch_right_of_the_onnx_file() -> None:
    assert not torch_imports(MODULES)


def test_the_simulator_knows_nothing_of_us() -> None:
    """What passes there was written for the SDK: neither may lean on the other."""
    paths = sorted(SIMULATOR.rglob("*.py"))
    simulator = [Module(f"{SIMULATOR.name}.{path.stem}", path, is_package=False) for path in paths]
    assert simulator and not [place(m, i) for m in simulator for i in m.imports if is_own(i.module)]
    assert not [place(m, i) for m in MODULES.values() for i in m.imports if i.module.startswith(SIMULATOR.name)]


def test_records_need_the_standard_library_and_numpy_only() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", PACKAGE}
    wrong = [
        f"{place(module, imported)} imports {imported.module}"
        for module in MODULES.values()
        if within(module.name, *RECORDS)
        for imported in module.imports
        if imported.module.partition(".")[0] not in allowed
    ]
    assert not wrong


def test_a_loaded_device_and_engine_bring_no_torch() -> None:
    """The same as above, asked of a fresh interpreter: libraries may import torch behind our back."""
    modules = [name for name in MODULES if within(name, *TORCH_FREE)]
    code = f"""
import importlib, json, sys
absent = []
for name in {modules!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("{PACKAGE}", ""):
            raise
        absent.append(name)  # a device whose library is not installed
print(json.dumps([m for m in ("torch", "transformers") if m in sys.modules]))
"""
    assert json.loads(fresh_interpreter(code)) == []


# Sizes and names


def functions() -> list[tuple[Module, ast.FunctionDef | ast.AsyncFunctionDef]]:
    found = nodes(ast.FunctionDef, ast.AsyncFunctionDef)
    return [(m, node) for m, node in found if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([n for n in names if n not in ("self", "cls")]) + bool(given.vararg) + bool(given.kwarg)


def test_files_are_short() -> None:
    long = {str(module.path): module.text.count("\n") for module in MODULES.values()}
    assert not {path: lines for path, lines in long.items() if lines > FILE_LINES}


def test_functions_are_short() -> None:
    everything = functions()
    sizes = {f"{place(module, f)} {f.name}": length(f) for module, f in everything}
    assert not {name: size for name, size in sizes.items() if size > FUNCTION_LINES}
    long = {name: size for name, size in sizes.items() if size > LONG_FUNCTION_LINES}
    assert len(long) <= LONG_FUNCTION_SHARE * len(everything), f"too many long functions: {long}"


def test_functions_have_few_parameters() -> None:
    many = {f"{module.name}.{f.name}" for module, f in functions() if parameters(f) > PARAMETERS}
    assert not {name for name in many - set(FOREIGN_SIGNATURES) if not within(name, *MANY_PARAMETERS_ALLOWED)}
    assert set(FOREIGN_SIGNATURES) <= many, "these need no exception any more"


def test_names_say_something() -> None:
    assert not [name for name in MODULES if FORBIDDEN_NAMES & set(name.lower().strip("_").split("."))]


def test_every_folder_of_code_is_a_package() -> None:
    folders = {module.path.parent for module in MODULES.values()}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]


# Manners


def called(node: ast.AST) -> str:
    """What a call calls, as written: `print`, `sys.exit`."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def test_libraries_do_not_print_or_exit() -> None:
    exits = ("print", "exit", "quit", "sys.exit", "os._exit", "os.abort", "SystemExit")
    talk = ("sys.stdout.write", "sys.stderr.write")
    calls = [(m, n) for m, n in nodes(ast.Call, without=MAY_PRINT) if called(n) in (*exits, *talk)]
    raises = [(m, n) for m, n in nodes(ast.Raise, without=MAY_PRINT) if "SystemExit" in ast.unparse(n)]
    assert not [f"{place(m, n)} {ast.unparse(n)}" for m, n in (*calls, *raises)]


def test_no_library_sets_the_environment() -> None:
    changes = ("os.putenv", "os.unsetenv", "os.environ.update", "os.environ.setdefault", "os.environ.pop")
    calls = [
        (m, n)
        for m, n in nodes(ast.Call, without=MAY_SET_THE_ENVIRONMENT)
        if called(n) in (*changes, "os.environ.clear", "os.environ.popitem")
    ]
    stored = [
        (m, n)
        for m, n in nodes(ast.Subscript, without=MAY_SET_THE_ENVIRONMENT)
        if isinstance(n, ast.Subscript)
        and isinstance(n.ctx, (ast.Store, ast.Del))
        and ast.unparse(n.value) == "os.environ"
    ]
    assert not [f"{place(m, n)} {ast.unparse(n)}" for m, n in (*calls, *stored)]


def test_shared_code_names_no_models() -> None:
    """A model's name in shared code is a special case; those live in transformers/families, one file each."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    types = set(CONFIG_MAPPING_NAMES) - set(WORDS)
    wrong = []
    for module in MODULES.values():
        if not within(module.name, *NAMELESS) or within(module.name, *NAMES_ALLOWED_IN):
            continue
        literals = (n for n in ast.walk(module.tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
        wrong += [f"{place(module, n)} the text {n.value!r}" for n in literals if n.value in types]
        for imported in module.imports:
            steps = imported.module.split(".")
            if steps[:2] == ["transformers", "models"] and steps[2:3] != ["auto"]:
                wrong.append(f"{place(module, imported)} imports {imported.module}")
    assert not wrong


def test_words_are_still_model_types() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert set(CONFIG_MAPPING_NAMES) >= set(WORDS), "these need no exception any more"


# The front door


def fresh_interpreter(code: str) -> str:
    """The output of a new Python, which must have nothing to complain about."""
    result = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_has_no_effect() -> None:
    code = f"""
import json, logging, os, signal, sys, warnings
state = lambda: (dict(os.environ), list(warnings.filters), list(logging.root.handlers), logging.root.level,
                 sys.getrecursionlimit(), signal.getsignal(signal.SIGINT), sys.excepthook, list(sys.path))
before = state()
import {PACKAGE}
assert state() == before, "importing changed something of the process"
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    assert json.loads(fresh_interpreter(code)) == [], "the import said something or loaded these"


def test_public_names_are_what_resolves() -> None:
    code = f"""
import json, types
import {PACKAGE} as package
names = package.__all__
assert len(names) == len(set(names)), "a name stands twice in __all__"
values = {{name: getattr(package, name) for name in names}}
modules = [name for name, value in values.items() if isinstance(value, types.ModuleType)]
assert set(names) <= set(dir(package)), "dir() does not list the public names"
own = lambda value: getattr(value, "__module__", "").startswith("{PACKAGE}")
loaded = {{name for name, value in vars(package).items() if own(value) and not name.startswith("_")}}
try:
    package.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
else:
    raise AssertionError("a name that does not exist resolves")
print(json.dumps({{"modules": modules, "unlisted": sorted(loaded - set(names))}}))
"""
    assert json.loads(fresh_interpreter(code)) == {"modules": [], "unlisted": []}


def test_no_subpackage_takes_a_public_name() -> None:
    """`QEfficient.export` is a function: importing a module of that name would replace it."""
    public = set(json.loads(fresh_interpreter(f"import {PACKAGE}, json; print(json.dumps(list({PACKAGE}.__all__)))")))
    assert not public & {name.split(".")[1] for name in MODULES if name.count(".") == 1}


# The checks themselves


@pytest.fixture
def sketch(tmp_path: Path) -> dict[str, Module]:
    """A package that breaks every rule of direction once."""
    files = {
        "__init__.py": "",
        "errors.py": "from QEfficient.cloud.main import main",
        "specs.py": "from QEfficient import program",
        "program.py": "def f():\n    from QEfficient.specs import x",
        "artifacts.py": "from . import errors\nif TYPE_CHECKING:\n    from . import program",
        "graph/__init__.py": "from ..transformers import attention",
        "transformers/__init__.py": "",
        "transformers/attention.py": "import torch\nfrom .retained import b",
        "transformers/retained.py": "from . import attention",
        "transformers/models/__init__.py": "from QEfficient import graph, devices",
        "devices/__init__.py": "from QEfficient.operators import a",
        "operators/__init__.py": "import torch",
        "generation/text.py": "def f():\n    from transformers import AutoTokenizer",
        "generation/engine.py": "def f():\n    from transformers import AutoTokenizer",
        "cloud/main.py": "import QEfficient",
        "demo/__init__.py": "import QEfficient",
    }
    for name, text in files.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_package(tmp_path)


def test_the_checks_find_what_they_are_for(sketch: dict[str, Module]) -> None:
    assert [line.partition(PACKAGE)[2] for line in upward_imports(sketch)] == [
        "/demo/__init__.py:1 imports the package's front door",
        "/errors.py:1 (layer 1) imports QEfficient.cloud.main (layer 6)",
    ]
    assert [line.rpartition("/")[2] for line in bridges(sketch)] == [
        "__init__.py:1 imports QEfficient.transformers.attention",
    ]
    assert cycles(sketch) == [
        "QEfficient.transformers.attention → QEfficient.transformers.retained → QEfficient.transformers.attention"
    ]
    assert [line.split(" at ")[0] for line in torch_imports(sketch)] == [
        "QEfficient.devices reaches torch",
        "QEfficient.generation.engine reaches transformers",
    ]
