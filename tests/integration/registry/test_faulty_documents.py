"""What is wrong with documents: every fault at once, each with its place, in plan and apply alike."""

from tenon.registry.v1 import wanted_pb2

from services.chassis import errors
from tests.integration.registry import documents
from tests.integration.registry.callers import Caller, refused
from tests.integration.registry.documents import acme

Faults = set[str]


async def faults_of(
    owner: Caller, resources: list[wanted_pb2.Resource], *, base: bool = True
) -> dict[str, str]:
    """Place → sentence; the same from a plan and from an apply, which changes nothing."""
    if base:
        await owner.apply("acme", acme())
    before = await owner.snapshot("acme") if base else {}
    told = []
    for ask in (owner.plan, owner.apply):
        with refused(errors.InvalidArgument, "INVALID_CONFIG") as held:
            await ask("acme", resources)
        told.append({v.field: v.description for v in held[0].violations})
    assert told[0] == told[1]
    if base:
        assert await owner.snapshot("acme") == before
    return told[0]


async def test_what_an_inbound_endpoint_asks_for_must_be_there_and_nothing_else(
    owner: Caller,
) -> None:
    told = await faults_of(
        owner,
        [
            documents.endpoint("by-url"),
            documents.endpoint("none", auth="NONE", secret=""),
            documents.endpoint("signed", secret=""),
            documents.endpoint("bearer", auth="BEARER", credential="token"),
            documents.endpoint("shown", auth="BEARER", credential="token", secret=""),
            documents.endpoint("empty", auth="BEARER", secret=""),
        ],
    )
    assert set(told) == {
        "WebhookEndpoint/none#spec.secret",
        "WebhookEndpoint/signed#spec.secret",
        "WebhookEndpoint/bearer#spec.secret",
        "WebhookEndpoint/empty#spec.credential",
    }


async def test_a_broker_needs_a_subject_and_knows_few_ways_of_proving_who_one_is(
    owner: Caller,
) -> None:
    def broker(name: str, **spec: object) -> wanted_pb2.Resource:
        said = {
            "direction": "OUTBOUND",
            "integration": "",
            "secret": "",
            "url": "tls://n.example.com",
        }
        return documents.endpoint(name, **{**said, "subject": "orders.${event.type}", **spec})

    told = await faults_of(
        owner,
        [
            broker("good", url="tls://a.example.com,b.example.com:4223"),
            broker("shown", auth="BEARER", credential="token", headers={"X-Team": "pay"}),
            broker("no-subject", subject=""),
            broker("wild", subject="orders.*"),
            broker("servers-own", subject="$JS.API.STREAM.PURGE.orders"),
            broker("unknown", subject="orders.${event.typ}"),
            broker("unclosed", subject="orders.${event.type"),
            broker("inside-url", url="tls://user:canary@n.example.com"),
            broker("clear", url="nats://n.example.com"),
            broker("api-key", auth="API_KEY", credential="token"),
            broker("told", headers={"Nats-Rollup": "all"}),
            broker("web", url="https://n.example.com", secret="hook"),
            documents.endpoint("inbound", subject="orders"),
        ],
    )
    assert set(told) == {
        "WebhookEndpoint/no-subject#spec.subject",
        "WebhookEndpoint/wild#spec.subject",
        "WebhookEndpoint/servers-own#spec.subject",
        "WebhookEndpoint/unknown#spec.subject",
        "WebhookEndpoint/unclosed#spec.subject",
        "WebhookEndpoint/inside-url#spec.url",
        "WebhookEndpoint/clear#spec.url",
        "WebhookEndpoint/api-key#spec.auth",
        "WebhookEndpoint/api-key#spec.credential",
        "WebhookEndpoint/told#spec.headers.Nats-Rollup",
        "WebhookEndpoint/web#spec.subject",
        "WebhookEndpoint/inbound#spec.subject",
    }
    assert "canary" not in str(told)
    await owner.apply("acme", [broker("good")])
    kept = (await owner.snapshot("acme"))["webhook_endpoint", "good"].resource.webhook_endpoint
    assert (kept.subject, kept.secret) == ("orders.${event.type}", "")


