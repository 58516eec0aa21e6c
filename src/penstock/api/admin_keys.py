"""Keys as administrators make and change them: never wider than the administrator's own."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

from starlette.responses import Response

from penstock.api import admin_bodies as bodies
from penstock.api.admin_calls import AdminBase, Call, answered, page_of
from penstock.api.admin_views import key_view
from penstock.api.administrators import Administrator
from penstock.api.permissions import SCOPES
from penstock.lanes.administering import Records, StoredKey
from penstock.lanes.credentials import mint
from penstock.quota.definitions import Key


class KeyPages(AdminBase):
    """The pages under ``keys``."""

    async def keys(self, call: Call) -> Response:
        """A page of them, by age."""
        count, after = bodies.asked(call.query)
        begin = (int(after[0]), str(after[1])) if len(after) == 2 and type(after[0]) is int else (0, "")
        name = call.path["organisation"]
        found = await self.see(call, lambda records, who: records.keys(name, after=begin, count_max=count + 1))
        return page_of(found, count, key_view, lambda each: bodies.cursor(each.created_at_ms, each.key.id))

    async def create_key(self, call: Call) -> Response:
        """Make one; the answer shows the key itself, this once."""
        body = bodies.read_body(call.body, bodies.NewKey)
        name, now_ms, key_id = call.path["organisation"], self.now_ms(), secrets.token_hex(5)

        def do(records: Records, who: Administrator) -> tuple[StoredKey, str]:
            records.organisation(name)
            token = mint(name, key_id, secret=secrets.token_bytes(32))
            hashed = self.services.credentials.hashed(token)
            stored = StoredKey(
                organisation=name,
                name=body.name,
                created_at_ms=now_ms,
                rotated_at_ms=0,
                revoked_at_ms=0,
                key=Key(id=key_id, macs=((hashed.mac, 0),)),
                creator=who.stored.path,
                peppers=(hashed.pepper,),
            )
            stored = self._with(stored, body.given())
            who.check_width(stored)
            return records.create_key(stored, who.by(now_ms)), token

        made, token = await self.change(call, do)
        return answered(made, lambda each: {"key": token, **key_view(each)}, status=201)

    def _with(self, stored: StoredKey, fields: dict[str, Any]) -> StoredKey:
        """The key with some fields set."""
        own = {name: value for name, value in fields.items() if name in ("name", "admin")}
        return replace(stored, key=replace(stored.key, **self._scope(fields)), **own)

    def _scope(self, fields: dict[str, Any]) -> dict[str, Any]:
        known = {"models": self.services.models.keys(), "routes": SCOPES}
        quota = {name: value for name, value in fields.items() if name not in ("name", "admin")}
        for what, names in known.items():
            if quota.get(what) is not None:
                quota[what] = bodies.known_names(quota[what], names, what)
        return quota

    async def key(self, call: Call) -> Response:
        """One, without its secret."""
        name, key = call.path["organisation"], call.path["key"]
        return answered(await self.see(call, lambda records, who: records.key(name, key)), key_view)

    async def change_key(self, call: Call) -> Response:
        """Its name, team, scope, expiry, or right to administrate."""
        fields = bodies.read_body(call.body, bodies.KeyChange).given()
        name, key = call.path["organisation"], call.path["key"]

        def do(records: Records, who: Administrator) -> StoredKey:
            before = records.key(name, key)
            who.check_rank(before)
            who.check_width(self._with(before, fields))
            wanted = {**fields, **self._scope(fields)}
            return records.change_key(name, key, wanted, who.by(self.now_ms(), call.tag))

        return answered(await self.change(call, do), key_view)

    async def rotate_key(self, call: Call) -> Response:
        """A second secret, shown this once; the one before lives on for a while."""
        body = bodies.read_body(call.body, bodies.Rotation)
        name, key = call.path["organisation"], call.path["key"]

        def do(records: Records, who: Administrator) -> tuple[StoredKey, str]:
            who.check_width(records.key(name, key))  # its secret is shown, so it must not be more than theirs
            token = mint(name, key, secret=secrets.token_bytes(32))
            hashed = self.services.credentials.hashed(token)
            by = who.by(self.now_ms(), call.tag)
            rotated = records.rotate_key(name, key, hashed.mac, pepper=hashed.pepper, grace_ms=body.grace_ms, by=by)
            return rotated, token

        rotated, token = await self.change(call, do)
        return answered(rotated, lambda each: {"key": token, **key_view(each)})

    async def revoke_key(self, call: Call) -> Response:
        """Refused from now on, everywhere within two seconds."""
        name, key = call.path["organisation"], call.path["key"]

        def do(records: Records, who: Administrator) -> StoredKey:
            who.check_rank(records.key(name, key))
            return records.revoke_key(name, key, who.by(self.now_ms(), call.tag))

        return answered(await self.change(call, do), key_view)
