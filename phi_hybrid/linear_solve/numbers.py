"""Numbers by which operators in graphs find their solves."""

from __future__ import annotations

import hashlib
from collections.abc import Container


def free_number(taken: Container[int], *content: object) -> int:
    """The first free number from one that says what is solved and how: compilers keep graphs, numbers and all, on disk.

    A program that is run again gives its solves the same numbers, whatever was solved before. Copies have others.

    Args:
        taken: numbers in use.
        *content: values whose `repr` tells them apart.
    """
    digest = hashlib.blake2b(repr(content).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big") >> 2
    while number in taken:
        number += 1
    return number
