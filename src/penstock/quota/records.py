"""Plain data that nobody changes, at the price of plain data.

``frozen=True`` makes the dataclass write each field through ``object.__setattr__``, which takes as long as everything
else in making one; a request makes thirty. So the type checker sees a frozen dataclass, and refuses whatever assigns to
one, while at run time the same class is an ordinary one that compares and hashes by its fields. For what is made for
each request only; everything else is frozen in earnest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    from dataclasses import dataclass

    def record(*, frozen, slots, kw_only=False):
        """Make a dataclass; ``frozen`` is for the type checker."""
        assert frozen
        return dataclass(slots=slots, kw_only=kw_only, unsafe_hash=True)


__all__ = ["record"]
