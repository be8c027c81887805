"""Rounds against central training on a tiny community: the whole of it, stopped, resumed, refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.builders import random_examples
from tests.coordinator.conftest import tiny_config, write_backbone

from umbel import cli
from umbel.coordinator.server_app import release_trainables
from umbel.device_client.engine import Engine
from umbel.shared.errors import ConfigError
from umbel.shared.examples import Example, write_examples
from umbel.shared.release import read_release
from umbel.shared.rng import generator
from umbel.simulations.against_central.config import read_against_central
from umbel.simulations.against_central.gains import gains
from umbel.simulations.against_central.groups import Asked
from umbel.simulations.against_central.library import Library
from umbel.simulations.against_central.looking import Looking
from umbel.simulations.against_central.page import page
from umbel.simulations.against_central.panel import Panel
from umbel.simulations.against_central.results import AgainstCentral, Seed, chosen, read
from umbel.simulations.against_central.run import run_against_central
from umbel.simulations.data.splits import UserExamples
from umbel.simulations.evaluation import evaluate_users
from umbel.simulations.progress import Progress

EXPERIMENT = """
seeds = [0]
[backbone]
name = "{encoder}"
train = "none"
max_tokens = 16
[methods.headbias]
[training]
max_steps = 12
batch_size = 16
head_rate = 0.05
evaluate_every = 4
[recipe]
steps = [4]
prior_strength = [1.0]
folds = 0
[data]
source = "file"
path = "{encoder}.jsonl"
min_examples = 10
[groups]
public = 5
public_examples = 8
validation = 4
device_examples = 12
[central]
look_every = 10
tried = [{{ max_steps = 20 }}, {{ max_steps = 15, private_prior = 0.2 }}]
[rounds]
engine = "serial"
rounds = 4
clients = 5
local_rate = 0.5
server_momentum = 0.5
weighting = "examples"
min_devices_in_a_sum = 3
[federated]
look_every = 2
rates = [1.0, 0.2]
secure_rounds = 1
tried = [{{ local_rate = 0.3 }}, {{ profile_dropout = 0.0 }}]
[evaluation]
k = 4
query = 8
"""


def opinions(user: int) -> list[Example]:
    """Twenty texts that everybody judges by the same words, but for some noise."""
    rng = generator(5, 0, str(user), "opinions")
    rows = random_examples(1, f"person {user}", 20)
    told = ["good" in row.text or ("bad" not in row.text and rng.random() < 0.5) for row in rows]
    return [replace(row, label=("no", "yes")[own]) for row, own in zip(rows, told, strict=True)]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny experiment."""
    folder = tmp_path_factory.mktemp("against") / "tiny"
    encoder = write_backbone(folder / "encoder", tiny_config("bert"))
    write_examples(folder / "encoder.jsonl", [row for user in range(26) for row in opinions(user)])
    (folder / "config.toml").write_text(EXPERIMENT.format(encoder=encoder))
    return folder


@pytest.fixture(scope="module")
def whole(experiment: Path) -> Path:
    """The folder of a run that nothing stopped."""
    out = experiment.parent / "whole"
    assert cli.main(["simulate", str(experiment), "--out", str(out), "--threads", "1"]) == 0
    return out


def figures(folder: Path) -> str:
    """Returns all figures of a result but times."""
    row = read(AgainstCentral, folder / "result.json").model_dump(mode="json")
    for seed in row["seeds"]:
        for tried in (*seed["central_tried"], *seed["federated_tried"]):
            del tried["seconds"]
        for traffic in (seed["traffic"], seed["secure"]["traffic"]):
            del traffic["seconds"]
    return json.dumps(row["seeds"])


def seed_of(folder: Path) -> Seed:
    return read(AgainstCentral, folder / "result.json").seeds[0]


def test_everything_is_measured_and_the_groups_share_nobody(whole: Path) -> None:
    found = seed_of(whole)
    assert (found.public, found.validation, found.devices, len(found.people)) == (5, 4, 9, 8)
    assert set(found.asked) == {8}
    assert found.shared_numbers == 2 * 32 + 2
    assert found.device_examples <= 9 * 12
    assert [[look.at for look in tried.looks] for tried in found.central_tried] == [[0, 10, 20], [0, 10, 15]]
    assert [[look.at for look in tried.looks] for tried in found.federated_tried] == [[0, 2, 4, 6, 8]] * 2
    starts = {tried.looks[0].nll for tried in (*found.central_tried, *found.federated_tried)}
    assert len(starts) == 1  # both sides begin with the same
    homes = [home for home in (whole / "seed-0" / "devices").iterdir() if home.is_dir()]
    assert [len(list(home.glob("read-*.npy"))) for home in homes] == [1] * 9  # nothing was read again


