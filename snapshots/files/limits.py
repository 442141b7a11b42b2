"""How many readers run at once: two of a customer in all web processes, and half of the threads of one process."""

import time
from threading import BoundedSemaphore
from uuid import uuid4

from django.conf import settings
from django.utils.translation import gettext as _

from cng_portal.accounts.models import Customer
from cng_portal.monitoring.leases import acquire_lease, release_lease

from ..errors import RateLimited

READERS_OF_CUSTOMER = 2
# A client that takes longer for a piece of a download (children.PIECE) is gone: it would keep a thread, a reader, and the
# space of a snapshot that is deleted.
SEND_SECONDS = 120
# After which the place of a process that died is free. Longer than a piece takes to read and to send, and the wait for the
# next renewal; otherwise slow clients would lose theirs, and a customer would have more than two.
LEASE_SECONDS = 180
RENEW_AFTER = 20
WAIT_SECONDS, PAUSE_SECONDS = 2, 0.2

# A download takes a thread for as long as it takes. The others must stay for pages.
_threads = BoundedSemaphore(max(1, settings.WEB_THREADS // 2))


class ReaderSlot:
    """The right to run one reader. `release` it in the end."""

    def __init__(self, customer: Customer) -> None:
        """Wait a moment for a free slot. Raises RateLimited."""
        self.names = [f"files-{customer.number}-{number}" for number in range(READERS_OF_CUSTOMER)]
        self.holder = str(uuid4())
        self.threads = _threads
        if not self.threads.acquire(timeout=WAIT_SECONDS):
            raise RateLimited(_("The portal is reading many disks right now. Try again in a minute."))
        try:
            self.name = self._acquire()
        except BaseException:
            self.threads.release()
            raise
        self.renewed_at = time.monotonic()
        self.is_held = True

    def _acquire(self) -> str:
        until = time.monotonic() + WAIT_SECONDS
        while True:
            for name in self.names:
                if acquire_lease(name, holder=self.holder, seconds=LEASE_SECONDS):
                    return name
            if time.monotonic() > until:
                raise RateLimited(
                    _(
                        "Two files of your account are being read already. Try again when a download has ended, or "
                        "cancel one."
                    )
                )
            time.sleep(PAUSE_SECONDS)

    def renew(self) -> bool:
        """Extend the lease for a longer read. Returns False if another reader has taken the slot."""
        if time.monotonic() - self.renewed_at < RENEW_AFTER:
            return True
        self.renewed_at = time.monotonic()
        return acquire_lease(self.name, holder=self.holder, seconds=LEASE_SECONDS)

    def release(self) -> None:
        """A second call does nothing."""
        if self.abandon():
            release_lease(self.name, holder=self.holder)

    def abandon(self) -> bool:
        """Release it without the database, in which its lease expires. Returns whether it was held."""
        was_held, self.is_held = self.is_held, False
        if was_held:
            self.threads.release()
        return was_held

    def __enter__(self) -> "ReaderSlot":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()
