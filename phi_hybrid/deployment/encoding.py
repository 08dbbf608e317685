"""Programs ↔ JSON values and tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from phi_hybrid.bridge.layout import TreeLayout, batch_names
from phi_hybrid.data.header import from_dict, to_dict
from phi_hybrid.deployment.operators import argument_names, is_allowed
from phi_hybrid.deployment.program import BatchSize, Entry, Program, Value
from phi_hybrid.deployment.solves import module_from_dict, module_to_dict
from phi_hybrid.errors import DataError, StateError

_DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
_FORMATS = {
    str(f).removeprefix("torch."): f
    for f in (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
}
_PLAIN = (int, float, bool, str, type(None))


def encode(program: Program) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """JSON values and tensors of a program.

    Raises:
        StateError: for layouts, operators and arguments that a file does not hold.
    """
    tensors = {f"constant/{name}": t.detach() for name, t in program.constants.items()}
    modules = {}
    for name, module in program.modules.items():
        modules[name], own = module_to_dict(module)
        tensors |= {f"module/{name}/{key}": t for key, t in own.items()}
    for target in dict.fromkeys(e.target for e in program.entries):
        if target not in ("input", "constant", *modules) and not is_allowed(target):
            raise StateError(
                f"the step uses the operator {target}, which is none of those that a file may name, for the safety of "
                "those who load it. Build the network of torch's usual operators, or write a program for torch alone with "
                "ph.export"
            )
    return {
        "layout": to_dict(program.layout),
        "output_layout": to_dict(program.output_layout),
        "batch": program.batch,
        "dtypes": [str(d).removeprefix("torch.") for d in program.dtypes],
        "entries": [[e.target, _plain(e.args), {k: _plain(v) for k, v in e.kwargs.items()}] for e in program.entries],
        "outputs": list(program.outputs),
        "modules": modules,
    }, tensors


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Value):
        return {"value": value.number}
    if isinstance(value, BatchSize):
        return {"batch": [value.factor, value.offset]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, torch.device):
        return {"device": None}  # where the program runs
    for name, known in (("dtype", _DTYPES), ("format", _FORMATS), ("layout", {"strided": torch.strided})):
        for key, kind in known.items():
            if value is kind or (type(value) is type(kind) and value == kind):
                return {name: key}
    raise StateError(f"an argument {value!r} of an operator cannot be written to a file")


def decode(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Program:
    """Inverse of `encode`.

    Raises:
        DataError: for operators that are not allowed, and for programs that do not fit together.
        Exception: of any kind for other nonsense.
    """
    layout, output_layout = from_dict(description["layout"]), from_dict(description["output_layout"])
    constants = _below("constant/", tensors)
    modules = {
        name: module_from_dict(text, _below(f"module/{name}/", tensors))
        for name, text in description["modules"].items()
    }
    entries = tuple(_decoded_entries(description["entries"], constants, modules))
    inputs, outputs = len(layout.leaves), tuple(description["outputs"])
    require_fitting(isinstance(layout, TreeLayout) and len(layout.children) > 0, "arguments that are no tuple")
    require_fitting([e.target == "input" for e in entries] == [n < inputs for n in range(len(entries))], "other inputs")
    require_fitting(batch_names(layout.children[0]) == [description["batch"]], "another batch dim")
    require_fitting(len(outputs) == len(output_layout.leaves), "another number of results")
    require_fitting(all(type(n) is int and 0 <= n < len(entries) for n in outputs), "results from nowhere")
    dtypes = tuple(_DTYPES[name] for name in description["dtypes"])
    require_fitting(len(dtypes) == inputs, "another number of types")
    return Program(layout, output_layout, description["batch"], dtypes, entries, outputs, constants, modules)


def _decoded_entries(
    rows: list, constants: Mapping[str, torch.Tensor], modules: Mapping[str, torch.nn.Module]
) -> Iterator[Entry]:
    for number, (target, args, kwargs) in enumerate(rows):
        if target == "constant":
            require_fitting(len(args) == 1 and args[0] in constants and not kwargs, f"no constant {args}")
        elif target == "input":
            require_fitting(not args and not kwargs, "an input with arguments")
        elif target not in modules:
            require_fitting(is_allowed(target), f"the operator {str(target)[:80]!r}, which files may not name")
            require_fitting(kwargs.keys() <= argument_names(target), f"arguments {[*kwargs]} of {target}")
        require_fitting(target not in modules or not kwargs, f"arguments {[*kwargs]} of a solve")
        yield Entry(target, tuple(_value(a, number) for a in args), {k: _value(v, number) for k, v in kwargs.items()})


def _value(given: Any, number: int) -> Any:
    if isinstance(given, list):
        return [_value(v, number) for v in given]
    if not isinstance(given, dict):
        return given
    ((kind, content),) = given.items()
    if kind == "value":
        require_fitting(type(content) is int and 0 <= content < number, f"a value {content!r} before it is computed")
        return Value(content)
    if kind == "batch":
        factor, offset = content
        require_fitting(type(factor) is int and type(offset) is int, f"the size {content}")
        return BatchSize(factor, offset)
    if kind == "complex":
        return complex(*content)
    if kind == "device":
        return torch.device("cpu")
    return {"dtype": _DTYPES, "format": _FORMATS, "layout": {"strided": torch.strided}}[kind][content]


def require_fitting(valid: bool, found: str) -> None:
    """Raises DataError unless a part of a file is as it should be."""
    if not valid:
        raise DataError(f"holds {found}, which no saved solver has")


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
