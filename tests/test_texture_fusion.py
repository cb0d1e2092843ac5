"""Laws of self-texture fusion: the streamed search is the definition, to the bit where that can be."""

import subprocess
import sys

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from pathorestore.nn.texture_fusion import (
    KEY_BLOCK,
    QUERY_BLOCK,
    Keys,
    Match,
    TextureFusion,
    differentiable_similarity,
    naive_similarity,
    sampled_similarity,
    smallest_stride,
    streamed_similarity,
    strided_index,
    unit,
)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rows_of(keys: Tensor) -> Keys:
    return lambda start, stop: keys[start:stop]


def streamed(queries: Tensor, keys: Tensor, key_chunk: int = 8192) -> Match:
    return streamed_similarity(queries, len(keys), rows_of(keys), key_chunk=key_chunk)


def naive_in_blocks(queries: Tensor, keys: Tensor) -> Match:
    """The whole matrix, built from products of the one fixed shape, and one maximum over all of it."""

    def padded(rows: Tensor, block: int) -> Tensor:
        return torch.nn.functional.pad(unit(rows), (0, 0, 0, -len(rows) % block))

    left, right = padded(queries, QUERY_BLOCK).split(QUERY_BLOCK), padded(keys, KEY_BLOCK).split(KEY_BLOCK)
    matrix = torch.cat([torch.cat([q @ k.T for k in right], dim=1) for q in left])[: len(queries), : len(keys)]
    return Match(*matrix.max(dim=1))


def same(one: Match, other: Match) -> bool:
    return torch.equal(one.score, other.score) and torch.equal(one.index, other.index)


SIZES = {"n": st.integers(1, 600), "m": st.integers(1, 1700), "d": st.sampled_from([1, 3, 16, 64]), "seed": st.integers(0, 99)}


@given(**SIZES, key_chunk=st.integers(1, 2000))
@example(n=QUERY_BLOCK, m=2 * KEY_BLOCK, d=8, seed=0, key_chunk=KEY_BLOCK)
@example(n=QUERY_BLOCK + 1, m=2 * KEY_BLOCK + 1, d=8, seed=0, key_chunk=KEY_BLOCK + 1)
def test_streamed_is_the_naive_form_to_the_bit(n: int, m: int, d: int, seed: int, key_chunk: int) -> None:
    queries, keys = drawn(n, d, seed=seed), drawn(m, d, seed=seed + 1)
    assert same(streamed(queries, keys, key_chunk), naive_in_blocks(queries, keys))


@given(**SIZES)
def test_streamed_is_the_plain_matrix_product_up_to_rounding(n: int, m: int, d: int, seed: int) -> None:
    queries, keys = drawn(n, d, seed=seed), drawn(m, d, seed=seed + 1)
    found, expected = streamed(queries, keys), naive_similarity(queries, keys)
    torch.testing.assert_close(found.score, expected.score, rtol=0, atol=1e-6)
    # elsewhere another index is a tie: it reaches the same maximum to within rounding
    other = found.index != expected.index
    assert torch.allclose((unit(queries) * unit(keys)[found.index]).sum(1)[other], expected.score[other], rtol=0, atol=1e-6)


def test_in_double_precision_every_index_is_that_of_the_plain_product() -> None:
    queries, keys = drawn(700, 32, dtype=torch.float64), drawn(3000, 32, seed=1, dtype=torch.float64)
    assert torch.equal(streamed(queries, keys).index, naive_similarity(queries, keys).index)


@pytest.mark.parametrize("dim", [64, 256])
def test_chunks_of_1000_of_7777_and_of_all_keys_give_the_same_bits(dim: int) -> None:
    queries, keys = drawn(300, dim), drawn(17_001, dim, seed=1)
    whole = streamed(queries, keys, 17_001)
    assert all(same(streamed(queries, keys, chunk), whole) for chunk in (1, 1000, 7777, 100_000))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_match_of_a_query_does_not_depend_on_its_company(threads: int) -> None:
    torch.set_num_threads(threads)
    queries, keys = drawn(1000, 64), drawn(1500, 64, seed=1)
    whole, chosen = streamed(queries, keys), torch.randperm(1000, generator=torch.Generator().manual_seed(3))
    for part in (chosen, chosen[:700], chosen[:5], chosen[:1]):
        assert same(streamed(queries[part], keys), whole.at(part))


def test_matching_each_cell_once_and_scattering_is_matching_every_point() -> None:
    cells, keys = drawn(144, 16), drawn(2000, 16, seed=1)
    nearest = torch.randint(144, (1100,), generator=torch.Generator().manual_seed(2))
    match, fusion = streamed(cells, keys), TextureFusion(16)
    assert same(match.at(nearest), streamed(cells[nearest], keys))
    once = fusion(cells, match.score, keys[match.index])[nearest]
    every = fusion(cells[nearest], match.score[nearest], keys[match.index[nearest]])
    torch.testing.assert_close(once, every, rtol=0, atol=1e-6)
    assert match.at(nearest.view(2, 550)).score.shape == (2, 550)


