from dataclasses import replace

import pytest

from lmd.loading import Device, LoadParams, WorkerFacts
from lmd.pool.memory import MIB, PROCESS_BYTES, Holding, Memory, Reading, budget, device_memory, estimate, measured
from lmd.worker.fake import fake_loaded
from tests.lmd.pool.rig import GIB, header

SHAPE = {
    "block_count": 24,
    "embedding_length": 896,
    "attention.head_count": 14,
    "attention.head_count_kv": 2,
    "feed_forward_length": 4864,
    "context_length": 32768,
}


def test_kv_is_counted_from_the_shape_in_the_caches_type():
    """Qwen2 0.5 B: 24 layers, 2 KV heads of 64: 12 KiB a token in f16."""
    need = estimate(header(GIB, **SHAPE), LoadParams(context_length=4096, parallel=2))
    assert need.kv == 24 * 2 * (64 + 64) * 2 * 8192
    q8 = estimate(header(GIB, **SHAPE), LoadParams(context_length=4096, parallel=2, kv_cache_type="q8_0"))
    assert q8.kv == need.kv * 34 // 64
    assert need.full.ram == PROCESS_BYTES + need.weights + need.kv + need.compute


def test_what_was_not_asked_for_may_shrink_and_what_was_may_not():
    free = estimate(header(GIB, **SHAPE), LoadParams())
    assert free.kv == 16384 * 4 * 12288
    mask = 2 * 512  # bytes a cell: f16 for each token of a batch
    assert free.full.ram - free.floor.ram == (16384 * 4 - 512) * (12288 + mask)
    context = estimate(header(GIB, **SHAPE), LoadParams(context_length=4096))
    assert context.full.ram - context.floor.ram == 4096 * 3 * (12288 + mask)
    fixed = estimate(header(GIB, **SHAPE), LoadParams(kv_cells=4096))
    assert fixed.full == fixed.floor


@pytest.mark.parametrize(
    ("cells", "batch", "compute", "grown"),
    [
        (2048, 512, 44_197_477, 74_665_984),
        (8192, 512, 50_488_933, 150_605_824),
        (8192, 256, 27_682_405, 150_540_288),
        (32768, 512, 75_654_757, 454_950_912),
    ],
)
def test_the_estimate_is_near_what_llama_cpp_was_seen_to_take(cells, batch, compute, grown):
    """Measured on the generator's qwen2-0.5b in Q8_0, llama-cpp-python 0.3.36, CPU: what it reports as compute
    buffers, and by how much the worker's anonymous memory grew (buffers are touched as they are needed)."""
    weights = 525_120_000
    shape = replace(header(weights, **SHAPE), lengths={"tokenizer.ggml.tokens": 151_936})
    need = estimate(shape, LoadParams(kv_cells=cells, batch=batch))
    assert need.compute == pytest.approx(compute, rel=0.02)
    assert need.full.ram - PROCESS_BYTES == pytest.approx(weights + grown, rel=0.1)


def test_without_flash_attention_the_scores_of_every_head_count():
    flash = estimate(header(GIB, **SHAPE), LoadParams(kv_cells=4096))
    plain = estimate(header(GIB, **SHAPE), LoadParams(kv_cells=4096, flash_attention=False))
    assert plain.compute - flash.compute == 4096 * 512 * (2 + 4 * 14)


def test_layers_without_attention_hold_no_keys():
    hybrid = SHAPE | {"attention.head_count_kv": [0, 2] * 12, "ssm.state_size": 16, "ssm.inner_size": 1792}
    plain = estimate(header(GIB, **SHAPE), LoadParams(kv_cells=4096, parallel=1)).kv
    kv = estimate(header(GIB, **hybrid), LoadParams(kv_cells=4096, parallel=1)).kv
    assert kv == plain // 2 + 4 * 24 * 16 * 1792


