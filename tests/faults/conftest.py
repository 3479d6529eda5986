"""The family whose processes are killed: one a module, on this worker's server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.embedded import Embedded
from tests.family import Family, family_on


@pytest.fixture(scope="module")
def family(postgres: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """A sandbox and a registry that run; the executor is each test's own."""
    folder: Path = tmp_path_factory.mktemp("family")
    with family_on(postgres, folder) as family:
        family.start("sandbox")
        family.start("registry")
        yield family
