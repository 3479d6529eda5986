"""Every contract there is, and every RPC in it, by the service that keeps it."""

from typing import Final

from google.protobuf.descriptor import FileDescriptor
from tenon.executor.v1 import (
    delivery_service_pb2,
    event_service_pb2,
    execution_service_pb2,
    lane_service_pb2,
    sync_service_pb2,
)
from tenon.registry.v1 import (
    access_service_pb2,
    audit_service_pb2,
    config_service_pb2,
    connection_service_pb2,
    credential_service_pb2,
    integration_service_pb2,
    key_service_pb2,
    principal_service_pb2,
    staff_service_pb2,
    tenant_service_pb2,
    vault_service_pb2,
)

CONTRACTS: Final[dict[str, tuple[FileDescriptor, ...]]] = {
    "registry": tuple(
        module.DESCRIPTOR
        for module in (
            access_service_pb2,
            audit_service_pb2,
            config_service_pb2,
            connection_service_pb2,
            credential_service_pb2,
            integration_service_pb2,
            key_service_pb2,
            principal_service_pb2,
            staff_service_pb2,
            tenant_service_pb2,
            vault_service_pb2,
        )
    ),
    "executor": tuple(
        module.DESCRIPTOR
        for module in (
            delivery_service_pb2,
            event_service_pb2,
            execution_service_pb2,
            lane_service_pb2,
            sync_service_pb2,
        )
    ),
}
METHODS: Final = [
    (service, method)
    for service, files in CONTRACTS.items()
    for file in files
    for contract in file.services_by_name.values()
    for method in contract.methods
]
