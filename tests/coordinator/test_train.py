"""Training: stopped anywhere, resumed to the same bits, nothing half-written, nothing private left behind."""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from tests.builders import WORDS
from tests.coordinator.conftest import TinyBackbone
from tests.coordinator.small_training import STEPS, people, train_small
from torch import Tensor

from umbel.coordinator.artifacts import DESCRIPTION, MODEL, TrainedModel, load_trained, rebuild
from umbel.coordinator.train import ADAPTATION, ONBOARDING
from umbel.coordinator.training import trainer
from umbel.coordinator.training.checkpoint import CHECKPOINT, Progress, load_checkpoint, save_checkpoint
from umbel.coordinator.training.trainer import METRICS, interrupts_held
from umbel.shared.errors import ConfigError, ExampleError, TrainingError
from umbel.shared.examples import Example


@pytest.fixture(scope="module")
def backbone(tiny_backbone: TinyBackbone) -> str:
    return tiny_backbone("bert").name


@pytest.fixture(scope="module")
def whole(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train_small(backbone, folder)
    return folder


def assert_same_training(found: Path, wanted: Path) -> None:
    assert (found / MODEL).read_bytes() == (wanted / MODEL).read_bytes()
    assert (found / METRICS).read_text() == (wanted / METRICS).read_text()
    assert (found / DESCRIPTION).read_text() == (wanted / DESCRIPTION).read_text()
    assert names(found) == names(wanted)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextmanager
def process(backbone: str, out: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.coordinator.small_training", backbone, str(out)]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def wait_for(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdout is not None
    for found in child.stdout:
        if found.strip() == line:
            return
    assert child.stderr is not None
    pytest.fail(f"'{line}' was never printed: {child.stderr.read()}")


def test_a_killed_training_goes_on_to_the_same_bits(backbone: str, whole: Path, tmp_path: Path) -> None:
    """SIGKILL after step 13: the checkpoint of step 10 is left, and a look of step 7."""
    with process(backbone, tmp_path) as child:
        wait_for(child, "train 13")
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert CHECKPOINT in names(tmp_path)
    assert not {MODEL, DESCRIPTION} & names(tmp_path)
    told: list[int] = []
    train_small(backbone, tmp_path, lambda phase, done, *_: told.append(done) if phase == "train" else None)
    assert 5 <= told[0] - 1 < STEPS
    assert told[-1] == STEPS
    assert_same_training(tmp_path, whole)


def test_ctrl_c_ends_the_step_and_keeps_it(backbone: str, whole: Path, tmp_path: Path) -> None:
    with process(backbone, tmp_path) as child:
        wait_for(child, "train 8")
        child.send_signal(signal.SIGINT)
        out, errors = child.communicate(timeout=60)
        assert child.returncode == 130, errors
        assert out.splitlines()[-1] == "interrupted"
    last = int(([8, *(int(line.split()[1]) for line in out.splitlines()[:-1])])[-1])
    told: list[int] = []
    train_small(backbone, tmp_path, lambda phase, done, *_: told.append(done) if phase == "train" else None)
    assert told[0] == last + 1
    assert_same_training(tmp_path, whole)


@pytest.mark.parametrize("step", [1, 5, 7, 12, 23, STEPS])
def test_stopped_after_any_step(backbone: str, whole: Path, tmp_path: Path, step: int) -> None:
    """Before the first checkpoint, on one, on a look, between both, and after the last step."""

    def stop(phase: str, done: int, *_: object) -> None:
        if phase == "train" and done == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_small(backbone, tmp_path, stop)
    assert DESCRIPTION not in names(tmp_path)
    train_small(backbone, tmp_path)
    assert_same_training(tmp_path, whole)


def test_stopped_while_the_recipe_is_chosen(backbone: str, tmp_path: Path) -> None:
    def stop(phase: str, *_: object) -> None:
        if phase == "choose recipe":
            raise KeyboardInterrupt

    recipe = {"prior_strength": [0.5, 2.0]}
    with pytest.raises(KeyboardInterrupt):
        train_small(backbone, tmp_path / "stopped", stop, recipe=recipe)
    assert train_small(backbone, tmp_path / "stopped", recipe=recipe).report["steps"] == STEPS
    train_small(backbone, tmp_path / "whole", recipe=recipe)
    assert_same_training(tmp_path / "stopped", tmp_path / "whole")


def agreeing(users: int = 40) -> list[Example]:
    """People of two tastes who all judge the same sixteen texts."""
    texts = [f"{mood} {a} {b}" for mood in ("good", "bad") for a in WORDS[2:6] for b in WORDS[6:8]]
    return [
        Example(f"person {user}", text, "yes" if (text.startswith("good")) == (user % 2 == 0) else "no")
        for user in range(users)
        for text in texts
    ]


def test_traits_are_trained_towards_resumed_to_the_same_bits_and_left_behind(
    backbone: str, tmp_path: Path
) -> None:
    def stop(phase: str, done: int, *_: object) -> None:
        if phase == "train" and done == 11:
            os.kill(os.getpid(), signal.SIGINT)

    changes: dict[str, Any] = {"examples": agreeing(), "backbone": {"train": "top:1"}}
    with_traits = train_small(backbone, tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        train_small(backbone, tmp_path / "stopped", stop, **changes)
    kept = load_checkpoint(tmp_path / "stopped", with_traits.fingerprint)
    assert kept is not None
    assert "weight/traits/matrix" in kept[1]
    train_small(backbone, tmp_path / "stopped", **changes)
    assert_same_training(tmp_path / "stopped", tmp_path / "whole")
    assert not any("traits" in name for name in with_traits.tensors)
    without = train_small(backbone, tmp_path / "without", training={"traits": 0}, **changes)
    assert not torch.equal(with_traits.tensors["task.weight"], without.tensors["task.weight"])


def test_an_encoder_is_adapted_first_then_frozen_and_kept(backbone: str, tmp_path: Path) -> None:
    """Stopped in its adaptation, or after it, it goes on to the same bits; methods leave it as it is then."""
    changes: dict[str, Any] = {"examples": agreeing(), "backbone": {"train": "top:1"}}
    changes["training"] = {"adapt_steps": 6, "adapt_rate": 1e-3}
    trained = train_small(backbone, tmp_path / "whole", **changes)
    assert ADAPTATION not in names(tmp_path / "whole")
    moved = {name for name in trained.tensors if name.startswith("encoder.")}
    assert moved
    assert all(".layer.1." in name for name in moved)
    _, model = rebuild(trained)
    assert all(torch.equal(model.get_parameter(name), trained.tensors[name]) for name in moved)
    for phase, step in (("adapt the encoder", 3), ("train", 9)):

        def stop(found: str, done: int, *_: object, phase: str = phase, step: int = step) -> None:
            if found == phase and done == step:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train_small(backbone, tmp_path / phase, stop, **changes)
        train_small(backbone, tmp_path / phase, **changes)
        assert_same_training(tmp_path / phase, tmp_path / "whole")
    longer = train_small(
        backbone,
        tmp_path / "longer",
        **changes | {"training": {"adapt_steps": 6, "adapt_rate": 1e-3, "max_steps": 5}},
    )
    assert all(torch.equal(longer.tensors[name], trained.tensors[name]) for name in moved)


def test_onboarding_is_trained_kept_shown_and_tried_with_recipes(backbone: str, tmp_path: Path) -> None:
    """A text that fewer than three people judged is not shown; a stop in its training changes nothing."""
    own = [
        Example("person 0", "tender film we like", "yes"),
        Example("person 1", "tender film they like", "no"),
    ]
    onboarding = {"steps": 2, "warm_steps": 6, "prototypes": 3, "code_size": 4, "hidden": 5, "users": 4}
    changes: dict[str, Any] = {"examples": [*agreeing(), *own], "onboarding": onboarding}

    def stop(phase: str, done: int, *_: object) -> None:
        if phase == "train onboarding" and done == 7:
            os.kill(os.getpid(), signal.SIGINT)

    trained = train_small(backbone, tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        train_small(backbone, tmp_path / "stopped", stop, **changes)
    assert ONBOARDING in names(tmp_path / "stopped")
    train_small(backbone, tmp_path / "stopped", **changes)
    assert_same_training(tmp_path / "stopped", tmp_path / "whole")
    assert ONBOARDING not in names(tmp_path / "whole")
    assert {name for name in trained.tensors if name.startswith("onboarding.heads")} == {
        "onboarding.heads.plora__user"
    }
    shown = [text for row in trained.report["prototypes"] for text, _ in row]
    assert len(shown) == 9
    assert not any("tender film" in text for text in shown)
    assert {trial["recipe"]["start"] for trial in trained.report["recipe_trials"]} == {0.0, 0.5, 1.0}
    again = train_small(backbone, tmp_path / "whole", recipe={"start": [0.5]}, **changes)
    assert again.recipe.start == 0.5


def test_onboarding_needs_somebody_with_two_examples(backbone: str, tmp_path: Path) -> None:
    few = [Example(f"person {user}", f"good {mood}", mood) for user in range(9) for mood in ("yes", "no")]
    with pytest.raises(TrainingError, match="nobody has two examples"):
        train_small(backbone, tmp_path, examples=few, onboarding={"steps": 1})


def test_a_second_ctrl_c_acts_at_once() -> None:
    def press_twice() -> None:
        with interrupts_held() as interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted()
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("not reached")

    before = signal.getsignal(signal.SIGINT)  # ignored, where a shell runs the tests in the background
    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert signal.getsignal(signal.SIGINT) == before


def test_a_finished_training_is_returned_as_it_is(backbone: str, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    found = train_small(backbone, whole, lambda *_: pytest.fail("it trains"))
    assert found.fingerprint == load_trained(whole).fingerprint
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def test_another_recipe_is_chosen_on_a_finished_training_to_what_a_whole_one_gives(
    backbone: str, whole: Path, tmp_path: Path
) -> None:
    recipe = {"prior_strength": [0.5, 2.0], "steps": [3]}
    train_small(backbone, tmp_path / "wanted", recipe=recipe)
    shutil.copytree(whole, tmp_path / "found")
    phases: list[str] = []
    train_small(backbone, tmp_path / "found", lambda phase, *_: phases.append(phase), recipe=recipe)
    assert set(phases) == {"choose recipe"}
    assert_same_training(tmp_path / "found", tmp_path / "wanted")


def test_a_finished_training_is_taken_from_another_folder_if_it_is_the_right_one(
    backbone: str, whole: Path, tmp_path: Path
) -> None:
    silent: Any = lambda *_: pytest.fail("it trains")  # noqa: E731
    train_small(backbone, tmp_path / "taken", silent, finished=whole)
    assert (tmp_path / "taken" / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    assert (tmp_path / "taken" / DESCRIPTION).read_text() == (whole / DESCRIPTION).read_text()
    with pytest.raises(TrainingError, match="another configuration or of other examples"):
        train_small(backbone, tmp_path / "refused", silent, finished=whole, seed=9)
    assert not (tmp_path / "refused" / DESCRIPTION).exists()
    with pytest.raises(TrainingError, match="holds no finished training"):
        train_small(backbone, tmp_path / "refused", silent, finished=tmp_path / "nowhere")


def test_the_process_counts_afterwards_as_it_did_before(backbone: str, tmp_path: Path) -> None:
    """torch's threads and what becomes of denormals hold for the process, numpy included."""
    before, denormal = torch.get_num_threads(), np.float32(1e-30)
    seen: list[float] = []
    train_small(backbone, tmp_path, lambda *_: seen.append(float(denormal * np.float32(1e-10))))
    assert set(seen) == {0.0}
    assert denormal * np.float32(1e-10) > 0
    assert torch.get_num_threads() == before


def test_restart_trains_again(backbone: str, whole: Path, tmp_path: Path) -> None:
    train_small(backbone, tmp_path, seed=1)
    with pytest.raises(TrainingError, match="another configuration or of other examples"):
        train_small(backbone, tmp_path)
    train_small(backbone, tmp_path, restart=True)
    assert_same_training(tmp_path, whole)


def test_what_cannot_start_does_not_forget_what_is_there(backbone: str, tmp_path: Path) -> None:
    train_small(backbone, tmp_path)
    with pytest.raises(ExampleError, match="labels do not fit the task"):
        train_small(backbone, tmp_path, restart=True, task={"labels": ["yes", "maybe"]})
    assert load_trained(tmp_path).labels == ("no", "yes")


@pytest.mark.parametrize("kind", ["seed", "training", "examples"])
def test_a_checkpoint_of_another_training_is_refused(backbone: str, tmp_path: Path, kind: str) -> None:
    changes: dict[str, Any] = {"seed": 5, "training": {"batch_size": 8}, "examples": people(count=11)}
    stop_after(backbone, tmp_path, 6)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(TrainingError, match="another configuration or of other examples"):
        train_small(backbone, tmp_path, **{kind: changes[kind]})
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def stop_after(backbone: str, folder: Path, step: int) -> None:
    def stop(_phase: str, done: int, *_: object) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_small(backbone, folder, stop)


@pytest.mark.parametrize("damage", ["cut", "bit", "header", "empty", "json"])
def test_a_damaged_checkpoint_is_one_error(backbone: str, tmp_path: Path, damage: str) -> None:
    stop_after(backbone, tmp_path, 6)
    path = tmp_path / CHECKPOINT
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-3] ^= 1
    damaged = {
        "cut": data[:-10],
        "bit": data,
        "header": data[:20] + b"x" + data[21:],
        "empty": b"",
        "json": data.replace(b'\\"step\\": 6', b'\\"step\\": 5'),
    }
    assert damaged["json"] != path.read_bytes()
    path.write_bytes(bytes(damaged[damage]))
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors is damaged"):
        train_small(backbone, tmp_path)


def test_a_checkpoint_that_is_nested_without_end_is_damaged(tmp_path: Path) -> None:
    """Its digest is right."""
    state = "[" * 100_000
    meta = {"umbel": state, "sha256": hashlib.sha256(state.encode()).hexdigest()}
    (tmp_path / CHECKPOINT).write_bytes(save({}, meta))
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors is damaged") as error:
        load_checkpoint(tmp_path, "a fingerprint")
    assert error.value.problems == ("NestingError",)


def test_a_checkpoint_holds_everything_to_the_bit(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.5, -0.25]))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    progress = Progress(step=3, best_loss=0.1 + 0.2, curve=[{"step": 3, "loss": 1 / 3}], recent=[0.7, 1e-9])
    save_checkpoint(tmp_path, "f", progress, {"w": weight}, {"w": torch.zeros(2)}, optimizer)
    found = load_checkpoint(tmp_path, "f")
    assert found is not None
    assert found[0] == progress
    assert torch.equal(found[1]["weight/w"], weight)
    assert torch.equal(found[1]["optimizer/0/exp_avg"], optimizer.state[weight]["exp_avg"])
    assert load_checkpoint(tmp_path / "nowhere", "f") is None


def test_only_the_checkpoint_holds_private_tensors_and_only_its_owner_reads_it(
    backbone: str, whole: Path, tmp_path: Path
) -> None:
    with safe_open(whole / MODEL, "pt") as file:
        assert not [name for name in file.keys() if "user" in name.rpartition(".")[2] or "users" in name]  # noqa: SIM118
    assert CHECKPOINT not in names(whole)
    stop_after(backbone, tmp_path, 6)
    with safe_open(tmp_path / CHECKPOINT, "pt") as file:
        assert "weight/users/plora.user" in file.keys()  # noqa: SIM118
    assert stat.S_IMODE((tmp_path / CHECKPOINT).stat().st_mode) == 0o600


def test_no_file_holds_a_text_or_a_person(whole: Path) -> None:
    texts = {example.text.encode() for example in people()}
    for path in whole.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert b"person " not in data, path
        assert not [text for text in texts if text in data], path


def test_metrics_and_report_tell_the_same(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / METRICS).read_text().splitlines()]
    report = load_trained(whole).report
    assert rows == report["curve"]
    assert [row["step"] for row in rows] == [7, 14, 21, 24]
    best = min(rows, key=lambda row: row["heldout_loss"])
    assert report["best_step"] == best["step"]
    assert report["users"] + report["calibration_users"] == 12


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(
    backbone: str, whole: Path, tmp_path: Path
) -> None:
    train_small(backbone, tmp_path / "same")
    assert_same_training(tmp_path / "same", whole)
    train_small(backbone, tmp_path / "other", seed=1)
    assert (tmp_path / "other" / MODEL).read_bytes() != (whole / MODEL).read_bytes()


def test_personalised_dropout_is_part_of_what_is_trained(backbone: str, whole: Path, tmp_path: Path) -> None:
    train_small(backbone, tmp_path, training={"personalised_dropout": 0.0})
    assert (tmp_path / MODEL).read_bytes() != (whole / MODEL).read_bytes()


def test_training_learns_what_people_like(backbone: str, tmp_path: Path) -> None:
    """Two thirds like "good", the others "bad": without a profile 2 in 3 is the best, with one everything."""
    training = {"max_steps": 150, "evaluate_every": 30, "private_rate": 0.1, "shared_rate": 0.02}
    curve = train_small(backbone, tmp_path, training=training, examples=people(12, 40)).report["curve"]
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    assert curve[-1]["heldout_accuracy"] > 0.9


def test_training_stops_when_held_out_loss_no_longer_falls(backbone: str, tmp_path: Path) -> None:
    training = {"max_steps": 500, "evaluate_every": 2, "patience": 2, "head_rate": 3.0, "clip_norm": 1e6}
    trained = train_small(backbone, tmp_path, training=training)
    report = trained.report
    assert report["stopped"] == "no better held-out loss in 2 looks"
    assert report["steps"] == report["best_step"] + 4 < 500
    losses = [row["heldout_loss"] for row in report["curve"]]
    assert min(losses[-2:]) >= losses[-3] == min(losses)


def encoder_changes(trained: TrainedModel, original: dict[str, Tensor]) -> set[str]:
    own = {name: value for name, value in trained.tensors.items() if name.startswith("encoder.")}
    return {name for name, value in own.items() if not torch.equal(value, original[name])}


@pytest.mark.parametrize(
    ("train", "layers"), [("none", ()), ("top:1", (1,)), ("top:2", (0, 1)), ("all", (0, 1, "embeddings"))]
)
def test_exactly_the_layers_asked_for_are_trained(
    tiny_backbone: TinyBackbone, tmp_path: Path, train: str, layers: tuple[object, ...]
) -> None:
    from umbel.coordinator.model import build_model

    bert = tiny_backbone("bert")
    trained = train_small(bert.name, tmp_path, backbone={"train": train}, training={"max_steps": 3})
    model = build_model(bert, "classification", ("no", "yes"), trained.config.method_configs(), 0)
    original = {name: value.detach() for name, value in model.named_parameters()}
    wanted = {
        name
        for name in original
        for layer in layers
        if f".layer.{layer}." in name or (layer == "embeddings" and ".embeddings." in name)
    }
    saved = {name for name in trained.tensors if name.startswith("encoder.")}
    assert saved == wanted
    # What no input reaches or what the softmax cancels (a key's bias) keeps its gradient near zero.
    still = wanted - encoder_changes(trained, original)
    assert not still, still
    moved = {name for name in model.shared_names() if not torch.equal(trained.tensors[name], original[name])}
    assert moved == set(model.shared_names())


def test_more_layers_than_there_are(backbone: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="asks for more layers") as caught:
        train_small(backbone, tmp_path / "out", backbone={"train": "top:3"})
    assert list(caught.value.problems) == ["found top:3, the encoder has 2"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["batch_loss", "held_out"])
def test_a_loss_that_is_not_finite_is_one_error(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "batch_loss":
        nothing = torch.tensor(float("nan"), requires_grad=True)
        monkeypatch.setattr(trainer, where, lambda *_: (nothing, nothing.detach()))
    else:
        monkeypatch.setattr(trainer.Trainer, where, lambda _: (float("nan"), 0.5))
    with pytest.raises(TrainingError, match="the loss is no longer finite at step"):
        train_small(backbone, tmp_path)
    assert not {MODEL, DESCRIPTION} & names(tmp_path)


def test_too_little_to_train_on(backbone: str, tmp_path: Path) -> None:
    alone = [Example(f"person {n}", "good film", ("no", "yes")[n % 2]) for n in range(6)]
    with pytest.raises(TrainingError, match="every user to train on has a single example"):
        train_small(backbone, tmp_path / "out", examples=alone)
    same = [Example("ann", text, "yes") for text in ("good film", "good book")]
    with pytest.raises(TrainingError, match="labels found: 1"):
        train_small(backbone, tmp_path / "out", examples=same)
    assert not (tmp_path / "out").exists()


def test_unknown_labels_are_told_by_number_only(backbone: str, tmp_path: Path) -> None:
    examples = people(4, 3)
    examples[2] = Example("person 0", "a secret text", "a secret label")
    examples[7] = Example("person 2", "a secret text", "a secret label")
    with pytest.raises(ExampleError) as caught:
        train_small(backbone, tmp_path / "out", examples=examples, task={"labels": ["no", "yes"]})
    assert list(caught.value.problems) == ["example 3: unknown label", "example 8: unknown label"]
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_asking_for_one_is_one_error(backbone: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="torch sees no GPU"):
        train_small(backbone, tmp_path / "out", training={"device": "cuda"})
    assert not (tmp_path / "out").exists()


def test_bfloat16_trains_too(backbone: str, tmp_path: Path) -> None:
    trained = train_small(backbone, tmp_path, training={"precision": "bfloat16", "max_steps": 3})
    assert all(np.isfinite(value.numpy()).all() for value in trained.tensors.values())
    assert {value.dtype for value in trained.tensors.values()} == {torch.float32}
