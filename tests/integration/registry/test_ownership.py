"""Who owns a field: the three-way merge, as two sources see it."""

import psycopg
from tenon.registry.v1 import config_service_pb2 as config_pb2

from tests.integration.registry import documents
from tests.integration.registry.callers import Caller
from tests.integration.registry.documents import acme


async def spec(owner: Caller) -> tuple[str, str, bool]:
    found = (await owner.snapshot("acme"))["integration", "github"].resource.integration
    return found.display_name, found.environment, found.is_active


async def test_a_field_this_source_set_and_leaves_out_returns_to_its_default(
    owner: Caller,
) -> None:
    await owner.apply("acme", acme(), source="git")
    said = documents.integration(display_name="Ours", environment="sandbox", is_active=False)
    await owner.apply("acme", [said], source="git")
    assert await spec(owner) == ("Ours", "sandbox", False)
    await owner.apply("acme", [documents.integration(display_name="Ours")], source="git")
    assert await spec(owner) == ("Ours", "production", True)


async def test_a_field_another_source_set_is_left_where_this_one_is_silent(owner: Caller) -> None:
    await owner.apply("acme", acme(), source="git")
    await owner.apply("acme", [documents.integration(environment="sandbox")], source="git")
    plan = await owner.plan("acme", [documents.integration(display_name="Mine")], source="desk")
    assert [(f.path, f.owner) for f in plan.changes[0].fields] == [("spec.display_name", "")]
    await owner.apply("acme", [documents.integration(display_name="Mine")], source="desk")
    assert await spec(owner) == ("Mine", "sandbox", True)
    # What desk never set, it does not reset either.
    await owner.apply("acme", [documents.integration()], source="desk")
    assert await spec(owner) == ("", "sandbox", True)


async def test_a_plan_says_whose_a_field_was_and_takes_it(owner: Caller) -> None:
    await owner.apply("acme", acme(), source="git")
    await owner.apply("acme", [documents.integration(environment="sandbox")], source="git")
    taking = [documents.integration(environment="development")]
    plan = await owner.plan("acme", taking, source="desk")
    assert [(f.path, f.before, f.after, f.owner) for f in plan.changes[0].fields] == [
        ("spec.environment", '"sandbox"', '"development"', "git")
    ]
    await owner.apply("acme", taking, source="desk")
    # It is desk's now: git's silence leaves it, desk's resets it.
    await owner.apply("acme", [documents.integration()], source="git")
    assert (await spec(owner))[1] == "development"
    await owner.apply("acme", [documents.integration()], source="desk")
    assert (await spec(owner))[1] == "production"


async def test_a_source_may_lose_all_it_had(owner: Caller) -> None:
    await owner.apply("acme", acme(), source="git")
    await owner.apply("acme", acme(), source="desk")
    answer = await owner.apply("acme", acme(), source="git")
    assert (answer.revision, len(answer.plan.changes)) == (1, 0)


async def test_who_takes_a_field_and_leaves_its_value_is_told(
    owner: Caller, rows: psycopg.AsyncConnection[tuple[object, ...]]
) -> None:
    await owner.apply("acme", acme(), source="git")
    said = documents.integration(environment="sandbox")
    await owner.apply("acme", [said], source="git")
    for _ in range(2):
        # The second time there is nothing left to take.
        assert (await owner.apply("acme", [said], source="mallory")).revision == 2
    told = await rows.execute(
        "SELECT kind, object, source, fields FROM registry.audit_events WHERE action = 'own'"
    )
    ((kind, name, source, fields),) = await told.fetchall()
    assert (kind, name, source) == ("Integration", "github", "mallory")
    assert isinstance(fields, list)
    assert fields[0] == {"path": "owner", "before": '"git"', "after": '"mallory"'}
    assert {"path": "spec.environment"} in fields


async def test_without_a_name_the_source_is_cli(owner: Caller) -> None:
    await owner.apply("acme", acme())
    request = config_pb2.ListRevisionsRequest(parent="tenants/acme")
    assert (await owner.config.ListRevisions(request)).revisions[0].source == "cli"
