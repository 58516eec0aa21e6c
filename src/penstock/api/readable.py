"""Texts that clients choose are of characters that can be shown: the rest is refused before anything reads or keeps it.

A NUL is a text that PostgreSQL does not take, an escape sequence rewrites the terminal of whoever lists keys, and a
change of direction makes one name look like another.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from penstock.errors import InvalidRequest, NotFound


def check_request(request: Request) -> None:
    """Look at what path and query of a request say.

    Raises:
        NotFound: The path names what cannot be, since it cannot be shown.
        InvalidRequest: A parameter has such characters.
    """
    if not all(str(value).isprintable() for value in request.path_params.values()):
        raise NotFound("there is nothing of this name, which has characters that cannot be shown", code="not_found")
    for name, value in request.query_params.multi_items():
        if not (name + value).isprintable():
            raise _unreadable(name if name.isprintable() else "a parameter")


def check_field(name: str, value: Any) -> None:
    """Look at a field of a body, and within a list.

    Raises:
        InvalidRequest: It has characters that cannot be shown.
    """
    texts = value if isinstance(value, list) else [value]
    if not all(text.isprintable() for text in texts if isinstance(text, str)):
        raise _unreadable(name)


def _unreadable(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: has characters that cannot be shown; send text without them", param=name)
