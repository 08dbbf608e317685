"""A disk that fills up while a file is written."""

from __future__ import annotations

import errno
import os
from typing import Any


class FullDisk:
    """A file that has room for some writes, or some bytes."""

    def __init__(self, file: Any, *, writes: float = float("inf"), room: float = float("inf")) -> None:
        self.file, self.writes, self.room = file, writes, room

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: Any) -> int:
        self.writes -= 1
        self.room -= len(content)
        if min(self.writes, self.room) < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(content)
