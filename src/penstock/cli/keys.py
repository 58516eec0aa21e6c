"""``penstock keys``: create, list, rotate and revoke API keys in the embedded default's database."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from typing import Annotated

import msgspec
import typer
from sqlalchemy import Engine

from penstock.adapters.sql.definition_rows import teams_by_organisation
from penstock.adapters.sql.keys import Keys
from penstock.api.admin_views import key_view
from penstock.api.permissions import SCOPES
from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles, DataDirectory, load_with_places
from penstock.config import Configuration, NotationError
from penstock.config.notation import NANOS_PER_USD, parse_duration, parse_usd
from penstock.config.walking import nearest
from penstock.console.keys import KeyRow, key_state, keys_table, moment
from penstock.console.screen import screen
from penstock.errors import InvalidRequest
from penstock.lanes.administering import Admin, StoredKey
from penstock.lanes.credentials import Credentials, Hashed, mint, pepper_name
from penstock.quota.definitions import Key
from penstock.wiring.acting import actor
from penstock.wiring.database import opened_database
from penstock.wiring.places import Places
from penstock.wiring.running import local_url
from penstock.wiring.secrets import read_peppers

ROUTES = SCOPES


class AdminOption(StrEnum):
    """How the command line spells what a key may administrate."""

    NOTHING = "nothing"
    ORGANISATION = "organisation"
    PLATFORM = "platform"


keys = typer.Typer(
    name="keys",
    no_args_is_help=True,
    help="API keys: create, list, rotate, revoke. A running service notices each change within a second.",
)
app.add_typer(keys)

OrganisationName = Annotated[str, typer.Argument(metavar="ORGANISATION", help="As named in the configuration.")]
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="The key's id, the third part of `psk_acme_<id>_...`.")]


@keys.command()
def create(
    organisation: OrganisationName,
    name: Annotated[str, typer.Option(help="For people: what the key is for.")] = "",
    team: Annotated[str | None, typer.Option(help="The team whose limits it falls under too.")] = None,
    models: Annotated[
        list[str] | None, typer.Option(help="Only these models; separate with commas or repeat. Default: all.")
    ] = None,
    routes: Annotated[
        list[str] | None, typer.Option(help=f"Only these routes, of {', '.join(ROUTES)}. Default: all.")
    ] = None,
    max_cost: Annotated[
        str | None, typer.Option(metavar="USD", help="The most that one request may hold, such as 0.05.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long it is valid, such as 90d. Default: for ever.")
    ] = None,
    admin: Annotated[
        AdminOption,
        typer.Option(help="What it may administrate over /admin/v1: nothing, its organisation, or everything."),
    ] = AdminOption.NOTHING,
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
) -> None:
    """Make a key and print it, once: only its hash is kept.

    The key goes to standard output and everything else to standard error, so this works:

        export OPENAI_API_KEY=$(penstock keys create acme --team search --name ci)
    """
    configuration, places = load_with_places(config, data)
    now_ms = _now_ms()
    key = Key(
        id=secrets.token_hex(5),
        team=team,
        expires_at_ms=0 if expires is None else now_ms + _parsed(expires, "--expires"),
        models=_scope(models, configuration.models, "--models", "model"),
        routes=_scope(routes, ROUTES, "--routes", "route"),
        cost_nanos_max=None if max_cost is None else _parsed_usd(max_cost, "--max-cost"),
    )
    token = mint(organisation, key.id, secret=secrets.token_bytes(32))
    hashed = _hashed(token, configuration, places)
    key = replace(key, macs=((hashed.mac, 0),))
    with opened_database(configuration, places) as engine:
        _check_organisation(configuration, engine, organisation, team)
        stored = Keys(engine)
        stored.create(
            organisation,
            key,
            name=name,
            now_ms=now_ms,
            actor=actor("cli"),
            admin=Admin[admin.name],
            pepper=hashed.pepper,
        )
    _show_once(token, f"Key {key.id} of {organisation}{f', team {team}' if team else ''}", configuration)


@keys.command("list")
def list_keys(
    organisation: Annotated[str | None, typer.Argument(metavar="[ORGANISATION]", help="Default: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for programs.")] = False,
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
) -> None:
    """Show keys with their scope, expiry and state. Secrets are not kept, so none can be shown."""
    configuration, places = load_with_places(config, data)
    now_ms = _now_ms()
    peppers = [pepper_name(each) for each in read_peppers(configuration, places, os.environ)]
    with opened_database(configuration, places) as engine:
        found = Keys(engine).list(organisation)
        if organisation is not None and not found:
            _check_organisation(configuration, engine, organisation, None)
    sys.stderr.write(_told_of_peppers(found, peppers, now_ms))
    if as_json:
        shown = [{**_as_json(each, now_ms), "peppers": _pepper_of(each, peppers, now_ms)} for each in found]
        sys.stdout.write(msgspec.json.encode(shown).decode() + "\n")
        return
    if not found:
        sys.stderr.write("no keys yet; make one with `penstock keys create ORGANISATION`\n")
        return
    screen().print(keys_table([_row(each) for each in found], now_ms=now_ms))


@keys.command()
def rotate(
    organisation: OrganisationName,
    key_id: KeyId,
    grace: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the secret before goes on working; 0s ends it now.")
    ] = "24h",
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
) -> None:
    """Give a key a second secret and print it, once. The first dies after the grace period.

    Scopes, limits and the id stay; put the new secret in place before the old one ends.
    """
    configuration, places = load_with_places(config, data)
    grace_ms, now_ms = _parsed(grace, "--grace"), _now_ms()
    with _opened(configuration, places) as stored:
        stored.get(organisation, key_id)
        token = mint(organisation, key_id, secret=secrets.token_bytes(32))
        mac, pepper = _hashed(token, configuration, places)
        stored.rotate(
            organisation, key_id, mac=mac, pepper=pepper, grace_ms=grace_ms, now_ms=now_ms, actor=actor("cli")
        )
    ends = f"works until {moment(now_ms + grace_ms)} UTC" if grace_ms else "is refused from now on"
    _show_once(token, f"New secret of key {key_id} of {organisation}; the one before {ends}", configuration)


@keys.command()
def revoke(
    organisation: OrganisationName,
    key_id: KeyId,
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
) -> None:
    """Refuse a key for good, within a second also where the service runs. It stays in the list and the ledger."""
    configuration, places = load_with_places(config, data)
    with _opened(configuration, places) as stored:
        stored.revoke(organisation, key_id, now_ms=_now_ms(), actor=actor("cli"))
    sys.stderr.write(f"key {key_id} of {organisation} is revoked\n")


@contextmanager
def _opened(configuration: Configuration, places: Places) -> Iterator[Keys]:
    with opened_database(configuration, places) as engine:
        yield Keys(engine)


def _show_once(token: str, what: str, configuration: Configuration) -> None:
    server = configuration.server
    sys.stderr.write(f"{what}. It is shown this once; keep it where secrets are kept.\n\n")
    sys.stdout.write(f"{token}\n")
    sys.stdout.flush()
    sys.stderr.write(
        f"\nAny OpenAI client takes it from two variables:\n"
        f"    export OPENAI_API_KEY=<the key>\n"
        f"    export OPENAI_BASE_URL={local_url(server.host, server.port)}/v1\n"
    )


def _hashed(token: str, configuration: Configuration, places: Places) -> Hashed:
    return Credentials(read_peppers(configuration, places, os.environ)).hashed(token)


def _check_organisation(configuration: Configuration, engine: Engine, organisation: str, team: str | None) -> None:
    """Those of the configuration, and those that administrators added."""
    known = {name: set(each.teams) for name, each in configuration.organisations.items()}
    for name, teams in teams_by_organisation(engine).items():
        known[name] = known.get(name, set()) | teams
    if organisation not in known:
        raise InvalidRequest(f"there is no organisation {organisation!r}; {nearest(organisation, known)}")
    if team is not None and team not in known[organisation]:
        raise InvalidRequest(f"--team: {team!r} is no team of {organisation}; {nearest(team, known[organisation])}")


def _pepper_of(stored: StoredKey, peppers: Sequence[str], now_ms: int) -> list[str]:
    """Which of the live peppers each secret that still works is kept under: newest, previous, or another."""
    words = dict(zip(peppers, ("newest", "previous"), strict=False))
    live = zip(stored.key.macs, stored.peppers, strict=True)
    return [words.get(name, "unknown") for (_, ends_ms), name in live if not ends_ms or ends_ms > now_ms]


def _told_of_peppers(found: Sequence[StoredKey], peppers: Sequence[str], now_ms: int) -> str:
    """Whether the previous pepper can go, while there is one."""
    if len(peppers) < 2:
        return ""
    working = ("active", "rotating")
    live = [each for each in found if key_state(each.key, now_ms=now_ms).startswith(working)]
    waiting = [each for each in live if set(_pepper_of(each, peppers, now_ms)) - {"newest"}]
    if not waiting:
        return "auth.pepper_previous can go: every key in force is kept under auth.pepper\n"
    names = ", ".join(each.path for each in waiting[:5]) + (", ..." if len(waiting) > 5 else "")
    return (
        f"auth.pepper_previous is needed: {len(waiting)} keys in force are kept under it ({names}); each moves to "
        "auth.pepper when it is next used, or when it is rotated\n"
    )


def _scope(written: list[str] | None, known: Iterable[str], option: str, what: str) -> frozenset[str] | None:
    """The names in an option that may be repeated or hold several; None if it was not given."""
    if written is None:
        return None
    names = [name.strip() for each in written for name in each.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise InvalidRequest(f"{option}: {name!r} is no {what}; {nearest(name, known)}")
    if not names:
        raise InvalidRequest(f"{option}: names no {what}; leave the option out to allow all")
    return frozenset(names)


def _parsed(duration: str, option: str) -> int:
    try:
        return parse_duration(duration)
    except NotationError as error:
        raise InvalidRequest(f"{option}: {error}") from error


def _parsed_usd(amount: str, option: str) -> int:
    try:
        return parse_usd(amount, per_usd=NANOS_PER_USD)
    except NotationError as error:
        raise InvalidRequest(f"{option}: {error}") from error


def _row(stored: StoredKey) -> KeyRow:
    return KeyRow(
        organisation=stored.organisation, name=stored.name, created_at_ms=stored.created_at_ms, key=stored.key
    )


def _as_json(stored: StoredKey, now_ms: int) -> dict[str, object]:
    return key_view(stored) | {"state": key_state(stored.key, now_ms=now_ms)}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
