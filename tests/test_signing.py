"""Signed personas: what the owner of the key made is taken, and nothing else."""

import json
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from persona_dspy.cli import main
from persona_dspy.cli.importing import import_personas
from persona_dspy.core import private_key, public_key, sign_document, signature_path, verified_document
from persona_dspy.core.document import save_persona
from persona_dspy.core.persona import Bullet, Edit, Persona
from persona_dspy.errors import InputError, PersonaFormatError
from persona_dspy.store import Store

FORMS = {
    "PEM": (
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.PublicFormat.SubjectPublicKeyInfo,
    ),
    "OpenSSH": (
        serialization.Encoding.OpenSSH,
        serialization.PrivateFormat.OpenSSH,
        serialization.PublicFormat.OpenSSH,
    ),
}


def pair(folder, name, form="PEM", key=None):
    """Files of a private and a public key."""
    key = key or Ed25519PrivateKey.generate()
    encoding, private, public = FORMS[form]
    folder.mkdir(exist_ok=True)
    inside = serialization.Encoding.PEM
    (folder / name).write_bytes(key.private_bytes(inside, private, serialization.NoEncryption()))
    (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(encoding, public))
    return folder / name, folder / f"{name}.pub"


def personas(user):
    first = Persona.from_text("Likes tea.", user_id=user)
    return first, first.apply([Edit(op="add", bullet=Bullet(section="style", text="Short."))])


def run(capsys, *argv):
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in argv])
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("form", FORMS)
def test_what_the_key_signed_is_taken_and_what_was_touched_is_not(tmp_path, form):
    private, public = pair(tmp_path / "keys", "k", form)
    file = save_persona(personas("ana")[0], tmp_path)
    sign_document(file, private_key(private))
    assert verified_document(file, public_key(public)).user_id == "ana"
    content, signature = file.read_bytes(), signature_path(file).read_text()

    def refused(match):
        with pytest.raises((InputError, PersonaFormatError), match=match):
            verified_document(file, public_key(public))
        file.write_bytes(content)
        signature_path(file).write_text(signature)

    for at in range(0, len(content), 97):  # one bit anywhere
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        refused("sha256")
    file.write_bytes(content.replace(b"tea", b"rum"))
    refused("sha256")
    for name, value in (("user_id", "bob"), ("version", 7), ("sha256", "0" * 64), ("signed", "2030"), ("more", 1)):
        signature_path(file).write_text(json.dumps({**json.loads(signature), name: value}))
        refused("not signed by this key")
    for broken in ("", "{}", "[]", "null", '{"signature": 3}', '{"signature": "%"}', "[" * 100_000):
        signature_path(file).write_text(broken)
        refused("no signature")
    signature_path(file).unlink()
    refused("expected a persona JSON and its signature")
    stranger, _ = pair(tmp_path / "keys", "stranger")
    sign_document(file, private_key(stranger))
    refused("not signed by this key")
    other = save_persona(personas("bob")[0], tmp_path)
    signature_path(file).write_text(sign_document(other, private_key(private)).read_text())
    refused("sha256")


def test_keys_of_another_kind_are_refused(tmp_path):
    private, public = pair(tmp_path, "k")
    rsa, rsa_public = pair(tmp_path, "rsa", key=generate_private_key(65537, 2048))
    (tmp_path / "none").write_text("no key")
    for read, path in ((private_key, public), (public_key, private), (private_key, rsa), (public_key, rsa_public)):
        with pytest.raises(InputError, match=r"ed25519.*openssl genpkey"):
            read(path)
    for path in ("none", "nowhere"):
        with pytest.raises(InputError, match="openssl genpkey"):
            private_key(tmp_path / path)


def test_a_store_takes_only_signed_personas_and_no_older_version(tmp_path, capsys):
    private, public = pair(tmp_path / "keys", "k")
    first, second = personas("ana")
    origin, here = tmp_path / "origin.db", tmp_path / "here.db"
    for number, persona in enumerate((first, second)):
        with Store.open(origin) as store:
            store.put_persona("ana", persona.to_json())
        out = tmp_path / f"v{number}"
        assert run(capsys, "export", "ana", "--out", out, "--store", origin, "--sign", private)[0] == 0
        assert run(capsys, "import", out, "--store", here, "--verify", public)[0] == 0
    code, err = run(capsys, "import", tmp_path / "v0", "--store", here, "--verify", public)
    assert (code, "the store has version 1" in err, "rollback" in err) == (2, True, True)
    assert run(capsys, "import", tmp_path / "v1", "--store", here, "--verify", public)[0] == 0  # the same again
    save_persona(personas("eve")[0], tmp_path / "v1")
    code, err = run(capsys, "import", tmp_path / "v1", "--store", here, "--verify", public)
    assert (code, "eve" in err, "its signature" in err) == (2, True, True)
    both = run(capsys, "import", tmp_path / "v0", tmp_path / "v1", "--store", tmp_path / "new.db", "--verify", public)
    assert (both[0], (tmp_path / "new.db").exists()) == (2, False)
    with Store.open(here) as store:
        assert (list(store.users()), store.current("ana").version) == (["ana"], 1)


def test_a_file_that_is_swapped_once_it_was_checked_is_not_put(tmp_path):
    private, public = pair(tmp_path / "keys", "k")
    first, second = personas("ana")
    file = save_persona(second, tmp_path)
    sign_document(file, private_key(private))

    def swap():
        sign_document(save_persona(first, tmp_path), private_key(private))
        return Store.open(tmp_path / "s.db")

    assert import_personas([file], public_key(public), swap) == [{"user_id": "ana", "version": 1}]
    with Store.open(tmp_path / "s.db") as store:
        assert [v.version for v in store.versions("ana")] == [1]


def test_keys_that_openssl_makes_do(tmp_path):
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    try:
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl with ed25519")
    file = save_persona(personas("ana")[0], tmp_path)
    sign_document(file, private_key(private))
    assert verified_document(file, public_key(public)).user_id == "ana"
