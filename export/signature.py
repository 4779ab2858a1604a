"""Sign the files of an export, and check by whom they were signed, with OpenSSF's model-signing.

    python -m export --sign key.pem
    python -m export.verify --public-key key.pub.pem runs/latest/export/model.onnx

Checksums detect damage; whoever can write a file can write them, too. One file, model.sig, signs
the names and the contents of all others in the folder, certificate and golden answers included.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggkeras import files, hub, locks
from vggkeras.errors import InputError

SIGNATURE = "model.sig"
PASSING = (files.PARTIAL, locks.NAME)  # names of what is there while an export runs
LARGEST = 1 << 26  # bytes of a signature
KEYS = "a PEM file of an elliptic curve key (P-256, P-384 or P-521) without a password"


@dataclass(frozen=True)
class Signer:
    """Who signs, or whose signature is expected."""

    name: str  # in words: a key by its fingerprint, or an identity
    config: Any  # model-signing's, to sign or to verify with

    def sign(self, folder: Path) -> None:
        """Sign every file of a folder; a signature that is there is replaced.

        Raises:
            InputError (a ValueError): the folder has symbolic links or special files in it.
        """
        folder = folder.resolve()
        try:
            with files.replacing(folder / SIGNATURE) as beside:
                passing = [p.name for p in folder.iterdir() if p.name.startswith(PASSING)]
                self.config.set_hashing_config(_every_file(*passing)).sign(folder, beside)
        except ValueError as error:
            raise InputError(f"{folder} cannot be signed: {_one_line(error)}") from error

    def problem(self, folder: Path) -> str:
        """Return why a folder is not as this signer signed it, "" where it is.

        Raises:
            InputError (a ValueError): there is no signature.
        """
        path = folder / SIGNATURE
        if not path.is_file():
            raise InputError(
                f"There is no signature {path}: expected what `python -m export --sign KEY` "
                "writes; leave out --public-key and --identity to verify checksums alone."
            )
        if path.stat().st_size > LARGEST:
            return f"a signature of more than {LARGEST:,} bytes"
        try:
            self.config.set_hashing_config(_every_file()).verify(folder, path)
        # A signature that somebody forged makes its parsers raise whatever they may: it fails.
        except Exception as error:
            return _one_line(error) or "the signature is not of this key"
        return ""


def signer(private_key: Path, folder: Path) -> Signer:
    """Return the signer who has a key, for a folder.

    Raises:
        InputError (a ValueError): the key cannot be used, or would be given away with the folder;
            model-signing is not installed.
        OSError: it cannot be read.
    """
    if private_key.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{private_key} lies in {folder}, which is to be signed and given away: keep a private "
            "key elsewhere."
        )
    signing = _model_signing().signing
    return _with_key(
        private_key,
        lambda: signing.Config().use_elliptic_key_signer(private_key=private_key),
        f"{KEYS}, as `openssl ecparam -name prime256v1 -genkey -noout -out key.pem` writes",
    )


def renewed(folder: Path, signer: Signer | None) -> str:
    """Sign a folder, or remove a signature that no longer holds; return what was done."""
    path = folder / SIGNATURE
    if signer is not None:
        signer.sign(folder)
        return f"signed by {signer.name}: {path}"
    if not path.exists():
        return ""
    files.remove(path)
    return f"removed {path}, which no longer held: sign proven files with --sign KEY"


def expected_signer(
    public_key: Path | None = None, identity: str | None = None, issuer: str | None = None
) -> Signer | None:
    """Return whose signature is expected: of a key, or of an identity that Sigstore confirmed.

    None where nothing is given. For an identity, Sigstore's own keys are fetched.

    Raises:
        InputError (a ValueError): a key that cannot be used; an identity without its issuer;
            Sigstore cannot be reached; model-signing is not installed.
        OSError: the key cannot be read.
    """
    if not (public_key or identity or issuer):
        return None
    if public_key and (identity or issuer):
        raise InputError("Give --public-key, or --identity and --issuer, not both.")
    if not public_key and not (identity and issuer):
        raise InputError(
            "An identity is confirmed by its issuer: give both --identity and --issuer."
        )
    verifying = _model_signing().verifying
    if public_key:
        expected = f"{KEYS}, as `openssl ec -in key.pem -pubout -out key.pub.pem` writes"
        return _with_key(
            public_key,
            lambda: verifying.Config().use_elliptic_key_verifier(public_key=public_key),
            expected,
        )
    try:
        config = verifying.Config().use_sigstore_verifier(identity=identity, oidc_issuer=issuer)
    except Exception as error:  # of the network, of TUF and of Sigstore: no common base
        raise InputError(
            f"Sigstore's keys cannot be fetched, which --identity needs ({_one_line(error)}): "
            "check the network, or verify with --public-key."
        ) from error
    return Signer(f"{identity} ({issuer})", config)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say whose signature is expected."""
    parser.add_argument(
        "--public-key",
        type=Path,
        metavar="KEY.pem",
        help=f"check first that {SIGNATURE}, beside the files, is of this key and holds",
    )
    parser.add_argument(
        "--identity", metavar="NAME", help="the same for a keyless signature: whose (an e-mail, …)"
    )
    parser.add_argument("--issuer", metavar="URL", help="who confirmed that identity to Sigstore")


