"""One thread per process: the tests are small, and run side by side."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
