"""Floor 7: inverse problems, steady states, and simulators run backwards."""

from phi_hybrid.inverse import flow, motion
from phi_hybrid.inverse.reconstruction import Reconstruction, reconstruct
from phi_hybrid.inverse.steady import fixed_point, steady_state

__all__ = ["Reconstruction", "fixed_point", "flow", "motion", "reconstruct", "steady_state"]
