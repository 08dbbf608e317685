"""One thread per process: the tests are small, and run side by side."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("thorough", max_examples=1000)
