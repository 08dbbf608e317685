"""Exported steps: programs for torch alone, in Python and in C++, against the step they were made of."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases.deployed import BODY, Case, around, scaled, several, thick
from cases.small import SmallNet, faces, line, scalar
from phi.torch.flow import Field, fluid, math

import phi_hybrid as ph
from phi_hybrid.bridge import flatten

STEPS = 200
TORCH_ALONE = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("phi", "phiml", "phi_hybrid", "scipy"):
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, Blocked())
import json, torch
torch.set_num_threads(1)
files = {"phi_hybrid.json": ""}
step = torch.export.load("step.pt2", extra_files=files).module()
count = len(json.loads(files["phi_hybrid.json"])["outputs"])
for name in sys.argv[2:]:
    *tensors, = torch.load(name + ".pt")
    states = [tensors[:count]]
    with torch.no_grad():
        for n in range(int(sys.argv[1])):
            states.append(step(*states[-1], *tensors[count:]))
    torch.save([torch.stack(leaf) for leaf in zip(*states)], name + ".result.pt")
"""
GPP, TORCH = shutil.which("g++"), Path(torch.__path__[0])


@pytest.fixture(scope="module")
def case() -> Case:
    """Past a body in a box that is fed and damped, with features and a projection: settles, and stays in motion."""
    project = ph.capture(lambda v: fluid.make_incompressible(v)[0], check=False)
    features = (scalar(5), math.wrap(0.5))
    solver = ph.HybridSolver(ph.capture(around, check=False), SmallNet(6, 2, 2), features=features, project=project)
    return scaled(solver, (6, 2)), arguments(2)


def arguments(size: int) -> tuple[Field, Field]:
    return faces("closed", 0, b=size), faces("closed", 1, b=size) * 0.3


def deviation(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def rolled_out(solver: ph.HybridSolver, size: int, steps: int) -> list[torch.Tensor]:
    """Tensors of all states, `(time, batch, x, y)`."""
    state, force = arguments(size)
    tensors, _ = flatten(solver.rollout(state, steps, force))
    return [t.movedim(1, 0) for t in tensors]  # batch dims are in alphabetical order


@pytest.mark.ci
def test_rollouts_in_torch_alone(case: Case, tmp_path: Path) -> None:
    """Two hundred steps with batches of one and of seven, where PhiFlow, PhiML, SciPy and this package are missing."""
    solver, example = case
    description = ph.export(solver, *example, path=tmp_path / "step.pt2")
    for size in (1, 7):
        torch.save(list(flatten(arguments(size))[0]), tmp_path / f"{size}.pt")
    code = [sys.executable, "-c", TORCH_ALONE, str(STEPS), "1", "7"]
    run = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    for size in (1, 7):
        found, expected = torch.load(tmp_path / f"{size}.result.pt"), rolled_out(solver, size, STEPS)
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape and deviation(a, b) < 1e-6
            assert (b[-1] - b[-2]).abs().max() > 0 and b[-1].abs().max() > 1e-2
    assert [(t.name, t.dims, t.sizes) for t in description.inputs] == [
        ("v.x", ("b", "x", "y"), (None, 5, 5)),
        ("v.y", ("b", "x", "y"), (None, 6, 4)),
        ("force.x", ("b", "x", "y"), (None, 5, 5)),
        ("force.y", ("b", "x", "y"), (None, 6, 4)),
    ]
    assert [t.name for t in description.outputs] == ["x", "y"] and not description.compiled


@pytest.mark.smoke
def test_programs_hold_torch_operators_alone(tmp_path: Path) -> None:
    """Of a state of several parts, without a batch dim and with Python numbers."""
    solver, (state, dt) = several()
    state = {name: part.b[0] for name, part in state.items()}
    description = ph.export(solver, state, dt=dt, path=tmp_path / "step.pt2")
    names = ["state.velocity.x", "state.velocity.y", "state.smoke"]
    assert [t.name for t in description.inputs] == names and description.inputs[0].dims[0] == "batch"
    program = torch.export.load(tmp_path / "step.pt2")
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(t.startswith(("aten.", "<built-in function")) for t in targets), targets
    tensors = flatten(state)[0]
    expected = flatten(solver(state, dt))[0]
    with torch.no_grad():
        found = program.module()(*(t[None] for t in tensors))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a[0], b, rtol=0, atol=1e-6)


# --- wrong uses ---


def test_refusals_name_the_way_out(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, viscosity = tmp_path / "step.pt2", math.wrap(torch.tensor(0.1))
    with pytest.raises(ph.CaptureError, match="matrix depends on.*solver.save"):
        ph.export(ph.capture(thick, check=False), line(0, b=2), viscosity, path=path)
    with pytest.raises(ph.StateError, match=r"around is plain PhiFlow.*ph\.capture\(around\)"):
        ph.export(ph.HybridSolver(around, SmallNet(4, 2, 2)), *arguments(2), path=path)
    with pytest.raises(ph.StateError, match=r"step = .*: expected a solver or a block"):
        ph.export(around, *arguments(2), path=path)
    with pytest.raises(ph.StateError, match=r"step\.bin.*\.pt2"):
        ph.export(case[0], *case[1], path=tmp_path / "step.bin")
    with pytest.raises(ph.CaptureError, match="random numbers"):
        ph.export(ph.capture(lambda u: u + math.random_normal(u.shape), check=False), line(0, b=2), path=path)
    monkeypatch.setattr("phi_hybrid.linear_solve.plain.LARGEST_FACTORS", 100)
    factors = dict(solver=ph.linear_solve.SparseFactorization(), check=False)
    with pytest.raises(ph.CaptureError, match="30 unknowns.*coarser grid"):
        ph.export(ph.capture(lambda v: fluid.make_incompressible(v, BODY)[0], **factors), arguments(2)[0], path=path)
    assert not list(tmp_path.iterdir())


# --- machine code ---


@pytest.mark.slow
@pytest.mark.skipif(GPP is None or not (TORCH / "include").is_dir(), reason="needs g++ and the headers of torch")
def test_compiled_steps_are_called_from_cpp(case: Case, tmp_path: Path) -> None:
    """A minute to compile the step, and half a minute for the program around it."""
    solver, example = case
    description = ph.export(solver, *example, path=tmp_path / "step.pt2", compile=True)
    assert description.compiled
    told = json.loads((tmp_path / "step.json").read_text())
    assert [t["name"] for t in told["inputs"]] == [t.name for t in description.inputs]
    source, program = Path(__file__).parents[1] / "cases" / "rollout.cpp", tmp_path / "rollout"
    headers = [f"-I{TORCH}/include", f"-I{TORCH}/include/torch/csrc/api/include"]
    libraries = [f"-L{TORCH}/lib", f"-Wl,-rpath,{TORCH}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    subprocess.run([GPP, "-std=c++20", abi, str(source), *headers, *libraries, "-o", str(program)], check=True)
    for size in (1, 7):
        torch.save(list(flatten(arguments(size))[0]), tmp_path / "arguments.pt")
        call = [str(program), "step.pt2", "arguments.pt", "50", "result.pt"]
        subprocess.run(call, cwd=tmp_path, check=True, timeout=300)
        for a, b in zip(torch.load(tmp_path / "result.pt"), rolled_out(solver, size, 50)):
            assert deviation(a, b[-1]) < 1e-5
