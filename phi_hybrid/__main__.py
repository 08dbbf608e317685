"""`python -m phi_hybrid`: versions, devices, and whether steps can be compiled here; what a bug report needs."""

from __future__ import annotations

import platform
import time
import warnings
from importlib import metadata

import torch

PACKAGES = "phiflow", "phiml", "torch", "numpy", "matplotlib", "h5py"


def main() -> None:
    """Prints a few lines; takes a quarter of a minute where a compiler has to be started."""
    print("phi_hybrid", metadata.version("phi_hybrid"), "| Python", platform.python_version(), "|", platform.platform())
    versions = {name: metadata.version(name) for name in PACKAGES}
    versions["torch"] = torch.__version__  # with its build: +cu130
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"devices: cpu ({torch.get_num_threads()} threads){''.join(f', {name}' for name in accelerators())}")
    print(capture_report())


def accelerators() -> list[str]:
    """Names of the devices besides the CPU that torch sees."""
    names = [f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(torch.cuda.device_count())]
    return [*names, "mps"] if torch.backends.mps.is_available() else names


def capture_report() -> str:
    """Captures and compiles a step, compares both with PhiFlow, and says how that went."""
    from phi.torch.flow import PERIODIC, CenteredGrid, Noise, advect, math

    import phi_hybrid as ph

    def step(u: object) -> object:
        return advect.semi_lagrangian(u, u, 0.1)

    u = CenteredGrid(Noise(vector="x,y"), PERIODIC, x=16, y=16)
    found = []
    for compiled in (False, True):
        name, began = "compile=True" if compiled else "capture", time.perf_counter()
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always", RuntimeWarning)
                difference = float(math.max(math.abs(ph.capture(step, compile=compiled)(u).values - step(u).values)))
            notes = "".join(f"; {w.message}" for w in heard if issubclass(w.category, RuntimeWarning))
            found.append(f"{name}: works, {time.perf_counter() - began:.1f} s, difference {difference:.0e}{notes}")
        except Exception as error:  # whatever it is, the report says so
            found.append(f"{name}: fails, {type(error).__name__}: {str(error).splitlines()[0]}")
    return "\n".join(found)


if __name__ == "__main__":
    main()
