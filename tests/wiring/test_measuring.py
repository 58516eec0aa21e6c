"""What a process shows of its surroundings: the end of a certificate, or that there is none to be read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import trustme

from penstock.wiring.measuring import expiry_s

ENDS = datetime(2031, 2, 3, tzinfo=UTC)


def test_the_first_of_a_files_certificates_to_end_counts(tmp_path: Path) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", not_after=ENDS)
    file = tmp_path / "all.pem"
    file.write_bytes(authority.cert_pem.bytes() + leaf.cert_chain_pems[0].bytes())
    assert expiry_s(file) == ENDS.timestamp()


def test_a_file_that_holds_none_or_is_not_there_has_ended(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    assert expiry_s(tmp_path / "empty.pem") == expiry_s(tmp_path / "gone.pem") == 0
