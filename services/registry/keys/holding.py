"""Which versions of the key-encryption key this process has, and telling the others.

A version wraps only once every registry that runs can open what it wrapped; so each says every few
seconds what it has. What it cannot open it says in its log, and `tenon keys status` to everybody.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from uuid import UUID

from services.chassis import envelope
from services.chassis.database import Bound, Database
from services.chassis.errors import TenonError
from services.chassis.ids import uuid7
from services.chassis.process import background
from services.chassis.redaction import remember
from services.chassis.secret import Secret
from services.registry.keys.providers import KeyMissing, KeyProvider, KeyProviderDown
from services.registry.keys.ring import Ring
from services.registry.keys.vault import Vault
from services.registry.store import keys as store

log = logging.getLogger(__name__)

EVERY_S: Final = 2.0
USABLE: Final = frozenset({"pending", "active", "decrypt_only"})
PROOF: Final = "proof"


class WrongKeyError(TenonError):
    """A key is not the one this database was sealed with."""

    reason = "WRONG_KEY"


class Holding:
    """Opens the versions there are, and keeps the vault up to date with them.

    `providers` are those the settings name, by name; `current` is the one new versions are made by.
    """

    def __init__(
        self,
        database: Database,
        vault: Vault,
        providers: Mapping[str, KeyProvider],
        current: str,
    ) -> None:
        self._database = database
        self._vault = vault
        self._providers = providers
        self.current = providers[current]
        self._id = uuid7()
        self._opened: dict[int, Secret] = {}
        self._woken = asyncio.Event()

    async def start(self) -> None:
        """Make the first version where there is none, and open all that are in use.

        Raises WrongKeyError, KeyMissing or KeyProviderDown: without its keys a registry does not
        start.
        """
        async with self._database.system() as transaction:
            rows = await transaction.all(store.VERSIONS)
        if not rows:
            await self._make_first()
        await self.refresh(patient=False)

    async def refresh(self, *, patient: bool = True) -> None:
        """Open what is new, drop what is no longer in use; `patient`: try again what fails."""
        async with self._database.system() as transaction:
            rows = await transaction.all(store.VERSIONS)
        usable = {row.version: row for row in rows if row.state in USABLE}
        for version in self._opened.keys() - usable.keys():
            del self._opened[version]
        for version, row in usable.items():
            if version not in self._opened:
                await self._open(row, patient=patient or row.state == "pending")
        active = next((row.version for row in rows if row.state == "active"), 0)
        worn = {row.version: row.wraps for row in rows}
        self._vault.hold(Ring(active, dict(self._opened), worn))

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Keep up, and tell so, until the block ends."""
        try:
            await self.tell()
            # Who waits for a provider goes on telling, or would be taken to be gone.
            async with background(self._keep_up(), self._keep_telling(), self._listen()):
                yield
        finally:
            with suppress(TenonError):
                await self._let_go()

    async def tell(self) -> None:
        """Say which versions this process has, and how often they wrapped since the last time."""
        held = {
            "holder_id": self._id,
            "host": socket.gethostname(),
            "versions": sorted(self._opened),
        }
        await self._counted(Bound(store.HOLD, held))

    async def _counted(self, first: Bound) -> None:
        """Run a statement, and count what was wrapped since the last time."""
        wraps = self._vault.drain_wraps()
        # The newest first, in the order of LOCK_VERSIONS: else each could wait for the other.
        counted = [
            Bound(store.COUNT_WRAPS, {"the_version": version, "more": more})
            for version, more in sorted(wraps.items(), reverse=True)
        ]
        try:
            async with self._database.system(durable=False) as transaction:
                await transaction.pipeline([first, *counted])
        except TenonError:
            self._vault.count_wraps(wraps)
            raise

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.tell()
            except TenonError as error:
                log.warning("which keys are here could not be told: %s", error.message)

    async def _keep_up(self) -> None:
        while True:
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._woken.wait()
            try:
                await self.refresh()
                await self.tell()
            except TenonError as error:
                log.warning("the keys are not up to date: %s", error.message)

    async def _listen(self) -> None:
        async for _ in self._database.listen(store.CHANNEL):
            self._woken.set()

    async def _let_go(self) -> None:
        await self._counted(Bound(store.LET_GO, {"holder_id": self._id}))

    async def _make_first(self) -> None:
        made = await self.current.make(1)
        row = version_row(1, made.key, "active", self.current.name, made.reference, made.wrapped)
        async with self._database.system() as transaction:
            # Of several that start at once one's is kept; the others must have the same.
            await transaction.run(store.ADD_VERSION, **row)

    async def _open(self, row: Any, *, patient: bool) -> None:
        try:
            self._opened[row.version] = remember(await self._key(row))
        except (KeyMissing, KeyProviderDown, WrongKeyError) as error:
            if not patient:
                raise
            log.warning("version %d of the key-encryption key: %s", row.version, error.message)

    async def _key(self, row: Any) -> Secret:
        """A version's key, from the provider that made it; one without a name from the current."""
        provider = self._providers.get(row.provider) or self.current
        key = await provider.open(row.version, row.reference, bytes(row.wrapped))
        if proof_of(key) != Secret(bytes(row.proof)):
            raise WrongKeyError(
                f"version {row.version} of the key-encryption key is not the one this database "
                "was sealed with; set TENON_REGISTRY_KEY_ENCRYPTION_KEY_FILE to the right one"
            )
        return key

    @property
    def holder_id(self) -> UUID:
        """This process among the holders."""
        return self._id


def proof_of(key: Secret) -> Secret:
    """What a version leaves in the database, so that another key is known at once."""
    return envelope.derive(key, PROOF)


def version_row(
    version: int, key: Secret, state: str, provider: str, reference: str, wrapped: bytes
) -> dict[str, Any]:
    """The row of a new version."""
    return {
        "version": version,
        "proof": proof_of(key).reveal(),
        "state": state,
        "provider": provider,
        "reference": reference,
        "wrapped": wrapped,
    }
