"""The work of kind `sync`: brings a stream here page by page, from wherever its transfer stands.

A page's records, what they were to us, and where the transfer stands then are one transaction under
the claim. Whoever goes on after a crash asks for the page that was not kept, and keeps no record
twice. How far the *stream* has come is said at the end alone: after a transfer that ends badly the
next one asks for the same again.

A transfer that was wanted before another one began, which then ended well, has nothing to bring: it
ends with that, so that a thousand events cost the provider one transfer. What the provider has no
more is found by whole transfers that came to their end, and that brought something at all. Once the
tenant has another key, the next transfer is whole, and seals all anew before the old one goes.
"""

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final
from uuid import UUID, uuid5

from services.chassis import envelope, failpoints
from services.chassis.database import Bound, Database
from services.chassis.egress import EgressError
from services.chassis.envelope import Unsealable
from services.chassis.errors import Aborted, DeadlineExceeded, NotFound, TenonError, Unavailable
from services.chassis.secret import Secret
from services.executor.calling import Calling, Order
from services.executor.engine.work import (
    RETRY_S,
    Claimed,
    ClaimLost,
    Done,
    Later,
    Notes,
    Outcome,
    Why,
)
from services.executor.executions.standing import callee, check_switch, running
from services.executor.registry.credentials import LeasedKey, Secrets
from services.executor.repeating import canonical
from services.executor.store import projected, records
from services.executor.store import sync_runs as store
from services.executor.store.projected import ProjectedObject
from services.executor.store.records import Fresh
from services.executor.store.sync_runs import Run, State
from services.executor.syncs import sealing, verdicts
from services.executor.syncs.sealing import Keys
from services.executor.syncs.streams import KIND
from services.executor.syncs.verdicts import Fault
from services.providers.calls import Integration, base_url_of, operation_call
from services.providers.catalog import Catalog
from services.providers.client import next_page
from services.providers.manifest import Manifest
from services.providers.streams import Place, Stream, items_of
from services.providers.urls import template_names

BEFORE_PAGE: Final = failpoints.declare("sync.before_page", "the page is asked for again")
AFTER_PAGE: Final = failpoints.declare("sync.after_page", "the page's records are there once")
BEFORE_END: Final = failpoints.declare("sync.before_end", "the last page is asked for again")

PAGE_S: Final = 60.0
"""How long a page may take."""
TURN_S: Final = 20.0
"""After so long a transfer lets others have its place, and goes on where it stands."""
MOST_PAGES: Final = 100_000
JITTER: Final = 0.2
PASSING: Final = (Unavailable, DeadlineExceeded, Aborted)
"""Errors of ours, not of the provider: whoever works on it tries again by itself."""
TOO_OFTEN: Final = Fault("INTERNAL", "it failed too often by itself")
ENDLESS: Final = Fault("ENDLESS", f"the stream has more than {MOST_PAGES} pages")
NOTHING_LEFT: Final = Fault(
    "NOTHING_LEFT",
    "the provider has nothing of it any more, and nothing here is marked as deleted for that;"
    " if it is true, reset the stream and transfer it once more",
)


