"""Wisp under Ray Serve: every replica is a complete Wisp with its own model and guests, and the same API.

    serve run deploy.ray.service:app

Settings are Wisp's WISP_* variables in the replicas' environment. Ray owns the listening address, 127.0.0.1 unless
configured otherwise, and Wisp cannot see it: set WISP_PUBLISHED if other machines can reach it.
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

CPUS = 2  # per replica: as many transcriptions compute in parallel by default (WISP_WORKERS)
GPUS = float(os.environ.get("WISP_RAY_GPUS", "0"))  # per replica; several may share a GPU: 0.25
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
    # A replica has its own bounded queue and returns 429 when it is full, so Ray must let that many requests through.
    max_ongoing_requests=256,
    autoscaling_config={"min_replicas": 1, "max_replicas": MAX_REPLICAS, "target_ongoing_requests": 4},
    graceful_shutdown_timeout_s=35,
).bind()
