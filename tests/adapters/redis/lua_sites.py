"""Where a Lua text compares, and where it writes: found by parsing it, as ``ast`` finds them in Python.

Lua 5.1, as Redis runs it. A comparison is one of six operators; a write is an assignment to what exists already, or a
call that stands alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

NEIGHBOURS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "~=", "~=": "=="}
_TOKEN = re.compile(
    r"(?P<skip>\s+|--\[(?P<eq>=*)\[.*?\](?P=eq)\]|--[^\n]*|#![^\n]*)"
    r"|(?P<string>'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\[\[.*?\]\])"
    r"|(?P<number>0[xX][0-9a-fA-F]+|\d+\.?\d*(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<mark>\.\.\.|\.\.|[=~<>]=|[-+*/%^#<>=(){}\[\];:,.])",
    re.DOTALL,
)
_KEYWORDS = frozenset(
    {
        *("and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil", "not"),
        *("or", "repeat", "return", "then", "true", "until", "while"),
    }
)
_BINARY = frozenset({"+", "-", "*", "/", "%", "^", "..", "and", "or", *NEIGHBOURS})


@dataclass(frozen=True, slots=True)
class Token:
    """One word of the text."""

    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Site:
    """What can be broken: the characters from ``start`` to ``end`` within the named function."""

    function: str
    start: int
    end: int
    is_comparison: bool


def tokens_of(text: str) -> list[Token]:
    """The words of a text, without spaces and comments."""
    found, at = list[Token](), 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise SyntaxError(f"no Lua at character {at}: {text[at : at + 20]!r}")
        if match.lastgroup != "skip" and match["skip"] is None:
            kind = next(each for each in ("string", "number", "name", "mark") if match[each] is not None)
            found.append(Token(kind, match[0], at, match.end()))
        at = match.end()
    return found


def sites_of(text: str) -> list[Site]:
    """Every comparison and every write, in the order of the text."""
    return sorted(_Parser(text).sites, key=lambda site: (site.start, site.end))


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = tokens_of(text)
        self.at = 0
        self.functions = [""]
        self.sites: list[Site] = []
        self._block()
        if self.at < len(self.tokens):
            raise SyntaxError(f"more than a block: {self.tokens[self.at]}")

    def _peek(self, ahead: int = 0) -> str:
        """The next word; a string never looks like a word."""
        if self.at + ahead >= len(self.tokens):
            return ""
        token = self.tokens[self.at + ahead]
        return "'" if token.kind == "string" else token.text

    def _next(self, *expected: str) -> Token:
        token = self.tokens[self.at]
        if expected and token.text not in expected:
            raise SyntaxError(f"{expected} expected, found {token}")
        self.at += 1
        return token

    def _skip(self, *words: str) -> bool:
        if self._peek() in words:
            self.at += 1
            return True
        return False

    def _block(self) -> None:
        while self._peek() not in ("", "end", "else", "elseif", "until"):
            self._statement()
            self._skip(";")

    def _statement(self) -> None:
        handlers: dict[str, Callable[[], object]] = {
            "if": self._if, "while": self._while, "for": self._for, "do": self._do, "repeat": self._repeat,
            "function": self._function, "local": self._local, "return": self._return, "break": self._next,
        }  # fmt: skip
        handler = handlers.get(self._peek())
        if handler is not None:
            handler()
            return
        start = self.tokens[self.at].start
        self._prefixed()
        while self._skip(","):
            self._prefixed()
        if self._skip("="):
            self._expressions()
        self.sites.append(Site(self.functions[-1], start, self.tokens[self.at - 1].end, is_comparison=False))

    def _if(self) -> None:
        while self._skip("if", "elseif"):
            self._expression()
            self._next("then")
            self._block()
        if self._skip("else"):
            self._block()
        self._next("end")

    def _while(self) -> None:
        self._next("while")
        self._expression()
        self._do()

    def _do(self) -> None:
        self._next("do")
        self._block()
        self._next("end")

    def _for(self) -> None:
        self._next("for")
        self._next()
        while self._skip(","):
            self._next()
        self._next("=", "in")
        self._expressions()
        self._do()

    def _repeat(self) -> None:
        self._next("repeat")
        self._block()
        self._next("until")
        self._expression()

    def _function(self) -> None:
        self._next("function")
        name = self._next().text
        while self._peek() in (".", ":"):
            name += self._next().text + self._next().text
        self._body(name)

    def _local(self) -> None:
        self._next("local")
        if self._peek() == "function":
            self._function()
            return
        name = self._next().text
        while self._skip(","):
            self._next()
        if self._skip("="):
            self.functions.append(name if self._peek() == "function" else self.functions[-1])
            self._expressions()
            self.functions.pop()

    def _return(self) -> None:
        self._next("return")
        if self._peek() not in ("", "end", "else", "elseif", "until", ";"):
            self._expressions()

    def _body(self, name: str) -> None:
        self._next("(")
        while not self._skip(")"):
            self._next()
        self.functions.append(name)
        self._block()
        self.functions.pop()
        self._next("end")

    def _expressions(self) -> None:
        self._expression()
        while self._skip(","):
            self._expression()

    def _expression(self) -> None:
        while self._skip("not", "-", "#"):
            pass
        self._simple()
        while self._peek() in _BINARY:
            token = self._next()
            if token.text in NEIGHBOURS:
                self.sites.append(Site(self.functions[-1], token.start, token.end, is_comparison=True))
            while self._skip("not", "-", "#"):
                pass
            self._simple()

    def _simple(self) -> None:
        token = self.tokens[self.at]
        if token.kind in ("string", "number") or token.text in ("nil", "true", "false", "..."):
            self.at += 1
        elif token.text == "function":
            self.at += 1
            self._body(self.functions[-1])
        elif token.text == "{":
            self._table()
        else:
            self._prefixed()

    def _table(self) -> None:
        self._next("{")
        while not self._skip("}"):
            if self._peek() == "[":
                self._next("[")
                self._expression()
                self._next("]")
                self._next("=")
            elif self._peek(1) == "=" and self.tokens[self.at].kind == "name":
                self.at += 2
            self._expression()
            self._skip(",", ";")

    def _prefixed(self) -> None:
        token = self._next()
        if token.text == "(":
            self._expression()
            self._next(")")
        elif token.kind != "name" or token.text in _KEYWORDS:
            raise SyntaxError(f"an expression expected, found {token}")
        while self._suffix():
            pass

    def _suffix(self) -> bool:
        word = self._peek()
        if word in (".", ":"):
            self.at += 2
        elif word == "[":
            self._next("[")
            self._expression()
            self._next("]")
        elif word == "(":
            self._next("(")
            if not self._skip(")"):
                self._expressions()
                self._next(")")
        elif word == "{":
            self._table()
        elif word == "'":
            self.at += 1
        else:
            return False
        return True


def broken(text: str, site: Site) -> tuple[str, str]:
    """The text with one site broken, and in words what was done."""
    was = text[site.start : site.end]
    if not site.is_comparison:
        return text[: site.start] + "\n" * was.count("\n") + text[site.end :], f"without: {' '.join(was.split())}"
    changed = text[: site.start] + NEIGHBOURS[was] + text[site.end :]
    return changed, f"{_line(text, site.start)}  ->  {_line(changed, site.start)}"


def _line(text: str, at: int) -> str:
    ends = text.find("\n", at)
    return " ".join(text[text.rfind("\n", 0, at) + 1 : ends if ends >= 0 else len(text)].split())


def each_broken(text: str) -> Iterator[tuple[int, str, str, str]]:
    """(line, function, mutation, text) of each mutant; several alike in one function are told apart by a number."""
    seen: dict[tuple[str, str], int] = {}
    for site in sites_of(text):
        changed, mutation = broken(text, site)
        same = seen[site.function, mutation] = seen.get((site.function, mutation), 0) + 1
        numbered = mutation if same == 1 else f"{mutation} (number {same})"
        yield text.count("\n", 0, site.start) + 1, site.function, numbered, changed
