"""Answers kept for 24 h: a request repeated with its request_id is answered as the first time.

Of twins that come at once one is done; the other waits for its end and gets its answer. Answers lie
sealed, since one may hold a key that is shown once.
"""

import hmac
from dataclasses import dataclass
from uuid import UUID

from services.chassis.database import Bound, Transaction
from services.chassis.errors import InvalidArgument
from services.chassis.secret import Secret
from services.registry.keys.vault import Vault, Wrapped
from services.registry.store import answers as store


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it may come again: in a tenant, or (None) in the platform.

    `digest` is a hash of all its words, which only leaves here under the deployment's key.
    """

    tenant_id: UUID | None
    principal_id: UUID
    method: str
    request_id: UUID
    digest: Secret

    def key(self) -> dict[str, object]:
        """What its answer is kept under."""
        place = {} if self.tenant_id is None else {"tenant_id": self.tenant_id}
        return {
            **place,
            "principal_id": self.principal_id,
            "method": self.method,
            "request_id": self.request_id,
        }


class Once:
    """Lets a request happen once: `kept` first in its transaction, `keeping` with its effects.

    A tenant's requests may be asked for in a transaction of that tenant or of the system login,
    the platform's only in one of the system login. A request without a request_id (None) is a new
    one each time.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def kept(self, transaction: Transaction, asked: Asked | None) -> bytes | None:
        """The answer of the first time, if there was one; until its end twins wait here.

        Raises InvalidArgument where the request_id was used with other words.
        """
        if asked is None:
            return None
        waiting = Bound(store.WAIT_FOR_TWINS, {"words": repr(asked.key())})
        find = store.of(asked.tenant_id).find
        _, rows = await transaction.pipeline([waiting, Bound(find, asked.key())])
        if not rows:
            return None
        if not hmac.compare_digest(bytes(rows[0].request_hash), self._hash(asked)):
            raise InvalidArgument(
                "this request_id was used for another request; make a new one",
                reason="REQUEST_ID_REUSED",
            )
        answer = Wrapped(rows[0].key_version, bytes(rows[0].answer))
        return self._vault.open_answer(asked.tenant_id, asked.method, asked.request_id, answer)

    def keeping(self, asked: Asked | None, answer: bytes) -> list[Bound]:
        """What keeps an answer, and lets go of old ones."""
        if asked is None:
            return []
        statements = store.of(asked.tenant_id)
        sealed = self._vault.seal_answer(asked.tenant_id, asked.method, asked.request_id, answer)
        row = {
            **asked.key(),
            "request_hash": self._hash(asked),
            "answer": sealed.wrapped,
            "key_version": sealed.key_version,
        }
        return [Bound(statements.forget, asked.key()), Bound(statements.keep, row)]

    def _hash(self, asked: Asked) -> bytes:
        return self._vault.request_hash(str(asked.tenant_id or "platform"), asked.digest)
