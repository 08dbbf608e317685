"""Kernels in C++ for compiled graphs on the CPU, built when first used."""

from phi_hybrid.tracing.kernels.sampling import pull_back, sample

__all__ = ["pull_back", "sample"]
