"""The model-free controller: proximal policy optimisation (Schulman et al. 2017) on the captured physics.

Needs stable-baselines3: pip install -c constraints.txt -e ".[rl]"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from controllers import controlled, effort
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

import phi_hybrid as ph
from phi_hybrid.bridge import ChannelMap


class Environments(VecEnv):
    """Many samples that are stepped at once by one captured block; all episodes begin and end together.

    The rewards of an episode add up to minus the loss of the training through the solver, scaled.
    """

    def __init__(self, case: Any, physics: ph.PhysicsBlock, data: ph.Trajectories, count: int, seed: int) -> None:
        self.case, self.data = case, data
        self.solver = controlled(case, physics, lambda seen: self.action)
        self.generator = torch.Generator().manual_seed(seed)
        self.calls = 0
        seen, done = ((-np.inf, np.inf, case.observations), (-10.0, 10.0, case.actions))
        super().__init__(count, *(spaces.Box(low, high, (n,), np.float32) for low, high, n in (seen, done)))

    def reset(self) -> np.ndarray:
        chosen = torch.randint(len(self.data), (self.num_envs,), generator=self.generator)
        self.batch, self.step_number = self.data[chosen.tolist()].whole(), 0
        self.inputs, self.bound = self.batch.step_inputs, self.batch.bind(self.solver)
        self.state = self.bound.state
        frame = self.inputs.frame_layout
        self.channels = ChannelMap(replace(frame, children=(self.batch.layout, *frame.children[1:])))
        return self.observations()

    def observations(self) -> np.ndarray:
        inputs = self.inputs.at(self.step_number)[self.case.dims :]  # without the force
        return self.case.observe(self.channels.to_channels((*self.state, *inputs))).numpy()

    def step_async(self, actions: np.ndarray) -> None:
        self.action = torch.from_numpy(actions)

    @torch.no_grad()
    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        self.state = self.bound.step(*self.state, *self.inputs.at(self.step_number))
        self.calls += self.num_envs
        self.step_number += 1
        over = self.step_number == self.case.steps
        cost = self.case.effort_weight * effort(self.case, tuple(s[:, None] for s in self.state))
        if over:
            cost = cost + self.case.distance(self.state[-1], self.batch.targets[-1][:, -1])
        seen = self.reset() if over else self.observations()
        return (
            seen,
            -self.case.rl.reward_scale * cost.numpy(),
            np.full(self.num_envs, over),
            [{} for _ in range(self.num_envs)],
        )

    def close(self) -> None: ...

    def get_attr(self, name: str, indices: Any = None) -> list:
        return [getattr(self, name, None)] * self.num_envs

    def set_attr(self, name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list:
        raise NotImplementedError(f"{name}: these environments have no methods of their own")

    def env_is_wrapped(self, wrapper: type, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


class _Looks(BaseCallback):
    """Calls a function about `count` times, at the beginning of a rollout."""

    def __init__(self, look: Callable[[], None], every: int) -> None:
        super().__init__()
        self.look, self.every, self.next = look, every, 0

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.next:
            self.next += self.every
            self.look()

    def _on_step(self) -> bool:
        return True


def model_free(
    case: Any, physics: ph.PhysicsBlock, data: ph.Trajectories, steps: int, seed: int, looks: int, look: Callable
) -> ph.HybridSolver:
    """Trained on rewards alone; `look(solver, calls)` every now and then. Networks are of the sizes of `policy`."""
    environments = Environments(case, physics, data, case.rl.environments, seed)
    model = PPO(
        "MlpPolicy",
        environments,
        learning_rate=lambda left: case.rl.rate * left,
        n_steps=case.steps,
        batch_size=case.rl.batch,
        n_epochs=case.rl.epochs,
        gamma=case.rl.gamma,
        gae_lambda=0.95,
        policy_kwargs=dict(net_arch=[128, 128], activation_fn=torch.nn.ReLU, log_std_init=case.rl.log_std),
        device="cpu",
        seed=seed,
    )
    solver = controlled(case, physics, lambda seen: model.policy.get_distribution(seen).mode())
    model.learn(steps, callback=_Looks(lambda: look(solver, environments.calls), max(1, steps // looks)))
    look(solver, environments.calls)
    return solver
