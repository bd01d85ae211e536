"""Which addresses may be pulled: the forms that one address may take, what each list lets through, and no password
in any message."""

from __future__ import annotations

import ipaddress
import socket
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from operators.errors import ConfigError, SourceError
from operators.live.addresses import AllowList, NotAllowed, is_public, parse, public_url

DEFAULT = AllowList()
HERE = AllowList(schemes=("rtsp", "http", "udp", "file", "v4l2"), hosts=("public", "127.0.0.0/8"))


@pytest.mark.parametrize("host", [
    "127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1",
    "0", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:7f00:1]",
    "10.0.0.1", "172.16.5.5", "192.168.1.1", "100.64.0.1", "169.254.169.254", "0xa9fea9fe", "2852039166",
    "[::ffff:169.254.169.254]", "[fe80::1]", "[fc00::1]", "[fd12:3456::1]", "[fec0::1]", "[2002:7f00:1::]",
    "[2002:a9fe:a9fe::1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::a9fe:a9fe]", "224.0.0.1", "239.255.255.250", "[ff02::1]",
    "255.255.255.255", "240.0.0.1", "192.0.0.1", "198.18.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1", "user@127.0.0.1",
    "8.8.8.8@127.0.0.1", "127.0.0.1#@8.8.8.8", "127.0.0.1?@8.8.8.8", "127.0.0.1/@8.8.8.8",
])  # fmt: skip
def test_what_is_not_public_is_refused_however_it_is_written(host):
    with pytest.raises(NotAllowed):
        DEFAULT.check(f"http://{host}/")
    with pytest.raises(NotAllowed):
        DEFAULT.endpoints(parse(f"http://{host}/"))     # what a connection asks: a check alone would be too early


@pytest.mark.parametrize("url", [
    "http://8.8.8.8/", "rtsp://8.8.8.8/a?b=c", "https://[2001:4860:4860::8888]/", "http://134744072:8080/",
    "http://[::ffff:8.8.8.8]/", "http://[2002:808:808::1]/", "rtsp://user:word@1.1.1.1:8554/x",
])  # fmt: skip
def test_what_is_public_may_be_pulled(url):
    DEFAULT.check(url)


@pytest.mark.parametrize("url", [
    "", "x", "8.8.8.8", "http:/8.8.8.8", "http:8.8.8.8", "//8.8.8.8/", "http://", "http:///x", "http://:80/", "http://@/",
    "http://8.8.8.8:0/", "http://8.8.8.8:65536/", "http://8.8.8.8:-1/", "http://8.8.8.8:x/", "http://[::1/",
    "http://8.8.8.8\\@127.0.0.1/", "http://8.8.8.8 /", "http://8.8.8.8/\r\nHost: x", "http://8.8.8.8/\0", "\thttp://8.8.8.8",
    "http://8.8.8.8%2f@127.0.0.1/", "http://a b/", "http://%31%32%37.0.0.1/", "http://u:%0d%0a@8.8.8.8/", "http://exa$mple/",
    "file:///etc/passwd", "file://host/x", "v4l2:///dev/video0", "v4l2:///etc/passwd", "gopher://8.8.8.8/",
    "concat:http://8.8.8.8/", "ftp://8.8.8.8/", "data:text/plain,x", "javascript://x", "udp://8.8.8.8:5000", "tcp://8.8.8.8",
    "tcp://8.8.8.8:554", "http://8.8.8.8:22/", "http://8.8.8.8:25/", "rtsp://8.8.8.8:53/", "http://" + "a" * 5000,
])  # fmt: skip
def test_what_is_no_address_or_not_listed_is_refused(url):
    with pytest.raises(NotAllowed) as raised:
        DEFAULT.check(url)
    assert str(raised.value).endswith((".", "?"))