async def test_every_fault_of_every_document_is_told_at_once(owner: Caller) -> None:
    told = await faults_of(
        owner,
        [
            documents.integration("a", credential="tokn"),
            documents.integration("b", provider="githup"),
            documents.integration("c", config={"ownr": "x", "repo": "a b"}),
            documents.integration("d", base_url="ftp://x"),
            documents.integration("e", credential="hook"),
            documents.connector("f", condition="event.payload.x =="),
            documents.connector("g", path="/${steps.later.output}"),
            documents.connector("h", operation="get_authenticated_usr", method="", path=""),
            documents.connector("i", extract={"x": "$["}, timeout="301s"),
            documents.connector("j", retry={"max_attempts": 11, "base": "10s", "cap": "1s"}),
            documents.credential("k", "basic", token=b"very-secret-canary"),
            documents.endpoint("l", secret="token"),
            documents.subscription("m", filter="nope.x", endpoint="event"),
        ],
    )
    assert set(told) == {
        "Integration/a#spec.credential",
        "Integration/b#spec.provider",
        "Integration/c#spec.config.ownr",
        "Integration/c#spec.config.repo",
        "Integration/d#spec.base_url",
        "Integration/e#spec.credential",
        "Connector/f#spec.steps[0].condition",
        "Connector/g#spec.steps[0].path",
        "Connector/h#spec.steps[0].operation",
        "Connector/i#spec.steps[0].extract.x",
        "Connector/i#spec.steps[0].timeout",
        "Connector/j#spec.steps[0].retry.max_attempts",
        "Connector/j#spec.steps[0].retry",
        "Credential/k#spec.values",
        "Credential/k#spec.values.token",
        "WebhookEndpoint/l#spec.secret",
        "Subscription/m#spec.filter",
        "Subscription/m#spec.endpoint",
    }
    # What stands in the registry already may be meant, too.
    assert "did you mean token?" in told["Integration/a#spec.credential"]
    assert "did you mean github?" in told["Integration/b#spec.provider"]
    assert "did you mean events?" in told["Subscription/m#spec.endpoint"]
    assert "canary" not in str(told)


async def test_runs_and_outputs_must_be_within_reason(owner: Caller) -> None:
    bounds = documents.connector("bounds")
    bounds.connector.timeout.seconds = 86_401
    bounds.connector.max_retries = 11
    output = documents.connector("output")
    for source, target, transform in (
        ("steps.gone.output.id", "a.b", ""),
        ("integration.name", "c", ""),
        ("input.x ==", "d", "event.type"),
        ("input.x", "a", ""),
        ("input.x", "a.b.c", "value + 1"),
        ("input.x", "no spaces", ""),
        ("input.x", "fine", "value + 1"),
    ):
        output.connector.output.add(source=source, target=target, transform=transform)
    told = await faults_of(owner, [bounds, output])
    assert set(told) == {
        "Connector/bounds#spec.timeout",
        "Connector/bounds#spec.max_retries",
        "Connector/output#spec.output[0].source",
        "Connector/output#spec.output[1].source",
        "Connector/output#spec.output[2].source",
        "Connector/output#spec.output[2].transform",
        "Connector/output#spec.output[3].target",
        "Connector/output#spec.output[4].target",
        "Connector/output#spec.output[5].target",
    }


async def test_limits_and_lanes_must_be_within_reason(owner: Caller) -> None:
    lane = documents.connector("wide")
    lane.connector.lane.concurrency = 1001
    lane.connector.lane.rate_per_minute = -1
    lane.connector.lane.ordering = "key"
    narrow = documents.connector("narrow")
    narrow.connector.lane.concurrency = 0
    limits: dict[str, object] = {
        "weight": 101,
        "max_running": -1,
        "work_per_hour": -1,
        "max_running_per_provider": {"githup": 3, "http": 0},
    }
    # What breaks the contract is told before what makes no sense.
    assert set(await faults_of(owner, [lane])) == {"Connector/wide#spec.lane.ordering"}
    lane.connector.lane.ordering = "lane"
    told = await faults_of(owner, [lane, narrow, documents.tenant(limits=limits)])
    assert set(told) == {
        "Connector/wide#spec.lane.concurrency",
        "Connector/wide#spec.lane.rate_per_minute",
        "Connector/narrow#spec.lane.concurrency",
        "Tenant/acme#spec.limits.weight",
        "Tenant/acme#spec.limits.max_running",
        "Tenant/acme#spec.limits.work_per_hour",
        "Tenant/acme#spec.limits.max_running_per_provider.githup",
        "Tenant/acme#spec.limits.max_running_per_provider.http",
    }
    assert "did you mean github?" in told["Tenant/acme#spec.limits.max_running_per_provider.githup"]


