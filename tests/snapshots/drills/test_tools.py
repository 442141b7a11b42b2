"""A program that checks file systems can open the image to read it, and its own libraries, but nothing else."""

import os
from pathlib import Path

import pytest
from django.conf import settings

from snapshots.drills.tools import find_tool, run_tool

pytestmark = pytest.mark.slow

# The program is Perl, because Python lists folders when it starts, and the image is its script.
PROBE = r"""
my ($secret, $folder, $parent) = @ARGV;
my $image = $0;
my %acts = (
    "read the image" => sub { open(my $file, "<", $image) },
    "write to the image" => sub { open(my $file, "+<", $image) },
    "read another file" => sub { open(my $file, "<", $secret) },
    "list a folder" => sub { opendir(my $handle, $folder) },
    "create a file" => sub { open(my $file, ">", "$folder/new") },
    "open a socket" => sub { socket(my $socket, 2, 1, 0) },
    "kill its parent" => sub { kill(9, $parent) },
    "run another program" => sub { exec("/bin/true") },
    "see the environment" => sub { exists $ENV{"PATH"} },
);
for my $name (sort keys %acts) { print "$name: ", ($acts{$name}->() ? "done" : "refused"), "\n" }
"""


def test_a_tool_reaches_nothing_but_the_image(tmp_path: Path) -> None:
    perl = find_tool("perl")
    if perl is None:
        pytest.skip("needs perl")
    secret, image = tmp_path / "secret", tmp_path / "image"
    for path in secret, image:
        path.write_text(PROBE)
        path.chmod(0o644)
    file = os.open(image, os.O_RDONLY)
    try:
        result = run_tool(file, [perl, "{image}", str(secret), str(tmp_path), str(os.getpid())], lambda: None)
    finally:
        os.close(file)
    assert result.exit_code == 0, result
    outcomes = dict(line.split(": ") for line in result.output.decode().splitlines() if ": " in line)
    assert [name for name, outcome in outcomes.items() if outcome == "done"] == ["read the image"]
    assert len(outcomes) == 9


def test_a_tool_that_is_stopped_leaves_no_process(tmp_path: Path) -> None:
    sleep = find_tool("sleep")
    assert sleep
    beats = []

    class Stop(Exception):
        pass

    def beat() -> None:
        beats.append(1)
        if len(beats) > 2:
            raise Stop

    image = os.open(settings.BASE_DIR / "manage.py", os.O_RDONLY)
    try:
        with pytest.raises(Stop):
            run_tool(image, [sleep, "1000"], beat)
    finally:
        os.close(image)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK)]
    assert not any(b"sleep\0001000" in command for command in commands)
