"""CredentialService."""

from datetime import timedelta
from uuid import UUID

from tenon.registry.v1 import credential_service_pb2 as pb2

from services.chassis.ids import parse_name
from services.chassis.interceptors import Call
from services.chassis.pages import after_of, next_token, page_size
from services.registry.credentials.changing import Changing
from services.registry.credentials.putting import Putting
from services.registry.credentials.reading import Reading
from services.registry.credentials.resolving import LEASE_TTL_S, Resolving
from services.registry.credentials.uses import Uses
from services.registry.keys.sealing_keys import SealingKeys
from services.registry.messages import credentials as messages
from services.registry.messages.access import by
from services.registry.messages.config import caller_of, uuid_at
from services.registry.oauth.refreshing import Refreshing
from services.registry.oauth.revoking import Revoking


class CredentialServicer:
    """Lists credentials masked, changes them, and opens them for the executor."""

    def __init__(
        self,
        reading: Reading,
        putting: Putting,
        changing: Changing,
        revoking: Revoking,
        refreshing: Refreshing,
        resolving: Resolving,
        uses: Uses,
        sealing_keys: SealingKeys,
        retired_for: timedelta,
    ) -> None:
        self._reading = reading
        self._putting = putting
        self._changing = changing
        self._revoking = revoking
        self._refreshing = refreshing
        self._resolving = resolving
        self._uses = uses
        self._sealing_keys = sealing_keys
        self._retired_for = retired_for

    async def ListCredentials(
        self, request: pb2.ListCredentialsRequest, call: Call
    ) -> pb2.ListCredentialsResponse:
        """A page of them, masked, by name."""
        query = (call.tenant, int(request.finding))
        size, after = page_size(request.page_size), after_of(request.page_token, *query)
        finding = messages.finding_of(request)
        found = await self._reading.page(call.inside(), after, size + 1, finding)
        more = next_token(found[size - 1].row.name, *query) if len(found) > size else ""
        shown = [messages.credential_message(call.tenant, one) for one in found[:size]]
        return pb2.ListCredentialsResponse(credentials=shown, next_page_token=more)

    async def GetCredential(self, request: pb2.GetCredentialRequest, call: Call) -> pb2.Credential:
        """One, masked."""
        named = messages.named(call, request.name)
        return messages.credential_message(
            call.tenant, await self._reading.get(named.tenant_id, named.name)
        )

    async def PutCredential(self, request: pb2.PutCredentialRequest, call: Call) -> pb2.Credential:
        """Make it or change it, by the one write path."""
        named = messages.named(call, request.name)
        submission, caller = messages.submission(request, call), caller_of(call)
        await self._putting.put(named, submission, caller)
        return messages.credential_message(
            call.tenant, await self._reading.get(named.tenant_id, named.name)
        )

    async def RotateCredential(
        self, request: pb2.RotateCredentialRequest, call: Call
    ) -> pb2.RotateCredentialResponse:
        """A new version beside the old one."""
        who, named = by(request, call), messages.named(call, request.name)
        turn = messages.turn(request)
        answer = await self._changing.rotate(
            who,
            named,
            turn,
            lambda row: pb2.RotateCredentialResponse(
                credential=messages.row_message(call.tenant, row)
            ).SerializeToString(),
        )
        made = pb2.RotateCredentialResponse.FromString(answer)
        if not turn.values:
            uid, version = UUID(made.credential.uid), made.credential.version
            secret = await self._changing.generated(who, uid, version)
            made.secret = secret.reveal() if secret is not None else b""
        return made

    async def RevokeCredential(
        self, request: pb2.RevokeCredentialRequest, call: Call
    ) -> pb2.Credential:
        """Take it back."""
        answer = await self._revoking.revoke(
            by(request, call),
            messages.named(call, request.name),
            request.reason,
            lambda row: messages.row_message(call.tenant, row).SerializeToString(),
        )
        return pb2.Credential.FromString(answer)

    async def ShredCredentialVersion(
        self, request: pb2.ShredCredentialVersionRequest, call: Call
    ) -> pb2.Credential:
        """Destroy an old version's key."""
        answer = await self._changing.shred(
            by(request, call),
            messages.named(call, request.name),
            request.version,
            lambda row: messages.row_message(call.tenant, row).SerializeToString(),
        )
        return pb2.Credential.FromString(answer)

    async def RevealCredential(
        self, request: pb2.RevealCredentialRequest, call: Call
    ) -> pb2.RevealCredentialResponse:
        """Tell a secret that Tenon made."""
        who = messages.by_once(call)
        version, secret = await self._changing.reveal(who, messages.named(call, request.name))
        return pb2.RevealCredentialResponse(version=version, secret=secret.reveal())

    async def RefreshCredential(
        self, request: pb2.RefreshCredentialRequest, call: Call
    ) -> pb2.Credential:
        """See that there are newer tokens."""
        named = messages.named(call, request.name)
        await self._refreshing.newer(named.tenant_id, named.name, request.version)
        return messages.credential_message(
            call.tenant, await self._reading.get(named.tenant_id, named.name)
        )

    async def ResolveCredential(
        self, request: pb2.ResolveCredentialRequest, call: Call
    ) -> pb2.ResolveCredentialResponse:
        """The current values, for the executor's memory."""
        _, name = parse_name(request.name, messages.CREDENTIALS)
        found = await self._resolving.resolve(call.inside(), name, request.newer_than)
        return messages.resolved_message(found)

    async def ReportCredentialUse(
        self, request: pb2.ReportCredentialUseRequest, call: Call
    ) -> pb2.ReportCredentialUseResponse:
        """Keep what the executor counted."""
        await self._uses.keep(call.inside(), messages.uses(request), messages.seals(request))
        return pb2.ReportCredentialUseResponse()

    async def LeaseKey(self, request: pb2.LeaseKeyRequest, call: Call) -> pb2.LeaseKeyResponse:
        """A derived key, for the executor's memory."""
        uid = request.data_key_uid
        asked = uuid_at("data_key_uid", uid) if uid else None
        data_key_id, key = await self._resolving.lease_key(call.inside(), asked)
        answer = pb2.LeaseKeyResponse(data_key_uid=str(data_key_id), key=key.reveal())
        answer.ttl.seconds = LEASE_TTL_S
        answer.retired_ttl.FromTimedelta(self._retired_for)
        return answer

    async def GetSealingKey(self, request: pb2.GetSealingKeyRequest, call: Call) -> pb2.SealingKey:
        """What secrets in Git are sealed to."""
        version, public = await self._sealing_keys.public()
        return pb2.SealingKey(version=version, public_key=public)
