"""Files of tensors and JSON, with a checksum. Nothing in them is ever executed.

They are files of the safetensors format, which other programs can read: 8 bytes with the length of the header, the header
in JSON, and the bytes of the tensors. Pickle, which `torch.load` reads, has no part in them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from typing import Any

import torch

from phi_hybrid.bridge.checks import require_path
from phi_hybrid.data import new_file
from phi_hybrid.errors import DataError, StateError

FORMAT = "phi_hybrid.program 1"
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {kind: code for code, kind in _TYPES.items()}
_NO_SUM = "0" * 64
_WAY_OUT = "take another copy of it, or save the solver again"


def write_container(path: str | os.PathLike, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes tensors and JSON values; an older file of this name stays whole until the new one is complete.

    Raises:
        DataError: if it cannot be written, e.g. on a full disk.
        StateError: for tensors of types that the format does not know.
    """
    complex_names = [name for name, t in tensors.items() if t.is_complex()]
    contents = [_bytes_of(name, torch.view_as_real(t) if t.is_complex() else t) for name, t in tensors.items()]
    entries, start = {}, 0
    for (name, tensor), content in zip(tensors.items(), contents):
        shape = [*tensor.shape, 2] if tensor.is_complex() else list(tensor.shape)
        kind = tensor.real.dtype if tensor.is_complex() else tensor.dtype
        entries[name] = {"dtype": _CODES[kind], "shape": shape, "data_offsets": [start, start + len(content)]}
        start += len(content)
    own = {"format": FORMAT, "sha256": _NO_SUM, "header": json.dumps({**header, "complex": complex_names})}
    text = json.dumps({"__metadata__": own, **entries}).encode()
    text += b" " * (-len(text) % 8)
    digest = _digest(text, contents)
    with new_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text.replace(_NO_SUM.encode(), digest.encode(), 1))
        for content in contents:
            file.write(content)


def _bytes_of(name: str, tensor: torch.Tensor) -> bytes:
    if tensor.dtype not in _CODES or tensor.layout != torch.strided:
        raise StateError(
            f"{name} is a {tensor.layout} tensor of {tensor.dtype}, which a file cannot hold; use {[*_TYPES]}"
        )
    whole = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return whole.reshape(-1).view(torch.uint8).numpy().tobytes()


def _digest(header: bytes, contents: list[bytes]) -> str:
    found = hashlib.sha256(header)
    for content in contents:
        found.update(content)
    return found.hexdigest()


def read_container(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a file that `write_container` wrote.

    Raises:
        DataError: if the file is missing, damaged, truncated or foreign.
    """
    require_path("path", path)
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise DataError(f"no file at {path}; write one with solver.save(path)")
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); give the path of a file written by solver.save") from error
    try:
        return _parse(content)
    except DataError as error:
        raise DataError(f"{path} {error}; {_WAY_OUT}") from None
    except Exception as error:  # whatever Python makes of other bytes
        raise DataError(f"{path} is no saved solver ({type(error).__name__}: {error}); {_WAY_OUT}") from error


def _parse(content: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if len(content) < 8:
        if content.startswith(b"\x89HDF"):
            raise DataError("is an HDF5 file: read data with ph.Trajectories.load")
        raise DataError(f"is no saved solver, or truncated: it has {len(content)} bytes")
    (length,) = struct.unpack("<Q", content[:8])
    if length > len(content) - 8:
        if content.startswith(b"PK\x03\x04"):
            raise DataError(
                "is a file of torch: read a checkpoint with Trainer.resume, a program with torch.export.load"
            )
        raise DataError(f"is no saved solver, or truncated: a header of {length} bytes in a file of {len(content)}")
    text, data = content[8 : 8 + length], memoryview(content)[8 + length :]
    entries = json.loads(text)
    own = entries.pop("__metadata__")
    if own["format"] != FORMAT:
        raise DataError(f"is a file of the format {str(own['format'])[:50]!r}, expected {FORMAT!r}")
    known = own["sha256"].encode()
    if len(known) != len(_NO_SUM) or text.count(known) != 1:
        raise DataError("is damaged in its header")
    found = _digest(text.replace(known, _NO_SUM.encode()), [data])
    if found != own["sha256"]:
        raise DataError(
            f"is damaged: it has the checksum {found[:8]}…, that which was written had {own['sha256'][:8]}…"
        )
    header = json.loads(own["header"])
    tensors = {name: _tensor(name, entry, data) for name, entry in entries.items()}
    for name in header.pop("complex"):
        tensors[name] = torch.view_as_complex(tensors[name])
    return header, tensors


def _tensor(name: str, entry: Mapping[str, Any], data: memoryview) -> torch.Tensor:
    """One tensor, whose place and size the checksum of a malicious file does not vouch for."""
    kind, shape, (start, stop) = _TYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    numbers = [start, stop, *shape]
    whole = all(type(n) is int and n >= 0 for n in numbers)
    if not whole or stop > len(data) or stop - start != math.prod(shape) * kind.itemsize:
        raise DataError(f"holds a tensor {name!r} of {entry['dtype']} {shape} at {start}…{stop} of {len(data)} bytes")
    if start == stop:
        return torch.empty(shape, dtype=kind)
    values = bytearray(data[start:stop])
    if kind == torch.bool and max(values) > 1:
        raise DataError(f"holds truth values other than 0 and 1 in {name!r}")
    return torch.frombuffer(values, dtype=kind).reshape(shape)
