"""Image transforms against slow definitions in NumPy, and tokenizers that give back what they were given."""

from __future__ import annotations

import numpy as np
import pytest

import flame
from flame.utils import transforms as T
from flame.utils.text import BPETokenizer, ByteTokenizer


def images(*lead, c=3, h=7, w=9):
    return flame.arange(int(np.prod([*lead, c, h, w]))).reshape(*lead, c, h, w).float()


@pytest.mark.parametrize("lead", [(), (1,), (4,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("padding", [None, 2, (1, 2)], ids=str)
def test_a_random_crop_is_a_part_of_each_image(lead, padding):
    x = images(*lead)
    crop = T.RandomCrop((4, 5), padding=padding)
    whole = x if padding is None else T.Pad(padding)(x)
    flame.manual_seed(0)
    places = set()
    for _ in range(12):
        y = crop(x)
        assert tuple(y.shape) == (*lead, 3, 4, 5) and y.dtype is x.dtype
        for part, image in zip(y.numpy().reshape(-1, 3, 4, 5), whole.numpy().reshape(-1, *whole.shape[-3:]), strict=True):
            found = [
                (i, j)
                for i in range(image.shape[1] - 3)
                for j in range(image.shape[2] - 4)
                if np.array_equal(image[:, i : i + 4, j : j + 5], part)
            ]
            assert found
            places.update(found)
    assert len(places) > 4 or 0 in lead


def test_crops_at_the_edges_and_too_large():
    x = images(2)
    assert flame.equal(T.RandomCrop((7, 9))(x), x)
    assert flame.equal(T.CenterCrop(3)(x), x[..., 2:5, 3:6])
    assert tuple(T.CenterCrop(11)(x).shape) == (2, 3, 11, 11) and T.CenterCrop(11)(x).sum() == x.sum()
    with pytest.raises(ValueError, match="larger than input image"):
        T.RandomCrop(8)(x)
    assert tuple(T.RandomCrop(10, pad_if_needed=True)(x).shape) == (2, 3, 10, 10)
    for wrong in (0, (1, 2, 3), 2.5):
        with pytest.raises((ValueError, TypeError)):
            T.RandomCrop(wrong)
    with pytest.raises(TypeError, match="image or a batch"):
        T.RandomCrop(2)(flame.ones(3, 3))


@pytest.mark.parametrize(("flip", "axis"), [(T.RandomHorizontalFlip, -1), (T.RandomVerticalFlip, -2)])
def test_flips_turn_some_of_the_images(flip, axis):
    x = images(200)
    y = flip()(x).numpy()
    turned = [np.array_equal(a, np.flip(b, axis)) for a, b in zip(y, x.numpy(), strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(y, x.numpy(), strict=True)]
    assert all(a ^ b for a, b in zip(turned, kept, strict=True)) and 60 < sum(turned) < 140
    assert flame.equal(flip(0.0)(x), x) and flame.equal(flip(1.0)(x), x.flip(axis))
    with pytest.raises(ValueError, match="probability"):
        flip(1.5)


def test_normalisation_sizes_and_dtypes():
    x = flame.rand(2, 3, 6, 8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    want = (x.numpy() - np.array(mean, np.float32).reshape(3, 1, 1)) / np.array(std, np.float32).reshape(3, 1, 1)
    np.testing.assert_allclose(T.Normalize(mean, std)(x).numpy(), want, rtol=1e-6)
    y = x.clone()
    assert T.Normalize(mean, std, inplace=True)(y) is y and flame.allclose(y, flame.tensor(want))
    with pytest.raises(ValueError, match="zero"):
        T.Normalize(mean, (0, 1, 1))
    with pytest.raises(TypeError, match="float tensor"):
        T.Normalize(mean, std)(flame.zeros(3, 2, 2, dtype=flame.uint8))
    assert tuple(T.Resize(3)(x).shape) == (2, 3, 3, 4) and tuple(T.Resize((5, 2))(x[0]).shape) == (3, 5, 2)
    assert tuple(T.Resize(6, max_size=4)(x).shape) == (2, 3, 3, 4)
    means = x.reshape(2, 3, 3, 2, 4, 2).mean((3, 5))
    assert (T.Resize((3, 4))(x) - means).abs().max() < 0.3, "an antialiased half is near the mean of what it covers"
    assert flame.equal(T.Resize((6, 8), antialias=False)(x), x)
    whole = T.ToDtype(flame.uint8, scale=True)(x)
    assert whole.dtype is flame.uint8 and flame.allclose(T.ToDtype(flame.float32, scale=True)(whole), x, atol=1 / 255)
    assert T.ToDtype(flame.float64)(whole).max() == whole.max()


def test_transforms_stand_inside_of_a_compiled_step():
    augment = T.Compose([T.RandomCrop(6, padding=2), T.RandomHorizontalFlip(), T.Normalize((0.5,) * 3, (0.2,) * 3)])
    f = flame.compile(lambda x: augment(x).square().mean((1, 2, 3)), fullgraph=True)
    x = flame.rand(5, 3, 7, 7)
    for seed in range(4):
        flame.manual_seed(seed)
        got = f(x)
        flame.manual_seed(seed)
        assert flame.allclose(got, augment(x).square().mean((1, 2, 3)), rtol=1e-5)
    assert not f.stats.breaks and "RandomCrop(size=(6, 6)" in repr(augment)


# -------------------------------------------------------------------- text

TEXTS = ["", "plain", "naïve – ½ 🔥\n\ttabs", "a" * 1000, "\x00\x7f"]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_come_back(text):
    t = ByteTokenizer(["<end>"])
    codes = t.encode(text)
    assert codes.dtype is flame.int64 and tuple(codes.shape) == (len(text.encode()),) and t.vocab_size == 257
    assert t.decode(codes) == text == t.decode([*codes.tolist(), t.special["<end>"]])
    assert ByteTokenizer().decode([255, 65]) == "\ufffdA"
    with pytest.raises(ValueError, match="no token"):
        t.decode([257])


def test_pairs_are_learned_saved_and_loaded(tmp_path):
    pytest.importorskip("tokenizers")
    corpus = ["the flame of the fire, the fire of the flame"] * 20
    t = BPETokenizer.train(corpus, 300, special=["<end>"])
    assert 257 < t.vocab_size <= 300 and len(t.encode(corpus[0])) < len(corpus[0].encode()) // 2
    t.save(tmp_path / "t.json")
    again = BPETokenizer.load(tmp_path / "t.json")
    for text in [*TEXTS, *corpus[:1]]:
        assert again.decode(t.encode(text)) == text
    assert t.special == again.special == {"<end>": 0}
    with pytest.raises(ValueError, match="at least 257"):
        BPETokenizer.train(corpus, 256, special=["<end>"])
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(ValueError, match="is no tokenizer"):
        BPETokenizer.load(tmp_path / "wrong.json")
