"""Kernels in C++ for compiled graphs on the CPU, built when first used."""

from phi_hybrid.tracing.kernels.sampling import is_available, pull_back, takes

__all__ = ["is_available", "pull_back", "takes"]
