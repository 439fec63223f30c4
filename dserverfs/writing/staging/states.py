"""The states of a staged dataset, and the moves that lead from one to another.

Used by staging, which keeps a record of it on disk. Pure: no I/O, no clock, no
lock. A move that is not in the table raises and changes nothing.

    open --seal--> sealed --upload--> uploading --complete--> completing --register--> frozen
     ^                ^                   |                       |
     |                +----postpone-------+                       |
     +----write--- sealed, uploading, failed <-------fail---------+

A write reopens until the server is asked to register (completing), which may
have happened even if its answer got lost. From then on the dataset is frozen.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from dserverfs.base.errors import Frozen, ProtocolError, UsageError
from dserverfs.base.limits import (
    component_is_usable,
    date_is_usable,
    is_text,
    is_uuid,
    name_is_valid,
    parse_json,
    quoted,
)
from dserverfs.base.model import split_base_uri

FORMAT = 1


class State(enum.Enum):
    OPEN = "open"  # may be written
    SEALED = "sealed"  # hashed and safe on disk; waits to be uploaded
    UPLOADING = "uploading"
    COMPLETING = "completing"  # everything is stored; the server is asked to register
    FROZEN = "frozen"  # registered; what is staged can go
    FAILED = "failed"  # refused by server or store; may be written, retried or discarded


class Move(enum.Enum):
    WRITE = "write"
    SEAL = "seal"
    UPLOAD = "upload"
    POSTPONE = "postpone"
    COMPLETE = "complete"
    REGISTER = "register"
    FAIL = "fail"
    DISCARD = "discard"


# Where each move leads; what is not here is illegal. A discarded one has no state any more,
# DISCARD leads to where it stays if it cannot be deleted.
MOVES: dict[tuple[State, Move], State] = {
    (State.OPEN, Move.WRITE): State.OPEN,
    (State.SEALED, Move.WRITE): State.OPEN,
    (State.UPLOADING, Move.WRITE): State.OPEN,
    (State.FAILED, Move.WRITE): State.OPEN,
    (State.OPEN, Move.SEAL): State.SEALED,
    (State.FAILED, Move.SEAL): State.SEALED,
    (State.SEALED, Move.UPLOAD): State.UPLOADING,
    (State.UPLOADING, Move.UPLOAD): State.UPLOADING,  # by the next daemon
    (State.UPLOADING, Move.POSTPONE): State.SEALED,
    (State.COMPLETING, Move.POSTPONE): State.COMPLETING,
    (State.UPLOADING, Move.COMPLETE): State.COMPLETING,
    (State.COMPLETING, Move.COMPLETE): State.COMPLETING,  # by the next daemon
    (State.COMPLETING, Move.REGISTER): State.FROZEN,
    (State.SEALED, Move.FAIL): State.FAILED,
    (State.UPLOADING, Move.FAIL): State.FAILED,
    (State.COMPLETING, Move.FAIL): State.FAILED,
    (State.OPEN, Move.DISCARD): State.OPEN,
    (State.SEALED, Move.DISCARD): State.OPEN,
    (State.UPLOADING, Move.DISCARD): State.OPEN,
    (State.FAILED, Move.DISCARD): State.FAILED,
}


def next_state(state: State, move: Move) -> State:
    """Return where `move` leads. Raises Frozen if it is too late to change, else UsageError."""
    try:
        return MOVES[state, move]
    except KeyError:
        if move in (Move.WRITE, Move.DISCARD):  # which any other state allows
            raise Frozen("it is frozen: the server was asked to register it") from None
        raise UsageError(f"a staged dataset that is {state.value} cannot {move.value}") from None


@dataclass(frozen=True)
class Record:
    """Everything about a staged dataset that is not in its files."""

    id: str  # a uuid; the dataset's own, unless its files say otherwise
    server: str
    base_uri: str
    name: str
    creator_username: str
    created_at: float  # epoch seconds
    state: State = State.OPEN
    armed: bool = True  # may be frozen without a command
    reason: str | None = None  # why it is not armed, postponed or failed
    manual: bool = False  # the user wants to freeze it by command
    uuid: str | None = None  # of the dataset, once sealed

    @property
    def shown_state(self) -> str:
        """The state as users are told: one that is being registered is being uploaded."""
        shown = State.UPLOADING if self.state is State.COMPLETING else self.state
        return str(shown.value)

    def moved(self, move: Move, *, reason: str | None = None) -> Record:
        """Return the record after `move`; raises Frozen or UsageError."""
        return replace(self, state=next_state(self.state, move), reason=reason)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self), "state": self.state.value}, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """Return what `to_json` wrote; raises ProtocolError for anything else."""
        values = parse_json(text, "the state")
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ProtocolError("the state is none, or of another version of dserverfs")
        if values.keys() != _FIELDS.keys():
            raise ProtocolError("the state has not the fields of one")
        for name, is_usable in _FIELDS.items():
            if not is_usable(values[name]):
                raise ProtocolError(
                    f"the state has a {name} that cannot be: {quoted(values[name])}"
                )
        split_base_uri(values["base_uri"])
        return cls(**{**values, "state": State(values["state"])})


def _is_text_or_none(value: object) -> bool:
    return value is None or is_text(value)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


# The values that each field of a record's JSON may have.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "id": lambda value: is_text(value) and component_is_usable(value),
    "server": is_text,
    "base_uri": is_text,
    "name": lambda value: is_text(value) and name_is_valid(value),
    "creator_username": is_text,
    "created_at": lambda value: (
        isinstance(value, (int, float)) and not _is_bool(value) and date_is_usable(value)
    ),
    "state": lambda value: value in [state.value for state in State],
    "armed": _is_bool,
    "reason": _is_text_or_none,
    "manual": _is_bool,
    "uuid": lambda value: value is None or (is_text(value) and is_uuid(value)),
}
