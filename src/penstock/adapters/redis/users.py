"""The users of Redis, one for each role, put there from a file that a person can read (``config/redis/users.acl``)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.wire import Refusal, pack

PREFIX = "penstock_"


@dataclass(frozen=True, slots=True)
class Applied:
    """What ``apply_users`` did.

    Args:
        users: Their names, in the file's order.
        are_kept: Redis has an ``aclfile`` and wrote them there; otherwise a restart forgets them.
    """

    users: tuple[str, ...]
    are_kept: bool


def read_users(text: str) -> dict[str, tuple[str, ...]]:
    """The users of a template, each with its rules as ``ACL SETUSER`` takes them: brackets are one rule.

    Raises:
        ValueError: A line is neither a user nor indented under one, or brackets do not close.

    Example:
        >>> read_users("user a\\n    -@all (+get ~x)  # reads\\n")
        {'a': ('-@all', '(+get ~x)')}
    """
    found: dict[str, list[str]] = {}
    rules: list[str] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if not line[0].isspace():
            if words[0] != "user" or len(words) < 2:
                raise ValueError(f"line {number}: {line.strip()!r} begins no user; write `user NAME`, rules indented")
            rules = found.setdefault(words[1], [])
            words = words[2:]
        if rules is None:
            raise ValueError(f"line {number}: rules of no user")
        rules += _bracketed(words, number)
    return {name: tuple(rules) for name, rules in found.items()}


def _bracketed(words: list[str], number: int) -> Iterator[str]:
    together: list[str] = []
    for word in words:
        if together or word.startswith("("):
            together.append(word)
            if word.endswith(")"):
                yield " ".join(together)
                together = []
        else:
            yield word
    if together:
        raise ValueError(f"line {number}: brackets that do not close on their line")


async def apply_users(client: RedisClient, *, template: str, passwords: Mapping[str, str]) -> Applied:
    """Make each role's user just what the template says. As often as you like, from anywhere at once.

    Redis is told the SHA-256 of a password, never the password. A user's open connections stay.

    Args:
        client: Of an account that may change users.
        template: The text of ``users.acl``.
        passwords: By role: ``api``, ``keeper``...; roles that are not named are left alone.

    Raises:
        ValueError: The template has no user for a role.
        StoreUnavailable: Redis cannot be reached.
        Refusal: The account may not, or Redis does not know a rule.
    """
    users = read_users(template)
    unknown = sorted(role for role in passwords if PREFIX + role not in users)
    if unknown:
        raise ValueError(f"no user for {', '.join(unknown)}; the template has {', '.join(users)}")
    wanted = [name for name in users if name.removeprefix(PREFIX) in passwords]
    for name in wanted:
        digest = hashlib.sha256(passwords[name.removeprefix(PREFIX)].encode()).hexdigest()
        await client.ask(pack("ACL", "SETUSER", name, "reset", "on", f"#{digest}", *users[name]))
    return Applied(tuple(wanted), bool(wanted) and await _are_saved(client))


async def _are_saved(client: RedisClient) -> bool:
    try:
        await client.ask(pack("ACL", "SAVE"))
    except Refusal as refusal:
        if "not configured to use an ACL file" not in str(refusal):
            raise
        return False
    return True
