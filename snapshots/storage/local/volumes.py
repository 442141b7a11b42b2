"""The images of volumes: opened under a lock, checked for their size, and replaced as a whole."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from django.utils.translation import gettext as _

from ..contract import GIB, Busy, InvalidImage, NotFound, Refused, StorageError, VolumeRef
from ..files import NotRegularFile, open_regular_file, opened, stat_regular_file
from .copying import sync_folder
from .folder import LocationFolder, created_file
from .locking import Locked, find_lock_holder, lock_image

VOLUME_MODE = 0o640


class VolumeFiles:
    """The caller holds the volume's lock for whatever changes it."""

    def __init__(self, folder: LocationFolder) -> None:
        self.folder = folder

    def exists(self, volume: VolumeRef) -> bool:
        """Raises Refused for a size that no volume can have, InvalidImage when its image has another one."""
        if volume.size_gb < 1:
            raise Refused(_("A volume has at least 1 GB. Choose a larger size."))
        try:
            self.stat(volume)
        except NotFound:
            return False
        return True

    def stat(self, volume: VolumeRef) -> os.stat_result:
        """Raises NotFound, InvalidImage."""
        status = self.stat_any_size(volume)
        check_size(volume, status)
        return status

    def stat_any_size(self, volume: VolumeRef) -> os.stat_result:
        """Raises NotFound, InvalidImage if it isn't a regular file."""
        with self._errors(volume):
            return stat_regular_file(self.folder.volume_path(volume.uuid), below=self.folder.path)

    @contextmanager
    def open(self, volume: VolumeRef, *, writing: bool, up_to_gb: int = 0) -> Iterator[int]:
        """Open the image for reading, and lock it against other programs. `writing`: we are going to replace or resize it.

        With `up_to_gb` it may have grown to that many GiB already. Raises NotFound, InvalidImage, Busy.
        """
        with ExitStack() as stack:
            with self._errors(volume):
                path = self.folder.volume_path(volume.uuid)
                file = stack.enter_context(opened(path, below=self.folder.path))
            lock_against_programs(file, volume.name, writing=writing)
            check_size(volume, os.fstat(file), up_to_gb)
            yield file

    def open_for_reading(self, volume: VolumeRef) -> int:
        """Return a read-only descriptor, which the caller closes, without a lock. Raises NotFound, InvalidImage."""
        with self._errors(volume):
            image = open_regular_file(self.folder.volume_path(volume.uuid), below=self.folder.path)
        try:
            check_size(volume, os.fstat(image))
        except InvalidImage:
            os.close(image)
            raise
        return image

    @contextmanager
    def replacement(self, volume: VolumeRef, mode: int = VOLUME_MODE) -> Iterator[int]:
        """Create a file that takes the place of the image when the block ends, and vanishes when it fails.

        The block syncs the content.
        """
        path = self.folder.hidden_path(self.folder.volumes, volume.uuid, "new")
        path.unlink(missing_ok=True)  # left by a process that died
        try:
            with created_file(path, mode) as target:
                yield target
            path.replace(self.folder.volume_path(volume.uuid))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        sync_folder(self.folder.volumes)

    def delete(self, volume: VolumeRef) -> None:
        self.folder.hidden_path(self.folder.volumes, volume.uuid, "new").unlink(missing_ok=True)
        try:
            with self.open(volume, writing=True):
                self.folder.volume_path(volume.uuid).unlink()
        except NotFound:
            return
        sync_folder(self.folder.volumes)

    @contextmanager
    def _errors(self, volume: VolumeRef) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            message = _(
                "The disk of the volume “%(name)s” is not in the storage of %(location)s. Contact your provider."
            )
            raise NotFound(message % {"name": volume.name, "location": self.folder.location}) from error
        except NotRegularFile as error:
            message = _(
                "The disk of the volume “%(name)s” is not a regular file. Nothing was changed. Contact your provider."
            )
            raise InvalidImage(message % {"name": volume.name}) from error


def check_size(volume: VolumeRef, status: os.stat_result, up_to_gb: int = 0) -> None:
    """Raises InvalidImage unless the image has the volume's size, Refused when it would have to shrink to `up_to_gb`."""
    if up_to_gb and max(status.st_size, volume.size_gb * GIB) > up_to_gb * GIB:
        raise Refused(_("The volume “%(name)s” can't shrink. Choose a larger size.") % {"name": volume.name})
    if not volume.size_gb * GIB <= status.st_size <= max(volume.size_gb, up_to_gb) * GIB:
        raise InvalidImage(
            _(
                "The disk of the volume “%(name)s” has %(bytes)s bytes, which is not the volume's size of %(size)s GB. "
                "Nothing was changed. Contact your provider."
            )
            % {"name": volume.name, "bytes": f"{status.st_size:,}", "size": volume.size_gb}
        )


def lock_against_programs(file: int, name: str, *, writing: bool) -> None:
    """Raises Busy with the volume's name and, where that is known, the program that uses the image."""
    try:
        lock_image(file, writing=writing)
    except Locked as error:
        raise describe_lock(file, name) from error


def describe_lock(file: int, name: str) -> StorageError:
    if holder := find_lock_holder(file):
        message = _("The volume “%(name)s” is in use by %(program)s (process %(pid)s). Stop it, then try again.")
        return Busy(message % {"name": name, "program": holder[0], "pid": holder[1]})
    message = _("The volume “%(name)s” is in use by another program. Stop what uses it, then try again.")
    return Busy(message % {"name": name})
