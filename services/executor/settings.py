"""The executor's settings: each is the environment variable TENON_EXECUTOR_<NAME>."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.chassis.secret import Secret

PREFIX = "TENON_EXECUTOR"
ALL_ROLES = "all"
INGRESS_PORT = 8080


@dataclass(frozen=True, slots=True)
class Settings:
    """What the executor is told at its start; secrets best by `<NAME>_FILE`.

    `role` is what this process does: `rpc`, `ingress`, `work`, or all three. Told how many
    processes of each role to run, it runs and supervises those instead; a role left at 0 is another
    host's. `reuse_port` lets several processes listen where this one does.

    `listen` and `ingress_port` take port 0 for any free one. `egress_allow` is a list of internal
    hosts and networks that connectors may reach (`chassis.addresses.parse_allow`). `lease_s` is how
    long a dead worker keeps what it had claimed, `drain_s` how long the runs of a tenant that is
    being deleted may go on. `retention_days` is how long events and executions are kept at least:
    they go by whole months, and never before two of them are over.

    The registry knows us by exactly one of: `service_key`, `service_token_file` (read again when it
    changes), or `client_certificate` with `client_key`. With `client_ca` our own callers must show
    a certificate of that authority. Only `trusted_proxies`, a list of networks, may say for whom
    they call (`x-forwarded-for`).

    `public_url` is where senders of webhooks reach the ingress: some sign it, and are not let in
    without it.

    With `seal_payloads` the bodies and headers of webhooks are kept sealed with their tenant's key;
    each event says whether it is.

    Metrics are served on `metrics_port`, or nowhere where it is 0; of several processes the first
    serves them there, each further one on the next port.
    """

    database_url: Secret
    system_database_url: Secret
    service_key: Secret | None = None
    service_token_file: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    registry: str = "127.0.0.1:50051"
    registry_ca: Path | None = None
    listen: str = "127.0.0.1:50052"
    certificate: Path | None = None
    private_key: Path | None = None
    client_ca: Path | None = None
    trusted_proxies: str = ""
    ingress_host: str = "127.0.0.1"
    ingress_port: int = INGRESS_PORT
    public_url: str = ""
    egress_allow: str = ""
    pool_size: int = 8
    concurrency: int = 512
    lease_s: float = 30.0
    drain_s: float = 60.0
    retention_days: int = 90
    seal_payloads: bool = True
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 9465
    role: str = ALL_ROLES
    rpc_processes: int = 0
    ingress_processes: int = 0
    work_processes: int = 0
    reuse_port: bool = False
    log_format: str = "json"
    log_level: str = "INFO"

    @property
    def processes(self) -> Mapping[str, int]:
        """How many processes of each role to run here."""
        return {
            "rpc": self.rpc_processes,
            "ingress": self.ingress_processes,
            "work": self.work_processes,
        }

    @property
    def supervises(self) -> bool:
        """Whether it runs other processes instead of doing anything itself."""
        return self.role == ALL_ROLES and any(self.processes.values())
