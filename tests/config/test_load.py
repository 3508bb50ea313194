"""Where settings come from, which one wins, and what is said of a bad one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dolmen.config import Loaded, join_address, load, split_address, split_list
from dolmen.errors import BadSetting

GROUPS = """
digest = "sha1"
copies = 2

[[groups]]
name = "left"
servers = [
  { name = "a", url = "http://127.0.0.1:3001", weight = 2.5, zone = "east" },
  { name = "b", url = "volume:/srv/b" },
]

[[groups]]
name = "right"
write_copies = 1
servers = [
  { name = "c", url = "http://127.0.0.1:3003" },
  { name = "d", url = "http://127.0.0.1:3004/" },
  { name = "e", url = "http://127.0.0.1:3005" },
]

[limits]
connections = 50
"""
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> str:
        path = tmp_path / "dolmen.toml"
        path.write_text(text)
        return str(path)

    return written


def read(flags: dict[str, Any] | None = None, **options: Any) -> Loaded:
    """Load with nothing of this machine taking part."""
    return load(flags, **({"environ": {}, "files": (), "sos_files": ()} | options))


def complaint(flags: dict[str, Any] | None = None, **options: Any) -> str:
    with pytest.raises(BadSetting) as caught:
        read(flags, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def groups_of(loaded: Loaded) -> dict[str, list[str]]:
    """The URLs of each group's servers."""
    groups = loaded.settings.all_groups()
    return {group.name: [server.url for server in group.servers] for group in groups}


def test_flags_beat_the_environment_beats_the_file_beats_defaults(write: Write) -> None:
    path = write('workers = 2\ndata = "/file"\ndigest = "sha1"\nlimits = {connections = 7}')
    environ = {"DOLMEN_WORKERS": "3", "DOLMEN_DATA": "/environment"}
    loaded = read({"workers": 4, "listen": None}, config=path, environ=environ)
    settings = loaded.settings
    assert (settings.workers, settings.data, settings.digest) == (4, "/environment", "sha1")
    assert settings.limits.connections == 7
    assert loaded.origin("workers") == "--workers"
    assert loaded.origin("data") == "environment DOLMEN_DATA"
    assert loaded.origin("digest") == path
    assert loaded.origin("limits.connections") == path
    assert loaded.origin("limits.body_size") == loaded.origin("listen") == "default"
    assert (settings.limits.body_size, settings.listen, settings.all_groups()) == (
        1 << 50,
        None,
        [],
    )


def test_the_first_file_that_is_there_counts_unless_one_is_named(write: Write) -> None:
    path = write("workers = 2")
    files = ("/nowhere/dolmen.toml", path, "/etc/hosts")
    for loaded in (read(files=files), read(environ={"DOLMEN_CONFIG": path}, files=("/etc/hosts",))):
        assert loaded.settings.workers == 2
        assert loaded.origin("workers") == path


def test_the_environment_gives_every_type() -> None:
    environ = {
        "DOLMEN_OPEN": "true",
        "DOLMEN_LISTEN": "0.0.0.0:80",
        "DOLMEN_COPIES": "2",
        "DOLMEN_BLOB_SERVERS": "http://127.0.0.1:1, http://127.0.0.1:2",
        "DOLMEN_HOSTS": "files.example, Files.lan",
        "DOLMEN_LIMITS_BODY_IDLE": "2.5",
        "HOME": "/root",
    }
    settings = read(environ=environ).settings
    assert settings.open is True
    assert settings.listen == "0.0.0.0:80"
    assert settings.blob_servers == ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    assert settings.hosts == ["files.example", "files.lan"]
    assert settings.limits.body_idle == 2.5
    assert len(settings.all_groups()[0].servers) == 2


def test_the_full_form_of_groups(write: Write) -> None:
    left, right = read(config=write(GROUPS)).settings.all_groups()
    assert [server.name for server in left.servers] == ["a", "b"]
    assert (left.servers[0].weight, left.servers[0].zone) == (2.5, "east")
    assert (left.servers[1].weight, left.servers[1].zone) == (1.0, None)
    assert (left.copies, left.write_copies, left.min_copies) == (2, None, 1)
    assert (right.copies, right.write_copies, right.min_copies) == (2, 1, 1)
    assert right.servers[1].url == "http://127.0.0.1:3004"


