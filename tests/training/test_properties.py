"""What holds for all trainings: in parts or resumed they are the same to the last bit; one update is the loop by hand."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from cases.drawn import few
from cases.small import SmallNet, forced_step, line, native_of, step
from hypothesis import given
from hypothesis import strategies as st

import phi_hybrid as ph
from phi_hybrid import gradient, losses
from phi_hybrid.training import AveragedWeights, BestWeights, Diverted, EarlyStop, Pushforward, Ramp

UPDATES, TRAJECTORIES, STEPS = 6, 4, 5
DTYPES = {32: torch.float32, 64: torch.float64}


@cache
def block() -> ph.PhysicsBlock:
    return ph.capture(forced_step)


@cache
def data(precision: int) -> ph.Trajectories:
    dtype = DTYPES[precision]
    start, force = line(0, dtype=dtype, b=TRAJECTORIES), line(1, dtype=dtype, b=TRAJECTORIES, time=STEPS)
    reference = ph.capture(lambda u, f: 0.9 * step(u) + f)
    return ph.Trajectories.generate(reference, start, STEPS, (force,), progress=False)


@cache
def held(precision: int) -> ph.Trajectories:
    return data(precision)[[1, 3]]  # a copy


@dataclass(frozen=True)
class Setup:
    """All that decides about a training; functions make what changes during one."""

    precision: int
    dropout: float
    objective: Any
    optimizer: Callable
    scheduler: Callable
    settings: tuple[tuple[str, Any], ...]
    callbacks: tuple[Callable, ...]

    def make(self, **settings: Any) -> ph.Trainer:
        """Everything anew, as in a new process."""
        network = SmallNet(2, 1, 1, dropout=self.dropout).to(DTYPES[self.precision])
        solver = ph.HybridSolver(block(), network)
        optimizer = self.optimizer(solver.parameters())
        settings = {**dict(self.settings), "callbacks": [make() for make in self.callbacks], **settings}
        return ph.Trainer(
            solver,
            data(self.precision),
            self.objective,
            optimizer=optimizer,
            scheduler=self.scheduler(optimizer),
            progress=False,
            **settings,
        )

    def __repr__(self) -> str:
        return f"{self.objective}, {self.precision} bits, dropout {self.dropout}, {dict(self.settings)}, …"


SCHEDULES = torch.optim.lr_scheduler
OPTIMIZERS: dict[str, Callable] = {
    "momentum": lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, centered=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3),
    "two": lambda p: two(list(p)),
}
SCHEDULERS: dict[str, Callable] = {
    "none": lambda o: None,
    "steps": lambda o: SCHEDULES.StepLR(o, 2, 0.5),
    "cosine": lambda o: SCHEDULES.CosineAnnealingWarmRestarts(o, 3),
    "one cycle": lambda o: SCHEDULES.OneCycleLR(o, 1e-2, total_steps=3 * UPDATES, cycle_momentum=False),
    "plateau": lambda o: SCHEDULES.ReduceLROnPlateau(o, patience=0, threshold=0.5),
    "warm-up": lambda o: SCHEDULES.SequentialLR(o, [SCHEDULES.LinearLR(o), SCHEDULES.ExponentialLR(o, 0.9)], [2]),
}
NOISES = (
    None,
    None,
    ph.Noise(0.1),
    ph.Noise(0.1, "every_step", schedule=Ramp(1, 0, 3)),
    ph.Noise(0.1, "every_step", target="adjusted"),
)
MODES = (
    gradient.Full(),
    gradient.Full(),
    gradient.Detached(),
    gradient.Truncated(2),
    gradient.Checkpointed(2),
    gradient.Paths(network=0),
    gradient.Paths(step=0.9),
    gradient.SignConsistent(),
)
TERMS = (
    losses.Losses({"state": losses.L2()}),
    losses.Losses({"a": losses.L1(at=losses.LastStep()), "b": (0.1, losses.BeforeCorrection(losses.L2()))}),
)


def two(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return ph.training.Optimizers(torch.optim.Adam(parameters[:2], 1e-2), torch.optim.SGD(parameters[2:], 1e-3))


@st.composite
def unrolled(draw: st.DrawFn) -> ph.Unrolled:
    steps = draw(st.integers(1, 4))
    pick = lambda options: draw(st.sampled_from(options))  # noqa: E731
    warm_up = draw(st.integers(0, steps - 1))
    return ph.Unrolled(steps, pick(TERMS), gradient=pick(MODES), warm_up=warm_up, noise=pick(NOISES))


OBJECTIVES = st.one_of(
    unrolled(),
    unrolled(),
    unrolled(),
    st.integers(1, 4).map(Pushforward),
    st.builds(Diverted, st.integers(1, 3), st.just(block()), st.sampled_from(MODES[:5])),
    st.builds(lambda a, b, at: ph.Curriculum({0: a, at: b}), unrolled(), unrolled(), st.integers(1, UPDATES - 1)),
)


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    precision, optimizer = draw(st.sampled_from([32, 64])), draw(st.sampled_from(list(OPTIMIZERS)))
    settings: dict[str, Any] = {
        "batch_size": draw(st.integers(1, 5)),
        "accumulate": draw(st.integers(1, 3)),
        "clip": draw(st.sampled_from([None, 1e-2, 1.0])),
        "skip": draw(st.sampled_from([None, 1.01, 3])),
        "seed": draw(st.integers(0, 99)),
    }
    callbacks: list[Callable] = [AveragedWeights]
    if draw(st.booleans()):
        settings |= {"validation": held(precision), "validate_every": draw(st.integers(1, 3))}
        callbacks += [BestWeights, lambda: EarlyStop(2)]
    return Setup(
        precision,
        draw(st.sampled_from([0.0, 0.2])),
        draw(OBJECTIVES),
        OPTIMIZERS[optimizer],
        SCHEDULERS[draw(st.sampled_from(list(SCHEDULERS)))],
        tuple(settings.items()),
        tuple(draw(st.lists(st.sampled_from(callbacks), max_size=2, unique=True))),
    )


def plain(value: Any) -> Any:
    """Tensors as lists of their bits, for comparisons with ==."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.flatten().view(torch.uint8).tolist() if value.dim() else repr(value.item())
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else repr(value)