def test_both_sides_gain_and_their_releases_are_what_was_best(whole: Path) -> None:
    found = seed_of(whole)
    assert min(found.central_tried[0].best().nll, found.federated_tried[0].best().nll) < (
        found.central_tried[0].looks[0].nll
    )
    for name, tried, scores in (
        ("after-central", found.central_tried, found.central),
        ("after-rounds", found.federated_tried, found.federated),
    ):
        release = read_release(whole / "seed-0" / name)
        assert release.manifest.parent == read_release(whole / "seed-0" / "start").release_id
        best = tried[chosen(tried)].best()
        assert np.mean(scores.personal) == pytest.approx(best.unseen, abs=1e-5)
        assert release_trainables(release).keys() == release.manifest.trainables.keys()


def test_secure_sums_send_more_and_end_at_the_same_numbers(whole: Path) -> None:
    found = seed_of(whole)
    assert found.secure is not None
    assert found.secure.traffic.devices == found.traffic.devices == 5
    assert found.secure.traffic.bytes_up > found.traffic.bytes_up > 0
    assert found.secure.traffic.bytes_down > 0
    # A secure sum is of numbers rounded to a grid of the clip (decision 0033).
    assert found.secure.difference < 1e-3 * found.secure.change
    assert found.traffic.failures == found.secure.traffic.failures == 0


def test_a_panel_measures_what_an_evaluation_does(whole: Path, tmp_path: Path) -> None:
    """`evaluate_users` reads every text of every person by itself, and learns side by side."""
    engine = Engine(read_release(whole / "seed-0" / "after-rounds"))
    rows = [tuple(opinions(user)) for user in range(3)]
    people = [Asked(f"new {number}", own[:4], own[4:]) for number, own in enumerate(rows)]
    library = Library(engine, [row.text for own in rows for row in own], tmp_path)
    measured = Panel(library, people).measure()
    wanted = evaluate_users(
        engine,
        [UserExamples(person.user, person.learned, person.asked) for person in people],
        [4],
        query=16,
        batch_users=2,
    )[4]
    np.testing.assert_allclose(measured.generic, wanted.generic, rtol=0, atol=1e-12)
    np.testing.assert_allclose(measured.personal, wanted.personal, rtol=0, atol=1e-12)
    other = Panel(library, people).measure(engine.trainables())
    np.testing.assert_array_equal(other.nll, measured.nll)


@pytest.mark.parametrize("phase", ["central", "rounds"])
def test_a_stopped_run_goes_on_to_the_same_figures(
    experiment: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    config, out = read_against_central(experiment, None, None), tmp_path / "run"
    last = Looking.look
    count = {"central": 4, "rounds": 9}[phase]

    def stopping(self: Looking, at: int, values: object) -> object:
        nonlocal count
        count -= 1
        if count < 0:
            raise KeyboardInterrupt
        return last(self, at, values)  # type: ignore[arg-type]

    # What was trained and read before is taken from the whole run: it is not what is stopped here.
    for name in ("seed-0/training", "seed-0/start", "read"):
        shutil.copytree(whole / name, out / name)
    shutil.copy(whole / "run.json", out / "run.json")
    monkeypatch.setattr(Looking, "look", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_against_central(config, out, progress=Progress(quiet=True))
    monkeypatch.setattr(Looking, "look", last)
    run_against_central(config, out, progress=Progress(quiet=True))
    assert figures(out) == figures(whole)


def test_another_configuration_and_too_few_people_are_refused(
    experiment: Path, whole: Path, tmp_path: Path
) -> None:
    config = read_against_central(experiment, None, None)
    other = config.model_copy(update={"groups": config.groups.model_copy(update={"public": 4})})
    with pytest.raises(ConfigError, match="another configuration"):
        run_against_central(other, whole, progress=Progress(quiet=True))
    many = config.model_copy(update={"groups": config.groups.model_copy(update={"validation": 13})})
    with pytest.raises(ConfigError) as caught:
        run_against_central(many, tmp_path / "out", progress=Progress(quiet=True))
    assert caught.value.problems == ("nobody is left for: devices",)


def test_what_is_tried_is_checked_with_the_rest(experiment: Path, tmp_path: Path) -> None:
    text = (experiment / "config.toml").read_text()
    text = text.replace("max_steps = 20", "max_step = 20").replace("local_rate = 0.3", "local_rate = -1")
    (tmp_path / "config.toml").write_text(text.replace("look_every = 2", "look_every = 3"))
    with pytest.raises(ConfigError) as caught:
        read_against_central(tmp_path, None, None)
    told = caught.value.render()
    for part in (
        "central.tried.0: max_step: unknown key",
        "federated.tried.0: local_rate",
        "multiple of look_every",
    ):
        assert part in told


def test_the_page_says_what_came_out(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = read(AgainstCentral, whole / "result.json")
    share = gains(found.seeds, "personal").share.value
    text = page(found)
    assert ("are not reached" in text) == (not share >= 0.98)
    assert "With secure sums" in text
    assert cli.main(["results", str(whole / "result.json"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "federated-against-central.md").read_text() == text
    assert (tmp_path / "federated-against-central.svg").read_text().startswith("<?xml")
    capsys.readouterr()
    words = ["simulate", str(experiment_of(whole)), "--out", str(whole), "--json", "--threads", "1"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "umbel.against-central/1"


def experiment_of(whole: Path) -> Path:
    return whole.parent / "tiny"