@given(n=st.integers(1, 300), m=st.integers(1, 1200), seed=st.integers(0, 99))
def test_permuting_the_keys_permutes_the_index_alone(n: int, m: int, seed: int) -> None:
    queries, keys = drawn(n, 16, seed=seed), drawn(m, 16, seed=seed + 1)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    before, after = streamed(queries, keys), streamed(queries, keys[order])
    assert torch.equal(after.score, before.score)
    assert torch.equal(order[after.index], before.index)


@given(exponents=st.lists(st.integers(-60, 60), min_size=8, max_size=8))
def test_powers_of_two_in_front_of_queries_or_keys_change_no_bit(exponents: list[int]) -> None:
    queries, keys = drawn(40, 8), drawn(700, 8, seed=1)
    factor = 2.0 ** torch.tensor(exponents, dtype=torch.float32)
    expected = streamed(queries, keys)
    assert same(streamed(queries * factor.repeat(5)[:, None], keys), expected)
    assert same(streamed(queries, keys * factor.repeat(88)[:700, None]), expected)


@given(factor=st.floats(1e-30, 1e30))
def test_positive_factors_change_nothing_beyond_rounding(factor: float) -> None:
    queries, keys = drawn(40, 8), drawn(700, 8, seed=1)
    expected = streamed(queries, keys)
    for found in (streamed(factor * queries, keys), streamed(queries, factor * keys)):
        torch.testing.assert_close(found.score, expected.score, rtol=0, atol=1e-6)
        assert torch.equal(found.index, expected.index)


@given(copies=st.lists(st.integers(0, 2999), min_size=1, max_size=12, unique=True), key_chunk=st.sampled_from([1, 1024, 4000]))
def test_the_first_of_equal_keys_wins(copies: list[int], key_chunk: int) -> None:
    queries, keys = drawn(3, 16), drawn(3000, 16, seed=1)
    keys[copies] = 2 * queries[:1]
    assert streamed(queries, keys, key_chunk).index[0] == min(copies)


def test_a_score_is_the_cosine_with_the_key_of_its_index() -> None:
    queries, keys = drawn(50, 16), drawn(900, 16, seed=1)
    match = streamed(queries, keys)
    torch.testing.assert_close(match.score, torch.cosine_similarity(queries, keys[match.index]), rtol=0, atol=1e-6)


def test_padding_is_no_key() -> None:
    queries = torch.ones(2, 4)
    match = streamed(queries, -queries[:1])
    assert match.score.tolist() == [-1, -1]
    assert match.index.tolist() == [0, 0]


def test_a_vector_of_zeros_is_like_nothing_and_breaks_nothing() -> None:
    queries = torch.zeros(2, 4, requires_grad=True)
    match = differentiable_similarity(queries, drawn(5, 4))
    match.score.sum().backward()
    assert match.score.tolist() == [0, 0]
    assert torch.isfinite(queries.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [0, 700, 1499])
def test_a_nan_among_the_keys_is_seen_in_the_scores(place: int) -> None:
    keys = drawn(1500, 8)
    keys[place] = torch.nan
    match = streamed(drawn(5, 8, seed=1), keys)
    assert match.score.isnan().all()
    assert (match.index == place).all()


def test_the_layout_of_the_keys_in_memory_changes_no_bit() -> None:
    queries, keys = drawn(300, 64), drawn(1700, 64, seed=1)
    expected = streamed(queries, keys)
    columns = keys.T.contiguous().T
    assert same(streamed(queries.T.contiguous().T, columns, 600), expected)
    assert same(streamed(queries, columns), expected)


@given(count=st.integers(1, 5000), key_chunk=st.integers(1, 3000))
def test_every_key_is_made_once_in_order_and_never_more_than_a_chunk(count: int, key_chunk: int) -> None:
    calls: list[tuple[int, int]] = []

    def keys(start: int, stop: int) -> Tensor:
        calls.append((start, stop))
        return torch.ones(stop - start, 2)

    streamed_similarity(torch.ones(1, 2), count, keys, key_chunk=key_chunk)
    assert [place for start, stop in calls for place in range(start, stop)] == list(range(count))
    assert max(stop - start for start, stop in calls) <= max(KEY_BLOCK, key_chunk)
    assert all(start % KEY_BLOCK == 0 for start, _ in calls)


