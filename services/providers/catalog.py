"""The catalog: every provider's manifest, by provider."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml
from pydantic import ValidationError

from services.chassis.constraints import did_you_mean
from services.chassis.errors import Internal, NotFound
from services.providers.manifest import Manifest


class UnknownProvider(NotFound):
    """No manifest has this provider's slug."""

    reason = "UNKNOWN_PROVIDER"


class ManifestInvalid(Internal):
    """A manifest that cannot be used; the message names the file and each field at fault."""

    reason = "MANIFEST_INVALID"


@dataclass(frozen=True, slots=True)
class Catalog:
    """All manifests, sorted by provider."""

    manifests: Mapping[str, Manifest]

    @classmethod
    def load(cls, root: Path = Path(__file__).parent) -> Self:
        """Read `<category>/<provider>.yaml` below `root`; raises ManifestInvalid for a bad one."""
        found = [_read(path) for path in sorted(root.glob("*/*.yaml"))]
        manifests = {m.provider: m for m in sorted(found, key=lambda m: m.provider)}
        if len(manifests) != len(found):
            raise ManifestInvalid("two categories hold a manifest of the same provider")
        return cls(manifests)

    def get(self, provider: str) -> Manifest:
        """The provider's manifest; raises UnknownProvider, which suggests the nearest one."""
        try:
            return self.manifests[provider]
        except KeyError:
            hint = did_you_mean(provider, list(self.manifests))
            raise UnknownProvider(f"no provider is called {provider!r}{hint}") from None

    def __iter__(self) -> Iterator[Manifest]:
        return iter(self.manifests.values())

    def __len__(self) -> int:
        return len(self.manifests)


def _read(path: Path) -> Manifest:
    place = f"{path.parent.name}/{path.name}"
    try:
        manifest = Manifest.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ManifestInvalid(f"{place}: {error}") from error
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'manifest'}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False)
        )
        raise ManifestInvalid(f"{place}: {faults}") from error
    if (manifest.category, manifest.provider) != (path.parent.name, path.stem):
        raise ManifestInvalid(f"{place}: category and provider must be those of the file's place")
    return manifest
