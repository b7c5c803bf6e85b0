"""Who may import whom, as CONTRIBUTING.md has it: upward imports, cycles and forbidden libraries are named."""

import ast
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vqtok"

# From the top down; a module may import its own floor and those below. The public front door may see all.
FLOORS = [
    {"__main__", "cli"},
    {"data", "dataset", "training", "evaluation"},
    {
        *("loading", "exporting", "hub", "onnx", "standard_ops"),
        *("image_tokenizer", "grid", "tokenizer", "hierarchy", "dynamic", "tiling", "streaming", "identity"),
        *("presets", "architecture", "store", "adapters"),
    },
    {"networks", "quantizers", "losses"},
    {"ops", "images"},
    {"types", "errors"},
]
APART = [
    ("networks", "quantizers"),
    ("quantizers", "networks"),
    ("evaluation", "training"),
    ("ops", "images"),
    ("images", "ops"),
]
# Libraries that must not be imported when a module is: heavy, optional, or dangerous.
NEVER = {"triton", "torchvision", "lightning", "pickle", "joblib", "dill", "yaml"}
NO_TORCH_ABOVE = {"cli", "images", "store", "errors", "types", "__init__", "__main__"}


def floor(name: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if name in floor)


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def type_checking_only(tree: ast.AST) -> set[ast.AST]:
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            found |= {inner for child in node.body for inner in ast.walk(child)}
    return found


def imports(path: Path, *, top_level: bool = False):
    """Yield (line, dotted name) of what a file imports; of `from x import y` both x and x.y."""
    tree = ast.parse(path.read_text())
    skipped = type_checking_only(tree) if top_level else set()
    inside = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)} if top_level else set()
    for node in ast.walk(tree):
        if node in skipped or node in inside:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module_name(path).split(".")[: None if path.name == "__init__.py" else -1]
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def test_relative_imports_are_seen_as_what_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "vqtok/ops").mkdir(parents=True)
    (file := tmp_path / "vqtok/ops/a.py").write_text("from . import b\nfrom ..cli import main\nfrom .c import d\n")
    assert [name for _, name in imports(file)] == ["vqtok.ops.b", "vqtok.cli.main", "vqtok.ops.c.d"]
    (file := tmp_path / "vqtok/ops/__init__.py").write_text("from . import b\nfrom ..cli import main\n")
    assert [name for _, name in imports(file)] == ["vqtok.ops.b", "vqtok.cli.main"]


def test_every_module_stands_on_a_floor():
    parts = {part(module_name(path)) for path in PACKAGE.rglob("*.py")} - {"__init__", "_native", "assets", "kernels"}
    assert parts <= set().union(*FLOORS)


def test_nobody_imports_upwards():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        here = part(module_name(path))
        if here in ("__init__", "assets"):
            continue
        for line, name in imports(path):
            if name == "vqtok":
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {here} -> the front door, which sees all")
            if not name.startswith("vqtok."):
                continue
            there = name.split(".")[1]
            if there in set().union(*FLOORS) and (floor(there) < floor(here) or (here, there) in APART):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {here} -> {there}")
    assert wrong == []


def test_no_cycles_between_modules():
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        names = {name for _, name in imports(path, top_level=True) if name.startswith("vqtok")}
        graph[module_name(path)] = names
    edges = {
        module: {
            known for name in names for known in (name, name.rpartition(".")[0]) if known in graph and known != module
        }
        for module, names in graph.items()
    }
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module in done:
            return
        for other in edges[module]:
            # A package's __init__ re-exports its modules; that they import the package above is the same module twice.
            if not module.startswith(f"{other}."):
                walk(other, (*trail, module))
        done.add(module)

    for module in edges:
        walk(module, ())


def test_heavy_and_dangerous_libraries_are_never_imported_at_the_top():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in PACKAGE.rglob("*.py")
        for line, name in imports(path, top_level=True)
        if name.split(".")[0] in NEVER
    ]
    assert wrong == []


def test_what_must_stay_light_does_not_import_torch():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in PACKAGE.rglob("*.py")
        if part(module_name(path)) in NO_TORCH_ABOVE
        for line, name in imports(path, top_level=True)
        if name.split(".")[0] == "torch"
    ]
    assert wrong == []


def test_kernels_and_csrc_know_nothing_of_the_package():
    paths = [*(ROOT / "kernels").rglob("*.py"), *(ROOT / "csrc").rglob("*.py")]
    assert paths
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in paths
        for line, name in imports(path)
        if name.split(".")[0] not in ("kernels", "triton", "__future__", "dataclasses")
    ]
    assert wrong == []


def test_only_ops_reach_the_kernels_by_dotted_name_and_on_first_use():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in PACKAGE.rglob("*.py")
        for line, name in imports(path)
        if name.split(".")[0] == "kernels" or name.startswith("vqtok.kernels")
    ]
    assert wrong == []
    naming = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("vqtok.kernels")
    }
    assert naming == {"vqtok/ops/triton.py"}


def test_only_the_command_reaches_the_benchmarks():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "cli" / "bench.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and str(node.value).startswith(("vqtok.benchmarks", "benchmarks"))
    ]
    wrong += [
        f"{path.relative_to(ROOT)}:{line}"
        for path in PACKAGE.rglob("*.py")
        for line, name in imports(path)
        if "benchmarks" in name.split(".")
    ]
    assert wrong == []


def test_benchmarks_use_what_everybody_may_use():
    public = {"ops", "errors", "images", "evaluation", "losses", "training"} | set(import_module("vqtok").__all__)
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in (ROOT / "benchmarks").glob("*.py")
        for line, name in imports(path)
        if name.startswith("vqtok.") and name.split(".")[1] not in public
    ]
    assert wrong == []


def test_no_code_is_ever_run_from_an_input():
    banned = (
        "weights_only=False",
        "allow_pickle=True",
        "shell=True",
        "eval(",
        "exec(",
        "yaml.load(",
        "trust_remote_code",
    )
    wrong = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in PACKAGE.rglob("*.py")
        for word in banned
        if word in path.read_text().replace(".eval()", "").replace("exec_module", "")
    ]
    assert wrong == []


def test_code_never_names_a_preset():
    from vqtok.presets import PRESETS

    allowed = {"presets.py", "loading.py"}  # loading.py names the embedded default
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        documented = {
            id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
        }
        wrong += [
            f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
            for node in ast.walk(tree)
            if path.name not in allowed
            and isinstance(node, ast.Constant)
            and id(node) not in documented
            and node.value in PRESETS
        ]
    assert wrong == []
