"""A Whisper model on a WebGPU device: the encoder and decoder graphs, and what the one hands to the other."""

from kernels.checkpoints.load import Checkpoint
from kernels.webgpu.decoder.graph import DecoderGraph
from kernels.webgpu.device import Device
from kernels.webgpu.encoder.graph import EncoderGraph


class GpuModel:
    """A model on a device. Contexts share the weights; each may run in its own thread, one at a time runs."""

    def __init__(self, checkpoint: Checkpoint, device: Device, windows: int | None = None) -> None:
        """`windows`: how many the encoder computes together at most, chosen by the adapter if None."""
        self.dims = checkpoint.dims
        self.encoder = EncoderGraph(device, checkpoint, windows=windows)
        self.decoder = DecoderGraph(device, checkpoint, self.encoder.cross_of)

    def close(self) -> None:
        """Free the weights and the memory kept for contexts, which close first. The device stays open. Idempotent."""
        self.decoder.close()
        self.encoder.close()
