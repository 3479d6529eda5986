"""Between the contract's messages about one wanted object and the registry's values."""

import hashlib
from typing import Final

from tenon.registry.v1 import config_service_pb2 as config_pb2

from services.chassis.constraints import did_you_mean
from services.chassis.errors import invalid
from services.chassis.ids import collection_of, parse_name
from services.chassis.secret import Secret
from services.registry.messages import config as messages
from services.registry.wanted.drafts import Submission
from services.registry.wanted.objects import ORDER, Declared, Key

SOURCE: Final = "rpc"
"""In whose name objects are changed one by one."""


COLLECTIONS: Final = {collection_of(kind): kind for kind in ORDER if kind != "Tenant"}
"""Every kind by what its names have in the middle: `tenants/acme/roleBindings/devs`."""


def removal(request: config_pb2.DeleteObjectRequest, tenant: str) -> Submission:
    """What a request to delete one object says of the tenant the caller was let into."""
    kind, name = _object_named(request.name)
    digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    has_base = request.HasField("base_revision")
    asked = request.request_id
    return Submission(
        tenant=tenant,
        source=SOURCE,
        declared=(Declared(kind, name, {}, absent=True),),
        base_revision=request.base_revision if has_base else None,
        plan_hash=request.plan_hash,
        request_id=messages.uuid_at("request_id", asked) if asked else None,
        force=request.force,
        method="DeleteObject",
        digest=Secret(digest),
    )


def _object_named(text: str) -> Key:
    parts = text.split("/")
    collection = parts[2] if len(parts) == 4 else ""
    if collection not in COLLECTIONS:
        hint = did_you_mean(collection, list(COLLECTIONS))
        raise invalid("name", f"must be tenants/TENANT/COLLECTION/NAME of an object{hint}")
    return COLLECTIONS[collection], parse_name(text, collection)[1]