def test_listed_servers_are_one_group_whose_names_are_as_in_an_sos_conf(tmp_path: Path) -> None:
    urls = ["http://127.0.0.1:3001", "http://files.example", "http://127.0.0.1:3002"]
    conf = tmp_path / "sos.conf"
    conf.write_text("\n".join(urls))
    (group,) = read({"blob_servers": urls}).settings.all_groups()
    assert [server.url for server in group.servers] == urls
    assert len({server.name for server in group.servers}) == len(urls)
    # How many copies that makes depends on how many of them are durable.
    assert (group.copies, group.write_copies, group.min_copies) == (None, None, 1)
    assert read(config=str(conf)).settings.all_groups()[0].servers == group.servers


def test_whoever_last_names_servers_names_all_of_them(write: Write) -> None:
    flags = {"blob_servers": ["http://127.0.0.1:9"]}
    loaded = read(flags, config=write(GROUPS.replace("copies = 2\n", "")))
    assert groups_of(loaded) == {"all": ["http://127.0.0.1:9"]}
    assert loaded.origin("groups") == "default"
    text = complaint(config=write('blob_servers = ["memory:"]\n' + GROUPS))
    assert "both blob_servers and groups" in text


def test_an_sos_conf_counts_only_where_nothing_else_names_servers(
    write: Write, tmp_path: Path
) -> None:
    sos = tmp_path / "sos.conf"
    sos.write_text("http://127.0.0.1:7\n")
    options: dict[str, Any] = {"sos_files": ("/nowhere/sos.conf", str(sos))}
    assert read(**options).settings.all_groups() == []
    found = read(needs_servers=True, **options)
    assert groups_of(found) == {"all": ["http://127.0.0.1:7"]}
    assert found.origin("groups") == str(sos)
    named = read(needs_servers=True, config=write(GROUPS), **options)
    assert [*groups_of(named)] == ["left", "right"]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        (
            "# servers\nhttp://10.0.0.1:3001\n\nhttp://10.0.0.2:3001/  # second\n",
            {"all": ["http://10.0.0.1:3001", "http://10.0.0.2:3001"]},
        ),
        (
            "[one]\n- : http://a:1\n- : http://b:1\n; a comment\n[none]\n[two]\nhttp://c:1\n",
            {"one": ["http://a:1", "http://b:1"], "two": ["http://c:1"]},
        ),
        ("http://a:1\nftp://x\n", "line 2 is 'ftp://x', but should be http://HOST:PORT"),
        ("[one]\n\n", "names no server"),
    ],
)
def test_the_forms_of_an_sos_conf(tmp_path: Path, text: str, groups: Any) -> None:
    conf = tmp_path / "sos.conf"
    conf.write_text(text)
    if isinstance(groups, str):
        message = complaint(config=str(conf))
        assert message.startswith(f"{conf}: ")
        assert groups in message
    else:
        assert groups_of(read(config=str(conf))) == groups


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wokers = 2", "unknown setting wokers; did you mean workers?"),
        (
            "[limits]\nconections = 2",
            "unknown setting limits.conections; did you mean connections?",
        ),
        ('workers = "2"', "workers is '2', but should be a valid integer"),
        ("workers = 0", "workers is 0, but should be greater than or equal to 1"),
        ("open = 1", "open is 1, but should be a valid boolean"),
        ('digest = "md5"', "digest is 'md5', but should be 'sha256' or 'sha1'"),
        ('listen = "9991"', "listen is '9991', but should be HOST:PORT"),
        ('listen = "127.0.0.1:70000"', "should be HOST:PORT"),
        ('listen = "::1:80"', "should have its IPv6 address in brackets"),
        ('store = "ftp://x"', "store is 'ftp://x', but should be a store URL that begins with"),
        ('store = "http:"', "should name a server, for example"),
        ('hosts = ["https://a.b"]', "but should be a host's name without"),
        ('hosts = ["a.b:80"]', "should be a host's name without scheme or port"),
        ('blob_servers = "http://127.0.0.1:1"', "blob_servers is 'http://127.0.0.1:1', but"),
        ("limits = 3", "limits is 3, but should be"),
        ("workers = ", "invalid TOML"),
        (GROUPS.replace("weight", "wieght"), "unknown setting groups.0.servers.0.wieght; did you"),
        (GROUPS.replace("2.5", "-1"), "weight is -1, but should be greater than or equal to 0"),
        (GROUPS.replace("2.5", "0"), "copies = 2, which should be at most the number of its ser"),
        (GROUPS.replace("2.5", "inf"), "weight is inf, but should be a finite number"),
        (GROUPS.replace('name = "b", ', ""), "groups.0.servers.1.name is not set"),
        (GROUPS.replace('"b"', '"a"'), "names the server a twice"),
        (GROUPS.replace('"c"', '"a"'), "names the server a twice"),
        (GROUPS.replace('"right"', '"left"'), "names the group left twice"),
        (GROUPS.replace("copies = 2", "copies = 3"), "copies = 3, which should be at most"),
        (GROUPS.replace("write_copies = 1", "write_copies = 3"), "at most copies, 2"),
        (GROUPS.replace("write_copies = 1", "min_copies = 3"), "at most write_copies, 2"),
    ],
)
def test_a_bad_file_is_explained_in_a_line(write: Write, text: str, said: str) -> None:
    path = write(text)
    message = complaint(config=path)
    assert message.startswith(f"{path}: ")
    assert said in message


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("DOLMEN_WROKERS", "2", "unknown setting; did you mean DOLMEN_WORKERS?"),
        ("DOLMEN_WORKERS", "two", "is 'two', but should be a valid integer"),
        ("DOLMEN_WORKERS", "999", "workers is 999, but should be less than or equal to 256"),
        ("DOLMEN_OPEN", "perhaps", "is 'perhaps', but should be a valid boolean"),
    ],
)
def test_a_bad_variable_is_named(variable: str, value: str, said: str) -> None:
    message = complaint(environ={variable: value})
    assert message.startswith(f"environment {variable}: ")
    assert said in message


