"""Key-encryption keys from a keyring: in a file that may grow, or in the environment."""

import asyncio
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from services.chassis import envelope
from services.chassis.secret import Secret
from services.chassis.settings import SettingsError
from services.registry.keys import keyrings
from services.registry.keys.providers import KeyMissing, Material
from services.registry.settings import PREFIX

log = logging.getLogger(__name__)

SETTING: Final = f"{PREFIX}_KEY_ENCRYPTION_KEY"
READABLE_BY_OTHERS: Final = stat.S_IRGRP | stat.S_IROTH

# Tells whether a file is still the one that was read: modified in ns, inode, bytes.
Stamp = tuple[int, int, int]


class FileKeys:
    """A keyring in a file, read anew when it has changed.

    Where a new version has no line yet, one with 32 random bytes is added: whole or not at all, and
    the same for all processes of one host. Registries on several hosts agree by having the line in
    all of their files before the version is made.
    """

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[Stamp, Mapping[int, Secret]] | None = None
        self._warned = False

    async def make(self, version: int) -> Material:
        """The key in the version's line; the line is added where there is none. KeyMissing."""
        return Material(await asyncio.to_thread(self._make, version))

    async def open(self, version: int, reference: str, wrapped: bytes) -> Secret:
        """The key in the version's line. Raises KeyMissing."""
        del reference, wrapped
        key = (await asyncio.to_thread(self._keys)).get(version)
        if key is None:
            raise KeyMissing(
                f"{self._path} has no key of version {version}: copy the line that begins with "
                f"`{version}:` from the file of a registry that has it"
            )
        return key

    def _make(self, version: int) -> Secret:
        if (key := self._keys().get(version)) is not None:
            return key
        # A mounted secret is often a link, which is to stay one.
        target = self._path.resolve()
        try:
            with _alone(target):
                if version not in self._keys():
                    self._add(target, version)
        except OSError as error:
            raise KeyMissing(
                f"{self._path} has no key of version {version} and cannot be written: add a line "
                f"`{version}:{keyrings.LINE}` to it on every registry ({error.strerror})"
            ) from None
        return self._keys()[version]

    def _add(self, target: Path, version: int) -> None:
        # A folder may be writable around a file that its owner has made read-only.
        with target.open("r+") as file:
            text = keyrings.extended(file.read(), version, envelope.new_key())
        _replace(target, text.encode())
        log.warning(
            "%s has a key of version %d now: keep a copy, and add the line on every other host",
            self._path,
            version,
        )

    def _keys(self) -> Mapping[int, Secret]:
        """What the file holds now. Raises KeyMissing where it cannot be read."""
        try:
            with self._path.open("rb") as file:
                now = os.fstat(file.fileno())
                self._warn_of_readers(now.st_mode)
                stamp = (now.st_mtime_ns, now.st_ino, now.st_size)
                if self._read is None or self._read[0] != stamp:
                    self._read = (stamp, keyrings.parse(file.read().decode()))
                return self._read[1]
        except OSError as error:
            raise KeyMissing(
                f"{self._path}, which {SETTING}_FILE names, cannot be read: {error.strerror}"
            ) from None
        except UnicodeDecodeError:
            # The decoder's own error carries the bytes.
            raise KeyMissing(f"{self._path} is not text") from None
        except keyrings.KeyringError as error:
            raise KeyMissing(_of(self._path, error)) from None

    def _warn_of_readers(self, mode: int) -> None:
        if mode & READABLE_BY_OTHERS and not self._warned:
            self._warned = True
            log.warning("%s can be read by others than its owner: take that from them", self._path)


class EnvironmentKeys:
    """A keyring in a setting, as it was when the process started; nothing can be added to it."""

    name = "environment"

    def __init__(self, text: Secret) -> None:
        """Raises SettingsError for what is no keyring, or an empty one."""
        try:
            self._keys = keyrings.parse(text.reveal_text())
        except keyrings.KeyringError as error:
            raise SettingsError(_of(SETTING, error)) from None
        except ValueError:
            raise SettingsError(f"{SETTING} is not text") from None
        if not self._keys:
            raise SettingsError(f"{SETTING} has no key: set it to `1:{keyrings.LINE}`")

    async def make(self, version: int) -> Material:
        """The key in the version's line. Raises KeyMissing where there is none."""
        return Material(self._key(version, f"add a line `{version}:{keyrings.LINE}` to it"))

    async def open(self, version: int, reference: str, wrapped: bytes) -> Secret:
        """The key in the version's line. Raises KeyMissing."""
        del reference, wrapped
        return self._key(version, f"add the line that began with `{version}:` to it again")

    def _key(self, version: int, advice: str) -> Secret:
        if version not in self._keys:
            raise KeyMissing(
                f"{SETTING} has no key of version {version}: {advice} and restart every registry"
            )
        return self._keys[version]


def _of(place: object, error: keyrings.KeyringError) -> str:
    return "\n".join(f"{place}: {fault}" for fault in str(error).splitlines())


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the lock beside a file, which the file's owner may take as well. Raises OSError."""
    like = target.stat()
    descriptor = os.open(target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _own(descriptor, like)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(target: Path, content: bytes) -> None:
    """Put a whole new file in the place of one, with its mode and owner. Raises OSError."""
    like = target.stat()
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            _own(file.fileno(), like)
            os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    _sync(target.parent)


def _own(descriptor: int, like: os.stat_result) -> None:
    now = os.fstat(descriptor)
    if (now.st_uid, now.st_gid) != (like.st_uid, like.st_gid):
        os.fchown(descriptor, like.st_uid, like.st_gid)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
