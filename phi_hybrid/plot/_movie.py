"""Movie files from a figure that can be moved to another frame."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.animation import FFMpegWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from phi_hybrid.plot._style import INK, NON_FINITE, colour_map

_FINE, _PLAIN = 56, 24  # shades per colour map


class Scene(NamedTuple):
    """A figure, the function that moves it to a frame, and the colours that occur besides black on white."""

    figure: Figure
    update: Callable[[int], None]
    maps: Sequence[str]
    lines: Sequence[str]


def write_mp4(path: Path, scene: Scene, frames: int, fps: float, dpi: float) -> None:
    """Write an H.264 movie with ffmpeg."""
    if not FFMpegWriter.isAvailable():
        raise ValueError(f"cannot write {path.suffix!r}: ffmpeg was not found; install it or use the suffix .gif")
    FigureCanvasAgg(scene.figure)
    # H.264 needs even numbers of pixels
    writer = FFMpegWriter(fps=fps, extra_args=["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white"])
    with writer.saving(scene.figure, str(path), dpi):
        for frame in range(frames):
            scene.update(frame)
            writer.grab_frame()


def write_gif(path: Path, scene: Scene, frames: int, fps: float, dpi: float, max_bytes: int) -> None:
    """Write a looping GIF, with fewer shades and then fewer frames if it would exceed `max_bytes`."""
    scene.figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(scene.figure)
    fine, images = _palette(scene, _FINE), []
    for frame in range(frames):
        scene.update(frame)
        canvas.draw()
        image = Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
        images.append(_quantised(image, fine))
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
