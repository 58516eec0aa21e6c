"""A Redis Cluster: each organisation's calls go to the node that has its slot, wherever that is now.

    asked --MOVED--> the node that it names
    a node is away --> the cluster is asked who has its slots, until somebody does

An organisation's keys share a slot, so a call is one node's alone and nothing else changes. A node that takes over from
another is told again what that one had acknowledged, since its copy may lack the end.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from penstock.adapters.redis.address import Address, Kind
from penstock.adapters.redis.client import BOUND_S, RETRY_AFTER_MS, Greet, RedisClient, Restarted, nothing
from penstock.adapters.redis.sentinel import find_primary
from penstock.adapters.redis.translating import PARTITIONS, partition_of
from penstock.adapters.redis.wire import Refusal, WireLost, pack, read_info
from penstock.errors import StoreUnavailable

log = logging.getLogger("penstock.adapters.redis")

SLOTS: Final = 16384
REDIRECTS: Final = 3
LOOK_EVERY_S: Final = 0.2
LOOK_BOUND_S: Final = 0.3
Place = tuple[str, int]


def slot_of(partition: int) -> int:
    """The slot of a partition's keys, by their hash tag ``{q<partition>}``.

    Example:
        >>> slot_of(40)
        4154
    """
    return binascii.crc_hqx(b"q%d" % partition, 0) % SLOTS


_SLOTS: Final = tuple(slot_of(partition) for partition in range(PARTITIONS))


class RedisCluster:
    """What ``RedisClient`` is for one server. The arguments are the same, and go to the client of each node."""

    def __init__(
        self,
        address: Address,
        *,
        name: str = "penstock",
        bound_s: float = BOUND_S,
        greet: Greet = nothing,
        restarted: Restarted = nothing,
    ) -> None:
        self._address = address
        self._name = name
        self._bound_s = bound_s
        self._greet = greet
        self._restarted = restarted
        self._clients: dict[Place, RedisClient] = {}
        self._owners: dict[int, Place] = {}
        self._looking: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def failure(self) -> str | None:
        """Why no node can be used just now; None while one can, since its organisations can be served."""
        failures = [self._clients[place].failure for place in set(self._owners.values())]
        return failures[0] if failures and all(failures) else None

    @property
    def nodes(self) -> tuple[Address, ...]:
        """The primaries that have slots, once started."""
        return tuple(self._address.at(*place) for place in sorted(set(self._owners.values())))

    async def start(self) -> None:
        """Learn who has which slots, and connect to each.

        Raises:
            StoreUnavailable: No node can be reached, one refuses the account, or some slots have no node.
        """
        await self._look()
        for client in tuple(self._clients.values()):
            await client.start()

    async def close(self) -> None:
        """End every connection. Commands under way fail."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await asyncio.gather(*(client.close() for client in self._clients.values()), *self._closing)

    async def ask(self, command: bytes, of: str | int) -> Any:
        """See ``RedisClient.ask``; ``of`` decides which node is asked.

        Raises:
            StoreUnavailable, Refusal: As there; also while the organisation's slot has no node, or is being moved.
        """
        partition = of if isinstance(of, int) else partition_of(of)
        for _ in range(REDIRECTS):
            if partition not in self._owners:
                await self.start()
            try:
                return await self._clients[self._owners[partition]].ask(command)
            except StoreUnavailable:
                self._look_again()
                raise
            except Refusal as refusal:
                if refusal.code == "MOVED":
                    self._own(partition, self._place(refusal, self._owners[partition]))
                    self._look_again()
                    continue
                if refusal.code == "ASK":
                    break
                raise
        raise StoreUnavailable(
            f"{self._address}: slot {_SLOTS[partition]} is being moved between nodes; it is asked for again",
            retry_after_ms=RETRY_AFTER_MS,
        )

    def _place(self, refusal: Refusal, asked: Place) -> Place:
        """Of ``MOVED <slot> <host>:<port>``; without a host it is the one that was asked."""
        host, _, port = str(refusal).split(" ")[2].rpartition(":")
        return (host or asked[0], int(port))

    def _own(self, partition: int, place: Place) -> None:
        """From now on, a partition is this node's; what the one before had acknowledged, it may not have."""
        before = self._owners.get(partition)
        if before == place:
            return
        client = self._clients.get(place)
        if client is None:
            client = self._clients[place] = RedisClient(
                self._address.at(*place),
                name=self._name,
                bound_s=self._bound_s,
                greet=self._greet,
                restarted=self._restarted,
                serves=partial(self._serves, place),
            )
        self._owners[partition] = place
        if before is not None:
            log.warning("a partition of Redis has another node", extra={"partition": partition, "node": place})
            client.distrust()

    def _serves(self, place: Place, organisation: str) -> bool:
        return self._owners.get(partition_of(organisation)) == place

    def _look_again(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_until_served())

    async def _look_until_served(self) -> None:
        """Until each slot has a node that answers. A lost node's are taken over within the cluster's node timeout."""
        while True:
            try:
                await self._look()
            except StoreUnavailable as error:
                log.warning("no node of Redis tells who has which slots: %s", error)
            if all(self._clients[place].failure is None for place in set(self._owners.values())):
                return
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        """Ask one node after another, those that can be used first, who has which slots."""
        fault: StoreUnavailable | None = None
        for place in self._to_be_asked():
            asking = RedisClient(self._address.at(*place), name=f"{self._name}-slots", bound_s=LOOK_BOUND_S)
            try:
                await asking.start()
                self._read(await asking.ask(pack("CLUSTER", "SLOTS")), place)
            except StoreUnavailable as error:
                fault = error
            except Refusal as refusal:
                fault = StoreUnavailable(f"{self._address.at(*place)} is no node of a cluster: {refusal}")
            else:
                return
            finally:
                await asking.close()
        raise fault or StoreUnavailable(f"{self._address}: names no node")

    def _to_be_asked(self) -> Iterator[Place]:
        known = sorted(self._clients, key=lambda place: self._clients[place].failure is not None)
        yield from known
        yield from (place for place in self._address.places if place not in self._clients)

    def _read(self, ranges: list[list[Any]], asked: Place) -> None:
        found: dict[int, Place] = {}
        for first, last, primary, *_ in ranges:
            place = (primary[0].decode() if primary[0] else asked[0], int(primary[1]))
            found.update({partition: place for partition, slot in enumerate(_SLOTS) if first <= slot <= last})
        if len(found) < PARTITIONS and not self._owners:
            missing = PARTITIONS - len(found)
            raise StoreUnavailable(
                f"{self._address}: {missing} of {PARTITIONS} partitions have no node; mend the cluster "
                "(`redis-cli --cluster fix`)",
                retry_after_ms=RETRY_AFTER_MS,
            )
        for partition, place in found.items():
            self._own(partition, place)
        for place in self._clients.keys() - set(self._owners.values()):
            closing = asyncio.create_task(self._clients.pop(place).close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


Client = RedisClient | RedisCluster


def client_of(
    address: Address,
    *,
    name: str = "penstock",
    bound_s: float = BOUND_S,
    greet: Greet = nothing,
    restarted: Restarted = nothing,
) -> Client:
    """The client for whatever an address names; see ``RedisClient`` for the arguments."""
    if address.kind is Kind.CLUSTER:
        return RedisCluster(address, name=name, bound_s=bound_s, greet=greet, restarted=restarted)
    return RedisClient(address, name=name, bound_s=bound_s, greet=greet, restarted=restarted)


async def find_primaries(address: Address) -> tuple[Address, ...]:
    """The servers that an address leads to now: one, or each node of a cluster that has slots.

    Raises:
        StoreUnavailable: Neither sentinels nor nodes tell.
    """
    if address.kind is Kind.SINGLE:
        return (address,)
    if address.kind is Kind.CLUSTER:
        cluster = RedisCluster(address)
        try:
            await cluster.start()
            return cluster.nodes
        finally:
            await cluster.close()
    try:
        return (await find_primary(address),)
    except WireLost as error:
        raise StoreUnavailable(f"{address}: {error}", retry_after_ms=RETRY_AFTER_MS) from error


async def find_replicas(primary: RedisClient, address: Address) -> tuple[Address, ...]:
    """The servers that may take over from a primary: they copy its data and functions, and not its users."""
    told = read_info(await primary.ask(pack("INFO", "replication")))
    replicas = []
    for number in range(int(told.get("connected_slaves", 0))):
        fields = dict(field.partition("=")[::2] for field in told[f"slave{number}"].split(","))
        replicas.append(address.at(fields["ip"], int(fields["port"])))
    return tuple(replicas)
