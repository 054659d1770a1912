"""Names and defaults of live transcription that the server and its clients share."""

SILENCE_MS = 500  # ends an utterance; OpenAI's default for live speech, for files it is 200
TRANSCRIPTION = "conversation.item.input_audio_transcription"  # prefix of the transcription events
LOGPROBS = "item.input_audio_transcription.logprobs"  # values of `include`
HYPOTHESES = "item.input_audio_transcription.hypothesis"  # Wisp's own; other servers ignore it
