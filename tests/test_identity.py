"""The user's own key: the vectors of RFC 8032, OpenSSL's opinion, OpenSSH's file format, and what is no key."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ndani.errors import Misconfigured
from ndani.sources.identity import Identity, open_identity, parse, render
from registries import openssl_verifies

#: RFC 8032, 7.1: secret, public, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
]


@pytest.mark.parametrize(("secret", "public", "message", "signature"), VECTORS)
def test_vectors(secret: str, public: str, message: str, signature: str) -> None:
    identity = Identity(bytes.fromhex(secret))
    assert identity.public.hex() == public
    assert identity.sign(bytes.fromhex(message)).hex() == signature


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_openssl_agrees_on_keys_of_chance() -> None:
    for _ in range(5):
        identity, message = Identity(os.urandom(32)), os.urandom(100)
        signature = identity.sign(message)
        assert openssl_verifies(identity.public, message, signature)
        assert not openssl_verifies(identity.public, message + b"!", signature)


def test_a_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "id_ed25519"
    one, two = open_identity(path), open_identity(path)
    assert one.seed == two.seed
    assert path.stat().st_mode & 0o777 == 0o600
    assert parse(render(one)).public == one.public


def test_two_who_need_the_first_key_at_once_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        for number in range(10):
            together = threading.Barrier(4)

            def first(path: Path = tmp_path / str(number) / "key", together: threading.Barrier = together) -> bytes:
                together.wait()
                return open_identity(path).seed

            assert len({each.result() for each in [pool.submit(first) for _ in range(4)]}) == 1
    assert len(list(tmp_path.rglob("*key*"))) == 10, "nothing else is left"


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs ssh-keygen")
def test_openssh_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    identity = open_identity(ours)
    shown = subprocess.run(["ssh-keygen", "-y", "-f", str(ours)], capture_output=True, text=True, check=True).stdout
    assert shown.split()[:2] == ["ssh-ed25519", identity.public_text]
    theirs = tmp_path / "theirs"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(theirs)], check=True)
    assert open_identity(theirs).public_text == theirs.with_suffix(".pub").read_text().split()[1]
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "word", "-f", str(tmp_path / "locked")], check=True)
    with pytest.raises(Misconfigured, match="no unencrypted ed25519 key"):
        open_identity(tmp_path / "locked")


@pytest.mark.parametrize("text", ["", "nonsense", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"])
def test_what_is_no_key_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(Misconfigured, match="remove it, and a new one is made"):
        open_identity(tmp_path / "key")
