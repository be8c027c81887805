"""PLoRA: its equation, its birth, personalised dropout, the agreement terms, the basis and the counts."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.coordinator.conftest import FAMILIES, VOCABULARY, TinyBackbone
from tests.coordinator.personal import plora_of, random_batch, random_users, trained_model
from tests.numeric import assert_close_relative

from umbel.coordinator.backbone import BackboneShape
from umbel.coordinator.methods.plora import PLoRA, PLoRAConfig
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.sites import Frame, Site
from umbel.shared.rng import generator

CONFIG = PLoRAConfig(rank=3, alpha=6, user_size=5, agreement=0.1, dropout=0.0)
SHAPE = BackboneShape(hidden_size=4, layers=1, heads=1, vocabulary=9, max_tokens=9)
QUERY = Site(0, "query", 4, 4, "layer.0.attention.self.query", 0)
VALUE = Site(0, "value", 4, 4, "layer.0.attention.self.value", 0)
KEY = Site(0, "key", 4, 4, "layer.0.attention.self.key", 0)

Floats = npt.NDArray[np.float32]


def lone_plora(config: PLoRAConfig = CONFIG) -> PLoRA:
    """A PLoRA of one layer without an encoder, B away from zero."""
    method = PLoRA(config, SHAPE, [QUERY, KEY, VALUE], torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if name.endswith(".B"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return method


def matrices(method: PLoRA, site: Site) -> tuple[Floats, Floats, Floats]:
    """A, P and B of a site."""
    a, p, b = (method.get_parameter(f"projections.{site.name}.{name}").detach().numpy() for name in "APB")
    return a, p, b


def numbers(purpose: str, *shape: int) -> Floats:
    return generator(0, 0, "", purpose).normal(size=shape).astype(np.float32)


def test_equation_against_a_literal_numpy_program() -> None:
    """s B (A x + P p) token by token; 1e-6 is float32's rounding over sums of at most five terms."""
    method = lone_plora().eval()
    A, P, B = matrices(method, QUERY)
    x, users = numbers("x", 2, 3, 4), numbers("users", 2, 5)
    frame = Frame({"plora.user": torch.tensor(users)}, torch.ones(2, 3))
    delta = method.at_site(QUERY, torch.tensor(x), torch.zeros(2, 3, 4), frame)
    expected = np.zeros((2, 3, 4))
    for row in range(2):
        for token in range(3):
            expected[row, token] = 6 / 3 * (B @ (A @ x[row, token] + P @ users[row]))
    assert delta is not None
    assert_close_relative("delta", delta.detach().numpy(), expected, 1e-6)
    assert method.at_site(KEY, torch.tensor(x), torch.zeros(2, 3, 4), frame) is None


def test_birth() -> None:
    """B is zero; A and P are uniform in +-1 / sqrt(columns), the bound of kaiming-uniform with a = sqrt 5."""
    wide = Site(0, "query", 64, 64, "q", 0)
    config = PLoRAConfig(rank=32, alpha=6, user_size=16, agreement=0.1, dropout=0.0)
    A, P, B = matrices(PLoRA(config, SHAPE, [wide], torch.Generator().manual_seed(0)), wide)
    assert not B.any()
    for values, columns in ((A, 64), (P, 16)):
        bound = columns**-0.5
        assert 0.95 * bound < np.abs(values).max() <= bound
        assert np.std(values) == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_profile_only_the_shared_update_is_left(tiny_backbone: TinyBackbone, family: str) -> None:
    """p = 0 is the generic path: the model with p = 0 is the one whose P is zero, whatever p."""
    model = trained_model(tiny_backbone(family), CONFIG)
    batch = random_batch(0, 3, 6, 2, len(VOCABULARY))
    generic = model(*batch.tensors(), {"plora.user": torch.zeros(2, 5)})
    users = {"plora.user": torch.tensor(random_users(0, 2, 5))}
    personal = model(*batch.tensors(), users)
    assert not torch.allclose(personal, generic, rtol=1e-3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".P"):
                parameter.zero_()
    torch.testing.assert_close(model(*batch.tensors(), users), generic, rtol=0, atol=0)


