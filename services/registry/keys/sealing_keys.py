"""The pair that secrets in Git are sealed to: the public half is told, the private one wrapped.

A pair outlives rotations of the key-encryption key, which only wrap it anew, so that what is sealed
in Git stays readable.
"""

from services.chassis import sealed_box
from services.chassis.database import Database
from services.chassis.envelope import Unsealable
from services.chassis.redaction import remember
from services.chassis.secret import Secret
from services.registry.keys.vault import Vault, Wrapped
from services.registry.store import keys as store

FIRST = 1


class SealingKeys:
    """Tells public halves, and opens what was sealed to one."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._public: tuple[int, bytes] | None = None
        self._private: dict[int, Secret] = {}

    async def public(self) -> tuple[int, bytes]:
        """The version and the public half to seal to; made when somebody first asks."""
        if self._public is None:
            await self._load()
        if self._public is None:
            await self._make()
            await self._load()
        if self._public is None:
            raise Unsealable
        return self._public

    async def opened(self, purpose: sealed_box.Purpose, sealed: str) -> Secret:
        """What was sealed for a purpose. Raises NotASeal, or Unsealable for what opens nothing."""
        version = sealed_box.version_of(sealed)
        if version not in self._private:
            await self._load()
        if version not in self._private:
            raise Unsealable
        return remember(sealed_box.open_box(self._private[version], purpose, sealed))

    async def _load(self) -> None:
        async with self._database.system() as transaction:
            rows = await transaction.all(store.SEALING_KEYS)
        for row in rows:
            stored = Wrapped(row.key_version, bytes(row.wrapped))
            self._private[row.version] = self._vault.unwrap_sealing_key(row.version, stored)
        if rows:
            self._public = rows[0].version, bytes(rows[0].public_key)

    async def _make(self) -> None:
        private, public = sealed_box.new_pair()
        stored = self._vault.wrap_sealing_key(FIRST, private)
        async with self._database.system() as transaction:
            # Of several that are first one's is kept.
            await transaction.run(
                store.ADD_SEALING_KEY,
                version=FIRST,
                public_key=public,
                key_version=stored.key_version,
                wrapped=stored.wrapped,
            )
