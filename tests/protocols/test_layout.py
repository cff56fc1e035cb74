"""Layouts: fragments partition the vector, whole tensors, near equal and strided; tensor lines have one spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import limits
from protocols.layout import Layout, format_tensor, parse_tensor
from protocols.refusal import Reason, Refused

SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple)
MODELS = st.lists(SHAPES, min_size=1, max_size=30).map(lambda shapes: [(f"t{i}", shape) for i, shape in enumerate(shapes)])


@given(MODELS, st.data())
def test_fragments_partition_the_vector_in_whole_tensors(tensors: list[tuple[str, tuple[int, ...]]], data: st.DataObject) -> None:
    fragments = data.draw(st.integers(1, min(len(tensors), 6)))
    layout = Layout.of(tensors, fragments)
    edge = 0
    for start, stop in layout.bounds:
        assert start == edge
        assert start < stop  # no fragment is empty
        edge = stop
    assert edge == layout.elements == layout.spans[-1].stop
    at = 0
    for span in layout.spans:  # in vector order, without gaps, none across a bound
        assert span.start == at
        at = span.stop
        assert sum(start <= span.start and span.stop <= stop for start, stop in layout.bounds) == 1
    assert {(span.name, span.shape) for span in layout.spans} == set(tensors)
    largest = max(span.stop - span.start for span in layout.spans)
    sizes = [layout.size(fragment) for fragment in range(fragments)]
    assert max(sizes) - min(sizes) <= largest
    assert layout.fragments == fragments
    assert layout.digest() == Layout.of(list(tensors), fragments).digest()


def test_fragments_are_strided_over_depth() -> None:
    layout = Layout.of([(f"layer{i}", (10,)) for i in range(8)], 2)
    names = [span.name for span in layout.spans]
    assert names == ["layer0", "layer2", "layer4", "layer6", "layer1", "layer3", "layer5", "layer7"]
    assert layout.bounds == ((0, 40), (40, 80))


def test_one_fragment_is_model_order() -> None:
    layout = Layout.of([("b", (2, 3)), ("a", (4,))], 1)
    assert [(span.name, span.start, span.stop) for span in layout.spans] == [("b", 0, 6), ("a", 6, 10)]


def test_the_digest_tells_layouts_apart() -> None:
    one = [("a", (2, 3)), ("b", (6,))]
    made = [Layout.of(one, 1), Layout.of(one, 2), Layout.of([("a", (3, 2)), ("b", (6,))], 1), Layout.of([("a", (2, 3)), ("c", (6,))], 1)]
    assert len({layout.digest() for layout in made}) == 4


@pytest.mark.parametrize(
    ("tensors", "fragments", "reason"),
    [
        ([], 1, Reason.OUT_OF_RANGE),
        ([("a", (1,))], 0, Reason.OUT_OF_RANGE),
        ([("a", (1,))], -1, Reason.OUT_OF_RANGE),
        ([("a", (1,))], 2, Reason.OUT_OF_RANGE),
        ([(f"t{i}", (1,)) for i in range(70)], limits.FRAGMENTS + 1, Reason.OUT_OF_RANGE),
        ([(f"t{i}", (1,)) for i in range(limits.TENSORS + 1)], 1, Reason.OUT_OF_RANGE),
        ([("a", (limits.ELEMENTS,)), ("b", (1,))], 1, Reason.TOO_LARGE),
        ([("a", (limits.ELEMENTS,) * 8)], 1, Reason.TOO_LARGE),
        ([("a", (1,)), ("a", (2,))], 1, Reason.MALFORMED),
    ],
)
def test_layouts_that_cannot_be(tensors: list[tuple[str, tuple[int, ...]]], fragments: int, reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        Layout.of(tensors, fragments)
    assert refused.value.reason is reason


@pytest.mark.parametrize("name", ["model.norm.weight", "x", "name with blanks", "織", "a" * 256])
@pytest.mark.parametrize("shape", [(1,), (256, 128), (1, 2, 3, 4, 5, 6, 7, 8), (limits.ELEMENTS,)])
def test_tensor_lines_come_back(name: str, shape: tuple[int, ...]) -> None:
    assert parse_tensor(format_tensor(name, shape)) == (name, shape)


@pytest.mark.parametrize(
    "line",
    [
        "", "a", " 3", "a ", "a 0", "a -1", "a 3x", "a x3", "a 3xx4", "a 3.0", "a 1e3", "a 1_0", "a +3", "a 03", "a ３", "a 3\n", "a\t3",
        "a 3x\n4", "a 1x1x1x1x1x1x1x1x1", f"a {limits.ELEMENTS + 1}", "a " + "9" * 5000, "a" * 257 + " 3", "a 3 x4",
    ],
)  # fmt: skip
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_tensor(line)
    assert refused.value.reason is Reason.MALFORMED


@given(st.text(max_size=20) | st.from_regex(r"\A[ab]{0,2} [0-9x+_ ]{0,6}\Z"))
def test_any_text_is_a_tensor_line_with_one_spelling_or_refused(line: str) -> None:
    try:
        name, shape = parse_tensor(line)
    except Refused:
        return
    assert format_tensor(name, shape) == line
