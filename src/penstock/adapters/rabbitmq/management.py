"""RabbitMQ's management API: declaring the topology, and asking how much waits in a queue.

Everything is a PUT, or a POST that changes nothing the second time: as often as you like, from two places at once.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from penstock.adapters.rabbitmq.topology import Definitions
from penstock.errors import ConfigurationError, StoreUnavailable, UpstreamError
from penstock.ports import UpstreamClient, UpstreamRequest

ANSWER_BYTES_MAX: Final = 8_000_000
CALL_S: Final = 15.0
VERSION_MIN: Final = (3, 10)


class ManagementRefused(StoreUnavailable):
    """The management API answered with an error; ``status`` is its HTTP status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class ManagementApi:
    """One broker's management API, as one of its users.

    Args:
        client: Sends the requests.
        url: Its address; anything after the port is kept as a prefix.
    """

    def __init__(self, client: UpstreamClient, url: str, *, username: str, password: str) -> None:
        self._client = client
        self._url = url.rstrip("/")
        self.username = username
        self._headers = {
            "authorization": "Basic " + b64encode(f"{username}:{password}".encode()).decode(),
            "content-type": "application/json",
        }

    async def ask(self, method: str, *path: str, body: Any = None) -> tuple[int, Any]:
        """One call; the status, and the decoded answer or None.

        Args:
            path: Segments below ``/api``, quoted here.

        Raises:
            StoreUnavailable: It cannot be reached.
            ManagementRefused: A status of 400 or more, other than 404.
        """
        address = "/".join([self._url, "api", *(quote(segment, safe="") for segment in path)])
        request = UpstreamRequest(
            method=method,
            url=address,
            headers=self._headers,
            body=b"" if body is None else msgspec.json.encode(body),
            total_s=CALL_S,
        )
        try:
            response = await self._client.open(request)
            try:
                data = await response.read(ANSWER_BYTES_MAX)
            finally:
                response.close()
        except UpstreamError as error:
            fix = "check stores.rabbitmq.management, and that the plugin rabbitmq_management is enabled"
            if self._url.startswith("https:"):
                fix = f"{fix}; if it asks for certificates, give `certificate` and `key` of stores.rabbitmq"
            raise StoreUnavailable(
                f"RabbitMQ's management API at {self._url} cannot be used: {error}; {fix}"
            ) from error
        answer = msgspec.json.decode(data) if data and response.status != 404 else None
        if response.status >= 400 and response.status != 404:
            raise self._refused(response.status, f"{method} /{'/'.join(path)}", answer)
        return response.status, answer

    def _refused(self, status: int, what: str, answer: Any) -> ManagementRefused:
        said = answer.get("reason", "") if isinstance(answer, dict) else ""
        fix = "see RabbitMQ's log"
        if status in (401, 403):
            fix = f"check stores.rabbitmq.password, and that the user {self.username} has the tag administrator"
        return ManagementRefused(f"RabbitMQ answered {status} to {what}: {said}; {fix}", status=status)

    async def messages(self, vhost: str, queue: str) -> int | None:
        """How many messages are in one queue, those that are being worked on too; None if there is none of this name.

        Raises like ``ask``.
        """
        _, found = await self.ask("GET", "queues", vhost, queue)
        return None if found is None else int(found.get("messages", 0))

    async def ready_messages(self, vhost: str, queue: str) -> int | None:
        """How many messages wait in a queue and its shards, ``queue.<shard>``, as of their last count.

        None if there is none. What is parked comes back to them, and does not count. Raises like ``ask``.
        """
        _, found = await self.ask("GET", "queues", vhost)
        names = re.compile(re.escape(queue) + r"(\.\d+)?")
        depths = [int(each.get("messages_ready", 0)) for each in found or () if names.fullmatch(each["name"])]
        return sum(depths) if depths else None


async def prepare(api: ManagementApi, definitions: Definitions, passwords: Mapping[str, str]) -> list[str]:
    """Bring a broker to the definitions. Nothing that is not in them is touched.

    Args:
        api: As a user with the tag administrator.
        passwords: Of the users in the definitions, by name.

    Returns:
        What was new, one text each: "queue jobs.m.standard.0". Users' passwords are always set anew.

    Raises:
        ConfigurationError: The broker is too old, or something of a name is there already with other properties.
        StoreUnavailable: It cannot be reached, or refuses.
    """
    await _check_version(api)
    done: list[str] = []

    async def put(what: str, *path: str, body: Mapping[str, Any]) -> None:
        status, _ = await api.ask("PUT", *path, body=body)
        if status == 201:
            done.append(what)

    for vhost in (entry["name"] for entry in definitions["vhosts"]):
        await put(f"vhost {vhost}", "vhosts", vhost, body={})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        await put(f"permissions of {api.username}", "permissions", vhost, api.username, body=everything)
    for entry in definitions["users"]:
        name = entry["name"]
        await put(f"user {name}", "users", name, body={"password": passwords[name], "tags": entry["tags"]})
    for entry in definitions["permissions"]:
        user, vhost = entry["user"], entry["vhost"]
        await put(f"permissions of {user}", "permissions", vhost, user, body=_without(entry, "user", "vhost"))
    for entry in definitions["policies"]:
        name, vhost = entry["name"], entry["vhost"]
        await put(f"policy {name}", "policies", vhost, name, body=_without(entry, "name", "vhost"))
    for kind in ("exchange", "queue"):
        for entry in definitions[f"{kind}s"]:
            await _check_same(api, kind, entry)
            name, vhost = entry["name"], entry["vhost"]
            await put(f"{kind} {name}", f"{kind}s", vhost, name, body=_without(entry, "name", "vhost"))
    for entry in definitions["bindings"]:
        await _bind(api, entry, done)
    return done


async def _check_version(api: ManagementApi) -> None:
    _, overview = await api.ask("GET", "overview")
    version = str(overview["rabbitmq_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < VERSION_MIN:
        wanted = ".".join(map(str, VERSION_MIN))
        raise ConfigurationError((f"stores.rabbitmq: RabbitMQ {version} is too old; {wanted} or later is wanted",))


async def _check_same(api: ManagementApi, kind: str, wanted: Mapping[str, Any]) -> None:
    _, found = await api.ask("GET", f"{kind}s", wanted["vhost"], wanted["name"])
    if found is None:
        return
    properties = _without(wanted, "name", "vhost")
    other = {name: found.get(name) for name, value in properties.items() if found.get(name) != value}
    if other:
        told = "; ".join(f"{name} is {there!r}, not {properties[name]!r}" for name, there in other.items())
        raise ConfigurationError(
            (
                f"RabbitMQ's {kind} {wanted['name']} in vhost {wanted['vhost']}: {told}. It cannot be changed in "
                "place: stop the gateway, let the workers empty it, delete it, and run `penstock setup` again",
            )
        )


async def _bind(api: ManagementApi, entry: Mapping[str, Any], done: list[str]) -> None:
    path = ("bindings", entry["vhost"], "e", entry["source"], "q", entry["destination"])
    _, found = await api.ask("GET", *path)
    if not any(binding["routing_key"] == entry["routing_key"] for binding in found or ()):
        await api.ask("POST", *path, body={"routing_key": entry["routing_key"], "arguments": entry["arguments"]})
        done.append(f"binding {entry['source']} -> {entry['destination']}")


def _without(entry: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in names}
