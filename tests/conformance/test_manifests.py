"""The contract of every manifest, read from the files themselves."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import services.providers.catalog as catalog_module
from services.chassis import templates
from services.chassis.secret import Secret
from services.providers.auth import CREDENTIAL_TYPES, Credential, credential_parts
from services.providers.calls import Integration, operation_call, request_for
from services.providers.catalog import Catalog
from services.providers.manifest import Category, Manifest, Parameter
from services.providers.roles import ROLE_OF, Action, placed, problems, words_in
from services.providers.signatures import SCHEMES, verify
from services.providers.streams import Item, Place, Stream, items_of
from services.providers.urls import template_names
from services.sandbox.app_streams import Happened, app_body, app_headers

ROOT = Path(catalog_module.__file__).parent
# A page of each stream, made up after its provider's documents: `provider.stream.json`.
PAGES = Path(__file__).parent / "pages"
FILES = sorted(ROOT.glob("*/*.yaml"))
CATALOG = Catalog.load()
STREAMS = [
    (manifest, name)
    for manifest in (CATALOG.get(file.stem) for file in FILES)
    for name in manifest.streams
]
SAFE_METHODS = {"GET", "HEAD"}
# How providers call that which puts a list in order.
ORDERS = {"sort", "order", "order_by", "orderby", "sort_by", "ordering", "direction"}
# Without those of its category nobody's shorthands would work with it, nor its neighbour's words.
WORDS = {"message": {"channel", "text"}, "ticket": {"title", "description", "type"}}
SEEN = {
    "event": frozenset({"id", "type", "payload", "headers"}),
    "integration": frozenset({"name", "config"}),
}


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


@pytest.fixture
def raw(file: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(file.read_text("utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_there_are_manifests() -> None:
    assert {"github", "http"} <= {file.stem for file in FILES}
    assert len(CATALOG) == len(FILES)


def test_it_is_in_the_catalog_under_its_name(file: Path, raw: dict[str, Any]) -> None:
    assert CATALOG.get(file.stem).display_name == raw["display_name"]
    assert raw["category"] == file.parent.name
    assert raw["category"] in get_args(Category)


def test_its_addresses_are_https(raw: dict[str, Any]) -> None:
    assert raw["docs"].startswith("https://")
    assert raw["base_url"].get("default", "https://").startswith("https://")


def test_it_can_be_verified(raw: dict[str, Any]) -> None:
    operations = raw.get("operations", {})
    if not operations:
        assert "verify" not in raw
        return
    operation = operations[raw["verify"]]
    assert operation["method"] in SAFE_METHODS
    assert operation["safe"]
    assert not operation.get("path_params")


def test_its_operations_declare_what_their_paths_name(raw: dict[str, Any]) -> None:
    for name, operation in raw.get("operations", {}).items():
        named = set(re.findall(r"\{(.*?)\}", operation["path"]))
        assert named == set(operation.get("path_params", {})), name
        assert operation["path"].startswith("/"), name
        assert not re.search(r"[?#]|//|\.\.", operation["path"]), name


def test_its_operations_are_honest_about_effects(raw: dict[str, Any]) -> None:
    for name, operation in raw.get("operations", {}).items():
        assert operation["description"].endswith("."), name
        assert operation["safe"] or operation["method"] not in SAFE_METHODS, name
        assert operation["idempotent"] or operation["method"] in {"POST", "PATCH"}, name
        assert not (operation.get("body") and operation["method"] in SAFE_METHODS), name
        assert operation["safe"] or "pagination" not in operation, name


def test_its_credentials_are_of_types_we_keep(raw: dict[str, Any]) -> None:
    assert raw["auth"]
    for rule in raw["auth"]:
        assert rule["type"] in {*CREDENTIAL_TYPES, "none"} - {"webhook_secret"}


def test_its_webhooks_are_verified(raw: dict[str, Any]) -> None:
    if "webhook" in raw:
        assert raw["webhook"]["signature"]["scheme"] in SCHEMES
        # By what a redelivery is known.
        assert raw["webhook"].get("delivery_id_header") or raw["webhook"]["app"]["item_id"]
        assert raw["webhook"].get("content_types", ["application/json"])


def test_its_apps_stream_is_as_the_sandbox_sends_it(file: Path) -> None:
    webhook = CATALOG.get(file.stem).webhook
    if webhook is None or webhook.app is None:
        return
    url, secret = "https://hooks.example.com/v1/app/x/main", Secret("the app's own")
    item = Happened(account="77", type="thing.happened")
    body = app_body(file.stem, [item])
    headers = app_headers(file.stem, url, body, secret, 1_700_000_000)
    verify(webhook.signature.scheme, [secret], headers, body, 1_700_000_000, url)
    (found,) = webhook.app.taken_apart(json.loads(body))
    assert (found.account, webhook.event_type.read({}, found.said)) == ("77", "thing.happened")
    (again,) = webhook.app.taken_apart(json.loads(app_body(file.stem, [item])))
    (other,) = webhook.app.taken_apart(
        json.loads(app_body(file.stem, [item.model_copy(update={"id": "another"})]))
    )
    assert found.key
    assert (found.key == again.key, found.key == other.key) == (True, False)


def test_it_holds_no_secret_and_says_who_is_calling(raw: dict[str, Any]) -> None:
    names = {name.lower() for name in raw["headers"]}
    assert "user-agent" in names
    assert not names & {"authorization", "cookie", "x-api-key", "host", "content-length"}


def test_it_plays_the_role_of_its_category(file: Path) -> None:
    manifest = CATALOG.get(file.stem)
    expected = ROLE_OF.get(manifest.category)
    assert expected is None or expected in manifest.roles
    for name, role in manifest.roles.items():
        assert WORDS.get(name, set()) <= role.words.keys(), name
        assert set(words_in(role.input)) == role.words.keys(), name
        for word in role.words.values():
            assert not templates.problems(word.default, SEEN), name


def test_its_roles_fill_their_operations(file: Path) -> None:
    manifest = CATALOG.get(file.stem)
    for name, role in manifest.roles.items():
        wanted = Action(role=name, input={word: f"the {word}" for word in role.words})
        assert list(problems(manifest, wanted, {})) == []
        call = placed(manifest, wanted, {})
        operation = manifest.operations[call.operation]
        assert call.params.keys() == operation.path_params.keys()
        assert bool(call.body) == operation.body
        assert not operation.safe


def setting(parameter: Parameter) -> object:
    """A value that a person may give to a setting."""
    if parameter.type != "string":
        return 7 if parameter.type == "integer" else True
    found = (each for each in ("acme", "shop", "7", "a.yml") if parameter.problem(each) is None)
    return next(found)


@pytest.fixture(params=STREAMS, ids=lambda each: f"{each[0].provider}.{each[1]}")
def stream(request: pytest.FixtureRequest) -> tuple[Manifest, str, Stream]:
    manifest, name = request.param
    return manifest, name, manifest.streams[name]


def test_its_stream_can_be_asked_for_by_settings_alone(
    stream: tuple[Manifest, str, Stream],
) -> None:
    manifest, _, said = stream
    operation = manifest.operations[said.operation]
    assert operation.method == "GET" and operation.safe and not operation.body
    # Who wants a stream gives settings: there is nobody to fill in anything else.
    assert template_names(operation.path) <= manifest.config.keys()
    config = {name: setting(each) for name, each in manifest.config.items()}
    assert not manifest.config_violations(config)
    base_url = None if manifest.base_url.default else "https://api.example.com"
    integration = Integration(manifest.provider, base_url, config, credential_of(manifest))
    # From the beginning, and behind the last thing of a page.
    for since in ("", items_on_page(stream)[-1].cursor):
        query = Place(since=since).query(said)
        call = operation_call(manifest, said.operation, query=query, config=config)
        assert call.query.items() >= query.items() >= said.query.items()
        assert "{" not in request_for(manifest, integration, call).url


def items_on_page(stream: tuple[Manifest, str, Stream]) -> list[Item]:
    """The things on the example page."""
    manifest, name, said = stream
    page = (PAGES / f"{manifest.provider}.{name}.json").read_text("utf-8")
    return items_of(said, json.loads(page))


def credential_of(manifest: Manifest) -> Credential:
    """A credential of a type that the manifest takes."""
    kind = manifest.auth[0].type
    return Credential(kind, {name: Secret(f"the {name}") for name in credential_parts(kind).needed})


def test_its_stream_says_what_it_is(stream: tuple[Manifest, str, Stream]) -> None:
    _, name, said = stream
    assert said.description.endswith("."), name
    assert re.fullmatch("[a-z][a-z0-9_]{0,62}", name)


def test_its_stream_with_a_cursor_is_in_the_order_of_it(
    stream: tuple[Manifest, str, Stream],
) -> None:
    _, name, said = stream
    if said.cursor is None:
        return
    assert said.query.keys() & ORDERS, f"{name}: nothing is later in a list without an order"
    assert said.cursor.query not in said.query, f"{name}: what is asked for always is no cursor"


def test_a_page_of_its_stream_is_read(stream: tuple[Manifest, str, Stream]) -> None:
    _, _, said = stream
    items = items_on_page(stream)
    assert len(items) >= 2 and len({each.key for each in items}) == len(items)
    last = items[-1].cursor
    assert all(each.cursor for each in items) == (said.cursor is not None)
    # What is in order goes on behind its last thing; all else at the provider's next page.
    more = "https://api.example.com/2"
    place = Place(since=last, high=last) if said.cursor else Place(url=more)
    after = Place().after(items, more)
    assert after is not None and replace(after, walk=0) == place
    assert Place().after(items, None) is None


def test_every_page_is_of_a_stream() -> None:
    known = {f"{manifest.provider}.{name}.json" for manifest, name in STREAMS}
    assert {each.name for each in PAGES.iterdir()} == known