def left_by(trainer: ph.Trainer) -> dict[str, Any]:
    """Everything that a training leaves behind, to the last bit."""
    parts = {"solver": trainer.solver, "optimizer": trainer.optimizer, "scheduler": trainer.scheduler}
    states = {name: part.state_dict() for name, part in parts.items() if part is not None}
    states["callbacks"] = [callback.state() for callback in trainer.callbacks]
    states["norm"] = trainer.norm_average.state()
    return plain({**states, "history": trainer.history, "update": trainer.update})


@few(20)
@given(setups(), st.lists(st.integers(0, UPDATES), max_size=2))
def test_a_training_in_parts_is_the_whole(setup: Setup, cuts: list[int]) -> None:
    whole, parts = setup.make(), setup.make()
    whole.fit(UPDATES)
    for cut in [*sorted(cuts), UPDATES]:
        parts.fit(cut)
    assert left_by(parts) == left_by(whole)


@few(20)
@given(setups(), st.integers(0, UPDATES), st.booleans())
def test_a_resumed_training_is_the_whole(setup: Setup, cut: int, used: bool) -> None:
    """Saved after any update, resumed by a fresh trainer or by one that was used."""
    whole, first, second = setup.make(), setup.make(), setup.make()
    whole.fit(UPDATES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pt"
        first.fit(cut)
        first.save(path)
        if used:
            second.fit(2)
        second.resume(path)
        assert left_by(second) == left_by(first)
        second.fit(UPDATES)
    assert left_by(second) == left_by(whole)


# --- one update by hand ---


@few(15)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.sampled_from([32, 64]), st.integers(0, 20))
def test_one_update_is_the_loop_by_hand(
    steps: int, batch_size: int, accumulate: int, precision: int, seed: int
) -> None:
    """Loss and gradient of windows that are cut, rolled out and compared one by one."""
    setup = Setup(precision, 0.0, ph.Unrolled(steps), lambda p: torch.optim.SGD(p, 0.0), lambda o: None, (), ())
    trainer = setup.make(batch_size=batch_size, accumulate=accumulate, seed=seed)
    parameters = list(trainer.solver.parameters())
    windows = trainer.windows.shuffled(0, trainer.batch_size * trainer.accumulate, seed)
    loss, sizes = 0, trainer.data.states[0].double().std()
    for states, forces in zip(windows.states[0], windows.inputs[0]):
        u = states[:1]
        for n in range(steps):
            (u,) = native_of(trainer.solver, u, forces[n : n + 1])
            loss = loss + (((u[0] - states[n + 1]) / sizes) ** 2).mean() / (steps * len(windows.states[0]))
    expected = torch.autograd.grad(loss, parameters)
    history = trainer.fit(1)
    tolerance = {32: 2e-5, 64: 1e-12}[precision]
    torch.testing.assert_close(history["loss"][0], loss.item(), rtol=tolerance, atol=0)
    norm = torch.nn.utils.get_total_norm(expected)
    torch.testing.assert_close(history["gradient_norm"][0], norm.item(), rtol=tolerance, atol=0)
    for parameter, own in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, own, rtol=0, atol=tolerance * float(norm))
