"""The training images behind a prediction, worked out again from the last stage's activation, image by image."""

import dataclasses
import io
import json
import os

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from cifar_flax.data import open_dataset, similar
from cifar_flax.explaining import neighbours
from cifar_flax.explaining.analysis import Selection, analyse
from cifar_flax.explaining.network import load, no_progress


@pytest.fixture(scope="module")
def network():
    return load(precision="float32")  # what is nearest is tested, not how bfloat16 rounds


@pytest.fixture(scope="module")
def sample():
    """A part of the sample, whose test images 3 and 8 are training images too, slightly darker."""
    found = open_dataset("sample")
    images = found.test.images[:300].copy()
    images[[3, 8]] = found.train.images[[30, 80]] // 10 * 9
    return dataclasses.replace(found, test=found.test.take(slice(300))._replace(images=images))


@pytest.fixture(scope="module")
def analysis(network, sample):
    return analyse(network, sample, Selection(num_wrong=6))


@pytest.fixture(scope="module")
def features(network, sample):
    def means(images):
        activation = network.features(network.spec.normalize(images), stage="stage4")
        return np.asarray(activation, np.float32).mean(axis=(1, 2))

    return means(sample.train.images), means(sample.test.images)


def test_the_nearest_are_those_of_largest_cosine(analysis, features, sample):
    train, test = features
    oracle = NearestNeighbors(n_neighbors=5, metric="cosine").fit(train)
    distances, places = oracle.kneighbors(test[analysis.shown])
    found = analysis.neighbours
    assert (found.places == places).mean() > 0.9  # where cosines are nearly equal, rounding decides
    np.testing.assert_allclose(found.similarity, 1 - distances, atol=1e-3)
    assert found.places[analysis.places_of([3])[0], 0] == 30 and found.places[analysis.places_of([8])[0], 0] == 80


def test_the_shares_are_of_all_errors(analysis, features, sample):
    train, test = features
    wrong = np.flatnonzero(analysis.predictions.predicted != sample.test.labels)
    oracle = NearestNeighbors(n_neighbors=5, metric="cosine").fit(train)
    labels = sample.train.labels[oracle.kneighbors(test[wrong])[1]]
    found = analysis.neighbours.figures
    assert found["errors"] == len(wrong) and found["training_images"] == 1000
    shares = {"predicted": analysis.predictions.predicted[wrong], "true": sample.test.labels[wrong]}
    for name, answer in shares.items():
        assert found["nearest"][name] == pytest.approx((labels == answer[:, None]).mean(), abs=0.01)
    pixels = sample.train.images.reshape(1000, -1).astype(float)
    oracle = NearestNeighbors(n_neighbors=5).fit(pixels)
    labels = sample.train.labels[oracle.kneighbors(sample.test.images[wrong].reshape(len(wrong), -1))[1]]
    for name, answer in shares.items():
        assert found["pixels"][name] == pytest.approx((labels == answer[:, None]).mean(), abs=0.005)
    assert found["near_duplicates"] == 2
    correct = np.delete(analysis.predictions.correct, [3, 8])
    assert found["accuracy_without_them"] == correct.mean()


def test_planted_labels_are_found(features, sample, rng):
    """Ten labels in 1,000 are changed, and the network has not seen that: most are among the 20 most doubted."""
    labels = sample.train.labels.copy()
    planted = rng.choice(1000, 10, replace=False)
    labels[planted] = (labels[planted] + rng.integers(1, 10, 10)) % 10
    vectors = features[0] / np.linalg.norm(features[0], axis=1, keepdims=True)
    voters = similar.nearest(vectors, vectors, 10, skip_self=True)
    found, instead = neighbours.doubt(voters, labels, labels)
    assert len(found) == 20 and len(set(planted) & set(found)) >= 8
    assert (instead != labels[found]).all()
    true = sample.train.labels[found]
    assert (instead == true)[np.isin(found, planted)].mean() >= 0.8


def test_labels_of_test_images_are_doubted_by_training_images(analysis, features, sample):
    """Each vote counted by hand: a neighbour's cosine for its label."""
    known, asked = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in features)
    margins, firsts = [], []
    for image, label in zip(asked, sample.test.labels, strict=True):
        votes = dict.fromkeys(range(10), 0.0)
        for cosine, i in sorted(((float(known[i] @ image), i) for i in range(len(known))), reverse=True)[:10]:
            votes[int(sample.train.labels[i])] += cosine
        margins.append(votes[int(label)] - max(votes.values()))
        firsts.append(max(votes, key=votes.get))
    places, instead = analysis.neighbours.doubted_test
    assert len(places) > 5 and (np.diff(np.array(margins)[places]) >= -0.02).all()
    assert sorted(margins)[len(places) - 1] == pytest.approx(margins[places[-1]], abs=0.02)
    assert instead.tolist() == [firsts[i] for i in places]
    assert (instead != sample.test.labels[places]).all()


