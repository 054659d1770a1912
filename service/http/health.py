"""Whether the server is of use now, and whether it can ever be again.

Has a window of audio lately been transcribed, and if not, can one be? Separates failures that only a restart fixes.
"""

import asyncio
import logging
import math
import threading
import time

from service.errors import NotReady, WispError
from service.transcription.engine import Engine
from service.transcription.run import Run
from service.transcription.transcriber import Transcriber

log = logging.getLogger("wisp")

AFTER_FAILURE_S = 5.0  # how soon after a failed probe there may be another
PROBE_SHARE = 1 / 20  # of the time is what probes may take, however slow the model is
TICK_S = 0.02  # how late the end of a probe is seen
GPU_FAILURES = 3  # in a row, after which a new process is wanted
HANG_S = 600.0  # without one step of any computation, while a probe wants to compute


class Health:
    """What /readyz and /healthz ask. At most one probe runs, in a thread of its own, and only when /readyz is asked."""

    def __init__(self, engine: Engine, *, fresh_s: float, limit_s: float, hang_s: float = HANG_S) -> None:
        """A success is proof for `fresh_s` seconds. Then a probe may take `limit_s`, else the server is stuck.

        After `hang_s` in which nothing moves it will stay so.
        """
        self.engine, self.fresh_s, self.limit_s, self.hang_s = engine, fresh_s, limit_s, hang_s
        self.is_stopping = False
        self._lock = threading.Lock()
        self._probe: threading.Thread | None = None
        self._failed_at = -math.inf  # the latest probe
        self._began_at = -math.inf
        self._took_s = 0.0  # the latest probe that succeeded
        self._run = Run()  # the latest probe's

    def stop(self) -> None:
        """From now on the server is not ready: it ends. Nothing probes any more."""
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
        # A model that has left memory for want of use comes back for a request; a probe is none.
        if transcriber.is_proven(oldest) or not (self.engine.is_loaded() or transcriber.model.device_failures):
            return
        probe = self._begin(transcriber)
        while probe and probe.is_alive() and not transcriber.is_proven(oldest):
            if not self.engine.is_loaded() and not transcriber.model.device_failures:
                return  # it has made room for another meanwhile
            if time.monotonic() - asked_at > self.limit_s:
                log.error("not ready: a probe has not ended in %g s", self.limit_s)
                break
            await asyncio.sleep(TICK_S)
        if not transcriber.is_proven(oldest):
            raise NotReady("No transcription has succeeded of late, nor does one now; the server's log says more.")

    def liveness(self) -> None:
        """Return unless nothing but a new process can help. Raises NotReady: not loaded, the GPU lost, hanging."""
        engine, probe = self.engine, self._probe
        transcriber = engine.transcriber
        if transcriber is None:
            if engine.loaded.done():
                raise NotReady("The model could not be loaded; the server has to be restarted.")
            return
        if transcriber.model.device_failures >= GPU_FAILURES:
            raise NotReady("The GPU has failed again and again; the server has to be restarted.")
        still_s = time.monotonic() - max(self._began_at, transcriber.moved_at)
        if probe is not None and probe.is_alive() and still_s > self.hang_s:
            raise NotReady(f"Nothing has been computed for {still_s:.0f} s; the server has to be restarted.")

    def _begin(self, transcriber: Transcriber) -> threading.Thread | None:
        """The probe that runs, or a new one; None so soon after one that has failed."""
        with self._lock:
            if self._probe is not None and self._probe.is_alive():
                return self._probe
            if time.monotonic() - self._failed_at < AFTER_FAILURE_S:
                return None
            self._run = Run()
            if self.is_stopping:
                self._run.cancel()
            self._probe = threading.Thread(target=self._try, args=(transcriber,), name="wisp-probe", daemon=True)
            self._began_at = time.monotonic()
            self._probe.start()
            return self._probe

    def _try(self, transcriber: Transcriber) -> None:
        started = time.monotonic()
        try:
            self.engine.prove(transcriber, self._run)
            self._took_s = time.monotonic() - started
        except WispError as error:
            self._failed_at = time.monotonic()
            if not self.is_stopping:
                log.error("not ready, an inference failed: %s", error)
