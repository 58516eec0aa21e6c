"""Asking sentinels which server is the primary now: at every new connection, since any may be after a failover.

What a sentinel says may be out of date for a moment, so the server that it names is asked for its role as well.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from penstock.adapters.redis.address import Address
from penstock.adapters.redis.wire import Refusal, Wire, WireLost, pack

ASK_S: Final = 0.3
"""The longest that one sentinel is waited for, in seconds; then the next is asked."""


async def find_primary(address: Address) -> Address:
    """The server that the first sentinel to answer calls the primary.

    Raises:
        WireLost: None of them answers, or none knows the service.
    """
    problems = []
    for host, port in address.places:
        try:
            found = await _asked(address, host, port)
        except (OSError, WireLost, Refusal) as error:
            problems.append(f"{host}:{port}: {str(error) or 'no answer in time'}")
            continue
        if found is not None:
            return address.at(found[0].decode(), int(found[1]))
        problems.append(f"{host}:{port} knows no {address.service}")
    raise WireLost(f"no sentinel names the primary ({'; '.join(problems)})")


async def _asked(address: Address, host: str, port: int) -> Any:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(ASK_S):
        _, wire = await loop.create_connection(
            lambda: Wire(bound_s=ASK_S), host, port, ssl=address.tls, server_hostname=address.certified(host)
        )
        try:
            return await wire.send(pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service))
        finally:
            wire.close()
