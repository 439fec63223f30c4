"""Forms of JSON bodies, as marshmallow's schemas, and the one way in which they are refused.

A body of another form is UsageError with status 422; a value that is of the form and
that dtool, S3 or a file system could not hold is one with status 400. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields

from dserverfs.base import limits
from dserverfs.base.errors import UsageError


class Form(Schema):
    """A form that leaves out the fields it does not know."""

    class Meta:
        unknown = EXCLUDE


def form(**fields_of: fields.Field) -> Schema:
    """Return a form with these fields."""
    return Form.from_dict(fields_of)()


def loaded(of: Schema, body: object) -> dict[str, Any]:
    """Return the values of a body; raises UsageError that names each field that is wrong."""
    if not isinstance(body, Mapping):
        raise UsageError("the body is not a JSON object", status=422)
    try:
        values: dict[str, Any] = of.load(body)
    except ValidationError as error:
        faults = (f"{name}: {each[0].rstrip('.')}" for name, each in error.messages_dict.items())
        raise UsageError("; ".join(faults), status=422) from error
    return values


class Strings(fields.Field):
    """A list of strings. `fields.List` would have an error for each of a million numbers."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ValidationError("Not a list of strings.")
        return value


class Seconds(fields.Field):
    """Seconds since 1970, as a number. `fields.Float` would take a string and a boolean."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> float:
        if not is_number(value):
            raise ValidationError("Not a number.")
        require(
            limits.date_is_usable(value),
            f"{attr} is not a number of seconds in the years 1 to 9999",
        )
        return float(value)


class Count(fields.Field):
    """An integer. `fields.Integer` would take a boolean."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **_: Any) -> int:
        if not is_integer(value):
            raise ValidationError("Not an integer.")
        return int(value)


def is_integer(value: object) -> bool:
    return type(value) is int


def is_number(value: object) -> bool:
    return type(value) in (int, float)


def require(condition: bool, message: str) -> None:
    """Raise UsageError, status 400, unless the condition holds."""
    if not condition:
        raise UsageError(message, status=400)
