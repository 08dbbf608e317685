"""What holds for the package as a whole: light import, public names, floors and faces."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import phi_hybrid as ph

ROOT = Path(ph.__file__).parent
REPOSITORY = ROOT.parent
MODULES = sorted(ROOT.rglob("*.py"))

FLOORS = {
    "errors": -1,
    "_compat": 0,
    "_version": 0,
    "bridge": 1,
    "linear_solve": 2,
    "optim": 2,
    "pde": 2,
    "steps": 3,
    "tracing": 4,
    "data": 5,
    "deployment": 6,
    "hybrid": 7,
    "inverse": 7,
    "evaluation": 8,
    "sensitivity": 8,
    "training": 9,
    "plot": 9,
    "studies": 10,
}
"""A module knows its own folder and lower floors, nothing else."""


# --- imports ---


def imported_by(folder: Path, *statements: str) -> list[set[str]]:
    """Top-level modules that a fresh interpreter in this folder has loaded after each of the statements."""
    report = "import sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    code = "\n".join(line for statement in statements for line in (statement, report))
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder, timeout=120
    )
    return [set(line.split()) for line in run.stdout.splitlines()]


@pytest.mark.smoke
def test_import_is_light_and_plot_loads_when_it_is_used(tmp_path: Path) -> None:
    """Beside a folder of its name, as where the project was cloned to, which Python takes for a package without code."""
    (tmp_path / "phi_hybrid" / "docs").mkdir(parents=True)
    loaded, with_plot = imported_by(tmp_path, "import phi_hybrid as ph", "ph.plot")
    assert "torch" in loaded and "phi" in loaded
    assert not loaded & {"matplotlib", "h5py", "PIL", "pandas"}
    assert "matplotlib" in with_plot


def imports_of(path: Path) -> list[str]:
    """Full names of modules and members that a file imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full names"
            names += [f"{node.module}.{a.name}" for a in node.names]
    return names


def test_every_room_has_a_floor_and_few_modules_stand_outside() -> None:
    inside = [p for p in ROOT.iterdir() if p.is_dir() or p.suffix == ".py"]
    rooms = {p.stem for p in inside if not p.name.startswith("__")}
    assert rooms == set(FLOORS)
    assert sum(p.suffix == ".py" for p in ROOT.iterdir()) - 1 <= 3


def test_modules_know_lower_floors_only() -> None:
    for path in MODULES:
        room = path.relative_to(ROOT).with_suffix("").parts[0]
        for name in imports_of(path):
            parts = name.split(".")
            if room in ("__init__", "__main__"):
                continue
            if parts[0] == "phi_hybrid" and parts[1] != room:
                assert FLOORS[parts[1]] < FLOORS[room], f"{path.name} on floor {FLOORS[room]} imports {name}"


def test_only_faces_are_used_from_outside() -> None:
    """Demos, documentation and the tests of other folders import folders, not the modules in them."""
    outside = [*(REPOSITORY / "demos").rglob("*.py"), *(REPOSITORY / "docs").rglob("*.py")]
    tests = [p for p in (REPOSITORY / "tests").rglob("test_*.py") if p.parent.name != "benchmarks"]
    for path in [*outside, *tests]:
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] != "phi_hybrid" or len(parts) < 3 or not (ROOT / parts[1]).is_dir():
                continue
            module = ROOT.joinpath(*parts[1:3]).with_suffix(".py").exists()
            face = __import__(f"phi_hybrid.{parts[1]}", fromlist=["x"])
            public = parts[2] in face.__all__ or not module  # `pde.burgers`, `training.losses` are parts of a face
            assert public or parts[1] in path.relative_to(REPOSITORY).parts[1:-1], (
                f"{path.relative_to(REPOSITORY)} imports {name}"
            )


