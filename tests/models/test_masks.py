import jax.numpy as jnp
import numpy as np
import pytest

from jaxmtl.models.masks import HIDDEN, Mask, Segments, causal_bias, mask_between, segments_of, visible
from jaxmtl.types import InputError

IDS = jnp.array([[1, 1, 2, 0]])
SEGMENTS = Segments(ids=IDS, positions=jnp.array([[0, 1, 0, 0]]))


def test_segments_see_their_own_keys_and_padding_sees_nothing():
    seen = visible(Mask(keys=IDS, queries=jnp.array([[2, 0, 1, 3]])))
    assert seen.astype(int).tolist() == [[[0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]]
    np.testing.assert_array_equal(visible(Mask(keys=IDS[0], queries=IDS[0])), visible(Mask(keys=IDS, queries=IDS))[0])


def test_plain_masks_hold_one_line_per_row():
    assert visible(Mask(keys=IDS != 0)).tolist() == [[[True, True, True, False]]]


def test_causality_hides_what_is_later():
    bias = causal_bias(jnp.array([1]), jnp.arange(3))
    assert bias.tolist() == [[0.0, 0.0, float(HIDDEN)]]
    assert np.isfinite(2 * HIDDEN)


def test_plain_sides_need_no_mask_unless_something_is_hidden():
    real = IDS != 0
    assert mask_between(None, None, None) is None
    plain, packed = mask_between(None, None, real), mask_between(SEGMENTS, SEGMENTS, real)
    assert plain is not None and plain.keys is real and plain.queries is None
    assert packed is not None and packed.keys is IDS and packed.queries is IDS


@pytest.mark.parametrize("sides", [(SEGMENTS, None), (None, SEGMENTS)])
def test_one_packed_side_is_refused(sides):
    with pytest.raises(InputError, match="pack both or neither"):
        mask_between(*sides, None)


def test_segments_are_read_from_a_batch():
    batch = {"target_segments": IDS, "target_positions": SEGMENTS.positions}
    assert segments_of(batch, "input") is None
    segments = segments_of(batch, "target")
    assert segments is not None and segments.ids is IDS and segments.positions is SEGMENTS.positions
    with pytest.raises(InputError, match="'target_segments' alone"):
        segments_of({"target_segments": IDS}, "target")
