"""Certificates: those in files that the configuration names, and those that its services show."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509

from penstock.adapters.tls import Tls
from penstock.config import Configuration
from penstock.config.values import FileReference
from penstock.errors import ConfigurationError
from penstock.lanes.diagnosis import Finding, warning, wrong
from penstock.wiring.doctoring.patient import Patient
from penstock.wiring.doctoring.references import certificates_in
from penstock.wiring.stores import Address, Service, address

SOON_DAYS = 30
CONNECT_S = 5.0
_ASK_POSTGRESQL_FOR_TLS = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
_RENEW = "renew it, and restart what reads it"


async def check_certificates(patient: Patient) -> list[Finding]:
    """None has expired or will within 30 days, and each is of the name by which its service is reached."""
    now = datetime.fromtimestamp(patient.clock.now_ms() / 1000, tz=UTC)
    findings: list[Finding] = []
    for path, reference in certificates_in(patient.configuration):
        findings += _in_file(path, Path(reference.file), now)
    findings += _pairs(patient)
    shown = [_shown(name, at, now) for name, at in _places(patient)]
    for found in await asyncio.gather(*shown):
        findings += found
    return findings


def _in_file(path: str, file: Path, now: datetime) -> list[Finding]:
    try:
        found = x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError) as error:
        return [wrong("certificates", f"{path}: {file} holds no certificates ({error})", "name a PEM file")]
    return [
        finding
        for each in found
        for finding in judged(f"{path}: {each.subject.rfc4514_string()} in {file}", each.not_valid_after_utc, now)
    ]


def _pairs(patient: Patient) -> list[Finding]:
    """What is wrong between each certificate of ours and its key."""
    findings = []
    for service in Service if patient.configuration.stores is not None else ():
        found = address(patient.configuration, service, patient.role(service), patient.environment)
        try:
            if found.tls.key is not None:
                found.tls.context()
        except ConfigurationError as error:
            findings += [wrong("certificates", *problem.rsplit("; ", 1)) for problem in error.problems]
    return findings


def judged(name: str, ends: datetime, now: datetime) -> list[Finding]:
    """What the end of a certificate's life means.

    Example:
        >>> now = datetime(2026, 1, 1, tzinfo=UTC)
        >>> [each.what for each in judged("a", datetime(2026, 1, 11, tzinfo=UTC), now)]
        ['a: its certificate ends on 2026-01-11, in 10 days']
    """
    left = (ends - now).days
    if ends <= now:
        return [wrong("certificates", f"{name}: its certificate ended on {ends.date()}", _RENEW)]
    if left < SOON_DAYS:
        return [warning("certificates", f"{name}: its certificate ends on {ends.date()}, in {left} days", _RENEW)]
    return []


def _places(patient: Patient) -> Iterator[tuple[str, Address]]:
    """Everything that is reached over TLS."""
    configuration = patient.configuration
    if configuration.stores is not None:
        for service in Service:
            found = address(configuration, service, patient.role(service), patient.environment)
            for host, port in ((found.host, found.port), *found.others) if found.is_tls else ():
                yield (
                    f"stores.{service}.url",
                    Address(scheme=found.scheme, host=host, port=port, path="", tls=found.tls),
                )
        broker = address(configuration, Service.RABBITMQ, patient.role(Service.RABBITMQ), patient.environment)
        yield from _of_url("stores.rabbitmq.management", configuration.stores.rabbitmq.management, broker.tls)
    yield from _of_models(configuration)


def _of_models(configuration: Configuration) -> Iterator[tuple[str, Address]]:
    for name, model in configuration.models.items():
        for upstream in model.upstreams:
            yield from _of_url(f"models.{name}.upstream", upstream.url, _authority(upstream.ca))
    for name, issuer in configuration.auth.issuers.items():
        yield from _of_url(f"auth.issuers.{name}.jwks", issuer.jwks, _authority(issuer.ca))


def _authority(ca: FileReference | None) -> Tls:
    return Tls(ca=None if ca is None else Path(ca.file))


def _of_url(name: str, url: str, tls: Tls) -> Iterator[tuple[str, Address]]:
    parts = urlsplit(url)
    if parts.scheme == "https":
        yield name, Address(scheme="https", host=parts.hostname or "", port=parts.port or 443, path="", tls=tls)


async def _shown(name: str, at: Address, now: datetime) -> list[Finding]:
    """What a server's own certificate says; one that cannot be reached is told by another check."""
    where = f"{name}: {at.host}:{at.port}"
    try:
        async with asyncio.timeout(CONNECT_S):
            certificate = await _certificate(at)
    except ssl.SSLCertVerificationError as error:
        fix = f"a certificate for {at.tls.server_name or at.host}, or its `ca`"
        return [wrong("certificates", f"{where}: {error.verify_message}", fix)]
    except (ConfigurationError, OSError, asyncio.IncompleteReadError):
        return []
    return judged(where, certificate.not_valid_after_utc, now)


async def _certificate(at: Address) -> x509.Certificate:
    context, certified = at.tls.context(), at.tls.server_name or at.host
    is_postgresql = at.scheme == "postgresql"
    secured, name = (None, None) if is_postgresql else (context, certified)
    reader, writer = await asyncio.open_connection(at.host, at.port, ssl=secured, server_hostname=name)
    try:
        if is_postgresql:
            writer.write(_ASK_POSTGRESQL_FOR_TLS)
            await reader.readexactly(1)
            await writer.start_tls(context, server_hostname=certified)
        return x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
