"""Which weights a segmenter's name means."""

from __future__ import annotations

import hashlib

import pytest

from weakly.errors import UserError
from weakly.foundation.sam import load_segmenter
from weakly.foundation.weights import BUNDLED_SAM, bundled_side, is_bundled, segmenter_weights


def test_the_bundled_ones_are_those_of_the_model_card():
    assert f"SHA-256 `{segmenter_weights('bundled')}" in " ".join((BUNDLED_SAM / "README.md").read_text().split())


def test_a_folder_and_the_file_in_it_are_the_same(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    assert (
        segmenter_weights(str(tmp_path)) == segmenter_weights(str(file)) == hashlib.sha256(b"weights").hexdigest()[:12]
    )


@pytest.mark.parametrize("name", ["facebook/sam-vit-base", "nowhere/model.pth"])
def test_there_are_none_without_a_local_file(name):
    assert segmenter_weights(name) is None


def test_weights_in_several_files_have_no_one_hash(tmp_path):
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert segmenter_weights(str(tmp_path)) is None


class TestSides:
    """``bundled-384`` is the bundled SAM on finer images."""

    def test_the_weights_are_the_same_and_the_embedding_is_finer(self):
        own, finer = (load_segmenter(name) for name in ("bundled", "bundled-384"))
        assert (own.side, own.embedding_shape) == (256, (128, 32, 32))
        assert (finer.side, finer.embedding_shape) == (384, (128, 48, 48))
        assert segmenter_weights("bundled-384") == segmenter_weights("bundled")
        assert finer.fingerprint != own.fingerprint, "their features are not mixed up"

    @pytest.mark.parametrize(
        ("name", "bundled", "side"),
        [
            ("bundled", True, None),
            ("bundled-512", True, 512),
            ("bundled-large", False, None),
            ("bundled-384/sam", False, None),
            ("facebook/sam-vit-base", False, None),
        ],
    )
    def test_names(self, name, bundled, side):
        assert (is_bundled(name), bundled_side(name)) == (bundled, side)

    @pytest.mark.parametrize("name", ["bundled-100", "bundled-0"])
    def test_the_encoder_halves_an_image_five_times(self, name):
        with pytest.raises(UserError, match="no side of .* px; give a multiple of 32, as in bundled-384"):
            load_segmenter(name)
