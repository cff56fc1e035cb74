"""The inner half of the algorithm on real tiny models and real text."""

import copy
import io
import math

import pytest
import torch

from protocols.trainer import ALL_FRAGMENTS
from tapestryd.training import model as models
from tapestryd.training.data import Corpus
from tapestryd.training.diloco import Replica, Where
from tests.training.tiny import CONFIGS, INNER, built, opened, write_text

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    return opened([write_text(folder / "d")], folder / "c", INNER.tokens)


def replica(corpus: Corpus, name: str = "llama", *, bf16: bool = False, seed: int = 0) -> Replica:
    _, made, layout = built(name, 2, seed)
    return Replica(made, layout, INNER, corpus, where=Where(CPU, bf16), seed=0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("bf16", [False, True])
def test_steps_learn_and_theta_stays(name: str, bf16: bool, corpus: Corpus) -> None:
    ours = replica(corpus, name, bf16=bf16)
    theta = ours.theta.clone()
    losses = [ours.step(height) for height in range(30)]
    assert losses[-1] < losses[0] - 0.3
    assert torch.equal(ours.theta, theta)
    assert ours.local.dtype == torch.float32
    assert torch.equal(ours.delta(ALL_FRAGMENTS), theta - ours.local)
    assert ours.counter == 30


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_restored_replica_goes_on_bit_for_bit(name: str, corpus: Corpus) -> None:
    """gpt2 has dropout, which must resume too. The state goes through a file that is read without pickle."""
    ours = replica(corpus, name)
    for height in range(4):
        ours.step(height)
    ours.adopt(1, ours.theta[slice(*ours._layout.bounds[1])] * 1.01, keep=True)
    file = io.BytesIO()
    torch.save(ours.state(), file)
    expected = [ours.step(height) for height in range(4, 8)]
    torch.manual_seed(99)  # whatever else the process did
    file.seek(0)
    again = replica(corpus, name, seed=5)
    again.restore(torch.load(file, weights_only=True))
    assert [again.step(height) for height in range(4, 8)] == expected
    assert torch.equal(again.local, ours.local)
    assert torch.equal(again.theta, ours.theta)


def test_adopting_replaces_or_keeps_one_fragment(corpus: Corpus) -> None:
    ours = replica(corpus)
    for height in range(3):
        ours.step(height)
    (a, b), (c, d) = ours._layout.bounds
    theta, local = ours.theta.clone(), ours.local.clone()
    new = theta[a:b] + 1
    ours.adopt(0, new, keep=False)
    assert torch.equal(ours.local[a:b], new)
    assert torch.equal(ours.theta[a:b], new)
    assert torch.equal(ours.local[c:d], local[c:d])
    assert not ours.delta(0).any()
    newer = theta[c:d] - 1
    ours.adopt(1, newer, keep=True)
    assert torch.equal(ours.local[c:d], (local[c:d] - theta[c:d]) + newer)
    torch.testing.assert_close(ours.delta(1), (theta - local)[c:d], rtol=1e-5, atol=1e-6)
    ours.adopt(ALL_FRAGMENTS, theta, keep=False)
    assert torch.equal(ours.local, theta)


def test_the_base_is_evaluated_not_the_local_model(corpus: Corpus) -> None:
    ours = replica(corpus, "qwen2")
    before = ours.evaluate(2000)
    assert before is not None
    assert before[1] == 1984
    for height in range(10):
        ours.step(height)
    assert ours.evaluate(2000) == before
    ours.adopt(ALL_FRAGMENTS, ours.local.clone(), keep=False)
    after = ours.evaluate(2000)
    assert after is not None
    assert after[0] < before[0] - 0.1
    windows = corpus.heldout(2000)
    made = models.build(built("qwen2")[0])
    with torch.no_grad():
        for name, value in zip([n for n, _ in made.named_parameters()], ours._model.parameters(), strict=True):
            made.get_parameter(name).copy_(value)
        found = torch.nn.functional.cross_entropy(made.eval()(windows[:, :-1]).logits.flatten(0, 1), windows[:, 1:].flatten())
    assert after[0] == pytest.approx(found.item(), rel=1e-5)


def test_no_heldout_text_is_no_evaluation() -> None:
    from tests.training.test_data import counting

    corpus = Corpus(counting(40), None, tokens=INNER.tokens, seed=0)
    assert replica(corpus).evaluate(100) is None


def test_a_step_that_is_not_finite_is_skipped(corpus: Corpus) -> None:
    ours = replica(corpus)
    ours.step(0)
    ours.local[:] = math.nan
    assert math.isnan(ours.step(1))
    assert torch.isfinite(ours.theta).all()
    assert ours.counter == 2
    ours.adopt(ALL_FRAGMENTS, ours.theta.clone(), keep=False)
    assert math.isfinite(ours.step(2))


@pytest.mark.parametrize("room", [[3], [1], [4, 4, 2, 2, 2, 1]])
def test_a_batch_that_memory_is_too_small_for_is_taken_in_pieces(room: list[int], corpus: Corpus) -> None:
    """`room`: for so many windows at each forward pass, for the last number from then on. The same gradients come of it."""
    left = list(room)

    def full(model: torch.nn.Module, given: tuple[()], named: dict[str, torch.Tensor]) -> None:
        if len(named["input_ids"]) > (left.pop(0) if len(left) > 1 else left[0]):
            raise torch.OutOfMemoryError("CUDA out of memory")

    ours, tight = replica(corpus, "qwen2"), replica(corpus, "qwen2")
    tight._model.register_forward_pre_hook(full, with_kwargs=True)
    assert tight.evaluate(2000) == pytest.approx(ours.evaluate(2000), rel=1e-5)
    for height in range(4):
        assert tight.step(height) == pytest.approx(ours.step(height), rel=1e-5)
    torch.testing.assert_close(tight.delta(ALL_FRAGMENTS), ours.delta(ALL_FRAGMENTS), rtol=1e-3, atol=1e-6)


def test_memory_that_is_too_small_for_one_window_is_an_error(corpus: Corpus) -> None:
    def full(model: torch.nn.Module, given: tuple[()]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    ours = replica(corpus)
    ours._model.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        ours.step(0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("local"),
        lambda state: state.update(theta=state["theta"][:-1]),
        lambda state: state.update(local=state["local"].double()),
        lambda state: state.update(local=state["local"] * math.inf),
        lambda state: state.update(counter=-1),
        lambda state: state["optimizer"].update(kind=2),
        lambda state: state["optimizer"]["optimizers"][-1]["param_groups"].pop(),
    ],
)
def test_a_state_of_something_else_changes_nothing(damage, corpus: Corpus) -> None:  # type: ignore[no-untyped-def]
    state = replica(corpus, seed=3).state()
    damage(state)
    ours = replica(corpus)
    ours.step(0)
    theta, local, moments = ours.theta.clone(), ours.local.clone(), copy.deepcopy(ours.optimizer.state())
    with pytest.raises((ValueError, KeyError, TypeError)):
        ours.restore(state)
    assert torch.equal(ours.theta, theta)
    assert torch.equal(ours.local, local)
    torch.testing.assert_close(ours.optimizer.state(), moments, rtol=0, atol=0)
