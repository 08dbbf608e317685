"""Figures whose content can be moved to another frame, and the movie files made of them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
from matplotlib.animation import FFMpegWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from phi_hybrid.errors import StateError
from phi_hybrid.plot._data import Series
from phi_hybrid.plot._panels import (
    differences,
    image,
    image_aspect,
    line_limits,
    outer_labels,
    panel_grid,
    remarks,
    scales,
)
from phi_hybrid.plot._style import HALO, INK, NON_FINITE, colour_map, line_styles, open_axes

_FINE, _PLAIN = 56, 24  # shades per colour map


class Scene(NamedTuple):
    """A figure, the function that moves it to a frame, and the colours that occur besides black on white."""

    figure: Figure
    update: Callable[[int], None]
    maps: Sequence[str]
    lines: Sequence[str]


# --- figures ---


def moving_images(series: list[Series], reference: str | None, dt: float) -> Scene:
    """One panel per solver, the differences to the reference below."""
    if reference is not None:
        series = sorted(series, key=lambda one: one.name != reference)
    shown, apart = series[0].shown, differences(series, reference)
    of_values, of_differences = scales(series, reference)
    extent = [edge for bounds in shown.bounds for edge in bounds]
    grid = panel_grid(1 + bool(apart), len(series), image_aspect(shown), right=0.95, title="t", width=6.8, largest=1.9)
    moving = []
    for axes, (values, scale) in zip(
        grid.axes, [({one.name: one.values for one in series}, of_values), (apart, of_differences)]
    ):
        for ax, one in zip(axes, series):
            if one.name in values:
                drawn = image(ax, values[one.name][0], extent, scale)
                note = ax.text(
                    0.5, 0.5, "", transform=ax.transAxes, ha="center", va="center", fontsize=8, path_effects=HALO
                )
                moving.append((drawn, note, values[one.name]))
            else:
                ax.set_axis_off()
    for ax, one in zip(grid.axes[0], series):
        ax.set_title(one.name, pad=4, fontweight="bold")
    outer_labels(grid.axes, *shown.axes)
    grid.colour_bar(of_values, shown.label, (0, 1))
    if of_differences is not None:
        grid.colour_bar(of_differences, "difference", (1, 2))

    def update(frame: int) -> None:
        grid.figure.texts[0].set_text(f"t = {series[0].frames[frame] * dt:.4g}")
        for drawn, note, values in moving:
            drawn.set_data(np.ma.masked_invalid(values[frame].T))
            note.set_text("" if np.isfinite(values[frame]).all() else "non-finite")

    return Scene(grid.figure, update, [scale.cmap for scale in (of_values, of_differences) if scale], [])


def moving_lines(series: list[Series], reference: str | None, dt: float) -> Scene:
    """All solvers as lines in one panel, the differences below."""
    shown, apart = series[0].shown, differences(series, reference)
    of_values, of_differences = scales(series, reference)
    styles = line_styles([one.name for one in series], reference)
    grid = panel_grid(1 + bool(apart), 1, 0.42, right=0.2, title="t", width=6.0, largest=5.0, top=0.3, row_gap=0.14)
    moving = []
    rows = [
        ({one.name: one.values for one in series}, of_values, shown.label),
        (apart, of_differences, f"difference to\n{reference}"),
    ]
    for (ax,), (values, scale, label) in zip(grid.axes, rows):
        open_axes(ax)
        ax.set(xlim=shown.bounds[0], ylim=line_limits(list(values.values()), scale))
        for name, frames in values.items():
            (line,) = ax.plot(shown.centres(), np.zeros_like(shown.centres()), label=name, **styles[name])
            moving.append((line, frames, scale))
        ax.set_ylabel(label)
    for (ax,) in grid.axes:
        ax.tick_params(labelbottom=ax is grid.axes[-1][0])
    grid.axes[-1][0].set_xlabel(shown.axes[0])
    top = grid.axes[0][0]
    if any(one.name for one in series):
        top.legend(
            ncols=len(series),
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            frameon=False,
            labelcolor="linecolor",
            handlelength=1.4,
            columnspacing=1.2,
            borderaxespad=0.2,
            borderpad=0.1,
        )
    note = top.text(0.01, 0.97, "", transform=top.transAxes, va="top", fontsize=7.5, fontstyle="italic")

    def update(frame: int) -> None:
        grid.figure.texts[0].set_text(f"t = {series[0].frames[frame] * dt:.4g}")
        note.set_text("\n".join(text for one in series for text in remarks(one.name, one.values[frame], of_values)))
        for line, frames, scale in moving:
            line.set_ydata(np.where(np.isfinite(frames[frame]), frames[frame], np.nan))
            line.set_visible(not remarks("", frames[frame], scale))  # it would hatch the panel with verticals

    return Scene(grid.figure, update, [], [str(style["color"]) for style in styles.values()])


# --- files ---


def write_mp4(path: Path, scene: Scene, frames: int, fps: float, dpi: float) -> None:
    """Write an H.264 movie with ffmpeg."""
    if not FFMpegWriter.isAvailable():
        raise StateError(f"cannot write {path.suffix!r}: ffmpeg was not found; install it or use the suffix .gif")
    FigureCanvasAgg(scene.figure)
    # H.264 needs even numbers of pixels
    writer = FFMpegWriter(fps=fps, extra_args=["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white"])
    with writer.saving(scene.figure, str(path), dpi):
        for frame in range(frames):
            scene.update(frame)
            writer.grab_frame()


def write_html(path: Path, scene: Scene, frames: int, fps: float, dpi: float) -> None:
    """Write a page that holds all frames, with a slider over time; it loads nothing from elsewhere."""
    pictures = []
    for picture in _pictures(scene, frames, dpi):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        pictures.append(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    path.write_text(_PAGE.substitute(frames=json.dumps(pictures), last=frames - 1, delay=round(1000 / fps)))


_PAGE = Template("""<!doctype html>
<meta charset="utf-8">
<style>body {margin: 0; background: white} img, input {display: block; width: 100%}</style>
<img id="picture">
<input id="time" type="range" min="0" max="$last" value="0" aria-label="time">
<button id="play">play</button>
<script>
const frames = $frames, time = document.getElementById("time"), play = document.getElementById("play")
const show = frame => { time.value = frame; document.getElementById("picture").src = frames[frame] }
let timer = null
time.oninput = () => show(+time.value)
play.onclick = () => {
  if (timer) { clearInterval(timer); timer = null }
  else timer = setInterval(() => show((+time.value + 1) % frames.length), $delay)
  play.textContent = timer ? "stop" : "play"
}
show(0)
</script>
""")


def write_gif(path: Path, scene: Scene, frames: int, fps: float, dpi: float, max_bytes: int) -> None:
    """Write a looping GIF, with fewer shades and then fewer frames if it would exceed `max_bytes`."""
    images = _pictures(scene, frames, dpi)
    data = _encode(images, fps)
    if len(data) > max_bytes and scene.maps:
        plain = _palette(scene, _PLAIN)
        images = [_quantised(image.convert("RGB"), plain) for image in images]
        data = _encode(images, fps)
    every = 1
    while len(data) > max_bytes and every < frames:
        every = max(every + 1, round(every * len(data) / max_bytes))
        data = _encode(images[::every], fps / every)
    path.write_bytes(data)


def _pictures(scene: Scene, frames: int, dpi: float) -> list[Image.Image]:
    """Every frame in few colours, so that it takes little space."""
    scene.figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(scene.figure)
    fine, images = _palette(scene, _FINE), []
    for frame in range(frames):
        scene.update(frame)
        canvas.draw()
        image = Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
        images.append(_quantised(image, fine))
    return images


def _palette(scene: Scene, shades: int) -> Image.Image:
    """The colours the figure is made of, which beat a fitted palette: white stays white and both maps stay apart."""
    white = np.ones(3)
    steps = np.linspace(0, 1, 10)[:, None]
    colours = [white + steps * (np.array(to_rgb(INK)) - white), [to_rgb(NON_FINITE)]]
    colours += [colour_map(name)(np.linspace(0, 1, shades))[:, :3] for name in scene.maps]
    colours += [white + steps[1::2] * (np.array(to_rgb(line)) - white) for line in scene.lines]
    table = np.round(255 * np.concatenate(colours)).astype(np.uint8)[:256]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([table, np.repeat(table[:1], 256 - len(table), axis=0)]).tobytes())
    return palette


def _quantised(image: Image.Image, palette: Image.Image) -> Image.Image:
    # without dithering, still pixels stay identical and cost nothing in a GIF
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


def _encode(images: list[Image.Image], fps: float) -> bytes:
    buffer = io.BytesIO()
    # Players slow down delays below 20 ms, and the format counts in 10 ms.
    delay = max(20, 10 * round(100 / fps))
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=delay, loop=0, optimize=False)
    return buffer.getvalue()
