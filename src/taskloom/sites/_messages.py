"""What travels between a site and the coordinator: nothing else does.

Letters: d features, m tasks of one site, v (d, m) their columns of the auxiliary matrix V, p (d, m) those of prox(V).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal

import msgspec
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

# Bytes of the line before the numbers.
MOST_HEAD = 65_536
_DOUBLE = np.dtype("<f8")
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _UpdateHead(msgspec.Struct, tag_field="kind", tag="Update", forbid_unknown_fields=True):
    """The line before the numbers of an update."""

    site: str
    sequence: _Count
    epoch: _Count
    version: _Count
    shapes: dict[Literal["columns", "curvature", "intercepts"], list[_Count]]


class _AnswerHead(msgspec.Struct, tag_field="kind", tag="Answer", forbid_unknown_fields=True):
    """The line before the numbers of an answer."""

    site: str
    sequence: _Count
    epoch: _Count
    version: _Count
    step: float
    relaxation: float
    stop: bool
    refusal: str
    shapes: dict[Literal["columns", "restart"], list[_Count]]


_write_head = msgspec.json.Encoder().encode
_read_head = msgspec.json.Decoder(_UpdateHead | _AnswerHead).decode
# Spaces after which the numbers begin at a multiple of eight bytes, where they can be used as they lie.
_ENDS = [b" " * count + b"\n" for count in (7, 6, 5, 4, 3, 2, 1, 0)]


def encode(message: Message) -> bytes:
    """A message as bytes: a line of JSON, then the numbers of its arrays (little-endian float64, row by row).

    Nothing in it is run when it is read, other than with pickle.

    Examples:
        >>> decode(encode(Update("ward", 1, columns=np.ones((2, 1))))).columns.shape
        (2, 1)
    """
    is_update = isinstance(message, Update)
    names = ("columns", "curvature", "intercepts") if is_update else ("columns", "restart")
    values = {name: getattr(message, name) for name in names}
    arrays: dict[str, Any] = {name: np.ascontiguousarray(value, _DOUBLE) for name, value in values.items() if value is not None}
    shapes: Any = {name: value.shape for name, value in arrays.items()}
    common = message.site, message.sequence, message.epoch, message.version
    if is_update:
        line = _write_head(_UpdateHead(*common, shapes))
    else:
        line = _write_head(_AnswerHead(*common, message.step, message.relaxation, message.stop, message.refusal, shapes))
    # Joined as they are: a copy of a long column takes as long as the rest.
    return b"".join([line, _ENDS[len(line) % 8], *arrays.values()])


def decode(raw: bytes) -> Message:
    """The message of `encode`. Its arrays lie in `raw`, and cannot be written to.

    Raises:
        DataError: the bytes are none.
    """
    try:
        return _read(raw)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
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
    head, arrays = _read_head(raw[:at]), {}
    for name, shape in head.shapes.items():
        size = prod(shape)
        arrays[name] = np.frombuffer(raw, _DOUBLE, size, at).reshape(shape)
        at += 8 * size
    if at != len(raw):
        raise ValueError(f"{len(raw) - at} bytes are left over: it was cut or joined on its way")
    common = head.site, head.sequence, head.epoch
    if isinstance(head, _UpdateHead):
        return Update(*common, version=head.version, **arrays)
    plain = {"step": head.step, "relaxation": head.relaxation, "stop": head.stop, "refusal": head.refusal}
    return Answer(*common, head.version, **plain, **arrays)
