import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import InputError
from spaces.plain_files import MAX_DEPTH, MIB, must_hold_plain_files, open_plain, read_plain
from spaces.printable import printable, shell_word

MODES = ("rb", "r+b", "ab", "a+b")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["link", "FIFO", "socket", "folder", "device"])
def test_what_is_not_a_plain_file_is_refused_at_once(kind: str, mode: str, tmp_path: Path) -> None:
    path, victim = tmp_path / "x", tmp_path / "victim"
    victim.write_text("precious")
    match kind:
        case "link":
            path.symlink_to(victim)
        case "FIFO":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(os.path.relpath(path))  # a socket's path has at most 107 bytes
        case "folder":
            path.mkdir()
        case "device":
            path = Path("/dev/zero")
    with pytest.raises(InputError, match=f"{path}: is a (symbolic )?{kind}, but must be a"):
        open_plain(path, mode)  # type: ignore[arg-type]
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("mode", MODES)
def test_a_plain_file_opens_as_usual(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if mode in ("rb", "r+b"):
        with pytest.raises(FileNotFoundError):
            open_plain(path, mode)  # type: ignore[arg-type]
        path.write_bytes(b"abc")
    with open_plain(path, mode) as file:  # type: ignore[arg-type]
        if mode != "rb":
            file.write(b"d")
    assert path.read_bytes() == {"rb": b"abc", "r+b": b"dbc", "ab": b"d", "a+b": b"d"}[mode]


def test_a_file_with_a_second_name_is_read_but_not_written(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"abc")
    os.link(tmp_path / "mine", tmp_path / "theirs")
    assert read_plain(tmp_path / "theirs", 10) == b"abc"
    with pytest.raises(InputError, match=r"theirs: has 2 names \(hard links\)"):
        open_plain(tmp_path / "theirs", "ab")


def test_a_link_that_the_user_named_may_be_followed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("x")
    assert read_plain(tmp_path / "link", 3, follow_links=True) == b"abc"


def test_no_more_is_read_than_agreed(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)  # takes no space
    with pytest.raises(InputError, match="huge: is over 2 MiB, but must be smaller"):
        read_plain(tmp_path / "huge", 2 * MIB)
    with pytest.raises(InputError, match="huge: is over 64 KiB"):
        read_plain(tmp_path / "huge", 64 * 1024)
    (tmp_path / "empty").touch()
    assert read_plain(tmp_path / "empty", 2 * MIB) == b""
    assert read_plain(Path("/proc/self/status"), MIB).startswith(b"Name:")


def test_a_folder_of_plain_files_passes_and_says_where_it_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "real" / "a" / "b").mkdir(parents=True)
    (tmp_path / "real" / "a" / "b" / "file").touch()
    must_hold_plain_files(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    must_hold_plain_files(tmp_path / "link")
    (tmp_path / "real" / "a" / "b" / "inside").symlink_to("file")
    with pytest.raises(InputError, match="a/b/inside: is a symbolic link"):
        must_hold_plain_files(tmp_path / "link")


def test_a_folder_too_deep_to_be_removed_is_refused(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(MAX_DEPTH):
        deep /= "d"
    deep.mkdir(parents=True)
    with pytest.raises(InputError, match="is nested over 32 deep"):
        must_hold_plain_files(tmp_path)
    deep.rmdir()
    must_hold_plain_files(tmp_path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("over\rwritten\n", "over\\rwritten\\n"),
        ("a\u202etxt.exe", "a\\u202etxt.exe"),
        ("\x9b31m", "\\x9b31m"),
        ("caf\udce9", "caf\\udce9"),
        ("Häuser, 日本 & ½", "Häuser, 日本 & ½"),
        (Path("a\tb"), "a\\tb"),
    ],
)
def test_what_would_not_show_itself_is_shown_as_an_escape(text: object, shown: str) -> None:
    assert printable(text) == shown


@settings(deadline=None)
@given(st.text(st.characters()))
def test_any_text_becomes_printable_and_stays_so(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode() == printable(shown)


def test_a_name_is_one_word_for_a_shell() -> None:
    assert shell_word("quickstart-20260101") == "quickstart-20260101"
    assert shell_word("x; rm -rf ~") == "'x; rm -rf ~'"
    assert shell_word("x\n$(id)") == "'x\\n$(id)'"
