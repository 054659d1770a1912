"""A Whisper model on a WebGPU device: the encoder and decoder graphs, and their shared cross-attention memory."""

from kernels.checkpoints.load import Checkpoint
from kernels.webgpu.decoder.graph import DecoderGraph
from kernels.webgpu.device import Device
from kernels.webgpu.encoder.graph import EncoderGraph


class GpuModel:
    """A model on a device. Contexts share the weights; each may have its own thread, but they run one at a time."""

    def __init__(self, checkpoint: Checkpoint, device: Device, windows: int | None = None) -> None:
        """`windows`: the most that the encoder computes together; chosen by adapter if None."""
        self.dims = checkpoint.dims
        self.encoder = EncoderGraph(device, checkpoint, windows=windows)
        self.decoder = DecoderGraph(device, checkpoint, self.encoder.cross_of)

    def close(self) -> None:
        """Free the weights and the memory kept for contexts; close those first. The device stays open. Idempotent."""
        self.decoder.close()
        self.encoder.close()
