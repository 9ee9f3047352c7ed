"""Tasks by name."""

import sys

import pytest
import torch
from torch.nn.functional import cross_entropy

from gdtuo.lab.recurrent import Characters, draw_chunks, validation_loss
from gdtuo.lab.tasks import Named


def test_a_task_is_made_once():
    assert Named("digits").load() is Named("digits").load()
    assert Named("own_tasks:blobs").load().metric == "test error, %"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("digit", "Use digits, mnist, fashion, char-rnn, or module:function"),
        ("no_such_module:task", "Start it where no_such_module.py lies"),
        ("own_tasks:no_such_function", "Name a function of own_tasks"),
        ("own_tasks:nothing", "Name a function that returns a gdtuo.lab.tasks.Task"),
        ("own_tasks:not_a_function", "Name a function that returns a gdtuo.lab.tasks.Task"),
        ("char-rnn", "Give --text FILE"),
    ],
)
def test_no_task(name, remedy):
    with pytest.raises(ValueError, match=remedy):
        Named(name).load()


def test_the_folder_where_one_stands_is_searched(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("from own_tasks import square\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as a console script has it
    assert Named("only_here:square").load().metric == "squared error"


def test_a_package_that_a_task_lacks_is_named(tmp_path, monkeypatch):
    (tmp_path / "lacking.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"imports no_such_package.*Install it"):
        Named("lacking:task").load()


def test_a_mistake_in_a_task_s_module_is_shown_with_its_place(tmp_path, monkeypatch):
    (tmp_path / "mistaken.py").write_text("None.nope\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="'mistaken:task' failed: AttributeError") as error:
        Named("mistaken:task").load()
    assert isinstance(error.value.__cause__, AttributeError)


def test_a_text_that_is_too_short(tmp_path):
    (tmp_path / "a.txt").write_text("abc " * 100)
    with pytest.raises(ValueError, match="more than 500 characters"):
        Named("char-rnn", text=str(tmp_path / "a.txt")).load()


def test_chunks_cover_the_text_once_an_epoch():
    text = torch.arange(50 * 130 + 20)
    batches = list(draw_chunks(text, torch.Generator().manual_seed(0)))
    assert [batch.shape for batch in batches] == [(50, 51), (50, 51)]
    starts = torch.cat([batch[:, 0] for batch in batches])
    assert len(starts.unique()) == 100
    assert (starts % 50 == 0).all()
    assert all((batch == batch[:, :1] + torch.arange(51)).all() for batch in batches)
    again = torch.cat([batch[:, 0] for batch in draw_chunks(text, torch.Generator().manual_seed(1))])
    assert not torch.equal(starts, again)


def test_a_short_text_makes_one_batch():
    (batch,) = draw_chunks(torch.arange(50 * 7 + 1), torch.Generator())
    assert sorted(batch[:, 0].tolist()) == [0, 50, 100, 150, 200, 250, 300]


def test_validation_is_the_mean_of_its_characters():
    torch.manual_seed(0)
    model, text = Characters(5, width=8).double(), torch.randint(0, 5, (50 * 6 + 1,))
    losses = [
        cross_entropy(model(text[None, start : start + 50])[0], text[start + 1 : start + 51], reduction="none")
        for start in range(0, 300, 50)
    ]
    assert validation_loss(model, text) == pytest.approx(torch.cat(losses).mean().item(), rel=1e-12)


def test_a_character_is_predicted_from_those_before_it():
    torch.manual_seed(0)
    model, text = Characters(5, width=8).double(), torch.randint(0, 5, (1, 20))
    changed = text.clone()
    changed[0, 12] = (text[0, 12] + 1) % 5
    before, after = model(text), model(changed)
    assert before.shape == (1, 20, 5)
    torch.testing.assert_close(before[:, :12], after[:, :12], rtol=0, atol=0)
    assert (before[:, 12:] != after[:, 12:]).any(-1).all()
