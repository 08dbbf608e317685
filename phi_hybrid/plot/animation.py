"""Animations of trajectories as GIF, MP4, or a page with a slider."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from phi.field import Field

from phi_hybrid.errors import StateError
from phi_hybrid.plot._data import (
    Trajectories,
    check_reference,
    frame_count,
    named_fields,
    pick_frames,
    read,
    require_counts,
    require_numbers,
)
from phi_hybrid.plot._movie import moving_images, moving_lines, write_gif, write_html, write_mp4
from phi_hybrid.plot._style import styled


@styled
def animate(
    trajectories: Trajectories,
    path: str | os.PathLike[str],
    *,
    reference: str | None = None,
    dt: float = 1.0,
    part: str | int | None = None,
    quantity: str | Callable[[Field], Field] | None = None,
    example: int = 0,
    fps: float = 20,
    stride: int = 1,
    max_frames: int = 200,
    dpi: float = 80,
    max_bytes: int = 3 << 19,
) -> Path:
    """Write an animation of one or several solvers, with the differences to a reference below them.

    2D: one panel per solver. 1D: all solvers as lines in one panel. The file appears under its name only when it is
    complete. A GIF that would exceed `max_bytes` gets fewer shades, then fewer frames at the same playing time.

    Args:
        trajectories: Field (time, x[, y[, z]][, vector]), or a mapping name → Field; with `part`, states of several Fields instead.
        path: Target, ending in `.gif`, `.html` (a page for the browser, with a slider over time) or, where ffmpeg is installed,
            `.mp4`. Its folder must exist.
        reference: Name of the trajectory that differences are taken to and that sets the colour scale.
        dt: Time between two frames of the trajectory.
        part: As in `rollout`.
        quantity: As in `rollout`.
        example: Entry of each batch dim other than `time`.
        fps: Shown frames per second.
        stride: Every how many frames of the trajectory one is shown.
        max_frames: Longer animations are thinned to about this many frames at the same playing time.
        dpi: Pixels per inch.
        max_bytes: Size that a GIF should stay below.

    Returns:
        The path of the written file.

    Raises:
        StateError: For another suffix, a missing folder or ffmpeg, numbers that are not positive, and as in `rollout`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".gif", ".html", ".mp4"):
        raise StateError(f"cannot write {path.name!r}: unsupported suffix {suffix!r}, expected .gif, .html or .mp4")
    if not path.parent.is_dir():
        raise StateError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    require_numbers(dt=dt, fps=fps, dpi=dpi, max_bytes=max_bytes)
    require_counts(stride=stride, max_frames=max_frames)
    fields = named_fields(trajectories, part)
    check_reference(list(fields), reference)
    count = frame_count(fields)
    thinning = -(-len(range(0, count, stride)) // max_frames)
    series = read(fields, pick_frames(range(0, count, stride * thinning), count), quantity, example, part)
    scene = (moving_lines if len(series[0].shown.axes) == 1 else moving_images)(series, reference, dt)
    frames, rate = len(series[0].frames), fps / thinning
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".animate-") as folder:
        partial = Path(folder) / f"partial{suffix}"
        if suffix == ".gif":
            write_gif(partial, scene, frames, rate, dpi, max_bytes)
        else:
            write = write_html if suffix == ".html" else write_mp4
            write(partial, scene, frames, rate, dpi)
        os.replace(partial, path)
    return path
