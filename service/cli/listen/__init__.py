"""wisp listen: live captions of a microphone or of raw sound on stdin, by a local model or a server."""