def is_as_signed(paths: Iterable[Path], expected: Signer) -> bool:
    """Check the signature of every folder that paths lie in, print by whom it is, and return.

    Nothing but the signature is parsed, and nothing is run.

    Raises:
        InputError (a ValueError): there is no signature; a file is named on a hub, of which one
            alone would be downloaded.
    """
    paths = [*paths]
    if published := [path.as_posix() for path in paths if path.as_posix().startswith(hub.PREFIX)]:
        raise InputError(
            f"{published[0]} is one file, and a signature is of a whole folder: download the whole "
            "repository first, and give the file's path in a folder of what was signed alone."
        )
    # Only the folder is resolved: a file that is a link leads out of what was signed.
    folders = sorted({Path(os.path.abspath(path)).parent.resolve() for path in paths})
    problems = {folder: expected.problem(folder) for folder in folders}
    for folder, problem in problems.items():
        said = f"FAILED: {problem}: not what was signed by" if problem else "signed by"
        print(f"{folder / SIGNATURE}: {said} {expected.name}")
    return not any(problems.values())


def _with_key(path: Path, configure: Callable[[], Any], expected: str) -> Signer:
    """Return a signer with a key, named by the key's fingerprint.

    That is the SHA-256 of the public key's PEM file, as OpenSSL writes it.
    """
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        config = configure()
    # Of a file that is no PEM, a key with a password, and a key of another kind.
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{path} cannot be used: expected {expected}; received: {_one_line(error)}"
        ) from error
    return Signer(f"the key {_fingerprint(path)}", config)


def _fingerprint(path: Path) -> str:
    """Return the SHA-256 of a public key, or of that which belongs to a private key."""
    import hashlib

    from cryptography.hazmat.primitives import serialization

    content = path.read_bytes()
    if b"PRIVATE KEY" in content:
        public = serialization.load_pem_private_key(content, None).public_key()
    else:
        public = serialization.load_pem_public_key(content)
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return f"SHA256:{hashlib.sha256(pem).hexdigest()}"


def _every_file(*others: str) -> Any:
    """Return how files are hashed: all but the signature, whatever a signature would leave out.

    Args:
        others: names that are left out, too.
    """
    hashing = _model_signing().hashing

    class EveryFile(hashing.Config):  # type: ignore[name-defined]
        def add_ignored_paths(self, **_: Any) -> None:
            """Ignore no more than at first."""

    return EveryFile().set_ignored_paths(paths=[SIGNATURE, *others], ignore_git_paths=False)


def _model_signing() -> Any:
    try:
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ModuleNotFoundError as error:
        raise InputError(
            f"Signatures need the packages model-signing and pyopenssl ({error}): "
            "pip install model-signing pyopenssl, or 'vggkeras[sign]'."
        ) from error
    return model_signing


def _one_line(error: Exception) -> str:
    """Return an error's words: no control characters, no digests of files that changed."""
    text = str(error).replace("\\'", "'")
    text = re.sub(r": Expected .*?(?=Hash mismatch for |\Z)", ", ", text, flags=re.DOTALL)
    text = re.sub(r"^Signature mismatch: \[.", "", text).rstrip(", ")
    return "".join(c if c.isprintable() else " " for c in text)[:300].strip()
