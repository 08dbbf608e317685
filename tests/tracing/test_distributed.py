"""A block in a DDP worker: loaded from a pickle, its native face between trainable parameters."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases.states import random_field, random_leaves
from cases.steps import Model, burgers

from phi_hybrid import capture

_WORKER = """
import pickle, sys
import torch
torch.set_num_threads(1)
from cases.steps import Model
rank, world, store, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
with open(file, "rb") as f:
    block, batches = pickle.load(f)
torch.distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world)
model = torch.nn.parallel.DistributedDataParallel(Model(block))
out = model(*batches[rank])
loss = sum((t**2).mean() for t in out)
loss.backward()
if rank == 0:
    torch.save(model.module.gain.grad, file + ".grad")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_block_in_data_parallel_training(tmp_path: Path) -> None:
    world = 2
    block = capture(burgers, random_field("staggered", "closed", 2, b=2))
    batches = [random_leaves("staggered", "closed", 2, (2,), seed=s) for s in range(world)]
    file = tmp_path / "block.pickle"
    file.write_bytes(pickle.dumps((block, batches)))
    here = Path(__file__).parents[1]
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _WORKER, str(rank), str(world), str(tmp_path / "store"), str(file)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [w.communicate(timeout=100)[0] for w in workers]
    finally:
        for w in workers:
            w.kill()
    assert all(w.returncode == 0 for w in workers), outputs
    model = Model(block)
    losses = [sum((t**2).mean() for t in model(*b)) for b in batches]
    (sum(losses) / world).backward()
    torch.testing.assert_close(torch.load(f"{file}.grad"), model.gain.grad, rtol=1e-6, atol=0)
    assert model.gain.grad.abs() > 1e-3