def test_streaming_holds_no_graph() -> None:
    queries, keys = drawn(4, 8).requires_grad_(), drawn(9, 8).requires_grad_()
    assert not streamed(queries, keys).score.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_single_precision_also_under_autocast(dtype: torch.dtype) -> None:
    queries, keys = drawn(50, 32).to(dtype), drawn(900, 32, seed=1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = streamed(queries, keys)
    assert found.score.dtype == torch.float32
    assert same(found, streamed(queries.float(), keys.float()))


@pytest.mark.parametrize("arguments", [{"count": 0}, {"key_chunk": 0}, {"count": 4}])
def test_no_keys_no_chunk_and_wrong_rows_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        streamed_similarity(drawn(2, 4), arguments.get("count", 3), lambda *_: drawn(3, 4), key_chunk=arguments.get("key_chunk", 8192))


@given(height=st.integers(1, 60), width=st.integers(1, 60), stride=st.integers(1, 9))
def test_strided_indices_are_every_stride_th_row_and_column(height: int, width: int, stride: int) -> None:
    grid = torch.arange(height * width).view(height, width)
    assert torch.equal(strided_index(height, width, stride=stride), grid[::stride, ::stride].flatten())


@given(height=st.integers(1, 600), width=st.integers(1, 600), max_keys=st.integers(1, 5000))
def test_the_smallest_stride_is_enough_and_one_less_is_not(height: int, width: int, max_keys: int) -> None:
    def left(stride: int) -> int:
        return len(range(0, height, stride)) * len(range(0, width, stride))

    stride = smallest_stride(height, width, max_keys=max_keys)
    assert left(stride) <= max_keys
    assert stride == 1 or left(stride - 1) > max_keys


def test_a_search_among_all_indices_is_the_full_search_and_among_fewer_is_no_better() -> None:
    queries, keys = drawn(60, 16), drawn(40 * 30, 16, seed=1)
    full = streamed(queries, keys)
    assert same(sampled_similarity(queries, strided_index(40, 30, stride=1), keys.__getitem__), full)
    index = strided_index(40, 30, stride=3)
    thinned = sampled_similarity(queries, index, keys.__getitem__)
    assert (thinned.score <= full.score).all()
    assert torch.isin(thinned.index, index).all()
    assert same(Match(thinned.score, torch.searchsorted(index, thinned.index)), streamed(queries, keys[index]))


@pytest.mark.parametrize("bad", [(0, 4, 1), (4, 0, 1), (4, 4, 0)])
def test_empty_grids_and_strides_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        strided_index(bad[0], bad[1], stride=bad[2])
    with pytest.raises(ValueError, match="at least 1"):
        smallest_stride(bad[0], bad[1], max_keys=bad[2])


@pytest.mark.parametrize("layers", [1, 3])
def test_the_gradients_of_training_are_those_of_the_definition(layers: int) -> None:
    """Away from ties: random keys differ by far more than the step of the finite difference."""
    queries, keys, values = (drawn(n, 3, seed=seed, dtype=torch.float64).requires_grad_() for seed, n in enumerate((5, 8, 8)))
    fusion = TextureFusion(3, layers).double()

    def fused(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        match = differentiable_similarity(queries, keys)
        result: Tensor = fusion(queries, match.score, values[match.index])
        return result

    assert torch.autograd.gradcheck(fused, (queries, keys, values))


def test_the_gradient_of_the_score_is_that_of_the_naive_maximum() -> None:
    pairs = [(drawn(20, 6).requires_grad_(), drawn(50, 6, seed=1).requires_grad_()) for _ in range(2)]
    for (queries, keys), form in zip(pairs, (differentiable_similarity, naive_similarity), strict=True):
        match = form(queries, keys)
        (match.score * torch.arange(20)).sum().backward()
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_training_and_inference_find_the_same_match() -> None:
    queries, keys = drawn(100, 16), drawn(800, 16, seed=1)
    training, inference = differentiable_similarity(queries, keys), streamed(queries, keys)
    assert torch.equal(training.index, inference.index)
    torch.testing.assert_close(training.score, inference.score, rtol=0, atol=1e-6)


def test_fusion_is_the_query_plus_the_scored_projection_of_query_and_texture() -> None:
    fusion, (query, texture, score) = TextureFusion(4), (drawn(6, 4), drawn(6, 4, seed=1), drawn(6, seed=2))
    (weight,) = fusion.parameters()
    assert weight.shape == (4, 8)
    expected = query + score[:, None] * (query @ weight[:, :4].T + texture @ weight[:, 4:].T)
    torch.testing.assert_close(fusion(query, score, texture), expected)
    assert torch.equal(fusion(query, torch.zeros(6), texture), query)


def test_more_layers_are_more_maps_and_none_is_refused() -> None:
    assert [tuple(weight.shape) for weight in TextureFusion(4, layers=3).parameters()] == [(4, 8), (4, 4), (4, 4)]
    for bad in ((0, 1), (4, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            TextureFusion(*bad)


PEAK = """
from pathlib import Path
import torch
from pathorestore.nn.texture_fusion import streamed_similarity
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
amplitude, frequency = torch.randn(4096, 256, generator=generator), torch.randn(4096, 256, generator=generator)
queries = torch.randn(4096, 256, generator=generator)

def status_kb(name):  # ru_maxrss would carry the size of the parent over
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0])

def keys(start, stop):
    place = torch.arange(start, stop)
    cell = place // 512 // 8 * 64 + place % 512 // 8
    return amplitude[cell] * torch.sin(frequency[cell] * (place % 8)[:, None])

streamed_similarity(queries[:10], 600, keys)
before = status_kb("VmRSS:")
streamed_similarity(queries, 512 * 512, keys)
print((status_kb("VmHWM:") - before) * 1024 / 1e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc/self/status")
def test_a_64_px_tile_at_x8_takes_less_than_200_mb_where_the_naive_matrix_is_275_gb() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=300, check=True)
    # the lower bound says that something was measured: one chunk of keys alone is 8 MB
    assert 8 < float(done.stdout) < 200
