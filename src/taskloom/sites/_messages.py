"""What travels between a site and the coordinator: nothing else does.

Letters: d features, m tasks of one site, v (d, m) their columns of the auxiliary matrix V, p (d, m) those of prox(V).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import numpy as np

from taskloom.tasks import Array, DataError


@dataclass(frozen=True)
class Update:
    """What a site sends: first that it is there, then its columns, at last its intercepts.

    Attributes:
        site: its name.
        sequence: number of the message among those of the site, from 1 on; 0 to join, or to join again.
        epoch: that of the answer that it was worked out from.
        columns: v (d, m); None when joining and when parting.
        curvature: (m,) greatest curvature of each task's loss, when joining.
        intercepts: (m,) when parting.
        version: that of the answer that it was worked out from.
    """

    site: str
    sequence: int
    epoch: int = 0
    columns: Array | None = None
    curvature: Array | None = None
    intercepts: Array | None = None
    version: int = 0


@dataclass(frozen=True)
class Answer:
    """What the coordinator sends back.

    Attributes:
        site: to whom.
        sequence: of the message that it answers; any older answer is out of date.
        epoch: rises when the step changes; in a synchronous run, with every round.
        version: how many updates the model has seen.
        columns: p (d, m); the final coefficients with `stop`.
        step: of the local step.
        relaxation: how far to go towards the new columns, above 0 and at most 2.
        restart: v (d, m) from which to go on, where the site's own are not those of the coordinator; else None.
        stop: whether the run is over.
        refusal: why the last message was not taken; empty where it was.
    """

    site: str
    sequence: int
    epoch: int
    version: int
    columns: Array
    step: float
    relaxation: float
    restart: Array | None = None
    stop: bool = False
    refusal: str = ""


Message = Update | Answer

_PLAIN: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("site", "refusal"), (str,)),
    **dict.fromkeys(("sequence", "epoch", "version"), (int,)),
    **dict.fromkeys(("step", "relaxation"), (int, float)),
    "stop": (bool,),
}
# Bytes of the line before the numbers; counts in it fit into 64 bits.
MOST_HEAD = 65_536
MOST_COUNT = 2**63 - 1

_ARRAYS = ("columns", "curvature", "intercepts", "restart")
_NAMES: dict[type, tuple[str, ...]] = {kind: tuple(field.name for field in fields(kind)) for kind in (Update, Answer)}


def encode(message: Message) -> bytes:
    """A message as bytes: a line of JSON, then the numbers of its arrays (little-endian float64, row by row).

    Nothing in it is run when it is read, other than with pickle.

    Examples:
        >>> decode(encode(Update("ward", 1, columns=np.ones((2, 1))))).columns.shape
        (2, 1)
    """
    arrays, plain = {}, {}
    for name in _NAMES[type(message)]:
        value = getattr(message, name)
        if isinstance(value, np.ndarray):
            arrays[name] = np.ascontiguousarray(value, dtype="<f8")
        elif value is not None:
            plain[name] = value
    head = {"kind": type(message).__name__, "plain": plain, "shapes": {name: value.shape for name, value in arrays.items()}}
    # Joined as they are: a copy of a long column takes as long as the rest.
    return b"".join([json.dumps(head).encode(), b"\n", *arrays.values()])


def decode(raw: bytes) -> Message:
    """The message of `encode`.

    Raises:
        DataError: the bytes are none.
    """
    try:
        return _read(raw)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        said = one_line(str(error), 200)
        raise DataError(f"`raw` is no message of taskloom ({said}); both ends must run the same version") from error


def one_line(text: str, most: int = 300) -> str:
    r"""What a caller says, so that it can be logged and sent on: no longer than that, and nothing that cannot be printed.

    Args:
        text: of somebody else.
        most: letters.

    Examples:
        >>> print(one_line("no table" + chr(10) + "all is well", 12))
        no table\nall...
    """
    said = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text[:most])
    return said if len(text) <= most else f"{said}..."


def _read(raw: bytes) -> Message:
    at = raw.index(b"\n", 0, MOST_HEAD) + 1
    head = json.loads(raw[:at])
    values: dict[str, Any] = dict(head["plain"])
    for name, value in values.items():
        kinds = _PLAIN[name]
        if type(value) not in kinds or (kinds == (int,) and not 0 <= value <= MOST_COUNT):
            raise TypeError(f"{name}={value!r}")
    for name, shape in head["shapes"].items():
        if name not in _ARRAYS or any(type(size) is not int or size < 0 for size in shape):
            raise ValueError(f"{name} of shape {shape}")
        size = prod(shape)
        values[name] = np.frombuffer(raw, dtype="<f8", count=size, offset=at).reshape(shape).astype(np.float64)
        at += 8 * size
    if at != len(raw):
        raise ValueError(f"{len(raw) - at} bytes are left over: it was cut or joined on its way")
    return {"Update": Update, "Answer": Answer}[head["kind"]](**values)