def logits_of(model: PersonalModel, keep: list[float] | None, users: Floats) -> torch.Tensor:
    batch = random_batch(0, 4, 6, 4, len(VOCABULARY))
    ids, mask, _ = batch.tensors()
    kept = None if keep is None else torch.tensor(keep).unsqueeze(1)
    return model.run(ids, mask, Frame({"plora.user": torch.tensor(users)}, mask, keep=kept))


def test_personalised_dropout_hides_the_whole_vector_and_rescales_nothing(
    tiny_backbone: TinyBackbone,
) -> None:
    model = trained_model(tiny_backbone("bert"), CONFIG)
    users = random_users(0, 4, 5)
    personal = logits_of(model, None, users)
    generic = logits_of(model, None, np.zeros_like(users))
    mixed = logits_of(model, [1.0, 0.0, 1.0, 0.0], users)
    torch.testing.assert_close(mixed[[0, 2]], personal[[0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(mixed[[1, 3]], generic[[1, 3]], rtol=0, atol=0)


def test_at_evaluation_nothing_is_dropped(tiny_backbone: TinyBackbone) -> None:
    """The model's own forward hides no profile, and the rate of ordinary dropout changes nothing."""
    users = random_users(0, 4, 5)
    batch = random_batch(0, 4, 6, 4, len(VOCABULARY))
    ids, mask, owner = batch.tensors()
    dropping = trained_model(tiny_backbone("bert"), CONFIG.model_copy(update={"dropout": 0.5}))
    keeping = trained_model(tiny_backbone("bert"), CONFIG)
    profile = {"plora.user": torch.tensor(users)}
    assert dropping.frame(mask, owner, profile).keep is None
    torch.testing.assert_close(
        dropping(ids, mask, owner, profile), keeping(ids, mask, owner, profile), rtol=0, atol=0
    )


def test_in_training_entries_of_x_and_p_are_dropped_and_rescaled() -> None:
    """Ordinary dropout of p alone (x = 0): each entry is 0 or p / (1 - rate), by the seed."""
    method = lone_plora(CONFIG.model_copy(update={"dropout": 0.5})).train()
    _, P, B = matrices(method, QUERY)
    users = numbers("users", 1, 5)
    frame = Frame({"plora.user": torch.tensor(users)}, torch.ones(1, 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = method.at_site(QUERY, torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), frame)
    assert found is not None
    choices = [np.array([m >> n & 1 for n in range(5)]) for m in range(2**5)]
    possible = [2.0 * (users * 2.0 * choice) @ P.T @ B.T for choice in choices]
    errors = [np.abs(found.detach().numpy()[0] - delta).max() for delta in possible]
    assert min(errors) < 1e-5
    assert 0 < int(np.argmin(errors)) < 31  # some dropped, some kept


def test_agreement_terms_against_a_literal_numpy_program(tiny_backbone: TinyBackbone) -> None:
    """mim (mean over sites of the mean of (s B P p)^2 + mean KL at temperature 4); 1e-5 for float32."""
    model = trained_model(tiny_backbone("bert"), CONFIG)
    users = random_users(0, 4, 5)
    batch = random_batch(0, 4, 6, 4, len(VOCABULARY))
    ids, mask, _ = batch.tensors()
    frame = Frame({"plora.user": torch.tensor(users)}, mask, records={})
    logits = model.run(ids, mask, frame)
    generic = logits_of(model, None, np.zeros_like(users))
    term = plora_of(model).training_term(logits, generic, frame)

    squares = []
    for layer in range(2):
        for role in ("query", "value"):
            _, P, B = matrices(plora_of(model), Site(layer, role, 32, 32, "", 0))
            shifts = [6 / 3 * (B @ (P @ user)) for user in users.astype(np.float64)]
            squares.append(np.mean(np.square(shifts)))

    def softmax(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        value: npt.NDArray[np.float64] = np.exp(z) / np.exp(z).sum()
        return value

    divergences = []
    for z_p, z_0 in zip(
        logits.detach().numpy().astype(np.float64), generic.detach().numpy().astype(np.float64), strict=True
    ):
        p, q = softmax(z_p / 4), softmax(z_0 / 4)
        divergences.append((p * np.log(p / q)).sum())
    assert term is not None
    expected = 0.1 * (np.mean(squares) + np.mean(divergences))
    assert_close_relative("agreement", np.array(term.item()), np.array(expected))


def test_agreement_terms_vanish_without_profiles_and_when_nothing_was_recorded(
    tiny_backbone: TinyBackbone,
) -> None:
    model = trained_model(tiny_backbone("bert"), CONFIG)
    ids, mask, _ = random_batch(0, 2, 5, 2, len(VOCABULARY)).tensors()
    frame = Frame({"plora.user": torch.zeros(2, 5)}, mask, records={})
    logits = model.run(ids, mask, frame)
    term = plora_of(model).training_term(logits, logits.detach(), frame)
    assert term is not None
    assert term.item() == 0.0
    assert plora_of(model).training_term(logits, None, frame) is None
    assert plora_of(model).training_term(logits, logits, Frame(frame.profile, mask)) is None
    assert plora_of(model).needs_generic_pass()
    assert not lone_plora(CONFIG.model_copy(update={"agreement": 0.0})).needs_generic_pass()


def rebased(users: Floats) -> tuple[Floats, dict[str, Floats], Floats, PLoRA]:
    """P p per site before (users, r), the same after, the new vectors, and the method."""
    method = lone_plora()
    before = {site.name: users @ matrices(method, site)[1].T for site in (QUERY, VALUE)}
    new = method.rebase({"plora.user": torch.tensor(users)})["plora.user"].numpy()
    after = {site.name: new @ matrices(method, site)[1].T for site in (QUERY, VALUE)}
    for name, wanted in before.items():
        assert_close_relative(name, after[name], wanted, 1e-5)
    return users, after, new, method


def test_rebase_makes_the_second_moment_the_identity_and_changes_no_output() -> None:
    """Computed in float64 and stored in float32, so 1e-5; the directions' sizes differ by up to 16."""
    sizes = np.array([4, 2, 1, 0.5, 0.25], np.float32)
    users = numbers("users", 40, 5) @ np.linalg.qr(numbers("turn", 5, 5)).Q.astype(np.float32) * sizes
    _, _, new, _ = rebased(users)
    moment = new.astype(np.float64).T @ new / 40
    assert_close_relative("second moment", moment, np.eye(5))


def test_rebase_puts_the_strongest_direction_first() -> None:
    users = np.zeros((8, 5), np.float32)
    users[:, 3] = np.tile([3, -3], 4)
    users[:, 1] = np.repeat([1, -1], 4)
    _, _, new, _ = rebased(users)
    assert np.abs(new[:, 0]) == pytest.approx(np.ones(8), rel=1e-5)
    assert new[0, 0] * new[1, 0] < 0  # the first coordinate is the old fourth
    assert new[0, 1] * new[1, 1] > 0  # the second is the old second


@given(users=st.integers(1, 12), rank=st.integers(1, 5), scale=st.sampled_from([1e-4, 1.0, 1e3]))
@settings(max_examples=30, deadline=None)
def test_rebase_of_any_rank_is_finite_and_changes_no_output(users: int, rank: int, scale: float) -> None:
    """One user, or fewer directions than entries: their span has moment 1, the rest stays usable."""
    vectors = numbers("left", users, rank) @ numbers("right", rank, 5) * np.float32(scale)
    _, _, new, method = rebased(vectors)
    values = np.linalg.eigvalsh(new.astype(np.float64).T @ new / users)
    assert values[-1] == pytest.approx(1.0, rel=1e-4)
    assert values[0] > -1e-6
    for site in (QUERY, VALUE):
        assert np.linalg.matrix_rank(matrices(method, site)[1]) == 3  # as before: no direction is lost


@pytest.mark.parametrize("users", [0, 3])
def test_rebase_when_nobody_has_learned_anything_changes_nothing(users: int) -> None:
    method = lone_plora()
    before = {name: parameter.clone() for name, parameter in method.named_parameters()}
    vectors = torch.zeros(users, 5)
    found = method.rebase({"plora.user": vectors, "other.tensor": torch.ones(users, 1)})
    torch.testing.assert_close(found["plora.user"], vectors, rtol=0, atol=0)
    assert found.keys() == {"plora.user", "other.tensor"}
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0)


def test_counts_at_the_papers_size() -> None:
    """BERT-base, r = 64, d_u = 512: 3,145,728 shared values count A, B and P; the head is not among them.

    24 sites (12 layers, query and value), each A (64, 768), B (768, 64) and P (64, 512):
    24 * (49,152 + 49,152 + 32,768) = 3,145,728. A and B alone would be 2,359,296.
    """
    sites = [
        Site(layer, role, 768, 768, f"{layer}.{role}", 0)
        for layer in range(12)
        for role in ("query", "key", "value", "feed_forward")
    ]
    config = PLoRAConfig(rank=64, alpha=128, user_size=512, storage="float32", agreement=0, dropout=0)
    shape = BackboneShape(768, 12, 12, 30522, 512)
    method = PLoRA(config, shape, sites, torch.Generator().manual_seed(0))
    assert sum(parameter.numel() for parameter in method.parameters()) == 3_145_728
    (private,) = method.profile_tensors()
    assert (private.name, private.shape, private.packed_bytes) == ("plora.user", (512,), 2_048)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"alpha": 0.0},
        {"user_size": 0},
        {"dropout": 1.0},
        {"agreement": -1.0},
        {"storage": "int8"},
    ],
)
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PLoRAConfig.model_validate(wrong)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        PLoRAConfig.model_validate({"ranks": 3})


@given(st.integers(0, 3))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_seed_gives_the_same_bits(seed: int) -> None:
    one, two = (
        PLoRA(CONFIG, SHAPE, [QUERY, VALUE], torch.Generator().manual_seed(seed)).state_dict()
        for _ in range(2)
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def started(summary: npt.NDArray[np.float64]) -> Floats:
    """Where training starts the users of these summaries."""
    found = lone_plora().start_users(torch.tensor(summary))
    assert list(found) == ["plora.user"]
    assert found["plora.user"].dtype == torch.float32
    return found["plora.user"].numpy()


def summary_of(users: int, features: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """A summary whose strongest direction has variance 1 between users."""
    values = generator(seed, 0, "", "summary").normal(size=(users, features))
    return np.asarray(values * users**0.5 / np.linalg.norm(values, 2))


@given(users=st.integers(1, 9), features=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_users_start_at_their_coordinates_on_the_leading_directions(
    users: int, features: int, seed: int
) -> None:
    """The directions by another way: eigenvectors of the features' second moment, the strongest first."""
    summary = summary_of(users, features, seed)
    found = started(summary)
    assert found.shape == (users, CONFIG.user_size)
    count = min(users, features, CONFIG.user_size)
    assert not found[:, count:].any()
    _, directions = np.linalg.eigh(summary.T @ summary)
    wanted = (summary @ directions[:, ::-1])[:, :count]
    # A direction's sign is arbitrary, so both are turned to where the largest entry is positive.
    wanted = wanted * np.sign(wanted[np.abs(wanted).argmax(0), np.arange(count)])
    np.testing.assert_allclose(found[:, :count], wanted, atol=1e-5)


def test_the_strongest_direction_has_variance_one_and_the_others_less() -> None:
    spread = np.square(started(summary_of(40, 12))).mean(0)
    assert spread[0] == pytest.approx(1, rel=1e-6)
    assert np.all(np.diff(spread) < 0)


def test_the_sign_of_a_start_is_the_same_everywhere() -> None:
    """The largest entry of each direction is positive, whichever sign the decomposition happens to give."""
    summary = summary_of(8, 6)
    found = started(summary)
    assert (found[np.abs(found).argmax(0), np.arange(5)] > 0).all()
    np.testing.assert_allclose(started(-summary), found, atol=1e-6)


def test_people_who_do_not_differ_start_at_zeros() -> None:
    assert not started(np.zeros((4, 7))).any()


def test_a_start_is_made_only_where_it_is_asked_for() -> None:
    assert lone_plora().starts_users()
    assert not lone_plora(CONFIG.model_copy(update={"start": "zeros"})).starts_users()
