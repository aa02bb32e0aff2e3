"""The bar of a terminal and the lines of a log, by a clock of our own."""

import io

from surgery_jax.cli.progress import Display


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def show(terminal, seconds, step=0.1):
    """Ten GiB at one GiB per second, called every `step` seconds."""
    now = [100.0]
    screen = Screen(terminal)
    display = Display(screen, clock=lambda: now[0])
    for _ in range(round(seconds / step)):
        now[0] += step
        display(int((now[0] - 100) * 2**30), 10 * 2**30)
    display.clear()
    return screen.getvalue()


def test_a_terminal_gets_a_bar_that_is_cleared_at_the_end():
    text = show(True, 4)
    frames = text.split("\r")
    assert 10 <= len(frames) <= 22  # at most five a second
    assert "[" in frames[-2] and "GiB of 10 GiB  1024 MiB/s" in frames[-2] and "left" in frames[-2]
    assert frames[-1] == "\x1b[K"
    assert "\n" not in text


def test_a_log_gets_a_line_every_ten_seconds():
    lines = show(False, 35).splitlines()
    assert len(lines) == 3
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_short_work_shows_nothing():
    assert show(False, 3) == ""
    assert show(True, 0.1) == ""


def test_the_rate_of_another_pass_starts_anew():
    now = [100.0]
    screen = Screen(False)
    display = Display(screen, clock=lambda: now[0])
    for _ in range(3):
        for mebibytes in range(240):
            now[0] += 0.1
            display(mebibytes << 20, 240 << 20)
    rates = [line.split("  ")[2] for line in screen.getvalue().splitlines()]
    assert len(rates) >= 6 and not any(rate.startswith("-") for rate in rates)
    assert {rate for rate in rates if rate != "0 B/s"} <= {"10 MiB/s", "9.9 MiB/s", "10.1 MiB/s"}
