"""Saved solvers: rollouts to the last bit in processes that do not know their code, and back into solvers of that code."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.deployed import CASES, COUPLINGS, Case, captured_line, coupled, damped, scaled
from cases.small import SmallNet, equal, faces, forced_step, line, same
from phi.torch.flow import Field, batch, math

import phi_hybrid as ph
from phi_hybrid.bridge import flatten

STEPS = 6
ELSEWHERE = """
import sys, torch, phi_hybrid as ph
torch.set_num_threads(1)
for name in sys.argv[1:]:
    step, (layout, tensors, expected) = ph.load(name + ".ph"), torch.load(name + ".pt", weights_only=False)
    state, *inputs = ph.bridge.unflatten(layout, tensors)
    found, _ = ph.bridge.flatten(step.rollout(state, %d, *inputs))
    print(name, len(found) == len(expected) and all(map(torch.equal, found, expected)))
print("cases" in sys.modules)
"""


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    physics = captured_line()
    return {name: coupled(name, physics) for name in COUPLINGS} | {name: make() for name, make in CASES.items()}


@pytest.mark.ci
def test_rollouts_elsewhere_are_equal_to_the_last_bit(cases: dict[str, Case], tmp_path: Path) -> None:
    """A process with this package alone, which has never seen network, physics or coupling."""
    for name, (solver, arguments) in cases.items():
        solver.save(tmp_path / f"{name}.ph", *arguments)
        state, *inputs = arguments
        trajectory = solver.rollout(state, STEPS, *inputs)
        tensors, layout = flatten(tuple(arguments))
        torch.save((layout, tensors, flatten(trajectory)[0]), tmp_path / f"{name}.pt")
    code = ["-c", ELSEWHERE % STEPS, *cases]
    run = subprocess.run([sys.executable, *code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.stdout.split("\n")[:-1] == [*(f"{name} True" for name in cases), "False"], run.stdout + run.stderr


@pytest.fixture(scope="module")
def saved(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    solver, arguments = cases["additive"]
    path = tmp_path_factory.mktemp("saved") / "solver.ph"
    solver.save(path, *arguments)
    return path


# --- the step in the file ---


@pytest.mark.smoke
def test_batch_dims_are_free(cases: dict[str, Case], saved: Path) -> None:
    """Any sizes, names and numbers of them, also none."""
    solver, step = cases["additive"][0], ph.load(saved)
    for batches in ({}, {"b": 1}, {"b": 4}, {"w": 2}, {"w": 2, "c": 3}):
        u, f = line(0, **batches), line(1, **batches)
        assert same(solver(u, f), step(u, f)), batches
    u, f = line(0, w=2), line(1)  # an input without, although it was saved with one
    assert same(solver.rollout(u, 2, f), step.rollout(u, 2, f))
    assert same(step(u, force=f), step(u, f))


def test_derivatives_by_the_state_flow(cases: dict[str, Case], saved: Path) -> None:
    (solver, (u, f)), step = cases["additive"], ph.load(saved)
    gradients = []
    for s in (solver, step):
        bound = s.bind(u, f)
        tensors = [t.clone().requires_grad_() for t in bound.flatten(u, f)]
        gradients.append(torch.autograd.grad(sum(t.square().sum() for t in bound.native(*tensors)), tensors))
    torch.testing.assert_close(*gradients)
    assert not list(step.parameters())


def test_loaded_steps_are_steps(cases: dict[str, Case], saved: Path) -> None:
    """They are copied, pickled, saved again, and are the physics of other solvers."""
    (solver, (u, f)), step = cases["additive"], ph.load(saved)
    expected = solver(u, f)
    for other in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        assert same(other(u, f), expected)
    outer = ph.HybridSolver(step, SmallNet(2, 1, 1, gain=0.0))
    assert same(outer(u, f), expected)
    again = saved.with_name("again.ph")
    outer.save(again, u, f)
    assert same(ph.load(again)(u, f), expected)
    for one in (step, outer):
        with pytest.raises(ph.StateError, match="step = .*a loaded one has one precision"):
            ph.check_gradients(one, u, f)


def test_an_example_is_not_needed_after_a_call(cases: dict[str, Case], tmp_path: Path) -> None:
    solver, (u, f) = cases["before"]
    solver(u, f)
    solver.save(tmp_path / "solver.ph")
    assert same(ph.load(tmp_path / "solver.ph")(u, f), solver(u, f))


def test_other_states_are_refused(saved: Path) -> None:
    step, u, f = ph.load(saved), line(0, b=2), line(1, b=2)
    with pytest.raises(ph.StateError, match="boundary"):
        step(u.with_boundary(0), f)
    with pytest.raises(ph.StateError, match="1"):
        step(u)
    with pytest.raises(ph.StateError, match="float64"):
        step(*(g.with_values(math.wrap(g.values.native("b,x,vector").double(), g.shape)) for g in (u, f)))


def test_files_are_safetensors(saved: Path, cases: dict[str, Case]) -> None:
    """Other programs find the weights by their names."""
    header = saved.read_bytes()[8 : 8 + int.from_bytes(saved.read_bytes()[:8], "little")]
    for name, weight in cases["additive"][0].network.named_parameters():
        assert f'"constant/network.{name}": {{"dtype": "F32", "shape": {list(weight.shape)}'.encode() in header


class Spectral(torch.nn.Module):
    """A Fourier layer, with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(0.1 * torch.ones(2, 2, 3, 3, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        modes = torch.fft.rfft2(x)
        changed = torch.zeros_like(modes)
        changed[..., :3, :3] = torch.einsum("bixy,ioxy->boxy", modes[..., :3, :3], self.weights)
        return torch.fft.irfft2(changed, s=x.shape[-2:])


class Multigrid(torch.nn.Module):
    """Norms, pooling, interpolation, operations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
        self.norms = torch.nn.Sequential(torch.nn.GroupNorm(2, 4), torch.nn.BatchNorm2d(4), torch.nn.InstanceNorm2d(4))
        self.last = torch.nn.Conv2d(8, 2, 3, padding=1, padding_mode="reflect")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = torch.relu_(self.norms(self.first(x)))
        coarse = torch.nn.functional.silu(torch.nn.functional.max_pool2d(fine, 2))
        back = torch.nn.functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear")
        return self.last(torch.cat([fine, back], 1)) * torch.sigmoid(x.mean((2, 3), keepdim=True))


def test_networks_of_many_operators(tmp_path: Path) -> None:
    block, state = ph.capture(lambda v: v * 0.9, check=False), faces("periodic", 0, b=2)
    for network in (Spectral(), Multigrid()):
        solver = ph.HybridSolver(block, network)
        solver(state)  # training mode, which does not count
        solver.save(tmp_path / "solver.ph", state)
        assert same(ph.load(tmp_path / "solver.ph").rollout(state, 3), solver.rollout(state, 3)), network


# --- back into code ---


def test_weights_scales_features_and_boundaries_go_into_a_solver(cases: dict[str, Case], tmp_path: Path) -> None:
    solver, arguments = cases["factored"]
    solver.save(tmp_path / "solver.ph", *arguments)
    other = copy.deepcopy(solver)
    with torch.no_grad():
        for tensor in (*other.network.parameters(), other.input_scale, *other.feature_tensors(torch.float32)):
            tensor.mul_(1.5)
    other.boundaries = ()
    assert not same(other(*arguments), solver(*arguments))
    assert ph.load(tmp_path / "solver.ph", into=other) is other
    assert same(other(*arguments), solver(*arguments)) and other.boundaries == solver.boundaries


def differing(u: Field, f: Field) -> Field:
    return forced_step(u, f) * 0.9


DIFFERENT: dict[str, tuple[Any, str]] = {
    "physics": (lambda: ph.HybridSolver(ph.capture(differing, check=False), SmallNet(2, 1, 1)), "physics"),
    "coupling": (lambda: ph.HybridSolver(forced_step, SmallNet(2, 1, 1), damped), "coupling is .*damped"),
    "width": (lambda: ph.HybridSolver(forced_step, SmallNet(2, 1, 1, width=5)), "network.first.weight.*4.*5"),
    "layers": (lambda: ph.HybridSolver(forced_step, torch.nn.Conv1d(2, 1, 1)), "network.bias is not in the file"),
    "sees": (lambda: ph.HybridSolver(forced_step, SmallNet(2, 1, 1), sees=0), "sees is None in the file"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_differences_are_named_and_nothing_is_changed(what: str, saved: Path) -> None:
    make, message = DIFFERENT[what]
    solver = make()
    before = copy.deepcopy(solver.state_dict())
    with pytest.raises(ph.StateError, match=message):
        ph.load(saved, into=solver)
    after = solver.state_dict()
    assert all(torch.equal(after[k], v) if isinstance(v, torch.Tensor) else after[k] == v for k, v in before.items())


# --- wrong uses ---


class Looking(SmallNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Normalising(SmallNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x / len(x) ** 0.5)


def test_wrong_uses_name_the_way_out(tmp_path: Path, cases: dict[str, Case]) -> None:
    block, path, (u, f) = cases["additive"][0].physics, tmp_path / "solver.ph", cases["additive"][1]
    with pytest.raises(ph.StateError, match=r"never called.*solver\.save\(path, state"):
        ph.HybridSolver(block, SmallNet(2, 1, 1)).save(path)
    with pytest.raises(ph.StateError, match=r"forced_step is plain PhiFlow.*ph\.capture\(forced_step\)"):
        ph.HybridSolver(forced_step, SmallNet(2, 1, 1)).save(path, u, f)
    with pytest.raises(ph.CaptureError, match="values of tensors"):
        ph.HybridSolver(block, Looking(2, 1, 1)).save(path, u, f)
    with pytest.raises(ph.CaptureError, match="batch size"):
        ph.HybridSolver(block, Normalising(2, 1, 1)).save(path, u, f)
    copying = ph.capture(lambda u: math.expand(u, batch(copy=2)), check=False)
    with pytest.raises(ph.StateError, match="copy"):
        ph.HybridSolver(copying, SmallNet(1, 1, 1)).save(path, u)
    with pytest.raises(ph.StateError, match="path = 3"):
        ph.load(3)
    with pytest.raises(ph.StateError, match="into = "):
        ph.load(path, into=SmallNet(2, 1, 1))
    assert not path.exists()


def test_solvers_that_overflow_need_an_example(tmp_path: Path) -> None:
    block = ph.capture(lambda u: u * 1e30 * (u - 0.9) * 1e30, check=False)
    solver = scaled(ph.HybridSolver(block, SmallNet(1, 1, 1)), (1, 1))
    solver(line(0, b=1) * 0)
    with pytest.raises(ph.StateError, match="NaN or infinite.*give a state"):
        solver.save(tmp_path / "solver.ph")


def test_training_goes_on_as_before(cases: dict[str, Case], tmp_path: Path) -> None:
    """Saving changes neither mode nor weights nor random numbers."""
    solver, arguments = cases["parallel"]
    solver.train()
    before = [p.clone() for p in solver.parameters()]
    torch.manual_seed(0)
    solver.save(tmp_path / "solver.ph", *arguments)
    assert solver.training and equal(before, list(solver.parameters()))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
