"""What the registry must be told: TENON_REGISTRY_*, each also as *_FILE."""

from dataclasses import dataclass
from pathlib import Path

from services.chassis.secret import Secret

PREFIX = "TENON_REGISTRY"


@dataclass(frozen=True, slots=True)
class Settings:
    """The registry's settings; keys are 64 hexadecimal digits.

    `retention_days` is how long the audit log is kept at least: it goes by whole months, and never
    before two of them are over.
    """

    database_url: Secret
    system_database_url: Secret
    key_encryption_key: Secret
    fingerprint_key: Secret
    pepper: Secret
    listen: str = "127.0.0.1:50051"
    certificate: Path | None = None
    private_key: Path | None = None
    pool_size: int = 8
    retention_days: int = 90
    log_format: str = "json"
    log_level: str = "INFO"
