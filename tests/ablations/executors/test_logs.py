from ablations.executors.logs import last_lines


def test_the_last_lines_that_say_something_are_one_line(tmp_path):
    log = tmp_path / "log"
    log.write_text("one\n\ntwo\n  three \n\nfour\n\n")
    assert last_lines(log) == "two | three | four"
    assert last_lines(log, 1) == "four"
    log.write_text("")
    assert last_lines(log) == ""


def test_only_the_end_of_a_long_log_is_read_whatever_its_bytes(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"\xff" * 100_000 + b"\nthe end \xfe\n")
    assert last_lines(log, 1) == "the end \ufffd"
    assert len(last_lines(log)) < 10_000
