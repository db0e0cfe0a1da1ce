"""`chairlift keygen`: a key pair for one worker or frontend that talks over tcp."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from zmq.auth import create_certificates

from .addresses import make_private_directory
from .errors import AddressError

DEFAULT_DIRECTORY = Path("~/.config/chairlift/keys")

NEXT_STEPS = """\
secret key  {secret}
            stays where it is, readable for this user alone
public key  {public}
            goes to those who shall talk to {name}

If {name} is a worker: copy {public.name} to each frontend's machine, and start
  chairlift worker --address tcp://HOST:PORT --curve-key {secret} --curve-frontends DIRECTORY
  where DIRECTORY holds the .key files of the frontends that may connect.
If {name} is a frontend: copy {public.name} into that directory of the worker's, start the worker
again, and start
  chairlift serve --address tcp://HOST:PORT --curve-key {secret} --curve-worker WORKER.key
A .key_secret file never leaves its machine."""


def run(arguments: Sequence[str]) -> int:
    """The exit code. Raises AddressError when the files exist or can't be written."""
    parser = argparse.ArgumentParser(
        prog="chairlift keygen",
        description="Makes NAME.key, to give away, and NAME.key_secret, to keep.",
    )
    parser.add_argument("name", help="of the process that the keys are for: worker, web-1")
    parser.add_argument(
        "--directory",
        type=Path,
        default=DEFAULT_DIRECTORY,
        help="where to put them, made with mode 0700; default: %(default)s",
    )
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"\w[\w.-]{0,63}", options.name, re.ASCII):
        parser.error("a name is made of letters, digits, '_', '.' and '-'")
    print(make_keys(options.name, options.directory.expanduser().absolute()))
    return 0


def make_keys(name: str, directory: Path) -> str:
    """Writes both files and returns what to do with them; raises AddressError."""
    make_private_directory(directory)
    secret, public = directory / f"{name}.key_secret", directory / f"{name}.key"
    for path in (secret, public):
        if path.exists():
            raise AddressError(f"{path} exists and is never overwritten: choose another name")
    mask = os.umask(0o077)
    try:
        create_certificates(directory, name)
    except OSError as error:
        raise AddressError(f"no keys written to {directory}: {error.strerror}") from None
    finally:
        os.umask(mask)
    return NEXT_STEPS.format(name=name, secret=secret, public=public)
