"""Imports go down only, and never in a circle."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = (
    {
        "errors",
        "units",
        "settings",
        "config",
        "logs",
        "ffmpeg",
        "ids",
        "outbound",
        "record",
        "stills",
        "strictjson",
        "task",
    },
    {"store", "handlers", "context", "events", "rpc"},
    {"intake", "dispatch", "execute"},
    {"meters", "totals", "traces", "why"},
    {"service"},
    {"doctor"},
    {"client", "web", "dialects"},
    {"cli", "__main__"},
)
"""The parts of the package from the bottom up. `runner` itself is the face of all of them: nothing inside uses it."""

LEVELS = {part: level for level, layer in enumerate(LAYERS) for part in layer}
TOP = len(LAYERS)

Imports = Mapping[str, set[str]]


def read_imports(root: Path, package: str) -> Imports:
    """Each module of the package, and the modules of the package that it imports when it runs."""
    files = {_module_name(path.relative_to(root)): path for path in sorted((root / package).rglob("*.py"))}
    return {name: set(_imported(name, path, files)) for name, path in files.items()}


def _module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _imported(module: str, path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _nodes_that_run(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join((*parents, *filter(None, [node.module])))
            names = (f"{base}.{alias.name}" for alias in node.names)
            yield from ({name if name in modules else base for name in names} & modules.keys()) - {module}


def _nodes_that_run(tree: ast.AST) -> Iterator[ast.AST]:
    yield tree
    only_checked = isinstance(tree, ast.If) and ast.unparse(tree.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    for child in getattr(tree, "orelse", ()) if only_checked else ast.iter_child_nodes(tree):
        yield from _nodes_that_run(child)


def find_upward_imports(imports: Imports) -> list[str]:
    """One line for each import of a higher layer, and for each module that no layer names."""
    return sorted(
        f"{module} imports {target}"
        for module, targets in imports.items()
        for target in targets
        if _level(target) > _level(module)
    ) + sorted(f"{module} is in no layer" for module in imports if _level(module) < 0)


def _level(module: str) -> int:
    _, _, part = module.partition(".")
    return LEVELS.get(part.partition(".")[0], -1) if part else TOP


def find_cycle(imports: Imports) -> list[str]:
    """The modules of one circle of imports, or nothing."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _write(root: Path, **modules: str) -> Imports:
    for name, text in modules.items():
        path = root / "runner" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_imports(root, "runner")


def test_imports_go_down_only() -> None:
    """No module of the runner imports one of a higher layer, and each has a layer."""
    assert find_upward_imports(read_imports(ROOT, "runner")) == []


def test_no_imports_run_in_a_circle() -> None:
    """The modules can be put in an order in which each comes after those that it imports."""
    assert find_cycle(read_imports(ROOT, "runner")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import runner.service",
        "from runner import service",
        "from runner.service import Service",
        "from . import service",
        "from .service import Service",
        "def late():\n    from runner.service import Service",
        "try:\n    import runner.service\nexcept ImportError:\n    pass",
    ],
)
def test_an_upward_import_is_caught_however_it_is_written(tmp_path: Path, line: str) -> None:
    """Negative control: the check must be able to fail."""
    imports = _write(tmp_path, task=line, service="")
    assert find_upward_imports(imports) == ["runner.task imports runner.service"]


def test_an_upward_import_from_inside_a_part_is_caught(tmp_path: Path) -> None:
    """Negative control: relative imports across two folders count from the module that they stand in."""
    imports = _write(tmp_path, store__files="from ..web.app import make_app", web__app="")
    assert find_upward_imports(imports) == ["runner.store.files imports runner.web.app"]


def test_the_face_of_the_package_is_not_used_from_inside(tmp_path: Path) -> None:
    """Negative control: `from runner import handler` belongs into a handler."""
    (tmp_path / "runner").mkdir()
    (tmp_path / "runner" / "__init__.py").write_text("from runner.context import handler")
    imports = _write(tmp_path, context="", task="from runner import handler")
    assert find_upward_imports(imports) == ["runner.task imports runner"]


def test_a_module_without_a_layer_is_caught(tmp_path: Path) -> None:
    """Negative control: a new part of the runner has to be given its place."""
    assert find_upward_imports(_write(tmp_path, helpers="")) == ["runner.helpers is in no layer"]


def test_a_circle_is_caught(tmp_path: Path) -> None:
    """Negative control: two modules of one layer that import each other."""
    imports = _write(tmp_path, units="import runner.task", task="import runner.units")
    assert set(find_cycle(imports)) == {"runner.task", "runner.units"}


def test_an_import_for_type_checkers_alone_is_no_import(tmp_path: Path) -> None:
    """What only a type checker reads cannot make a circle."""
    text = "if TYPE_CHECKING:\n    from runner.service import Service\nelse:\n    import runner.web"
    imports = _write(tmp_path, task=text, service="", web="")
    assert imports["runner.task"] == {"runner.web"}
