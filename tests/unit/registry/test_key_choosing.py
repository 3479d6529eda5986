"""Which provider makes new key-encryption keys, and which open old ones, by what is set."""

from pathlib import Path
from typing import Any

import pytest

from services.chassis.secret import Secret
from services.chassis.settings import SettingsError, load
from services.registry.keys.choosing import current, providers_of
from services.registry.settings import PREFIX, Settings

KEY, OTHER = "ab" * 32, "cd" * 32
KEYRINGS = {"file", "environment"}


def settings(**told: Any) -> Settings:
    """As a process reads them from its environment."""
    told |= dict.fromkeys(
        ("database_url", "system_database_url", "fingerprint_key", "pepper"), "any"
    )
    return load(Settings, PREFIX, {f"{PREFIX}_{name.upper()}": str(told[name]) for name in told})


@pytest.fixture
def keyring(tmp_path: Path) -> Path:
    path = tmp_path / "keyring"
    path.write_text(f"1:{KEY}\n")
    path.chmod(0o600)
    return path


@pytest.fixture(autouse=True)
def _aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")


def test_without_any_key_all_three_settings_are_named() -> None:
    with pytest.raises(SettingsError) as caught:
        current(settings())
    for name in ("KMS_KEY", "KEY_ENCRYPTION_KEY_FILE", "KEY_ENCRYPTION_KEY"):
        assert f"TENON_REGISTRY_{name}" in str(caught.value).replace(",", " ").split()
    assert providers_of(settings()) == {}


@pytest.mark.parametrize(
    ("told", "name", "names"),
    [
        ({"key_encryption_key": KEY}, "environment", KEYRINGS),
        ({"key_encryption_key_file": None}, "file", KEYRINGS),
        ({"key_encryption_key": OTHER, "key_encryption_key_file": None}, "file", KEYRINGS),
        ({"kms_key": "alias/tenon"}, "aws_kms", {"aws_kms"}),
        (
            {"kms_key": "alias/tenon", "key_encryption_key_file": None},
            "aws_kms",
            {"aws_kms"} | KEYRINGS,
        ),
    ],
)
async def test_what_is_set_decides(
    keyring: Path, told: dict[str, Any], name: str, names: set[str]
) -> None:
    told = {each: keyring if told[each] is None else told[each] for each in told}
    chosen = settings(**told, kms_region="eu-central-1")
    providers = providers_of(chosen)
    assert (current(chosen), set(providers)) == (name, names)
    assert providers[name].name == name
    for each in KEYRINGS & names:
        assert await providers[each].open(1, "", b"") == Secret(bytes.fromhex(KEY))


def test_kms_needs_to_be_told_where_it_is() -> None:
    with pytest.raises(SettingsError, match="TENON_REGISTRY_KMS_REGION"):
        providers_of(settings(kms_key="alias/tenon"))
    with pytest.raises(SettingsError, match="TENON_REGISTRY_KMS_ENDPOINT"):
        providers_of(settings(kms_key="k", kms_region="eu-central-1", kms_endpoint="nonsense"))


def test_kms_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "boto3.session", None)
    with pytest.raises(SettingsError, match=r"pip install tenon\[aws\]"):
        providers_of(settings(kms_key="alias/tenon"))
