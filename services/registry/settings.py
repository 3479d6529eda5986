"""What the registry must be told: TENON_REGISTRY_*, each also as *_FILE."""

from dataclasses import dataclass
from pathlib import Path

from services.chassis.secret import Secret

PREFIX = "TENON_REGISTRY"


@dataclass(frozen=True, slots=True)
class Settings:
    """The registry's settings; keys are 64 hexadecimal digits."""

    database_url: Secret
    system_database_url: Secret
    key_encryption_key: Secret
    fingerprint_key: Secret
    pepper: Secret
    listen: str = "127.0.0.1:50051"
    certificate: Path | None = None
    private_key: Path | None = None
    pool_size: int = 8
    log_format: str = "json"
    log_level: str = "INFO"
