"""Half-inverse gradients and Adam: a network learns to control a chain of oscillators, in equal time.

The network sees a state and returns the forces on the last of two oscillators that bring the chain back to that state after
24 steps (Schnell et al. 2022, arXiv 2203.10131). Directions of small effect are as important here as others; half-inverse
gradients, Δθ = −η V σ^(−½) Uᵀ ∂L/∂y with ∂y/∂θ = U σ Vᵀ, treat them more alike.

    python demos/half_inverse_gradients.py [--quick]  other cases: demos/studies/half_inverse_gradients.py
"""

import copy
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from phi.torch.flow import batch, math

import phi_hybrid as ph

QUICK, OUT = "--quick" in sys.argv, Path("out") / "half_inverse_gradients"
SAMPLES, SECONDS = 4096, 4 if QUICK else 15

print(f"Three optimizers, {SECONDS} s each, on one core of the CPU.")
torch.set_num_threads(1)
torch.manual_seed(0)
chain = ph.pde.oscillators.Oscillators()
states = chain.random_states(SAMPLES, seed=0)
physics = ph.capture(chain.controlled).bind(states, math.zeros(batch(time=chain.steps, trajectory=SAMPLES)))
(x,) = ph.bridge.flatten(states)[0]
training, held_out = x[:-512], x[-512:]

tanh, linear = torch.nn.Tanh, torch.nn.Linear
network = torch.nn.Sequential(
    torch.nn.Flatten(), linear(4, 20), tanh(), linear(20, 20), tanh(), linear(20, 20), tanh(), linear(20, chain.steps)
)


def closure(net, x):
    """Outputs y = P(network(x), x) and loss Σ|y − x|², a mean over the samples."""
    loss = lambda y: ((y - x) ** 2).flatten(1).sum(1).mean()  # noqa: E731
    return ph.optim.Closure(lambda: physics.native(x, net(x).T)[0], loss, net.parameters())


def train(net, optimizer, size):
    """Held-out losses over the seconds."""
    seconds, losses, used = [], [], 0.0
    while used < SECONDS:
        with torch.no_grad():
            look = closure(net, held_out)
            losses.append(float(look.loss(look.outputs())))
        seconds.append(used)
        began = time.perf_counter()
        for _ in range(20):
            optimizer.step(closure(net, training[torch.randint(len(training), (size,))]))
        used += time.perf_counter() - began
    return seconds, losses


copies = {name: copy.deepcopy(network) for name in ("Adam", "Gauss–Newton", "half-inverse")}
settings = dict(rcond=1e-6, per_sample=False, progress=False)
optimizers = {
    "Adam": (torch.optim.Adam(copies["Adam"].parameters(), 3e-3), 1024),
    "Gauss–Newton": (ph.optim.HIG(copies["Gauss–Newton"], kappa=1.0, **settings), 32),
    "half-inverse": (ph.optim.HIG(copies["half-inverse"], kappa=0.5, **settings), 32),
}
figure, ax = plt.subplots(layout="constrained")
print("                       updates  loss before  loss after")
for number, (name, (optimizer, size)) in enumerate(optimizers.items(), 1):
    print(f"{number} of 3: {name:13s}", end="  ", flush=True)
    seconds, losses = train(copies[name], optimizer, size)
    print(f"{20 * (len(losses) - 1):7d}  {losses[0]:11.3g}  {losses[-1]:10.3g}")
    ax.semilogy(seconds, losses, label=name)
print("updates: in equal time; loss: Σ|y − x|² of chains that were held out, a mean")
ax.set(xlabel="seconds", ylabel="held-out loss")
ax.legend()
OUT.mkdir(parents=True, exist_ok=True)
figure.savefig(OUT / "losses.png")
print(f"Figure: {OUT / 'losses.png'}")
