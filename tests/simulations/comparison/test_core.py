"""The comparison's core: people, generic model, upper layers, umbel's contestants, cells."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.simulations.comparison.small_world import LABELS, QUERY, K, small_world

from umbel.coordinator.backbone import Backbone
from umbel.coordinator.training.adapt import generic_logits, held_out_loss, mean_states, opinions
from umbel.coordinator.training.data import Rows
from umbel.shared.errors import ConfigError, DataError
from umbel.shared.files import refuse_taken
from umbel.shared.text import TextEncoder
from umbel.simulations.comparison import place
from umbel.simulations.comparison.cache import text_model, upper_model
from umbel.simulations.comparison.cells import RESULT, compare
from umbel.simulations.comparison.cohort import gather_cohort
from umbel.simulations.comparison.config import ComparisonConfig, ContestantConfig, DataSetConfig
from umbel.simulations.comparison.contestant import World, restricted
from umbel.simulations.comparison.generic import generic_model
from umbel.simulations.comparison.page import page
from umbel.simulations.comparison.place import settings_of
from umbel.simulations.comparison.profiles import Profiles, reach
from umbel.simulations.comparison.results import (
    Comparison,
    ComparisonError,
    read_cell,
    read_comparison,
    write_cell,
)
from umbel.simulations.comparison.rivals import REGISTRY
from umbel.simulations.comparison.summary import Summary
from umbel.simulations.progress import Progress


def community(**options: Any) -> DataSetConfig:
    base = {"source": "community", "users": 24, "people": 3, "more_people": 2, "query": 6, "k": [2, 8]}
    return DataSetConfig.model_validate(base | options)


def test_new_people_are_not_seen_and_have_enough_examples(backbone: Backbone) -> None:
    encoder = TextEncoder(backbone.tokenizer_json, 16)
    section = community(training_users=9, calibration_users=1, more_calibration_users=5)
    cohort = gather_cohort("made up", section, None, encoder, 8, 1)
    assert len(cohort.people) == 3
    assert len(cohort.more) == 2
    assert len(cohort.calibration) == 1
    assert len(cohort.more_calibration) == 1
    seen = set(cohort.data.users)
    for person in (*cohort.people, *cohort.more):
        assert person.user not in seen
        assert len(person.support) >= 8
        assert 0 < len(person.query) <= 6
        assert not set(person.support.text) & set(person.query.text)
    assert len(cohort.table.users) == 9
    assert set(cohort.table.users) <= seen
    for number, user in enumerate(cohort.table.users):
        mine = cohort.table.train.text[cohort.table.train.user == number]
        theirs = cohort.data.train.text[cohort.data.train.user == cohort.data.users.index(user)]
        assert Counter(mine) == Counter(theirs)
    assert len(cohort.texts) == len(cohort.data.tokens) == len(set(cohort.texts))
    assert cohort.best is not None
    assert len(cohort.best) == 3
    calibration = (*cohort.calibration, *cohort.more_calibration)
    assert all(len(person.support) == 8 for person in calibration)
    assert len({person.user for person in calibration}) == 2


def test_tasks_are_trained_on_all_their_examples_and_on_no_others(backbone: Backbone) -> None:
    encoder = TextEncoder(backbone.tokenizer_json, 16)
    section = community(tasks=True, k=[8], calibration_query=4, calibration_users=2)
    cohort = gather_cohort("tasks", section, None, encoder, 8, 1)
    assert len(cohort.calibration) == 2
    assert len(cohort.people) == len(cohort.data.users) == 24
    for number, person in enumerate(cohort.people):
        assert person.user == cohort.data.users[number]
        train, held = (
            rows.take(np.flatnonzero(rows.user == number))
            for rows in (cohort.data.train, cohort.data.validation)
        )
        assert sorted(train.text) == sorted(person.support.text)
        assert len(train) == 8
        assert len(held) == 4
        assert not set(held.text) & (set(train.text) | set(person.query.text))
        if number < 2:
            assert np.array_equal(cohort.calibration[number].query.text, held.text)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=40))
def test_opinions_count_every_judgement(rows: list[tuple[int, int]]) -> None:
    text, label = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    found = opinions(Rows(text, np.zeros_like(text), label), 3)
    counted = Counter(rows)
    for row, number in enumerate(found.text):
        for each in range(3):
            assert found.counts[row, each] == counted[(int(number), each)]
    assert found.counts.sum() == len(rows)


def test_generic_model_learns_and_is_read_back(backbone: Backbone, world: World, tmp_path: Path) -> None:
    heard: list[int] = []
    # Judged by what it was trained on: 144 made-up judgements are too few for others.
    data = replace(world.cohort.data, validation=world.cohort.data.train)

    def made(rate: float, steps: int, kept: str) -> Any:
        return generic_model(
            backbone,
            data,
            steps=steps,
            rate=rate,
            traits=2,
            batch_size=16,
            seed=0,
            precision=world.precision,
            kept=tmp_path / kept,
            on_step=lambda done, of: heard.append(done),
        )

    first = made(1e-3, 40, "a")
    assert heard == list(range(1, 41))
    again = made(1e-3, 40, "a")
    assert len(heard) == 40  # it was read
    for name, value in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    untrained = made(1e-9, 1, "b")
    assert held_out_loss(first, data, world.precision) < held_out_loss(untrained, data, world.precision)
    head = made(0.0, 5, "c")
    for name, value in backbone.module.state_dict().items():
        assert torch.equal(head.encoder.state_dict()[name], value), name
    # What the head was trained on is what the whole model computes.
    texts = np.arange(len(data.tokens))
    states = mean_states(head, data, texts, world.precision)
    logits = generic_logits(head, data, texts, world.precision)
    torch.testing.assert_close(states @ head.task.weight.T + head.task.bias, logits, rtol=1e-5, atol=1e-5)
    assert held_out_loss(made(0.0, 80, "d"), data, world.precision) < held_out_loss(
        untrained, data, world.precision
    )


@pytest.mark.parametrize("layers", [1, 2])
def test_upper_layers_give_what_the_whole_encoder_gives(world: World, layers: int) -> None:
    tokens = world.cohort.data.tokens
    shorter, model, rows = upper_model(world.backbone, world.generic, tokens, layers, False)
    assert shorter.shape.layers == layers
    texts = np.arange(len(tokens))
    whole = generic_logits(world.generic, world.cohort.data, texts, world.precision)
    upper = generic_logits(model, replace(world.cohort.data, tokens=rows), texts, world.precision)
    assert float(whole.std()) > 0.01
    torch.testing.assert_close(upper, whole, rtol=1e-5, atol=1e-5)


def test_a_table_of_texts_gives_what_the_whole_encoder_gives(world: World, tmp_path: Path) -> None:
    own = contestant(headfactors={"user_size": 3}, headbias={})
    assert reach(own) == "texts"
    data = world.cohort.data
    backbone, model, rows = text_model(world.backbone, world.generic, data.tokens, False)
    tabled = replace(world.cohort, data=replace(data, tokens=rows), table=replace(data, tokens=rows))
    short = replace(world, cohort=tabled, backbone=backbone, generic=model, folder=tmp_path / "short")
    long = replace(world, cohort=replace(world.cohort, table=data), folder=tmp_path / "long")
    people, found = world.cohort.people, []
    for one in (short, long):
        made = Profiles(one, "own", own)
        made.prepare(lambda done, of: None)
        found.append(made.logits(people, K[-1], made.options()[0]))
    for tabled_logits, logits in zip(*found, strict=True):
        assert float(logits.std()) > 0.01
        np.testing.assert_allclose(tabled_logits, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layers", [0, 3])
def test_layers_that_are_not_there_are_refused(world: World, layers: int) -> None:
    with pytest.raises(ConfigError, match="personal_layers"):
        upper_model(world.backbone, world.generic, world.cohort.data.tokens, layers, False)


def contestant(**methods: dict[str, Any]) -> ContestantConfig:
    return ContestantConfig.model_validate(
        {"methods": methods, "learning_rate": [0.5], "prior_strength": [0.1]}
    )


@pytest.mark.parametrize(
    "methods", [{"plora": {"rank": 2, "user_size": 3}}, {"headbias": {}, "lopa": {"rows": 2, "rank": 1}}]
)
def test_profiles_learn_and_nobody_else_matters(
    world: World, tmp_path: Path, methods: dict[str, Any]
) -> None:
    own = contestant(**methods)
    assert reach(own) == ("whole" if "lopa" in methods else "layers")
    made = Profiles(replace(world, folder=tmp_path), "own", own)
    made.prepare(lambda done, of: None)
    options = made.options()[0]
    people = world.cohort.people
    together = made.logits(people, K[-1], options)
    alone = [made.logits([person], K[-1], options)[0] for person in people]
    for one, other in zip(together, alone, strict=True):
        assert one.shape == (QUERY, len(LABELS))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    asked = [replace(person, query=person.support) for person in people]
    assert _nll(made, asked, K[-1], options) < _nll(made, asked, 0, options)
    costs = made.costs()
    assert costs.private_bytes == 2 * costs.private_numbers
    with pytest.raises(RuntimeError):
        Profiles(world, "unprepared", own).costs()


def test_with_the_generic_head_answers_without_a_profile_are_the_generic_models(
    world: World, tmp_path: Path
) -> None:
    row = contestant(headfactors={"user_size": 3}, headbias={}).model_dump() | {"head": "generic"}
    made = Profiles(replace(world, folder=tmp_path), "own", ContestantConfig.model_validate(row))
    made.prepare(lambda done, of: None)
    generic = REGISTRY["generic"](world)
    people = world.cohort.people
    for own, other in zip(made.logits(people, 0, {}), generic.logits(people, 0, {}), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="encoder_layers"):
        ContestantConfig.model_validate(row | {"encoder_layers": 1})


def test_a_contestants_settings_are_as_they_were_before_there_was_a_choice_of_heads() -> None:
    assert "head" not in contestant(headbias={}).resolved()
    row = contestant(headbias={}).model_dump() | {"head": "generic"}
    assert ContestantConfig.model_validate(row).resolved()["head"] == "generic"


def _nll(made: Profiles, people: Any, k: int, options: Any) -> float:
    total = []
    for person, logits in zip(people, made.logits(people, k, options), strict=True):
        z = restricted(logits, person).astype(np.float64)
        z -= np.log(np.exp(z).sum(1, keepdims=True))
        total.append(-z[np.arange(len(z)), person.query.label].mean())
    return float(np.mean(total))


def test_tasks_take_the_profiles_that_training_learned(backbone: Backbone, tmp_path: Path) -> None:
    tasks = small_world(backbone, tmp_path, tasks=True)
    seen = tasks.cohort.table.users[:2]
    people = [replace(p, user=user) for p, user in zip(tasks.cohort.people, seen, strict=False)]
    made = Profiles(tasks, "own", contestant(plora={"rank": 2, "user_size": 3}))
    made.prepare(lambda done, of: None)
    assert list(made.options()) == [{}]
    with_profiles = made.logits(people, 6, {})
    swapped = made.logits([replace(people[0], user=people[1].user)], 6, {})
    assert np.abs(with_profiles[0] - swapped[0]).max() > 1e-6


@pytest.fixture
def config(backbone: Backbone) -> ComparisonConfig:
    row = {
        "seeds": [0, 1],
        "batch_size": 8,
        "backbone": {"name": backbone.name},
        "rivals": ["generic", "headbias"],
        "data": {
            "made-up": community(
                calibration_share=0.2,
                generic_steps=3,
                steps=3,
                learning_steps=2,
                max_tokens=16,
                personal_layers=1,
            ).model_dump(mode="json"),
            "films": {"source": "movielens", "folder": "films"},
        },
        "contestants": {"plora": {"methods": {"plora": {"rank": 2, "user_size": 2}}}},
    }
    return ComparisonConfig.model_validate(row)


def test_cells_are_run_once_and_again_where_something_changed(
    config: ComparisonConfig, tmp_path: Path
) -> None:
    found = compare(config, tmp_path, None, seeds=[0], progress=Progress(quiet=True))
    assert [cell.contestant for cell in found.cells] == ["generic", "headbias", "plora"]
    assert found == read_comparison(tmp_path / RESULT)
    generic, bias, own = found.cells
    assert list(generic.k) == ["0"]
    assert list(bias.k) == list(own.k) == ["0", "2", "8"]
    assert generic.people == 5
    assert own.people == 3
    # The generic model is everybody's where nothing is known of a person.
    assert bias.k["0"].right == generic.k["0"].right[:3]
    cells = tmp_path / "cells"
    before = {path.name: path.stat().st_mtime_ns for path in cells.iterdir()}
    again = compare(config, tmp_path, None, seeds=[0], progress=Progress(quiet=True))
    assert again.cells == found.cells
    assert {path.name: path.stat().st_mtime_ns for path in cells.iterdir()} == before
    row = config.model_dump(mode="json")
    row["contestants"]["plora"]["shared_rate"] = 5e-3
    changed = ComparisonConfig.model_validate(row)
    compare(changed, tmp_path, None, seeds=[0], progress=Progress(quiet=True))
    after = {path.name: path.stat().st_mtime_ns for path in cells.iterdir()}
    assert [name for name in after if after[name] != before[name]] == ["made-up.0.plora.json"]
    (cells / "made-up.0.generic.json").write_text("{")
    # What is of another configuration, or cannot be read, is no part of the result until it is run again.
    row["contestants"]["plora"]["shared_rate"] = 6e-3
    compare(
        ComparisonConfig.model_validate(row),
        tmp_path,
        None,
        only=["headbias"],
        seeds=[0],
        progress=Progress(quiet=True),
    )
    assert [cell.contestant for cell in read_comparison(tmp_path / RESULT).cells] == ["headbias"]
    compare(changed, tmp_path, None, only=["generic"], seeds=[0], progress=Progress(quiet=True))
    assert len(read_comparison(tmp_path / RESULT).cells) == 3


def test_a_cell_depends_on_the_steps_of_its_own_training_alone(config: ComparisonConfig) -> None:
    row = config.model_dump(mode="json")
    row["contestants"]["headbias+"] = {"methods": {"headbias": {}}}
    config = ComparisonConfig.model_validate(row)

    def changed(name: str) -> set[str]:
        other = row | {"data": row["data"] | {"made-up": row["data"]["made-up"] | {name: 77}}}
        names = ("generic", "lora", "fedavg", "plora", "headbias+")
        configs = (config, ComparisonConfig.model_validate(other))
        hashes = [[settings_of(each, "made-up", 0, name) for name in names] for each in configs]
        return {name for name, one, two in zip(names, *hashes, strict=True) if one != two}

    assert changed("steps") == {"plora"}
    assert changed("rival_steps") == {"fedavg"}
    assert changed("text_steps") == changed("more_calibration_users") == {"headbias+"}
    assert changed("generic_steps") == {"generic", "lora", "fedavg", "plora", "headbias+"}


def test_cells_of_an_earlier_result_are_taken_where_they_fit(
    config: ComparisonConfig, tmp_path: Path
) -> None:
    quiet = Progress(quiet=True)
    names = ["generic", "headbias"]
    first = compare(config, tmp_path / "a", None, only=names, seeds=[0], progress=quiet)
    changed = config.model_copy(update={"batch_size": 4})
    taken = tmp_path / "a" / RESULT
    again = compare(config, tmp_path / "b", None, only=["generic"], seeds=[0], taken=taken, progress=quiet)
    assert again.cells == first.cells
    other = compare(changed, tmp_path / "c", None, only=["generic"], seeds=[0], taken=taken, progress=quiet)
    (cell,) = other.cells
    assert cell.identity != first.cells[0].identity
    with pytest.raises(ComparisonError, match="is not a comparison"):
        compare(config, tmp_path / "d", None, taken=tmp_path / "nothing", progress=quiet)
    assert not (tmp_path / "d").exists()


def test_cells_of_a_machine_with_other_units_stay(
    config: ComparisonConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Progress(quiet=True)

    def measured(name: str, *, units: bool) -> Comparison:
        monkeypatch.setattr(place, "uses_bfloat16", lambda precision: units)
        return compare(config, tmp_path, None, only=[name], seeds=[0], progress=quiet)

    (first,) = measured("generic", units=True).cells
    # Asked for again, it is not run again; what is new is measured as this machine can.
    kept, second = (*measured("generic", units=False).cells, *measured("headbias", units=False).cells[1:])
    assert kept == first
    assert (first.precision, second.precision) == ("bfloat16", "float32")
    found = measured("generic", units=False)
    assert Summary(found, draws=10).precisions == {
        "bfloat16": (first.title,),
        "float32": (second.title,),
    }
    words = " ".join(page(found, draws=10).split())
    assert f"Matrix products were in bfloat16, in float32 for {second.title}." in words
    # A cell that says another precision than its own is run again when it is asked for.
    path = tmp_path / "cells" / "made-up.0.generic.json"
    write_cell(path, first.model_copy(update={"precision": "float32"}))
    (again, _) = measured("generic", units=False).cells
    assert again.precision == "float32"
    assert again.identity != first.identity


def test_who_begins_with_the_pretrained_encoder_needs_no_generic_model(
    config: ComparisonConfig, tmp_path: Path
) -> None:
    only, work = ["shared-lora"], tmp_path / "work" / "made-up-0"
    widened = config.model_copy(update={"rivals": (*config.rivals, *only)})
    compare(widened, tmp_path, None, only=only, seeds=[0], progress=Progress(quiet=True))
    assert not list(work.glob("generic-*"))
    compare(widened, tmp_path, None, only=["generic"], seeds=[0], progress=Progress(quiet=True))
    assert len(list(work.glob("generic-*"))) == 1


def test_workers_give_the_same_figures(config: ComparisonConfig, tmp_path: Path) -> None:
    alone, apart = (
        compare(
            config,
            tmp_path / str(workers),
            None,
            only=["headbias", "plora"],
            threads=1,
            workers=workers,
            progress=Progress(quiet=True),
        )
        for workers in (1, 2)
    )
    assert len(apart.cells) == 4
    for one, other in zip(alone.cells, apart.cells, strict=True):
        assert (one.identity, one.chosen) == (other.identity, other.chosen)
        for k, figures in one.k.items():
            assert (figures.right, figures.nll) == (other.k[k].right, other.k[k].nll)


def test_a_contestant_takes_part_where_the_configuration_says(config: ComparisonConfig) -> None:
    row = config.model_dump(mode="json")
    row["contestants"]["plora"]["data"] = ["films"]
    narrowed = ComparisonConfig.model_validate(row)
    assert narrowed.on("films") == ("generic", "headbias", "plora")
    assert narrowed.on("made-up") == ("generic", "headbias")
    row["data"]["films"]["rivals"] = ["headbias"]
    assert ComparisonConfig.model_validate(row).on("films") == ("headbias", "plora")
    row["data"]["films"]["rivals"] = ["lora"]
    with pytest.raises(ValueError, match="'lora' is not among rivals"):
        ComparisonConfig.model_validate(row)
    row["data"]["films"]["rivals"] = []
    row["contestants"]["plora"]["data"] = ["books"]
    with pytest.raises(ValueError, match="there is no data set 'books'"):
        ComparisonConfig.model_validate(row)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"seeds": [0, 0]}, "each one once"),
        ({"rivals": ["generic", "generic"]}, "each one once"),
        ({"rivals": ["generic", "plora"]}, "a rival has this name"),
        ({"data": {"../films": {"source": "community"}}}, "pattern"),
        ({"data": {"films": {"source": "movielens"}}}, "needs folder"),
        ({"data": {"films": {"source": "movielens", "folder": ".."}}}, "needs folder"),
        ({"contestants": {"my plora": {"methods": {"plora": {}}}}}, "pattern"),
        (
            {"contestants": {"own": {"methods": {"plora": {}}, "learning_rate": [-1]}}},
            "greater than",
        ),
    ],
)
def test_a_configuration_is_refused_before_anything_is_run(
    config: ComparisonConfig, change: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        ComparisonConfig.model_validate(config.model_dump(mode="json") | change)


def test_what_cannot_be_measured_is_found_first(config: ComparisonConfig, tmp_path: Path) -> None:
    quiet = Progress(quiet=True)
    strangers = config.model_copy(update={"rivals": ("generic", "nobody")})
    with pytest.raises(ConfigError, match="the comparison has no such rivals"):
        compare(strangers, tmp_path / "out", None, progress=quiet)
    deep = config.data["made-up"].model_copy(update={"personal_layers": 9, "max_tokens": 500})
    changed = config.model_copy(update={"data": {"made-up": deep}})
    with pytest.raises(ConfigError) as caught:
        compare(changed, tmp_path / "out", None, progress=quiet)
    assert [problem.split(" is ")[0] for problem in caught.value.problems] == [
        "data.made-up.personal_layers",
        "data.made-up.max_tokens",
    ]
    (tmp_path / "films").mkdir()
    with pytest.raises(DataError):
        compare(config, tmp_path / "out", tmp_path, only=["films", "generic"], progress=quiet)
    assert not (tmp_path / "out").exists()


def test_a_cell_that_is_not_what_its_name_says_is_run_again(config: ComparisonConfig, tmp_path: Path) -> None:
    quiet = Progress(quiet=True)
    first = compare(config, tmp_path, None, only=["generic", "headbias"], seeds=[0], progress=quiet)
    cells = tmp_path / "cells"
    (cells / "made-up.0.headbias.json").write_bytes((cells / "made-up.0.generic.json").read_bytes())
    again = compare(config, tmp_path, None, only=["headbias"], seeds=[0], progress=quiet)
    assert [cell.contestant for cell in again.cells] == ["generic", "headbias"]
    assert again.cells[1].k["8"].right == first.cells[1].k["8"].right
    # Cells of other examples do not belong beside those that are measured now.
    stale = read_cell(cells / "made-up.0.headbias.json").model_copy(update={"examples": "others"})
    write_cell(cells / "made-up.0.headbias.json", stale)
    left = compare(config, tmp_path, None, only=["generic"], seeds=[0], progress=quiet)
    assert [cell.contestant for cell in left.cells] == ["generic"]


def test_what_is_not_there_is_told(config: ComparisonConfig, tmp_path: Path) -> None:
    quiet = Progress(quiet=True)
    with pytest.raises(ConfigError) as caught:
        compare(config, tmp_path, None, only=["nothing", "plora"], seeds=[0, 9], progress=quiet)
    assert caught.value.problems == ("there is no 'nothing'", "there is no seed 9")
    with pytest.raises(ConfigError, match="none of the data sets"):
        compare(config, tmp_path, tmp_path, only=["films"], progress=quiet)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("config", "seeds"), ["0"]),
        (("config", "data", "made-up", "k"), ["2", 8]),
        (("config", "notes"), ["half a pair: \ud800"]),
        (("cells", 0, "best"), [0.5]),
        (("cells", 0, "best"), []),
    ],
)
def test_a_result_that_was_edited_is_refused(
    config: ComparisonConfig, tmp_path: Path, place: tuple[Any, ...], value: object
) -> None:
    compare(config, tmp_path, None, only=["generic"], seeds=[0], progress=Progress(quiet=True))
    row = json.loads((tmp_path / RESULT).read_text(encoding="utf-8"))
    part = row
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (tmp_path / RESULT).write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(ComparisonError, match="is not a comparison"):
        read_comparison(tmp_path / RESULT)


def test_a_comparisons_folder_is_kept_from_others(config: ComparisonConfig, tmp_path: Path) -> None:
    compare(config, tmp_path, None, only=["generic"], seeds=[0], progress=Progress(quiet=True))
    with pytest.raises(ConfigError, match="holds a comparison"):
        refuse_taken(tmp_path)
    compare(config, tmp_path, None, only=["generic"], seeds=[0], progress=Progress(quiet=True))
