"""Texts are read once where methods act on their embeddings alone; the plain graphs are the slow twin."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tests.builders import random_examples

from umbel.device_client.caution import cautious_profiles
from umbel.device_client.device import cross_validate, learn_profile, onboard_profile
from umbel.device_client.engine import Engine
from umbel.device_client.learning import (
    Encoded,
    encode_examples,
    example_logits,
    learn_profiles,
    predict_logits,
    read_once,
    together,
)
from umbel.device_client.onboarding import examples_starter
from umbel.device_client.prediction import predict_texts
from umbel.device_client.releases.proving import Trial, cut
from umbel.device_client.rounds import evaluate, train
from umbel.device_client.simulated import SimulatedHome
from umbel.shared.errors import ReleaseError
from umbel.shared.examples import write_examples
from umbel.shared.messages import TRAIN, LocalSettings, RoundTask
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Release
from umbel.shared.rng import generator

pytestmark = pytest.mark.full  # the small release is made with torch


class Plain:
    """An engine that does not know of embeddings: it reads texts whenever it needs them."""

    embeds = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class Counted(Plain):
    """An engine that counts the texts that its encoder reads."""

    embeds = True

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.texts = 0

    def read(self, tokens: Any, shared: Any) -> Any:
        self.texts += len(tokens)
        return self._engine.read(tokens, shared)

    def predict(self, *_: Any) -> Any:
        raise AssertionError("a text that was read is read again")

    learn = predict


class Older(Plain):
    """An engine of a release without `contribute_embedded`."""

    embeds = True
    contributes_embedded = False


@pytest.fixture(scope="module")
def engine(embedded_release: Release) -> Engine:
    return Engine(embedded_release)


def supports(engine: Engine, *counts: int) -> list[Encoded]:
    return [
        encode_examples(engine, random_examples(0, str(number), count)) for number, count in enumerate(counts)
    ]


def profiles(engine: Engine, users: int) -> dict[str, FloatArray]:
    rng = generator(0, 0, "", "embedded profiles")
    zeros = engine.release.manifest.profile.zeros(users)
    return {name: rng.normal(0, 1, value.shape).astype(np.float32) for name, value in zeros.items()}


def moved(engine: Engine) -> dict[str, FloatArray]:
    """Values of the trainables as a round may have them."""
    rng = generator(0, 0, "", "embedded shared")
    own = {name: value for name, value in engine.trainables().items() if not name.startswith("onboarding.")}
    return {n: np.asarray(v + rng.normal(0, 0.1, v.shape), np.float32) for n, v in own.items()}


def close(found: Mapping[str, FloatArray], wanted: Mapping[str, FloatArray]) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert float(np.abs(values).max()) > 1e-3, name
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)


def test_only_methods_that_act_on_embeddings_alone_have_the_graphs(
    engine: Engine, tiny_release: Release
) -> None:
    assert engine.embeds
    assert not Engine(tiny_release).embeds
    assert max(engine.release.manifest.parity.values()) < 1e-5
    assert engine.contributes_embedded
    assert not Engine(tiny_release).contributes_embedded
    graphs = {"predict_embedded/logits", "learn_embedded/grad.headfactors.user"}
    assert graphs | {"contribute_embedded/grad.task.weight"} < set(engine.release.manifest.parity)


def test_the_encoder_is_not_in_the_graphs(engine: Engine) -> None:
    graphs = {
        name: engine.release.blob_path(f"{name}.onnx").read_bytes()
        for name in ("predict", "predict_embedded", "learn", "learn_embedded", "contribute_embedded")
    }
    assert {name: b"encoder." in data for name, data in graphs.items()} == {
        **dict.fromkeys(("predict", "learn"), True),
        **dict.fromkeys(("predict_embedded", "learn_embedded", "contribute_embedded"), False),
    }
    assert len(graphs["predict_embedded"]) < len(graphs["learn_embedded"]) < len(graphs["learn"]) / 2
    blob = engine.release.manifest.blobs["backbone.safetensors"].sha256.encode()
    for name in ("predict_embedded", "learn_embedded", "contribute_embedded"):
        assert blob not in engine.release.blob_path(f"{name}.onnx").read_bytes()


@pytest.mark.parametrize("in_a_round", [False, True])
def test_answers_and_gradients_are_those_of_the_plain_graphs(engine: Engine, in_a_round: bool) -> None:
    shared = moved(engine) if in_a_round else {}
    known = together(supports(engine, 5, 1, 7))
    owner, profile = np.repeat([0, 1, 2], [5, 1, 7]), profiles(engine, 3)
    _, embedding = engine.read(known.tokens, shared)
    wanted = engine.predict(known.tokens, owner, profile, shared)
    found = engine.predict_embedded(embedding, owner, profile, shared)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    nll, gradients = engine.learn(known.tokens, known.labels, owner, profile, shared)
    found_nll, found_gradients = engine.learn_embedded(embedding, known.labels, owner, profile, shared)
    np.testing.assert_allclose(found_nll, nll, rtol=1e-4, atol=1e-5)
    close(found_gradients, gradients)
    nll, gradients = engine.contribute(known.tokens, known.labels, owner, profile, shared)
    found_nll, found_gradients = engine.contribute_embedded(embedding, known.labels, owner, profile, shared)
    np.testing.assert_allclose(found_nll, nll, rtol=1e-4, atol=1e-5)
    close(found_gradients, gradients)
    assert found_gradients.keys() == engine.trainables().keys()


def test_profiles_are_those_of_the_plain_graphs_and_each_text_is_read_once(engine: Engine) -> None:
    parts, shared = supports(engine, 9, 0, 3), moved(engine)
    plain: Any = Plain(engine)
    counted: Any = Counted(engine)
    recipe = LearningRecipe(steps=5)
    close(
        learn_profiles(counted, parts, recipe, shared=shared),
        learn_profiles(plain, parts, recipe, shared=shared),
    )
    assert counted.texts == 12
    cautious = LearningRecipe(steps=4, folds=3, start=1.0)
    found = []
    for one in (counted, plain):
        counted.texts = 0
        start = examples_starter(engine, parts, cautious.start)
        found.append(cautious_profiles(one, parts, cautious, start=start))
        assert counted.texts == (12 if one is counted else 0)
    (own, strengths), (wanted, others) = found
    close(own, wanted)
    np.testing.assert_allclose(strengths, others, rtol=1e-4, atol=1e-5)
    assert 0 < strengths[0] < 1


def test_what_was_read_is_kept(engine: Engine) -> None:
    counted: Any = Counted(engine)
    once = read_once(counted, supports(engine, 3, 2))
    assert counted.texts == 5
    assert read_once(counted, once) == once
    (rows,) = read_once(counted, [once[0].rows([2, 0])])
    assert counted.texts == 5
    assert rows.embedding is not None
    assert once[0].embedding is not None
    np.testing.assert_array_equal(rows.embedding, once[0].embedding[[2, 0]])
    assert together([once[0], supports(engine, 1)[0]]).embedding is None
    empty = encode_examples(engine, [])
    assert read_once(counted, [empty])[0].embedding is not None
    assert example_logits(engine, read_once(counted, [empty])[0], profiles(engine, 1)).shape == (0, 2)


def test_a_device_reads_once_and_answers_as_the_plain_graphs_do(
    engine: Engine, embedded_release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = random_examples(0, "me", 8)
    texts = [example.text for example in random_examples(0, "me", 4, "texts")]
    found: list[Any] = []
    for embeds in (True, False):
        monkeypatch.setattr(Engine, "embeds", embeds)
        path = tmp_path / f"{embeds}.umbel"
        begun = onboard_profile(embedded_release, mine, texts, path)
        learned = learn_profile(embedded_release, mine, path, texts=texts)
        answers = predict_texts(embedded_release, texts, path)
        numbers = (
            begun.moved,
            *begun.influences,
            learned.nll_personal,
            learned.nll_generic,
            learned.strength,
        )
        found.append((*numbers, *(answer.probability for answer in answers)))
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-4)  # profiles are rounded to float16
    tokens = engine.encode(texts)
    unread = Encoded(tokens, np.zeros(4, np.int64))
    np.testing.assert_array_equal(
        example_logits(engine, unread, profiles(engine, 1)),
        predict_logits(engine, tokens, profiles(engine, 1)),
    )


def test_a_round_reads_a_text_once_and_gives_the_change_of_the_plain_graphs(
    engine: Engine, tmp_path: Path
) -> None:
    write_examples(tmp_path / "examples.jsonl", random_examples(0, "me", 6))
    write_examples(tmp_path / "heldout.jsonl", random_examples(1, "me", 4))
    home, counted = SimulatedHome(tmp_path, 3), Counted(engine)
    plain, older = Plain(engine), Older(engine)
    settings = LocalSettings(local_steps=3, local_rate=0.5, batch_size=4, clip=1e6, profile_dropout=0.3)
    task = RoundTask(engine.release.release_id, 1, 0, TRAIN, settings, moved(engine))
    first = train(cast(Engine, counted), home, 3, task)
    assert counted.texts == 6
    again = train(cast(Engine, counted), SimulatedHome(tmp_path, 3), 3, task)
    assert counted.texts == 6  # another round reads nothing
    for name, change in first.change.items():
        np.testing.assert_array_equal(change, again.change[name])
    for slow in (plain, older):  # no graphs behind the embedding; or those of earlier releases
        close(first.change, train(cast(Engine, slow), home, 3, task).change)
    counts = [evaluate(cast(Engine, one), home, task).correct for one in (counted, counted, plain)]
    assert counted.texts == 10
    assert len(set(counts)) == 1


def test_what_a_home_has_read_is_read_again_when_it_is_of_no_use(engine: Engine, tmp_path: Path) -> None:
    counted: Any = Counted(engine)
    home, (known, other) = SimulatedHome(tmp_path), supports(engine, 5, 5)
    wanted = home.read(counted, known).embedding
    (file,) = tmp_path.glob("read-*.npy")
    for damage in (b"", file.read_bytes()[:40], b"[1, 2]"):
        file.write_bytes(damage)
        before = counted.texts
        found = home.read(counted, known).embedding
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
        assert counted.texts == before + 5
    np.save(file, np.zeros((4, 3), np.float32))
    assert np.asarray(home.read(counted, known).embedding).shape == np.asarray(wanted).shape
    before = counted.texts
    assert not np.array_equal(np.asarray(home.read(counted, other).embedding), np.asarray(wanted))
    assert counted.texts == before + 5
    assert home.read(counted, encode_examples(engine, [])).embedding is None


def test_a_graph_that_is_not_what_it_says_is_refused(embedded_release: Release, tmp_path: Path) -> None:
    from tests.device_client.test_engine import forged

    other = embedded_release.blob_path("predict.onnx").read_bytes()
    wrong = forged(embedded_release, tmp_path / "forged", {"predict_embedded.onnx": lambda _: other})
    engine = Engine(wrong)
    with pytest.raises(ReleaseError, match="predict_embedded") as caught:
        engine.predict_embedded(np.zeros((1, 32), np.float32), np.zeros(1, np.int64), profiles(engine, 1), {})
    assert caught.value.problems


def test_releases_are_compared_over_three_ways_to_cut(embedded_release: Release) -> None:
    rows = [*random_examples(3, "owner", 9), random_examples(3, "owner", 1)[0]]
    trial = Trial("learned", rows, [], quick=True)
    cuts = [cut(rows, number) for number in range(3)]
    assert all(folds[0] == folds[-1] for folds in cuts)  # equal texts are never on both sides
    assert len({tuple(folds) for folds in cuts}) == 3
    each = [cross_validate(embedded_release, rows, folds) for folds in cuts]
    wanted = np.mean([own.nll_personal.mean() for own in each if own is not None])
    assert trial.nll(trial.texts(Engine(embedded_release)).read()) == wanted
