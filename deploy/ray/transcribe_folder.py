"""A Ray Data job that transcribes every audio file of a folder into Parquet, one row per file.

    python -m deploy.ray.transcribe_folder FOLDER OUT [--concurrency N] [--cpus C] [--gpus G] [--embedded]

FOLDER and OUT are paths that every node sees, or URLs that Ray supports (s3://…). Settings are Wisp's WISP_* variables.
A file that cannot be transcribed also gets a row, with the reason in `error`. The job fails on a node with only the
embedded model, unless --embedded allows it, so that nobody collects its mistakes by accident.
"""

import argparse
import io
import json
import os

import pyarrow
import ray

from service.audio.decode import decode
from service.errors import ModelError, WispError
from service.http.app import Engine
from service.http.formats import segment_object
from service.models.better import embedded_notice
from service.models.places import EMBEDDED_NAME
from service.settings import read_settings
from service.transcription.memory import keep_little
from service.transcription.transcriber import Options

# Explicit rather than inferred: in a Parquet file with only failed rows, the text column would get another type.
SCHEMA = pyarrow.schema(
    {
        "path": pyarrow.string(),
        "text": pyarrow.string(),
        "language": pyarrow.string(),
        "duration": pyarrow.float64(),  # seconds
        "segments": pyarrow.string(),  # JSON, as in the API's verbose_json
        "error": pyarrow.string(),
    }
)


class Transcribe:
    """One actor: transcribes file after file with its own engine, loaded once."""

    def __init__(self, may_be_embedded: bool) -> None:
        keep_little()
        self._settings = read_settings(os.environ)
        engine = Engine(self._settings)
        if engine.read().spec.name == EMBEDDED_NAME and not may_be_embedded:
            raise ModelError(f"{embedded_notice(self._settings)} Or allow it with --embedded.")
        self._transcriber = engine.load()

    def __call__(self, files: pyarrow.Table) -> pyarrow.Table:
        """Columns path and bytes → SCHEMA's, one row per file."""
        return pyarrow.Table.from_pylist([self._row(file["path"], file["bytes"]) for file in files.to_pylist()], SCHEMA)

    def _row(self, path: str, content: bytes) -> dict[str, str | float]:
        try:
            audio = decode(io.BytesIO(content), max_seconds=self._settings.max_audio_s)
            result = self._transcriber.transcribe(audio, Options())
        except WispError as error:
            return {"path": path, "error": str(error)}
        segments = [segment_object(segment) for segment in result.segments]
        return {
            "path": path,
            "text": result.text,
            "language": result.language,
            "duration": result.duration,
            "segments": json.dumps(segments, ensure_ascii=False),
        }


def transcribe_folder(
    folder: str, out: str, *, concurrency: int, cpus: float = 2, gpus: float = 0, may_be_embedded: bool = False
) -> None:
    """Transcribes the files of `folder` and writes Parquet files into `out`; `cpus` and `gpus` are an actor's."""
    transcribed = ray.data.read_binary_files(folder, include_paths=True).map_batches(
        Transcribe,
        fn_constructor_args=(may_be_embedded,),
        batch_size=1,  # whole files lie in memory, so one at a time
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=concurrency),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    transcribed.write_parquet(out)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--concurrency", type=int, default=1, help="actors, each with a model of its own")
    parser.add_argument("--cpus", type=float, default=2, help="processors of one actor")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of one actor; 0.25 lets four share one")
    parser.add_argument("--embedded", action="store_true", help="accept the embedded model, with its mistakes")
    options = parser.parse_args()
    transcribe_folder(
        options.folder,
        options.out,
        concurrency=options.concurrency,
        cpus=options.cpus,
        gpus=options.gpus,
        may_be_embedded=options.embedded,
    )


if __name__ == "__main__":
    main()
