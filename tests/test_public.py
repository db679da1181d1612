"""`import weakly` gives every public name, and loads nothing heavy by itself."""

import subprocess
import sys

import weakly


def test_every_public_name_is_where_it_is_said_to_be():
    for name in weakly.__all__:
        assert getattr(weakly, name) is not None
    assert set(weakly.__all__) == set(weakly._HOMES)


def test_an_unknown_name_is_an_attribute_error():
    try:
        weakly.nothing
    except AttributeError as error:
        assert "nothing" in str(error)
    else:
        raise AssertionError("no error")


def test_import_is_light():
    code = "import sys, weakly; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
