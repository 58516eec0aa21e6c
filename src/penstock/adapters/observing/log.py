"""The service's own log (starts, stops, warnings, errors) in the same stream and format as the request log."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from penstock.adapters.observing.lines import LineWriter

_ENCODE = msgspec.json.Encoder().encode
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class LogFormat(StrEnum):
    """How log lines look."""

    JSON = "json"
    TEXT = "text"
    AUTO = "auto"  # text on a terminal, JSON elsewhere


def resolve_format(wanted: LogFormat, *, is_terminal: bool) -> LogFormat:
    """Decide ``auto``.

    Example:
        >>> resolve_format(LogFormat.AUTO, is_terminal=False).value
        'json'
    """
    if wanted is not LogFormat.AUTO:
        return wanted
    return LogFormat.TEXT if is_terminal else LogFormat.JSON


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, service, event (the message), logger, the call's ``extra``, an exception.

    Example:
        >>> record = logging.makeLogRecord({"name": "penstock", "levelname": "INFO", "msg": "started", "created": 0})
        >>> JsonFormatter("api").format(record)
        '{"time":"1970-01-01T00:00:00.000Z","level":"info","service":"api","event":"started","logger":"penstock"}'
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Encode ``record``; values that JSON does not know become their ``str``."""
        line: dict[str, object] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "service": self._service,
            "event": record.getMessage(),
            "logger": record.name,
        }
        for name, value in vars(record).items():
            if name not in _STANDARD_FIELDS and not name.startswith("_"):
                line[name] = value if isinstance(value, str | int | float | bool | None) else str(value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _ENCODE(line).decode()


class TextFormatter(logging.Formatter):
    """One readable line; an exception follows on lines of its own.

    Example:
        >>> record = logging.makeLogRecord({"levelname": "INFO", "msg": "started", "created": 0, "port": 8000})
        >>> TextFormatter().format(record)
        '00:00:00 info    started  port=8000'
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write ``record`` for a person."""
        extra = "".join(
            f"  {name}={value}"
            for name, value in vars(record).items()
            if name not in _STANDARD_FIELDS and not name.startswith("_")
        )
        text = f"{_time(record.created)[11:19]} {record.levelname.lower():7} {record.getMessage()}{extra}"
        return text + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class WriterHandler(logging.Handler):
    """Hands formatted records to a ``LineWriter``; warnings and worse are written at once."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. An error in formatting goes to ``handleError``, as in the standard library."""
        try:
            line = self.format(record)
        except (TypeError, ValueError):
            self.handleError(record)
            return
        self._writer.write(line.encode(errors="replace") + b"\n", urgent=record.levelno >= logging.WARNING)


def configure_log(writer: LineWriter, log_format: LogFormat, *, level: int = logging.INFO) -> logging.Handler:
    """Send the whole process's standard logging to ``writer``, and nowhere else.

    Args:
        writer: Shared with the request log, so that lines never mix.
        log_format: JSON or TEXT; resolve AUTO before.
        level: Of the root logger. uvicorn's access log is silenced: the request log says more.

    Returns:
        The handler, for ``logging.getLogger().removeHandler`` at shutdown.
    """
    handler = WriterHandler(writer)
    handler.setFormatter(TextFormatter() if log_format is LogFormat.TEXT else JsonFormatter(writer.service))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "alembic"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"
        logger.setLevel(max(level, logging.WARNING))  # that they start is no news
    return handler


def _time(created_s: float) -> str:
    return (
        datetime.fromtimestamp(created_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(created_s * 1000) % 1000:03d}Z"
    )
