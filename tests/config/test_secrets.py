"""A reference leads to its secret, or to an error that says what to do and repeats nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.config import read_secret
from penstock.config.values import Secret
from penstock.errors import ConfigurationError


def test_a_secret_is_read_from_the_environment_or_a_file_without_white_space(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("from-file\n", encoding="utf-8")
    environment = {"TOKEN": " from-environment "}
    assert read_secret(Secret(env="TOKEN"), environment=environment, what="x") == "from-environment"
    assert read_secret(Secret(file=str(file)), environment={}, what="x") == "from-file"


def test_a_reference_that_leads_nowhere_names_the_setting_and_the_fix(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    latin = tmp_path / "latin"
    latin.write_bytes(b"\xe9")
    for reference, said in (
        (Secret(env="TOKEN"), "auth.pepper: the environment variable TOKEN is not set or empty; export it"),
        (Secret(file=str(tmp_path / "none")), "cannot be read: No such file or directory; check path and rights"),
        (Secret(file=str(empty)), "is empty; write the secret into it"),
        (Secret(file=str(latin)), "it is not UTF-8"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            read_secret(reference, environment={"TOKEN": " "}, what="auth.pepper")
        assert said in str(caught.value)
