"""What every section of penstock.yaml is made of: notations of values, and the base of the structs."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from penstock.config.notation import Term

Milliseconds = Annotated[int, Meta(extra={"notation": "duration"})]
Amount = Annotated[int, Meta(extra={"notation": "amount"})]
PositiveAmount = Annotated[int, Meta(extra={"notation": "positive amount"})]
SmallAmount = Annotated[int, Meta(extra={"notation": "amount to 1024"})]
PositiveNumber = Annotated[float, Meta(extra={"notation": "positive number"})]
Share = Annotated[float, Meta(extra={"notation": "share"})]
PicosPerToken = Annotated[int, Meta(extra={"notation": "usd per million tokens"})]
PicosPerRequest = Annotated[int, Meta(extra={"notation": "usd per request"})]
LimitTerm = Annotated[Term, Meta(extra={"notation": "limit"})]
Port = Annotated[int, Meta(extra={"notation": "port"})]
Url = Annotated[str, Meta(extra={"notation": "url"})]
SecureUrl = Annotated[str, Meta(extra={"notation": "secure url"})]
StoreUrl = Annotated[str, Meta(extra={"notation": "store url"})]
HostName = Annotated[str, Meta(extra={"notation": "host name"})]
Size = Annotated[str, Meta(extra={"notation": "size"})]


class Setting(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of every section."""


class Secret(Setting, frozen=True, kw_only=True):
    """Where a secret is found. It is never a value in this file; exactly one of env, file and secret is given.

    Args:
        env: Name of an environment variable that holds it.
        file: Path of a file that holds it; white space around it is dropped.
        secret: Name of a Secret of Kubernetes, which the chart mounts as files below `/run/penstock/secrets/NAME`.
        key: Of that Secret.
    """

    env: str | None = None
    file: str | None = None
    secret: str | None = None
    key: str | None = None


class FileReference(Setting, frozen=True, kw_only=True):
    """A file beside the configuration; exactly one of file and secret is given.

    Args:
        file: Path, absolute or from the working directory.
        secret: Name of a Secret of Kubernetes that holds it, mounted as for secrets.
        key: Of that Secret.
    """

    file: str = ""  # the reader fills it in for a Secret
    secret: str | None = None
    key: str | None = None


class Replicas(Setting, frozen=True, kw_only=True):
    """How many there may be.

    Args:
        min: Never fewer; 0 lets it be switched off while nothing waits.
        max: Never more.
    """

    min: Amount = 1
    max: PositiveAmount = 10
