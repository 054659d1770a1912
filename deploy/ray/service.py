"""Wisp under Ray Serve: every replica is a whole Wisp, with a model and guests of its own, and answers what Wisp does.

    serve run deploy.ray.service:app

Settings are Wisp's WISP_* variables, as the replicas' processes see them. The address is Ray's own, 127.0.0.1 unless
its configuration says otherwise, and Wisp can't see it: WISP_PUBLISHED states it where other machines reach it.
"""

import os
from typing import TYPE_CHECKING

from ray import serve

from service.guest.code_cache import user_cache_folder
from service.http.api_keys import is_local, read_api_keys, refuse_to_expose
from service.http.app import Engine, create_app
from service.settings import read_settings
from service.transcription.memory import keep_little

if TYPE_CHECKING:
    from starlette.applications import Starlette

CPUS = 2  # of one replica: as many transcriptions compute at once by default (WISP_WORKERS)
GPUS = float(os.environ.get("WISP_RAY_GPUS", "0"))  # of one replica; several may share a GPU: 0.25
MAX_REPLICAS = int(os.environ.get("WISP_RAY_MAX_REPLICAS", "4"))


def build() -> "Starlette":
    """One replica's application; Ray runs its lifespan, which loads the model. Raises StartError."""
    keep_little()
    settings = read_settings(os.environ)
    keys = read_api_keys(settings)
    refuse_to_expose(settings, keys)
    engine = Engine(settings, cache_folder=user_cache_folder())
    return create_app(engine, keys=keys, check_host=is_local(settings))


app = serve.deployment(
    serve.ingress(build)(),
    name="Wisp",
    ray_actor_options={"num_cpus": 0 if GPUS else CPUS, "num_gpus": GPUS},
    # A replica has its own bounded queue and says 429 when it is full: Ray only has to let that many through.
    max_ongoing_requests=256,
    autoscaling_config={"min_replicas": 1, "max_replicas": MAX_REPLICAS, "target_ongoing_requests": 4},
    graceful_shutdown_timeout_s=35,
).bind()
