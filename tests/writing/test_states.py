"""The states of a staged dataset: every move that is legal, and every one that is not."""

from __future__ import annotations

import itertools
import json
import math
import uuid
from dataclasses import replace
from typing import Any

import pytest

from dserverfs.base.errors import DserverfsError, Frozen, ProtocolError, UsageError
from dserverfs.writing.staging.states import MOVES, Move, Record, State, next_state

RECORD = Record(
    id="b0f92a668-8a5b-4b5e-9d3a-000000000000",
    server="localhost:5000",
    base_uri="s3://bucket",
    name="data",
    creator_username="alice",
    created_at=1.5,
)
ILLEGAL = [pair for pair in itertools.product(State, Move) if pair not in MOVES]


@pytest.mark.parametrize(("state", "move"), ILLEGAL)
def test_an_illegal_move_raises_and_changes_nothing(state: State, move: Move) -> None:
    record = replace(RECORD, state=state, reason="as before")
    is_too_late = state in (State.COMPLETING, State.FROZEN) and move in (Move.WRITE, Move.DISCARD)

    with pytest.raises(DserverfsError) as raised:
        record.moved(move)

    assert type(raised.value) is (Frozen if is_too_late else UsageError)
    assert record == replace(RECORD, state=state, reason="as before")


@pytest.mark.parametrize("state", [State.COMPLETING, State.FROZEN])
@pytest.mark.parametrize("move", [Move.WRITE, Move.DISCARD])
def test_what_may_be_registered_is_neither_written_nor_discarded(state: State, move: Move) -> None:
    with pytest.raises(Frozen):
        next_state(state, move)


def test_an_empty_one_cannot_skip_being_sealed() -> None:
    with pytest.raises(UsageError, match="open cannot upload"):
        next_state(State.OPEN, Move.UPLOAD)


def test_the_usual_way_leads_to_frozen() -> None:
    record = RECORD

    for move in (Move.WRITE, Move.SEAL, Move.UPLOAD, Move.COMPLETE, Move.REGISTER):
        record = record.moved(move)

    assert record.state is State.FROZEN


@pytest.mark.parametrize("state", [State.SEALED, State.UPLOADING, State.FAILED])
def test_a_write_reopens_what_is_not_registered(state: State) -> None:
    assert replace(RECORD, state=state).moved(Move.WRITE).state is State.OPEN


def test_no_state_is_a_dead_end_but_frozen() -> None:
    ways_out = {state for state, _ in MOVES}

    assert ways_out == set(State) - {State.FROZEN}


@pytest.mark.parametrize("state", State)
def test_a_record_is_read_as_it_was_written(state: State) -> None:
    record = replace(RECORD, state=state, armed=False, reason="a disk was full: ünïcödé")
    sealed = replace(RECORD, state=state, manual=True, uuid=str(uuid.UUID(int=1)))

    assert Record.from_json(record.to_json()) == record
    assert Record.from_json(sealed.to_json()) == sealed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": 99}',
        RECORD.to_json().replace('"open"', '"ajar"'),
        RECORD.to_json().replace('"id"', '"it"'),
    ],
)
def test_a_damaged_record_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        Record.from_json(text)


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "id": [1, None, "", "..", "a/b", "x" * 256],
        "server": [1, None, "\ud800"],
        "base_uri": [1, None, "bucket", "s3://", "://bucket", "s3://bucket//x"],
        "name": [1, None, "", "a b", "x" * 81],
        "creator_username": [1, None],
        "created_at": [None, "1.5", True, 1e300, -1e300, math.nan],
        "state": [1, None, "", "ajar", "OPEN"],
        "armed": [1, None, "true"],
        "reason": [1, False, "\ud800"],
        "manual": [0, None, "false"],
        "uuid": [1, False, "", RECORD.id, "x" * 36],
    }.items(),
)
def test_a_value_that_no_field_of_that_name_has_is_refused(field: str, values: list[Any]) -> None:
    kept = json.loads(RECORD.to_json())

    for value in values:
        with pytest.raises(ProtocolError):
            Record.from_json(json.dumps({**kept, field: value}))


def test_a_new_one_is_frozen_by_itself() -> None:
    assert (RECORD.state, RECORD.armed, RECORD.manual) == (State.OPEN, True, False)


def test_registering_is_shown_as_uploading() -> None:
    assert replace(RECORD, state=State.COMPLETING).shown_state == "uploading"