def test_a_draft_model_counts():
    alone = estimate(header(GIB, **SHAPE), LoadParams(kv_cells=4096))
    both = estimate(header(GIB, **SHAPE), LoadParams(kv_cells=4096), header(GIB // 4, **SHAPE))
    assert both.full.ram - alone.full.ram == both.draft
    assert both.draft > GIB // 4 + alone.kv


def test_a_header_that_says_nothing_is_estimated_by_its_tensors():
    need = estimate(header(GIB), LoadParams())
    assert need.full.ram == GIB + PROCESS_BYTES


@pytest.mark.parametrize(("gpu_layers", "share"), [(None, 1.0), ("auto", 1.0), (0, 0.0), (12, 0.5), (99, 1.0)])
def test_layers_go_to_vram_as_gpu_layers_allows(gpu_layers, share):
    plain = estimate(header(GIB, **SHAPE), LoadParams(kv_cells=4096)).full
    need = estimate(header(GIB, **SHAPE), LoadParams(kv_cells=4096, gpu_layers=gpu_layers), vram=24 * GIB).full
    offloaded = (plain.ram - PROCESS_BYTES) * share
    assert offloaded <= need.vram <= offloaded * 9 / 8 + 128 * MIB
    assert plain.ram - offloaded - 1 <= need.ram <= plain.ram - offloaded + 64 * MIB


def test_a_small_card_takes_what_it_holds():
    need = estimate(header(8 * GIB, **SHAPE), LoadParams(kv_cells=4096), vram=4 * GIB)
    assert need.full.vram == 4 * GIB
    assert need.full.ram > 4 * GIB


def test_the_embedding_stays_in_ram_and_so_may_layers_where_not_all_fit():
    blocks = (32 * MIB,) * 24
    shape = replace(header(GIB, **SHAPE), block_bytes=blocks)
    bare = estimate(header(GIB, **SHAPE), LoadParams(kv_cells=4096), vram=24 * GIB).full
    assert estimate(shape, LoadParams(kv_cells=4096), vram=24 * GIB).full.ram == bare.ram + GIB - sum(blocks)
    bare = estimate(header(GIB, **SHAPE), LoadParams(kv_cells=4096), vram=GIB // 2).full
    part = estimate(shape, LoadParams(kv_cells=4096), vram=GIB // 2).full
    assert part.ram == bare.ram + GIB - sum(blocks) + 64 * MIB


def test_what_a_worker_tells_replaces_what_was_estimated():
    need = estimate(header(GIB, **SHAPE), LoadParams(kv_cells=4096), vram=24 * GIB)
    loaded = replace(fake_loaded(), model_bytes=1000, kv_bytes=300, compute_bytes=50, vram_bytes=900)
    assert measured(need, loaded) == Memory(PROCESS_BYTES + 450, 900)
    on_cpu = replace(loaded, vram_bytes=0)
    assert measured(need, on_cpu) == Memory(PROCESS_BYTES + 1350, 0)


READING = Reading(total=16 * GIB, available=10 * GIB, anonymous={7: GIB})
MARGIN = GIB // 2


def test_what_was_promised_and_not_taken_yet_is_not_free():
    room = budget(READING, [Holding(Memory(3 * GIB), 7), Holding(Memory(2 * GIB))])
    assert room.free.ram == 10 * GIB - MARGIN - 2 * GIB - 2 * GIB
    assert room.capacity.ram == 10 * GIB - MARGIN + GIB


def test_a_limit_binds_all_instances_together():
    room = budget(READING, [Holding(Memory(3 * GIB), 7)], limit=4 * GIB)
    assert room.free.ram == GIB
    assert room.capacity.ram == 4 * GIB


CARD = Device(name="CUDA0", description="", kind="gpu", memory_total=24 * GIB, memory_free=20 * GIB)


def facts(*devices):
    return WorkerFacts(pid=1, llama_cpp_python="", llama_cpp="", system_info="", devices=devices)


def test_vram_is_what_was_free_at_the_hello_and_what_we_had_then_but_for_a_margin():
    assert device_memory(facts(CARD)) == 19 * GIB
    assert device_memory(facts(CARD), Memory(GIB, 3 * GIB)) == 22 * GIB
    assert device_memory(None) == 0
    assert budget(READING, [Holding(Memory(MIB, 5 * GIB))], vram=23 * GIB).free.vram == 18 * GIB


def test_memory_that_is_promised_and_still_free_is_not_there_twice():
    assert device_memory(facts(CARD), Memory(GIB, 12 * GIB)) == 23 * GIB


def test_devices_are_summed_and_those_that_share_ram_are_not_vram():
    integrated = replace(CARD, name="Vulkan0", kind="igpu")
    small = replace(CARD, name="CUDA1", memory_total=2 * GIB, memory_free=GIB)
    assert device_memory(facts(CARD, small, integrated)) == 19 * GIB + 3 * GIB // 4
    assert device_memory(facts(integrated)) == 0


BGE = {
    "pooling_type": 2,
    "block_count": 12,
    "embedding_length": 384,
    "attention.head_count": 12,
    "feed_forward_length": 1536,
    "vocab_size": 30522,
}


def bge(context_length):
    plain = header(GIB, **BGE, context_length=context_length)
    values = {key.replace("llama.", "bert."): value for key, value in plain.values.items()}
    return replace(plain, values=values | {"general.architecture": "bert"})


def test_an_encoder_keeps_no_cache_and_pays_for_its_longest_text():
    short = estimate(bge(512), LoadParams())
    long = estimate(bge(8192), LoadParams(context_length=8192))
    assert short.kv == long.kv == 0
    assert 10 * short.compute < long.compute
    # 13 MiB of activations and 60 MiB of room for outputs were seen at 512 tokens.
    assert 70 * MIB < short.compute < 85 * MIB


def test_an_encoder_may_take_shorter_texts_where_nobody_asked_for_long_ones():
    free = estimate(bge(8192), LoadParams())
    assert free.floor.ram < free.full.ram
    asked = estimate(bge(8192), LoadParams(context_length=2048))
    assert asked.floor == asked.full == free.full


def test_a_generating_model_that_makes_vectors_has_a_cache_for_one_batch():
    need = estimate(header(GIB, **SHAPE, pooling_type=3), LoadParams(context_length=1024))
    assert need.kv == 24 * 2 * (64 + 64) * 2 * 1024
