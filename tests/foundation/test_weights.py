"""Which weights a segmenter's name means."""

from __future__ import annotations

import hashlib

import pytest

from weakly.foundation.weights import BUNDLED_SAM, segmenter_weights


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
