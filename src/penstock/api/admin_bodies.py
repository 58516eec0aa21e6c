"""What administrators send: typed, bounded, and refused if it has a field that nobody knows."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from penstock.api.readable import check_field
from penstock.config.notation import NotationError, parse_limit
from penstock.config.walking import NAME_PATTERN
from penstock.errors import InvalidRequest
from penstock.lanes.administering import Admin
from penstock.quota.counters import AMOUNT_MAX
from penstock.quota.definitions import Limit, Overrun, ReservePolicy

B = TypeVar("B", bound="Body")

PAGE, PAGE_MAX = 20, 100
GRACE_MS = 86_400_000
_WORDS_MAX = 300

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Text = Annotated[str, Meta(max_length=200)]
ModelName = Annotated[str, Meta(min_length=1, max_length=128)]
Amount = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
Names = Annotated[list[ModelName], Meta(min_length=1, max_length=256)]
Sentence = Annotated[str, Meta(max_length=100)]


class Body(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of every body."""

    def given(self) -> dict[str, Any]:
        """The fields that were sent, by name."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in values.items() if value is not UNSET}


class NewOrganisation(Body, frozen=True, kw_only=True):
    """POST organisations."""

    name: Name
    limits: Annotated[list[Sentence], Meta(max_length=32)] = []
    reserve: ReservePolicy = ReservePolicy.STRICT
    overrun: Overrun = Overrun.STOP
    results_ms: Amount | None = None
    answers_ms: Amount | None = None


class OrganisationChange(Body, frozen=True, kw_only=True):
    """PATCH an organisation."""

    reserve: ReservePolicy | UnsetType = UNSET
    overrun: Overrun | UnsetType = UNSET
    results_ms: Amount | UnsetType | None = UNSET
    answers_ms: Amount | UnsetType | None = UNSET


class NewTeam(Body, frozen=True, kw_only=True):
    """POST teams."""

    name: Name


class NewKey(Body, frozen=True, kw_only=True):
    """POST keys."""

    name: Text = ""
    team: Name | None = None
    models: Names | None = None
    routes: Names | None = None
    cost_nanos_max: Amount | None = None
    expires_at_ms: Amount = 0
    admin: Admin = Admin.NOTHING


class KeyChange(Body, frozen=True, kw_only=True):
    """PATCH a key."""

    name: Text | UnsetType = UNSET
    team: Name | UnsetType | None = UNSET
    models: Names | UnsetType | None = UNSET
    routes: Names | UnsetType | None = UNSET
    cost_nanos_max: Amount | UnsetType | None = UNSET
    expires_at_ms: Amount | UnsetType = UNSET
    admin: Admin | UnsetType = UNSET


class Rotation(Body, frozen=True, kw_only=True):
    """POST a key's rotation."""

    grace_ms: Amount = GRACE_MS


class NewLimit(Body, frozen=True, kw_only=True):
    """POST limits: of the organisation, or of a team or a key."""

    limit: Sentence
    team: Name | None = None
    key: Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,32}$")] | None = None
    model: ModelName | None = None


class LimitChange(Body, frozen=True, kw_only=True):
    """PATCH a limit."""

    cap: Amount


class NewPrice(Body, frozen=True, kw_only=True):
    """POST prices: integer pico-dollars for a token or a request."""

    model: ModelName
    prompt_picos: Amount
    completion_picos: Amount
    cached_picos: Amount | None = None
    request_picos: Amount = 0
    valid_from_ms: Amount | None = None


def read_body(raw: bytes, kind: type[B]) -> B:
    """Decode a body; an empty one is an empty object.

    Raises:
        InvalidRequest: It is no JSON, has a field that is not known, or a value of another kind, or that cannot be
            shown.
    """
    try:
        found = msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__)
        raise InvalidRequest(f"{str(error)[:_WORDS_MAX]}; the fields are {known}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the body is not valid JSON; send one JSON object in UTF-8", code="invalid_json") from None
    for name, value in found.given().items():
        check_field(name, value)
    return found


def read_limit(sentence: str, *, owner: str, model: str | None = None) -> Limit:
    """A limit, of the sentence that states it.

    Raises:
        InvalidRequest: It is none.
    """
    try:
        return parse_limit(sentence).limit(owner=owner, model=model)
    except NotationError as error:
        raise InvalidRequest(f"limit: {error}", param="limit") from None


def owner_of(organisation: str, body: NewLimit) -> str:
    """Whose limit it is to be.

    Raises:
        InvalidRequest: Team and key are both given.
    """
    if body.team is not None and body.key is not None:
        raise InvalidRequest("team: not together with key; a limit has one owner", param="team")
    if body.team is not None:
        return f"{organisation}:team:{body.team}"
    return organisation if body.key is None else f"{organisation}:key:{body.key}"


def known_names(names: Collection[str], known: Collection[str], what: str) -> frozenset[str]:
    """A scope.

    Raises:
        InvalidRequest: It names something that is not there.
    """
    unknown = sorted(set(names) - set(known))
    if unknown:
        there = ", ".join(sorted(known))
        raise InvalidRequest(f"{what}: {unknown[0][:64]} is not known; there are {there}", param=what)
    return frozenset(names)


def asked(query: Mapping[str, str], allowed: Collection[str] = ()) -> tuple[int, list[Any]]:
    """How long a page is to be, and behind what it begins: nothing if it is the first.

    Raises:
        InvalidRequest: A parameter is not known, or is out of its bounds.
    """
    unknown = set(query) - {"limit", "cursor", *allowed}
    if unknown:
        raise InvalidRequest(f"this list takes {', '.join(sorted({'limit', 'cursor', *allowed}))} only")
    text = query.get("limit", str(PAGE))
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and 1 <= int(text) <= PAGE_MAX):
        raise InvalidRequest(f"limit: must be 1 to {PAGE_MAX}", param="limit")
    try:
        after = msgspec.json.decode(
            base64.b64decode(query.get("cursor", ""), altchars=b"-_", validate=True) or b"[]", type=list[str | int]
        )
    except (msgspec.DecodeError, binascii.Error, ValueError):
        raise InvalidRequest("cursor: must be the next_cursor of the page before", param="cursor") from None
    return int(text), after


def cursor(*after: str | int) -> str:
    """What leads to the page behind this."""
    return base64.urlsafe_b64encode(msgspec.json.encode(after)).decode()
