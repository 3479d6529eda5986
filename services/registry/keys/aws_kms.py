"""Key-encryption keys that AWS KMS makes and opens; only here does anything speak to KMS.

KMS is asked once for each version in each start of a process, and never for a tenant's key.
"""

import asyncio
import logging
from typing import Any, Final

from services.chassis import envelope
from services.chassis.errors import TenonError
from services.chassis.redaction import remember
from services.chassis.secret import Secret
from services.chassis.settings import SettingsError
from services.registry.keys.providers import KeyMissing, KeyProviderDown, Material
from services.registry.settings import PREFIX

TIMEOUT_S: Final = 5.0
"""For a connection, and for an answer."""
ATTEMPTS: Final = 3
THROTTLED: Final = frozenset(
    {"ThrottlingException", "Throttling", "LimitExceededException", "RequestLimitExceeded"}
)


class AwsKms:
    """Data keys of one KMS key: `key_id` is its id, ARN or alias, `endpoint` a URL.

    Credentials, and the region where none is given, are the machine's own, as AWS documents for its
    SDKs. A data key opens only for the version that it was made for: KMS binds it to its context.
    """

    name = "aws_kms"

    def __init__(self, key_id: str, *, endpoint: str = "", region: str = "") -> None:
        """Raises SettingsError without boto3, or where region or endpoint cannot be used."""
        self._key_id = key_id
        self._client = _client(endpoint, region)

    async def make(self, version: int) -> Material:
        """A data key from KMS, which keeps nothing of it. Raises KeyMissing, KeyProviderDown."""
        answer = await self._ask(
            self._client.generate_data_key,
            KeyId=self._key_id,
            NumberOfBytes=envelope.KEY_BYTES,
            EncryptionContext=_context(version),
        )
        return Material(_plaintext(answer), answer["KeyId"], answer["CiphertextBlob"])

    async def open(self, version: int, reference: str, wrapped: bytes) -> Secret:
        """A data key opened by the KMS key it is of. Raises KeyMissing, KeyProviderDown."""
        answer = await self._ask(
            self._client.decrypt,
            KeyId=reference,
            CiphertextBlob=wrapped,
            EncryptionContext=_context(version),
        )
        return _plaintext(answer)

    async def _ask(self, operation: Any, **asked: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer: dict[str, Any] = await asyncio.to_thread(operation, **asked)
        except ClientError as error:
            raise _refused(error, asked["KeyId"]) from None
        except BotoCoreError as error:
            raise _unreached(error, asked["KeyId"]) from None
        return answer


def _client(endpoint: str, region: str) -> Any:
    try:
        from boto3.session import Session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise SettingsError(f"{PREFIX}_KMS_KEY needs boto3: pip install tenon[aws]") from None
    # Below this botocore logs whole answers, and with them keys in clear.
    logging.getLogger("botocore").setLevel(logging.INFO)
    config = Config(
        connect_timeout=TIMEOUT_S,
        read_timeout=TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
    )
    try:
        return Session().client(
            "kms", region_name=region or None, endpoint_url=endpoint or None, config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise SettingsError(
            f"{PREFIX}_KMS_KEY: see {PREFIX}_KMS_REGION and {PREFIX}_KMS_ENDPOINT: {error}"
        ) from None


def _context(version: int) -> dict[str, str]:
    return {"tenon:purpose": "key-encryption-key", "tenon:version": str(version)}


def _plaintext(answer: dict[str, Any]) -> Secret:
    return remember(Secret(answer.pop("Plaintext")))


def _refused(error: Any, key_id: str) -> TenonError:
    """What an answer of KMS that is no key means; its codes are in the reference of its API."""
    code = error.response["Error"]["Code"]
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    if status >= 500 or code in THROTTLED:
        return KeyProviderDown(f"KMS cannot answer for the key {key_id} now: {code}")
    return KeyMissing(
        f"KMS refuses the key {key_id}: {code}; see that it exists and is enabled, and that this "
        "registry may use it (kms:GenerateDataKey, kms:Decrypt)"
    )


def _unreached(error: Any, key_id: str) -> TenonError:
    """What became of a question that KMS has not answered: the way there is down, or not ours."""
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError

    kind = type(error).__name__
    if isinstance(error, HTTPClientError | NoConnection):
        return KeyProviderDown(f"KMS does not answer for the key {key_id}: {kind}")
    return KeyMissing(
        f"KMS cannot be asked for the key {key_id}: {kind}; see the AWS credentials and "
        f"{PREFIX}_KMS_KEY of this registry"
    )
