"""Numbers of solves: the same in every process, others for other solves and for copies."""

from __future__ import annotations

import subprocess
import sys

from cases.patterns import diffusion_matrix, module_of

from phi_hybrid.linear_solve import ConjugateGradient, varying_of
from phi_hybrid.linear_solve.numbers import free_number

PRINT = """
from phi_hybrid.linear_solve import ConjugateGradient
from phi_hybrid.linear_solve.numbers import free_number
print(free_number((), b"key", None, 1e-5, ConjugateGradient(max_iterations=7)))
"""


def test_numbers_are_those_of_another_process() -> None:
    run = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, text=True, check=True, timeout=600)
    number = free_number((), b"key", None, 1e-5, ConjugateGradient(max_iterations=7))
    assert int(run.stdout) == number and 0 <= number < 2**62


def test_other_content_has_another_number_and_so_has_a_copy() -> None:
    contents = (b"key", None, 1e-5), (b"kez", None, 1e-5), (b"key", ConjugateGradient(), 1e-5), (b"key", None, 1e-6)
    numbers = {free_number((), *c) for c in contents}
    assert len(numbers) == len(contents)
    assert len(numbers | {free_number(numbers, *c) for c in contents}) == 2 * len(contents)


def test_a_solve_gets_its_number_again() -> None:
    matrix = diffusion_matrix(4, 10.0, obstacle=False)
    first, second = (module_of(matrix, shape=(4, 4))[0] for _ in range(2))
    number = first.number
    assert second.number != number and varying_of(number) is first and varying_of(second.number) is second
    del first
    assert module_of(matrix, shape=(4, 4))[0].number == number
