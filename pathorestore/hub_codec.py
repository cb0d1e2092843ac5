"""Frozen dataclass <-> plain JSON values, strictly: what is not understood is an error, never a silent default."""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class ConfigError(ValueError):
    """A stored config that does not fit its dataclass; the message names the key, what it holds and what was expected."""


def encode(value: object, *, where: str = "config") -> Any:
    """Turn a dataclass, and what it holds, into JSON values: nested dataclasses become objects, tuples become lists.

    Raises TypeError, naming the field, for anything that `decode` could not restore exactly, NaN and infinity among it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field for field in dataclasses.fields(value) if field.init)
        return {field.name: encode(getattr(value, field.name), where=f"{where}.{field.name}") for field in fields}
    if isinstance(value, list | tuple):
        return [encode(item, where=f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: encode(item, where=f"{where}[{key!r}]") for key, item in value.items()}
    # exact types: an enum or a numpy scalar that subclasses one of these would come back as something else
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    raise TypeError(
        f"{where} is {_shown(value)}; a stored config holds dataclasses, tuples, lists, dicts, str, bool, int, finite float, None"
    )


def decode(cls: type[T], data: object, *, where: str = "config") -> T:
    """Build the dataclass `cls` from what `encode` made of one; tuples and nested dataclasses are restored by annotation.

    Raises ConfigError for an unknown key, a missing key or a value of another type, and for what the dataclass itself refuses.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {_shown(data)}; expected an object with the fields of {cls.__name__}")
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    _check_keys(cls.__name__, given=data, expected=names, where=where)
    values = {name: _decode_value(hints[name], data[name], where=f"{where}.{name}") for name in names}
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where} is refused by {cls.__name__}: {error}") from error


def _check_keys(owner: str, *, given: Mapping[str, object], expected: Sequence[str], where: str) -> None:
    unknown = sorted(set(given) - set(expected))
    missing = [name for name in expected if name not in given]
    if unknown or missing:
        parts = [f"unknown {', '.join(unknown)}" if unknown else "", f"missing {', '.join(missing)}" if missing else ""]
        raise ConfigError(
            f"{where} does not fit {owner}: {'; '.join(part for part in parts if part)}; expected exactly {', '.join(expected)}. "
            "It was written by another version of this class: migrate it by hand, CHANGELOG.md says how"
        )


def _decode_value(hint: Any, value: object, *, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(args, value, where=where)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in args):
            raise _mismatch(where, value, f"one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        return _decode_tuple(args, value, where=where)
    if origin is list and isinstance(value, list):
        return [_decode_value(args[0], item, where=f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _decode_value(args[1], item, where=f"{where}[{key!r}]") for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return decode(hint, value, where=where)
    return _decode_scalar(hint, value, where=where)


def _decode_union(args: tuple[Any, ...], value: object, *, where: str) -> Any:
    refusals = []
    for hint in args:
        try:
            return _decode_value(hint, value, where=where)
        except ConfigError as error:
            refusals.append(str(error))
    raise ConfigError(" or ".join(refusals))


def _decode_tuple(args: tuple[Any, ...], value: object, *, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _mismatch(where, value, "a list")
    hints = [args[0]] * len(value) if args[1:] == (...,) else list(args)
    if len(hints) != len(value):
        raise _mismatch(where, value, f"a list of {len(hints)}")
    return tuple(_decode_value(hint, item, where=f"{where}[{index}]") for index, (hint, item) in enumerate(zip(hints, value, strict=True)))


def _decode_scalar(hint: Any, value: object, *, where: str) -> Any:
    if hint is None or hint is type(None):
        if value is None:
            return None
        raise _mismatch(where, value, "null")
    if hint is float and type(value) in (int, float):
        return float(value)  # type: ignore[arg-type]
    if hint in (bool, int, str) and type(value) is hint:  # bool is an int to isinstance
        return value
    raise _mismatch(where, value, getattr(hint, "__name__", str(hint)))


def _mismatch(where: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{where} is {_shown(value)}; expected {expected}")


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
