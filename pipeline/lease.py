"""One writer per table: a lease with an owner, a heartbeat and an expiry, on nothing but put-if-absent.

Leases are numbered, ``lease/000007.json``; the highest number is the one that counts. Whoever finds it released,
expired or owned by a dead process of this machine creates the next number, and of several only one can. Clocks of
machines differ and jump, so that one which looks expired is first watched: if its heart beats, it counts. An owner that
could not renew in time, or sees a higher number, stops before its next commit.
"""

import logging
import os
import socket
import threading
import time
import uuid
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import IncompleteError, InputError, LeaseHeldError
from pipeline.filesystem import STORE_ERRORS
from pipeline.seal import seal
from pipeline.store import Store

logger = logging.getLogger(__name__)

EXPIRES_S = 60.0  # how long a run that lost its machine keeps others out
RENEW_S = 10.0  # several tries before the lease runs out


def holder(store: Store, folder: str) -> str | None:
    """Name who holds a folder's lease; None if nobody does, or only somebody who is dead or has not renewed it."""
    held = _held(store, folder)
    return None if held is None else f"process {held['pid']} on {held['host']} since {held['since']}"


def held_since_s(store: Store, folder: str) -> float | None:
    """Tell when the lease that is held was taken, in seconds since 1970; None where `holder` names nobody."""
    held = _held(store, folder)
    return None if held is None else datetime.fromisoformat(held["since"]).timestamp()


class Lease:
    """Hold the lease of one folder of a store while inside ``with``.

    Raises:
        LeaseHeldError: on entering, if another run holds it.
    """

    def __init__(self, store: Store, folder: str, expires_s: float = EXPIRES_S, renew_s: float = RENEW_S) -> None:
        self.store = store
        self.folder = f"{folder}/lease"
        self.expires_s = expires_s
        self.renew_s = renew_s
        self.number = 0
        self.since_s = time.time()
        self.since = _text(self.since_s)
        self.lost: str | None = None
        self._renewed = 0.0  # on this machine's own clock
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        while not self.take():
            pass
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._heart.join()
        if self.lost is None:
            try:
                self.release()
            except STORE_ERRORS as failure:  # it runs out by itself; what ended the run is what should be heard
                logger.warning("lease=%s not released: %s", self.folder, failure)

    def check(self) -> None:
        """Stop a run that may no longer write.

        Raises:
            IncompleteError: the lease was taken over, or could not be renewed in time.
        """
        silent_s = _clock_s() - self._renewed
        if self.lost is None and silent_s > self.expires_s - self.renew_s:
            self.lost = f"could not be renewed for {silent_s:.0f} s"
        if self.lost is not None:
            raise IncompleteError(f"lease {self.folder}: {self.lost}; run the same command again")

    def newest(self) -> dict[str, Any] | None:  # as _read
        """Read the lease that counts, whoever holds it; None if there never was one."""
        return self._read(self._newest())

    def confirm(self) -> None:
        """Check as `check` does, and look once more whether anybody took over: before anything is removed.

        Raises:
            IncompleteError: the lease was taken over, or could not be renewed in time.
        """
        if self._newest() != self.number:
            self.lost = "was taken over by another run"
        self.check()

    def take(self) -> bool:
        """Take the next number if the newest lease no longer counts; False if somebody else was faster.

        Raises:
            LeaseHeldError: it counts, and is another's.
        """
        newest = self._newest()
        if newest:
            held = self._read(newest)
            if held is not None and held["token"] == self._token:
                return True  # created after all, by a request whose answer was lost
            if held is not None and not _is_free(held) and not self._is_silent(newest, held):
                raise LeaseHeldError(
                    f"table is being written by another run: lease {self._name(newest)} is held by process "
                    f"{held['pid']} on {held['host']} since {held['since']}; wait for it, or {self.expires_s:.0f} s "
                    f"after its last sign of life at {held['renewed']}"
                )
        self.number = newest + 1
        self._renewed = _clock_s()
        try:
            self.store.create(self._name(self.number), self._content(released=False))
        except FileExistsError:
            return False
        if self._newest() != self.number:  # an old number, freed by a vacuum while we looked
            return False
        for number in range(max(1, newest - 1), self.number):
            self.store.remove(self._name(number))
        return True

    def _beat(self) -> None:
        while not self._stop.wait(self.renew_s):
            try:
                if self._newest() != self.number:
                    self.lost = "was taken over by another run"
                    return
                self.renew()
            except STORE_ERRORS as error:  # the next beat tries again; check() ends the run if none succeeds
                logger.warning("lease=%s not renewed: %s", self.folder, error)

    def renew(self) -> None:
        """Say that the owner is alive."""
        asked = _clock_s()  # before the request: what others read can be no younger
        self.store.replace(self._name(self.number), self._content(released=False))
        self._renewed = asked

    def release(self) -> None:
        """Let the next run have it at once."""
        self.store.replace(self._name(self.number), self._content(released=True))

    def _is_silent(self, number: int, held: dict[str, Any]) -> bool:
        """Tell whether an owner that should have renewed, by our clock, does not for as long as its lease lasts.

        By then it has stopped by its own clock, whatever that says: see `check`.
        """
        expires_s, renew_s = held["expires_s"], held.get("renew_s", RENEW_S)
        if 0 <= time.time() - held["renewed_s"] <= expires_s:
            return False
        logger.info(
            "lease=%s looks expired; watching for %.0f s whether process %s on %s is alive",
            self.folder, expires_s, held["pid"], held["host"],
        )  # fmt: skip
        until = _clock_s() + expires_s
        while _clock_s() < until:
            time.sleep(renew_s)
            if self._newest() != number or self._read(number) != held:
                return False
        return True

    def _newest(self) -> int:
        names = [name.removesuffix(".json") for name in self.store.files(self.folder)]
        return max((int(name) for name in names if name.isdigit()), default=0)

    def _read(self, number: int) -> dict[str, Any] | None:  # values are text, numbers and a flag
        try:
            held: dict[str, Any] = self.store.read_json(self._name(number))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InputError(
                f"lease {self._name(number)} is damaged ({error}); if no run writes here, remove it"
            ) from error
        return held

    def _name(self, number: int) -> str:
        return f"{self.folder}/{number:06d}.json"

    def _content(self, *, released: bool) -> bytes:
        now_s = time.time()
        held = {
            "token": self._token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": _process_identity(os.getpid()),
            "since": self.since,
            "renewed": _text(now_s),
            "renewed_s": now_s,
            "expires_s": self.expires_s,
            "renew_s": self.renew_s,
            "released": released,
        }
        return seal(held)


def _held(store: Store, folder: str) -> dict[str, Any] | None:  # as Lease._read
    held = Lease(store, folder).newest()
    if held is None or _is_free(held) or time.time() - held["renewed_s"] > held["expires_s"]:
        return None
    return held


def _is_free(held: dict[str, Any]) -> bool:
    if held["released"]:
        return True
    ours = _process_identity(os.getpid())
    same_machine = ours is not None and held["process"] is not None and held["process"][:2] == ours[:2]
    return same_machine and _process_identity(held["pid"]) != held["process"]


def _process_identity(pid: int) -> list[str] | None:
    """Name a process so that nothing else has the name: boot, pid namespace, start time; None where /proc is not."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink().name
        # Field 22 of /proc/<pid>/stat is the start time; the second field may hold spaces (man proc_pid_stat).
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else [boot, namespace, fields[18]]


def _clock_s() -> float:
    """Read a clock that nobody sets and that runs on while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _text(at_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))
