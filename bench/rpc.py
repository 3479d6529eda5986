"""What our RPCs reach of a bare grpc.aio echo: `make bench-rpc`.

Servers and client are processes of their own on one machine; `bench.beside_echo` says how the calls
take turns with the echo's.
"""

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tenon.registry.v1 import access_service_pb2 as access
from tenon.registry.v1 import access_service_pb2_grpc as access_grpc
from tenon.registry.v1 import integration_service_pb2 as integration
from tenon.registry.v1 import integration_service_pb2_grpc as integration_grpc

from bench.beside_echo import Call, measured
from services.chassis.channel import REASON, open_channel
from services.stage import Stage

NAME: Final = "tenants/bench/integrations/github"

WANTED: Final = """\
apiVersion: tenon/v1
kind: Tenant
metadata: {name: bench}
spec: {display_name: Bench}
---
apiVersion: tenon/v1
kind: Credential
metadata: {name: token, tenant: bench}
spec: {type: bearer, values: {token: {file: token}}}
---
apiVersion: tenon/v1
kind: Integration
metadata: {name: github, tenant: bench}
spec: {provider: github, credential: token, config: {owner: bench}}
"""


def main() -> None:
    """Measure, and print one line of JSON a figure."""
    with tempfile.TemporaryDirectory(prefix="tenon-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "token").write_text("bench-token")
        (folder / "bench.yaml").write_text(WANTED)
        with Stage(folder) as stage:
            stage.run("apply", str(folder / "bench.yaml"), shown=False)
            lines = asyncio.run(_measure(stage))
    for line in lines:
        print(json.dumps(line))


async def _measure(stage: Stage) -> Sequence[Mapping[str, Any]]:
    key = stage.owner_key.read_text().strip()
    # The key by hand: a client's interceptors would cost more than what is measured.
    metadata = (("authorization", f"Bearer {key}"), (REASON, "bench"))
    async with open_channel(stage.where["registry"]) as channel:
        integrations = integration_grpc.IntegrationServiceStub(channel)
        permissions = access_grpc.AccessServiceStub(channel)
        asked = integration.GetIntegrationRequest(name=NAME)
        may = access.CheckPermissionRequest(tenant="tenants/bench", permission="config.apply")
        calls: dict[str, Call] = {
            "get_integration": lambda: integrations.GetIntegration(asked, metadata=metadata),
            "check_permission": lambda: permissions.CheckPermission(may, metadata=metadata),
        }
        return await measured("rpc", calls, NAME, metadata)


if __name__ == "__main__":
    main()
