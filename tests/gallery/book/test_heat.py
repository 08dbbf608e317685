"""Heat that spreads and is sharpened again by Fourier transforms: the forward step and the inverse of the book."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

BOX = dict(y=12, x=16, bounds=Box(y=12, x=16))


def diffused(grid, amount=2.0):
    return diffuse.fourier(grid, amount, 1)


def sharpened(grid: Grid, uncertainty=1e-4, amount=2.0):
    """Inverse diffusion, damped where noise would be larger than the signal."""
    spread = math.sqrt(math.sum((uncertainty * abs(grid.values)) ** 2, dim="x,y"))
    squared = math.sum(math.fftfreq(grid.shape, grid.dx) ** 2, "vector")
    log_kernel = (2 * np.pi) ** 2 * squared * amount
    limit = math.to_float(math.floor(math.log(math.wrap(np.finfo(np.float32).max))))
    kernel = math.exp(math.minimum(log_kernel, limit))
    amplitude = math.fft(grid.values)
    signal = math.exp(-0.5 * (abs(amplitude) / (grid.shape.get_size("x") / kernel)) ** 2) * 0.5
    signal = math.where(math.is_finite(signal), signal, math.zeros_like(signal))
    noise = math.exp(-0.5 * (abs(amplitude) / spread) ** 2) * 0.5
    probability = math.safe_div(signal, signal + noise)
    action = math.where((0.5 >= probability) | (probability >= 0.68), 2 * (probability - 0.5), 0.0)
    kernel = math.exp(log_kernel * action)
    return grid.with_values(math.real(math.ifft(amplitude * math.to_complex(kernel))))


def boxes(*shape):
    """Boxes of random place and size, in each entry of the batch."""
    heat = CenteredGrid(0, PERIODIC, **BOX)
    for _ in range(3):
        size = math.random_uniform(*shape, channel(vector="y,x")) * 3 + 1
        place = math.random_uniform(*shape, channel(vector="y,x")) * 8 + 2
        heat += resample(Cuboid(place, size), to=heat, soft=True) * math.random_uniform(*shape)
    return (heat,)


def start():
    return boxes(batch(example=4))


KINDS = {  # Fourier transforms round otherwise where dims lie in another order in memory, as the batch here
    "Book: heat": Kind(diffused, start, rounding=1e-14, precision=64),
    "Book: inverse heat": Kind(sharpened, start, repeats=False, rounding=1e-12, precision=64),
}


def test_values_of_diffusion() -> None:
    check_values(KINDS["Book: heat"])


def test_values_of_the_inverse() -> None:
    check_values(KINDS["Book: inverse heat"])


def test_derivatives_of_diffusion() -> None:
    check_derivatives(KINDS["Book: heat"])


def test_derivatives_by_the_amount() -> None:
    check_derivatives(KINDS["Book: heat"], amount=2.0)
