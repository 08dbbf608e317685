import base64
import re
import sys
from itertools import pairwise

import numpy as np
import pytest
from cases.plots import line, plane
from phi.torch.flow import PERIODIC, Box, CenteredGrid, batch, spatial, tensor
from PIL import Image

import phi_hybrid as ph
from phi_hybrid.plot import animate


def test_gif_has_one_image_per_frame_and_plays_at_the_given_rate(tmp_path):
    u = np.sin(2 * np.pi * (np.arange(8)[None] + 0.5 + np.arange(12)[:, None]) / 8)
    path = animate({"a": line(u), "b": line(u * 0.5)}, tmp_path / "a.gif", reference="a", fps=10, dpi=40)
    movie = Image.open(path)
    assert (movie.n_frames, movie.info["duration"], movie.info["loop"]) == (12, 100, 0)
    assert list(tmp_path.iterdir()) == [path]  # nothing temporary is left


def test_page_holds_every_frame_and_a_slider(tmp_path):
    path = animate({"a": plane(5), "b": plane(5)}, tmp_path / "a.html", reference="a", dpi=40)
    page = path.read_text()
    pictures = [base64.b64decode(p) for p in re.findall(r"data:image/png;base64,([^\"]*)", page)]
    assert len(pictures) == len(set(pictures)) == 5 and all(p.startswith(b"\x89PNG") for p in pictures)
    assert 'type="range" min="0" max="4"' in page and "http" not in page and list(tmp_path.iterdir()) == [path]


def test_part_of_a_state(tmp_path):
    u = np.arange(3 * 4, dtype=float).reshape(3, 4)
    whole, part = (
        animate(x, tmp_path / f"{n}.gif", part=p, dpi=40)
        for n, x, p in (("a", line(u), None), ("b", {"v": plane(), "u": line(u)}, "u"))
    )
    assert whole.read_bytes() == part.read_bytes()


def test_stride_and_the_limit_of_frames_thin_the_movie(tmp_path):
    assert Image.open(animate(plane(7), tmp_path / "a.gif", stride=3, dpi=40)).n_frames == 3
    thinned = Image.open(animate(plane(10), tmp_path / "b.gif", max_frames=5, fps=10, dpi=40))
    assert (thinned.n_frames, thinned.info["duration"]) == (5, 200)


def test_large_movies_are_thinned_below_the_limit(tmp_path):
    noise = np.random.default_rng(0).normal(size=(12, 32, 32))
    field = CenteredGrid(tensor(noise, batch("time"), spatial("x,y")), PERIODIC, Box(x=1, y=1), x=32, y=32)
    path = animate(field, tmp_path / "a.gif", dpi=60, fps=20, max_bytes=20_000)
    movie = Image.open(path)
    assert path.stat().st_size <= 20_000 and 1 <= movie.n_frames < 12


def test_images_move_and_show_the_colours_of_the_map(tmp_path):
    movie = Image.open(animate(plane(4), tmp_path / "a.gif", dpi=60))
    pictures = []
    for frame in range(movie.n_frames):
        movie.seek(frame)
        pictures.append(np.asarray(movie.convert("RGB")).astype(int))
    assert all((a != b).any() for a, b in pairwise(pictures))
    dark, bright = (
        np.abs(pictures[index] - colour).sum(-1).min() for index, colour in ((0, (68, 1, 84)), (3, (253, 231, 37)))
    )
    assert dark < 12 and bright < 12  # both ends of viridis survive the palette


def test_a_failed_movie_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "a.gif"
    target.write_bytes(b"old")

    def fail(path, *_):
        path.write_bytes(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(sys.modules["phi_hybrid.plot.animation"], "write_gif", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        animate(plane(), target)
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_unsupported_targets(tmp_path, monkeypatch):
    with pytest.raises(ph.StateError, match="unsupported suffix '.avi'.*html or .mp4"):
        animate(plane(), tmp_path / "a.avi")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ph.StateError, match="ffmpeg was not found"):
        animate(plane(), tmp_path / "a.mp4")
    with pytest.raises(ph.StateError, match="stride = 0"):
        animate(plane(), tmp_path / "a.gif", stride=0)
    with pytest.raises(ph.StateError, match="there is no folder"):
        animate(plane(), tmp_path / "nowhere" / "a.gif")
