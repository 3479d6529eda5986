"""What writes a draft: statements in the order of its plan, to be sent together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from services.chassis.database import Bound, Transaction
from services.chassis.ids import uuid7
from services.chassis.rules import Risk
from services.providers.catalog import Catalog
from services.registry.audit import log as audit
from services.registry.audit.masks import OWNER
from services.registry.credentials.declared import DeclaredSecrets, Place, derived
from services.registry.credentials.sealing import Keyring, Sealing
from services.registry.store import invalidations, objects, revisions, tenants
from services.registry.wanted.drafts import Draft
from services.registry.wanted.endpoint_checks import stream_of
from services.registry.wanted.objects import Complete, Declared, Key
from services.registry.wanted.plan import NOTHING, Change, FieldChange


@dataclass(frozen=True, slots=True)
class _Within:
    """What every change of one draft is written with."""

    tenant: str
    occasion: audit.Occasion
    ids: Mapping[Key, UUID]
    known: Mapping[Key, Complete]
    keyring: Keyring


class Writer:
    """Turns drafts into statements."""

    def __init__(self, catalog: Catalog, sealing: Sealing) -> None:
        self._catalog = catalog
        self._sealing = sealing
        self._secrets = DeclaredSecrets(sealing)

    async def statements(
        self, transaction: Transaction, draft: Draft, occasion: audit.Occasion
    ) -> tuple[list[Bound], list[audit.Event]]:
        """What a draft leaves (objects, secrets, ownership, revision, feed), and what tells it."""
        plan, statements, events = draft.plan, list[Bound](), list[audit.Event]()
        if plan.changes:
            tenant_id = occasion.tenant_id
            keyring = await self._sealing.keyring(transaction, tenant_id)
            ids = _allot(draft, tenant_id)
            within = _Within(plan.tenant, occasion, ids, draft.known, keyring)
            for change in plan.changes:
                statements += self._change(change, within)
                events.append(occasion.event(change, within.ids[change.after.key]))
            statements += revisions.adding(occasion, plan)
            statements += _telling(plan.changes, tenant_id)
        for one in (one for one in draft.declared if not one.absent):
            owners = draft.ownership.get(one.key, {})
            statements += revisions.owning(
                occasion.tenant_id, one.key, owners, plan.source, frozenset(one.fields)
            )
            events += _taking(one, owners, draft, occasion)
        return statements, events

    def _change(self, change: Change, within: _Within) -> Iterator[Bound]:
        one, new = change.after, change.action == "create"
        if change.action == "delete":
            yield from objects.deleting(within.occasion.tenant_id, one)
            yield revisions.disowning(within.occasion.tenant_id, one.key)
            return
        if one.kind == "Tenant":
            yield tenants.writing(within.occasion.tenant_id, one, new=new)
            # A new tenant stands before its key, and its key before all else.
            yield from within.keyring.adding
            return
        writing = objects.writing(
            within.occasion.tenant_id,
            one,
            revision=within.occasion.revision,
            ids=within.ids,
            derived=self._derived(one, within, new=new),
            new=new,
        )
        if one.kind == "Credential":
            place = Place(
                within.tenant,
                within.occasion.tenant_id,
                within.ids[one.key],
                within.occasion.actor.display_name,
                within.keyring,
            )
            yield from self._secrets.written(change, writing, place)
        else:
            yield writing
        if one.kind == "Integration" and not new:
            provider = one.fields["spec.provider"]
            tenant_id = within.occasion.tenant_id
            yield objects.moving_streams(tenant_id, within.ids[one.key], provider)

    def _derived(self, one: Complete, within: _Within, *, new: bool) -> dict[str, Any]:
        if one.kind == "Integration":
            return {"category": self._catalog.get(one.fields["spec.provider"]).category}
        if one.kind == "Credential":
            return derived(one, within.occasion.actor.display_name, new=new)
        if one.kind == "Connection":
            integration = within.known["Integration", one.fields["spec.integration"]]
            app = ("Credential", integration.fields["spec.app"])
            provider = integration.fields["spec.provider"]
            return {"provider": provider, "app_id": within.ids.get(app)}
        if one.kind == "WebhookEndpoint":
            stream = stream_of(one, within.known)
            return {"app_provider": stream[0] if stream else ""}
        return {}


def _taking(
    one: Declared, owners: Mapping[str, frozenset[str]], draft: Draft, occasion: audit.Occasion
) -> Iterator[audit.Event]:
    """What tells that fields went from another source to this one, whether their values stayed."""
    object_id = draft.known[one.key].object_id
    for owner, owned in sorted(owners.items()):
        taken = sorted(owned & one.fields.keys())
        if object_id is not None and owner != occasion.source and taken:
            fields = [FieldChange(OWNER, owner, occasion.source)]
            fields += [FieldChange(path, NOTHING, NOTHING) for path in taken]
            yield audit.Event(
                action="own",
                kind=one.kind,
                object=one.name,
                object_id=object_id,
                risk=Risk.LOW,
                fields=fields,
                revision=occasion.revision,
                source=occasion.source,
                commit=occasion.commit,
                file=one.file,
                line=one.line,
            )


def _allot(draft: Draft, tenant_id: UUID) -> dict[Key, UUID]:
    """The ids of all objects, with new ones for those to be made."""
    ended = {one.after.key: one.after for one in draft.plan.changes if one.action == "delete"}
    ids = {key: one.object_id or uuid7() for key, one in {**draft.known, **ended}.items()}
    return {**ids, ("Tenant", draft.plan.tenant): tenant_id}


def _telling(changes: Sequence[Change], tenant_id: UUID) -> Iterator[Bound]:
    """What makes every process forget what it knows of those whose access changes."""
    if any(map(_is_of_access, changes)):
        yield invalidations.telling(tenant=tenant_id)
    for change in changes:
        if change.after.kind == "Credential":
            yield invalidations.telling(credential=(tenant_id, change.after.name))
    # Who had no access there before is known to others without this tenant.
    for kind, issuer, name in sorted({subject for one in changes for subject in _subjects(one)}):
        yield invalidations.telling(identity=(kind, issuer, name))


def _is_of_access(change: Change) -> bool:
    if change.after.kind == "Tenant":
        return any(field.path == "spec.enabled" for field in change.fields)
    return change.after.kind in {"Role", "RoleBinding"}


def _subjects(change: Change) -> Iterator[tuple[str, str, str]]:
    """Whom a RoleBinding names, and whom it named."""
    if change.after.kind == "RoleBinding":
        for one in filter(None, (change.before, change.after)):
            subject = one.fields["spec.subject"]
            yield subject["kind"], subject["issuer"], subject["name"]
