"""An OpenID provider that runs as a process of its own, behind TLS: oidc-provider-mock 0.3 (on Authlib), under uvicorn.

It signs ID tokens with RS256 and a key that it makes at its start, so a restart is a rotation. It names no key in its
tokens and writes no ``nbf``, as many providers do.
"""

from __future__ import annotations

import ssl
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2 as httpx
import trustme

from tests.system.services import free_port, wait_until

START_S = 60.0
AUDIENCE = "penstock"
BACK = "https://client.test/back"


class Provider:
    """The provider; a context.

    Args:
        folder: For its log and certificates; ``authority`` is the file that vouches for it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        authority = trustme.CA()
        self.authority = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self._server = folder / "server.pem"
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(self._server))
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx.Client(verify=ssl.create_default_context(cafile=str(self.authority)), trust_env=False)

    def __enter__(self) -> Provider:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self._http.close()

    def start(self) -> None:
        """With a new key."""
        command = [
            sys.executable, "-m", "uvicorn", "--factory", "oidc_provider_mock:app", "--interface", "wsgi",
            "--port", str(self.port), "--ssl-certfile", str(self._server), "--ssl-keyfile", str(self._server),
        ]  # fmt: skip
        with (self.folder / "provider.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(self._answers, self._process, self.folder / "provider.log", bound_s=START_S)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def token(self, subject: str, *, audience: str = AUDIENCE, **claims: Any) -> str:
        """Log a person in, as a browser and its application do; the ID token."""
        assert self._http.put(f"{self.url}/users/{subject}", json=claims).status_code == 204
        asked = {"client_id": audience, "redirect_uri": BACK, "response_type": "code", "scope": "openid"}
        login = self._http.post(f"{self.url}/oauth2/authorize", params=asked, data={"sub": subject})
        (code,) = parse_qs(urlsplit(login.headers["location"]).query)["code"]
        form = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": BACK,
            "client_id": audience, "client_secret": "any",
        }  # fmt: skip
        answer = self._http.post(f"{self.url}/oauth2/token", data=form)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id_token"])

    def _answers(self) -> bool:
        try:
            return bool(self._http.get(f"{self.url}/jwks").status_code == 200)
        except httpx.TransportError:
            return False