class NotBrought(Exception):
    """A page did not come."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Asked:
    """A stream with the integration to call, and the credential for that."""

    stream: ProjectedObject
    callee: ProjectedObject
    credential: ProjectedObject | None


@dataclass(frozen=True, slots=True)
class Page:
    """What came, and where the transfer stands then."""

    records: Sequence[Fresh] = field(repr=False)
    after: Place = field(repr=False)
    is_last: bool


@dataclass(slots=True)
class Transfer:
    """A transfer under way: where it stands, and what it knows of its stream.

    `asked` is what its list is asked by. `secrets` must not be shown.
    """

    where: store.Place
    run: Run
    state: State
    manifest: Manifest
    stream: Stream
    place: Place
    keys: Keys
    asked: bytes
    secrets: list[Secret] = field(default_factory=list, repr=False)

    @property
    def pass_id(self) -> UUID:
        """By which is known what it has seen: once begun anew under another key, it sees anew."""
        return uuid5(self.run.id, str(self.keys.sealing.data_key_id))


class Syncing:
    """Transfers streams."""

    name = KIND

    def __init__(
        self,
        database: Database,
        secrets: Secrets,
        calling: Calling,
        catalog: Catalog,
        notes: Notes,
        rng: Random | None = None,
        turn_s: float = TURN_S,
    ) -> None:
        self._database = database
        self._secrets = secrets
        self._calling = calling
        self._catalog = catalog
        self._notes = notes
        self._rng = rng or Random()  # noqa: S311 - spreads waits, hides nothing
        self._turn_s = turn_s

    async def prepare(self, claimed: Claimed) -> Transfer | Done:
        """The transfer as it stands; Done where nothing is to do."""
        where = _where(claimed)
        run, state = await store.load(self._database, where)
        if run is None or run.ended_at is not None:
            return Done()
        covered_by = _covered(run, state)
        if covered_by is not None:
            return Done(record=[store.covering(where, covered_by)])
        try:
            return await self._taken_up(where, run, state)
        except PASSING:
            raise
        except TenonError as error:
            return Done(record=store.failing(where, error.code, error.message))

    async def call(self, claimed: Claimed, prepared: Transfer | Done) -> Outcome:
        """Page after page, to the end, to a wait, or until others have their turn."""
        if isinstance(prepared, Done):
            return prepared
        ends_at = time.monotonic() + self._turn_s
        await self._begun(claimed, prepared)
        while time.monotonic() < ends_at:
            outcome = await self._page(claimed, prepared)
            if outcome is not None:
                return outcome
        return Later(delay_s=0)

    def give_up(self, claimed: Claimed, why: Why) -> Done:
        """The end of a transfer that was cancelled, or that failed too often."""
        where = _where(claimed)
        if why == "CANCELLED":
            return Done(record=[store.cancelling(where)])
        return Done(record=store.failing(where, TOO_OFTEN.reason, TOO_OFTEN.message))

    async def _taken_up(self, where: store.Place, run: Run, state: State) -> Transfer:
        """A transfer with what it knows of its stream. Raises what it cannot go on for."""
        needs = await self._needs(where)
        manifest = self._catalog.get(needs.callee.spec["provider"])
        stream = manifest.streams.get(needs.stream.spec["stream"])
        if stream is None:
            raise NotFound(f"{manifest.provider} has no such stream", reason="STREAM_UNKNOWN")
        keys, asked = await self._keys(where, state), asked_by(stream, manifest, needs.callee)
        same = asked == state.asked
        state = state if same else state.of_another_list
        place = await self._place(where, run, keys.sealing) if same else None
        if place is None:
            resealed = state.sealed_by != keys.sealing.data_key_id
            whole = run.whole or stream.cursor is None or not state.cursor or resealed
            run = replace(run, whole=whole, beginning=state.beginning)
            place = Place() if whole else Place(since=state.cursor, high=state.cursor)
        return Transfer(where, run, state, manifest, stream, place, keys, asked)

    async def _keys(self, where: store.Place, state: State) -> Keys:
        """The tenant's key, and the stream's digest key: a new one where it has none that opens."""
        sealing_key = await self._secrets.lease_key(where.tenant_id)
        if state.sealed_digest_key is not None:
            with suppress(Unsealable):
                opener = await self._secrets.lease_key(where.tenant_id, state.data_key_id)
                known = sealing.digest_key(opener, where, state.sealed_digest_key)
                return Keys(sealing_key, known)
        return Keys(sealing_key, envelope.new_key())

    async def _place(self, where: store.Place, run: Run, key: LeasedKey) -> Place | None:
        """Where a transfer goes on; None: it begins.

        A whole one that was begun under another key begins anew, and seals all with this one.
        """
        if run.sealed_place is None or (run.whole and run.data_key_id != key.data_key_id):
            return None
        opener = await self._secrets.lease_key(where.tenant_id, run.data_key_id)
        return sealing.place_of(opener, where, run.sealed_place)

    async def _begun(self, claimed: Claimed, transfer: Transfer) -> None:
        where, keys = transfer.where, transfer.keys
        sealed = sealing.sealed_digest_key(keys, where)
        key_id = keys.sealing.data_key_id
        beginning = store.beginning(where, transfer.run, transfer.asked, key_id, sealed)
        await self._notes.note(claimed, beginning)

    async def _page(self, claimed: Claimed, transfer: Transfer) -> Outcome | None:
        """Bring one page; None: go on with the next."""
        BEFORE_PAGE.hit()
        try:
            page = await self._brought(transfer)
        except NotBrought as error:
            return self._fallen_back(transfer, error.fault)
        await self._kept(claimed, transfer, page)
        AFTER_PAGE.hit()
        if page.is_last:
            return await self._concluded(claimed, transfer)
        return self._ended(transfer, ENDLESS) if transfer.run.pages >= MOST_PAGES else None

    async def _brought(self, transfer: Transfer) -> Page:
        """The page that is next. Raises NotBrought, and Unavailable where it is to wait."""
        try:
            order = await self._order(transfer)
            response = await self._calling.send(order, PAGE_S)
            if response.failure is not None:
                raise NotBrought(verdicts.refused(response.failure, transfer.secrets))
            items = items_of(transfer.stream, response.json())
            fresh = sealing.fresh(transfer.keys, transfer.where, items)
            base_url = base_url_of(transfer.manifest, order.integration)
            url = next_page(transfer.manifest, transfer.stream.operation, response, base_url)
            # Whoever goes on after the last page asks for it once more, and then concludes.
            last = replace(transfer.place, high=transfer.place.reached(items), tries=0)
            after = transfer.place.after(items, url)
            return Page(fresh, after or last, is_last=after is None)
        except EgressError as error:
            raise NotBrought(verdicts.unanswered(error)) from None
        except PASSING:
            raise
        except TenonError as error:
            raise NotBrought(verdicts.unusable(error, transfer.secrets)) from None

    async def _order(self, transfer: Transfer) -> Order:
        """The call for the page that is next, as everything is wanted now."""
        needs = await self._needs(transfer.where)
        integration, tenant_id = needs.callee, transfer.where.tenant_id
        manifest, stream, place = transfer.manifest, transfer.stream, transfer.place
        config = manifest.config_with_defaults(integration.spec.get("config") or {})
        call = operation_call(manifest, stream.operation, query=place.query(stream), config=config)
        credential = await self._calling.credential(tenant_id, needs.credential, transfer.secrets)
        called = Integration(manifest.provider, integration.spec.get("base_url") or None, config)
        order = replace(call, page=place.url)
        return Order(tenant_id, called, order, needs.credential, credential, transfer.secrets)

    async def _needs(self, where: store.Place) -> Asked:
        """What a page is asked by. Raises Stopped, and Unavailable where it is to wait."""
        reads = projected.needing_stream(where.tenant_id, where.stream_id)
        wanted = projected.wanted(await self._database.read_all(where.tenant_id, reads))
        needs = wanted.needs(wanted.owner.spec["integration"] if wanted.owner else "")
        stream = running(needs, "stream")
        integration = callee(needs, stream.spec["integration"])
        check_switch(needs)
        return Asked(stream, integration, needs.credential)

    async def _kept(self, claimed: Claimed, transfer: Transfer, page: Page) -> None:
        """Keep a page's records, and where the transfer stands after it."""
        where, key = transfer.where, transfer.keys.sealing
        kept = records.keeping(
            *(where, transfer.pass_id, page.records),
            whole=transfer.run.whole,
            seal=(key.data_key_id, sealing.sealed_place(key, where, page.after)),
        )
        (rows,) = await self._notes.note(claimed, [kept])
        if not rows:
            raise ClaimLost
        transfer.run = replace(transfer.run, seen=rows[0].seen, pages=rows[0].pages)
        transfer.place = page.after

    async def _concluded(self, claimed: Claimed, transfer: Transfer) -> Done:
        """The end of a transfer whose last page is here."""
        if transfer.run.whole:
            if await self._is_suspicious(transfer):
                return self._ended(transfer, NOTHING_LEFT)
            await self._buried(claimed, transfer)
        BEFORE_END.hit()
        reached, key = transfer.place.high, transfer.keys.sealing
        return Done(record=store.succeeding(transfer.where, transfer.run, reached, key.data_key_id))

    async def _is_suspicious(self, transfer: Transfer) -> bool:
        """Whether the provider has nothing any more of a stream that had something."""
        if transfer.run.seen or transfer.state.full_covered_at is None:
            return False
        return await records.has_any(self._database, transfer.where)

    async def _buried(self, claimed: Claimed, transfer: Transfer) -> None:
        """Mark as gone what the transfer has not seen."""
        after: str | None = ""
        while after is not None:
            looking = records.burying(transfer.where, transfer.pass_id, after)
            (rows,) = await self._notes.note(claimed, [looking])
            if not rows:
                raise ClaimLost
            after = rows[0].last

    def _fallen_back(self, transfer: Transfer, fault: Fault) -> Outcome:
        """What becomes of a transfer whose next page did not come.

        Each page has all its tries anew: a long transfer gets over as many errors as come.
        """
        restarted = transfer.place.restarted() if fault.address_ended else None
        if restarted is not None:
            return Later(record=[_standing(transfer, restarted)], delay_s=0)
        if fault.wait_s is None:
            return self._ended(transfer, fault)
        place = transfer.place if fault.patient else transfer.place.failed()
        if place.tries > len(RETRY_S):
            return self._ended(transfer, fault)
        least_s = RETRY_S[max(place.tries - 1, 0)]
        waiting = store.waiting(transfer.where, fault.reason, fault.message)
        wait_s = max(fault.wait_s, least_s) * self._rng.uniform(1, 1 + JITTER)
        return Later(record=[_standing(transfer, place), waiting], delay_s=wait_s)

    def _ended(self, transfer: Transfer, fault: Fault) -> Done:
        return Done(record=store.failing(transfer.where, fault.reason, fault.message))


def asked_by(stream: Stream, manifest: Manifest, integration: ProjectedObject) -> bytes:
    """What a stream's list is asked by, in short: by something else it is another list."""
    spec = integration.spec
    config = manifest.config_with_defaults(spec.get("config") or {})
    path = manifest.operations[stream.operation].path
    settings = {name: config.get(name) for name in template_names(path)}
    words = [manifest.provider, spec.get("base_url") or "", path, settings, stream.query]
    return hashlib.sha256(canonical(words)).digest()


def _standing(transfer: Transfer, place: Place) -> Bound:
    key, where = transfer.keys.sealing, transfer.where
    return store.standing(where, key.data_key_id, sealing.sealed_place(key, where, place))


def _where(claimed: Claimed) -> store.Place:
    # A stream's lane has its id.
    return store.Place(claimed.tenant_id, claimed.target_id, claimed.lane_id)


def _covered(run: Run, state: State) -> UUID | None:
    """The transfer that began after this one was wanted, and has brought all it would, if any."""
    if run.started_at is not None:
        return None
    at, by = state.covered_at, state.covered_by
    if run.whole:
        at, by = state.full_covered_at, state.full_covered_by
    return by if at is not None and at > run.created_at else None
