"""Numbered folders: YAML in, what `tenon validate` says of it and its exit code out (expect.txt).

What needs a running registry has a told.txt instead, or besides: see test_told.py.
"""

import argparse
from pathlib import Path

import pytest

from config import cli

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("*/expect.txt"))


def test_every_folder_says_what_is_expected() -> None:
    folders = [path for path in Path(__file__).parent.iterdir() if path.name[0].isdigit()]
    told = [path.parent for path in Path(__file__).parent.glob("*/told.txt")]
    assert set(folders) == {*FOLDERS, *told}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_validate(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers())
    args = parser.parse_args(["validate", "."])
    code = args.run(args)
    said = capsys.readouterr()
    assert f"{said.out}{said.err}exit {code}\n" == (folder / "expect.txt").read_text()
