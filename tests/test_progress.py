"""Progress bars, without a notebook."""

import sys
from types import SimpleNamespace

import pytest
from tqdm.std import tqdm

from irlkit.utils import progress


class Output:
    """What ``IPython.display.display`` was given, as a notebook keeps it."""

    def __init__(self):
        self.saved = []

    def __call__(self, data, raw, display_id):
        assert raw and display_id
        self.saved.append(data["text/plain"])
        return SimpleNamespace(update=lambda data, raw: self.replace(data["text/plain"]))

    def replace(self, text):
        self.saved[-1] = text


@pytest.fixture
def output(monkeypatch):
    display = pytest.importorskip("IPython.display")
    output = Output()
    monkeypatch.setattr(display, "display", output)
    return output


def test_what_is_saved_is_the_end(output, capsys):
    with progress._NotebookBar(total=3, desc="name", unit="step") as bar:
        assert "0/3" in output.saved[0]
        for _ in range(3):
            bar.update()
        bar.set_postfix(reward="0.250")
    (text,) = output.saved
    assert text.startswith("name: 100%") and "3/3" in text and "reward=0.250" in text
    assert len(text) <= 100 and capsys.readouterr() == ("", "")


def test_a_disabled_bar_shows_nothing(output):
    with progress._NotebookBar(total=3, disable=True) as bar:
        bar.update()
    assert not output.saved


@pytest.mark.parametrize(
    ("shell", "kind"),
    [
        (None, tqdm),
        (SimpleNamespace(), tqdm),
        (SimpleNamespace(kernel=object()), progress._NotebookBar),
    ],
)
def test_the_bar_suits_the_place(output, monkeypatch, shell, kind):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    with progress.progress_bar(total=1) as bar:
        assert type(bar) is kind


def test_without_ipython(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    with progress.progress_bar(total=1) as bar:
        assert type(bar) is tqdm
