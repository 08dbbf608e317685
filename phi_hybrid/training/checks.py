"""What a training is given, checked before any work is done."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from phi_hybrid.bridge.checks import require, require_arguments, require_count, require_instance, require_number
from phi_hybrid.data import Mixture, Stream, Trajectories, require_sets, sets_of
from phi_hybrid.errors import StateError
from phi_hybrid.steps import Step
from phi_hybrid.training.callbacks import Callback
from phi_hybrid.training.gradient import GradientMode
from phi_hybrid.training.objective import Curriculum, Objective

_SCHEDULER = (torch.optim.lr_scheduler.LRScheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)


def check_trainer(
    solver: Step,
    data: Trajectories | Mixture | Stream,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    batch_size: int,
    clip: float | None,
    skip: float | None,
    seed: int,
    validation: Trajectories | Mixture | None,
) -> None:
    """Raises StateError for arguments of the wrong kind or out of range, naming the first of them."""
    require_instance("solver", solver, Step, "a HybridSolver or another step module: HybridSolver(physics, network)")
    require_sets("data", data)
    require_instance("objective", objective, Objective, "an objective, e.g. Unrolled(16)")
    way_out = "a torch optimizer, e.g. torch.optim.Adam(solver.parameters())"
    require_instance("optimizer", optimizer, torch.optim.Optimizer, way_out)
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise StateError(f"{type(optimizer).__name__}(maximize=True) would make errors larger; leave it out")
    if scheduler is not None:
        way_out = "a torch learning-rate scheduler, e.g. CosineAnnealingLR(optimizer, 1000)"
        require_instance("scheduler", scheduler, _SCHEDULER, way_out)
        if scheduler.optimizer is not optimizer:
            raise StateError("the scheduler belongs to another optimizer than the one given; make it with this one")
        if getattr(scheduler, "mode", "min") == "max" and isinstance(scheduler, _SCHEDULER[1]):
            raise StateError(
                f"{type(scheduler).__name__}(mode='max') follows errors, which should fall: use mode='min'"
            )
    require_count("batch_size", batch_size)
    require_count("seed", seed, None)
    if skip is not None:
        require_number("skip", skip, above=1, way_out="a multiple of the usual gradient norm, e.g. 10, or None")
    if clip is not None:
        require_number("clip", clip, above=0, way_out="the largest norm of a gradient, or None for no limit")
    if getattr(optimizer, "takes_outputs", False) and (clip is not None or skip is not None):
        raise StateError(
            f"clip = {clip} and skip = {skip} act on gradients, which {type(optimizer).__name__} does not use: leave them "
            "out, and take a smaller lr or a larger rcond"
        )
    if validation is not None:
        require_sets("validation", validation)
        way_out = "a fixed set, e.g. Stream(…, seed=1).stored(4)"
        require(not isinstance(validation, Stream), "validation", validation, way_out)
        if validation.state_layout != data.state_layout:
            raise StateError(
                "the validation data is of another kind than the training data: "
                f"{data.state_layout.difference(validation.state_layout)}. Take both from one set, e.g. data.split(0.8)"
            )
        own, held = (len(d.input_layout.children) for d in (data, validation))
        if own != held:
            raise StateError(
                f"the validation data has {held} inputs of a step and the training data {own}: give both those that the "
                "solver's step takes, e.g. with data.with_inputs(…)"
            )
        if shared := shared_trajectories(data, validation):
            warnings.warn(
                f"validation = {validation}: {shared} of its trajectories are trained on, so that its error does not show "
                "whether others are learned; hold some out, data.split(0.8)",
                stacklevel=3,
            )


def check_validation_inputs(
    solver: Step, data: Trajectories | Mixture | Stream, validation: Trajectories | Mixture | None, device: torch.device
) -> None:
    """Raises StateError for inputs of another kind than those trained with, unless the solver takes them, too."""
    if validation is None or validation.input_layout == data.input_layout:
        return
    try:
        validation.windows(1).shuffled(0, 1, 0).to(device).bind(solver)
    except Exception as error:
        raise StateError(
            "the solver does not take the inputs of the validation data, which are of another kind than those of the "
            f"training data, {data.input_layout.difference(validation.input_layout)}: {error}"
        ) from error


def shared_trajectories(data: Trajectories | Mixture | Stream, validation: Trajectories | Mixture) -> int:
    """Number of validation trajectories that are trained on; of a stream, those of its first update are known."""
    if not isinstance(data, Stream):
        return len(_places(data) & _places(validation))
    seen = {t.numpy(force=True).tobytes() for t in data.first.states[0][:, 0]}
    return sum(t.numpy(force=True).tobytes() in seen for p in sets_of(validation).values() for t in p.states[0][:, 0])


def _places(data: Trajectories | Mixture) -> set[int]:
    """Where in memory the trajectories begin; slices of a set share them."""
    return {states.data_ptr() for part in sets_of(data).values() for states in part.states[0]}


def check_accumulation(accumulate: int, optimizer: torch.optim.Optimizer) -> None:
    """Raises StateError for a number of parts that is none, and for optimizers that look at outputs instead of gradients."""
    require_count("accumulate", accumulate)
    if accumulate > 1 and getattr(optimizer, "takes_outputs", False):
        raise StateError(
            f"accumulate = {accumulate}: {type(optimizer).__name__} looks at the outputs of all windows at once. Leave it out, "
            "and take a larger batch_size"
        )


def check_gradient(objective: Objective, optimizer: torch.optim.Optimizer) -> None:
    """Raises StateError for gradient modes that an optimizer would ignore, as it differentiates the outputs itself."""
    if not getattr(optimizer, "takes_outputs", False):
        return
    for name, mode in _gradient_modes(objective).items():
        if mode.overrides_backward:
            raise StateError(
                f"{name} = {mode!r} acts on the gradient of the loss, which {type(optimizer).__name__} does not use: take "
                "another mode, e.g. Full() or Paths(network=0), or an optimizer such as Adam"
            )


def _gradient_modes(objective: Objective) -> dict[str, GradientMode]:
    """Name → gradient mode of an objective, or of every stage of a curriculum."""
    if not isinstance(objective, Curriculum):
        return {"gradient": objective.gradient}
    stages = {start: _gradient_modes(stage) for start, stage in objective.stages.items()}
    return {f"stages[{start}].{name}": mode for start, modes in stages.items() for name, mode in modes.items()}


def check_combination(combine: Any, optimizer: torch.optim.Optimizer) -> None:
    """Raises StateError for what cannot combine gradients, and for optimizers that need the gradient of one loss."""
    if combine is None:
        return
    combines = callable(combine) and not isinstance(combine, type)
    require(combines, "combine", combine, "a combination of gradients, e.g. ph.optim.ConFIG(), or None for their sum")
    require_arguments("combine", combine, "gradients", "generator")
    if getattr(optimizer, "takes_outputs", False) or isinstance(optimizer, torch.optim.LBFGS):
        raise StateError(
            f"combine = {combine}: {type(optimizer).__name__} needs a loss of which its gradient is the gradient, which a "
            "combination is not; leave it out, or take an optimizer such as Adam"
        )


def check_callbacks(callbacks: Any, validation: Any) -> None:
    """Raises StateError for what are no callbacks, and for callbacks that would not do what they are there for."""
    require_instance("callbacks", callbacks, (list, tuple), "callbacks in a list, e.g. [BestWeights(), EarlyStop(5)]")
    for number, callback in enumerate(callbacks):
        require_instance(f"callbacks[{number}]", callback, Callback, "an object of a subclass of training.Callback")
        _check_methods(callback, f"callbacks[{number}]")
        if callback.needs_validation and validation is None:
            raise StateError(
                f"callbacks[{number}] = {type(callback).__name__} looks at validation errors, and none are computed: give the "
                "trainer held-out trajectories, validation=held, or leave the callback out"
            )
    named = [type(callback).__name__ for callback in callbacks]
    require(len({*map(id, callbacks)}) == len(callbacks), "callbacks", named, "each callback once")
    shipping = [type(c).__name__ for c in callbacks if type(c).put_weights is not Callback.put_weights]
    require(len(shipping) < 2, "callbacks", shipping, "at most one that gives the solver other weights to be evaluated")


def warn_of_no_validation(callbacks: Sequence[Callback], updates: int, validate_every: int) -> None:
    """Warns of callbacks that look at validation errors in a training that ends before the first one."""
    if waiting := [type(callback).__name__ for callback in callbacks if callback.needs_validation]:
        warnings.warn(
            f"{', '.join(waiting)} will see no validation error in {updates} updates, as validate_every = "
            f"{validate_every}: choose a smaller one",
            stacklevel=3,
        )


def _check_methods(callback: Callback, name: str) -> None:
    """Methods have the names that are called, and take what they are called with."""
    known = [n for n in vars(Callback) if inspect.isfunction(getattr(Callback, n)) and not n.startswith("_")]
    if unknown := [n for n in dir(callback) if n.startswith(("before_", "after_")) and n not in known]:
        raise StateError(f"{name} has a method {unknown[0]}, which would never be called; those called are {known}")
    for method in known:
        _, *arguments = inspect.signature(getattr(Callback, method)).parameters
        require_arguments(f"{name}.{method}", getattr(callback, method), *arguments)


def trained_parameters(solver: Step, optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """The optimizer's parameters.

    Raises:
        StateError: if some are not the solver's, or none can be trained.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = {id(p) for p in solver.parameters()}
    if strangers := sum(id(p) not in own for p in parameters):
        raise StateError(
            f"{strangers} of the optimizer's {len(parameters)} parameters are not the solver's, so they would not be "
            "trained; make the optimizer with solver.parameters() of this very solver (a copy has parameters of its own)"
        )
    if any(isinstance(p, torch.nn.parameter.UninitializedParameter) for p in parameters):
        raise StateError(
            "some layers of the network have not seen a state yet, so that they have no weights (torch's Lazy… layers); call "
            "the solver once before: solver(data.initial_state, *inputs)"
        )
    if not any(p.requires_grad for p in parameters):
        raise StateError(
            f"all {len(parameters)} parameters are frozen (requires_grad=False), so nothing would be trained; unfreeze "
            "those to train: network.requires_grad_(True)"
        )
    return parameters
