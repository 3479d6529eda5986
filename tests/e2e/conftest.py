"""A whole running family with the example applied: one a module, on this worker's server."""

from collections.abc import Iterator

import pytest

from services.embedded import Embedded
from tests.family import Family, family_on


@pytest.fixture(scope="module")
def family(postgres: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    with family_on(postgres, tmp_path_factory.mktemp("family")) as family:
        for service in ("sandbox", "registry", "executor"):
            family.start(service)
        family.apply_example()
        yield family
