"""What holds for the package as a whole: light import, public names, floors."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import phi_hybrid as ph

ROOT = Path(ph.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))


def imported_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent, timeout=120
    )
    return set(run.stdout.split())


def test_import_is_light() -> None:
    loaded = imported_by("import phi_hybrid")
    assert "torch" in loaded and "phi" in loaded
    assert not loaded & {"matplotlib", "h5py", "PIL", "pandas"}


def test_plot_loads_when_it_is_used() -> None:
    assert "matplotlib" in imported_by("import phi_hybrid as ph; ph.plot")


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ph.nonsense  # noqa: B018


def test_public_names_exist() -> None:
    assert sorted(ph.__all__, key=str.lower) == sorted(set(ph.__all__), key=str.lower)
    for name in ph.__all__:
        assert getattr(ph, name) is not None
    assert ph.__version__.count(".") >= 1


def public_members() -> Iterator[tuple[str, object]]:
    """Functions and classes that users meet, with the public methods that they define."""
    for home in (ph, ph.bridge, ph.linear_solve, ph.pde.burgers, ph.data, ph.plot):
        names = getattr(home, "__all__", [n for n in vars(home) if not n.startswith("_")])
        for name in names:
            member = getattr(home, name)
            if not getattr(member, "__module__", "").startswith("phi_hybrid") or inspect.ismodule(member):
                continue
            yield f"{home.__name__}.{name}", member
            if inspect.isclass(member):
                for method, function in vars(member).items():
                    function = getattr(function, "__func__", function)
                    if inspect.isfunction(function) and not method.startswith("_"):
                        yield f"{home.__name__}.{name}.{method}", function


PUBLIC = dict(public_members())
INHERITED = {"bind", "known_steps", "check_arguments"}  # explained where Step declares them


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_explained_and_typed(name: str) -> None:
    member = PUBLIC[name]
    if not (callable(member) and (inspect.isfunction(member) or inspect.isclass(member))):
        return
    if name.rsplit(".", 1)[-1] not in INHERITED:
        assert (member.__doc__ or "").strip(), f"{name} has no docstring"
    function = member.__init__ if inspect.isclass(member) else member
    if not inspect.isfunction(function) or not function.__module__.startswith("phi_hybrid"):
        return
    signature = inspect.signature(function)
    untyped = [p for p in signature.parameters.values() if p.name != "self" and p.annotation is p.empty]
    assert not untyped, f"{name}: {untyped}"
    assert function.__name__ == "__init__" or signature.return_annotation is not signature.empty, f"{name}: return type"


def test_there_are_public_names() -> None:
    assert {"phi_hybrid.capture", "phi_hybrid.HybridSolver.rollout", "phi_hybrid.pde.burgers.burgers_step"} <= set(
        PUBLIC
    )


# --- floors ---

FLOORS: dict[str, float] = {
    "_version": 0,
    "errors": 0,
    "_compat": 0,
    "bridge": 1,
    "linear_solve": 1.5,
    "capture": 2,
    "pde": 2,
    "coupling": 3,
    "unroll": 3,
    "hybrid": 3,
    "data": 3,
    "hybrid_step": 3,
    "stacked": 3,
    "ensemble": 3,
    "calibration": 3,
    "scaling": 3,
    "gradient": 3,
    "losses": 3,
    "noise": 3,
    "optim": 3,
    "precompute": 3,
    "steady": 3,
    "norm_average": 3,
    "objective": 3,
    "quantities": 3,
    "table": 3,
    "metrics": 4,
    "evaluation": 4,
    "evaluate": 4,
    "reconstruct": 4,
    "train": 4,
    "plot": 4,
}


def room(module: str) -> str:
    return module.split(".")[1]


def imports_of(path: Path) -> list[str]:
    """Full names of modules and members that a file imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["phi_hybrid", *path.relative_to(ROOT).parts][: -node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{source}.{a.name}" for a in node.names]
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_lower_floors_know_nothing_of_higher_ones(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts == ("__init__",):
        return
    assert parts[0] in FLOORS, f"{parts[0]}: give it a floor"
    own = FLOORS[parts[0]]
    for name in imports_of(path):
        if name.startswith("phi_hybrid."):
            assert room(name) in FLOORS, f"{path.name} imports {name}: give it a floor"
            assert FLOORS[room(name)] <= own, f"{path.name} (floor {own}) imports {name}"


def private_names(path: Path) -> list[str]:
    """Private parts of PhiFlow, PhiML and torch in imports and in attribute chains such as `torch._C`."""
    names = list(imports_of(path))
    for node in ast.walk(ast.parse(path.read_text())):
        chain: list[str] = []
        while isinstance(node, ast.Attribute):
            chain.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and chain:
            names.append(".".join([node.id, *reversed(chain)]))
    foreign = [n.split(".") for n in names if n.split(".")[0] in ("phi", "phiml", "torch", "math", "extrapolation")]
    return [".".join(n) for n in foreign if any(p.startswith("_") and not p.startswith("__") for p in n[1:])]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_private_names_live_in_one_module(path: Path) -> None:
    found = private_names(path)
    if path.name == "_compat.py":
        assert found  # or else this test looks past them
    else:
        assert not found


def test_no_machine_paths() -> None:
    for path in [*MODULES, *(ROOT.parent / "demos").glob("*.py"), *(ROOT.parent / "tests").rglob("*.py")]:
        if path.name != Path(__file__).name:
            assert "/home/" not in path.read_text() and "/work/" not in path.read_text(), path
