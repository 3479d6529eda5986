"""Which providers of key-encryption keys a registry has, by what is set."""

from collections.abc import Mapping

from services.chassis.settings import SettingsError
from services.registry.keys.aws_kms import AwsKms
from services.registry.keys.key_files import EnvironmentKeys, FileKeys
from services.registry.keys.providers import KeyProvider
from services.registry.settings import PREFIX, Settings


def current(settings: Settings) -> str:
    """The name of the provider that new versions are made by. Raises SettingsError without any."""
    if settings.kms_key:
        return AwsKms.name
    if settings.key_encryption_key_file is not None:
        return FileKeys.name
    if settings.key_encryption_key is not None:
        return EnvironmentKeys.name
    raise SettingsError(
        f"no key, no start: set {PREFIX}_KMS_KEY, {PREFIX}_KEY_ENCRYPTION_KEY_FILE or "
        f"{PREFIX}_KEY_ENCRYPTION_KEY"
    )


def providers_of(settings: Settings) -> Mapping[str, KeyProvider]:
    """Every provider that is set, by name. Raises SettingsError for one that cannot be.

    The current one is not alone, since versions that another made stay openable while their keys
    are rewrapped. A keyring answers to both names of keyrings: a line that moves from the
    environment into a file is still the same key.
    """
    providers: dict[str, KeyProvider] = {}
    if settings.kms_key:
        providers[AwsKms.name] = AwsKms(
            settings.kms_key, endpoint=settings.kms_endpoint, region=settings.kms_region
        )
    if (keyring := _keyring(settings)) is not None:
        providers |= dict.fromkeys((FileKeys.name, EnvironmentKeys.name), keyring)
    return providers


def _keyring(settings: Settings) -> KeyProvider | None:
    if settings.key_encryption_key_file is not None:
        return FileKeys(settings.key_encryption_key_file)
    if settings.key_encryption_key is not None:
        return EnvironmentKeys(settings.key_encryption_key)
    return None
