"""The decoder's kernels as a model has them: all compiled at load, as many launches as promised, within every limit."""

from typing import Any

import pytest

from kernels.checkpoints.load import Dimensions
from kernels.inputs import CHOSEN, LOG_PROBABILITIES, LOGITS, RULES, TOKEN_PROBABILITIES
from kernels.webgpu.decoder.graph import IDLE_SEQUENCES, DecoderGraph
from kernels.webgpu.decoder.memory import DecoderBuffers
from kernels.webgpu.decoder.program import DecoderProgram
from kernels.webgpu.device import Device, DeviceError
from kernels.webgpu.pool import Pool
from kernels.webgpu.wgsl import SUBGROUP, WORKGROUP, Parameters, variant
from tests.support.decoding import EOT, N_VOCAB, SMALL, Pair, random_checkpoint, rules, same, small_tiling, step


def test_a_token_takes_34_launches_and_one_submit_holds_many(device: Device) -> None:
    dims = Dimensions(8, 20, 64, 1, 1, N_VOCAB, 32, 64, 1, 4)
    pair = Pair(device, dims)
    submitted: list[int] = []
    submit = device.submit

    def counting(recording: Any, **named: Any) -> Any:
        submitted.append(len(recording.dispatches))
        return submit(recording, **named)

    context = pair.contexts()[0]
    context.set_input(RULES, rules(6, suppress=[EOT]))
    device.submit = counting  # type: ignore[method-assign]
    step(context, [1])
    device.submit = submit  # type: ignore[method-assign]
    steps = pair.gpu.program.tiling.steps_per_submit
    assert len(submitted) == -(-6 // steps)
    assert sum(submitted) == 6 * 34 + 1  # the first token's embedding; each choice embeds the next
    pair.close()


def test_a_token_table_over_the_binding_limit_is_split(device: Device) -> None:
    whole = Pair(device, SMALL)
    limit, device.max_binding = device.max_binding, 300 * 2 * SMALL.n_text_state
    split = Pair(device, SMALL)
    device.max_binding = limit
    assert len(split.gpu.program.kernels.parts) == 3
    outputs = []
    for pair in (whole, split):
        context = pair.contexts()[0]
        context.set_input(RULES, rules(12, suppress=[EOT]))
        step(context, [650, 1, 350])
        outputs.append([context.get_output(index) for index in (LOGITS, CHOSEN, LOG_PROBABILITIES)])
        pair.close()
    for of_whole, of_split in zip(*outputs, strict=True):
        assert same(of_split, of_whole, 1e-5)


def test_no_request_waits_for_a_kernel_to_compile(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(device, Dimensions(8, 21, 64, 1, 1, N_VOCAB, 33, 64, 1, 1))

    def refuse(*named: Any, **more: Any) -> None:
        raise AssertionError(f"{named[0]} is compiled during a request")

    monkeypatch.setattr(device, "pipeline", refuse)
    context = pair.contexts()[0]
    context.set_input(RULES, rules(3, suppress=[EOT]))
    step(context, [1, 2, 3])  # a prompt, one sequence's steps
    step(context, [4], [5], origins=[0, 0])  # several sequences'
    assert context.get_output(TOKEN_PROBABILITIES).shape == (2, 1)
    pair.close()


@pytest.mark.parametrize("kind", [SUBGROUP, WORKGROUP])
def test_an_adapter_of_little_workgroup_memory_takes_row_by_row(
    device: Device, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "workgroup_memory", 1000)  # four rows of 64 columns are 1024 bytes
    pipeline, names = device.pipeline, set[str]()

    def noted(name: str, parameters: Parameters, *constants: Any) -> Any:
        names.add(variant(name, parameters))
        return pipeline(name, parameters, *constants)

    monkeypatch.setattr(device, "pipeline", noted)
    pair = Pair(device, SMALL, small_tiling(device, kind))
    assert f"decoder_ln_qkv_{kind}_1" in names and f"decoder_ln_qkv_{kind}_4" not in names
    both = pair.contexts()
    for rows in ([[1, 2, 3, 4, 5, 6]], [[7]]):
        found, expected = (step(context, *rows).get_output(LOGITS) for context in both)
        assert same(found, expected)
    pair.close()


def test_heads_the_kernels_are_not_for_are_the_devices_error(device: Device) -> None:
    with pytest.raises(DeviceError, match="heads of 64 / 16 columns"):
        DecoderGraph(
            device, random_checkpoint(Dimensions(8, 8, 64, 1, 1, N_VOCAB, 8, 64, 16, 1)), lambda context: context
        )


def test_idle_buffers_are_reused_and_do_not_add_up(device: Device) -> None:
    program = DecoderProgram(device, random_checkpoint(SMALL))
    pool = Pool(program.buffers, lambda: IDLE_SEQUENCES)
    sets = [pool.take(n) for n in (5, 8, 16, 1, 1, 3)]
    for buffers in sets:
        pool.give(buffers)

    def is_kept(buffers: DecoderBuffers) -> bool:
        try:
            return buffers.x.handle is not None
        except ValueError:
            return False

    assert [is_kept(buffers) for buffers in sets] == [False, False, False, True, True, True]
    assert pool.take(4) is sets[5] and pool.take(1) is sets[4]
    pool.close()
    pool.give(sets[5])
    assert not is_kept(sets[5]) and not is_kept(sets[3])
    program.close()
