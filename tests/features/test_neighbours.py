"""The page of nearest neighbours, and the search behind it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import write_photos
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vggkeras.__main__ import cli
from vggkeras.errors import InputError
from vggkeras.features import neighbours
from vggkeras.features.extraction import describe, load_images
from vggkeras.features.neighbours import choose_queries, nearest, write_page


def page_rows(page: Path) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """(query's name, [(name, class of its frame, cosine) of the closest]) of a page."""
    text = page.read_text(encoding="utf-8")
    rows = []
    for section in text.split('<section class="query">')[1:]:
        query, *closest = re.findall(r"<(?:figure|li[^>]*)><?.*?</figure>", section, re.DOTALL)
        names = [re.search(r'title="([^"]*)"', part)[1] for part in (query, *closest)]
        frames = [
            match[1] if (match := re.match(r'<li class="(\w+)"', part)) else "" for part in closest
        ]
        cosines = [re.search(r'class="cosine">([\d.-]+)<', part)[1] for part in closest]
        rows.append((names[0], list(zip(names[1:], frames, cosines, strict=True))))
    return rows


def test_the_page_finds_planted_copies(run, photos, command, tmp_path):
    planted = {
        "train/cat/000.jpg": "train/cat/twin.jpg",
        "train/cat/003.jpg": "val/dog/odd.jpg",
        "val/dog/002.jpg": "train/dog/two.jpg",
    }
    for one, other in planted.items():
        shutil.copy(photos / one, photos / other)
    arguments = ["--model", run.path, "--data", photos, "--scales", 32, 50, "--out", "f.npz"]
    page, record = tmp_path / "n.html", tmp_path / "f.json"
    code, _, err = command(cli, "features", *arguments, "--neighbours", page, "--json", record)
    assert code == 0, err
    rows = dict(page_rows(page))
    assert len(rows) == 24  # of 27: twelve of each class
    pairs = planted | {other: one for one, other in planted.items()}
    assert len(pairs.keys() & rows.keys()) >= 4
    for name in pairs.keys() & rows.keys():
        frame = "alike" if Path(name).parent.name == Path(pairs[name]).parent.name else "unlike"
        assert rows[name][0] == (pairs[name], frame, "1.000")
    with np.load("f.npz") as kept:
        cosines = kept["features"] @ kept["features"].T
        names, labels = kept["names"].tolist(), kept["labels"]
    for name, closest in rows.items():
        own = cosines[names.index(name)]
        shown = [names.index(near) for near, _, _ in closest]
        assert name not in {near for near, _, _ in closest}
        assert len(set(shown)) == 8
        assert own[shown].min() >= np.sort(np.delete(own, [*shown, names.index(name)]))[-1] - 1e-6
        assert [float(cosine) for *_, cosine in closest] == pytest.approx(own[shown], abs=6e-4)
        assert [frame == "alike" for _, frame, _ in closest] == (
            labels[shown] == labels[names.index(name)]
        ).tolist()
    # The headline is a count over all images.
    np.fill_diagonal(cosines, -1)
    right = int((labels[cosines.argmax(axis=1)] == labels).sum())
    share = json.loads(record.read_text())["neighbours"]
    assert (share["right"], share["images"]) == (right, 27)
    assert share["chance"] == pytest.approx((13 * 12 + 14 * 13) / (27 * 26))
    text = page.read_text(encoding="utf-8")
    assert f"{right} of 27" in text
    assert f"{100 * right / 27:.1f}%" in text
    assert "was trained on" not in text


def test_the_page_needs_no_script_and_no_request(form, photos, tmp_path):
    photos.rename(tmp_path / "<b>&")
    breaking = tmp_path / "<b>&" / "train" / "<script>alert('x')<"
    (tmp_path / "<b>&" / "train" / "cat").rename(breaking)
    shutil.rmtree(tmp_path / "<b>&" / "val")
    write_page(describe(form, load_images(str(tmp_path / "<b>&"))), Path("n.html"))
    text = Path("n.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")", text)
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == 16 * 9
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    with Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1]))) as picture:
        assert picture.size == (neighbours.THUMBNAIL, neighbours.THUMBNAIL)


@given(st.lists(st.integers(-1, 40), min_size=1, max_size=200), st.integers(1, 30))
def test_queries_are_spread_evenly_over_classes(labels, count):
    labels = np.array(labels)
    chosen = choose_queries(labels, count)
    assert len(set(chosen.tolist())) == len(chosen) <= count
    classes, each = np.unique(labels[chosen], return_counts=True)
    assert len(classes) == min(count, len(np.unique(labels)))
    sizes = [count // len(classes), -(-count // len(classes))]
    assert all(n in sizes or n == (labels == c).sum() for c, n in zip(classes, each, strict=True))


def test_nearest_is_what_sorting_gives_however_it_is_cut(monkeypatch):
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[7] = x[31] = x[50]  # equal ones come in order
    cosines = x.astype(np.float64) @ x.T.astype(np.float64)
    np.fill_diagonal(cosines, -2)
    for block in (1, 150, 1 << 20):
        monkeypatch.setattr(neighbours, "BLOCK", block)
        for count in (1, 4):
            rows, similarities = nearest(x, np.arange(60), count)
            np.testing.assert_allclose(
                similarities, -np.sort(-cosines, axis=1)[:, :count], atol=1e-6
            )
            assert (rows != np.arange(60)[:, None]).all()
            np.testing.assert_allclose(
                np.take_along_axis(cosines, rows, axis=1), similarities, atol=1e-6
            )


def test_one_image_has_no_neighbours_and_unlabeled_ones_no_frame(form, tmp_path):
    write_photos(tmp_path / "loose", 1)
    one = describe(form, load_images(str(tmp_path / "loose")))
    with pytest.raises(InputError, match="nearest neighbours need two or more"):
        write_page(one, tmp_path / "n.html")
    assert not (tmp_path / "n.html").exists()
    write_photos(tmp_path / "loose", 5)
    shutil.copy(tmp_path / "loose" / "003.jpg", tmp_path / "loose" / "copy.jpg")
    assert (
        write_page(describe(form, load_images(str(tmp_path / "loose"))), tmp_path / "n.html")
        is None
    )
    rows = page_rows(tmp_path / "n.html")
    assert [row[0] for row in rows] == [f"{i:03d}.jpg" for i in range(5)] + ["copy.jpg"]
    assert dict(rows)["003.jpg"][0] == ("copy.jpg", "", "1.000")
    assert all(len(row[1]) == 5 for row in rows)