def test_a_bad_flag_is_named() -> None:
    assert complaint({"workers": 0}).startswith("--workers: workers is 0, but should be")
    assert complaint({"blob_servers": ["tcp:x"]}).startswith("--blob-server: blob_servers.0 is")


def test_a_missing_file_is_an_error_only_when_it_was_asked_for() -> None:
    assert "there is no such file" in complaint(config="/nowhere/dolmen.toml")
    assert "there is no such file" in complaint(config="/nowhere/sos.conf")
    assert read(files=("/nowhere/dolmen.toml",)).settings.workers == 1


@pytest.mark.parametrize("address", ["0.0.0.0:80", "[::]:80", "10.0.0.1:80", "store.lan:80"])
def test_an_address_others_can_reach_must_be_said_outright(address: str) -> None:
    message = complaint({"listen": address})
    assert message.startswith("--listen: ")
    assert "--open" in message
    assert read({"listen": address, "open": True}).settings.listen == address
    assert "download_listen" in complaint({"download_listen": address})


@pytest.mark.parametrize("address", ["127.0.0.1:80", "127.9.9.9:0", "[::1]:80", "localhost:80"])
def test_loopback_needs_no_permission(address: str) -> None:
    assert read({"listen": address}).settings.listen == address
    host, port = split_address(address)
    assert join_address(host, port) == address


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        (" a , b,", ["a", "b"]),
        ("http://a:1,http://b:2", ["http://a:1", "http://b:2"]),
        (
            "volume:/a,memcached://a:1,b:2/p, volume:/b",
            ["volume:/a", "memcached://a:1,b:2/p", "volume:/b"],
        ),
    ],
)
def test_a_url_of_several_servers_is_one_part_of_a_list(text: str, parts: list[str]) -> None:
    assert split_list(text) == parts


@pytest.mark.parametrize(
    "path", ["/a/" + "b" * 63, "/a/" + "b" * 80, "/srv/données", "/-/", "/-/" + "c" * 63]
)
def test_any_path_gives_a_name_that_is_one(path):
    (group,) = read({"blob_servers": [f"volume:{path}"]}).settings.all_groups()
    assert len(group.servers) == 1


@pytest.mark.parametrize(
    "name",
    [
        "DOLMEN_SERVICE_HOST",
        "DOLMEN_SERVICE_PORT_HTTP",
        "DOLMEN_PORT",
        "DOLMEN_PORT_9991_TCP_ADDR",
        "DOLMEN_API_PORT_9991_TCP",
    ],
)
def test_variables_of_a_container_platform_are_no_settings(name):
    assert read(environ={name: "tcp://10.0.0.1:9991"}).origins == {}


def test_a_file_that_was_not_asked_for_and_can_not_be_read_is_passed_over(tmp_path, caplog):
    folder = tmp_path / "dolmen.toml"
    folder.mkdir()  # reading it fails, for root too
    assert read(files=(str(folder),)).origins == {}
    assert "is passed over" in caplog.text
    assert "can't be read" in complaint(config=str(folder))
