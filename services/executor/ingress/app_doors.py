"""Which streams of apps a tenant owns, and of which accounts' items it wants to hear: pure.

An inbound endpoint that names an `app` owns its stream where it has a secret, and is a receiver of
it where it has none. A receiver hears of the accounts that are connected under its Integration, by
the stream of the tenant that it names.
"""

from collections.abc import Iterable, Iterator, Mapping

from services.executor.store.app_streams import Claimed, Owned
from services.executor.store.projected import ProjectedObject


def owned(objects: Iterable[ProjectedObject]) -> list[Owned]:
    """The streams that a tenant with these objects owns; active or not, they are nobody else's."""
    return [
        Owned(endpoint.object_id, integration.spec["provider"], endpoint.spec["app"], endpoint.name)
        for endpoint, integration in _of_apps(list(objects))
        if endpoint.spec["secret"]
    ]


def claimed(objects: Iterable[ProjectedObject]) -> list[Claimed]:
    """The accounts whose items it gets, as long as the streams' owners let it in."""
    these = list(objects)
    accounts = _accounts(these)
    return [
        Claimed(
            *(endpoint.object_id, integration.spec["provider"], endpoint.spec["app"]),
            *(account, endpoint.name),
            active=active,
            # What was projected before owners were named names none.
            app_owner=endpoint.spec.get("app_owner", ""),
        )
        for endpoint, integration in _of_apps(these)
        if not endpoint.spec["secret"]
        for account, active in sorted(accounts.get(integration.name, {}).items())
    ]


def _of_apps(
    objects: list[ProjectedObject],
) -> Iterator[tuple[ProjectedObject, ProjectedObject]]:
    """Endpoints that name an app, each with its Integration."""
    integrations = {each.name: each for each in objects if each.kind == "Integration"}
    for each in objects:
        if each.kind == "WebhookEndpoint" and each.spec.get("app"):
            integration = integrations.get(each.spec["integration"])
            if integration is not None:
                yield each, integration


def _accounts(objects: list[ProjectedObject]) -> Mapping[str, Mapping[str, bool]]:
    """The accounts that are connected, by Integration, and whether the connection is active."""
    found: dict[str, dict[str, bool]] = {}
    for each in objects:
        account = each.spec.get("external_account_id", "") if each.kind == "Connection" else ""
        if account:
            accounts = found.setdefault(each.spec["integration"], {})
            accounts[account] = accounts.get(account, False) or each.spec["is_active"]
    return found