async def test_constraints_of_the_contract_are_kept_by_the_registry(owner: Caller) -> None:
    nameless = documents.resource("connector", "Not-A-Slug", steps=[])
    foreign = documents.subscription("foreign")
    foreign.metadata.tenant = "globex"
    told = await faults_of(
        owner,
        [
            documents.integration("a", environment="prod", display_name="x" * 256),
            documents.resource("integration", "b"),
            documents.resource("credential", "c", type="bearer"),
            documents.connector("d", name="Not A Name", method="FETCH"),
            nameless,
            foreign,
            documents.subscription("twice"),
            documents.subscription("twice"),
            documents.tenant("globex"),
        ],
    )
    assert set(told) == {
        "Integration/a#spec.environment",
        "Integration/a#spec.display_name",
        "Integration/b#spec.provider",
        "Connector/d#spec.steps[0].name",
        "Connector/d#spec.steps[0].method",
        "Connector/Not-A-Slug#metadata.name",
        "Connector/Not-A-Slug#spec.steps",
        "Subscription/foreign#metadata.tenant",
        "Subscription/twice#metadata.name",
        "Tenant/globex#metadata.name",
    }


async def test_a_new_tenant_is_checked_like_an_old_one(owner: Caller) -> None:
    told = await faults_of(owner, [*acme()[:1], *acme()[2:]], base=False)
    assert set(told) == {"Integration/github#spec.credential"}
    looks_like_an_id = "a1a2a3a4-b1b2-c1c2-d1d2-e1e2e3e4e5e6"
    with refused(errors.NotFound):
        # A tenant is never called by the text of an id, so no slug can be taken for one.
        await owner.apply("acme", [documents.tenant(looks_like_an_id)])
    with refused(errors.InvalidArgument):
        await owner.apply(looks_like_an_id, [documents.tenant(looks_like_an_id)])


async def test_a_change_may_not_break_what_refers_to_it(owner: Caller) -> None:
    told = await faults_of(
        owner,
        [
            documents.integration(provider="http", config={}, base_url="http://127.0.0.1:9"),
            documents.credential("hook", token=b"bearer-now"),
        ],
    )
    # `events` took its secret from `hook`; nothing of `events` is in the change itself.
    assert set(told) == {"WebhookEndpoint/events#spec.secret"}
    connector = documents.connector(operation="get_authenticated_user", method="", path="")
    await owner.apply("acme", [connector])
    with refused(errors.InvalidArgument) as held:
        integration = documents.integration(provider="http", base_url="http://127.0.0.1:9")
        await owner.apply("acme", [integration])
    assert {v.field for v in held[0].violations} == {"Connector/triage#spec.steps[0].operation"}


async def test_there_is_one_primary_and_two_may_change_places(owner: Caller) -> None:
    first = documents.integration("first", is_primary=True)
    second = documents.integration("second", is_primary=True)
    told = await faults_of(owner, [first, second])
    assert set(told) == {
        "Integration/first#spec.is_primary",
        "Integration/second#spec.is_primary",
    }
    await owner.apply("acme", [first])
    with refused(errors.InvalidArgument) as held:
        await owner.apply("acme", [second])
    assert "Integration/second#spec.is_primary" in {v.field for v in held[0].violations}
    for now, then in (("second", "first"), ("first", "second")):
        change = [
            documents.integration(now, is_primary=True),
            documents.integration(then, is_primary=False),
        ]
        await owner.apply("acme", change)
    elsewhere = documents.integration("third", is_primary=True, environment="sandbox")
    await owner.apply("acme", [elsewhere])


async def test_more_faults_than_an_answer_holds_are_counted(owner: Caller) -> None:
    many = [documents.subscription(f"s{n}", endpoint="nowhere") for n in range(1000)]
    await owner.apply("acme", acme())
    with refused(errors.InvalidArgument, "INVALID_CONFIG") as held:
        await owner.apply("acme", many)
    assert held[0].message.startswith("1000 faults")
    told = held[0].violations
    assert len(told) > 30
    assert told[-1].description == f"and {1000 - (len(told) - 1)} more; correct these first"


async def test_what_no_database_can_keep_is_the_callers_fault(owner: Caller) -> None:
    labelled = documents.subscription("c")
    labelled.metadata.labels["a"] = "\0"
    told = await faults_of(
        owner,
        [
            documents.integration("a", display_name="nul \0 here"),
            documents.connector("b", body={"deep": [{"k\0": 1}]}),
            labelled,
        ],
    )
    assert set(told) == {
        "Integration/a#spec.display_name",
        "Connector/b#spec.steps",
        "Subscription/c#metadata.labels",
    }
    endless = documents.connector("d", body={"x": 1})
    endless.connector.steps[0].body.struct_value.fields["x"].number_value = float("inf")
    for ask in (owner.plan, owner.apply):
        with refused(errors.InvalidArgument) as held:
            await ask("acme", [endless])
        assert held[0].violations[0].field == "Connector/d#spec"
    with refused(errors.InvalidArgument):
        await owner.apply("acme", [documents.connector("e")], commit="\0")
