"""What the registry must be told: TENON_REGISTRY_*, each also as *_FILE."""

from dataclasses import dataclass
from pathlib import Path

from services.chassis.secret import Secret

PREFIX = "TENON_REGISTRY"


@dataclass(frozen=True, slots=True)
class Settings:
    """The registry's settings; keys are 64 hexadecimal digits.

    The key-encryption key comes from the first of these that is set (`keys.choosing`): `kms_key`,
    the id, ARN or alias of a key of AWS KMS, in `kms_region` or at `kms_endpoint` (a URL) unless
    the machine's own AWS settings say where; `key_encryption_key_file`, a keyring that may grow;
    `key_encryption_key`, a keyring that does not (`keys.keyrings`). The second is also the third's
    file form, so that both hold a value where the file is set: the file counts.

    `public_url` is where browsers reach the ingress, without a path: providers send them back
    there, and connect links begin with it. `return_urls` is a list, parted by commas, of where
    browsers may be sent besides (`chassis.endpoint_limits`). `refresh_timeout_s` bounds one call of
    a token endpoint, and with it the lease of a refresh; `refresh_cool_s` is waited after a first
    failure. A data key that was replaced opens what it sealed for `retired_key_days` more: longer
    than the executor keeps what it sealed.

    `issuers_file` lists whose signed tokens count (`issuers.Issuer`); `egress_allow` is a list of
    internal hosts and networks where their keys may be read, and providers' token endpoints called
    (`chassis.addresses.parse_allow`). With
    `client_ca` every caller must show a certificate of that authority. Only `trusted_proxies`, a
    list of networks, may say for whom they call (`x-forwarded-for`).

    API keys begin with `tnk_` and the `environment`.

    `retention_days` is how long the audit log is kept at least: it goes by whole months, and never
    before two of them are over. `anchor_file` is where signed anchors of the audit logs are also
    kept, a line each: best on a volume to which the database's administrators cannot write.
    """

    database_url: Secret
    system_database_url: Secret
    fingerprint_key: Secret
    pepper: Secret
    key_encryption_key: Secret | None = None
    key_encryption_key_file: Path | None = None
    kms_key: str = ""
    kms_endpoint: str = ""
    kms_region: str = ""
    listen: str = "127.0.0.1:50051"
    certificate: Path | None = None
    private_key: Path | None = None
    client_ca: Path | None = None
    issuers_file: Path | None = None
    egress_allow: str = ""
    trusted_proxies: str = ""
    environment: str = "local"
    pool_size: int = 8
    public_url: str = ""
    return_urls: str = ""
    refresh_timeout_s: float = 20
    refresh_cool_s: float = 30
    retired_key_days: int = 200
    retention_days: int = 90
    anchor_file: Path | None = None
    log_format: str = "json"
    log_level: str = "INFO"
