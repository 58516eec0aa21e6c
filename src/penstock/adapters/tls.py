"""What proves a service to us, and us to it: the files and the name that TLS to one service is spoken with.

Apart from the clients, which are several: Redis', HTTP's and libpq's take it in three shapes.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How to speak TLS to one service.

    Args:
        setting: Where the configuration says so, for errors: ``stores.redis``.
        ca: Certificates (PEM) that vouch for the service instead of the system's.
        certificate: Of ours (PEM), for a service that asks for one, with what is between it and its authority.
        key: Of ``certificate`` (PEM), not encrypted.
        server_name: What the service's certificate must name; the host of its address if None.
    """

    setting: str = "tls"
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def context(self) -> ssl.SSLContext:
        """For Python's own TLS.

        Raises:
            ConfigurationError: A file cannot be read or holds something else, or the key is another certificate's.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            raise self._unusable("ca", self.ca, error, "name a file of certificates (PEM)") from error
        if self.certificate is not None and self.key is not None:
            self._show(context, self.certificate, self.key)
        return context

    def _show(self, context: ssl.SSLContext, certificate: Path, key: Path) -> None:
        for name, file in (("certificate", certificate), ("key", key)):
            try:
                file.read_bytes()
            except OSError as error:
                raise self._unusable(name, file, error, "check path and rights") from error
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (OSError, ValueError) as error:
            what = f"{key} is not the unencrypted key of {certificate} (PEM): {getattr(error, 'reason', None) or error}"
            raise ConfigurationError((f"{self.setting}.key: {what}; name a pair that belongs together",)) from error

    def _unusable(self, name: str, file: Path | None, error: OSError, fix: str) -> ConfigurationError:
        reason = error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "it holds no certificates"
        return ConfigurationError((f"{self.setting}.{name}: {file} cannot be used: {reason}; {fix}",))


def _no_password() -> str:
    """An encrypted key would otherwise be asked for at the terminal, by a process that nobody looks at."""
    raise ValueError("it is encrypted")
