"""``penstock keys``: what it prints, what it keeps, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from penstock.adapters.sql.audit_log import entries
from penstock.adapters.sql.database import open_engine
from penstock.adapters.sql.keys import Keys
from penstock.lanes.credentials import Credentials
from penstock.quota.definitions import Key
from tests.cli.conftest import Run

DAY_MS = 86_400_000


def listed(run: Run, *arguments: str) -> list[dict[str, Any]]:
    outcome = run("keys", "list", "--json", *arguments)
    assert outcome.code == 0
    found: list[dict[str, Any]] = json.loads(outcome.out)
    return found


def kept(data: Path, organisation: str, key_id: str) -> Key:
    engine = open_engine(data / "penstock.db")
    try:
        return Keys(engine).get(organisation, key_id).key
    finally:
        engine.dispose()


def macs_of(token: str, data: Path) -> tuple[str, ...]:
    """What the service computes of a presented key."""
    pepper = (data / "pepper").read_text().strip().encode()
    credential = Credentials((pepper,)).read(token.encode())
    assert credential is not None
    return credential.macs


def test_create_prints_the_key_alone_on_standard_output(run: Run) -> None:
    made = run("keys", "create", "acme")
    assert made.code == 0
    assert made.out.startswith("psk_acme_")
    assert made.out.count("\n") == 1
    assert "OPENAI_API_KEY" in made.err
    assert "http://127.0.0.1:8080/v1" in made.err
    assert made.out.strip() not in made.err


def test_the_printed_key_is_the_one_that_the_store_accepts(run: Run, data: Path) -> None:
    token = run("keys", "create", "acme").out.strip()
    ((stored, expires_ms),) = kept(data, "acme", token.split("_")[2]).macs
    assert (stored,) == macs_of(token, data)
    assert expires_ms == 0


def test_no_file_of_the_data_directory_holds_the_secret(run: Run, data: Path) -> None:
    token = run("keys", "create", "acme").out.strip()
    secret = token.split("_")[3].encode()
    files = [path for path in data.iterdir() if path.is_file()]
    assert files
    assert not [
        path for path in files if secret in path.read_bytes() or bytes.fromhex(secret.decode()) in path.read_bytes()
    ]


def test_scopes_team_and_expiry_are_kept(run: Run, data: Path) -> None:
    before_ms = time.time_ns() // 1_000_000
    arguments = ["--team", "search", "--name", "ci", "--models", "chat-small, embed-small", "--routes", "embeddings"]
    token = run("keys", "create", "acme", *arguments, "--max-cost", "0.05", "--expires", "90d").out.strip()
    key = kept(data, "acme", token.split("_")[2])
    assert key.team == "search"
    assert key.models == frozenset({"chat-small", "embed-small"})
    assert key.routes == frozenset({"embeddings"})
    assert key.cost_nanos_max == 50_000_000
    assert 0 <= key.expires_at_ms - before_ms - 90 * DAY_MS < 60_000


def test_without_scopes_everything_is_allowed(run: Run, data: Path) -> None:
    key = kept(data, "acme", run("keys", "create", "acme").out.split("_")[2])
    assert (key.models, key.routes, key.cost_nanos_max, key.expires_at_ms) == (None, None, None, 0)


def test_an_unknown_name_is_refused_with_the_nearest(run: Run, data: Path) -> None:
    for arguments, said in (
        (["acne"], "there is no organisation 'acne'; did you mean `acme`?"),
        (["acme", "--team", "serach"], "'serach' is no team of acme; did you mean `search`?"),
        (["acme", "--models", "chat-smal"], "--models: 'chat-smal' is no model; did you mean `chat-small`?"),
        (["acme", "--routes", "completion"], "--routes: 'completion' is no route; did you mean `completions`?"),
        (["acme", "--models", ","], "--models: names no model; leave the option out to allow all"),
        (["acme", "--expires", "90"], "--expires: found '90' without a unit"),
        (["acme", "--max-cost", "cheap"], "--max-cost: found 'cheap', wanted dollars"),
    ):
        refused = run("keys", "create", *arguments)
        assert (refused.code, refused.out) == (1, "")
        assert said in refused.err
    assert json.loads(run("keys", "list", "--json").out) == []


def test_list_shows_keys_without_their_secrets(run: Run) -> None:
    token = run("keys", "create", "acme", "--name", "ci").out.strip()
    run("keys", "create", "globex")
    table = run("keys", "list").out
    assert token.split("_")[2] in table
    assert "globex" in table
    assert token.split("_")[3][:16] not in table + json.dumps(listed(run))
    assert [key["name"] for key in listed(run, "acme")] == ["ci"]


def test_list_says_how_to_make_the_first_key(run: Run) -> None:
    assert "penstock keys create" in run("keys", "list").err


def test_list_of_an_unknown_organisation_is_refused(run: Run) -> None:
    assert "did you mean `acme`?" in run("keys", "list", "acne").err


def test_listing_before_the_first_key_does_not_stand_in_its_way(run: Run) -> None:
    run("keys", "list")
    assert run("keys", "create", "acme").code == 0


def test_rotate_keeps_the_first_secret_for_the_grace_period(run: Run, data: Path) -> None:
    first = run("keys", "create", "acme").out.strip()
    key_id = first.split("_")[2]
    before_ms = time.time_ns() // 1_000_000
    second = run("keys", "rotate", "acme", key_id, "--grace", "2h").out.strip()
    assert second.split("_")[:3] == first.split("_")[:3]
    (newer, never), (older, ends_ms) = kept(data, "acme", key_id).macs
    assert ((newer,), (older,)) == (macs_of(second, data), macs_of(first, data))
    assert never == 0
    assert 0 <= ends_ms - before_ms - 2 * 3_600_000 < 60_000
    assert listed(run)[0]["state"].startswith("rotating until ")


def test_rotate_gives_a_day_by_default(run: Run, data: Path) -> None:
    key_id = run("keys", "create", "acme").out.split("_")[2]
    before_ms = time.time_ns() // 1_000_000
    run("keys", "rotate", "acme", key_id)
    assert 0 <= kept(data, "acme", key_id).macs[1][1] - before_ms - DAY_MS < 60_000


def test_rotate_without_grace_ends_the_first_secret_at_once(run: Run) -> None:
    key_id = run("keys", "create", "acme").out.split("_")[2]
    assert "is refused from now on" in run("keys", "rotate", "acme", key_id, "--grace", "0s").err
    assert listed(run)[0]["state"] == "active"


def test_a_revoked_key_stays_in_the_list_and_cannot_be_rotated(run: Run, data: Path) -> None:
    key_id = run("keys", "create", "acme").out.split("_")[2]
    assert run("keys", "revoke", "acme", key_id).code == 0
    assert run("keys", "revoke", "acme", key_id).code == 0
    assert kept(data, "acme", key_id).revoked
    assert listed(run)[0]["state"] == "revoked"
    refused = run("keys", "rotate", "acme", key_id)
    assert (refused.code, refused.out) == (1, "")
    assert "is revoked; create a new one" in refused.err


def test_a_key_of_another_organisation_is_not_there(run: Run) -> None:
    key_id = run("keys", "create", "acme").out.split("_")[2]
    for command in ("rotate", "revoke"):
        refused = run("keys", command, "globex", key_id)
        assert (refused.code, refused.out) == (1, "")
        assert f"globex: there is no key {key_id}" in refused.err
    assert listed(run)[0]["state"] == "active"


def test_every_change_is_in_the_audit_log_without_a_secret(run: Run, data: Path) -> None:
    first = run("keys", "create", "acme").out.strip()
    key_id = first.split("_")[2]
    second = run("keys", "rotate", "acme", key_id).out.strip()
    run("keys", "revoke", "acme", key_id)
    engine = open_engine(data / "penstock.db")
    found = entries(engine)
    engine.dispose()
    assert [entry.action for entry in found] == ["keys.revoke", "keys.rotate", "keys.create"]
    assert {entry.actor.split(":")[0] for entry in found} == {"cli"}
    text = repr(found)
    for token in (first, second):
        assert token.split("_")[3] not in text
        assert macs_of(token, data)[0] not in text


def test_a_configuration_with_stores_has_its_keys_in_postgresql(run: Run, configuration: Path) -> None:
    nobody = "postgresql://127.0.0.1:9/penstock"
    stores = f"stores: {{redis: {{url: redis://r}}, postgresql: {{url: {nobody}}}, rabbitmq: {{url: amqp://q}}}}\n"
    (configuration.parent / "pepper").write_text("p" * 64)
    auth = f"auth: {{pepper: {{file: {configuration.parent / 'pepper'}}}}}\n"
    configuration.write_text(configuration.read_text() + stores + auth)
    assert "PostgreSQL does not answer, database penstock at 127.0.0.1:9" in run("keys", "list").err


def test_the_installed_command_makes_a_key_for_a_shell_variable(configuration: Path, data: Path) -> None:
    command = [sys.executable, "-m", "penstock", "keys", "create", "acme", "-c", str(configuration)]
    made = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PENSTOCK_DATA": str(data)}
    )
    assert made.stdout.startswith("psk_acme_")
    assert (data / "penstock.db").exists()
