"""The executor's settings: each is the environment variable TENON_EXECUTOR_<NAME>."""

from dataclasses import dataclass
from pathlib import Path

from services.chassis.secret import Secret

PREFIX = "TENON_EXECUTOR"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the executor is told at its start; secrets best by `<NAME>_FILE`.

    `listen` and `ingress_port` take port 0 for any free one. `egress_allow` is a list of internal
    hosts and networks that connectors may reach (`chassis.addresses.parse_allow`). `lease_s` is how
    long a dead worker keeps what it had claimed.
    """

    database_url: Secret
    system_database_url: Secret
    service_key: Secret
    registry: str = "127.0.0.1:50051"
    registry_ca: Path | None = None
    listen: str = "127.0.0.1:50052"
    certificate: Path | None = None
    private_key: Path | None = None
    ingress_host: str = "127.0.0.1"
    ingress_port: int = 8080
    egress_allow: str = ""
    pool_size: int = 8
    concurrency: int = 32
    lease_s: float = 30.0
    log_format: str = "json"
    log_level: str = "INFO"
