"""Programs of docs/coming_from_book.md run, reach what the book prints, and are as short as the page says."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
SETTING = re.compile(r"^([A-Z, ]+ = ).*  # quick: (.*)$", re.MULTILINE)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LINES = script("count_lines")
PROGRAMS = LINES.programs()
TABLE = re.findall(r"^\| `([\w-]+)` \| .*? \| (\d+) \| (\d+) \| ([\d.]+) \|$", LINES.PAGE.read_text(), re.M)


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    with torch.random.fork_rng():
        yield


def printed_by(name: str, capsys: pytest.CaptureFixture[str]) -> list[list[float]]:
    """The numbers in each line that a program prints, with quick settings."""
    quick, settings = SETTING.subn(r"\1\2", PROGRAMS[name])
    assert settings == PROGRAMS[name].count("# quick:")
    exec(compile(quick, f"{name}.py", "exec"), {"__name__": "__main__"})
    lines = capsys.readouterr().out.splitlines()
    return [[float(n) for n in re.findall(r"-?\d+\.?\d*(?:e[-+]\d+)?", line)] for line in lines]


def test_a_search_for_the_initial_state(own_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    (first, last), (error,) = printed_by("diffphys-code-burgers", capsys)
    assert first == pytest.approx(0.402, abs=6e-4) and last == pytest.approx(0.102, abs=6e-4)  # those of plain PhiFlow
    assert error < 0.3


@pytest.mark.ci
def test_a_search_for_the_initial_velocity(own_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    ((first, *between, last),) = printed_by("diffphys-code-ns", capsys)
    assert first == pytest.approx(298.286, abs=0.06)  # printed by the book, as is 233.7 at iteration 9
    assert 222 <= last <= 250 and len(between) == 8


@pytest.mark.ci
def test_a_wake_is_corrected(own_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    *_, (source,), (hybrid,) = printed_by("diffphys-code-sol", capsys)
    assert 0 < hybrid < source < 1


def test_a_controller_is_trained(own_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    hidden, free, controlled = printed_by("reinflearn-code", capsys)
    assert hidden[0] == 0 < hidden[1] and free[1] == 0 < free[0] and controlled[1] > 0


def test_update_rules_give_the_numbers_of_the_book(own_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    descent, newton, physical, search = printed_by("physgrad-comparison", capsys)
    assert descent == pytest.approx([2.4512184, 0.96171147, 1.053930], abs=5e-4)
    assert newton == pytest.approx([0.05202458, 0.92383826, 1.264911], abs=5e-4)
    assert physical == pytest.approx([0.08474258, 0.50421, 1.356443], abs=5e-4)
    assert search == pytest.approx(physical, abs=5e-4)


def test_both_ways_back_train_a_network(own_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    adam, sip = printed_by("physgrad-code", capsys)
    assert 0 < sip[1] < adam[1] and 0 < sip[0]


@pytest.mark.ci
def test_half_inverse_gradients_learn_in_one_epoch(own_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    gd, sip, hig = printed_by("physgrad-hig-code", capsys)
    assert gd[1] == sip[1] == hig[1]  # one network, three copies
    assert hig[2] < 2e-4 < gd[2] < gd[1]  # the book: 5.4e-5 after the first epoch


def test_every_program_is_in_the_table_with_its_length_and_at_most_a_third() -> None:
    assert [name for name, *_ in TABLE] == list(PROGRAMS) and len(PROGRAMS) == 7
    for name, there, here, ratio in TABLE:
        assert LINES.count(PROGRAMS[name]) == int(here), name
        assert float(ratio) == round(int(here) / int(there), 2) and 3 * int(here) <= int(there), name


def test_the_count_leaves_out_what_the_page_says() -> None:
    code = '''
"""Docstring."""
import matplotlib.pyplot as plt

def f(x):
    """Docstring."""
    # comment
    return [
        x,  # one
    ]

for n in range(3):
    plt.plot(f(n))
if f(1):
    print("yes")
else:
    print("no")
'''
    assert LINES.count(code) == 7  # def, return of three lines, if, both branches
