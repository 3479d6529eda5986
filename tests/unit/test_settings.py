"""Settings from an environment."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from services.chassis.secret import Secret
from services.chassis.settings import SettingsError, load


@dataclass(frozen=True)
class Wanted:
    url: Secret
    size: int
    quick: bool = False
    folder: Path | None = None


def test_each_setting_is_read_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("very-secret\n")
    found = load(
        Wanted,
        "T",
        {"T_URL_FILE": str(tmp_path / "url"), "T_SIZE": "7", "T_QUICK": "Yes", "T_FOLDER": "/x"},
    )
    assert found == Wanted(Secret("very-secret"), 7, quick=True, folder=Path("/x"))
    assert "very-secret" not in repr(found)


def test_every_fault_is_told_at_once_and_no_value(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(
            Wanted,
            "T",
            {"T_URL_FILE": str(tmp_path / "none"), "T_SIZE": "canary", "T_QUICK": "canary"},
        )
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines] == ["T_URL_FILE", "T_SIZE", "T_QUICK"]
    assert "canary" not in str(caught.value)
    with pytest.raises(SettingsError, match=r"T_URL \(or T_URL_FILE\) is not set\nT_SIZE"):
        load(Wanted, "T", {})
