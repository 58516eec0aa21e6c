"""Metrics pages of running processes, read: what they say of one moment, added up over the processes."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.parser import text_string_to_metric_families

from penstock.errors import StoreUnavailable
from penstock.lanes.activity import Samples

PAGE_S = 2.0


def read_page(url: str) -> str:
    """One page, without a proxy.

    Args:
        url: Of an operations port, or of its ``/metrics``.

    Raises:
        StoreUnavailable: It does not answer in time.
    """
    page = url.rstrip("/").removesuffix("/metrics") + "/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(page, timeout=PAGE_S) as answer:
            text: str = answer.read().decode()
    except (urllib.error.URLError, OSError, UnicodeDecodeError) as error:
        raise StoreUnavailable(f"{page} does not answer: {getattr(error, 'reason', error)}") from error
    return text


def read_pages(urls: Sequence[str]) -> tuple[Samples, list[str]]:
    """Several at once, added up; and why some could not be read."""

    def read(url: str) -> str | StoreUnavailable:
        try:
            return read_page(url)
        except StoreUnavailable as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, len(urls))) as pool:
        found = list(pool.map(read, urls))
    texts = [each for each in found if isinstance(each, str)]
    return added(texts), [each.message for each in found if isinstance(each, StoreUnavailable)]


def added(texts: Iterable[str]) -> Samples:
    """Values of Penstock's own metrics on some pages, those of the same name and labels added up.

    Raises:
        StoreUnavailable: A page is not in Prometheus' text format.
    """
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for text in texts:
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name.startswith("penstock_"):
                        key = (sample.name, tuple(sorted(sample.labels.items())))
                        found[key] = found.get(key, 0.0) + sample.value
        except ValueError as error:
            raise StoreUnavailable(f"a page is no metrics page: {error}; name an operations port") from error
    return found
