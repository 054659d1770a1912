"""Real clients of /v1/realtime, which hear the recording as it is spoken: see try_clients.py.

Each is given an address and a key, and nothing else that it would not choose by itself.
"""

import asyncio
import base64
import os
import wave
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

URL = os.environ["WISP_URL"].removesuffix("/")  # with /v1
SPEECH = Path(os.environ["WISP_SPEECH"])  # a WAV file, 16 bits, mono
KEY = "none"
STEP_S = 0.05
PATIENCE_S = 30.0


def pcm(rate: int) -> bytes:
    """The recording as 16-bit samples at that rate, and a second of silence."""
    import numpy as np
    import soxr

    with wave.open(str(SPEECH)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        resampled = soxr.resample(samples.astype(np.float32), file.getframerate(), rate)
    return bytes(np.clip(resampled, -32768, 32767).astype("<i2").tobytes()) + bytes(2 * rate)


async def spoken(rate: int) -> AsyncIterator[bytes]:
    """The same in pieces, each when it has been said."""
    data, size = pcm(rate), int(rate * STEP_S) * 2
    for first in range(0, len(data), size):
        yield data[first : first + size]
        await asyncio.sleep(STEP_S)


async def openai_client() -> str:
    """openai: AsyncOpenAI().realtime, without a session.update."""
    import openai

    client = openai.AsyncOpenAI(base_url=URL, api_key=KEY)
    texts: list[str] = []
    async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:

        async def speak() -> None:
            async for piece in spoken(24_000):
                await connection.input_audio_buffer.append(audio=base64.b64encode(piece).decode())
            await connection.input_audio_buffer.commit()

        speaking, n_items = asyncio.create_task(speak()), 0
        async with asyncio.timeout(PATIENCE_S):
            while not speaking.done() or n_items > len(texts) or not n_items:
                event = await connection.recv()
                n_items += event.type == "input_audio_buffer.committed"
                if event.type == "conversation.item.input_audio_transcription.completed":
                    texts.append(event.transcript)
                assert event.type not in ("error", "conversation.item.input_audio_transcription.failed"), event
        await speaking
    return " ".join(texts)


async def openai_secret() -> str:
    """openai: a client secret made by one client, used by another."""
    import openai

    made = await openai.AsyncOpenAI(base_url=URL, api_key=KEY).realtime.client_secrets.create(
        session={"type": "transcription", "audio": {"input": {"turn_detection": None}}},
    )
    client = openai.AsyncOpenAI(base_url=URL, api_key=made.value)
    async with client.realtime.connect() as connection:
        await connection.input_audio_buffer.append(audio=base64.b64encode(pcm(24_000)).decode())
        await connection.input_audio_buffer.commit()
        async with asyncio.timeout(PATIENCE_S):
            async for event in connection:
                if event.type == "conversation.item.input_audio_transcription.completed":
                    return event.transcript
    return ""


async def agents() -> str:
    """openai-agents: the voice pipeline's streamed speech to text."""
    import numpy as np
    import openai
    from agents.voice import OpenAISTTModel, StreamedAudioInput, STTModelSettings

    heard = StreamedAudioInput()

    async def speak() -> None:
        async for piece in spoken(24_000):
            await heard.add_audio(np.frombuffer(piece, np.int16))
        await heard.add_audio(None)

    model = OpenAISTTModel("gpt-4o-transcribe", openai.AsyncOpenAI(base_url=URL, api_key=KEY))
    session = await model.create_session(heard, STTModelSettings(), False, False)
    speaking = asyncio.create_task(speak())
    async with asyncio.timeout(PATIENCE_S):
        texts = [text async for text in session.transcribe_turns()]
    await speaking
    return " ".join(texts)


async def livekit(**options: Any) -> str:
    """livekit-plugins-openai: a stream of its STT."""
    from livekit import rtc
    from livekit.agents import stt, utils
    from livekit.plugins import openai

    async with utils.http_context.open():
        stream = openai.STT(base_url=URL, api_key=KEY, use_realtime=True, **options).stream()
        texts: list[str] = []

        async def speak() -> None:
            async for piece in spoken(24_000):
                stream.push_frame(
                    rtc.AudioFrame(data=piece, sample_rate=24_000, num_channels=1, samples_per_channel=len(piece) // 2)
                )

        async def listen() -> None:
            async for event in stream:
                if event.type is stt.SpeechEventType.FINAL_TRANSCRIPT:
                    texts.append(event.alternatives[0].text)

        listening = asyncio.create_task(listen())
        await speak()
        last = -1
        while len(texts) != last:  # it doesn't say when its last words have come
            last = len(texts)
            await asyncio.sleep(3)
        listening.cancel()
        await stream.aclose()
    return " ".join(texts)


async def pipecat(**options: Any) -> str:
    """pipecat-ai: its realtime service in a pipeline."""
    from pipecat.frames.frames import (
        EndFrame,
        Frame,
        InputAudioRawFrame,
        TranscriptionFrame,
        VADUserStartedSpeakingFrame,
        VADUserStoppedSpeakingFrame,
    )
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.runner import PipelineRunner
    from pipecat.pipeline.task import PipelineParams, PipelineTask
    from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
    from pipecat.services.openai.stt import OpenAIRealtimeSTTService

    texts: list[str] = []

    class Sink(FrameProcessor):  # type: ignore[misc]
        async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
            await super().process_frame(frame, direction)
            if isinstance(frame, TranscriptionFrame):
                texts.append(frame.text)
            await self.push_frame(frame, direction)

    address = URL.replace("http", "ws", 1) + "/realtime"
    service = OpenAIRealtimeSTTService(base_url=address, api_key=KEY, **options)
    task = PipelineTask(Pipeline([service, Sink()]), params=PipelineParams(audio_in_sample_rate=16_000))
    running = asyncio.create_task(PipelineRunner(handle_sigint=False).run(task))
    await asyncio.sleep(1)
    await task.queue_frame(VADUserStartedSpeakingFrame())
    async for piece in spoken(16_000):
        await task.queue_frame(InputAudioRawFrame(audio=piece, sample_rate=16_000, num_channels=1))
    if not options:  # it commits when the pipeline's own detection says so
        await task.queue_frame(VADUserStoppedSpeakingFrame())
    last = -1
    while len(texts) != last or not texts:
        last = len(texts)
        await asyncio.sleep(3)
    await task.queue_frame(EndFrame())
    await running
    return " ".join(texts)


async def pipecat_vad() -> str:
    """The same with the server's turn detection."""
    return await pipecat(turn_detection={"type": "server_vad"})


async def livekit_live() -> str:
    """The same with a model for which LiveKit commits by its own detection."""
    return await livekit(model="gpt-realtime-whisper")


REALTIME: dict[str, Callable[[], Any]] = {  # a package and a way to use it → the text
    "openai realtime": openai_client,
    "openai client secret": openai_secret,
    "openai-agents": agents,
    "livekit-plugins-openai realtime": livekit,
    "livekit-plugins-openai gpt-realtime-whisper": livekit_live,
    "pipecat-ai realtime": pipecat,
    "pipecat-ai server_vad": pipecat_vad,
}
