"""Pages of docs/how_to and docs/coming_from.md: their programs run and say what the pages say; the glossary is in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from phi import math

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {page.stem: page for page in [*sorted((DOCS / "how_to").glob("*.md")), DOCS / "coming_from.md"]}
SAYS = {
    "coming_from": ["trajectoryᵇ=4, xˢ=32"],
    "diverged": ["NaN or infinite values"],
    "faces": ["periodic [1.0, 2.0, 3.0, 4.0]", "walls [2.0, 3.0, 4.0]", "open [1.0, 2.0, 3.0, 4.0, 4.0]", "[1.0, 1.0"],
    "gradient_is_right": ["fit\nnot fit\n", "detach"],
    "inflow": ["[0.24 0.66 0.99"],
    "jit_and_networks": ["trainable tensor", "\n0.0\n"],
    "long_unrolls": ["steady"],
    "mixed_precision": ["float64 {torch.float32}"],
    "moving_bodies": ["(x=9.000, y=8.000)"],
    "network_layout": ["[3, 4, 12, 8]", "(0.000, 0.000, 0.000)", "[3, 1, 12, 8]"],
    "other_libraries": ["xˢ=20, yˢ=12"],
    "out_of_memory": ["same gradient: True"],
    "reproducibility": ["trainings equal to the last bit: True", "PhiFlow to the last bit: True"],
    "save_and_restore": ["True\nTrue\n"],
    "several_processes": ["in 1 processes"],
    "slow": ["captured, tensors"],
    "unknown_number": ["viscosity 0.030"],
}
"""What each program prints, in part."""
NUMBERS = {  # a line that begins so ends with numbers a, b; smallest and largest a / b
    "diverged": ("largest divergence", 1e5, float("inf")),  # before, after
    "gradient_is_right": ("", 1 - 1e-6, 1 + 1e-6),  # gradient, difference quotient
    "inflow": ("change", 1 - 1e-4, 1 + 1e-4),  # gradient, sum of the profile
    "moving_bodies": ("gradient", 1 - 2e-3, 1 + 2e-3),
    "out_of_memory": ("", 4, float("inf")),  # all kept, checkpointed
}


@pytest.fixture
def as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own for files; precision, threads and random numbers are put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    precision, dtype, threads = math.get_precision(), torch.get_default_dtype(), torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    math.set_global_precision(precision)
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


def program_of(page: Path) -> str:
    """All Python blocks of a page, one after the other."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


@pytest.mark.parametrize("name", PAGES)
def test_programs_run_and_say_what_the_page_says(
    name: str, as_before: None, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(program_of(PAGES[name]), f"{name}.md", "exec"), {"__name__": "__main__"})
    printed = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)  # without PhiFlow's colours
    assert SAYS[name]
    for text in SAYS[name]:
        assert text in printed
    if name in NUMBERS:
        begins, least, most = NUMBERS[name]
        line = [line for line in printed.splitlines() if line.startswith(begins)][-1]
        a, b = (float(number) for number in re.findall(r"-?\d+\.?\d*(?:e[-+]\d+)?", line)[-2:])
        assert least <= a / b <= most


def test_pages_are_short_and_can_be_found() -> None:
    navigation, readme = (DOCS.parent / "mkdocs.yml").read_text(), (DOCS.parent / "README.md").read_text()
    assert set(PAGES) == set(SAYS) and len(PAGES) >= 16
    for page in PAGES.values():
        place = str(page.relative_to(DOCS))
        assert f": {place}\n" in navigation and f"(docs/{place})" in readme
        assert page.parent == DOCS or 20 <= len(page.read_text().splitlines()) <= 61


def test_the_glossary_is_alphabetic_and_short() -> None:
    entries = re.findall(r"^\*\*(.+?)\.\*\* (.+?)(?=\n\n|\Z)", (DOCS / "glossary.md").read_text(), re.M | re.S)
    names = [name.lower() for name, _ in entries]
    assert names == sorted(set(names)) and len(names) > 40
    assert all(len(text.split()) <= 50 for _, text in entries)
