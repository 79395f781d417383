"""Which operator of a LiteRT file a kernel of XNNPACK belongs to, when the kernels' kinds and their order are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hwprof.errors import MeasurementError

# Every one of these is exactly one kernel of these kinds, whatever else is fused into it.
_ANCHORS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_ANCHOR_KERNELS = ("Convolution", "Fully Connected")
# These are a kernel that begins so, or a part of another one.
_KERNELS: dict[str, tuple[str, ...]] = {
    "ADD": ("Add",),
    "AVERAGE_POOL_2D": ("Average Pooling",),
    "CONCATENATION": ("Concatenate", "Copy"),
    "DEQUANTIZE": ("Convert",),
    "HARD_SWISH": ("HardSwish",),
    "LOGISTIC": ("Sigmoid",),
    "MAX_POOL_2D": ("Max Pooling",),
    "MEAN": ("Mean",),
    "MUL": ("Multiply",),
    "PAD": ("Constant Pad",),
    "QUANTIZE": ("Convert",),
    "RELU": ("Clamp",),
    "RELU6": ("Clamp",),
    "RESHAPE": ("Static Reshape", "Copy"),
    "TRANSPOSE": ("Transpose",),
}
# What XNNPACK adds behind an operator: a fused activation that its kernel cannot compute, another type or shape.
_ADDED = ("Clamp", "Convert", "Copy", "Static Reshape")


@dataclass(frozen=True)
class Operator:
    """An operator of a file: its number there, its kind ("CONV_2D") and the name of the tensor that it computes."""

    number: int
    kind: str
    name: str


def operators(interpreter: Any) -> tuple[dict[int, Operator], list[list[Operator]]]:
    """The operators of a file by number, and those that each delegate of its interpreter took, in execution order."""
    details = interpreter._get_ops_details()
    own = [entry for entry in details if entry["op_name"] != "DELEGATE"]
    names = {entry["index"]: entry["name"] for entry in interpreter.get_tensor_details()}
    found = {
        entry["index"]: Operator(entry["index"], entry["op_name"], names[int(entry["outputs"][0])]) for entry in own
    }
    makers = {int(tensor): entry for entry in own for tensor in entry["outputs"]}
    delegated = []
    for delegate in details:
        if delegate["op_name"] == "DELEGATE":
            # What it took lies between its outputs and its inputs.
            inputs, taken = {int(tensor) for tensor in delegate["inputs"]}, set()
            waiting = [int(tensor) for tensor in delegate["outputs"]]
            while waiting:
                maker = makers.get(waiting.pop())
                if maker is not None and maker["index"] not in taken:
                    taken.add(maker["index"])
                    waiting.extend(tensor for tensor in map(int, maker["inputs"]) if tensor not in inputs)
            delegated.append([found[number] for number in sorted(taken)])
    return found, delegated


def attributed(kernels: Sequence[str], took: Sequence[Operator]) -> list[Operator]:
    """The operator that each kernel belongs to; kernels run in the order of the operators that they come from.

    Convolutions and linear layers are never lost or split, so they are paired one by one. Between two of them, a kernel
    is the next operator of its kind; one that XNNPACK added belongs to the operator before it, and one that stands for
    several (a table looked up instead of a chain of int8 operators, say) to the first of those that are left. Raises
    MeasurementError where the kernels do not fit.
    """
    anchors = [operator for operator in took if operator.kind in _ANCHORS]
    anchor_kernels = [kernel for kernel in kernels if kernel.startswith(_ANCHOR_KERNELS)]
    if len(anchors) != len(anchor_kernels):
        raise MeasurementError(
            f"the profiler lists {len(anchor_kernels)} convolutions and linear layers, the file has {len(anchors)}: "
            "this version of LiteRT names its kernels in another way (known: hwprof/runtimes/litert_kernels.py)"
        )
    owners: list[Operator] = []
    position = 0  # the first operator that has no kernel yet
    for kernel in kernels:
        if kernel.startswith(_ANCHOR_KERNELS):
            chosen = next(place for place in range(position, len(took)) if took[place].kind in _ANCHORS)
        else:
            gap = []
            for place in range(position, len(took)):
                if took[place].kind in _ANCHORS:
                    break
                gap.append(place)
            same = [place for place in gap if kernel.startswith(_KERNELS.get(took[place].kind, ()))]
            if same:
                chosen = same[0]
            elif owners and (kernel.startswith(_ADDED) or not gap):
                owners.append(owners[-1])
                continue
            else:
                owners.append(took[gap[0] if gap else 0])
                continue
        owners.append(took[chosen])
        position = chosen + 1
    return owners
