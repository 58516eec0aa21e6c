"""From a tree of plain values to settings, collecting every problem on the way.

``msgspec.convert`` stops at the first error; whoever fixes a file wants all of them. So this walks the same types
(``msgspec.inspect``), leaves out what is wrong, and remembers where, so that later checks do not complain of what
they could not see.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec import inspect

from penstock.config import notation
from penstock.config.reading import Location, Problem, Tree, kind_text
from penstock.config.settings import LOCAL, Configuration, Model, Upstream
from penstock.config.values import FileReference, Secret, Setting
from penstock.quota.plans import REQUEST_PICOS_MAX, TOKEN_PICOS_MAX, TOKENS_BOUND_MAX, TOKENS_PER_BYTE_MAX

INVALID: Final = object()
AMOUNT_MAX = TOKENS_BOUND_MAX
PORT_MAX = 65_535
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$"
VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
HOST_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$"
SIZE_PATTERN = r"^[1-9][0-9]*(Ki|Mi|Gi|Ti)$"
SECRET_NAME_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
SECRET_KEY_PATTERN = r"^[A-Za-z0-9._-]{1,253}$"
SECRETS_FOLDER = "/run/penstock/secrets"
"""Where the chart mounts Secrets, each in a folder of its name, each key a file."""
REDIS_SCHEMES = ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
STORE_SCHEMES = (*REDIS_SCHEMES, "postgresql", "amqp", "amqps")


@dataclass(frozen=True, slots=True)
class Notation:
    """How one kind of value is written.

    Args:
        parse: From text, integer or decimal; raises ``NotationError``.
        wanted: What it is, with an example.
        schema: Its JSON schema.
        write: The way back, for printing a default.
    """

    parse: Callable[[Any], Any]
    wanted: str
    schema: dict[str, Any]
    write: Callable[[Any], str] = str


def _amount(least: int, most: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if str(value).startswith("-"):
            raise notation.NotationError(f"found {value}, wanted {least} or more; write a positive number")
        amount = notation.parse_amount(value)
        if not least <= amount <= most:
            raise notation.NotationError(f"found {amount}, wanted {least} to {most}; choose a number between them")
        return amount

    return parse


def _usd(per_usd: int, most: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        units = notation.parse_usd(value, per_usd=per_usd)
        if units > most:
            shown = notation.format_usd(most, per_usd=per_usd)
            raise notation.NotationError(f"found {value}, wanted at most {shown} usd; check the unit, or lower it")
        return units

    return parse


def _number(value: Any) -> float:
    number = Decimal(value) if re.fullmatch(notation.MONEY_PATTERN, str(value)) else Decimal(0)
    if not 0 < number < 10**6:
        raise notation.NotationError(f"found {value}, wanted a number above 0; write one such as `3.5`")
    return float(number)


def _share(value: Any) -> float:
    number = Decimal(value) if re.fullmatch(notation.MONEY_PATTERN, str(value)) else Decimal(-1)
    if not 0 <= number <= 1:
        raise notation.NotationError(f"found {value}, wanted a number from 0 to 1; write one such as `0.01`")
    return float(number)


def _url(value: Any, schemes: tuple[str, ...]) -> str:
    """An absolute address without anything secret in it. What was found is never repeated: it may hold a password."""
    wanted = " or ".join(f"{scheme}://" for scheme in schemes)
    try:
        parts = urlsplit(str(value).strip())
        hosts = parts.netloc.split(",") if "+" in parts.scheme else [parts.netloc]  # sentinels, or nodes of a cluster
        found_hosts = [(each.hostname, each.port)[0] for each in (urlsplit(f"//{host}") for host in hosts)]
    except ValueError as error:
        raise notation.NotationError(f"found no valid address ({error}); write {wanted}host:port") from error
    if parts.scheme not in schemes:
        found = f"the scheme {parts.scheme!r}" if "://" in str(value) else "an address without a scheme"
        raise notation.NotationError(f"found {found}, wanted {wanted}; write it in front of host:port")
    if not all(found_hosts):
        raise notation.NotationError(f"found no host after {parts.scheme}://; write {parts.scheme}://host:port")
    if "@" in parts.netloc:
        raise notation.NotationError("found a user or password in the address; give it by reference beside the url")
    if parts.query or parts.fragment:
        raise notation.NotationError("found a query or fragment in the address; end it before `?` or `#`")
    return str(value).strip()


def _host_name(value: Any) -> str:
    if not re.fullmatch(HOST_NAME_PATTERN, str(value)):
        raise notation.NotationError(
            f"found {str(value)[:40]!r}, wanted a name such as `redis.data.svc`; write it alone"
        )
    return str(value)


def _size(value: Any) -> str:
    if not re.fullmatch(SIZE_PATTERN, str(value)):
        raise notation.NotationError(f"found {str(value)[:40]!r}, wanted a size such as `10Gi`; write Ki, Mi, Gi or Ti")
    return str(value)


def _upstream_url(value: Any) -> str:
    if value == LOCAL:
        return LOCAL
    url = _url(value, ("http", "https")).rstrip("/")
    if url.endswith("/v1"):
        raise notation.NotationError(f"found an address that ends in /v1, which is added; write `{url[:-3]}`")
    return url


_AMOUNT_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": notation.AMOUNT_PATTERN}]
}
_POSITIVE_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": notation.AMOUNT_PATTERN}]
}
_USD_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": notation.MONEY_PATTERN}]
}


def _duration(value: Any) -> int:
    duration_ms = notation.parse_duration(str(value))
    if duration_ms == 0:
        raise notation.NotationError(f"found {value}, wanted more than 0; write a duration such as `500ms`")
    return duration_ms


NOTATIONS: Final[dict[str, Notation]] = {
    "duration": Notation(
        _duration,
        "a duration such as `60s`, `500ms` or `24h`",
        {"type": "string", "pattern": notation.DURATION_PATTERN},
        notation.format_duration,
    ),
    "amount": Notation(_amount(0, AMOUNT_MAX), "a whole number such as `64` or `8k`", _AMOUNT_SCHEMA),
    "positive amount": Notation(
        _amount(1, AMOUNT_MAX), "a whole number above 0 such as `8192` or `200k`", _POSITIVE_SCHEMA
    ),
    "positive number": Notation(_number, "a number above 0 such as `3.5`", {"type": "number", "exclusiveMinimum": 0}),
    "share": Notation(_share, "a number from 0 to 1 such as `0.01`", {"type": "number", "minimum": 0, "maximum": 1}),
    "amount to 1024": Notation(_amount(1, TOKENS_PER_BYTE_MAX), "a whole number such as `2`", _POSITIVE_SCHEMA),
    "usd per million tokens": Notation(
        _usd(notation.PICOS_PER_USD // notation.TOKENS_PER_PRICE, TOKEN_PICOS_MAX),
        "US dollars per million tokens such as `0.15`",
        _USD_SCHEMA,
    ),
    "usd per request": Notation(
        _usd(notation.PICOS_PER_USD, REQUEST_PICOS_MAX), "US dollars per request such as `0.001`", _USD_SCHEMA
    ),
    "limit": Notation(
        lambda value: notation.parse_limit(str(value)),
        "a limit such as `200k tokens/minute`, `300 usd/month` or `32 concurrent`",
        {"type": "string", "pattern": notation.LIMIT_PATTERN},
    ),
    "port": Notation(
        _amount(0, PORT_MAX), "a port such as `8080`", {"type": "integer", "minimum": 0, "maximum": PORT_MAX}
    ),
    "url": Notation(
        _upstream_url,
        "an address such as `http://vllm:8000`, or `local`",
        {"type": "string", "pattern": r"^(local|https?://[^@?#]+)$"},
    ),
    "secure url": Notation(
        lambda value: _url(value, ("https",)),
        "an address such as `https://login.example.com`",
        {"type": "string", "pattern": r"^https://[^@?#]+$"},
    ),
    "store url": Notation(
        lambda value: _url(value, STORE_SCHEMES),
        "an address such as `redis://redis:6379`",
        {"type": "string", "pattern": rf"^({'|'.join(map(re.escape, STORE_SCHEMES))})://[^@?#]+$"},
    ),
    "host name": Notation(
        _host_name, "a name such as `redis.data.svc`", {"type": "string", "pattern": HOST_NAME_PATTERN}
    ),
    "size": Notation(_size, "a size such as `10Gi`", {"type": "string", "pattern": SIZE_PATTERN}),
}

# What the names of a mapping must look like, by the last word of its location.
NAMES: Final[dict[str, tuple[str, str]]] = {
    "models": (
        MODEL_NAME_PATTERN,
        "letters, digits and `. _ : / @ + -`, at most 128, beginning with a letter or digit",
    ),
    "plans": (NAME_PATTERN, "small letters, digits and hyphens, at most 63"),
    "organisations": (NAME_PATTERN, "small letters, digits and hyphens, at most 63"),
    "teams": (NAME_PATTERN, "small letters, digits and hyphens, at most 63"),
    "environment": (VARIABLE_PATTERN, "letters, digits and `_`"),
    "issuers": (NAME_PATTERN, "small letters, digits and hyphens, at most 63"),
}
ANY_NAME: Final = (r"^[^\s]{1,253}$", "a name without spaces")
INSTEAD_OF: Final[dict[tuple[type, str], str]] = {(Model, "upstream"): "deploy"}
"""Settings that may be left out only beside another one."""
_REFERENCES = (Secret, FileReference)


@dataclass(slots=True)
class Walked:
    """What came of a walk.

    Args:
        configuration: Whatever was sound.
        problems: In the order of the file.
        broken: Locations that were left out, or replaced by a default or a stand-in.
    """

    configuration: Configuration
    problems: list[Problem]
    broken: set[Location]


def walk(tree: Tree) -> Walked:
    """Read settings out of a tree."""
    walker = _Walker(tree)
    configuration = walker.value(inspect.type_info(Configuration), tree.values, ())
    return Walked(configuration, walker.problems, walker.broken)


def nearest(found: str, known: Iterable[str]) -> str:
    """``did you mean `x`?``, or the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(found.lower(), names, 1, 0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"known: {', '.join(names)}" if names else "there is none yet"


class _Walker:
    """Carries the problems of one walk."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.problems: list[Problem] = []
        self.broken: set[Location] = set()

    def problem(self, location: Location, message: str) -> Any:
        self.problems.append(Problem(location, message, self._tree.place(location)))
        self.broken.add(location)
        return INVALID

    def value(self, type_: inspect.Type, found: Any, location: Location, default: Any = None) -> Any:
        """The setting, or INVALID after at least one problem; what a section leaves out is taken from its default."""
        if isinstance(type_, inspect.UnionType):  # every union here is "or nothing"
            type_ = next(member for member in type_.types if not isinstance(member, inspect.NoneType))
        if isinstance(type_, inspect.Metadata):
            name = (type_.extra or {})["notation"]
            if name == "upstreams":
                return self._upstreams(type_.type, found, location)
            return self._notation(NOTATIONS[name], found, location)
        if isinstance(type_, inspect.StructType):
            return self._struct(type_, found, location, default)
        if isinstance(type_, inspect.DictType):
            return self._dict(type_, found, location)
        if isinstance(type_, inspect.VarTupleType):
            return self._list(type_.item_type, found, location)
        if isinstance(type_, inspect.EnumType):
            return self._enum(type_, found, location)
        if isinstance(type_, inspect.BoolType):
            wanted = f"found {kind_text(found)}, wanted true or false; write one of them, without quotes"
            return found if isinstance(found, bool) else self.problem(location, wanted)
        if isinstance(type_, inspect.ListType):
            wanted = f"found {kind_text(found)}, wanted a list; write `[...]` around it"
            return found if isinstance(found, list) else self.problem(location, wanted)
        if isinstance(type_, inspect.StrType):
            if isinstance(found, str) and found:
                return found
            return self.problem(location, f"found {kind_text(found) if found else 'nothing'}, wanted text; quote it")
        return found  # free-form sections

    def _notation(self, kind: Notation, found: Any, location: Location) -> Any:
        if isinstance(found, dict | list | bool) or found is None:
            return self.problem(location, f"found {kind_text(found)}, wanted {kind.wanted}; write it so")
        try:
            return kind.parse(found)
        except notation.NotationError as error:
            return self.problem(location, str(error))

    def _enum(self, type_: inspect.EnumType, found: Any, location: Location) -> Any:
        values = [str(member.value) for member in type_.cls]
        if isinstance(found, str) and found in values:
            return type_.cls(found)
        what = f"{found!r}" if isinstance(found, str) else kind_text(found)
        wanted = " or ".join(values)
        fix = nearest(found if isinstance(found, str) else "", values) if isinstance(found, str) else ""
        fix = fix if fix.startswith("did") else f"write `{values[0]}`"
        return self.problem(location, f"found {what}, wanted {wanted}; {fix}")

    def _list(self, item: inspect.Type, found: Any, location: Location) -> Any:
        if not isinstance(found, list):
            return self.problem(location, f"found {kind_text(found)}, wanted a list; write `[...]` around it")
        values = [self.value(item, value, (*location, position)) for position, value in enumerate(found)]
        return tuple(value for value in values if value is not INVALID)

    def _upstreams(self, type_: inspect.Type, found: Any, location: Location) -> Any:
        item = type_.item_type if isinstance(type_, inspect.VarTupleType) else type_
        one = not isinstance(found, list)
        if found == []:
            return self.problem(location, "found an empty list, wanted at least one upstream; write its URL or `local`")
        values = []
        for position, upstream in enumerate([found] if one else found):
            here = location if one else (*location, position)
            if isinstance(upstream, str):  # a problem of its address is a problem of the setting itself
                url = self._notation(NOTATIONS["url"], upstream, here)
                values.append(url if url is INVALID else Upstream(url=url))
            elif isinstance(upstream, dict):
                values.append(self.value(item, upstream, here))
            else:
                wanted = "a URL, a mapping with `url`, or `local`"
                values.append(self.problem(here, f"found {kind_text(upstream)}, wanted {wanted}; write one of them"))
        sound = tuple(value for value in values if value is not INVALID)
        return sound if len(sound) == len(values) else INVALID

    def _dict(self, type_: inspect.DictType, found: Any, location: Location) -> Any:
        if found is None:
            return {}
        if not isinstance(found, dict):
            return self.problem(location, f"found {kind_text(found)}, wanted a mapping from names; indent them below")
        if isinstance(type_.value_type, inspect.AnyType):
            return found
        pattern, wanted = NAMES.get(str(location[-1]), ANY_NAME)
        values = {}
        for name, below in found.items():
            here = (*location, name)
            if not re.fullmatch(pattern, name):
                self.problem(here, f"found the name {name!r}, wanted {wanted}; rename it")
            value = self.value(type_.value_type, {} if below is None else below, here)
            if value is not INVALID:
                values[name] = value
        return values

    def _struct(self, type_: inspect.StructType, found: Any, location: Location, default: Any) -> Any:
        if type_.cls in _REFERENCES:
            return self._reference(type_.cls, found, location)
        if not isinstance(found, dict):
            keys = ", ".join(field.encode_name for field in type_.fields)
            return self.problem(location, f"found {kind_text(found)}, wanted a mapping; write keys below it: {keys}")
        known = {field.encode_name: field for field in type_.fields}
        for key in found:
            if key not in known:
                self.problem((*location, key), f"unknown key; {nearest(key, known)}")
        values: dict[str, Any] = {}
        for name, field in known.items():
            beside = getattr(default, field.name) if default is not None else field.default
            if found.get(name) is None:
                other = INSTEAD_OF.get((type_.cls, name))
                if field.required or (other is not None and found.get(other) is None):
                    instead = f", or `{other}: ...`" if other else ""
                    wanted = f"wanted {wanted_text(field.type)}; write `{name}: ...`{instead}"
                    self.problem((*location, name), f"missing, {wanted}")
                    values[field.name] = _stand_in(field.type)
                elif default is not None:
                    values[field.name] = beside
                continue
            of_section = beside if isinstance(beside, Setting) else None
            value = self.value(field.type, found[name], (*location, name), of_section)
            if value is INVALID:
                self.broken.add((*location, name))
                value = _stand_in(field.type) if field.required else INVALID
            if value is not INVALID:
                values[field.name] = value
        return type_.cls(**values)

    def _reference(self, kind: type, found: Any, location: Location) -> Any:
        """A secret or a file: by variable, by path, or by a Secret that the chart mounts."""
        ways = ("env", "file", "secret") if kind is Secret else ("file", "secret")
        fix = "write `{file: PATH}`, or `{secret: NAME, key: KEY}` for a Secret of Kubernetes"
        fix = f"{fix}, or `{{env: NAME}}` for an environment variable" if kind is Secret else fix
        if not isinstance(found, dict):
            never = "a secret is never a value in this file; " if kind is Secret else ""
            return self.problem(location, f"found {kind_text(found)}; {never}{fix}")
        for key in found:
            if key not in (*ways, "key"):
                return self.problem((*location, key), f"unknown key, wanted {', '.join(ways)} or key; {fix}")
        given = {way: found[way] for way in ways if found.get(way) is not None}
        if len(given) != 1:
            message = f"found {len(given)} references, wanted exactly one of {', '.join(ways)}; {fix}"
            return self.problem(location, message)
        ((way, value),) = given.items()
        if not isinstance(value, str) or not value:
            return self.problem((*location, way), f"found {kind_text(value)}, wanted text; {fix}")
        if way == "env" and not re.fullmatch(VARIABLE_PATTERN, value):
            message = "found no name of an environment variable (its value, perhaps?), wanted letters, digits and `_`"
            return self.problem((*location, way), f"{message}; {fix}")
        key = found.get("key")
        if way != "secret":
            return kind(**given) if key is None else self.problem((*location, "key"), f"has no use beside {way}; {fix}")
        if not isinstance(key, str) or not re.fullmatch(SECRET_KEY_PATTERN, key):
            return self.problem((*location, "key"), f"missing or no key of a Secret; {fix}")
        if not re.fullmatch(SECRET_NAME_PATTERN, value):
            return self.problem(
                (*location, way), f"found no name of a Secret, wanted small letters, digits, `-`; {fix}"
            )
        return kind(file=f"{SECRETS_FOLDER}/{value}/{key}")


def _stand_in(type_: inspect.Type) -> Any:
    """For a required setting that is wrong, so that the settings beside it are still checked.

    It is seen by nobody: its location is in ``broken``, and a configuration with problems is not handed out.
    """
    if isinstance(type_, inspect.StructType):
        return type_.cls(**{field.name: _stand_in(field.type) for field in type_.fields if field.required})
    if isinstance(type_, inspect.Metadata) and isinstance(type_.type, inspect.IntType):
        return AMOUNT_MAX
    return () if isinstance(type_, inspect.Metadata) and isinstance(type_.type, inspect.VarTupleType) else ""


def wanted_text(type_: inspect.Type) -> str:
    """What a setting wants, in words; ``type_`` without "or nothing"."""
    if isinstance(type_, inspect.Metadata):
        name = (type_.extra or {})["notation"]
        return (
            "a URL, a mapping with `url`, a list of these, or `local`"
            if name == "upstreams"
            else NOTATIONS[name].wanted
        )
    if isinstance(type_, inspect.EnumType):
        return " or ".join(f"`{member.value}`" for member in type_.cls)
    if isinstance(type_, inspect.VarTupleType):
        return "a list"
    if isinstance(type_, inspect.BoolType):
        return "`true` or `false`"
    if isinstance(type_, inspect.ListType):
        return "a list"
    return "text" if isinstance(type_, inspect.StrType) else "a mapping"
