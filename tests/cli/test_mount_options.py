"""The options of a mount: each that mount(8), fstab and systemd pass is taken, no other is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.base.errors import UsageError
from dserverfs.cli.mount_options import Options, known_of, parse

# fstab(5), mount(8) ("filesystem-independent mount options"), systemd.mount(5).
FOR_OTHERS = (
    *("defaults", "auto", "noauto", "nofail", "fail", "_netdev", "user", "nouser", "users"),
    *("owner", "noowner", "group", "nogroup", "silent", "loud", "default_permissions"),
    *("suid", "dev", "symfollow", "nosymfollow", "mand", "nomand", "iversion", "noiversion"),
    *("relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime"),
    *("diratime", "nodiratime", "comment=lab", "user=me", "x-systemd.automount", "x-gvfs-show"),
    *("x-systemd.idle-timeout=5min", "x-systemd.requires=a.service", "X-mount.mkdir", "helper=x"),
)
KERNEL = ("nosuid", "nodev", "noexec", "exec", "atime", "noatime", "async", "sync", "dirsync")


@pytest.mark.parametrize("option", FOR_OTHERS)
def test_option_for_others_is_taken_without_effect(option: str) -> None:
    assert parse([option]) == Options()


@pytest.mark.parametrize("option", [*KERNEL, "context=system_u:object_r:nfs_t:s0"])
def test_option_for_the_kernel_goes_to_the_kernel(option: str) -> None:
    assert parse([f"rw,{option}"]) == Options(is_read_only=False, kernel=(option,))


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("ro", Options(is_read_only=True)),
        ("ro,rw", Options(is_read_only=False)),
        ("allow_other,xattr", Options(allow_other=True, xattr=True)),
        ("umask=027,uid=3,gid=4", Options(umask=0o27, uid=3, gid=4)),
        ("uid=3,uid=5", Options(uid=5)),
        ("setuid=alice", Options(user="alice")),
        (
            "cache_dir=/c,cache_size=3M",
            Options(arguments={"cache_dir": Path("/c"), "cache_size": 3 << 20}),
        ),
        ('log_file="/a,b"', Options(arguments={"log_file": Path("/a,b")})),
        ("freeze_delay=manual", Options(arguments={"freeze_delay": None})),
        ("metrics=9400", Options(arguments={"metrics": ("127.0.0.1", 9400)})),
        ("metrics=[::1]:0", Options(arguments={"metrics": ("::1", 0)})),
        (
            "verify=strict,log_level=debug",
            Options(arguments={"verify": "strict", "log_level": "debug"}),
        ),
        (
            "token_file=/t,protocol=https",
            Options(settings={"DSERVER_TOKEN_FILE": "/t", "DSERVER_PROTOCOL": "https"}),
        ),
        ("ca_file=/c", Options(settings={"DSERVER_CA_FILE": "/c"})),
    ],
)
def test_option_of_ours_has_its_effect(option: str, wanted: Options) -> None:
    assert parse([option]) == wanted
    assert parse(option.split(",") if '"' not in option else [option]) == wanted


@pytest.mark.parametrize(
    "option",
    [
        *("nonsense", "users2", "rww", "cache_size", "ro=1", "uid", "token=abc", "uid=me"),
        *("umask=9", "umask=", "umask=077777", "uid=-1", "gid=", "cache_size=big", "cache_dir=c"),
        *(
            "log_level=loud",
            "verify=",
            "freeze_delay=-1",
            "metrics=host:",
            "metrics=99999",
            "metrics=x",
            "protocol=ftp",
            "token_file=t",
        ),
        *("uid=4294967295", "gid=99999999999"),
        *("remount", "allow_other=1", "noatime=1"),
    ],
)
def test_option_that_is_none_is_told_with_its_name(option: str) -> None:
    with pytest.raises(UsageError) as told:
        parse([f"rw,{option},noatime"])

    assert str(told.value).startswith(f"-o {option}: ")
    assert "\n" not in str(told.value)


def test_unknown_options_are_passed_over_if_so_asked() -> None:
    assert known_of(["rw,nonsense,uid=3", "what=ever"]) == ["rw", "uid=3"]


@given(st.lists(st.text(alphabet='abz=,"_-./0 \n\x00ü')))
def test_any_text_is_parsed_or_refused(options: list[str]) -> None:
    try:
        parse(options)
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017
