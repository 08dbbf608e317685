"""The training loop: any solver, objective and optimizer; checkpoints, validation, exact resume."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from itertools import count
from typing import Any

import torch
from tqdm import tqdm

from phi_hybrid.bridge.checks import require_count, require_instance
from phi_hybrid.data import Batch, Mixture, Stream, Trajectories, require_writable
from phi_hybrid.errors import DataError, NonFiniteError, SolveError, StateError
from phi_hybrid.hybrid import HybridSolver
from phi_hybrid.linear_solve import checked_solves
from phi_hybrid.optim import Combination
from phi_hybrid.steps import Step
from phi_hybrid.training.callbacks import Callback
from phi_hybrid.training.checkpoint import read_checkpoint, write_checkpoint
from phi_hybrid.training.checks import (
    check_accumulation,
    check_callbacks,
    check_combination,
    check_gradient,
    check_trainer,
    check_validation_inputs,
    trained_parameters,
    warn_of_no_validation,
)
from phi_hybrid.training.closure import Closure, Skipped, numbers
from phi_hybrid.training.diagnosis import first_non_finite
from phi_hybrid.training.functions import description, text
from phi_hybrid.training.gradient import running_buffers
from phi_hybrid.training.gradient_norm import GradientNormAverage
from phi_hybrid.training.identity import differences, identity_of_data, identity_of_rates, identity_of_solver
from phi_hybrid.training.interruption import Signals, deferred_signals
from phi_hybrid.training.objective import Objective
from phi_hybrid.training.processes import Processes
from phi_hybrid.training.scales import estimate_scales
from phi_hybrid.training.snapshot import Snapshot, lengths_of, shorten
from phi_hybrid.training.validation import validation_errors, warn_if_worse

BATCH = 8
"""Windows per update, or as many as there are."""


class Trainer:
    """Trains a solver on windows of reference trajectories.

    A hybrid solver whose scales have not been set gets them estimated from the data. The order of the windows depends
    on the seed and the number of the update alone, so that a resumed training sees what it would have seen.

    Args:
        solver: `HybridSolver`, or another step with trainable parameters.
        data: reference trajectories on the solver's grid, a `Mixture` of several sets, or a
            `Stream` that computes them meanwhile.
        objective: e.g. `Unrolled(16)`, or a `Curriculum` of several.
        optimizer: any torch optimizer over the solver's parameters; called as `optimizer.step(closure)`. Several are one
            in `training.Optimizers`.
        scheduler: torch learning-rate scheduler of this optimizer, stepped after every update. `ReduceLROnPlateau` follows
            the validation error, stepped after every validation, or the loss where nothing is validated.
        batch_size: windows per update, or per part of one; all where there are fewer, with a warning if you asked for more.
        accumulate: number of parts of an update, one after the other, whose gradients are averaged: the gradient of
            `accumulate · batch_size` windows in the memory of `batch_size`. `clip` and `skip` look at the average.
        combine: how the gradients of the contributions to the loss become one, e.g. `ph.optim.ConFIG()`; their sum by
            default. Costs a backward pass for each contribution.
        clip: largest norm of the gradient; longer ones are scaled down to it. No limit by default.
        skip: updates whose gradient is longer than this multiple of recent ones are left out, e.g. 10; the
            weights stay as they are. None is by default.
        seed: of the window order and of torch's generator during training.
        validation: held-out trajectories, rolled out in full every `validate_every` updates; of a `Mixture`, the history has
            the error of every set, `mae NAME`, and their mean, `mae`, which schedulers and callbacks follow. At the end of
            `fit`, a hybrid solver that is worse on it than its physics without the network is warned of.
        checkpoint: file to which everything is saved, atomically, every `checkpoint_every` updates and at the end.
        callbacks: called around updates, e.g. `BestWeights()`, `EarlyStop(5)`, `AveragedWeights()`, `Log(writer)`.
        progress: whether to show a progress bar with loss and speed.
        label: text before the bar, e.g. `"stage 2 of 3"`; the objective by default.

    Under `torchrun`, each process takes its share of the windows of every update, and gradients are averaged: the same
    training as in one process, but for the random numbers that are drawn in it. The first process writes files.

    Attributes:
        history: `{'update', 'loss', 'lr', 'gradient_norm': [...], 'validation': {'update': [...], 'mae': [...]}}`, with
            the numbers of the updates that were clipped and skipped, `{'clipped', 'skipped': [...]}`, and the losses that
            the objective adds up, weighted, `{'contributions': {name: {'update': [...], 'value': [...]}}}`. All are those
            at the weights before the update, also where an optimizer asks for more than one loss.
        stopped: why a callback has ended the training, `None` if none has; set it to `None` to go on nevertheless.
        processes: that train together; `processes.rank` is the number of this one.

    Raises:
        DataError: if trajectories are shorter than the windows.
        StateError: for settings out of range, an optimizer over other parameters than the solver's, or validation data that
            the solver does not take.
    """

    def __init__(
        self,
        solver: Step,
        data: Trajectories | Mixture | Stream,
        objective: Objective,
        *,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        batch_size: int = BATCH,
        accumulate: int = 1,
        combine: Combination | None = None,
        clip: float | None = None,
        skip: float | None = None,
        seed: int = 0,
        validation: Trajectories | Mixture | None = None,
        validate_every: int = 100,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 100,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
        label: str | None = None,
    ) -> None:
        check_trainer(solver, data, objective, optimizer, scheduler, batch_size, clip, skip, seed, validation)
        check_accumulation(accumulate, optimizer)
        check_combination(combine, optimizer)
        check_gradient(objective, optimizer)
        check_callbacks(callbacks, validation)
        for name, value in {"validate_every": validate_every, "checkpoint_every": checkpoint_every}.items():
            require_count(name, value)
        if checkpoint is not None:
            require_writable("checkpoint", checkpoint)
        if label is not None:
            require_instance("label", label, str, "a text before the progress bar, e.g. 'stage 2 of 3'")
        self._parameters = trained_parameters(solver, optimizer)
        self._device = self._parameters[0].device
        check_validation_inputs(solver, data, validation, self._device)
        self.processes = Processes(self._device)
        self.solver = solver
        self.data = data
        self.objective = objective
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.combine = combine
        self.clip = None if clip is None else float(clip)  # NumPy's numbers would not come back from a checkpoint
        self.norm_average = GradientNormAverage(None if skip is None else float(skip))
        self.seed = int(seed)
        self.validation = validation
        self.validate_every = validate_every
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.progress = progress
        self._windows = cache(data.windows)
        self.windows = self._windows(objective.steps)
        self.batch_size = min(int(batch_size), len(self.windows))
        self.accumulate = min(int(accumulate), len(self.windows) // self.batch_size)
        if (self.batch_size, self.accumulate) != (batch_size, accumulate) != (BATCH, 1):
            warnings.warn(
                f"batch_size = {batch_size}, accumulate = {accumulate}: the data has {len(self.windows)} windows, so that "
                f"batch_size = {self.batch_size}, accumulate = {self.accumulate} are taken",
                stacklevel=2,
            )
        self.processes.check(self.batch_size, optimizer)
        self.callbacks = tuple(callbacks)
        self.label = f"train {type(objective).__name__}({objective.steps})" if label is None else label
        self.stopped: str | None = None
        self.update = 0
        self.history: dict[str, Any] = _empty_history()
        with torch.random.fork_rng():
            torch.manual_seed(self.seed % 2**64)
            self._rng = torch.get_rng_state()
        self._gradient_norm: float | None = None
        self._contributions: dict[str, float] = {}
        if isinstance(solver, HybridSolver) and not solver.scaled:
            estimate_scales(solver, data)
        self.processes.make_same([*self._parameters, *running_buffers(solver)])
        self._rates = identity_of_rates(optimizer, scheduler)  # now, before they change
        self._functions = f"{zlib.crc32(description(objective).encode()):08x}"
        self._snapshot = Snapshot(solver, optimizer, scheduler)
        self._evaluating = False

    def fit(self, updates: int | None = 1000) -> dict[str, Any]:
        """Trains until `updates` updates have been made in all; a resumed trainer makes those that are missing.

        With `None` it goes on until a callback stops it.

        Whatever ends it, Ctrl-C and SIGTERM included, leaves solver, optimizer and history as they were after the last
        complete update, saves them if there is a checkpoint, and lets a further `fit` go on as if nothing had happened.

        Returns:
            The history.

        Raises:
            NonFiniteError: if loss, gradient or new weights are not finite; the message names the step, the place and
                whether data, physics or network made it.
            SolveError: if a linear solve in the physics fails.
        """
        if updates is not None and (type(updates) is not int or updates < 0):
            require_count("updates", updates, 0)
        if updates is not None and self.update < updates < self.validate_every:
            warn_of_no_validation(self.callbacks, updates, self.validate_every)
        self.processes.check_together()
        shown = self.progress and self.processes.rank == 0
        left = count(self.update) if updates is None else range(self.update, updates)
        bar = tqdm(left, desc=self.label, disable=not shown, unit="update")
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(), deferred_signals() as signals:
            torch.set_rng_state(self._rng)
            self._snapshot.take()
            try:
                for _ in bar:
                    if self.stopped is not None:
                        break
                    loss = self._advance()
                    self._heed(signals)
                    self._show(bar, loss, self.update == updates)
                    if self.checkpoint is not None and self.update % self.checkpoint_every == 0:
                        self.save(self.checkpoint)
            except BaseException:
                self._save_after_an_error()
                raise
            if self.checkpoint is not None:
                self.save(self.checkpoint)
            self.processes.wait()  # none goes on to read a file that is being written
        if isinstance(self.solver, HybridSolver) and self.history["validation"]["mae"]:
            warn_if_worse(self.solver, self.validation, self.history["validation"])
        return self.history

    def _heed(self, signals: Signals) -> None:
        """Raises a signal that waits, and ends the training after the same update in all processes."""
        pending, stopped = self.processes.any(signals.pending, self.stopped is not None)
        if pending:
            signals.raise_pending()
            raise KeyboardInterrupt("another process was told to stop")
        if stopped and self.stopped is None:
            self.stopped = "a callback of another process has ended it"

    def _advance(self) -> float:
        """One update, whole or not at all; gives its loss."""
        self._snapshot.take(again=True)
        kept = self.update, lengths_of(self.history), self.norm_average.state(), self._rng, self.stopped
        states = [callback.state() for callback in self.callbacks]
        try:
            for callback in self.callbacks:
                callback.before_update(self)
            if (seed := self.processes.seed_for(self.seed, self.update)) is not None:
                torch.manual_seed(seed)
            objective = self.objective.at(self.update)
            windows = self._windows(objective.steps)
            batch = self.processes.share(windows.shuffled(self.update, self.batch_size * self.accumulate, self.seed))
            loss = self._update(objective, batch if self._device.type == "cpu" else batch.to(self._device))
            self._record(loss)
            self.processes.make_same(running_buffers(self.solver) if self.processes.count > 1 else ())
            for callback in self.callbacks:
                callback.after_update(self, loss)
            validates = self.validation is not None and self.update % self.validate_every == 0
            self._schedule(loss, self._validate() if validates else None)
            self._rng = torch.get_rng_state()
            return loss
        except BaseException:
            self._snapshot.restore()
            self.update, lengths, average, self._rng, self.stopped = kept
            shorten(self.history, lengths)
            self.norm_average.load(average)
            for callback, state in zip(self.callbacks, states):
                callback.load(state)
            raise

    def stop(self, reason: str) -> None:
        """Ends the training after the update under way; for callbacks."""
        self.stopped = reason

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[Step]:
        """Gives the solver with the weights to evaluate and ship: averaged ones, those of a schedule-free optimizer; the
        trained ones where there are no others. They are back afterwards, to the last bit.

        Within, as in `after_validation` of a callback, the solver has them already.
        """
        if self._evaluating:
            yield self.solver
            return
        trained = Snapshot(self.solver, self.optimizer, self.scheduler)
        trained.take()
        self._evaluating = True
        try:
            if callable(getattr(self.optimizer, "eval", None)):
                self.optimizer.eval()
            for callback in self.callbacks:
                callback.put_weights(self.solver)
            yield self.solver
        finally:
            self._evaluating = False
            trained.restore()

    def _show(self, bar: tqdm, loss: float, last: bool) -> None:
        if self.progress and (self.update % 10 == 0 or last):
            skipped = {"skipped": len(self.history["skipped"])} if self.history["skipped"] else {}
            bar.set_postfix(loss=f"{loss:.3e}", **skipped, refresh=False)

    def _save_after_an_error(self) -> None:
        """The last complete update, unless that fails, too: the first error is the one to be seen."""
        if self.checkpoint is None:
            return
        try:
            self.save(self.checkpoint)
        except Exception as error:
            warnings.warn(f"the last complete update could not be saved: {error}", RuntimeWarning, stacklevel=3)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes solver, optimizer, scheduler, random state and history; an older file stays whole until then.

        In several processes, the first one writes.
        """
        if self.processes.rank > 0:
            return
        state = {
            "solver": self.solver.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "rng": self._rng,
            "update": self.update,
            "stopped": self.stopped,
            "history": self.history,
            "usual_norm": self.norm_average.state(),
            "callbacks": [callback.state() for callback in self.callbacks],
            "settings": self._settings(),
        }
        write_checkpoint(path, state)
        for callback in self.callbacks:
            callback.after_checkpoint(self, os.fspath(path))

    def resume(self, path: str | os.PathLike[str]) -> Trainer:
        """Continues where a checkpoint left off: `trainer.resume(path).fit(updates)`.

        What a callback has ended stays ended, see `stopped`.

        Raises:
            DataError: if the file is missing or damaged.
            StateError: if it belongs to a training with other settings.
        """
        state = read_checkpoint(path, self._device)
        if missing := {"settings", "solver", "optimizer"} - state.keys():
            raise DataError(f"{path} is no checkpoint of a training: it lacks {sorted(missing)}; start anew")
        settings = state["settings"]
        if changed := differences(self._settings(), settings):
            raise StateError(
                f"the checkpoint {path} is of another training; now and then: {changed}. Resume with the settings that it has; "
                "to train on with others, give a new trainer the solver with its weights: "
                f"solver.load_state_dict(torch.load({os.fspath(path)!r})['solver'])"
            )
        self._snapshot.take()
        try:
            self.solver.load_state_dict(state["solver"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
        except Exception as error:
            self._snapshot.restore()
            raise StateError(f"the checkpoint {path} is of another solver or optimizer: {error}") from error
        self._rng = state["rng"].cpu()
        self.update = state["update"]
        self.stopped = state.get("stopped")
        self.history = state["history"]
        self.norm_average.load(state["usual_norm"])
        for callback, kept in zip(self.callbacks, state.get("callbacks", ())):
            callback.load(kept)
        return self

    def _update(self, objective: Objective, batch: Batch) -> float:
        self._gradient_norm, self._contributions = None, {}
        try:
            with checked_solves():
                closure = Closure(self, objective, batch)
                loss = self.optimizer.step(closure)
                loss = torch.as_tensor(closure.first_loss() if loss is None else loss, device=self._device)
                if self._gradient_norm is None:  # the closure itself was not called
                    grads = [p.grad for p in self._parameters if p.grad is not None]
                    self._gradient_norm = float(torch.nn.utils.get_total_norm(grads))
                largest = torch.nn.utils.get_total_norm([p.detach() for p in self._parameters], math.inf)
                loss, largest = numbers([loss, largest])
                self.require_finite("largest weight after the update", largest)
            return loss
        except SolveError as error:
            raise error.at(self.update, f"at update {self.update}") from error
        except Skipped as error:
            self._snapshot.restore()
            self.history["skipped"].append(self.update)
            return error.loss
        except NonFiniteError as error:
            self._snapshot.restore_weights()
            raise self._explained(error, batch) from None

    def _explained(self, error: NonFiniteError, batch: Batch) -> NonFiniteError:
        """The error with its place, and the batch and the weights in a file beside the checkpoint."""
        kept = ""
        if self.checkpoint is not None:
            path = f"{os.fspath(self.checkpoint)}.nonfinite{self.processes.rank or ''}"
            windows = {"states": batch.states, "inputs": batch.inputs}
            try:
                write_checkpoint(path, {**windows, "solver": self.solver.state_dict()})
                kept = f" Windows and weights are in {path}, for torch.load."
            except Exception as second:  # which must not take the place of what went wrong
                kept = f" Windows and weights could not be kept: {second}"
        where = first_non_finite(self.solver, batch, self.accumulate)  # writes into running statistics, restored later
        return NonFiniteError(f"{error}. {where}{kept}", error.step)

    def require_finite(self, name: str, value: float) -> None:
        """Raises NonFiniteError unless a number of this update is finite."""
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{name} is {value} at update {self.update} (learning rate {self.optimizer.param_groups[0]['lr']:g}); "
                "the solver keeps the weights before it. Reduce the learning rate, clip the gradient, or unroll fewer steps",
                self.update,
            )

    def _schedule(self, loss: float, error: float | None) -> None:
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            followed = loss if self.validation is None else error
            if followed is not None:
                self.scheduler.step(followed)
        elif self.scheduler is not None:
            try:
                self.scheduler.step()
            except ValueError as error:  # such as OneCycleLR after its last step
                raise StateError(
                    f"{type(self.scheduler).__name__} fails after update {self.update}: {error}. Make a scheduler for all "
                    "updates that are to be made"
                ) from error

    def _record(self, loss: float) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        entry = {"update": self.update, "loss": loss, "lr": lr, "gradient_norm": self._gradient_norm}
        for name, value in entry.items():
            self.history[name].append(value)
        if self.clip is not None and self._gradient_norm > self.clip:
            self.history["clipped"].append(self.update)
        if len(self._contributions) > 1:
            for name, value in self._contributions.items():
                curve = self.history["contributions"].setdefault(name, {"update": [], "value": []})
                curve["update"].append(self.update)
                curve["value"].append(value)
        self.norm_average.see(self._gradient_norm)
        self.update += 1

    def _validate(self) -> float:
        with self.evaluation_weights() as solver:
            errors = validation_errors(solver, self.validation)
            for name, value in {"update": self.update, **errors}.items():
                self.history["validation"].setdefault(name, []).append(value)
            for callback in self.callbacks:
                callback.after_validation(self, errors["mae"])
        return errors["mae"]

    def _settings(self) -> dict[str, Any]:
        return {
            "objective": text(self.objective),
            "what functions of the objective do": self._functions,
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            "combine": repr(self.combine),
            "callbacks": [type(callback).__name__ for callback in self.callbacks],
            "seed": self.seed,
            "windows": len(self.windows),
            "clip": self.clip,
            "skip": self.norm_average.skip,
            "optimizer": type(self.optimizer).__name__,
            "scheduler": None if self.scheduler is None else type(self.scheduler).__name__,
            **self._rates,
            **self._identity,
        }

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """Of data and solver, by the windows of the first update."""
        objective = self.objective.at(0)
        batch = self._windows(objective.steps).shuffled(0, self.batch_size, self.seed)
        batch = batch.parts(self.processes.count)[0].to(self._device)  # of a shape that the training has, too
        return {"data": identity_of_data(self.data), **identity_of_solver(self.solver, batch)}


def _empty_history() -> dict[str, Any]:
    per_update = {name: [] for name in ("update", "loss", "lr", "gradient_norm", "clipped", "skipped")}
    return {**per_update, "contributions": {}, "validation": {"update": [], "mae": []}}
