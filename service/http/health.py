"""Health checks: can the server transcribe now, and can it ever again without a restart?

It can if a window of audio was transcribed recently, or if a probe succeeds. Separates failures that only a restart
fixes.
"""

import asyncio
import logging
import math
import threading
import time

from service.errors import ClientGone, NotReady, WispError
from service.transcription.engine import Engine
from service.transcription.run import Run
from service.transcription.transcriber import Transcriber

log = logging.getLogger("wisp")

AFTER_FAILURE_S = 5.0  # minimum time between a failed probe and the next
PROBE_SHARE = 1 / 20  # maximum share of the time that probes take, however slow the model is
TICK_S = 0.02  # how often a probe is checked
GPU_FAILURES = 3  # in a row, after which a restart is needed
HANG_S = 600.0  # without any step of a computation while a probe waits to compute


class Health:
    """Answers /readyz and /healthz. At most one probe runs, in its own thread, and only when /readyz is asked."""

    def __init__(self, engine: Engine, *, fresh_s: float, limit_s: float, hang_s: float = HANG_S) -> None:
        """A success counts for `fresh_s` seconds. After that a probe may take `limit_s`, else the server is stuck.

        After `hang_s` without any progress it needs a restart.
        """
        self.engine, self.fresh_s, self.limit_s, self.hang_s = engine, fresh_s, limit_s, hang_s
        self.is_stopping = False
        self._lock = threading.Lock()
        self._probe: threading.Thread | None = None
        self._failed_at = -math.inf  # the latest failed probe
        self._began_at = -math.inf
        self._took_s = 0.0  # the latest successful probe
        self._run = Run()  # the latest probe's

    def stop(self) -> None:
        """Not ready from now on, because the server stops. No more probes."""
        self.is_stopping = True
        self._run.cancel()

    async def readiness(self) -> None:
        """Return if transcriptions work. Raises NotReady: loading, failed, stopping, or stuck."""
        if self.is_stopping:
            raise NotReady("The server is stopping.")
        if not self.engine.proven.done():
            raise NotReady("The model is still loading.")
        transcriber = self.engine.transcriber
        if transcriber is None:
            raise NotReady("The model could not be loaded; the server's log says why.")
        asked_at = time.monotonic()
        oldest = asked_at - max(self.fresh_s, self._took_s / PROBE_SHARE)
        probe: threading.Thread | None = None
        while not transcriber.is_proven(oldest):
            if not (self.engine.is_loaded() or transcriber.model.device_failures):
                self._run.cancel()  # a model that has left is loaded for requests, not for probes
                return
            probe = probe or self._begin(transcriber)
            if probe is None or not probe.is_alive():
                break
            if time.monotonic() - asked_at > self.limit_s:
                log.error("not ready: a probe has not ended in %g s", self.limit_s)
                break
            await asyncio.sleep(TICK_S)
        if not transcriber.is_proven(oldest):
            raise NotReady("No recent transcription has succeeded, and a probe fails too; the server's log says more.")

    def liveness(self) -> None:
        """Return unless only a restart helps. Raises NotReady: not loaded, the GPU lost, hanging."""
        engine, probe = self.engine, self._probe
        transcriber = engine.transcriber
        if transcriber is None:
            if engine.loaded.done():
                raise NotReady("The model could not be loaded; restart the server.")
            return
        if transcriber.model.device_failures >= GPU_FAILURES:
            raise NotReady("The GPU keeps failing; restart the server.")
        moved_at = max(found.moved_at for found in (transcriber, *engine.served.transcribers()))
        still_s = time.monotonic() - max(self._began_at, moved_at)
        if probe is not None and probe.is_alive() and still_s > self.hang_s:
            raise NotReady(f"Nothing has been computed for {still_s:.0f} s; restart the server.")

    def _begin(self, transcriber: Transcriber) -> threading.Thread | None:
        """The running probe or a new one; None too soon after a failed one."""
        with self._lock:
            if self._probe is not None and self._probe.is_alive() and not self._run.is_cancelled:
                return self._probe
            if time.monotonic() - self._failed_at < AFTER_FAILURE_S:
                return None
            self._run = Run()
            if self.is_stopping:
                self._run.cancel()
            self._probe = threading.Thread(
                target=self._try, args=(transcriber, self._run), name="wisp-probe", daemon=True
            )
            self._began_at = time.monotonic()
            self._probe.start()
            return self._probe

    def _try(self, transcriber: Transcriber, run: Run) -> None:
        started = time.monotonic()
        try:
            self.engine.prove(transcriber, run)
            self._took_s = time.monotonic() - started
        except ClientGone:
            pass
        except WispError as error:
            self._failed_at = time.monotonic()
            if not self.is_stopping:
                log.error("not ready, an inference failed: %s", error)
