"""Calls providers: builds the request, sends it through egress, and says what the answer means."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace

from services.chassis import strict_json
from services.chassis.egress import Egress, Request
from services.chassis.errors import FailedPrecondition
from services.providers.calls import Call, Integration, base_url_of, operation_call, request_for
from services.providers.catalog import Catalog
from services.providers.failures import Failure, classify
from services.providers.manifest import Manifest
from services.providers.pagination import next_url

MAX_PAGES = 1000


class AnswerNotJson(FailedPrecondition):
    """The provider answered with something else than JSON."""

    reason = "ANSWER_NOT_JSON"


@dataclass(frozen=True, slots=True)
class ProviderResponse:
    """What a provider answered at `url`, and what is wrong with it, if anything.

    Header names are lower-case.
    """

    url: str = field(repr=False)
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    failure: Failure | None

    def json(self) -> object:
        """The body as JSON, None when it is empty. Raises AnswerNotJson."""
        if not self.body.strip():
            return None
        try:
            return strict_json.parse(self.body)
        except ValueError:
            raise AnswerNotJson(f"the answer with status {self.status} is not JSON") from None


class ProviderClient:
    """Calls any provider of the catalog.

    What a provider refuses is a response with its `failure`, not an exception. What cannot be
    asked raises CallInvalid, UnsafePath, CredentialRefused or UnknownProvider before anything is
    sent; what fails on the way raises the errors of `chassis.egress`.
    """

    def __init__(
        self, egress: Egress, catalog: Catalog, clock: Callable[[], float] = time.time
    ) -> None:
        self._egress = egress
        self._catalog = catalog
        self._clock = clock

    async def send(
        self, integration: Integration, call: Call, *, timeout_s: float | None = None
    ) -> ProviderResponse:
        """Make one call."""
        manifest = self._catalog.get(integration.provider)
        return await self._exchange(
            manifest, request_for(manifest, integration, call), timeout_s=timeout_s
        )

    async def operate(
        self,
        integration: Integration,
        operation: str,
        *,
        params: Mapping[str, object] | None = None,
        query: Mapping[str, object] | None = None,
        body: object = None,
        timeout_s: float | None = None,
    ) -> ProviderResponse:
        """Make one of the provider's operations."""
        call = operation_call(
            self._catalog.get(integration.provider),
            operation,
            params=params,
            query=query,
            body=body,
            config=integration.config,
        )
        return await self.send(integration, call, timeout_s=timeout_s)

    async def pages(
        self,
        integration: Integration,
        operation: str,
        *,
        params: Mapping[str, object] | None = None,
        query: Mapping[str, object] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[ProviderResponse]:
        """Each page of a list, up to MAX_PAGES; a failure, or a page seen before, is the last."""
        manifest = self._catalog.get(integration.provider)
        call = operation_call(
            manifest, operation, params=params, query=query, config=integration.config
        )
        seen: set[str] = set()
        while len(seen) < MAX_PAGES:
            response = await self.send(integration, call, timeout_s=timeout_s)
            yield response
            seen.add(response.url)
            base_url = base_url_of(manifest, integration)
            page = next_page(manifest, operation, response, base_url)
            if page is None or page in seen:
                return
            call = replace(call, page=page)

    async def _exchange(
        self, manifest: Manifest, request: Request, *, timeout_s: float | None
    ) -> ProviderResponse:
        answer = await self._egress.send(request, timeout_s=timeout_s)
        failure = classify(manifest, answer.status, answer.headers, self._clock(), answer.body)
        return ProviderResponse(request.url, answer.status, answer.headers, answer.body, failure)


def next_page(
    manifest: Manifest, operation: str, response: ProviderResponse, base_url: str
) -> str | None:
    """Where the page after this one of a list is; None: it is the last. Raises UnsafePath."""
    style = manifest.operations[operation].pagination
    if style is None or response.failure is not None:
        return None
    return next_url(style, response.url, response.headers, base_url)
