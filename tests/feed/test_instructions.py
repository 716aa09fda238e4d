import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxmtl.feed.instructions import NumberedTasks, SharedInstructions, joined_ids, share_instructions
from jaxmtl.types import InputError

ROWS = hnp.arrays(np.int32, st.tuples(st.integers(1, 9), st.just(2)), elements=st.integers(0, 2))


@hypothesis.given(ROWS, st.integers(1, 3))
def test_every_row_names_its_own_instruction_and_each_is_held_once(rows, multiple):
    shared = share_instructions({"instructions": rows, "inputs": rows}, pad_id=9, multiple=multiple)
    held, index = shared["instructions"], shared["instruction_index"]
    np.testing.assert_array_equal(held[index], rows)
    distinct = len(np.unique(rows, axis=0))
    assert sorted(set(index.tolist())) == list(range(distinct))
    assert len(held) % multiple == 0 and len(held) < max(2 * distinct, multiple + 1)
    assert index[0] == 0 and index.dtype == np.int32
    np.testing.assert_array_equal(shared["inputs"], rows)


def test_a_batch_without_instructions_is_refused():
    with pytest.raises(InputError, match="expected 'instructions'"):
        share_instructions({"inputs": np.zeros((2, 3), np.int32)}, pad_id=0)
    shared = share_instructions({"instructions": np.zeros((2, 3), np.int32)}, pad_id=0)
    with pytest.raises(InputError, match="expected 'instructions', one for each row"):
        share_instructions(shared, pad_id=0)


def test_a_stream_keeps_all_else():
    class Stream:
        def __next__(self):
            return {"instructions": np.array([[5, 1], [6, 1], [5, 1]], np.int32)}

        def state(self):
            return {"step": 3}

    stream = SharedInstructions(Stream(), pad_id=0, multiple=4)
    assert next(stream)["instruction_index"].tolist() == [0, 1, 0]
    assert next(stream)["instructions"].shape == (4, 2)
    assert stream.state() == {"step": 3}


def test_rows_of_numbered_tasks_read_their_number():
    class Stream:
        rows = "rows"

        def __next__(self):
            return {"task_ids": np.array([3, 0, 3], np.int32)}

    stream = NumberedTasks(Stream(), pad_id=9)
    batch = next(stream)
    assert batch["instructions"].tolist() == [[3], [0], [3]] and stream.rows == "rows"
    assert batch["instruction_texts"].tolist() == [[9], [9], [9]], "nothing stands in words"


def test_teachers_still_have_what_stands_in_words():
    texts = np.array([[5, 1], [6, 1]], np.int32)
    stream = NumberedTasks(iter([{"task_ids": np.array([1, 0], np.int32), "instructions": texts}]), pad_id=0)
    np.testing.assert_array_equal(next(stream)["instruction_texts"], texts)


@hypothesis.given(st.lists(st.integers(0, 300), min_size=1, max_size=4), st.integers(100, 300))
def test_instructions_lose_padding_by_halves_and_no_token(lengths, width):
    lengths = [min(length, width) for length in lengths]
    rows = np.array([[1 + row] * length + [0] * (width - length) for row, length in enumerate(lengths)], np.int32)
    held = share_instructions({"instructions": rows}, pad_id=0)["instructions"]
    half = (width + 1) // 2
    quarter = (half + 1) // 2
    longest = max(*lengths, 64)
    expected = quarter if longest <= quarter else half if longest <= half else width
    assert held.shape[1] == expected
    assert sorted(set((held != 0).sum(1))) == sorted({*lengths})


@pytest.mark.parametrize(
    ("instruction", "inputs", "start", "most", "expected"),
    [
        ([5, 6, 1], [7, 1], [], 4, [5, 6, 7, 1]),
        ([5, 6], [7], [], 9, [5, 6, 7]),
        ([0, 5, 1], [0, 7, 1], [0], 9, [0, 5, 7, 1]),  # BART's: a token before each text
        ([1, 5], [1, 7], [1], 9, [1, 5, 7]),  # OPT's: the end token stands before a text
        ([5], [0, 7, 1], [0], 9, [5, 7, 1]),
        ([5, 6, 1], [7, 8, 1], [], 4, [5, 7, 8, 1]),  # the instruction makes room for the input
        ([5, 6, 1], [7, 8, 9, 1], [], 3, [7, 8, 1]),
    ],
)
def test_instruction_and_input_become_one_text(instruction, inputs, start, most, expected):
    assert joined_ids(np.array(instruction), np.array(inputs), start, 1, most) == expected