@pytest.mark.parametrize("allow, url, fits", [
    pytest.param({"hosts": ()}, "http://8.8.8.8/", False, id="no host at all"),
    pytest.param({"hosts": ("10.0.7.0/24",)}, "http://10.0.7.9/", True, id="a network"),
    pytest.param({"hosts": ("10.0.7.0/24",)}, "http://[::ffff:10.0.7.9]/", True, id="a network, mapped into IPv6"),
    pytest.param({"hosts": ("10.0.7.0/24",)}, "http://10.0.8.9/", False, id="the network beside it"),
    pytest.param({"hosts": ("10.0.7.0/24",)}, "http://8.8.8.8/", False, id="public is a word of its own"),
    pytest.param({"hosts": ("10.0.7.5",)}, "http://10.0.7.5/", True, id="one address"),
    pytest.param({"hosts": ("fd00::/8",)}, "http://[fd00::7]/", True, id="a network of IPv6"),
    pytest.param({"hosts": ("localhost",)}, "http://localhost/", True, id="a name in full may lie anywhere"),
    pytest.param({"hosts": ("localhost",)}, "http://127.0.0.1/", False, id="and its address is another"),
    pytest.param({"hosts": ("127.0.0.0/8",), "ports": ("8000-8010",)}, "http://127.0.0.1:8010/", True, id="ports"),
    pytest.param({"hosts": ("127.0.0.0/8",), "ports": ("8000-8010",)}, "http://127.0.0.1:8011/", False, id="the next"),
    pytest.param({"schemes": ("rtsp",)}, "http://8.8.8.8/", False, id="another scheme"),
    pytest.param({"schemes": ("rtsp",)}, "rtspu://8.8.8.8/", True, id="rtsp by UDP"),
    pytest.param({"schemes": ("http",)}, "rtspt://8.8.8.8/", False, id="rtsp by TCP is rtsp"),
    pytest.param({"schemes": ("udp",), "hosts": ("239.0.0.0/8",)}, "udp://239.1.1.1:5000", True, id="a group"),
    pytest.param({"schemes": ("udp",), "hosts": ("239.0.0.0/8",)}, "udp://@239.1.1.1:5000", True, id="written with @"),
    pytest.param({"schemes": ("file",)}, "file:///etc/hosts", True, id="files, if listed"),
    pytest.param({"schemes": ("file",), "folders": ("/srv",)}, "file:///srv/../etc/hosts", False, id="out of a folder"),
    pytest.param({"schemes": ("file",), "folders": ("/srv",)}, "file:///srv/%2e%2e/etc/hosts", False, id="escaped"),
    pytest.param({"schemes": ("file",), "folders": ("/srv",)}, "file:///srvx/a", False, id="a longer name"),
    pytest.param({"schemes": ("file",), "folders": ("/srv",)}, "file:///srv/a", True, id="in a folder"),
    pytest.param({"schemes": ("v4l2",)}, "v4l2:///dev/video3", True, id="a webcam"),
    pytest.param({"schemes": ("v4l2",)}, "v4l2:///dev/video3/../sda", False, id="another device"),
])  # fmt: skip
def test_lists(allow, url, fits):
    if fits:
        AllowList(**allow).check(url)
    else:
        with pytest.raises(NotAllowed):
            AllowList(**allow).check(url)


def test_links_do_not_lead_out_of_a_folder(tmp_path):
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "link.mp4").symlink_to("/etc/hosts")
    with pytest.raises(NotAllowed, match="folders"):
        AllowList(schemes=("file",), folders=(str(inside),)).check(f"file://{inside}/link.mp4")


def test_a_name_is_resolved_at_every_connection_and_only_what_was_checked_is_connected_to(monkeypatch):
    """DNS rebinding: the name is public when it is registered, and private when it is connected to."""
    answers = [["93.184.216.34"], ["10.0.0.1"], ["10.0.0.1", "93.184.216.34"]]

    def resolve(host: str, port: int, **_: object) -> list[tuple]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in answers.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    DEFAULT.check("http://rebinding.example/")
    with pytest.raises(NotAllowed):
        DEFAULT.endpoints(parse("http://rebinding.example/"))
    (endpoint,) = DEFAULT.endpoints(parse("http://rebinding.example/"))
    assert endpoint.host == "93.184.216.34", "the private one of two is not tried"


@pytest.mark.parametrize("entry, ip, fits", [
    ("cam.example", "127.0.0.1", True), ("cam.example", "10.0.0.1", True), ("*.example", "10.0.0.1", True),
    ("*.example", "127.0.0.1", False), ("*.example", "169.254.169.254", False), ("*.example", "ff02::1", False),
    ("*.cam.example", "10.0.0.1", False), ("xcam.example", "10.0.0.1", False), ("*.ample", "10.0.0.1", False),
])  # fmt: skip
def test_names(monkeypatch, entry, ip, fits):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (ip, 80))])
    allow, address = AllowList(hosts=(entry,)), parse("http://cam.example/")
    if fits:
        assert [endpoint.host for endpoint in allow.endpoints(address)] == [ip]
    else:
        with pytest.raises(NotAllowed):
            allow.endpoints(address)