def test_no_function_shares_its_name_with_a_module() -> None:
    for folder in [p for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith("__")]:
        face = __import__(f"phi_hybrid.{folder.name}", fromlist=["x"])
        for name in face.__all__:
            if not inspect.ismodule(getattr(face, name)):
                assert not (folder / f"{name}.py").exists() and name != folder.name, f"{folder.name}.{name}"


# --- public names ---


def faces() -> Iterator[object]:
    yield ph
    for room in FLOORS:
        if (ROOT / room).is_dir():
            yield __import__(f"phi_hybrid.{room}", fromlist=["x"])


def test_public_names_exist_and_are_few() -> None:
    assert len(ph.__all__) <= 35
    for face in faces():
        assert face.__all__ == sorted(face.__all__) and len(set(face.__all__)) == len(face.__all__), face
        assert all(getattr(face, name) is not None for name in face.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        ph.nonsense  # noqa: B018


def public_members() -> Iterator[tuple[str, object]]:
    """Functions and classes of the faces, with the public methods that they define."""
    for face in faces():
        homes = [face, *(m for n in face.__all__ if inspect.ismodule(m := getattr(face, n)))]
        for home in homes:
            for name in getattr(home, "__all__", [n for n in vars(home) if not n.startswith("_")]):
                member = getattr(home, name)
                own = home.__name__ if home is not face else "phi_hybrid"
                if not getattr(member, "__module__", "").startswith(own):
                    continue
                yield f"{home.__name__}.{name}", member
                if inspect.isclass(member):
                    for method, function in vars(member).items():
                        function = getattr(function, "__func__", function)
                        if inspect.isfunction(function) and not method.startswith("_"):
                            yield f"{home.__name__}.{name}.{method}", function


def overrides(name: str) -> bool:
    """Whether a public method has a docstring in a base class."""
    owner, _, method = name.rpartition(".")
    bases = inspect.getmro(PUBLIC[owner])[1:] if inspect.isclass(PUBLIC.get(owner)) else ()
    return any(getattr(vars(base).get(method), "__doc__", None) for base in bases)


PUBLIC = dict(public_members())
OVERRIDES = {name for name in PUBLIC if overrides(name)}
VAGUE = {"what", "whether", "which", "how", "who", "where", "when", "why"}


def test_public_names_are_explained() -> None:
    wrong = []
    for name, member in PUBLIC.items():
        if inspect.isfunction(member) or inspect.isclass(member):
            text = (member.__doc__ or "").split() or ["(none)"]
            inherited = name in OVERRIDES  # explained where the base class declares it
            if text[0].lower() in VAGUE or (text == ["(none)"] and not inherited):
                wrong.append(f"{name}: {text[0]}")
    assert not wrong, "begin with a noun or a verb"


BARE = re.compile(r"\b(dict|list|tuple|set|Callable|Iterable|Iterator|Mapping|Sequence|PathLike)\b(?!\[)")
"""Containers and functions of whatever."""


def test_public_names_are_typed() -> None:
    for name, member in PUBLIC.items():
        function = member.__init__ if inspect.isclass(member) else member
        if not inspect.isfunction(function) or not function.__module__.startswith("phi_hybrid"):
            continue
        signature = inspect.signature(function)
        untyped = [p for p in signature.parameters.values() if p.name != "self" and p.annotation is p.empty]
        assert not untyped, f"{name}: {untyped}"
        assert function.__name__ == "__init__" or signature.return_annotation is not signature.empty, f"{name}: returns"
        vague = {key: text for key, text in function.__annotations__.items() if BARE.search(str(text))}
        assert not vague, f"{name}: say what is in them, or a strict checker sees unknown types: {vague}"


# --- private names ---


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


def test_private_names_live_in_one_room() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES if private_names(path)} == {"_compat"}


def test_no_machine_paths() -> None:
    for path in [*MODULES, *(REPOSITORY / "demos").rglob("*.py"), *(REPOSITORY / "tests").rglob("*.py")]:
        if path.name != Path(__file__).name:
            assert "/home/" not in path.read_text() and "/work/" not in path.read_text(), path
