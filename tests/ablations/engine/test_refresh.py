import os

import pytest

from ablations.engine.refresh import mark_stale, refresh_report


@pytest.fixture
def built(tmp_path):
    """A builder that keeps count of itself, and may be told of what happens meanwhile."""

    def build(out):
        build.times += 1
        build.meanwhile()
        page = out / "report" / "index.html"
        page.parent.mkdir(exist_ok=True)
        page.write_text(str(build.times))
        return page

    build.times, build.meanwhile = 0, lambda: None
    return build


def test_a_report_is_made_where_there_is_none_or_results_are_newer(tmp_path, built):
    page = refresh_report(tmp_path, built)
    assert page == tmp_path / "report" / "index.html"
    assert refresh_report(tmp_path, built) == page
    assert built.times == 1
    mark_stale(tmp_path)
    refresh_report(tmp_path, built)
    assert built.times == 2
    refresh_report(tmp_path, built)
    assert built.times == 2


def test_a_report_that_was_not_finished_is_made_again(tmp_path, built):
    def die():
        raise KeyboardInterrupt

    refresh_report(tmp_path, built)
    mark_stale(tmp_path)
    built.meanwhile = die
    with pytest.raises(KeyboardInterrupt):
        refresh_report(tmp_path, built)
    built.meanwhile = lambda: None
    refresh_report(tmp_path, built)
    assert built.times == 3


def test_results_that_came_while_it_was_made_make_it_stale(tmp_path, built):
    mark_stale(tmp_path)
    # The clock of file systems is coarse.
    os.utime(tmp_path / "report.pending", ns=(0, 0))
    built.meanwhile = lambda: mark_stale(tmp_path)
    refresh_report(tmp_path, built)
    built.meanwhile = lambda: None
    refresh_report(tmp_path, built)
    assert built.times == 2
