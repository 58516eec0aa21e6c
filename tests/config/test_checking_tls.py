"""What does not fit together where services are reached over TLS is told before anything connects."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.config import examine_text

HEAD = """
models: {m: {upstream: http://m:8000, context: 8192}}
plans: {team: {limits: [200k tokens/minute]}}
organisations: {acme: {plan: team}}
stores:
"""
URLS = {"redis": "rediss://r", "postgresql": "postgresql://p/penstock", "rabbitmq": "amqps://q"}
CERTIFICATE, KEY = "certificate: {secret: tls, key: crt}", "key: {secret: tls, key: key}"
CA = "ca: {secret: tls, key: ca}"


def written(**settings: str) -> str:
    """A file in which stores have these settings beside their address, or instead of it."""
    stores = {name: settings.get(name, "") for name in URLS}
    each = {name: text if "url:" in text else f"url: '{URLS[name]}', {text}" for name, text in stores.items()}
    return HEAD + "".join(f"  {name}: {{{text}}}\n" for name, text in each.items())


def problems(**settings: str) -> list[str]:
    return [str(problem) for problem in examine_text(written(**settings)).problems]


def test_both_halves_of_a_certificate_and_a_name_are_sound() -> None:
    pair = f"{CERTIFICATE}, {KEY}"
    address = "url: 'postgresql://10.0.0.1/penstock', server_name: pg.data"
    assert problems(redis=pair, postgresql=f"{address}, {pair}, {CA}", rabbitmq=f"{pair}, server_name: q.data") == []


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"redis": CERTIFICATE}, "stores.redis.key: missing, and a certificate proves nothing without it; write"),
        ({"rabbitmq": KEY}, "stores.rabbitmq.certificate: missing, and a key is shown to nobody; write"),
        (
            {"redis": f"url: 'redis://r', {CERTIFICATE}, {KEY}"},
            "stores.redis.certificate: found beside redis://, where there is no TLS; write rediss://",
        ),
        (
            {"rabbitmq": "url: 'amqp://q', server_name: q.data"},
            "stores.rabbitmq.server_name: found beside amqp://, where there is no TLS; write amqps://",
        ),
        (
            {"postgresql": f"{CERTIFICATE}, {KEY}"},
            "stores.postgresql.certificate: found without `ca`, by which PostgreSQL is reached over TLS; give",
        ),
        (
            {"postgresql": f"{CA}, server_name: pg.data"},
            "stores.postgresql.server_name: found it beside a name in `url`, which is what is checked; write an IP",
        ),
        ({"redis": "server_name: 'a b'"}, "stores.redis.server_name: found 'a b', wanted a name such as"),
    ],
)
def test_what_does_not_fit_is_a_problem_with_its_fix(settings: dict[str, str], what: str) -> None:
    (problem,) = problems(**settings)
    assert problem.startswith(what)


def test_a_management_api_alone_may_be_behind_tls() -> None:
    assert problems(rabbitmq=f"url: 'amqp://q', management: 'https://q:15671', {CERTIFICATE}, {KEY}") == []


def test_files_that_cannot_be_read_here_and_a_name_for_streams_are_warnings(tmp_path: Path) -> None:
    certificate = tmp_path / "own.pem"
    certificate.write_text("there")
    files = f"certificate: {{file: '{certificate}'}}, key: {{file: '{tmp_path / 'no.pem'}'}}"
    examined = examine_text(written(redis=f"{files}, server_name: r.data", rabbitmq=f"{CERTIFICATE}, {KEY}"))
    assert examined.problems == ()
    first, second = (str(warning) for warning in examined.warnings)
    assert first.startswith(f"stores.redis.key: {tmp_path / 'no.pem'} cannot be read from here: No such file")
    assert second.startswith("stores.redis.server_name: Bento's streams check the name of `url`")