@pytest.mark.slow
def test_artefacts_name_them(analysis, sample, tmp_path, show):
    """Manifest, picture and page show the same training images, with their labels."""
    manifest = analysis.save(tmp_path / "a")
    names, found = sample.spec.class_names, analysis.neighbours
    for entry, position in zip(manifest["wrong"], analysis.wrong, strict=True):
        places = found.places[analysis.places_of([position])[0]]
        assert [x["index"] for x in entry["neighbours"]] == sample.train.indices[places].tolist()
        assert [x["label"] for x in entry["neighbours"]] == [names[i] for i in sample.train.labels[places]]
    assert [x["index"] for x in manifest["neighbours"]["doubted"]] == sample.train.indices[
        found.doubted.places
    ].tolist()
    places, instead = found.doubted_test
    assert manifest["neighbours"]["doubted_test"] == [
        {"index": int(sample.test.indices[i]), "label": names[sample.test.labels[i]], "neighbours": names[label]}
        for i, label in zip(places, instead, strict=True)
    ]
    assert "neighbours_wrong.png" in manifest["files"]
    page = show((tmp_path / "a" / "report.html").read_text(encoding="utf-8"))
    position = int(analysis.wrong[2])
    page.locator(f".card[data-index='{sample.test.indices[position]}']").click()
    places = found.places[analysis.places_of([position])[0]]
    cards = page.locator("#detail-neighbours figure")
    assert cards.count() == 5
    cosines = found.similarity[analysis.places_of([position])[0]]
    for card, place, cosine in zip(cards.all(), places, cosines, strict=True):
        name = names[sample.train.labels[place]]
        assert card.inner_text().split("\n") == [name, f"cosine {cosine:.2f}", f"#{sample.train.indices[place]}"]
        shown = Image.open(io.BytesIO(card.locator("canvas").screenshot())).convert("RGB").resize((32, 32), 4)
        differences = np.abs(np.asarray(shown, float) - sample.train.images).mean(axis=(1, 2, 3))
        assert differences.argmin() == place and differences[place] < 15  # a JPEG's
    page.click("#close")
    for row, split, doubted in zip(
        page.locator("#behind .neighbours").all(),
        (sample.train, sample.test),
        (found.doubted, found.doubted_test),
        strict=True,
    ):
        for card, place, label in zip(row.locator("figure").all(), *doubted, strict=True):
            said = [names[split.labels[place]], f"or {names[label]}?", f"#{split.indices[place]}"]
            assert card.inner_text().split("\n") == said
            shown = Image.open(io.BytesIO(card.locator("canvas").screenshot())).convert("RGB").resize((32, 32), 4)
            assert np.abs(np.asarray(shown, float) - split.images[place]).mean() < 15
    table = page.locator("#behind table").inner_text()
    assert f"{100 * found.figures['nearest']['predicted']:.0f}%" in table


def test_none_are_looked_up_where_none_are_asked_for(network, sample, tmp_path):
    found = analyse(network, sample, Selection(num_wrong=1, neighbours=0))
    assert found.neighbours is None
    manifest = found.save(tmp_path / "a")
    assert "neighbours" not in manifest and "neighbours_wrong.png" not in manifest["files"]
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert json.loads(page.partition('id="data">')[2].partition("</script>")[0])["neighbours"] is None


@pytest.mark.slow
def test_images_of_noise_are_reported(network, sample, tmp_path, rng):
    """No JPEG of them is as small as their pixels."""
    noise = [
        split.take(slice(99))._replace(images=rng.integers(0, 256, (99, *split.images.shape[1:]), np.uint8))
        for split in (sample.train, sample.test)
    ]
    found = analyse(network, dataclasses.replace(sample, train=noise[0], test=noise[1]), Selection(num_wrong=1))
    assert "report.html" in found.save(tmp_path / "a")["files"]


def test_features_of_many_images_are_kept(network, sample, tmp_path, monkeypatch):
    """By network and images: others are not taken for them, a broken file is made anew, and twenty are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(neighbours, "KEPT_FROM", 100)
    first = neighbours.training_features(network, sample.test, no_progress)
    (path,) = (tmp_path / "cifar_flax" / "features").iterdir()
    predict = type(network).predict
    monkeypatch.setattr(type(network), "predict", None)
    np.testing.assert_array_equal(neighbours.training_features(network, sample.test, no_progress), first)
    with pytest.raises(TypeError):
        neighbours.training_features(network, sample.train, no_progress)
    other = dataclasses.replace(network.spec, mean=(0.5, 0.5, 0.5))  # the same parameters, other features
    with pytest.raises(TypeError):
        shifted = dataclasses.replace(network, model=network.model.clone(spec=other))
        neighbours.training_features(shifted, sample.test, no_progress)
    path.write_bytes(path.read_bytes()[:-5])
    for i in range(30):  # of other networks, older
        (path.parent / f"{i}.npy").touch()
        os.utime(path.parent / f"{i}.npy", (i, i))
    monkeypatch.setattr(type(network), "predict", predict)
    np.testing.assert_array_equal(neighbours.training_features(network, sample.test, no_progress), first)
    assert {x.name for x in path.parent.iterdir()} == {path.name, *(f"{i}.npy" for i in range(11, 30))}
