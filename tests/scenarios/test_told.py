"""The folders with a told.txt: what the command says of them to whom, by a running registry.

A step is `$ WHO: ARGUMENTS`, what is then said, and the exit code. WHO is the first owner, or
somebody known by `kind/name` alone. The folders share the registry, so each has a tenant of its own.
"""

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.chassis.database import Database
from services.chassis.ids import uuid7
from services.chassis.secret import Secret
from services.embedded import Embedded
from services.registry.access.control import AccessControl
from services.registry.store import access as store
from tests.family import Family, family_on, plain_environment, tenon

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("*/told.txt"))
STEP = re.compile(r"\$ (\S+): (.+)")
# Plans are bound to what nobody can foresee.
HASH = re.compile(r"plan [0-9a-f]{12}")
KeyOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def family(postgres: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    with family_on(postgres, tmp_path_factory.mktemp("told")) as family:
        family.start("registry")
        yield family


@pytest.fixture(scope="module")
def key_of(family: Family) -> KeyOf:
    """The file with somebody's key; each is made once."""
    made: dict[str, Path] = {"owner": family.deployment.owner_key}

    def key(who: str) -> Path:
        if who not in made:
            made[who] = family.folder / f"{who.replace('/', '-')}.key"
            made[who].write_text(asyncio.run(_new_key(family, *who.split("/"))).reveal_text())
        return made[who]

    return key


async def _new_key(family: Family, kind: str, name: str) -> Secret:
    settings = family.deployment.environment("registry")
    pepper, tenants, system = (
        Path(settings[f"TENON_REGISTRY_{name}_FILE"]).read_text()
        for name in ("PEPPER", "DATABASE_URL", "SYSTEM_DATABASE_URL")
    )
    async with Database(Secret(tenants), Secret(system), pool_size=1) as database:
        access = AccessControl(database, Secret(bytes.fromhex(pepper)))
        async with database.system() as transaction:
            principal, who = uuid7(), {"kind": kind, "subject": name, "display_name": name}
            await transaction.run(store.ADD_PRINCIPAL, principal_id=principal, issuer="", **who)
            return await access.issue(transaction, "test", principal, "test", ["*"])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_is_told(folder: Path, family: Family, key_of: KeyOf) -> None:
    expected = (folder / "told.txt").read_text()
    environment = plain_environment() | {
        "TENON_REGISTRY": family.registry,
        "TENON_REASON": "a test",
    }
    told = ""
    for who, arguments in STEP.findall(expected):
        words = [str(folder / one) if (folder / one).exists() else one for one in arguments.split()]
        given = environment | {"TENON_KEY_FILE": str(key_of(who))}
        done = tenon(words, given)
        said = f"{done.stdout}{done.stderr}".replace(f"{folder}/", "")
        told += f"$ {who}: {arguments}\n{HASH.sub('plan HASH', said)}exit {done.returncode}\n"
    assert told == expected