def test_a_name_that_does_not_resolve_may_be_registered_but_not_connected_to(monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    DEFAULT.check("http://camera.example/")
    with pytest.raises(SourceError, match="does not resolve") as raised:
        DEFAULT.endpoints(parse("http://camera.example/"))
    assert not isinstance(raised.value, NotAllowed)


@pytest.mark.parametrize("bad", [{"schemes": ("gopher",)}, {"hosts": ("a b",)}, {"hosts": ("10.0.0.0/99",)},
                                 {"ports": ("80-",)}, {"ports": ("x",)}])
def test_lists_that_are_none_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        AllowList(**bad)


@pytest.mark.parametrize("url, shown", [
    ("rtsp://10.0.0.1/a", "rtsp://10.0.0.1/a"),
    ("rtsp://admin:hunter2@10.0.0.1:8554/a?b=c", "rtsp://10.0.0.1:8554/a?b=c"),
    ("rtsp://admin@10.0.0.1/a", "rtsp://10.0.0.1/a"),
    ("rtspu://admin:hunter2@10.0.0.1/a", "rtspu://10.0.0.1/a"),
    ("RTSPT://10.0.0.1:554/a", "rtspt://10.0.0.1/a"),
    ("rtsp://admin:hun/ter2@10.0.0.1/a", "a source"),
    ("rtsp://admin:1/hunter2@10.0.0.1/a", "rtsp://admin:1/..."),
    ("http://h.example/v?user=admin&pwd=hunter2&size=3", "http://h.example/v?user=...&pwd=...&size=3"),
    ("http://h.example/v?access_token=hunter2", "http://h.example/v?access_token=..."),
    ("http://a:hunter2@h.example:99999/", "a source"),
    ("http://a:hunter2 @h.example/", "a source"),
    ("hunter2", "a source"),
    ("", "a source"),
])  # fmt: skip
def test_what_is_shown_of_an_address(url, shown):
    assert public_url(url) == shown
    assert "hunter2" not in public_url(url)


NOISE = st.text(st.sampled_from(list("abc:/@?#[]%.0127&=\\ \t\n\x00é。①")), max_size=40)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["http://", "rtsp://", "rtspu://", "https://", "tcp://", "udp://", "file://", "v4l2://",
                        ""]), NOISE)
@example("http://", "[")
@example("http://", "a@[::1")
def test_any_text_is_an_address_or_a_sentence(scheme, rest):
    shown = public_url(scheme + rest)
    assert "\n" not in shown
    try:
        address = parse(scheme + rest)
    except NotAllowed as error:
        assert str(error)
        return
    assert 0 <= address.port <= 65535 and "\n" not in address.path and "\r" not in address.path
    assert " " not in address.path and address.path.isascii() or address.scheme in ("file", "v4l2")
    assert parse(address.public).host == address.host or "..." in address.public


PASSWORD = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=5, max_size=12)


@settings(max_examples=120, deadline=None)
@given(PASSWORD, st.sampled_from(["http://u:{}@8.8.8.8/a", "rtsp://{}:x@8.8.8.8/a", "rtsp://u:{}@127.0.0.1:22/",
                                  "http://u:{}@[::1]/", "http://8.8.8.8/?password={}", "http://u:{}@8.8.8.8:x/"]))
def test_no_password_is_ever_shown(password, form):
    marked = f"zq{password}qz"
    url = form.format(marked)
    shown = [public_url(url)]
    try:
        with pytest.MonkeyPatch.context() as patch:     # a name is asked of no network: that may take seconds each
            patch.setattr(socket, "getaddrinfo", partial(socket.getaddrinfo, flags=socket.AI_NUMERICHOST))
            DEFAULT.endpoints(parse(url))
    except SourceError as error:
        shown.append(str(error))
    assert not any("zq" in text.lower() and "qz" in text.lower() for text in shown), shown


@settings(max_examples=150, deadline=None)
@given(st.ip_addresses())
def test_public_addresses_are_those_of_the_registry(ip):
    """Against Python's own registry, which is older than some forms of IPv6: never more lenient than it."""
    if is_public(ip):
        assert ip.is_global and not ip.is_private and not ip.is_multicast and not ip.is_loopback
    for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10"):
        if ip.version == 4 and ip in ipaddress.ip_network(net):
            assert not is_public(ip)
