"""Prints as JSON how much anonymous memory loading and evaluating takes; run in a process of its own by data/test_store.

python -m cases.memory FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from phi.torch.flow import PERIODIC, CenteredGrid, Field, batch, math, spatial

import phi_hybrid as ph

CELLS, STEPS, COUNT = 128, 20, 32


def anonymous_memory() -> float:
    """MB that are not backed by files."""
    row = next(r for r in Path("/proc/self/status").read_text().splitlines() if r.startswith("RssAnon"))
    return int(row.split()[1]) * 1024 / 1e6


def largest(data: ph.Trajectories) -> float:
    """Most memory in any step of an evaluation."""
    used = []

    def sampled(u: Field) -> Field:
        used.append(anonymous_memory())
        return 0.99 * u

    ph.evaluate({"sampled": sampled}, data, metrics={"spectrum": ph.metrics.SpectrumError()}, batch_size=8)
    return max(used)


def main(path: Path) -> None:
    torch.set_num_threads(1)
    values = torch.randn(COUNT, CELLS, CELLS, generator=torch.Generator().manual_seed(0))
    u = CenteredGrid(math.wrap(values, batch("b"), spatial("x,y")), PERIODIC, x=CELLS, y=CELLS)
    data = ph.Trajectories.generate(lambda v: v, u, STEPS, path=path, progress=False)
    assert data.scale and largest(data[:8]) > 0  # warms what is kept once and for all
    del data
    start = anonymous_memory()
    lazy = ph.Trajectories.load(path, lazy=True)
    assert lazy.scale
    found = {"file": path.stat().st_size / 1e6, "lazy": anonymous_memory() - start}
    found |= {str(count): largest(lazy[:count]) - start for count in (8, COUNT)}
    loaded = ph.Trajectories.load(path)
    found["loaded"] = anonymous_memory() - start
    assert len(loaded) == COUNT
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "data.h5")
