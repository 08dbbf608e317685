"""Floor 6: solvers as files: saved and loaded without their code, and exported for torch alone."""

from phi_hybrid.deployment.exporting import ExportedStep, TensorDescription, export
from phi_hybrid.deployment.loading import LoadedStep, load
from phi_hybrid.deployment.saving import save_step

__all__ = ["ExportedStep", "LoadedStep", "TensorDescription", "export", "load", "save_step"]
